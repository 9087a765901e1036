"""`Run`: the whole configuration of one training run. Each setting stands here once, with its flag, limits and default.

A setting that is None has not been given. `resolve` fills it in: an explicit flag, else the published row, else the recipe
of the task, else the default beside the setting. Nothing here imports torch, so that `--help` answers at once.
"""

import os
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import get_args

from utils.errors import UserError
from utils.flag import flag

# What the flags and the methods accept.
YES_NO = ("yes", "no")
LORA_SCALINGS = ("alpha", "alpha/r", "alpha/sqrt(r)")
LORA_INITS = ("kaiming", "wide", "pissa")
LORA_MATCHINGS = ("components", "endswith")
ADAPTER_PLACEMENTS = ("pfeiffer", "houlsby")
BYPASS_INTO = ("classifier", "dense")
BYPASS_HEADS = ("own", "linear")
BYPASS_INITS = ("zero", "default")
BASE_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "nf4")
BYPASS_DEEPEST = 3  # Linear layers in a row per branch

# The methods, by the names that --trainable_layers accepts; a user may add others.
LORA = ("lora", "lora_alternative", "dora")
LIKE_LORA = (*LORA, "vera", "hira")  # which share some of LoRA's settings
FREEZING = ("last_layer", "last_block", "last_two_blocks", "all", "freeze", "bitfit")
METHODS = (*FREEZING, *LIKE_LORA, "ia3", "adapter", "bypass", "prefix", "prompt", "peft")
ON_CHOSEN_BLOCKS = ("freeze", *LIKE_LORA, "ia3", "adapter", "prefix")

CLASSIFICATION, DIALOGUES = "classification", "dialogues"  # the two kinds of tasks
COLUMNS = ("text_column", "pair_column", "label_column")  # of a user's own data
DATASETS = ("dataset", "auxiliary_dataset", "general_dataset")
PATHS = ("model", "checkpoint", "tokenizer", "adapter", "data_dir", *DATASETS, "output_dir")  # what is or may be a path


lora_flag = partial(flag, methods=LORA)
lora_like_flag = partial(flag, methods=LIKE_LORA)
adapter_flag = partial(flag, methods=("adapter",))
bypass_flag = partial(flag, methods=("bypass",))
classifier_flag = partial(flag, task=CLASSIFICATION)
dialogue_flag = partial(flag, task=DIALOGUES)


