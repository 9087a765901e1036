"""Learns a vocabulary: byte-level BPE (Sennrich et al. 2016, Algorithm 1; over bytes as in GPT-2), or WordPiece.

`tools/pretrain.py` uses it; it is no program of its own.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import regex  # comes with tiktoken; the pattern needs \p{L}, which the standard library's `re` lacks

from model.tokenizers.bpe import END_OF_TEXT, byte_alphabet
from model.tokenizers.steps import GPT2_PATTERN
from model.tokenizers.wordpiece import CONTINUES, MAX_WORD, SPECIAL_TOKENS, BasicTokenizer
from utils.errors import UserError
from utils.files import write_text

Pair = tuple[str, str]


def learn_merges(texts: Iterable[str], n_merges: int) -> list[Pair]:
    """Return the n_merges pairs of symbols to join, most frequent first; ties go to the alphabetically first pair."""
    alphabet = byte_alphabet()
    words = Counter(word for text in texts for word in regex.findall(GPT2_PATTERN, text))
    symbols = [[alphabet[byte] for byte in word.encode("utf-8")] for word in words]
    return list(islice(frequent_pairs(symbols, list(words.values()), "".join), n_merges))


def learn_vocabulary(texts: Iterable[str], size: int, lower_case: bool = True) -> list[str]:
    """Return the tokens of a WordPiece vocabulary: special ones, characters, then what joining frequent pairs makes.

    Pairs are joined as in BPE, by their frequency. The other choice, freq(ab) / (freq(a) freq(b)), is highest for
    characters that occur once and together, and would spend a small vocabulary on those.
    At most a quarter of `size` goes to characters, the frequent ones. Words with others are left out: they become [UNK].
    Fewer tokens than `size` come back where the texts have no more pairs. Raises UserError for a size without room.
    """
    if size <= len(SPECIAL_TOKENS):
        raise UserError(f"a vocabulary of {size} has no room: {len(SPECIAL_TOKENS)} tokens are special ones")
    basic = BasicTokenizer(lower_case)
    words = Counter(word for text in texts for word in basic.words(text) if len(word) <= MAX_WORD)
    occurrences: Counter[str] = Counter()
    for word, count in words.items():
        for symbol in _characters(word):
            occurrences[symbol] += count
    by_frequency = sorted(occurrences, key=lambda symbol: (-occurrences[symbol], symbol))
    characters = set(by_frequency[: size // 4])
    symbols, counts = [], []
    for word, count in words.items():
        if characters.issuperset(split := _characters(word)):
            symbols.append(split)
            counts.append(count)

    tokens = dict.fromkeys([*SPECIAL_TOKENS, *sorted(characters)])  # in order, each once
    for first, second in frequent_pairs(symbols, counts, _join_pieces):
        if len(tokens) >= size:
            break
        tokens[_join_pieces((first, second))] = None
    return list(tokens)


def _characters(word: str) -> list[str]:
    """Return a word's characters, each but the first marked as one that continues it."""
    return [word[0], *(CONTINUES + character for character in word[1:])]


def _join_pieces(pair: Pair) -> str:
    """Return what two WordPiece tokens make together."""
    return pair[0] + pair[1].removeprefix(CONTINUES)


def frequent_pairs(symbols: list[list[str]], counts: list[int], join: Callable[[Pair], str]) -> Iterator[Pair]:
    """Yield the most frequent pair of neighbours; then, after it has been joined everywhere, the next one; and so on.

    symbols   the symbols of each word; joined in place
    counts    how often each word occurs
    """
    pair_counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> the words that may hold it
    for i, word in enumerate(symbols):
        for pair in pairwise(word):
            pair_counts[pair] += counts[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    while heap:
        count, best = heapq.heappop(heap)
        if -count != pair_counts[best]:  # an outdated entry: the pair's count has changed since
            continue
        yield best
        changed: set[Pair] = set()
        for i in where.pop(best):
            changed |= _join(symbols, i, best, join(best), counts[i], pair_counts, where)
        for pair in changed - {best}:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
        pair_counts[best] = 0


def _join(symbols, i: int, best: Pair, joined: str, count: int, pair_counts, where) -> set[Pair]:
    """Join `best` in word i, and correct the counts of the pairs around it. Return the pairs whose count changed."""
    old = symbols[i]
    new: list[str] = []
    position = 0
    while position < len(old):
        if tuple(old[position : position + 2]) == best:
            new.append(joined)
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
    """Write vocab.json and merges.txt in the Hugging Face layout: 256 bytes, the merges, then <|endoftext|>."""
    tokens = [*byte_alphabet().values(), *(first + second for first, second in merges), END_OF_TEXT]
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {token: rank for rank, token in enumerate(tokens)}
    write_text(directory / "vocab.json", json.dumps(vocab, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    write_text(directory / "merges.txt", "\n".join(lines) + "\n")


def save_vocabulary(tokens: list[str], directory: Path, lower_case: bool = True) -> None:
    """Write vocab.txt, and tokenizer_config.json with what a list of tokens can't tell."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "tokenizer_config.json", json.dumps({"do_lower_case": lower_case}) + "\n")
    write_text(directory / "vocab.txt", "\n".join(tokens) + "\n")
