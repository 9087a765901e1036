"""Prompt tuning: trained vectors in front of every text, where token embeddings would be (Lester et al. 2021,
arXiv:2104.08691).

Unlike there, they don't count as positions: a text's own begin at 0 as without them, and its context stays as long. In a
model that rotates, which knows only how far apart two positions are, the prompt's are -P, ..., -1. A model with windows
that would hide the prompt from the end of a long text is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from config import DEFAULTS, Run, check_setting
from model.chatglm import ChatGLM
from model.transformer import Transformer, causal_mask, evaluating
from peft.attach import train_head
from peft.registry import method
from peft.targets import Added
from utils.errors import UserError


class Prompt(Added):
    """P trained vectors [P, D] that go through the blocks in front of every text: block 0 gets [prompt; x].

    Hooks on the blocks do it: the prompt is put in front of block 0, seen by every position of every block, and left out
    of what the last block returns.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def prepend(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [prompt; x]: [B, T, D] -> [B, P + T, D]."""
        prompt = self.weight.to(hidden.dtype).expand(len(hidden), -1, -1)  # [P, D] -> [B, P, D]
        return torch.cat([prompt, hidden], dim=1)

    def widen(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return an attention mask [B, S] of texts behind the prompt, which is seen too: [B, P + S]."""
        return None if attention_mask is None else F.pad(attention_mask, (len(self.weight), 0), value=1)

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the prompt's own positions in a model that rotates, [1, P]."""
        return torch.arange(-len(self.weight), 0, device=device)[None]

    def widen_positions(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the positions of [prompt; x]: [B, T] -> [B, P + T]."""
        own = self.positions(positions.device).expand(len(positions), -1)  # [B, P]
        return torch.cat([own, positions], dim=1)

    def widen_block_mask(self, mask: torch.Tensor | None, causal: bool) -> torch.Tensor | None:
        """Return the mask that a block is called with, [B, 1, 1 or T, T], for [prompt; x]: [B, 1, 1 or P + T, P + T]."""
        if mask is None:
            return None
        n = len(self.weight)
        rows = n if mask.shape[2] > 1 else 0
        mask = F.pad(mask, (n, 0, rows, 0), value=True)
        return mask & causal_mask(mask.shape[3], 0, mask.device) if causal else mask  # the prompt itself looks at no text


@dataclass(frozen=True)
class BeforeBlock:
    """A forward pre-hook of a block: the mask covers the prompt and, before block 0, the prompt goes in front.

    `rotation_of` gives the rotation of positions in a model that rotates.
    """

    prompt: Prompt
    is_first: bool
    causal: bool
    rotation_of: Callable[[torch.Tensor], Any]

    def __call__(self, block: nn.Module, inputs: Any) -> tuple:
        padded: Any = (*inputs, None, None)
        hidden, mask, rotation = padded[:3]
        hidden = self.prompt.prepend(hidden) if self.is_first else hidden
        mask = self.prompt.widen_block_mask(mask, self.causal)
        return (hidden, mask) if rotation is None else (hidden, mask, self.widen_rotation(rotation))

    def widen_rotation(self, rotation: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the rotation of [prompt; x], from that of x: twice [B, 1, T, d/2] -> twice [B, 1, P + T, d/2]."""
        pairs = zip(self.rotation_of(self.prompt.positions(rotation[0].device)), rotation, strict=True)
        return tuple(torch.cat([own.expand(len(of_x), -1, -1, -1), of_x], dim=2) for own, of_x in pairs)


@dataclass(frozen=True)
class AfterLastBlock:
    """A forward hook of the last block: what it makes of the prompt is left out, [B, P + T, D] -> [B, T, D]."""

    prompt: Prompt

    def __call__(self, block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output[:, len(self.prompt.weight) :]


def add_prompt(model: Transformer, weight: torch.Tensor) -> None:
    """Put a prompt [P, D] in front of every text, in place. Raises UserError."""
    if model.prompt is not None:
        raise UserError("the model has a prompt already; attach to a fresh model")
    check_windows(model, len(weight), "a prompt")
    model.prompt = Prompt(weight)
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(BeforeBlock(model.prompt, number == 0, model.config.causal, model.rotation))
    model.blocks[-1].register_forward_hook(AfterLastBlock(model.prompt))


def check_windows(model: Transformer, length: int, what: str) -> None:
    """Raise UserError where a layer's window could hide some of the `length` positions in front of a text from its end."""
    windows = [window for block in model.blocks if (window := getattr(block.attn, "window", None)) is not None]
    limit = model.config.context_length + length
    if windows and min(windows) < limit:
        raise UserError(
            f"{what}, of {length} positions, has to be seen by a whole text; some layers here have a window of "
            f"{min(windows)} tokens, where {limit} are needed; train a prefix (--trainable_layers prefix) instead"
        )


@method("prompt")
@dataclass(frozen=True)
class PromptTuning:
    """length P. Each vector starts as the embedding of a random token."""

    length: int = DEFAULTS["prefix_length"]
    train_head: bool = True

    def __post_init__(self):
        check_setting("prefix_length", self.length)

    @classmethod
    def from_run(cls, name: str, run: Run) -> "PromptTuning":
        return cls(run.prefix_length, train_head=run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        if isinstance(model, ChatGLM):
            raise UserError("a prompt has no place before a ChatGLM's context, whose tokens see each other; choose prefix")
        if self.length > model.config.context_length:
            limit = model.config.context_length
            raise UserError(f"--prefix_length is {self.length}; a prompt can be at most as long as the context, {limit}")
        device = model.token_embedding.weight.device
        tokens = torch.randint(model.config.vocab_size, (1, self.length)).to(device)
        with torch.no_grad(), evaluating(model):
            weight = model.embed(tokens)[0].clone()  # [1, P] -> [P, D]
        add_prompt(model, weight)
        train_head(model, self.train_head)
