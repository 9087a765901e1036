"""`Run`: the whole configuration of one training run, and the one place where its flags are described.

A field that is None hasn't been said. `resolve` fills it: an explicit flag, else the published row, else the recipe of the
task (which may depend on the model), else DEFAULTS. No torch here, so that `--help` answers at once.
"""

import shlex
import sys
from dataclasses import dataclass, field, fields, replace

from utils.errors import UserError


def flag(
    kind: type,
    help: str,
    *,
    choices: tuple = (),
    least: float | None = None,
    below: float | None = None,
    aliases: tuple[str, ...] = (),
):
    """A field of Run that is a flag of the command line; None where nothing was said. Values lie from `least` on and below
    `below`."""
    limits = {"choices": choices, "least": least, "below": below}
    return field(default=None, metadata={"kind": kind, "help": help, "aliases": aliases, **limits})


YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Run:
    """The whole configuration, field by field in the order of `--help`."""

    # the model
    model: str | None = flag(
        str,
        "gpt2-small, -medium, -large, -xl, bert-base-uncased, roberta-base, owner/name on the hub; shipped: gpt2-pocket, "
        "distilbert-pocket (default: the task's published model where it can be had, else the shipped one)",
        aliases=("model_size",),
    )
    checkpoint: str | None = flag(str, "a directory in Hugging Face layout, instead of --model")
    tokenizer: str | None = flag(str, "a directory with the tokenizer's files (default: the checkpoint's own)")
    weights: str | None = flag(str, "random: every layer drawn anew as PyTorch draws it", choices=("pretrained", "random"))
    disable_causal_mask: bool | None = flag(bool, "let every token attend to every other")
    dropout: float | None = flag(float, "dropout in the model", least=0, below=1)
    # what is trained
    trainable_layers: str | None = flag(
        str,
        "last_layer (the head), last_block, last_two_blocks, all, freeze, bitfit, adapter, bypass, lora, lora_alternative, "
        "dora, ia3, prefix, prompt, peft (of --adapter), or a method of your own; several joined with +, as lora+bypass",
    )
    adapter: str | None = flag(
        str,
        "an adapter made by the library peft, a directory or owner/name on the hub, which is put on the model and, with "
        "--num_epochs above 0, trains on",
    )
    train_head: str | None = flag(str, "train the head in full", choices=YES_NO)
    head_labels: str | None = flag(
        str, "of the checkpoint's classifier keep these labels, in the task's order: negative,positive or 2,0"
    )
    stages: str | None = flag(str, "train in several stages: a plan of published/plans.py, such as layer_by_layer")
    depth: int | None = flag(int, "run only this many blocks, the head reads the last one's output (0: all)", least=0)
    layers: str | None = flag(
        str,
        "blocks that freeze, lora, dora, ia3, adapter, prefix act on, counted from 0: all, first3, last3, 25-27, 0,2,5-7",
    )
    part: str | None = flag(
        str, "what freeze trains of these blocks: all, attn, qkv, mlp, norm, or modules such as attn.out"
    )
    lora_rank: int | None = flag(int, "rank of the LoRA matrices", least=1, below=2**24)
    lora_alpha: float | None = flag(float, "alpha of LoRA, see --lora_scaling")
    lora_target: str | None = flag(str, "all, or whole path components such as attn.q,attn.v or 2-5.mlp or q_lin")
    lora_dropout: float | None = flag(float, "dropout on the input of the LoRA matrices", least=0, below=1)
    lora_scaling: str | None = flag(str, "what multiplies the LoRA product", choices=("alpha", "alpha/r", "alpha/sqrt(r)"))
    lora_init: str | None = flag(
        str,
        "bound of LoRA's A: kaiming 1/sqrt(in), wide 1/sqrt(rank); pissa: A and B are the weight's principal parts",
        choices=("kaiming", "wide", "pissa"),
    )
    lora_plus_ratio: float | None = flag(float, "learning rate of LoRA's B by that of A (LoRA+)", least=0)
    adapter_placement: str | None = flag(
        str, "pfeiffer: after the feed-forward sublayer; houlsby: after attention too", choices=("pfeiffer", "houlsby")
    )
    reduction_factor: int | None = flag(int, "width of the model by that of an adapter's bottleneck", least=1)
    bypass_taps: str | None = flag(
        str,
        "what the branches read: all, or outputs of blocks counted from 1 (3,4,5) or of their attention (attn.2,attn.3); "
        "4x2 is 4 with a depth of its own",
    )
    bypass_depth: int | None = flag(int, "Linear layers in a row per branch, 0 to 3", least=0, below=4)
    bypass_into: str | None = flag(
        str, "the layer of the head that reads the sum of the branches", choices=("classifier", "dense")
    )
    bypass_head: str | None = flag(
        str, "linear: no activation in the head, and dropout on the logits", choices=("own", "linear")
    )
    bypass_init: str | None = flag(
        str, "zero: the branches add nothing at first; default: PyTorch's", choices=("zero", "default")
    )
    prefix_length: int | None = flag(
        int, "positions that prefix tuning and prompt tuning put before a text", least=1, below=2**24
    )
    prefix_projection: bool | None = flag(bool, "train the prefix through a small network, which is folded away after it")
    # the data
    dataset: str | None = flag(
        str,
        "spam, sst2, rte, restaurant_sup, acl_sup, agnews_sup (few-shot: restaurant_fs, ...), or shipped: spam-pocket, "
        "sentiment-pocket (default: spam for GPT-2, else sst2, where it can be had); dialogues: the shipped persona and "
        "general, or the path of a .json or .jsonl file",
    )
    data_dir: str | None = flag(str, "a directory with data sets (sms_spam/SMSSpamCollection, glue_sst2/train.tsv, ...)")
    trainable_token_pos: str | None = flag(
        str, "whose hidden state the classifier reads", choices=("first", "last", "flexible")
    )
    average_embeddings: bool | None = flag(bool, "classify the mean over all positions instead")
    context_length: str | None = flag(
        str, "pad or cut texts to: longest_training_example, model_context_length, or a number of tokens"
    )
    no_padding: bool | None = flag(bool, "no influence of padding (masked where a batch needs some)")
    train_samples: int | None = flag(int, "train on this many examples, drawn by the seed (0: on all)", least=0)
    eval_train: str | None = flag(str, "evaluate the training examples too, at the end", choices=YES_NO)
    template: str | None = flag(str, "how a dialogue becomes text: default (plain lines) or alpaca")
    source_prefix: str | None = flag(str, "a text in front of every dialogue that has none of its own")
    max_source_length: int | None = flag(
        int, "tokens in front of a dialogue's last answer; the oldest turns are dropped (0: no limit)", least=0
    )
    max_target_length: int | None = flag(int, "tokens of an answer; the rest is cut off (0: no limit)", least=0)
    packing: bool | None = flag(bool, "let several short dialogues share a row, none seeing another")
    auxiliary_dataset: str | None = flag(str, "dialogues to mix into the training data, by name or path")
    auxiliary_samples: int | None = flag(int, "how many of them, drawn by the seed (0: all)", least=0)
    general_dataset: str | None = flag(str, "dialogues, by name or path, whose test part is measured too; or none")
    test_share: float | None = flag(
        float,
        "part of the dialogues held out for validation, and again for testing, where the file names none, 100 at most",
        least=0,
        below=0.5,
    )
    eval_generate: int | None = flag(
        int,
        "at the end let the model answer this many test dialogues, and as many of --general_dataset, and score the answers "
        "by BLEU and ROUGE (0: none); an answer has at most --max_target_length tokens, else 100",
        least=0,
    )
    ignore_index: int | None = flag(int, "label that the loss leaves out", least=-(2**63), below=2**63)
    # the loop
    num_epochs: int | None = flag(
        int, "passes over the training data (0: only evaluate)", least=0, aliases=("num_train_epochs",)
    )
    max_steps: int | None = flag(int, "stop after this many optimizer steps (0: no limit)", least=0)
    batch_size: int | None = flag(
        int, "examples per forward pass, of each process", least=1, aliases=("per_device_train_batch_size",)
    )
    accumulation_steps: int | None = flag(
        int, "forward passes per optimizer step", least=1, aliases=("gradient_accumulation_steps",)
    )
    eval_batch_size: int | None = flag(int, "examples per forward pass of an evaluation", least=1)
    learning_rate: float | None = flag(float, "peak learning rate of AdamW", least=0)
    weight_decay: float | None = flag(float, "decoupled weight decay, on everything that trains", least=0)
    lr_scheduler_type: str | None = flag(str, "schedule of the learning rate", choices=("constant", "linear", "cosine"))
    warmup_ratio: float | None = flag(float, "part of the steps in which the learning rate rises from 0", least=0, below=1)
    early_stopping_patience: int | None = flag(
        int, "stop after this many evaluations without a lower validation loss, and go back to the best (0: don't)", least=0
    )
    max_grad_norm: float | None = flag(float, "clip the gradient's norm to this (0: don't)", least=0)
    seed: int | None = flag(int, "of weights, order and dropout", least=0, below=2**63)
    data_order: str | None = flag(
        str,
        "seeded, bucketed (texts of similar length together), or published: the spam script's own shuffles, its dropped "
        "last batch too",
        choices=("seeded", "bucketed", "published"),
    )
    # the machine and the record
    amp: str | None = flag(
        str, "mixed precision (auto: where the hardware has it)", choices=("auto", "off", "bf16", "fp16")
    )
    device: str | None = flag(str, "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    reuse_frozen: str | None = flag(
        str, "compute what frozen blocks make of a text once, where nothing random is below", choices=YES_NO
    )
    trim: str | None = flag(
        str, "leave out positions that no position that is read can see, such as padding behind it", choices=YES_NO
    )
    gradient_checkpointing: bool | None = flag(
        bool, "keep only what enters each block for the backward pass: less memory, about a third more time"
    )
    compile: bool | None = flag(
        bool,
        "let torch.compile fuse what a block does: the first steps take minutes, the later ones less, on a GPU above all",
    )
    fsdp: bool | None = flag(
        bool,
        "leave each of torchrun's processes a part of the model, for one that is too large for one GPU; frozen blocks then "
        "run each time",
    )
    logging_steps: int | None = flag(int, "write training loss and accuracy every N optimizer steps", least=1)
    eval_steps: int | None = flag(int, "evaluate every N optimizer steps besides each epoch (0: don't)", least=0)
    save_steps: int | None = flag(
        int, "every N optimizer steps save what --resume goes on from (0: only on Ctrl-C and SIGTERM)", least=0
    )
    save_total_limit: int | None = flag(int, "keep this many of the newest of them", least=1)
    deterministic: bool | None = flag(
        bool, "use only operations that give the same numbers each time on a GPU too; on a CPU they all do"
    )
    memory_report: bool | None = flag(bool, "print what the run needs in memory, and at the end what it took")
    plot_loss: bool | None = flag(bool, "draw losses and accuracies as curves.png in the output directory (matplotlib)")
    output_dir: str | None = flag(str, "where results go (default: runs/NAME; of a table: runs)")
    resume: bool | None = flag(bool, "go on from what an interrupted run has saved in its directory")

    @property
    def source(self) -> str | None:
        """What the model is read from: a directory or a name."""
        return self.checkpoint or self.model

    def __post_init__(self):
        for one in fields(self):
            _check(one.name, getattr(self, one.name), **one.metadata)


