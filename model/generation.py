"""How a language model continues a text: one token at a time, each put behind the text before the next is computed.

`stream` yields the tokens as they come, `generate` collects them. The rule at the end of the context: a text and what is
added to it never take more than the model's context. A text that leaves no room is an error, one that reaches the limit
on the way ends there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from model import kv_cache
from model.products import fast_products
from model.transformer import Transformer, evaluating
from utils.errors import UserError

NOTHING = -1  # in the place of a token, for a text that has ended


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in this order.

    repetition_penalty  scores of tokens that the text has are divided by it where positive, else multiplied (1: off)
    temperature         scores are divided by it; 0 takes the likeliest token and leaves nothing to chance
    top_k               only the k likeliest tokens (0: all)
    top_p               of those, the fewest likeliest that have this much probability together (1: all)
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        limits = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            (
                "temperature",
                self.temperature == 0 or 0.01 <= self.temperature <= 100,
                "0 (the likeliest token), or 0.01 to 100",
            ),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (all tokens)"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100; 1 is none"),
        )
        for name, fits, limit in limits:
            if not fits:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {limit}")


def generate(
    model: Transformer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    eos_id: int | Sequence[int] | None = None,
    seed: int = 0,
    max_length: int | None = None,
    **sampling,
) -> list[list[int]]:
    """Return the tokens that follow each text, without the end-of-text token; the arguments are those of `stream`."""
    answers: list[list[int]] = [[] for _ in input_ids]
    written = stream(model, input_ids, attention_mask, eos_id=eos_id, seed=seed, max_length=max_length, **sampling)
    for tokens in written:
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if token != NOTHING:
                answer.append(token)
    return answers


@torch.inference_mode()
def stream(
    model: Transformer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    eos_id: int | Sequence[int] | None = None,
    seed: int = 0,
    max_length: int | None = None,
    cache: kv_cache.KVCache | None = None,
    **sampling,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each text, [B], as long as one goes on; NOTHING for those that have ended.

    input_ids       [B, T], shorter texts padded on the left (`left_padded`)
    attention_mask  [B, T], 1 = real and 0 = padding, which changes no answer; None: everything is real
    eos_id          the token that ends a text, or several
    seed            of the draws, where temperature isn't 0
    max_length      the most tokens of a text and what follows it; None: the model's context
    cache           of one text, of an earlier call: where this text begins as that one did, nothing is computed again
    sampling        fields of `Sampling`
    """
    limit = min(model.config.context_length, max_length or model.config.context_length)
    how, mask = Sampling(**sampling), _checked_mask(model, input_ids, attention_mask, limit)
    known = cache.reuse(input_ids) if cache is not None else 0  # tokens at the beginning
    cache = kv_cache.KVCache(model) if cache is None else cache
    generator = torch.Generator(input_ids.device).manual_seed(seed)
    texts = Texts(input_ids, mask, model.config.vocab_size if how.repetition_penalty != 1 else 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, known:]  # [B, T]: 0 is the first real token
    input_ids, invalid = input_ids[:, known:], getattr(model.config, "token_where_invalid", None)
    ends = input_ids.new_tensor([] if eos_id is None else eos_id)
    may_leave = not how.temperature and invalid is None  # else what the others get depends on all texts
    products, later = fast_products(), fast_products(keep_ordered=len(mask) > 1)
    with evaluating(model):
        for _ in range(how.max_new_tokens):
            with products:
                logits = kv_cache.next_logits(model, input_ids, texts.mask, positions, cache).float()  # [B, V]
            tokens = pick(scores(without_invalid(logits, invalid), texts.seen, how), how.temperature, generator)  # [B]
            texts.ended |= torch.isin(tokens, ends)
            if texts.ended.all():
                return
            yield texts.spread(tokens)
            positions = texts.lengths.clamp(max=limit - 1)[:, None]  # [B, 1]; those at the limit have ended
            texts.add(tokens, limit)
            if texts.ended.all():
                return
            if may_leave and 2 * int(texts.ended.sum()) >= len(tokens):
                rows = texts.leave_ended()
                cache.select(rows)
                tokens, positions = tokens[rows], positions[rows]
            input_ids, products = tokens[:, None], later  # [B, 1]


