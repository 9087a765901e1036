"""What every architecture shares: multi-head attention, and the way from embedded tokens through the blocks to logits.

Letters used for shapes: B batch, T tokens, D width of the model, H heads, V vocabulary, C classes.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from model.heads import listen
from utils.errors import UserError


class SelfAttention(nn.Module):
    """Multi-head self-attention. Query, key and value are three Linear layers, so that each can be adapted alone."""

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        rows: torch.Tensor | None = None,
        past: "Past | None" = None,
    ) -> torch.Tensor:
        queries = x if rows is None else take(x, rows)  # [B, T, D], or [B, 1, D]: everything is looked at, but by one
        q, k, v = (
            linear(of).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, T, H, D/H] -> [B, H, T, D/H]
            for linear, of in ((self.q, queries), (self.k, x), (self.v, x))
        )
        if past is not None:
            k, v = past.extend(k, v)  # [B, H, T, D/H] -> [B, H, S + T, D/H]
        x = self.attend(q, k, v, mask, is_causal)
        return self.out(x.transpose(1, 2).flatten(2))  # [B, H, T, D/H] -> [B, T, H, D/H] -> [B, T, D]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """Queries [B, H, T, D/H] look at keys and values [B, H, S, D/H], as far as the mask allows -> [B, H, T, D/H]."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


class Past:
    """The keys and values that one attention layer has computed so far, [B, H, S, D/H] each."""

    def __init__(self):
        self.k = self.v = None

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in those of T further positions and returns all, [B, H, S + T, D/H]."""
        if self.k is not None:
            k, v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        self.k, self.v = k, v
        return k, v


class Cache:
    """What a causal model needs to go on from a text without computing it again: the past of each block.

    It belongs to the caller, and a call of the model with it adds the positions of that call.
    """

    def __init__(self, model: "Transformer"):
        if not model.config.causal:
            raise UserError("a model whose positions see all others can't go on from a text: each token changes the rest")
        self.blocks = [Past() for _ in model.blocks]

    def __len__(self) -> int:
        """How many positions it holds, S."""
        return 0 if self.blocks[0].k is None else self.blocks[0].k.shape[2]


def take(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One position of each text: [B, T, D] and [B] -> [B, 1, D]."""
    return x[torch.arange(len(x), device=x.device), rows].unsqueeze(1)


def causal_mask(length: int, past: int, device: torch.device) -> torch.Tensor:
    """[T, S + T]: each of T positions after `past` S others sees those, itself, and what lies between."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def check_heads(dim: int, n_heads: int) -> None:
    """Raises UserError where the width can't be shared out evenly."""
    if dim % n_heads:
        raise UserError(f"the width {dim} isn't divisible by the number of heads, {n_heads}")


class Reading(NamedTuple):
    """What a head gets to see."""

    hidden: torch.Tensor  # the last block's output [B, T, D], or at the one position that it reads [B, 1, D]
    attention_mask: torch.Tensor | None  # [B, T], where it reads all of them
    heard: dict[str, torch.Tensor]  # what its taps put out, tap -> [B, D]

    def stacked(self, taps: tuple[str, ...]) -> torch.Tensor:
        """Of a head that reads one position: all of it as one tensor [B, 1 + taps, D]."""
        return torch.cat([self.hidden, *(self.heard[tap].unsqueeze(1) for tap in taps)], dim=1)

    @classmethod
    def unstacked(cls, states: torch.Tensor, taps: tuple[str, ...]) -> "Reading":
        """The other way round."""
        return cls(states[:, :1], None, {tap: states[:, i] for i, tap in enumerate(taps, start=1)})


