"""Bypass branches: hidden states from below the top reach the classifier through Linear layers of their own.

h_k is the output of the k-th block, counted from 1, at the position that the head reads, and h what the head reads anyway:
the last block's output, behind a decoder's last norm. With branches fc_k, as in the DistilBERT log that this method comes
from (head "linear"; "own" keeps the activation and the dropout that the head has behind its dense layer):

    into "classifier"   classifier(dense(h) + Σ fc_k(h_k))
    into "dense"        classifier(dense(h + Σ fc_k(h_k)))
    without a dense layer (decoders)   classifier(h + Σ fc_k(h_k))
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from config import BYPASS_DEEPEST, DEFAULTS, Run, check_setting
from model.heads import ClassifierHead, take
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import Added
from utils.errors import UserError


class Tap(NamedTuple):
    """Where a branch begins, and how many Linear layers it has."""

    path: str  # of the module whose output is read
    depth: int


class Branches(Added):
    """Σ over the taps of `depth` Linear(D, D) layers in a row, without activations; depth 0: the tapped state unchanged."""

    def __init__(self, taps: dict[str, Tap], dim: int, init: str):
        super().__init__()
        self.taps = {name: tap.path for name, tap in taps.items()}
        for name, tap in taps.items():
            layers = [nn.Linear(dim, dim) for _ in range(tap.depth)]
            if init == "zero":  # the last of each branch, so that nothing is added at first
                nn.init.zeros_(layers[-1].weight)
                nn.init.zeros_(layers[-1].bias)
            self.add_module(name, nn.Sequential(*layers))

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add up what the branches make of the taps' states, [B, D] each -> [B, D]."""
        added: Any = sum(self.get_submodule(name)(state) for name, state in zip(self.taps, states, strict=True))
        return added


class Captured(dict):
    """What the taps have put out since the head last read them, path -> [B, T, D]. A copy of a model begins without any."""

    def __deepcopy__(self, memo: dict) -> "Captured":
        return Captured()


@dataclass(frozen=True)
class CaptureHook:
    """A forward hook: hands a module's output to the head."""

    head: "BypassHead"
    path: str

    def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.head.capture(self.path, output)


class BypassHead(ClassifierHead):
    """Takes the place of a classifier and its layers, which keep their names, and adds the branches.

    Forward hooks on the tapped modules hand their outputs to `capture`; the head reads and drops them in the same pass.
    """

    def __init__(self, base: ClassifierHead, branches: Branches, settings: "Bypass", dropout: float):
        nn.Module.__init__(self)  # not ClassifierHead's own: nothing is drawn
        self.position, self.average, self.labels, self.order = base.position, base.average, base.labels, base.order
        self.into, self.linear = settings.into, settings.head == "linear"
        self.classifier = base.classifier
        self.dense = getattr(base, "dense", None)  # a decoder's classifier has none
        self.dropout = getattr(base, "dropout", nn.Dropout(dropout))
        self.activation = getattr(base, "activation", nn.Identity())
        drops_first = getattr(base, "dropout_first", False) and not self.linear
        self.dropout_before = self.dropout if drops_first else nn.Identity()  # RoBERTa has dropout before its dense layer
        self.branches = branches
        self.taps = tuple(branches.taps.values())
        self.captured = Captured()

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = self.rows(hidden, attention_mask, lengths)  # [B]
        assert rows is not None  # `Bypass.attach` refuses a head that reads the mean
        return self.classify(take(hidden, rows), *self.captured_at(rows, hidden.shape[1]))  # [B, T, D] -> [B, C]

    def classify(self, state: torch.Tensor, *taps: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] from the state of the position read [B, D] and each tap's [B, D]: the formulas above."""
        added = self.branches(taps)  # [B, D]
        if self.dense is None:
            state = state + added
        elif self.into == "dense":
            state = self.dense(self.dropout_before(state + added))
        else:
            state = self.dense(self.dropout_before(state)) + added
        if self.linear:  # the log's head: no activation, and dropout on the logits
            return self.dropout(self.classifier(state))  # [B, D] -> [B, C]
        if self.dense is not None:
            state = self.dropout(self.activation(state))
        return self.classifier(state)  # [B, D] -> [B, C]

    def capture(self, path: str, output: torch.Tensor) -> None:
        """Keep what a tapped module puts out, [B, T, D], until the head reads it."""
        self.captured[path] = output

    def captured_at(self, rows: torch.Tensor, length: int) -> list[torch.Tensor]:
        """Return each tap's output at one position of each text, [B, D], and drop what was captured.

        rows     [B], positions in texts of `length` tokens; prompt tuning puts more in front, by which they move
        """
        missing = [path for path in self.taps if path not in self.captured]
        assert not missing, f"{missing} didn't run, so the branches have nothing to read"
        outputs = [
            self.captured.pop(path) for path in self.taps
        ]  # [B, T, D]; [B, 1, D] from a last block that computed one position
        return [x[:, 0] if x.shape[1] == 1 else take(x, rows + x.shape[1] - length) for x in outputs]