@dataclass(frozen=True)
class Run:
    """The whole configuration of one run. `command` writes the flags in the order of these fields.

    The types are those of a resolved run. Only what has `| None` in its type may stay open in one.
    """

    model: str | None = flag(
        "a model: gpt2-small, gpt2-pocket, bert-base-uncased, distilbert-pocket, ...; gpt2-medium, -large, -xl, "
        "roberta-base; owner/name on the hub (default: the task's published model where it can be had, else a shipped one)",
        section="the model",
        everyday=True,
        aliases=("model_size",),
    )
    checkpoint: str | None = flag("a model of your own: a directory in Hugging Face layout", everyday=True)
    tokenizer: str | None = flag("a directory with the tokenizer's files (default: the model's own)")
    weights: str = flag(
        "random: every layer is drawn anew, as PyTorch draws it", "pretrained", choices=("pretrained", "random")
    )
    disable_causal_mask: bool = flag("let every token attend to every other", False)
    dropout: float = flag("dropout in the model", 0.0, least=0, below=1)

    trainable_layers: str = flag(
        f"the method: {', '.join(METHODS)}; last_layer is the head alone, peft is the adapter of --adapter; a file of your "
        "own in peft/ adds a name; several are joined with +, as in lora+bypass",
        section="what trains",
        everyday=True,
    )
    adapter: str | None = flag(
        "an adapter made by the library peft, a directory or owner/name on the hub; it is put on the model and, with "
        "--num_epochs above 0, trains on",
        methods=("peft",),
    )
    train_head: str = flag("whether the head trains in full", "yes", choices=YES_NO)
    head_labels: str | None = classifier_flag(
        "keep these labels of the checkpoint's classifier, in the task's order: negative,positive or 2,0"
    )
    stages: str | None = flag("train in several stages: a plan of published/plans.py, such as layer_by_layer")
    depth: int = flag("run only this many blocks; the head reads the last one's output (0: all)", 0, least=0)
    layers: str = flag(
        f"the blocks on which {', '.join(ON_CHOSEN_BLOCKS)} act, counted from 0: all, first3, last3, 25-27 or 0,2,5-7",
        "all",
        methods=ON_CHOSEN_BLOCKS,
    )
    part: str = flag(
        "what freeze trains of them: all, attn, qkv, mlp, norm, or modules such as attn.out", "all", methods=("freeze",)
    )
    lora_rank: int = flag("the rank of the LoRA matrices", everyday=True, methods=(*LORA, "hira"), least=1, below=2**24)
    lora_alpha: float = lora_flag("alpha of LoRA; see --lora_scaling", everyday=True)
    lora_target: str = lora_like_flag(
        "which Linear layers LoRA, VeRA or HiRA take: all, or parts of paths: attn.q,attn.v; 2-5.mlp; q_lin",
        everyday=True,
    )
    lora_matching: str = lora_like_flag(
        "how a target is found: components of a name; endswith: the checkpoint's name ends so, and 2.mlp is 12.mlp too",
        "components",
        choices=LORA_MATCHINGS,
    )
    lora_dropout: float = lora_like_flag("dropout on the input of these matrices", least=0, below=1)
    lora_scaling: str = lora_flag("the factor of the LoRA product", choices=LORA_SCALINGS)
    lora_init: str = lora_flag(
        "the bound of LoRA's A: kaiming 1/sqrt(in), wide 1/sqrt(rank); pissa: A and B are the weight's principal parts",
        choices=LORA_INITS,
    )
    lora_plus_ratio: float = flag(
        "the learning rate of LoRA's B divided by that of A (LoRA+)", 1.0, methods=(*LORA, "peft"), least=0
    )
    vera_rank: int = flag("the rank of VeRA's frozen matrices", 256, methods=("vera",), least=1, below=2**24)
    vera_seed: int = flag("the seed that draws VeRA's frozen matrices", 0, methods=("vera",), least=0, below=2**63)
    adapter_placement: str = adapter_flag(
        "pfeiffer: after the feed-forward sublayer; houlsby: after attention too", "pfeiffer", choices=ADAPTER_PLACEMENTS
    )
    reduction_factor: int = adapter_flag("the width of the model divided by that of an adapter's bottleneck", 16, least=1)
    bypass_taps: str = bypass_flag(
        "what the branches read: all, or outputs of blocks counted from 1 (3,4,5) or of their attention (attn.2,attn.3); "
        "4x2 is 4 with a depth of its own",
        "all",
    )
    bypass_depth: int = bypass_flag(
        f"the number of Linear layers in a row per branch, 0 to {BYPASS_DEEPEST}", 1, least=0, below=BYPASS_DEEPEST + 1
    )
    bypass_into: str = bypass_flag(
        "the layer of the head that reads the sum of the branches", "classifier", choices=BYPASS_INTO
    )
    bypass_head: str = bypass_flag(
        "linear: no activation in the head, and dropout on the logits", "own", choices=BYPASS_HEADS
    )
    bypass_init: str = bypass_flag(
        "zero: the branches add nothing at first; default: PyTorch's own", "zero", choices=BYPASS_INITS
    )
    prefix_length: int = flag(
        "positions that prefix and prompt tuning put in front", 16, methods=("prefix", "prompt"), least=1, below=2**24
    )
    prefix_dropout: float = flag("dropout on the prefix's keys and values", 0.0, methods=("prefix",), least=0, below=1)
    prefix_projection: bool = flag(
        "train the prefix through a small network, which is folded away afterwards", False, methods=("prefix",)
    )

    dataset: str | None = flag(
        "spam, sst2, rte, restaurant_sup, acl_sup, agnews_sup, persona, or a file of yours; texts with labels in .csv, "
        ".tsv, .jsonl, .json or .parquet, a directory with such files for train, validation and test, or owner/name on the "
        "hub; dialogues in .json or .jsonl; few-shot: restaurant_fs, ...; shipped: spam-pocket, sentiment-pocket, persona, "
        "general (default: spam for GPT-2, else sst2, where it can be had)",
        section="the data",
        everyday=True,
    )
    data_dir: str | None = flag(
        "a directory with data sets; it holds sms_spam/SMSSpamCollection, glue_sst2/train.tsv, ...", everyday=True
    )
    text_column: str | None = classifier_flag("the column with the texts of your own data (default: one with a usual name)")
    pair_column: str | None = classifier_flag(
        "the column with the second text of each pair (default: none, or one with a usual name)"
    )
    label_column: str | None = classifier_flag(
        "the column with the labels of your own data (default: one with a usual name)"
    )
    trainable_token_pos: str = classifier_flag(
        "the token whose hidden state the classifier reads", "last", choices=("first", "last", "flexible")
    )
    average_embeddings: bool = classifier_flag("classify the mean over all positions instead", False)
    context_length: str = flag(
        "pad or cut texts to this: longest_training_example, model_context_length, or a number of tokens"
    )
    no_padding: bool = classifier_flag("let padding have no influence; it is masked where a batch needs some", False)
    train_samples: int = flag("train on this many examples, drawn by the seed (0: on all)", 0, least=0)
    eval_train: str = flag("whether the training examples are measured too, at the end", "yes", choices=YES_NO)
    template: str = dialogue_flag("how a dialogue becomes text: as the model's own template, plain, alpaca, ...", "default")
    source_prefix: str | None = dialogue_flag("a text in front of every dialogue that has none of its own")
    max_source_length: int = dialogue_flag(
        "tokens in front of a dialogue's last answer; the oldest turns are dropped (0: no limit)", 0, least=0
    )
    max_target_length: int = dialogue_flag("tokens of an answer; the rest is cut off (0: no limit)", 0, least=0)
    train_on_sop: str = dialogue_flag("whether ChatGLM learns to write <sop> too, as in the log", "yes", choices=YES_NO)
    packing: bool = dialogue_flag("let several short dialogues share a row; none sees another", False)
    auxiliary_dataset: str | None = dialogue_flag("dialogues that are mixed into the training data, by name or path")
    auxiliary_samples: int = dialogue_flag("the number of auxiliary dialogues, drawn by the seed (0: all)", 0, least=0)
    general_dataset: str | None = dialogue_flag("dialogues, by name or path, whose test part is measured too; or none")
    objective: str = dialogue_flag(
        "supervised: learn the answers; dpo: prefer the chosen to the rejected answers of --dataset, which is the shipped "
        "preferences or has columns prompt, chosen and rejected (Direct Preference Optimization)",
        "supervised",
        choices=("supervised", "dpo"),
    )
    dpo_beta: float = dialogue_flag("of --objective dpo: how strongly the model is held to what it was", 0.1, least=0)
    test_share: float = dialogue_flag(
        "the part of the dialogues held out for validation, and again for testing, where the file names none; 100 at most",
        0.1,
        least=0,
        below=0.5,
    )
    eval_generate: int = dialogue_flag(
        "let the trained model answer this many test dialogues, and as many general ones, and score the answers by BLEU "
        "and ROUGE; an answer has at most --max_target_length tokens, else 100; a ChatGLM has 768 with its prompt (0: no "
        "answers)",
        0,
        least=0,
    )
    class_weights: str = classifier_flag(
        "balanced: a text's loss in training is weighted by texts / (classes x texts of its class); none",
        "none",
        choices=("none", "balanced"),
    )
    ignore_index: int = classifier_flag("a label that the loss leaves out", -100, least=-(2**63), below=2**63)

    num_epochs: int = flag(
        "passes over the training data (0: only evaluate)",
        section="the training",
        everyday=True,
        least=0,
        aliases=("num_train_epochs",),
    )
    max_steps: int = flag("stop each stage after this many optimizer steps (0: no limit)", 0, everyday=True, least=0)
    batch_size: int = flag(
        "examples per forward pass; of each process", everyday=True, least=1, aliases=("per_device_train_batch_size",)
    )
    accumulation_steps: int = flag(
        "forward passes per optimizer step", 1, least=1, aliases=("gradient_accumulation_steps",)
    )
    eval_batch_size: int = flag("examples per forward pass of an evaluation", 64, least=1)
    learning_rate: float = flag("the peak learning rate of AdamW", everyday=True, least=0)
    weight_decay: float = flag("decoupled weight decay, on everything that trains; see --decay_norms", least=0)
    decay_norms: str = flag("whether weight decay is on biases and norms too", "yes", choices=YES_NO)
    lr_scheduler_type: str = flag("the schedule of the learning rate", choices=("constant", "linear", "cosine"))
    warmup_ratio: float = flag("the part of the steps in which the learning rate rises from 0", least=0, below=1)
    early_stopping_patience: int = flag(
        "stop after this many evaluations without a lower validation loss, and go back to the best (0: don't)", 0, least=0
    )
    max_grad_norm: float = flag("clip the gradient's norm to this (0: don't)", 0.0, least=0)
    seed: int = flag("the seed of weights, order and dropout", everyday=True, least=0, below=2**63)
    data_order: str = flag(
        "bucketed: texts of similar length together; published: as the spam script, which drops an epoch's last batch",
        "seeded",
        choices=("seeded", "bucketed", "published"),
    )

    base_precision: str = flag(
        "how frozen weights are kept: fp32, fp16, bf16; int8 and int4, a whole number times a scale of its row; nf4, the "
        "4 bits of QLoRA; what trains stays in fp32 (--quantization_bit 8 is int8, 4 is int4)",
        "fp32",
        section="the machine and the results",
        choices=BASE_PRECISIONS,
        methods=tuple(name for name in METHODS if name != "all"),
        aliases=("quantization_bit",),
    )
    amp: str = flag(
        "mixed precision; auto: where the hardware has it",
        "auto",
        everyday=True,
        choices=("auto", "off", "bf16", "fp16"),
    )
    device: str = flag("where to compute", "auto", everyday=True, choices=("auto", "cpu", "cuda", "mps"))
    reuse_frozen: str = flag(
        "compute the output of frozen blocks once per text, where nothing random is below", "yes", choices=YES_NO
    )
    trim: str = classifier_flag(
        "leave out positions that no position that is read can see, such as padding behind it", "yes", choices=YES_NO
    )
    gradient_checkpointing: bool = flag(
        "keep only what enters each block for the backward pass; less memory, about a third more time", False
    )
    compile: bool = flag(
        "let torch.compile fuse what a block does; the first steps take minutes, the later ones less time, on a GPU", False
    )
    fsdp: bool = flag(
        "leave each of torchrun's processes a part of the model, where one GPU can't hold it; frozen blocks run each time",
        False,
    )
    log: str = flag(
        "tensorboard: the numbers of metrics.jsonl go into event files beside it too; needs the package tensorboard",
        "jsonl",
        choices=("jsonl", "tensorboard"),
    )
    logging_steps: int = flag("write training loss and accuracy every N optimizer steps", 10, least=1)
    eval_steps: int = flag("evaluate every N optimizer steps, besides each epoch (0: don't)", 0, least=0)
    save_steps: int = flag(
        "save every N optimizer steps what --resume goes on from (0: only on Ctrl-C and SIGTERM)", 0, least=0
    )
    save_total_limit: int = flag("keep this many of the newest of them", 1, least=1)
    deterministic: bool = flag(
        "use only operations that give the same numbers each time on a GPU too; on a CPU they all do", False
    )
    memory_report: bool = flag("print what the run needs in memory, and at the end what it took", False)
    plot_loss: bool = flag("draw losses and accuracies as curves.png in the output directory; needs matplotlib", False)
    verbose: bool = flag("print every setting of the run", False, everyday=True)
    output_dir: str | None = flag("where results go (default: runs/NAME; of a table: runs)", everyday=True)
    resume: bool = flag("go on from what an interrupted run has saved in its directory", False, everyday=True)

    @property
    def source(self) -> str | None:
        """Return what the model is read from: a directory or a name."""
        return self.checkpoint or self.model

    def __post_init__(self):
        for name, value in explicit(self).items():
            check_setting(name, value)
            value = float(value) if SETTINGS[name]["kind"] is float else value  # 16 and 16.0 are the same run
            object.__setattr__(self, name, os.path.expanduser(value) if name in PATHS else value)