class Transformer(nn.Module):
    """Blocks and an exchangeable head (see `model/heads.py`) on top of hidden states.

    An architecture adds `config`, `blocks`, `head` and `embed`: token ids [B, T] -> the hidden states [B, T, D] that enter
    block 0; and `finish`, where it has something above the last block. A block is called as
    `block(hidden, mask, is_causal, rows, past)`.

    `attention_mask` is [B, T], 1 = real and 0 = padding, or [B, T, T], where [b, i, j] says whether position i may attend
    to j; a causal model looks at no later position in any case. `positions` [B, T] count from 0 in each text, for rows in
    which not every text begins at the first place. Several texts in a row, as `data.batching.Batch` has them, need both.
    A head that reads one position of each row takes an `attention_mask` [B, T] only. With a cache that holds S positions,
    the mask covers them too: [B, S + T].
    """

    n_before = 0  # how many positions a method has put in front of every text (peft/prompt.py)

    def run_blocks(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Blocks start..stop-1 on given hidden states [B, T, D] -> [B, T, D]."""
        mask, is_causal = self._attention_rule(attention_mask, hidden.shape[1], len(cache) if cache else 0)
        pasts = cache.blocks if cache is not None else [None] * len(self.blocks)
        for block, past in zip(self.blocks[start:stop], pasts[start:stop], strict=True):
            hidden = block(hidden, mask, is_causal, past=past)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the last block puts out -> what the head reads."""
        return hidden

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids [B, T] -> final hidden states [B, T, D]."""
        return self.finish(self.climb(self.embed(input_ids, token_type_ids, positions), attention_mask))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits: [B, T, V] with a language-model head, [B, C] with a classifier.

        `lengths` [B] counts the real tokens of each text. It only tells the classifier where a text ends (position
        `flexible`); what attention sees is up to `attention_mask` alone. `token_type_ids` [B, T] (0 first text, 1 second)
        are ignored by models that know one kind of token only.
        """
        hidden = self.embed(input_ids, token_type_ids, positions)
        return self.logits(hidden, attention_mask, lengths)

    def logits(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        start: int = 0,
    ) -> torch.Tensor:
        """Everything above the hidden states [B, T, D] that enter block `start`.

        With this seam a caller can keep the output of frozen blocks and continue from there.
        """
        return self.conclude(self.read(hidden, attention_mask, lengths, start))

    def read(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        start: int = 0,
    ) -> Reading:
        """The blocks from `start` on: what the head gets to see."""
        if self.head is None:
            name = type(self).__name__
            raise UserError(f'this {name} has no head: use encode(), or build it with head="lm" or "classifier"')
        rows = self.head.rows(hidden, attention_mask, lengths)  # [B], or None where every position is read
        with listen(self, self.head.taps) as heard:
            hidden = self.climb(hidden, attention_mask, rows, start)  # [B, T, D], or with rows -> [B, 1, D]
        unheard = [tap for tap in self.head.taps if tap not in heard]
        assert not unheard, f"the head listens to {unheard}, which lies below block {start}"
        if rows is None:
            return Reading(hidden, attention_mask, heard)
        # [B, T, D] -> [B, D]; what the last block puts out is [B, 1, D] already
        rows = rows + self.n_before
        return Reading(hidden, None, {tap: (take(x, rows) if x.shape[1] > 1 else x).squeeze(1) for tap, x in heard.items()})

    def conclude(self, reading: Reading) -> torch.Tensor:
        """The logits that the head makes of what it sees."""
        return self.head(self.finish(reading.hidden), *reading[1:])  # -> [B, T, V], or of one position -> [B, C]

    def climb(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        start: int = 0,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """What enters block `start` [B, T, D] -> the last block's output [B, T, D], or at `rows` [B] alone [B, 1, D]."""
        if rows is None:
            return self.run_blocks(hidden, attention_mask, start, cache=cache)
        return self._run_to_rows(hidden, attention_mask, rows, start)

    def next_logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """A language model's scores for the token after the last position: [B, T] -> [B, V]. Shorter texts of the batch
        are padded on the left, with `positions` that count their real tokens."""
        hidden = self.climb(self.embed(input_ids, positions=positions), attention_mask, cache=cache)  # [B, T, D]
        return self.head(self.finish(hidden[:, -1:])).squeeze(1)  # [B, 1, V] -> [B, V]

    def _run_to_rows(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, rows: torch.Tensor, start: int
    ) -> torch.Tensor:
        """The last block's output at one position of each text, without computing it at those that nothing reads."""
        if start == len(self.blocks):
            return take(hidden, rows)
        hidden = self.run_blocks(hidden, attention_mask, start, len(self.blocks) - 1)
        return self.blocks[-1](hidden, self._visible_to(rows, hidden.shape[1], attention_mask), False, rows)

    def _visible_to(self, rows: torch.Tensor, length: int, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """What one position of each text, `rows` [B], may attend to: a boolean mask [B, 1, 1, T], or None for all."""
        if not self.config.causal:
            return self._attention_rule(attention_mask, length)[0]
        visible = torch.arange(length, device=rows.device) <= rows[:, None]  # [B, T]
        if attention_mask is not None:
            visible = visible & attention_mask.bool()
        return visible[:, None, None, :]

    def _attention_rule(
        self, attention_mask: torch.Tensor | None, length: int, past: int = 0
    ) -> tuple[torch.Tensor | None, bool]:
        """What SDPA needs: a boolean mask (True = may attend) that broadcasts to [B, H, T, S + T] for T positions after
        `past` S others, and its causal switch.

        Without padding to hide, the switch alone says it all and leaves SDPA free to take its fastest kernel. It counts
        from the first key, so it can't be used after others; a single position after them sees all.
        """
        if attention_mask is None and (not past or length == 1):
            return None, self.config.causal and not past
        if attention_mask is None:
            return causal_mask(length, past, self.token_embedding.weight.device), False
        mask = attention_mask.bool()
        mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]  # [B, 1, T, T], or [B, 1, 1, S + T]: keys
        if self.config.causal:
            mask = mask & causal_mask(length, past, mask.device)  # [B, 1, T, S + T]
        return mask, False

    def _check_length(self, input_ids: torch.Tensor) -> None:
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit:
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
