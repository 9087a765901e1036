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
from model.transformer import Transformer
from pipeline import memory
from pipeline.build import build_model
from pipeline.flags import find_row, parse
from pipeline.resolve import resolve_run
from pipeline.stand_ins import with_flags, with_own_names
from utils.errors import UserError, run_program


def report(run: Run, length: int) -> str:
    """Return what training all layers and what the run's method needs, for batches of texts of this length."""
    if not run.source:
        raise UserError("name a model with --model or --checkpoint")
    config = config_of(run.source)
    task = get_task(run.dataset or "spam")
    run = replace(resolve_run(run, task, config), weights="random")

    def build(in_full: bool) -> Transformer:
        return build_model(replace(run, base_precision="fp32") if in_full else run, len(task.labels))

    return memory.report(build, peft.method_of(run), run.batch_size, length, run.gradient_checkpointing)


def main() -> int:
    """Print what the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a text (default: %(default)s)")
    args, flags = parser.parse_known_args(sys.argv[1:])
    overrides, options = parse(flags)
    if unread := options.keys() - {"row"}:
        raise UserError(f"--{min(unread)} says nothing about memory; give --row and flags of a run")
    run = with_own_names(with_flags(find_row(options["row"]), overrides)) if "row" in options else overrides
    print(report(run, args.length))
    return 0


if __name__ == "__main__":
    run_program(main)
