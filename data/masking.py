"""Masked-language-model batches (Devlin et al. 2018, section 3.1): what is hidden, and what is to be guessed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from data.batching import IGNORED, Batch, Batches, Example, Order
from model.tokenizers.base import Tokenizer

PART = 0.15  # of the tokens is to be guessed by default (Wettig et al. 2023: small models learn from more)
MASKED, RANDOM = 0.8, 0.1  # parts of those that are shown as the mask, and as a random token; the rest stays as it is


class MaskedBatches(Batches):
    """Batches whose labels [B, T] are the tokens at the chosen positions, and IGNORED elsewhere.

    What is chosen depends on the seed and the epoch alone, so that an evaluation (epoch 0) always asks the same.
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        batch_size: int,
        tokenizer: Tokenizer,
        seed: int,
        order: Order | None = None,
        part: float = PART,
    ):
        examples = [Example(one, one) for one in ids]
        super().__init__(examples, batch_size, tokenizer.pad_id, None, order)
        self.tokenizer, self.seed, self.part = tokenizer, seed, part
        self.special = torch.tensor(sorted(tokenizer.special_ids))

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield the batches of one pass, with what belongs to its number hidden."""
        draw = np.random.default_rng([self.seed, number])
        for batch in super().epoch(number):
            yield self.hide(batch, draw)

    def hide(self, batch: Batch, draw: np.random.Generator) -> Batch:
        """Return the batch with chosen tokens replaced, and labels at those positions only; both [B, T]."""
        shape = tuple(batch.input_ids.shape)
        real = (batch.labels != IGNORED) & ~torch.isin(batch.input_ids, self.special)  # [B, T]
        chosen = real & torch.from_numpy(draw.random(shape) < self.part)
        fate = torch.from_numpy(draw.random(shape))
        others = torch.from_numpy(draw.integers(self.tokenizer.vocab_size, size=shape))
        shown = torch.where(chosen & (fate < MASKED), self.tokenizer.mask_id, batch.input_ids)
        shown = torch.where(chosen & (fate >= MASKED) & (fate < MASKED + RANDOM), others, shown)
        return replace(batch, input_ids=shown, labels=torch.where(chosen, batch.labels, IGNORED))