def _check(name: str, value, kind: type, choices: tuple, least: float | None, below: float | None, **_) -> None:
    if value is None:
        return
    if value == "" and kind is str:
        raise UserError(f"--{name} is empty; leave the flag out or give it a value")
    if type(value) not in ((int, float) if kind is float else (kind,)):
        raise UserError(f"--{name} is {value!r}; it must be of type {kind.__name__}")
    if choices and value not in choices:
        raise UserError(f"--{name} is {value!r}; choose {', '.join(choices)}")
    if kind is float and not abs(value) <= sys.float_info.max:  # a whole number may be larger
        raise UserError(f"--{name} is {value}; it must be a finite number")
    if least is not None and value < least:
        raise UserError(f"--{name} is {value}; it must be at least {least}")
    if below is not None and value >= below:
        raise UserError(f"--{name} is {value}; it must be below {below}")


# What no recipe says otherwise.
DEFAULTS = {
    "weights": "pretrained",
    "disable_causal_mask": False,
    "dropout": 0.0,
    "train_head": "yes",
    "lora_plus_ratio": 1.0,
    "depth": 0,
    "layers": "all",
    "part": "all",
    "adapter_placement": "pfeiffer",
    "reduction_factor": 16,
    "bypass_taps": "all",
    "bypass_depth": 1,
    "bypass_into": "classifier",
    "bypass_head": "own",
    "bypass_init": "zero",
    "prefix_length": 16,
    "prefix_projection": False,
    "trainable_token_pos": "last",
    "average_embeddings": False,
    "no_padding": False,
    "train_samples": 0,
    "eval_train": "yes",
    "template": "default",
    "max_source_length": 0,
    "max_target_length": 0,
    "packing": False,
    "auxiliary_samples": 0,
    "test_share": 0.1,
    "eval_generate": 0,
    "ignore_index": -100,
    "max_steps": 0,
    "accumulation_steps": 1,
    "eval_batch_size": 64,
    "early_stopping_patience": 0,
    "max_grad_norm": 0.0,
    "data_order": "seeded",
    "amp": "auto",
    "device": "auto",
    "reuse_frozen": "yes",
    "trim": "yes",
    "gradient_checkpointing": False,
    "compile": False,
    "fsdp": False,
    "logging_steps": 10,
    "eval_steps": 0,
    "save_steps": 0,
    "save_total_limit": 1,
    "deterministic": False,
    "memory_report": False,
    "plot_loss": False,
    "resume": False,
}

# What only dialogues have a use for.
DIALOGUES_ONLY = (
    *("template", "source_prefix", "max_source_length", "max_target_length", "packing"),
    *("auxiliary_dataset", "auxiliary_samples", "general_dataset", "test_share", "eval_generate"),
)


def override(run: Run, other: Run) -> Run:
    """`run` with everything that `other` says."""
    return replace(run, **said(other))


def said(run: Run) -> dict:
    """The fields that aren't None."""
    return {one.name: value for one in fields(run) if (value := getattr(run, one.name)) is not None}


def resolve(run: Run, recipe: dict) -> Run:
    """Each field from what the run says, else from the recipe, else from DEFAULTS. Still None: what names nothing, such as
    --stages of a run without stages."""
    return Run(**(DEFAULTS | recipe | said(run)))


def to_flags(run: Run) -> list[str]:
    """The flags that make this run. A switch that is off has none: it can't be switched off by a flag."""
    words = []
    for name, value in said(run).items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words += [f"--{name}", str(value).removesuffix(".0") if isinstance(value, float) else str(value)]
    return words


def command(run: Run) -> str:
    """The command line that makes this run."""
    return shlex.join(["python", "experiments.py", *to_flags(run)])
