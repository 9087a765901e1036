"""The keys and values of a text so far, so that its next token is computed alone.

Letters used for shapes: B batch, T tokens, S positions held, D width, K heads of keys, d = D/H, V vocabulary, P a prompt.
"""

import torch

from model.chatglm import Block as ChatGLMBlock
from model.fast_path import run_block
from model.transformer import Transformer, causal_mask
from utils.errors import UserError

SPARE = 128  # positions that a layer gets room for at a time, beyond those that it holds


class LayerCache:
    """The keys and values that one attention layer has computed so far, [B, K, S, d] each.

    They stand at the beginning of tensors with room for more, so that those of a new token are written behind them and
    nothing is copied.
    """

    def __init__(self):
        self.n_positions = 0  # S
        self.room: torch.Tensor | None = None  # [2, B, K, S + room, d], keys and values

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add those of T further positions and return all, [B, K, S + T, d]."""
        before, self.n_positions = self.n_positions, self.n_positions + k.shape[2]
        if self.room is None or self.room.shape[3] < self.n_positions:
            held, batch, heads, _, width = self.room, *k.shape
            self.room = k.new_empty(2, batch, heads, self.n_positions + SPARE, width)
            if held is not None:
                self.room[:, :, :, :before] = held[:, :, :, :before]
        self.room[0, :, :, before : self.n_positions] = k
        self.room[1, :, :, before : self.n_positions] = v
        k, v = self.room[:, :, :, : self.n_positions]
        return k, v

    def keep(self, n: int) -> None:
        """Drop all but the first n positions."""
        self.n_positions = min(n, self.n_positions)
        self.room = self.room if n else None  # the next text may be another batch

    def select(self, rows: torch.Tensor) -> None:
        """Keep these texts of the batch alone."""
        self.room = None if self.room is None else self.room[:, rows]


class KVCache:
    """What a causal model needs to go on from a text without computing it again: keys and values of each block.

    It belongs to the caller. A call of `next_logits` with it adds the positions of that call. A later text that begins
    alike can go on from there, see `reuse`.
    """

    def __init__(self, model: Transformer):
        if not model.config.causal:
            raise UserError("a model whose positions see all others can't go on from a text: each token changes the rest")
        self.model = model
        self.layers = [LayerCache() for _ in model.blocks]
        self.tokens: list[torch.Tensor] = []  # [B, T] of each call so far
        self.last_places: torch.Tensor | None = None  # the position of each text's last token, [B or 1, ..., 1]

    def __len__(self) -> int:
        """Return how many positions it holds, S."""
        return self.layers[0].n_positions

    def reuse(self, ids: torch.Tensor) -> int:
        """Keep of what it holds only how a text [1, T] begins, too; return how many of its tokens that covers.

        The last token is never among them: its scores are still to be computed. Of a model in which later tokens change
        the states of earlier ones nothing can be kept.
        """
        held = torch.cat(self.tokens, dim=1) if self.tokens else ids[:, :0]  # [1, S]
        n = min(held.shape[1], ids.shape[1] - 1) if self.model.states_stay else 0
        differs = (held[0, :n] != ids[0, :n]).nonzero()  # [D, 1]
        n = int(differs[0]) if len(differs) else n
        for layer in self.layers:
            layer.keep(n and n + (0 if self.model.prompt is None else len(self.model.prompt.weight)))
        self.tokens = [held[:, :n]]
        return n

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these texts of the batch alone; `rows` are their numbers."""
        for layer in self.layers:
            layer.select(rows)
        self.tokens = [torch.cat(self.tokens, dim=1)[rows]]
        if self.last_places is not None and len(self.last_places) > 1:
            self.last_places = self.last_places[rows]


def next_logits(
    model: Transformer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    positions: torch.Tensor | None,
    cache: KVCache,
) -> torch.Tensor:
    """Return a language model's scores for the token after the last position: [B, T] -> [B, V].

    attention_mask  [B, S + T], the S positions in the cache included; None: everything is real
    positions       [B, T], the place of each token in its text; shorter texts of the batch are padded on the left. None:
                    0, 1, 2, ..., right for the first call alone
    """
    hidden, n_cached = model.embed(input_ids, positions=positions), len(cache)  # [B, T, D]
    if n_cached:
        places = model.places_behind(cache.last_places, positions)
    else:
        attention_mask, places = model.layout(input_ids, attention_mask, positions)
    if places is None:
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]  # [1, T]
    cache.last_places = places[..., -1:]
    cache.tokens.append(input_ids)
    if model.prompt is not None:  # it stands in front of every text, and in the cache from the first call on
        attention_mask = model.prompt.widen(attention_mask)
        if not n_cached:
            hidden, places = model.prompt.prepend(hidden), model.prompt.widen_positions(places)  # [B, P + T, D]
    mask, is_causal = mask_of_call(attention_mask, hidden.shape[1], n_cached, hidden.device)
    rotation = model.rotation(places)
    *earlier, last = zip(model.blocks, cache.layers, strict=True)
    for block, layer in earlier:
        hidden = run_block(block, hidden, mask, cache=layer, is_causal=is_causal, rotation=rotation)  # [B, T, D]
    rows = None
    if hidden.shape[1] > 1 and not isinstance(last[0], ChatGLMBlock):  # of the last block only the last position is read
        rows = torch.full_like(input_ids[:, 0], hidden.shape[1] - 1)  # [B]
        mask, is_causal = None if mask is None else mask[..., -1:, :], False  # it sees all that isn't padding
    hidden = run_block(last[0], hidden, mask, rows, last[1], is_causal, rotation)  # [B, T or 1, D]
    return model.head(model.final_norm(hidden[:, -1:])).squeeze(1)  # [B, 1, V] -> [B, V]


def mask_of_call(
    attention_mask: torch.Tensor | None, length: int, n_cached: int, device: torch.device
) -> tuple[torch.Tensor | None, bool]:
    """Return the mask of T = `length` positions behind S others, [B, 1, T, S + T] or None, and the causal switch.

    attention_mask   [B, S + T], or [B, T, T], which says all by itself
    """
    if attention_mask is not None and attention_mask.ndim == 3:
        return attention_mask.bool()[:, None], False
    if attention_mask is not None:
        real = attention_mask.bool()[:, None, None, :]  # [B, 1, 1, S + T]
        return real if length == 1 else real & causal_mask(length, n_cached, device), False
    if n_cached and length > 1:
        return causal_mask(length, n_cached, device), False
    return None, not n_cached  # SDPA's own switch counts from the first key, so it serves the first call alone
