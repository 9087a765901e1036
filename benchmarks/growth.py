"""Measures how our cost grows: with the length of the texts, the batch, the model, and the number of texts.

A step is held against the time that its matrix products alone would take (step.py), a job against nothing, and at last LoRA
against all layers.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import peft
from benchmarks.inputs import spam_texts, write_gpt2
from benchmarks.measure import ROOT, Comparison, Side, last_line, precision_of
from benchmarks.spam import LENGTH, N_SPAM, our_run
from config import Run, resolve
from data.spam import RECIPE
from model import from_pretrained
from pipeline.memory import BYTES, Budget
from pipeline.result import count_parameters
from training.device import available_bytes

TITLE = "How cost grows"
PACKAGES: dict[str, str] = {}
REPEATS = 1
PEER = "matrix products"
MODELS = ("gpt2-pocket", "gpt2-small", "gpt2-medium", "gpt2-large")
METHODS = {"all": "all layers", "lora": "LoRA"}
SHAPES = [  # model, batch, length
    *(("gpt2-small", 8, length) for length in (64, 128, 256, 512, 1024)),
    *(("gpt2-small", batch, 128) for batch in (1, 2, 4, 8, 16, 32, 64)),
    *((model, 2, 120) for model in MODELS),
]
STEPS = [(method, *shape) for shape in dict.fromkeys(SHAPES) for method in METHODS]
TEXTS = (1 / 8, 1 / 4, 1 / 2)
SAME_SHAPE = ("gpt2-small", 8, 120)  # where LoRA is run beside all layers
ROWS = dict(enumerate([*STEPS, *TEXTS, SAME_SHAPE], start=1))


def comparisons(rows: list[int], args, folder: Path) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py."""
    precision = precision_of(args.amp)
    for row in rows:
        if isinstance(ROWS[row], float):
            yield compare_texts(row, ROWS[row], args, folder, precision)
        elif ROWS[row] == SAME_SHAPE:
            yield compare_methods(row, *SAME_SHAPE, args.amp, precision)
        else:
            yield compare_step(row, *ROWS[row], args.amp, precision)


def compare_step(row: int, method: str, model: str, batch: int, length: int, amp: str, precision: str) -> Comparison:
    """Return the comparison of a training step with its matrix products; none where the memory wouldn't do."""
    work = f"a step of {model}, {METHODS[method]}, {batch} x {length} tokens"
    extra = {"model": model, "method": method, "batch_size": batch, "length": length}
    needed, there = bytes_needed(model, method), available_bytes(torch.device("cpu"))
    if needed > 0.9 * there:
        note = f"left out: weights, gradients and optimizer take {needed / 1e9:.1f} GB of {there / 1e9:.1f} GB free"
        return Comparison(row, work, PEER, precision, None, extra=extra, note=note)
    return Comparison(row, work, PEER, precision, step_side(method, model, batch, length, amp), extra=extra)


def compare_methods(row: int, model: str, batch: int, length: int, amp: str, precision: str) -> Comparison:
    """Return the comparison of a training step of LoRA with one of all layers: what LoRA saves."""
    work = f"a step of {model}, LoRA on everything, {batch} x {length} tokens"
    lora, full = (step_side(method, model, batch, length, amp) for method in ("lora", "all"))
    return Comparison(row, work, "ours, all layers", precision, lora, full)


def step_side(method: str, model: str, batch: int, length: int, amp: str) -> Side:
    """Return the program that measures a step."""
    words = {"model": model, "trainable_layers": method, "batch_size": batch, "length": length, "amp": amp}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return Side([sys.executable, "-m", "benchmarks.step", *flags], ROOT, last_line)


def bytes_needed(name: str, method: str) -> int:
    """Return the bytes that a step needs, without activations: they are small at the batches of large models here."""
    lora = {"lora_rank": 16, "lora_alpha": 16.0} if method == "lora" else {}
    run = resolve(Run(trainable_layers=method, **lora), RECIPE)
    with torch.device("meta"):
        model = from_pretrained(name, head="classifier", num_labels=2, random_weights=True)
        peft.attach(model, peft.method_of(run))
    trained, total = count_parameters(model)
    return Budget(BYTES * total, trained).total


def compare_texts(row: int, part: float, args, folder: Path, precision: str) -> Comparison:
    """Return the measurement of the spam table's row 1 on a part of its messages, times --fraction."""
    texts = folder / f"messages{row}"
    flags, _ = spam_texts(args.data_dir, texts, round(args.fraction * part * N_SPAM))
    checkpoint = write_gpt2(folder / "gpt2-small", args.data_dir)
    flags = ["--row", "1", *flags, "--context_length", str(LENGTH)]
    ours = our_run(flags, args.amp, checkpoint, folder / f"row{row}")
    return Comparison(
        row, f"the spam table's row 1 on {part:g} of the messages", "-", precision, ours, extra={"fraction": args.fraction}
    )