def parse_taps(text: str, n_blocks: int, depth: int) -> dict[str, Tap]:
    """Return the taps that a text names, which counts blocks from 1 as the log does; model.blocks counts from 0.

    "3x2,attn.2" -> {"h_3": the output of blocks.2, 2 layers deep; "attn_2": the output of blocks.1.attn.out}. "all" is
    every h_k below the last. Raises UserError.
    """
    choices = f"choose all, or blocks counted from 1 to {n_blocks}, such as 1 for its output and attn.1 for its attention's"
    if text == "all":
        text = ",".join(str(k) for k in range(1, max(n_blocks, 2)))  # in a model of one block it is the last that is read
    taps = {}
    for item in text.split(","):
        found = re.fullmatch(rf"\s*(attn\.)?(\d+)(?:x([0-{BYPASS_DEEPEST}]))?\s*", item)
        if not found or not 1 <= int(found[2]) <= n_blocks:
            raise UserError(f"--bypass_taps is {text!r}; {item.strip()!r} isn't there; {choices}")
        k = int(found[2])
        name, path = (f"attn_{k}", ".attn.out") if found[1] else (f"h_{k}", "")
        taps[name] = Tap(f"blocks.{k - 1}{path}", int(found[3] or depth))
    return taps


@method("bypass")
@dataclass(frozen=True)
class Bypass:
    """The settings of a bypass.

    taps    what is read, as in `parse_taps`
    depth   Linear layers of a branch that doesn't say its own depth
    into    which layer of the head reads the sum; a head without a dense layer has only the classifier
    head    "own": all else in the head stays, the activation after its dense layer too; "linear": as in the log, without
            activation, with dropout on the logits
    init    "zero": the branches add nothing at first; "default": PyTorch's initialisation, as in the log
    """

    taps: str = DEFAULTS["bypass_taps"]
    depth: int = DEFAULTS["bypass_depth"]
    into: str = DEFAULTS["bypass_into"]
    head: str = DEFAULTS["bypass_head"]
    init: str = DEFAULTS["bypass_init"]
    train_head: bool = True

    def __post_init__(self):
        for name in ("depth", "into", "head", "init"):
            check_setting(f"bypass_{name}", getattr(self, name))

    @classmethod
    def from_run(cls, name: str, run: Run) -> "Bypass":
        return cls(
            taps=run.bypass_taps,
            depth=run.bypass_depth,
            into=run.bypass_into,
            head=run.bypass_head,
            init=run.bypass_init,
            train_head=run.train_head == "yes",
        )

    def attach(self, model: Transformer) -> None:
        if isinstance(model.head, BypassHead):
            raise UserError("the head has bypass branches already; attach to a fresh model")
        if not hasattr(model.head, "classifier"):
            raise UserError("bypass needs a classifier; this model has none, so choose another method")
        if model.head.average:
            raise UserError("bypass needs a classifier that reads one position, so no --average_embeddings")
        train_head(model, self.train_head)
        taps = parse_taps(self.taps, len(model.blocks), self.depth)
        if self.init == "zero" and not all(tap.depth for tap in taps.values()):
            raise UserError("--bypass_depth 0 adds what is tapped as it is, from the start: say --bypass_init default")
        branches = Branches(taps, model.config.dim, self.init).to(next(model.parameters()).device)
        model.head = BypassHead(model.head, branches, self, model.config.dropout)
        for path in model.head.taps:
            model.get_submodule(path).register_forward_hook(CaptureHook(model.head, path))
