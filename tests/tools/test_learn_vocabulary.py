"""Learned vocabularies equal those of the algorithms as their papers print them."""

from collections import Counter
from itertools import pairwise

import pytest
import regex

from model.tokenizers.bpe import byte_alphabet
from model.tokenizers.steps import GPT2_PATTERN
from model.tokenizers.wordpiece import MAX_WORD, SPECIAL_TOKENS, BasicTokenizer
from tests.helpers.texts import ODD_TEXTS, SENTENCES, TEXTS
from tools.learn_vocabulary import learn_merges, learn_vocabulary
from utils.errors import UserError


def naive_merges(texts: list[str], n_merges: int) -> list[tuple[str, str]]:
    """Algorithm 1 as the paper prints it: count every pair anew in each round."""
    alphabet = byte_alphabet()
    words = Counter(
        tuple(alphabet[byte] for byte in word.encode()) for text in texts for word in regex.findall(GPT2_PATTERN, text)
    )
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        joined = Counter()
        for word, times in words.items():
            symbols, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                symbols.append("".join(word[i : i + step]))
                i += step
            joined[tuple(symbols)] += times
        words = joined
    return merges


@pytest.mark.parametrize("n_merges", [0, 1, 7, 25, 10_000])
def test_learned_merges_equal_the_naive_algorithm(n_merges):
    merges = learn_merges(TEXTS, n_merges)
    assert merges == naive_merges(TEXTS, n_merges)
    assert len(merges) == n_merges or n_merges == 10_000
    assert len({first + second for first, second in merges}) == len(merges)  # no token twice, so that ids are unique


def test_learned_merges_equal_the_naive_algorithm_on_messages(shared):
    texts = (shared / "data/sms_spam/SMSSpamCollection").read_text(encoding="utf-8").splitlines()[:150]
    assert learn_merges(texts, 120) == naive_merges(texts, 120)


def naive_vocabulary(texts: list[str], size: int) -> list[str]:
    """Counts every pair anew in each round."""
    words = Counter(word for text in texts for word in BasicTokenizer().words(text) if len(word) <= MAX_WORD)
    words = Counter({(word[0], *("##" + c for c in word[1:])): count for word, count in words.items()})
    counts = Counter()
    for word, times in words.items():
        counts.update({symbol: times * k for symbol, k in Counter(word).items()})
    characters = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[: size // 4]
    words = {word: times for word, times in words.items() if set(word) <= set(characters)}
    tokens = [*SPECIAL_TOKENS, *sorted(characters)]
    while len(tokens) < size:
        pairs = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        joined = best[0] + best[1][2:]
        tokens += [joined] if joined not in tokens else []
        rewritten = Counter()
        for word, times in words.items():
            symbols, i = [], 0
            while i < len(word):
                both = word[i : i + 2] == best
                symbols.append(joined if both else word[i])
                i += 2 if both else 1
            rewritten[tuple(symbols)] += times
        words = rewritten
    return tokens


@pytest.mark.parametrize("size", [6, 40, 120, 200, 2000])
def test_learned_vocabulary_equals_the_naive_algorithm(size):
    texts = [*SENTENCES, *ODD_TEXTS, "aaaa aaa aa aaaaaaa", "y" * (MAX_WORD + 1)]
    tokens = learn_vocabulary(texts, size)
    assert tokens == naive_vocabulary(texts, size)
    assert tokens[:5] == list(SPECIAL_TOKENS)
    assert len(set(tokens)) == len(tokens) <= size


def test_learning_reads_any_order_of_texts_alike():
    assert learn_vocabulary(SENTENCES, 100) == learn_vocabulary(reversed(SENTENCES), 100)


def test_no_room_for_anything_learned():
    with pytest.raises(UserError, match="a vocabulary of 5 has no room"):
        learn_vocabulary(SENTENCES, 5)
