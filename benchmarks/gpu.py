"""Runs on a GPU the spam table's 19 rows, training steps beside transformers and peft, and ways to take a step.

Models have their published sizes and drawn weights. Steps are taken by step.py on one batch, whose falling losses show
whether two ways to take them do the same.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import encoders, step
from benchmarks.inputs import spam_texts, write_gpt2
from benchmarks.measure import ROOT, Comparison, Side, last_line, precision_of
from benchmarks.spam import FULL_LENGTH, LENGTH, N_SPAM, our_run
from data.spam import RECIPE
from model.registry import GPT2_SIZES
from published import get_table
from utils.errors import UserError

TITLE = "On a GPU"
PACKAGES = {name: encoders.PACKAGES[name] for name in ("transformers", "peft")}
REPEATS = 1
DEVICE = torch.device("cuda")
LIBRARIES, PRODUCTS = "transformers + peft", "matrix products"
ROUNDING = 0.02  # of the first loss: how far 16 bits, or blocks that were compiled, may take a loss in these few steps
SAME = 0.01  # the same for steps whose operations are the same

# Dense bf16 products, floating-point operations per second, by torch's name of the device. From NVIDIA's data sheets of the
# A100, H100 and H200 Tensor Core GPUs; those of the last two print twice these, "with sparsity".
PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class Steps:
    """A row of training steps.

    flags      of step.py, beside those that all rows share
    against    LIBRARIES, PRODUCTS, or flags of another step of ours
    tolerance  how far the losses of both may be apart, as a part of the first
    compared   how many losses are; None: all. Where LoRA is drawn differently, only the first is the same
    theirs     flags of peers/hf_step.py, beside those that all rows share
    """

    title: str
    method: str
    batch_size: int
    length: int
    flags: tuple[str, ...] = ()
    against: str | tuple[str, ...] = PRODUCTS
    peer: str = ""
    tolerance: float | None = None
    compared: int | None = None
    model: str = "gpt2-small"
    theirs: tuple[str, ...] = ()


def beside_libraries(method: str, batch_size: int, length: int) -> Steps:
    """Return the row of GPT-2 small's step beside that of the libraries."""
    what = {"lora": "LoRA on everything", "all": "all layers"}[method]
    title = f"a step of gpt2-small, {what}, {batch_size} x {length} tokens"
    compared = 1 if method == "lora" else None
    return Steps(title, method, batch_size, length, (), LIBRARIES, LIBRARIES, ROUNDING, compared)


def beside_ours(how: str, flags: str, against: str, peer: str, tolerance: float, model: str = "gpt2-small") -> Steps:
    """Return the row of one way to take a step of all layers beside another."""
    title = f"a step of {model}, all layers, 8 x 120 tokens, {how}"
    return Steps(title, "all", 8, 120, (*flags.split(),), (*against.split(),), peer, tolerance, model=model)


SPAM = {row.number: row for row in get_table("spam").rows}
STEPS = {
    20: beside_libraries("lora", 8, 120),
    21: beside_libraries("all", 8, 120),
    22: beside_libraries("lora", 32, 512),
    23: beside_libraries("all", 32, 512),
    24: Steps("row 9's step: gpt2-xl, all layers, 8 x 120 tokens", "all", 8, 120, model="gpt2-xl", peer=PRODUCTS),
    25: beside_ours("in bf16", "--amp bf16", "--amp off", "ours in fp32", ROUNDING),
    26: beside_ours("in fp16", "--amp fp16", "--amp off", "ours in fp32", ROUNDING),
    27: beside_ours("in DDP, one process", "--ddp", "", "ours without", SAME),
    28: beside_ours("compiled", "--compile", "", "ours, not compiled", ROUNDING),
    29: beside_ours("compiled", "--compile", "", "ours, not compiled", ROUNDING, "gpt2-xl"),
}
ROWS = SPAM | STEPS


@dataclass(frozen=True)
class Where:
    """Where the suite runs, how large its models are, and how many steps it times. Tests name the CPU and small numbers."""

    device: torch.device = DEVICE
    sizes: dict[str, Any] = field(default_factory=lambda: GPT2_SIZES)
    steps: int = 20
    shape: tuple[int, int] | None = None  # instead of the rows' own


