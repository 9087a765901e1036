"""Prefix tuning: trained keys and values that every position of chosen blocks may look at (Li & Liang 2021,
arXiv:2101.00190; on every layer, as here by default, Liu et al. 2021, "P-Tuning v2", arXiv:2110.07602).

Nothing is put into the text: its positions count from 0 as without a prefix, and its context stays as long.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.transformer import SelfAttention, causal_mask
from peft.attach import train_head
from peft.registry import method
from peft.targets import Added, Reparameterised, parse_layers, replace_module
from utils.errors import UserError


class Prefix(Added):
    """The keys and the values of P positions, [2, P, D]."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> torch.Tensor:
        return self.weight


class Trunk(nn.Module):
    """What the projected prefixes of all blocks share: an embedding of the P positions, and a layer on top."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, dim))
        self.dense = nn.Linear(dim, dim)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.dense(self.embedding))  # [P, D]


class ProjectedPrefix(Reparameterised):
    """The same from a small network, which is easier to train for some tasks and needed for nothing else.

    The trunk is a module of the lowest of the blocks, under whose name its parameters go; the others only refer to it.
    """

    def __init__(self, trunk: Trunk, owns_trunk: bool):
        super().__init__()
        self._trunk = (trunk,)  # in a tuple, where a module isn't registered
        if owns_trunk:
            self.trunk = trunk
        dim = trunk.dense.out_features
        self.up = nn.Linear(dim, 2 * dim)

    def forward(self) -> torch.Tensor:
        return torch.stack(self.up(self._trunk[0]()).chunk(2, dim=-1))  # [P, D] -> [P, 2 D] -> [2, P, D]

    @torch.no_grad()
    def merged(self) -> Prefix:
        return Prefix(self().clone())


class PrefixAttention(SelfAttention):
    """Takes the place of an attention layer and its modules, which keep their names, and adds a prefix."""

    def __init__(self, base: SelfAttention, prefix: nn.Module):
        nn.Module.__init__(self)  # not SelfAttention's own: nothing is drawn
        self.n_heads, self.dropout = base.n_heads, base.dropout
        self.q, self.k, self.v, self.out = base.q, base.k, base.v, base.out
        self.prefix = prefix

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        prefix = self.prefix().unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [2, P, D] -> [2, H, P, D/H]
        k, v = (
            torch.cat([own.to(of.dtype).expand(len(of), -1, -1, -1), of], dim=2)  # [B, H, P + S, D/H]
            for own, of in zip(prefix, (k, v), strict=True)
        )
        if is_causal:  # that switch knows of no columns that all may look at
            mask = causal_mask(q.shape[2], 0, q.device)  # [T, T]
        if mask is not None:
            mask = F.pad(mask, (prefix.shape[2], 0), value=True)  # [..., T, S] -> [..., T, P + S]
        return super().attend(q, k, v, mask, False)


@method("prefix")
@dataclass(frozen=True)
class PrefixTuning:
    """length P; projection: from the network of `ProjectedPrefix` while it trains; layers as in `parse_layers`.

    Drawn as by the authors: N(0, 1), for the network's embedding too.
    """

    length: int = 16
    projection: bool = False
    layers: str = "all"
    train_head: bool = True

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"--prefix_length is {self.length}; it must be at least 1")

    @classmethod
    def from_run(cls, name: str, run) -> "PrefixTuning":
        return cls(run.prefix_length, run.prefix_projection, run.layers, train_head=run.train_head == "yes")

    def attach(self, model: nn.Module) -> None:
        numbers, dim = parse_layers(self.layers, len(model.blocks)), model.config.dim
        trunk = Trunk(self.length, dim) if self.projection else None
        for number in numbers:
            attention = model.blocks[number].attn
            if isinstance(attention, PrefixAttention):
                raise UserError(f"block {number} has a prefix already; attach to a fresh model")
            if self.projection:
                prefix = ProjectedPrefix(trunk, owns_trunk=number == numbers[0])
            else:
                prefix = Prefix(torch.randn(2, self.length, dim))
            device = next(attention.parameters()).device
            replace_module(model, f"blocks.{number}.attn", PrefixAttention(attention, prefix.to(device)))
        train_head(model, self.train_head)