class Texts:
    """The texts of a batch that go on, and those that have ended but are computed along with them.

    numbers   [B], their places in the batch
    mask      [B, S], 1 = real and 0 = padding; None: everything is real
    lengths   [B], real tokens
    ended     [B], whether nothing follows
    seen      [B, V], whether a text has a token; None where it doesn't count
    """

    def __init__(self, ids: torch.Tensor, mask: torch.Tensor, vocab_size: int):
        """`ids` and `mask` are [B, T]; `vocab_size` is V, or 0 where it doesn't count which tokens a text has."""
        self.n_texts, self.numbers = len(mask), torch.arange(len(mask), device=mask.device)
        self.mask, self.lengths = None if mask.all() else mask, mask.sum(1)
        self.ended = torch.zeros_like(self.lengths, dtype=torch.bool)
        self.seen = mask.new_zeros(len(mask), vocab_size).scatter_add_(1, ids, mask) > 0 if vocab_size else None

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the token of each text of the whole batch, NOTHING for those that have ended."""
        whole = tokens.new_full((self.n_texts,), NOTHING)
        whole[self.numbers] = tokens.masked_fill(self.ended, NOTHING)
        return whole

    def add(self, tokens: torch.Tensor, limit: int) -> None:
        """Put a token behind each text, [B]. Those with `limit` tokens end."""
        self.mask = None if self.mask is None else F.pad(self.mask, (0, 1), value=1)
        self.lengths = self.lengths + 1
        self.ended = self.ended | (self.lengths >= limit)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)

    def leave_ended(self) -> torch.Tensor:
        """Go on without the texts that have ended; return the rows of the others."""
        rows = (~self.ended).nonzero().squeeze(1)
        self.numbers, self.lengths, self.ended = self.numbers[rows], self.lengths[rows], self.ended[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        return rows


def without_invalid(logits: torch.Tensor, token: int | None) -> torch.Tensor:
    """Return the logits [B, V], or, where any of them isn't finite, others by which every text gets `token`.

    That is the rule of ChatGLM's published code; other models (None) have none.
    """
    if token is None or bool(logits.isfinite().all()):
        return logits
    logits = torch.zeros_like(logits)
    logits[:, token] = 5e4
    return logits


def scores(logits: torch.Tensor, seen: torch.Tensor | None, how: Sampling) -> torch.Tensor:
    """Return the scores [B, V] by which a token is chosen; -inf rules one out. `seen` [B, V]: tokens of the text so far."""
    if seen is not None:
        penalised = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if not how.temperature:
        return logits
    logits = logits / how.temperature
    if how.top_k:
        least = logits.topk(min(how.top_k, logits.shape[-1])).values[:, -1:]  # [B, 1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if how.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        likelier = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the probability of all likelier tokens
        out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, likelier >= how.top_p)  # the likeliest stays
        logits = logits.masked_fill(out, -torch.inf)
    return logits


def pick(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Return the chosen token of each text, [B, V] -> [B]."""
    if not temperature:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def left_padded(texts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input_ids and attention_mask [B, T] of texts, padded on the left: each ends with its last token."""
    width = max(map(len, texts))
    ids = torch.tensor([[pad_id] * (width - len(text)) + list(text) for text in texts])
    return ids, (torch.arange(width) >= width - torch.tensor([[len(text)] for text in texts])).long()


def _checked_mask(model: Transformer, input_ids: torch.Tensor, mask: torch.Tensor | None, limit: int) -> torch.Tensor:
    """Return the mask [B, T]. Raises UserError where the model can't go on with these texts, to `limit` tokens at most."""
    if getattr(model.head, "kind", None) != "lm":
        raise UserError('generation needs a language model: from_pretrained(..., head="lm")')
    if not input_ids.numel():
        raise UserError("the prompt is empty; a model needs at least one token to go on from")
    mask = torch.ones_like(input_ids) if mask is None else mask.long()
    if not mask[:, -1].all():
        raise UserError("a text of the batch ends with padding; generation needs the padding on the left")
    longest, context = int(mask.sum(1).max()), model.config.context_length
    if longest >= limit:
        within = f"the model's context of {context} tokens" if limit == context else f"{limit} tokens"
        raise UserError(f"a prompt of {longest} tokens leaves no room for an answer in {within}")
    return mask
