"""Bypass branches: hidden states from below the top reach the classifier through Linear layers of their own.

h_k is the output of the k-th block, counted from 1, at the position that the head reads; h_n, the last one, is what the
head gets anyway. With branches fc_k, as in the DistilBERT log that this method comes from:

    into "classifier"   classifier(dense(h_n) + Σ fc_k(h_k))
    into "dense"        classifier(dense(h_n + Σ fc_k(h_k)))
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from peft.attach import train_head
from peft.registry import method
from peft.targets import Added
from utils.errors import UserError

INTO = ("classifier", "dense")
HEADS = ("own", "linear")
INITS = ("zero", "default")
DEEPEST = 3


class Tap(NamedTuple):
    """One branch's input, and how many Linear layers it has."""

    path: str  # of the module whose output is read
    depth: int


class Branches(Added):
    """Σ over the taps of some Linear(D, D) in a row, without activations between them; of none, the tap as it is."""

    def __init__(self, taps: dict[str, Tap], dim: int, init: str):
        super().__init__()
        self.taps = {name: tap.path for name, tap in taps.items()}
        for name, tap in taps.items():
            self.add_module(name, nn.Sequential(*(nn.Linear(dim, dim) for _ in range(tap.depth))))
        if init == "zero":  # the last of each branch, so that nothing is added at first
            for branch in self.children():
                nn.init.zeros_(branch[-1].weight)
                nn.init.zeros_(branch[-1].bias)

    def forward(self, heard: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(self.get_submodule(name)(heard[tap]) for name, tap in self.taps.items())  # [B, D] each -> [B, D]


class BypassHead:
    """What `with_branches` puts in front of a head's own class."""

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, heard: dict) -> torch.Tensor:
        """The hidden state of the position read [B, 1, D], and each tap's [B, D] -> logits [B, C]."""
        added = self.branches(heard)  # [B, D]
        if self.linear:
            return self.linear_forward(hidden.squeeze(1), added)
        if self.into == "dense" or not hasattr(self, "dense"):
            return super().forward(hidden + added.unsqueeze(1), attention_mask, {})
        hook = self.dense.register_forward_hook(lambda module, inputs, output: output + added.view_as(output))
        try:
            return super().forward(hidden, attention_mask, {})
        finally:
            hook.remove()

    def linear_forward(self, state: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """The log's head: the formula as it stands, no activation, and dropout on the logits. [B, D], [B, D] -> [B, C]."""
        dense = getattr(self, "dense", nn.Identity())
        state = dense(state + added) if self.into == "dense" else dense(state) + added
        return self.logit_dropout(self.classifier(state))


def with_branches(head: nn.Module, branches: Branches, method: "Bypass", dropout: float) -> None:
    """In place: the head keeps its modules under their names, and its class gets BypassHead in front."""
    rate = head.dropout.p if isinstance(getattr(head, "dropout", None), nn.Dropout) else dropout
    head.__class__ = type("BypassHead", (BypassHead, type(head)), {})
    head.branches, head.taps = branches, tuple(branches.taps.values())
    head.into, head.linear, head.logit_dropout = method.into, method.head == "linear", nn.Dropout(rate)


def parse_taps(text: str, n_blocks: int, depth: int) -> dict[str, Tap]:
    """ "3x2,attn.2" -> {"h_3": block 2, 2 deep; "attn_2": attention of block 1}; "all" -> every h_k below the last."""
    choices = f"choose all, or blocks counted from 1 to {n_blocks}, such as 1 for its output and attn.1 for its attention's"
    if text == "all":
        text = ",".join(str(k) for k in range(1, max(n_blocks, 2)))  # in a model of one block it is the last that is read
    taps = {}
    for item in text.split(","):
        found = re.fullmatch(rf"\s*(attn\.)?(\d+)(?:x([0-{DEEPEST}]))?\s*", item)
        if not found or not 1 <= int(found[2]) <= n_blocks:
            raise UserError(f"--bypass_taps is {text!r}; {item.strip()!r} isn't there; {choices}")
        k = int(found[2])
        name, path = (f"attn_{k}", ".attn.out") if found[1] else (f"h_{k}", "")
        taps[name] = Tap(f"blocks.{k - 1}{path}", int(found[3] or depth))
    return taps


@method("bypass")
@dataclass(frozen=True)
class Bypass:
    """taps as in `parse_taps`; depth: Linear layers per branch that says none of its own; into: which layer of the head
    reads the sum (a head without a dense layer: the classifier).

    head "own": all else in the head stays, the activation after its dense layer too. "linear": as in the log, without
    activation, with dropout on the logits. init "zero": branches add nothing at first; "default": PyTorch's, as in the log.
    """

    taps: str = "all"
    depth: int = 1
    into: str = "classifier"
    head: str = "own"
    init: str = "zero"
    train_head: bool = True

    def __post_init__(self):
        for name, choices in (("into", INTO), ("head", HEADS), ("init", INITS)):
            if getattr(self, name) not in choices:
                raise UserError(f"unknown --bypass_{name} {getattr(self, name)!r}: choose {', '.join(choices)}")
        if not 0 <= self.depth <= DEEPEST:
            raise UserError(f"--bypass_depth is {self.depth}; choose 0 to {DEEPEST}")

    @classmethod
    def from_run(cls, name: str, run) -> "Bypass":
        return cls(
            taps=run.bypass_taps,
            depth=run.bypass_depth,
            into=run.bypass_into,
            head=run.bypass_head,
            init=run.bypass_init,
            train_head=run.train_head == "yes",
        )

    def attach(self, model: nn.Module) -> None:
        if isinstance(model.head, BypassHead):
            raise UserError("the head has bypass branches already; attach to a fresh model")
        if not hasattr(model.head, "classifier"):
            raise UserError("bypass needs a classifier; this model has none, so choose another method")
        if model.head.rows(torch.zeros(1, 1, model.config.dim)) is None:
            raise UserError("bypass needs a classifier that reads one position, so no --average_embeddings")
        train_head(model, self.train_head)
        taps = parse_taps(self.taps, len(model.blocks), self.depth)
        if self.init == "zero" and not all(tap.depth for tap in taps.values()):
            raise UserError("--bypass_depth 0 adds what is tapped as it is, from the start: say --bypass_init default")
        branches = Branches(taps, model.config.dim, self.init).to(next(model.parameters()).device)
        with_branches(model.head, branches, self, model.config.dropout)
