"""Learning a byte-level BPE vocabulary (Sennrich et al. 2016, Algorithm 1; over bytes as in GPT-2).

Used by `pretrain.py`."""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import regex  # comes with tiktoken; the pattern needs \p{L}, which the standard library's `re` lacks

from model.tokenizer import END_OF_TEXT, GPT2_PATTERN, byte_alphabet

Pair = tuple[str, str]


def learn_merges(texts: Iterable[str], n_merges: int) -> list[Pair]:
    """The n_merges pairs of symbols to join, most frequent first; ties go to the alphabetically first pair."""
    alphabet = byte_alphabet()
    words = Counter(word for text in texts for word in regex.findall(GPT2_PATTERN, text))
    symbols = [[alphabet[byte] for byte in word.encode("utf-8")] for word in words]
    counts = list(words.values())

    pair_counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> the words that may hold it
    for i, word in enumerate(symbols):
        for pair in pairwise(word):
            pair_counts[pair] += counts[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        count, best = heapq.heappop(heap)
        if -count != pair_counts[best]:  # an outdated entry: the pair's count has changed since
            continue
        merges.append(best)
        changed: set[Pair] = set()
        for i in where.pop(best):
            changed |= _join(symbols, i, best, counts[i], pair_counts, where)
        for pair in changed - {best}:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
        pair_counts[best] = 0
    return merges


def _join(symbols, i: int, best: Pair, count: int, pair_counts, where) -> set[Pair]:
    """Joins `best` in word i and keeps the counts of the pairs around it. Returns the pairs whose count changed."""
    old = symbols[i]
    new: list[str] = []
    position = 0
    while position < len(old):
        if tuple(old[position : position + 2]) == best:
            new.append("".join(best))
            position += 2
        else:
            new.append(old[position])
            position += 1
    symbols[i] = new
    before, after = Counter(pairwise(old)), Counter(pairwise(new))
    for pair, times in before.items():
        pair_counts[pair] -= times * count
    for pair, times in after.items():
        pair_counts[pair] += times * count
        where[pair].add(i)
    return set(before) | set(after)


def save_tokenizer(merges: list[Pair], directory: Path) -> None:
    """Writes vocab.json and merges.txt in the Hugging Face layout: 256 bytes, the merges, then <|endoftext|>."""
    tokens = [*byte_alphabet().values(), *(first + second for first, second in merges), END_OF_TEXT]
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {token: rank for rank, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
