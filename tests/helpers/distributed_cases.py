"""What test_distributed.py lets one process and a pair of them do.

The pair: `python -m tests.helpers.distributed_cases FOLDER`, from the checkout.
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

import experiments
import peft
from data.batching import seeded_order
from tests.helpers.interrupt import interrupt_model
from tests.helpers.loop import make_batches, make_examples, make_model, settings
from train import evaluate, fit
from training import distributed
from training.activation_cache import cached
from training.checkpoints import Checkpointer, newest
from training.metrics_log import Metrics
from training.optimizer import AdamW

CPU = torch.device("cpu")
LORA = peft.LoRA(rank=4, alpha=8)
TOKENS = {"labels": "token", "pad_to": None, "n": 21}  # another number of targets in each text
# Of 8 examples together; sizes that don't divide: of 13 the last batch has 5, of 9 it has one, for one of the processes.
CASES = {
    "all layers": {},
    "one example left": {"n": 9},
    "LoRA": {"method": LORA},
    "LoRA+": {"method": replace(LORA, plus_ratio=16)},
    "last block, the rest kept": {"method": peft.Freeze("last_block"), "kept": True},
    "head, all blocks kept": {"method": peft.Freeze("last_layer"), "kept": True, "n": 9},
    "dialogues": TOKENS,
    "dialogues, one token left": TOKENS | {"n": 17},
    "accumulated": TOKENS | {"batch_size": 4, "accumulation_steps": 2},
    "accumulated, one left": {"batch_size": 4, "accumulation_steps": 2},
    "clipped": {"max_grad_norm": 0.05},
    "a class ignored": {"ignore_index": 1},
    "classes weighed": {"weighed": (0.5, 2.0), "n": 9, "batch_size": 4, "accumulation_steps": 2},
    "early stopping": {"early_stopping_patience": 1, "learning_rate": 0.05, "num_epochs": 6},
    "activations computed twice": {"gradient_checkpointing": True},
    "a tensor that nothing uses": {"spare": True},
    "linear": {"lr_scheduler_type": "linear", "warmup_ratio": 0.3, "max_steps": 5},
    "sharded": {"fsdp": True},
    "sharded, LoRA": {"fsdp": True, "method": LORA},
    "sharded, LoRA+": {"fsdp": True, "method": replace(LORA, plus_ratio=16)},
    "sharded, VeRA": {"fsdp": True, "method": peft.VeRA(rank=4)},
    "sharded, HiRA": {"fsdp": True, "method": peft.HiRA(rank=4)},
    "sharded, dialogues": TOKENS | {"fsdp": True, "batch_size": 4, "accumulation_steps": 2, "max_grad_norm": 0.05},
    "sharded, activations computed twice": {"fsdp": True, "gradient_checkpointing": True},
    "sharded, bypass": {"fsdp": True, "method": peft.Bypass(taps="1", init="default")},
    "sharded, prefix": {"fsdp": True, "method": peft.PrefixTuning(length=4)},
    "sharded, one example left": {"fsdp": True, "n": 9, "early_stopping_patience": 1, "learning_rate": 0.05},
}


def learn(
    n=13, labels="class", pad_to=12, batch_size=8, method=None, kept=False, spare=False, stop=None, weighed=None, **changes
):
    """Trains the small model, evaluates it, and returns all that came of it. `batch_size` is that of all processes
    together; `stop`: Ctrl-C reaches the last process in its n-th forward pass."""
    keeper, dropout = keeper_of(changes.pop("state", None), changes.get("resume")), changes.pop("dropout", 0.0)
    model = make_model("lm" if labels == "token" else "classifier", dropout)
    if method:
        peft.attach(model, method)
    if spare:
        model.head.spare = torch.nn.Parameter(torch.ones(3))
    run = settings(**({"num_epochs": 3, "batch_size": batch_size // distributed.size()} | changes))
    examples = make_examples(n, labels)
    whole = {
        "train": make_batches(examples, batch_size, pad_to, seeded_order(n, 7)),
        "train_in_order": make_batches(examples, 6, pad_to),
        "validation": make_batches(make_examples(n + 5, labels)[n:], 2, pad_to),
    }
    whole["train"].class_weights = None if weighed is None else torch.tensor(weighed)
    batches = distributed.share(whole, run.ignore_index)
    is_sharded = run.fsdp and distributed.size() > 1
    compute_loss = distributed.shard_model(model, CPU) if is_sharded else None
    batches = cached(model, batches, "off")[0] if kept else batches
    if stop and distributed.rank() == distributed.size() - 1:
        interrupt_model(model, stop, signal.SIGTERM)
    metrics, norms, step = Metrics(), [], AdamW.step

    def look(optimizer: AdamW) -> None:  # Adam would hide a gradient that is twice as large
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append([0.0 if one is None else distributed.whole(one).norm().item() for one in gradients])
        step(optimizer)

    AdamW.step = look
    fitted = fit(model, batches["train"], run, metrics, batches["validation"], keeper, compute_loss)
    AdamW.step = step
    return {
        "norms": torch.tensor(norms),
        "records": [{name: one[name] for name in one if name != "seconds"} for one in metrics.records],
        "evaluation": evaluate(model, batches["train_in_order"], "off", run.ignore_index, compute_loss),
        "weights": {name: distributed.whole(tensor).clone() for name, tensor in model.named_parameters()},
        "fitted": replace(fitted, step_seconds=0.0, seconds_before=0.0, tokens=0),
        "tokens": fitted.tokens,
    }


def keeper_of(folder: Path | None, resume: bool | None) -> Checkpointer | None:
    if folder is None:
        return None
    distributed.first(lambda: folder.mkdir(exist_ok=True))  # and the first has written what is to be read
    return Checkpointer(folder, point=newest(folder) if resume else None)


RESUMED = {"dropout": 0.2, "batch_size": 4, "accumulation_steps": 2, "learning_rate": 1e-2, "early_stopping_patience": 9}


def resume(folder: Path, **changes) -> list[dict]:
    """A whole run; one that is stopped, and goes on; the whole one again. All by the same number of processes."""
    state, how = folder / f"state of {', '.join(changes)}", RESUMED | changes
    whole = learn(**how)
    stopped = learn(**how, state=state, stop=4)
    return [whole, stopped, learn(**how, state=state, resume=True), learn(**how)]


# Of the command line, on the small model and data: 8 examples of all processes together.
COMMANDS = {
    "LoRA, sharded": ["--trainable_layers", "lora", "--lora_alpha", 2, "--fsdp"],
    "all layers, sharded": ["--trainable_layers", "all", "--fsdp", "--max_grad_norm", 0.1],
    "last block": [],
    "no padding, by length": ["--no_padding", "--data_order", "bucketed", "--trainable_layers", "all"],
    "pairs of answers": ["--objective", "dpo", "--trainable_layers", "lora"],
    "as published": ["--data_order", "published", "--reuse_frozen", "no"],
}
# The same on a Llama; without padding, as a block gets the rotation beside the mask.
LLAMA_COMMANDS = {
    "Llama, LoRA": ["--trainable_layers", "lora", "--lora_alpha", 2, "--no_padding"],
    "Llama, all layers, sharded": ["--trainable_layers", "all", "--no_padding", "--fsdp"],
    "Llama, last block, sharded": ["--fsdp", "--gradient_checkpointing"],
}
BASE = {"max_steps": 12, "logging_steps": 1, "learning_rate": 1e-3, "amp": "off", "device": "cpu"}


def words(folder: Path, checkpoint: str, data: str) -> list[str]:
    base = BASE | {"checkpoint": checkpoint, "data_dir": data, "output_dir": folder, "batch_size": 8 // distributed.size()}
    return [str(word) for name, value in base.items() for word in (f"--{name}", value)]


def command(folder: Path, where: list[str], *flags) -> None:
    assert experiments.main([*words(folder, *where), *map(str, flags)]) == 0


def table(folder: Path, where: list[str]) -> list[int]:
    """Two rows, and the same again, which runs nothing. Returns what was run each time."""
    ran = []
    for _ in range(2):
        command(folder, where, "--table", "spam", "--rows", "1,3")
        results = distributed.first(lambda: {str(one): one.stat().st_mtime_ns for one in folder.glob("*/result.json")})
        ran.append(results)
    return ran


def main(folder: Path, *given: str) -> None:
    """Do all that the pair does. `given`: a small checkpoint, a directory with data, and the checkpoint of a Llama."""
    where, of_llama = given[:2], (*given[2:], *given[1:2])
    with distributed.joined():
        for name, flags in COMMANDS.items() if where else ():
            command(folder / name, where, *flags)
        for name, flags in LLAMA_COMMANDS.items() if where else ():
            command(folder / name, of_llama, *flags)
        found = {name: learn(**case) for name, case in CASES.items()}
        found["resume"] = resume(folder)
        found["resume, sharded"] = resume(folder, fsdp=True)
        found["resume, LoRA+"] = resume(folder, method=CASES["LoRA+"]["method"], learning_rate=1e-3)
        found["table"] = table(folder / "table", where) if where else None
        found["draws"] = distributed.gather(torch.rand(4, generator=torch.Generator().manual_seed(distributed.seed_of(5))))
        torch.save(found, folder / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
