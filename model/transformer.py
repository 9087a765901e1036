"""What every architecture has beside its own `forward`: the way from token ids to the final hidden states, in pieces.

An architecture is one file with a literal `forward` (`model/gpt2.py`, `model/bert.py`). It brings `config`, `embed`,
`blocks`, `final_norm` and `head`. What saves work without changing a number is in `model/fast_path.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from utils.errors import UserError


class Transformer(nn.Module):
    """The base class of the architectures.

    `attention_mask` is [B, T], 1 = real and 0 = padding, or [B, T, T], where [b, i, j] says whether position i may look at
    position j. A causal model looks at no later position in any case. `positions` [B, T] count from 0 in each text, for
    rows in which not every text begins at the first place.
    """

    config: Any  # the architecture's own, such as GPT2Config
    token_embedding: nn.Embedding
    blocks: Any  # an nn.ModuleList; a method may put other layers into its blocks (peft/)
    final_norm: nn.Module
    head: Any  # a module of model/heads.py, or None
    prompt: Any  # None, or trained vectors in front of every text (peft/prompt.py)
    drawn: tuple[str, ...]  # published names of the tensors that no file held
    states_stay: bool = True  # whether tokens that follow leave the states of a causal model's earlier ones as they are
    gradient_checkpointing: bool  # whether training computes each block's activations a second time to save memory

    def __init__(self):
        super().__init__()
        self.prompt = None
        self.drawn = ()
        self.gradient_checkpointing = False

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [B, T, D] that enter block 0. Each architecture has its own."""
        raise NotImplementedError

    def run_blocks(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run blocks start..stop-1 on hidden states [B, T, D] -> [B, T, D]."""
        inputs = self.block_inputs(hidden, attention_mask, positions)
        for block in self.blocks[start:stop]:
            hidden = block(hidden, *inputs)
        return hidden

    def layout(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the mask and the positions with which a batch [B, T] goes through the blocks: those that are given.

        A model whose tokens say themselves what they may look at has its own (model/chatglm.py).
        """
        return attention_mask, positions

    def places_behind(self, last: torch.Tensor | None, positions: torch.Tensor | None) -> torch.Tensor | None:
        """Return the positions of tokens that go on behind those at `last`: the given ones, unless they follow from it."""
        return positions

    def block_inputs(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> tuple[Any, ...]:
        """Return what every block gets beside the hidden states [B, T, D]: the mask [B, 1, 1 or T, T] or None.

        A model that rotates adds the rotation of the positions (model/llama.py). In others the embeddings know them.
        """
        return (None if attention_mask is None else make_mask(attention_mask, self.config.causal),)

    def rotation(self, positions: torch.Tensor) -> Any:
        """Return what turns queries and keys by their positions [B, T], or None where the embeddings know them."""
        return None

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the final hidden states [B, T, D] of token ids [B, T]."""
        attention_mask, positions = self.layout(input_ids, attention_mask, positions)
        hidden = self.embed(input_ids, token_type_ids, positions)
        return self.final_norm(self.run_blocks(hidden, attention_mask, positions=positions))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def make_mask(attention_mask: torch.Tensor, causal: bool) -> torch.Tensor:
    """Return what attention needs, True where a position may look: [B, 1, T, T], or [B, 1, 1, T] for every position alike.

    attention_mask is [B, T] or [B, T, T], as `Transformer` describes it.
    """
    mask = attention_mask.bool()
    mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]  # -> [B, 1, T, T] or [B, 1, 1, T]
    return mask & causal_mask(mask.shape[-1], 0, mask.device) if causal else mask


def causal_mask(length: int, n_before: int, device: torch.device) -> torch.Tensor:
    """Return [T, S + T]: each of T positions behind S others sees those, itself, and what lies between."""
    return torch.ones(length, n_before + length, dtype=torch.bool, device=device).tril(n_before)


def check_heads(dim: int, n_heads: int) -> None:
    """Raise UserError where the width can't be divided evenly among the heads."""
    if dim % n_heads:
        raise UserError(f"the width {dim} isn't divisible by the number of heads, {n_heads}")
