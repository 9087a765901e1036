"""Training a part of the model itself: the head alone, the top blocks, or everything."""

from dataclasses import dataclass

from torch import nn

from errors import UserError
from peft import method, train_head

BLOCKS = {"last_layer": 0, "last_block": 1, "last_two_blocks": 2, "all": None}  # how many blocks train, from the top


@method(*BLOCKS)
@dataclass(frozen=True)
class Freeze:
    """last_layer: the head. last_block / last_two_blocks: the last LayerNorm and the top blocks too. all: everything.

    These are the choices of the published spam script (rows 1-10).
    """

    layers: str = "last_block"
    train_head: bool = True

    def __post_init__(self):
        if self.layers not in BLOCKS:
            raise UserError(f"unknown layers {self.layers!r}: choose {', '.join(BLOCKS)}")

    @classmethod
    def from_run(cls, name: str, run) -> "Freeze":
        return cls(layers=name, train_head=run.train_head == "yes")

    def attach(self, model: nn.Module) -> None:
        count = BLOCKS[self.layers]
        if count is None:
            model.requires_grad_(True)
        elif count > 0:
            model.final_norm.requires_grad_(True)
            for block in model.blocks[-count:]:
                block.requires_grad_(True)
        train_head(model, self.train_head)
