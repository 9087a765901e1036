"""What every architecture shares: multi-head attention, and the way from embedded tokens through the blocks to logits.

Letters used for shapes: B batch, T tokens, D width of the model, H heads, V vocabulary, C classes.
"""

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.heads import listen


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
        self, x: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        queries = x if rows is None else take(x, rows)  # [B, T, D], or [B, 1, D]: everything is looked at, but by one
        q, k, v = (
            linear(of).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, T, H, D/H] -> [B, H, T, D/H]
            for linear, of in ((self.q, queries), (self.k, x), (self.v, x))
        )
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.out(x.transpose(1, 2).flatten(2))  # [B, H, T, D/H] -> [B, T, H, D/H] -> [B, T, D]


def take(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One position of each text: [B, T, D] and [B] -> [B, 1, D]."""
    return x[torch.arange(len(x), device=x.device), rows].unsqueeze(1)


def check_heads(dim: int, n_heads: int) -> None:
    if dim % n_heads:
        raise UserError(f"the width {dim} isn't divisible by the number of heads, {n_heads}")


class Transformer(nn.Module):
    """Blocks and an exchangeable head (see `model/heads.py`) on top of hidden states.

    An architecture adds `config`, `blocks`, `head` and `embed`: token ids [B, T] -> the hidden states [B, T, D] that enter
    block 0; and `finish`, where it has something above the last block. A block is called as
    `block(hidden, mask, is_causal, rows)`.

    `attention_mask` is [B, T], 1 = real and 0 = padding, or [B, T, T], where [b, i, j] says whether position i may attend
    to j; a causal model looks at no later position in any case. `positions` [B, T] count from 0 in each text, for rows in
    which not every text begins at the first place. Several texts in a row, as `data.batching.Batch` has them, need both.
    A head that reads one position of each row takes an `attention_mask` [B, T] only.
    """

    def run_blocks(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> torch.Tensor:
        """Blocks start..stop-1 on given hidden states [B, T, D] -> [B, T, D]."""
        mask, is_causal = self._attention_rule(attention_mask, hidden.shape[1])
        for block in self.blocks[start:stop]:
            hidden = block(hidden, mask, is_causal)
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
        return self.finish(self.run_blocks(self.embed(input_ids, token_type_ids, positions), attention_mask))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits: [B, T, V] with a language-model head, [B, C] with a classifier.

        `lengths` [B] counts the real tokens of each text. It only tells the classifier where a text ends (position
        `flexible`); what attention sees is up to `attention_mask` alone. `token_type_ids` [B, T] (0 first text, 1 second)
        are ignored by models that know one kind of token only. With `targets` [N], places in the flat [B * T], a
        language-model head gives the logits [N, V] of those alone: a vocabulary is wide, and where few positions have a
        target, most of a pass over it would be for nothing.
        """
        hidden = self.embed(input_ids, token_type_ids, positions)
        return self.logits(hidden, attention_mask, lengths, targets=targets)

    def logits(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        start: int = 0,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Everything above the hidden states [B, T, D] that enter block `start`.

        With this seam a caller can keep the output of frozen blocks and continue from there.
        """
        if self.head is None:
            name = type(self).__name__
            raise UserError(f'this {name} has no head: use encode(), or build it with head="lm" or "classifier"')
        rows = self.head.rows(hidden, attention_mask, lengths)  # [B], or None where every position is read
        with listen(self, self.head.taps) as heard:
            if rows is None:
                hidden = self.run_blocks(hidden, attention_mask, start)
            else:
                hidden = self._run_to_rows(hidden, attention_mask, rows, start)  # [B, T, D] -> [B, 1, D]
        unheard = [tap for tap in self.head.taps if tap not in heard]
        assert not unheard, f"the head listens to {unheard}, which lies below block {start}"
        if targets is not None:
            return self.head(self.finish(hidden).flatten(0, 1)[targets], attention_mask, heard)  # [N, D] -> [N, V]
        if rows is None:
            return self.head(self.finish(hidden), attention_mask, heard)
        # [B, T, D] -> [B, D]; what the last block puts out is [B, 1, D] already
        heard = {tap: (take(x, rows) if x.shape[1] > 1 else x).squeeze(1) for tap, x in heard.items()}
        return self.head(self.finish(hidden), None, heard)  # [B, 1, D] -> [B, C]

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

    def _attention_rule(self, attention_mask: torch.Tensor | None, length: int) -> tuple[torch.Tensor | None, bool]:
        """What SDPA needs: a boolean mask (True = may attend) that broadcasts to [B, H, T, T], and its causal switch.

        Without padding to hide, the switch alone says it all and leaves SDPA free to take its fastest kernel.
        """
        if attention_mask is None:
            return None, self.config.causal
        mask = attention_mask.bool()
        mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]  # [B, 1, T, T], or [B, 1, 1, T]: keys to look at
        if self.config.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()  # [B, 1, T, T]
        return mask, False

    def _check_length(self, input_ids: torch.Tensor) -> None:
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit:
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