def needed(rows: list[int]) -> dict[str, str]:
    """Return the peer libraries that these rows need. Raises UserError without a GPU."""
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built without CUDA" if torch.version.cuda is None else "torch finds none"
        raise UserError(f"--suite gpu needs a CUDA GPU, and {built}; the other suites run on the CPU")
    return PACKAGES if any(row in STEPS and STEPS[row].against == LIBRARIES for row in rows) else {}


def comparisons(rows: list[int], args, folder: Path, where: Where | None = None) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py."""
    for row in rows:
        compare = compare_row if row in SPAM else compare_steps
        yield compare(row, args, folder, where or Where())


def compare_row(row: int, args, folder: Path, where: Where) -> Comparison:
    """Return the measurement of one row of the spam table, with the flags that a user would type."""
    n_spam = None if args.fraction == 1 else round(args.fraction * N_SPAM)
    flags, _ = spam_texts(args.data_dir, folder / "messages", n_spam)
    if args.fraction < 1 and row not in FULL_LENGTH:  # shapes stay those of the whole job
        flags += ["--context_length", str(LENGTH)]
    checkpoint = write_model(SPAM[row].run.model or "gpt2-small", args, folder, where)
    ours = our_run(
        ["--row", str(row), *flags], args.amp, checkpoint, folder / f"row{row}", where.device.type, logging_steps=10
    )
    precision = precision_of(args.amp, where.device)
    return Comparison(row, f"row {row}: {SPAM[row].title}", "-", precision, ours, extra={"fraction": args.fraction})


def compare_steps(row: int, args, folder: Path, where: Where) -> Comparison:
    """Return the comparison of a training step with the libraries', another of ours, or its matrix products."""
    checkpoint = write_model(STEPS[row].model, args, folder, where, head=STEPS[row].against == LIBRARIES)
    return compare_step(row, STEPS[row], checkpoint, args, folder, where)


def compare_step(row: int, one: Steps, checkpoint: Path, args, folder: Path, where: Where) -> Comparison:
    """Return the same for a model that is written."""
    ours = our_step(one, one.flags, args.amp, checkpoint, where)
    precision, theirs = precision_of(amp_of(one.flags, args.amp), where.device), None
    if one.against == LIBRARIES:
        theirs = their_step(one, args.amp, checkpoint, folder, where)
        precision = f"{precision} / {precision}"
    elif one.against != PRODUCTS:
        theirs = our_step(one, (*one.against,), args.amp, checkpoint, where)
        precision = f"{precision} / {precision_of(amp_of((*one.against,), args.amp), where.device)}"
    allowed = {"tolerance": one.tolerance, "compared_losses": one.compared} if one.tolerance else {}
    return Comparison(row, one.title, one.peer, precision, ours, theirs, extra=allowed)


def write_model(model: str, args, folder: Path, where: Where, head: bool = False) -> Path:
    """Write a model of that size with drawn weights, unless it is there, and return its directory."""
    name = f"{model}-classifier" if head else model
    written = write_gpt2(folder / name, args.data_dir, head, where.sizes[model], where.device)
    if where.device.type == "cuda":
        torch.cuda.empty_cache()  # for the programs that are run from here
    return written


def amp_of(flags: tuple[str, ...], amp: str) -> str:
    """Return the --amp of a step: that of its row, else that of the suite."""
    return flags[flags.index("--amp") + 1] if "--amp" in flags else amp


def shape_of(one: Steps, where: Where) -> list[str]:
    """Return the flags for a step's shape and number, which both sides have."""
    batch_size, length = where.shape or (one.batch_size, one.length)
    return ["--batch_size", str(batch_size), "--length", str(length), "--steps", str(where.steps)]


def our_step(one: Steps, flags: tuple[str, ...], amp: str, checkpoint: Path, where: Where) -> Side:
    """Return the program that measures a step of ours."""
    more = [*flags, *(() if "--amp" in flags else ("--amp", amp)), "--device", where.device.type]
    model = ["--model", str(checkpoint), "--trainable_layers", one.method]
    command = [sys.executable, "-m", "benchmarks.step", *model, *shape_of(one, where), *more]
    return Side(command, ROOT, last_line)


