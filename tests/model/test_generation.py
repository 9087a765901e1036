"""Generation: with a cache as without, batched as one by one, and as the reference library's `generate`."""

import itertools

import pytest
import torch

from model import kv_cache
from model.bert import Bert, BertConfig
from model.generation import NOTHING, Sampling, generate, left_padded, pick, scores, stream
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead, LanguageModelHead, MaskedLanguageModelHead
from model.registry import ARCHITECTURES
from peft import LoRA, PrefixTuning, PromptTuning, attach
from tests.helpers.architectures import small_config
from tests.helpers.generation import plainly, texts
from utils.errors import UserError

VOCAB, CONTEXT = 500, 64  # of `reference`
SAMPLED = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}


def one_by_one(model, batch: list[list[int]], **settings) -> list[list[int]]:
    return [generate(model, torch.tensor([text]), **settings)[0] for text in batch]


# --- the cache


def test_a_cache_changes_no_score(pair):
    ours = pair[1]
    ids = torch.tensor(texts(20, 20))
    with torch.no_grad():
        expected = ours(ids)
        for cuts in ([0, 20], [0, 1, 2, 20], [0, 7, 8, 15, 20], range(21)):  # several tokens at a time, or one
            cache = kv_cache.KVCache(ours)
            for start, stop in itertools.pairwise(cuts):
                assert len(cache) == start
                positions = torch.arange(start, stop)[None]
                found = kv_cache.next_logits(ours, ids[:, start:stop], None, positions, cache)
                torch.testing.assert_close(found, expected[:, stop - 1], atol=1e-5, rtol=1e-5)


def test_a_cache_and_padding_change_no_score(pair):
    ours = pair[1]
    batch = texts(20, 13, 6)
    ids, mask = left_padded(batch, pad_id=3)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = kv_cache.KVCache(ours)
    with torch.no_grad():
        for start, stop in ((0, 16), (16, 17), (17, 20)):
            found = kv_cache.next_logits(ours, ids[:, start:stop], mask[:, :stop], positions[:, start:stop], cache)
        for row, text in enumerate(batch):
            torch.testing.assert_close(found[row], ours(torch.tensor([text]))[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "mistral"])
@pytest.mark.parametrize("method", [None, LoRA(rank=2), PrefixTuning(3), PromptTuning(3)], ids=str)
def test_a_text_goes_on_from_one_that_begins_alike(kind, method, monkeypatch):
    """As a dialogue does: answers are those of a fresh start, and what is known isn't computed again."""
    torch.manual_seed(5)
    entry, config = ARCHITECTURES[kind], small_config(kind, context_length=64)
    model = entry.model(config)
    model.head = entry.lm_head(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = attach(model, method) if method else model
    cache, computed = kv_cache.KVCache(model), []
    next_logits = kv_cache.next_logits
    monkeypatch.setattr(kv_cache, "next_logits", lambda *given: computed.append(given[1].shape[1]) or next_logits(*given))
    text: list[int] = []
    draw = torch.Generator().manual_seed(6)
    for turn, kept in enumerate((0, 9 + 3, 2 * (9 + 4) + 3 - 4, 3)):
        new = torch.randint(1, config.vocab_size, (9,), generator=draw).tolist()
        text = [*text[: None if turn < 2 else kept], *new]  # the third forgets a part of the end, the fourth nearly all
        ids = torch.tensor([text])
        computed.clear()
        answer = generate(model, ids, max_new_tokens=4, cache=cache)[0]
        assert computed[0] == len(text) - kept and computed[1:] == [1] * 3
        assert answer == generate(model, ids, max_new_tokens=4)[0]
        text += answer


def test_a_text_that_is_known_whole_has_its_last_token_computed(pair):
    cache, ids = kv_cache.KVCache(pair[1]), torch.tensor(texts(12))
    first = generate(pair[1], ids, max_new_tokens=5, cache=cache)
    assert generate(pair[1], ids, max_new_tokens=5, cache=cache) == first
    assert generate(pair[1], ids[:, :3], max_new_tokens=5, cache=cache) == generate(pair[1], ids[:, :3], max_new_tokens=5)


def test_cached_generation_equals_uncached_token_by_token(pair):
    ours = pair[1]
    batch = texts(9, 1, 30, 17)
    expected = [plainly(ours, text, 25) for text in batch]
    assert [len(answer) for answer in expected] == [25] * 4 and len(set(map(tuple, expected))) == 4
    assert one_by_one(ours, batch, max_new_tokens=25) == expected
    assert generate(ours, *left_padded(batch, pad_id=4), max_new_tokens=25) == expected


def test_with_a_method_attached_too(pair):
    torch.manual_seed(3)
    model = attach(GPT2(GPT2Config(VOCAB, CONTEXT, 32, 4, 3)), LoRA(rank=4, targets="all"))
    model.head = LanguageModelHead(model.token_embedding)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter)
    batch = texts(9, 4)
    expected = [plainly(model, text, 12) for text in batch]
    assert generate(model, *left_padded(batch), max_new_tokens=12) == expected