# name -> what `flag` says of the setting, and its type
SETTINGS: dict[str, dict] = {
    one.name: {**one.metadata, "kind": (get_args(one.type) or [one.type])[0]} for one in fields(Run)
}
DEFAULTS = {name: about["default"] for name, about in SETTINGS.items() if about["default"] is not None}
DIALOGUES_ONLY = tuple(name for name, about in SETTINGS.items() if about["task"] == DIALOGUES)


def check_setting(name: str, value) -> None:
    """Raise UserError unless `value` is of the setting's type and within its limits."""
    about = SETTINGS[name]
    kind, choices, least, below = (about[key] for key in ("kind", "choices", "least", "below"))
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


def explicit(run: Run) -> dict:
    """Return the settings that have been given, by name: those that aren't None."""
    return {one.name: value for one in fields(run) if (value := getattr(run, one.name)) is not None}


def override(run: Run, overrides: Run) -> Run:
    """Return `run` with whatever `overrides` gives in its place."""
    return replace(run, **explicit(overrides))


def resolve(run: Run, recipe: dict) -> Run:
    """Return the run with each setting from the run itself, else from the recipe, else from DEFAULTS.

    What names nothing stays None, such as --stages of a run without stages.
    """
    return Run(**(DEFAULTS | recipe | explicit(run)))
