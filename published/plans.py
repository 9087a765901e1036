"""Plans of stages, by the name that `--stages` takes: what each stage sets on top of the run's own values.

A plan depends on nothing but the number of the model's blocks.
"""

from collections.abc import Callable

from config import Run


def layer_by_layer(n_blocks: int) -> list[Run]:
    """Return a stage per block: it reads the output of its block through the one head, and trains that block alone.

    The last stage trains the head too. These are the SST-2 log's "transformer" rows.
    """
    return [
        Run(trainable_layers="freeze", layers=str(k), depth=k + 1, train_head="yes" if k + 1 == n_blocks else "no")
        for k in range(n_blocks)
    ]


def rounds(count: int) -> Callable[[int], list[Run]]:
    """Return a plan that trains the run's own method for one epoch at a time.

    The schedule and the optimizer's moments start anew each round.
    """
    return lambda n_blocks: [Run(num_epochs=1)] * count


def layer_by_layer_then_lora(n_blocks: int) -> list[Run]:
    """Return the stages of `layer_by_layer`, then six rounds of LoRA on every Linear layer."""
    return layer_by_layer(n_blocks) + [Run(trainable_layers="lora", lora_target="all", num_epochs=1)] * 6


PLANS: dict[str, Callable[[int], list[Run]]] = {
    "layer_by_layer": layer_by_layer,
    "layer_by_layer_then_lora": layer_by_layer_then_lora,
    "6_rounds": rounds(6),
    "10_rounds": rounds(10),
}
