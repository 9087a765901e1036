"""Plans of stages, by the name that `--stages` takes: what each stage sets on top of the run's own values.

A plan depends on nothing but the number of the model's blocks.
"""

from collections.abc import Callable
from dataclasses import replace

from config import Run, override
from utils.errors import UserError


def layer_by_layer(n_blocks: int) -> list[Run]:
    """Stage k reads the output of block k (counted from 1) through the one head and trains that block alone; the last
    stage trains the head too (the SST-2 log's "transformer" rows)."""
    return [
        Run(trainable_layers="freeze", layers=str(k), depth=k + 1, train_head="yes" if k + 1 == n_blocks else "no")
        for k in range(n_blocks)
    ]


def rounds(count: int) -> Callable[[int], list[Run]]:
    """The run's own method, for one epoch at a time: the schedule and the optimizer's moments start anew each round."""
    return lambda n_blocks: [Run(num_epochs=1)] * count


def layer_by_layer_then_lora(n_blocks: int) -> list[Run]:
    """The same, then six rounds of LoRA on every Linear layer."""
    return layer_by_layer(n_blocks) + [Run(trainable_layers="lora", lora_target="all", num_epochs=1)] * 6


PLANS: dict[str, Callable[[int], list[Run]]] = {
    "layer_by_layer": layer_by_layer,
    "layer_by_layer_then_lora": layer_by_layer_then_lora,
    "6_rounds": rounds(6),
    "10_rounds": rounds(10),
}


def stages_of(run: Run, n_blocks: int) -> list[Run]:
    """The run's stages, each with every value filled. Without --stages it is its own and only one."""
    if run.stages is None:
        return [run]
    if run.stages not in PLANS:
        raise UserError(f"unknown --stages {run.stages!r}: choose {', '.join(PLANS)}")
    return [replace(override(run, stage), stages=None) for stage in PLANS[run.stages](n_blocks)]