# --- against their generate


def their_answer(theirs, ids, mask, n, **settings) -> list[list[int]]:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | settings
    found = theirs.generate(ids, attention_mask=mask, max_new_tokens=n, **settings)
    return found[:, ids.shape[1] :].tolist()


def test_greedy_equals_theirs(pair):
    theirs, ours = pair
    ids, mask = left_padded(texts(9, 1, 30, 17))
    assert generate(ours, ids, mask, max_new_tokens=25) == their_answer(theirs, ids, mask, 25)


@pytest.mark.parametrize("penalty", [0.8, 1.1, 2.0])
def test_the_repetition_penalty_equals_theirs(pair, penalty):
    theirs, ours = pair
    ids = torch.tensor(texts(12, 12))  # no padding: theirs would penalise the padding token too
    found = generate(ours, ids, max_new_tokens=25, repetition_penalty=penalty)
    assert found == their_answer(theirs, ids, torch.ones_like(ids), 25, repetition_penalty=penalty)
    assert found != generate(ours, ids, max_new_tokens=25)


def test_end_of_text_equals_theirs(pair):
    theirs, ours = pair
    batch = texts(9, 1, 30, 17)
    ids, mask = left_padded(batch)
    eos_id = plainly(ours, batch[1], 6)[5]  # one text at least ends early
    found = generate(ours, ids, mask, max_new_tokens=25, eos_id=eos_id)
    expected = their_answer(theirs, ids, mask, 25, eos_token_id=eos_id, pad_token_id=eos_id)
    assert found == [answer[: answer.index(eos_id)] if eos_id in answer else answer for answer in expected]
    assert len(found[1]) <= 5 and max(map(len, found)) > 5
    assert found == one_by_one(ours, batch, max_new_tokens=25, eos_id=eos_id)


