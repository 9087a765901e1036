"""Compares rows of the spam table on GPT-2 small with the published model and loop (peers/published_loop.py)."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.inputs import spam_texts, write_gpt2
from benchmarks.measure import ROOT, Comparison, Side, last_line, native_bf16, precision_of
from data.spam import RECIPE
from published import get_table

TITLE = "Spam rows on GPT-2 small, against the published loop"
PACKAGES = {"llms-from-scratch": "1.0.19", "pandas": "3.1.1", "matplotlib": "3.11.2"}
REPEATS = 3
PEER = "llms-from-scratch"
N_SPAM = 747  # in the collection
LENGTH = 120  # of its longest training example, in tokens
BOTH_PRECISIONS = (1, 5)  # where bf16 is native, also measured without it

# What the peer's program is told for each row.
ROWS = {
    1: [],
    3: ["--trainable_layers", "last_layer"],
    5: ["--trainable_layers", "all"],
    11: ["--trainable_layers", "lora", "--lora_rank", "16", "--lora_alpha", "16"],
    13: ["--max_length", "1024"],
    14: ["--no_padding", "--batch_size", "1", "--max_length", "1024"],  # which cuts none
    16: ["--flexible"],
}
FULL_LENGTH = (13,)  # rows that say themselves how long a text is


@dataclass(frozen=True)
class Inputs:
    """What all rows read, and where ours leave their runs."""

    checkpoint: Path
    flags: list[str]  # by which ours finds the texts
    csv: Path
    runs: Path


def comparisons(rows: list[int], args, folder: Path) -> Iterator[Comparison]:
    """Yield what is measured for these rows; a row's inputs are made when it is its turn."""
    n_spam = None if args.fraction == 1 else round(args.fraction * N_SPAM)
    flags, csv = spam_texts(args.data_dir, folder / "messages", n_spam)
    inputs = Inputs(write_gpt2(folder / "gpt2-small", args.data_dir), flags, csv, folder)
    for row in rows:
        yield compare(row, args.amp, args.fraction, inputs)
        if row in BOTH_PRECISIONS and args.amp == "auto" and native_bf16():
            yield compare(row, "off", args.fraction, inputs)


def compare(row: int, amp: str, fraction: float, inputs: Inputs) -> Comparison:
    """Return the comparison of one row, with ours in the precision that `amp` means on this machine."""
    ours, theirs = list(inputs.flags), list(ROWS[row])
    if fraction < 1 and row not in FULL_LENGTH:  # shapes stay those of the whole job
        ours += ["--context_length", str(LENGTH)]
        theirs += ["--max_length", str(LENGTH)]  # argparse takes the last
    program = [sys.executable, "-P", str(ROOT / "benchmarks/peers/published_loop.py")]
    paths = ["--checkpoint", str(inputs.checkpoint), "--data", str(inputs.csv)]
    return Comparison(
        row,
        f"row {row}: {get_table('spam').row(row).title}",
        PEER,
        f"{precision_of(amp)} / fp32",
        our_run(["--row", str(row), *ours, "--data_order", "published"], amp, inputs.checkpoint, inputs.runs / f"row{row}"),
        Side([*program, *paths, "--num_epochs", str(RECIPE["num_epochs"]), *theirs], inputs.runs, last_line),
        extra={"fraction": fraction},
    )


def our_run(
    flags: list[str], amp: str, checkpoint: Path, output: Path, device: str = "cpu", logging_steps: int = 1
) -> Side:
    """Return our command line. On the CPU every step is logged, for the loss of the first."""
    words = {"checkpoint": checkpoint, "device": device, "amp": amp, "logging_steps": logging_steps, "output_dir": output}
    more = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "experiments.py", *flags, *more]
    return Side(command, ROOT, partial(read_run, output))


def read_run(directory: Path, output: str) -> dict:
    """Return what a run of ours left in its directory."""
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    splits = ("train", "validation", "test")
    return {
        "seconds": result["total_seconds"],
        "peak_bytes": result["peak_memory_bytes"],
        "steps": result["steps"],
        "trainable_parameters": result["trainable_parameters"],
        "first_loss": next((one["loss"] for one in metrics if one["split"] == "train"), None),
        "validation_loss": next((one["loss"] for one in reversed(metrics) if "validation" in one["split"]), None),
        "accuracy": {split: value for split in splits if (value := result.get(f"{split}_accuracy")) is not None},
    }


def derived(records: list[dict]) -> list[dict]:
    """Return what two rows of ours say together: what LoRA saves, for the same precision and texts."""
    found = []
    for lora in (one for one in records if one["row"] == 11 and one["peer"] == PEER):
        for full in (one for one in records if one["row"] == 5 and one["peer"] == PEER):
            same = ("precision", "fraction", "machine")
            if not all(lora.get(name) == full.get(name) for name in same):
                continue
            ours = lora["precision"].split(" / ")[0]
            found.append(
                lora
                | {
                    "work": "LoRA on everything against all layers",
                    "peer": "ours, all layers",
                    "precision": f"{ours} / {ours}",
                    "time_ratio": round(full["ours_seconds"] / lora["ours_seconds"], 4),
                    "memory_ratio": round(lora["ours_peak_bytes"] / full["ours_peak_bytes"], 4),
                }
                | {name.replace("ours_", "peer_"): value for name, value in full.items() if name.startswith("ours_")}
            )
    return found
