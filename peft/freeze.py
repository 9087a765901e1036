"""Training a part of the model itself: the head alone, the top blocks, everything, or chosen weights of chosen blocks."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from config import DEFAULTS, Run
from model.quantized import check_whole
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import find_parts
from utils.errors import UserError

BLOCKS = {"last_layer": 0, "last_block": 1, "last_two_blocks": 2, "all": None}  # how many blocks train, from the top


@method(*BLOCKS)
@dataclass(frozen=True)
class Freeze:
    """last_layer: the head. last_block / last_two_blocks: the last norm and the top blocks too. all: everything.

    These are the choices of the published spam script (rows 1-10).
    """

    layers: str = "last_block"
    train_head: bool = True

    def __post_init__(self):
        if self.layers not in BLOCKS:
            raise UserError(f"unknown layers {self.layers!r}: choose {', '.join(BLOCKS)}")

    @classmethod
    def from_run(cls, name: str, run: Run) -> "Freeze":
        return cls(layers=name, train_head=run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        count = BLOCKS[self.layers]
        if count is None:
            modules = [module for name, module in model.named_children() if name != "head"]
        else:  # a last norm is a decoder's; each block of an encoder ends with its own
            norm = [model.final_norm] if count and getattr(model, "final_norm", None) else []
            modules = [*model.blocks[len(model.blocks) - count :], *norm]
        train_modules(modules)
        train_head(model, self.train_head, untied=True)


@method("freeze")
@dataclass(frozen=True)
class FreezeBlocks:
    """Chosen parts of chosen blocks train, and nothing outside of the blocks but the head; see `find_parts`."""

    layers: str = DEFAULTS["layers"]
    part: str = DEFAULTS["part"]
    train_head: bool = True

    @classmethod
    def from_run(cls, name: str, run: Run) -> "FreezeBlocks":
        return cls(run.layers, run.part, train_head=run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        train_modules(find_parts(model, self.layers, self.part).values())
        train_head(model, self.train_head)


def train_modules(modules: Iterable[nn.Module]) -> None:
    """Let all parameters of the modules train. Raises UserError where a weight is kept in fewer bits."""
    for module in modules:
        for one in module.modules():
            check_whole(one)
        module.requires_grad_(True)
