"""Prompt tuning: trained vectors in front of every text, where token embeddings would be (Lester et al. 2021,
arXiv:2104.08691).

Unlike there, they don't count as positions: a text's own begin at 0 as without them, and its context stays as long.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.transformer import Cache
from peft.attach import train_head
from peft.registry import method
from peft.targets import Added
from utils.errors import UserError


class Prompt(Added):
    """What enters block 0 in front of a text, [P, D]."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


class PromptedModel:
    """What attaching puts in front of a model's own class."""

    def climb(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        start: int = 0,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """As without a prompt: it goes in front here, and what the blocks make of it stays here."""
        assert start == 0, "the prompt enters block 0"
        n = self.n_before
        if attention_mask is not None:
            sides = (n, 0) if attention_mask.ndim == 2 else (n, 0, n, 0)
            attention_mask = F.pad(attention_mask, sides, value=1)  # [B, S] -> [B, P + S], or [B, P + T, P + T]
        if cache is not None and len(cache):  # the prompt is in there
            return super().climb(hidden, attention_mask, rows, start, cache)
        prompt = self.prompt.weight.to(hidden.dtype).expand(len(hidden), -1, -1)  # [P, D] -> [B, P, D]
        hidden = torch.cat([prompt, hidden], dim=1)  # [B, P + T, D]
        if rows is not None:
            return super().climb(hidden, attention_mask, rows + n, start, cache)  # [B, 1, D]
        return super().climb(hidden, attention_mask, None, start, cache)[:, n:]  # [B, T, D]


@method("prompt")
@dataclass(frozen=True)
class PromptTuning:
    """length P. Each vector starts as the embedding of a random token."""

    length: int = 16
    train_head: bool = True

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"--prefix_length is {self.length}; it must be at least 1")

    @classmethod
    def from_run(cls, name: str, run) -> "PromptTuning":
        return cls(run.prefix_length, train_head=run.train_head == "yes")

    def attach(self, model: nn.Module) -> None:
        if isinstance(model, PromptedModel):
            raise UserError("the model has a prompt already; attach to a fresh model")
        if self.length > model.config.context_length:
            limit = model.config.context_length
            raise UserError(f"--prefix_length is {self.length}; a prompt can be at most as long as the context, {limit}")
        was_training = model.training
        device = model.token_embedding.weight.device
        tokens = torch.randint(model.config.vocab_size, (1, self.length)).to(device)
        with torch.no_grad():
            weight = model.eval().embed(tokens)[0].clone()  # [1, P] -> [P, D]
        model.train(was_training)
        model.__class__ = type("PromptedModel", (PromptedModel, type(model)), {})
        model.prompt, model.n_before = Prompt(weight), self.length
        train_head(model, self.train_head)