def their_step(one: Steps, amp: str, checkpoint: Path, folder: Path, where: Where) -> Side:
    """Return the program that measures the libraries' step, run in a folder where nothing hides its packages."""
    precision = precision_of(amp, where.device).replace("fp32", "off")
    rates = {"learning_rate": step.LEARNING_RATE, "weight_decay": RECIPE["weight_decay"], "seed": RECIPE["seed"]}
    settings = [word for name, value in rates.items() for word in (f"--{name}", str(value))]
    more = [*settings, "--amp", precision, "--device", where.device.type]
    program = [sys.executable, "-P", str(ROOT / "benchmarks/peers/hf_step.py"), "--checkpoint", str(checkpoint)]
    return Side([*program, "--method", one.method, *shape_of(one, where), *more, *one.theirs], folder, last_line)


# --- what measurements say together


def derived(records: list[dict]) -> list[dict]:
    """Return the records of steps with what they come to, and all 19 rows together where all were measured alike."""
    return [*(judged(one) for one in records if one.get("ours_flops")), *totals(records)]


def judged(record: dict) -> dict:
    """Return the record of a step with its use of the device, and whether the losses of both sides agree."""
    peak, source = peak_of(record)
    found = {"mfu": record["ours_flops"] / record["ours_seconds"] / peak, "peak": peak, "peak_source": source}
    notes = [f"MFU {found['mfu']:.1%} of {peak / 1e12:,.4g} TFLOP/s, {source}"]
    if record.get("tolerance"):
        apart = loss_difference(record["ours_losses"], record["peer_losses"], record["compared_losses"])
        agree = apart is not None and apart <= record["tolerance"]
        found |= {"loss_difference": apart, "agree": agree}
        how = "aren't all finite" if apart is None else f"differ by at most {apart:.2%} of the first"
        notes.append(f"losses {how}{'' if agree else ', and DON’T AGREE'} (tolerance {record['tolerance']:.0%})")
    return record | found | {"note": "; ".join(notes)}


def peak_of(record: dict) -> tuple[float, str]:
    """Return the floating-point operations per second that a step could come to, and where the number is from.

    That is the data sheet's for 16 bits; of other devices, and in fp32, the product rate that the step measured.
    """
    in_16_bits = record["precision"].split(" / ")[0] != "fp32"
    name = record["ours_device"].removeprefix("cuda (").removesuffix(")")
    if in_16_bits and name in PEAKS:
        return PEAKS[name], "NVIDIA's data sheet"
    return record["ours_rate"], "the product rate measured beside it"


def loss_difference(ours: list[float], theirs: list[float], compared: int | None = None) -> float | None:
    """Return how far two series of losses are apart at most, as a part of the first; None where a loss isn't finite.

    compared   how many of them count; None: as many as both have, as fp16 leaves out steps
    """
    pairs = [*zip(ours, theirs, strict=False)][:compared]
    if not pairs or not all(math.isfinite(loss) for loss in (*ours, *theirs)):
        return None
    return max(abs(one - other) for one, other in pairs) / abs(pairs[0][1])


def totals(records: list[dict]) -> list[dict]:
    """Return all 19 rows as one record, for each precision, part of the texts and machine that has them all."""
    groups: dict[str, list[dict]] = {}
    for one in records:
        if one["row"] in SPAM and one["work"] == f"row {one['row']}: {SPAM[one['row']].title}":
            same = json.dumps([one[name] for name in ("precision", "fraction", "machine")])
            groups.setdefault(same, []).append(one)
    return [total(group) for group in groups.values() if {one["row"] for one in group} == SPAM.keys()]


def total(group: list[dict]) -> dict:
    """Return the record of all rows together: seconds are added, of the memory the most counts."""
    kept = ("precision", "fraction", "machine", "versions")
    return {
        "derived": True,
        "row": max(SPAM),
        "work": f"all {len(group)} rows",
        "peer": "-",
        "ours_seconds": sum(one["ours_seconds"] for one in group),
        "ours_peak_bytes": max(one["ours_peak_bytes"] for one in group),
        **dict.fromkeys(("peer_seconds", "time_ratio", "peer_peak_bytes", "memory_ratio")),
        "repeats": min(one["repeats"] for one in group),
        **{name: group[0][name] for name in kept},
    }
