"""Holds what a run was computed to need in memory (pipeline/memory.py) against what a step of it takes.

Models have their published sizes and drawn weights, which are read from a file as published ones are.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import peft
from benchmarks.inputs import write_drawn
from benchmarks.measure import ROOT, Comparison, Side, last_line, precision_of
from model.base_precision import quantize
from model.gpt2 import GPT2_SIZES, GPT2Config
from model.heads import ClassifierHead
from model.llama import LlamaConfig
from model.registry import architecture_of
from model.transformer import Transformer
from pipeline import memory

# The models of "what fits where" in docs/speed.md, of which only the shapes count, and how the frozen weights are kept.
MODELS = {
    "GPT-2 small, 124M": GPT2_SIZES["gpt2-small"],
    "SmolLM2-135M": LlamaConfig(),
    "GPT-2 medium, 355M": GPT2_SIZES["gpt2-medium"],
    "GPT-2 large, 774M": GPT2_SIZES["gpt2-large"],
    "GPT-2 xl, 1,558M": GPT2_SIZES["gpt2-xl"],
    "SmolLM2-1.7B": LlamaConfig(dim=2048, n_heads=32, n_kv_heads=32, n_layers=24, mlp_dim=8192),
}
COLUMNS = {
    "all layers, fp32": ("all", "fp32"),
    "LoRA, base fp32": ("lora", "fp32"),
    "LoRA, base bf16": ("lora", "bf16"),
    "LoRA, base nf4": ("lora", "nf4"),
    "the same with checkpointing": ("lora", "nf4", True),
}

TITLE = "What a run needs in memory"
PACKAGES: dict[str, str] = {}
REPEATS = 1
SHAPE = (8, 128)  # batch, length
ROWS = {  # model, what trains, how the frozen weights are kept
    1: ("SmolLM2-135M", "all", "fp32"),
    2: ("GPT-2 large, 774M", "lora", "bf16"),
    3: ("GPT-2 xl, 1,558M", "lora", "nf4"),
    4: ("SmolLM2-1.7B", "lora", "nf4"),
}


def comparisons(rows: list[int], args, folder: Path) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py. Peaks are those above what Python and torch take."""
    for row in rows:
        title, layers, base_precision = ROWS[row]
        computed = budget_of(MODELS[title], layers, base_precision, amp="off" if args.amp == "off" else "bf16")
        checkpoint = write_drawn(folder / title.replace(" ", "-"), MODELS[title])
        words = {"model": checkpoint, "trainable_layers": layers, "base_precision": base_precision, "amp": args.amp}
        words |= dict(zip(("batch_size", "length"), SHAPE, strict=True))
        flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        ours = Side([sys.executable, "-m", "benchmarks.step", *flags], ROOT, above_imports)
        extra = {"model": title, "trained": layers, "base_precision": base_precision, "computed_bytes": computed.total}
        work = f"a step of {title}, {layers}, base in {base_precision}, {SHAPE[0]} x {SHAPE[1]} tokens"
        yield Comparison(row, work, "matrix products", precision_of(args.amp), ours, extra=extra)


def above_imports(output: str) -> dict:
    """Return what a step measured, its peaks without what the process held before the model was built."""
    found = last_line(output)
    peaks = ("peak_bytes", "load_peak_bytes")
    return found | {name: found[name] - found["bytes_before"] for name in peaks}


def fitting_rows() -> list[list[str]]:
    """Return one line for each of MODELS: GB of a step of 8 x 128 tokens in bf16, for each of COLUMNS."""
    return [
        [title, *(f"{budget_of(config, layers, *how, amp='bf16').total / 1e9:.2f}" for layers, *how in COLUMNS.values())]
        for title, config in MODELS.items()
    ]


def budget_of(
    config: GPT2Config | LlamaConfig,
    layers: str,
    base_precision: str,
    checkpointing: bool = False,
    amp: str = "off",
) -> memory.Budget:
    """Return what a classifier's step of SHAPE needs, of all layers, or of LoRA with rank 16 on every Linear layer."""

    def build(in_full: bool) -> Transformer:
        model = architecture_of(config).model(replace(config, dropout=0.0), ClassifierHead(config.dim, 2))
        if base_precision != "fp32" and not in_full:
            quantize(model, base_precision)
        return model

    method = peft.Freeze("all") if layers == "all" else peft.LoRA(rank=16, targets="all")
    return memory.budgets(build, method, *SHAPE, checkpointing, amp)[1]
