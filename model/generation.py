"""How a language model continues a text: one token at a time, each put behind the text before the next is computed.

`stream` yields the tokens as they come, `generate` collects them. The rule at the end of the context: a text and what is
added to it never take more than the model's context. A text that leaves no room is an error, one that reaches the limit
on the way ends there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from model import kv_cache
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


@torch.no_grad()
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
    attention_mask  [B, T], 1 = real and 0 = padding; None: everything is real
    eos_id          the token that ends a text, or several
    seed            of the draws, where temperature isn't 0
    max_length      the most tokens of a text and what follows it; None: the model's context
    cache           of one text, of an earlier call: where this text begins as that one did, nothing is computed again
    sampling        fields of `Sampling`

    What a text gets doesn't depend on how much padding it has.
    """
    limit = min(model.config.context_length, max_length or model.config.context_length)
    how, mask = Sampling(**sampling), _checked_mask(model, input_ids, attention_mask, limit)
    known = cache.reuse(input_ids) if cache is not None else 0  # tokens at the beginning
    cache = kv_cache.KVCache(model) if cache is None else cache
    generator = torch.Generator(input_ids.device).manual_seed(seed)
    is_padded = not bool(mask.all())
    lengths, positions = mask.sum(1), (mask.cumsum(1) - 1).clamp(min=0)  # [B], [B, T]: 0 is the first real token
    seen = torch.zeros(len(mask), model.config.vocab_size, device=mask.device).scatter_add_(1, input_ids, mask.float())
    ended = torch.zeros_like(lengths, dtype=torch.bool)  # [B]
    ends = torch.tensor([] if eos_id is None else eos_id, dtype=torch.long, device=mask.device)
    input_ids, positions = input_ids[:, known:], positions[:, known:]
    with evaluating(model):
        for _ in range(how.max_new_tokens):
            logits = kv_cache.next_logits(model, input_ids, mask if is_padded else None, positions, cache)  # [B, V]
            logits = without_invalid(logits.float(), getattr(model.config, "token_where_invalid", None))
            tokens = pick(scores(logits, seen > 0, how), how.temperature, generator)  # [B]
            ended = ended | torch.isin(tokens, ends)
            if ended.all():
                return
            yield tokens.masked_fill(ended, NOTHING)
            positions = lengths.clamp(max=limit - 1)[:, None]  # [B, 1]; those at the limit have ended
            lengths = lengths + 1
            ended = ended | (lengths >= limit)
            if ended.all():
                return
            input_ids, mask = tokens[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)  # [B, 1], [B, S + 1]
            seen.scatter_add_(1, input_ids, torch.ones_like(input_ids, dtype=seen.dtype))


def without_invalid(logits: torch.Tensor, token: int | None) -> torch.Tensor:
    """Return the logits [B, V], or, where any of them isn't finite, others by which every text gets `token`.

    That is the rule of ChatGLM's published code; other models (None) have none.
    """
    if token is None or bool(logits.isfinite().all()):
        return logits
    logits = torch.zeros_like(logits)
    logits[:, token] = 5e4
    return logits


def scores(logits: torch.Tensor, seen: torch.Tensor, how: Sampling) -> torch.Tensor:
    """Return the scores [B, V] by which a token is chosen; -inf rules one out. `seen` [B, V]: tokens of the text so far."""
    if how.repetition_penalty != 1:
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