@pytest.mark.parametrize("top_k", [0, 1, 5, 10_000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_distribution_that_is_drawn_from_equals_theirs(top_k, top_p, temperature):
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits, ids = torch.randn(6, VOCAB) * 3, torch.randint(VOCAB, (6, 40))
    processors = [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(processors)(ids, logits).softmax(-1)
    seen = torch.zeros(6, VOCAB, dtype=torch.bool).scatter(1, ids, True)
    found = scores(logits, seen, Sampling(1, temperature, top_k, top_p, 1.3)).softmax(-1)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected)


# --- sampling


def test_the_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).repeat(20_000, 1)
    drawn = pick(logits, 1.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.015, rtol=0)
    assert shares[3] == 0


def test_the_seed_makes_the_draws(pair):
    ids = torch.tensor(texts(9, 9))
    before = torch.get_rng_state()
    first, again, other = (generate(pair[1], ids, max_new_tokens=20, seed=seed, **SAMPLED) for seed in (1, 1, 2))
    assert first == again != other and first != generate(pair[1], ids, max_new_tokens=20)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


def test_one_likeliest_token_is_greedy(pair):
    ids = torch.tensor(texts(9))
    greedy = generate(pair[1], ids, max_new_tokens=20)
    assert generate(pair[1], ids, max_new_tokens=20, temperature=3, top_k=1) == greedy
    assert generate(pair[1], ids, max_new_tokens=20, temperature=3, top_p=1e-9) == greedy


def test_padding_and_what_stands_in_it_changes_no_draw(pair):
    text = texts(9)[0]
    for pad_id in (0, 5):
        ids, mask = torch.tensor([[pad_id] * 4 + text]), torch.tensor([[0] * 4 + [1] * 9])
        found = generate(pair[1], ids, mask, max_new_tokens=20, **SAMPLED)
        assert found == generate(pair[1], torch.tensor([text]), max_new_tokens=20, **SAMPLED)


# --- the stream, the end of the context, and what is refused


def test_the_stream_is_the_answer_token_by_token(pair):
    batch = texts(9, 1, 30, 17)
    ids, mask = left_padded(batch)
    eos_id = plainly(pair[1], batch[1], 6)[5]
    steps = torch.stack([*stream(pair[1], ids, mask, max_new_tokens=25, eos_id=eos_id)]).T.tolist()  # [B, steps]
    answers = generate(pair[1], ids, mask, max_new_tokens=25, eos_id=eos_id)
    assert [answer + [NOTHING] * (len(steps[0]) - len(answer)) for answer in answers] == steps


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_texts_that_have_ended_leave_the_batch(penalty, pair, monkeypatch):
    """When half of it has; the answers are those of each text alone."""
    batch = texts(9, 1, 30, 17, 12)
    free = [generate(pair[1], torch.tensor([text]), max_new_tokens=20, repetition_penalty=penalty)[0] for text in batch]
    ends = [free[0][2], free[2][5], free[3][9]]
    alone = one_by_one(pair[1], batch, max_new_tokens=20, eos_id=ends, repetition_penalty=penalty)
    sizes, next_logits = [], kv_cache.next_logits
    monkeypatch.setattr(kv_cache, "next_logits", lambda *given: sizes.append(len(given[1])) or next_logits(*given))
    how = {"max_new_tokens": 20, "eos_id": ends, "repetition_penalty": penalty}
    assert generate(pair[1], *left_padded(batch), **how) == alone
    left = [sum(len(answer) >= n for answer in alone) for n in range(len(sizes))]  # that go on after n tokens
    expected = [5]
    for n_on in left[1:]:
        expected.append(n_on if 2 * n_on <= expected[-1] else expected[-1])
    assert sizes == expected and sizes[-1] < 5
    sizes.clear()
    generate(pair[1], *left_padded(batch), **how, temperature=1.0)
    assert set(sizes) == {5}  # what is drawn for a text depends on those above it


def test_keys_and_values_are_written_in_place(monkeypatch):
    """Room is made for many tokens at a time, and what stands there is moved into it."""
    monkeypatch.setattr(kv_cache, "SPARE", 4)
    layer, rooms, draw = kv_cache.LayerCache(), [], torch.Generator().manual_seed(1)
    k, v = torch.randn(2, 2, 3, 20, 5, generator=draw)  # [B, K, S, d]
    for start, stop in itertools.pairwise([0, 7, *range(8, 21)]):
        held = layer.extend(k[:, :, start:stop], v[:, :, start:stop])
        assert torch.equal(held[0], k[:, :, :stop]) and torch.equal(held[1], v[:, :, :stop])
        rooms += [] if rooms and rooms[-1] is layer.room else [layer.room]
    assert [room.shape[3] for room in rooms] == [7 + 4, 12 + 4, 17 + 4]
    layer.select(torch.tensor([1]))
    layer.keep(15)
    held = layer.extend(k[1:, :, :2], v[1:, :, :2])
    assert torch.equal(held[1], torch.cat([v[1:, :, :15], v[1:, :, :2]], dim=2))


def test_nothing_is_computed_after_the_last_text_has_ended(pair, monkeypatch):
    calls, next_logits = [], kv_cache.next_logits
    monkeypatch.setattr(kv_cache, "next_logits", lambda *given: calls.append(given[1].shape) or next_logits(*given))
    text = texts(9)[0]
    eos_id = plainly(pair[1], text, 8)[7]
    n = len(plainly(pair[1], text, 8, eos_id))
    assert len(generate(pair[1], torch.tensor([text]), max_new_tokens=50, eos_id=eos_id)[0]) == n
    assert calls == [(1, 9)] + [(1, 1)] * n  # the prompt once, then a token at a time


def test_the_context_is_filled_and_not_exceeded(pair):
    batch = texts(CONTEXT - 1, 40, CONTEXT - 5)
    expected = [plainly(pair[1], text, 100) for text in batch]
    assert [len(text) + len(answer) for text, answer in zip(batch, expected, strict=True)] == [CONTEXT] * 3
    assert generate(pair[1], *left_padded(batch), max_new_tokens=100) == expected
    with pytest.raises(UserError, match=r"a prompt of 64 tokens leaves no room .* context of 64 tokens"):
        generate(pair[1], torch.tensor(texts(CONTEXT)))


def test_the_mode_of_the_model_stays_and_dropout_is_off(pair):
    model = GPT2(GPT2Config(VOCAB, CONTEXT, 32, 4, 2, dropout=0.5)).train()
    model.head = LanguageModelHead(model.token_embedding)
    ids = torch.tensor(texts(9))
    assert generate(model, ids, max_new_tokens=9) == generate(model, ids, max_new_tokens=9)
    assert model.training
    next(stream(model, ids))  # given up after one token
    assert model.training


BAD = {
    "max_new_tokens": (0, "--max_new_tokens is 0; it must be at least 1"),
    "temperature": (-0.1, "--temperature is -0.1; it must be 0"),
    "top_k": (-1, "--top_k is -1; it must be 0"),
    "top_p": (1.5, "--top_p is 1.5; it must be above 0 and at most 1"),
    "repetition_penalty": (0, "--repetition_penalty is 0; it must be from 0.01 to 100"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_range(pair, name):
    value, said = BAD[name]
    with pytest.raises(UserError, match=said):
        generate(pair[1], torch.tensor(texts(3)), **{name: value})
    with pytest.raises(UserError, match=f"--{name} is nan" if isinstance(value, float) else said):
        Sampling(**{name: float("nan") if isinstance(value, float) else value})


@pytest.mark.parametrize("temperature, penalty", [(0.01, 0.01), (0.01, 100), (100, 0.01), (100, 100)])
def test_at_the_limits_there_is_something_to_draw_from(temperature, penalty):
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    found = scores(logits, torch.tensor([[True, True, False]]), Sampling(1, temperature, repetition_penalty=penalty))
    assert found.softmax(-1).isfinite().all()
    for beyond in ({"temperature": 1e-40}, {"repetition_penalty": 1e-300}):  # 32 bits have no such numbers
        with pytest.raises(UserError, match="it must be"):
            Sampling(**beyond)


def test_what_cannot_generate():
    config = GPT2Config(VOCAB, CONTEXT, 32, 4, 2)
    ids = torch.tensor(texts(5))
    with pytest.raises(UserError, match="needs a language model"):
        generate(GPT2(config, ClassifierHead(32, 2)), ids)
    encoder = Bert(BertConfig(VOCAB, CONTEXT, 32, 4, 2, 64))
    encoder.head = MaskedLanguageModelHead(encoder.token_embedding, 1e-12)
    with pytest.raises(UserError, match="positions see all others"):
        generate(encoder, ids)
    model = GPT2(config)
    model.head = LanguageModelHead(model.token_embedding)
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(model, ids[:, :0])
    with pytest.raises(UserError, match="padding on the left"):
        generate(model, ids, torch.tensor([[1, 1, 1, 0, 0]]))
