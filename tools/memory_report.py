"""Prints what a run would need in memory, without its weights and without its texts.

    python -m tools.memory_report --length 1024 --row chat:21 --model chatglm-6b --base_precision int8

Takes the flags of experiments.py. Nothing is read but the configuration of the model, which for a published size needs no
file; so it says what fits before anything is downloaded.
"""

import argparse
import sys
from dataclasses import replace

import peft
from config import Run
from data.registry import get_task
from model import config_of
from pipeline import memory
from pipeline.flags import find_row, parse
from pipeline.resolve import resolve_run
from pipeline.stand_ins import as_on_its_kind, with_flags
from published import get_table
from training.device import pick_amp, pick_device
from utils.errors import UserError, run_program


def budgets(run: Run, length: int) -> tuple[Run, list[memory.Budget]]:
    """Return the run with every setting filled in, and what training all layers and what its method needs.

    length    of the texts, in tokens. Raises UserError.
    """
    if not run.source:
        raise UserError("name a model with --model or --checkpoint")
    config = config_of(run.source)
    task = get_task(run.dataset or "spam")
    run = resolve_run(run, task, config)
    run = replace(run, amp=pick_amp(run.amp, pick_device(run.device)))
    return run, memory.budgets_of(run, len(task.labels), peft.method_of(run), length)


def of_row(text: str, overrides: Run) -> Run:
    """Return what a published row is with these flags."""
    row, table = find_row(text), get_table(text.rpartition(":")[0] or "spam")
    return as_on_its_kind(table, row, with_flags(row, overrides), overrides)


# The rows of docs/chatglm.md: what trains, and the forms of the frozen weights.
CHATGLM_ROWS = {1: "Freeze, mlp, last3", 9: "P-Tuning", 21: "LoRA, qkv, all"}
CHATGLM_PRECISIONS = ("fp16", "int8", "int4", "nf4")


def chatglm_rows(length: int = 1024) -> list[list[str]]:
    """Return one line for each of CHATGLM_ROWS and each form: GB of weights, gradients and moments, activations, in all."""
    lines = []
    for number, title in CHATGLM_ROWS.items():
        for precision in CHATGLM_PRECISIONS:
            run = of_row(f"chat:{number}", Run(model="chatglm-6b", base_precision=precision, amp="bf16"))
            needed = budgets(run, length)[1][1]
            parts = (needed.weights, needed.gradients + needed.optimizer, needed.activations, needed.total)
            lines.append([f"{number}, {title}", precision, *(f"{part / 1e9:.2f}" for part in parts)])
    return lines


def main() -> int:
    """Print what the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a text (default: %(default)s)")
    args, flags = parser.parse_known_args(sys.argv[1:])
    overrides, options = parse(flags)
    if unread := options.keys() - {"row"}:
        raise UserError(f"--{min(unread)} says nothing about memory; give --row and flags of a run")
    run, found = budgets(of_row(options["row"], overrides) if "row" in options else overrides, args.length)
    print(memory.report(*found, run.batch_size, args.length))
    return 0


if __name__ == "__main__":
    run_program(main)
