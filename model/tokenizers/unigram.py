"""The unigram tokenizer of SentencePiece: of all ways to cut a text into pieces, take the most probable one.

Kudo (2018), "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates",
arXiv:1804.10959. Each piece has a probability of its own, as if it stood in a text independently of its neighbours. So the
probability of a cut is the product of its pieces', and its logarithm the sum of their scores. How the pieces are learned is
section 3.2 there; here they come from a file.

A text goes through three steps:
1. `normalize`: characters that look or mean alike become one ("Ａ" -> "A", "ﬁ" -> "fi"), spaces become "▁";
2. `segment`: the best way to cut it, found by dynamic programming (Viterbi 1967);
3. a character that is in no piece becomes its bytes, for which there are 256 pieces.
"""

import math
import re
from array import array
from collections.abc import Iterator
from itertools import groupby

from model.tokenizers.bpe import valid
from model.tokenizers.unigram_file import BYTE, BYTE_PIECES, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, UnigramModel

# How SentencePiece scores what has no score of its own.
UNKNOWN_PENALTY = 10.0  # an unknown character: the lowest score less this
USER_DEFINED_BONUS = 0.1  # a user's piece: this for each of its bytes but the first
UNKNOWN_TEXT = " ⁇ "  # what an unknown piece is written as
SPACES = re.compile(" +")
NOT_UTF8 = re.compile("[\ud800-\udfff]")


class Unigram:
    """Turns texts into the ids of pieces, and back."""

    def __init__(self, model: UnigramModel):
        self.pieces = model.pieces
        found = [piece for piece in self.pieces if piece.kind in (NORMAL, USER_DEFINED)]
        texts = {piece.text for piece in found}
        self._ids = {piece.text: number for number, piece in enumerate(self.pieces) if piece.text in texts}
        self._byte_ids = [0] * 256
        for number, piece in enumerate(self.pieces):
            if piece.kind == BYTE:
                self._byte_ids[BYTE_PIECES.index(piece.text)] = number
        normal = [piece.score for piece in found if piece.kind == NORMAL]
        self._unknown_score = rounded(min(normal) - UNKNOWN_PENALTY)
        # The score of each piece, and -infinity for each beginning of a piece that is none itself.
        self._scores: dict[str, float] = {}
        for piece in found:
            for length in range(1, len(piece.text)):
                self._scores.setdefault(piece.text[:length], -math.inf)
            bonus = rounded(USER_DEFINED_BONUS * (len(piece.text.encode()) - 1))
            self._scores[piece.text] = bonus if piece.kind == USER_DEFINED else piece.score
        # A piece that a user defined is kept as it is, whatever the map says: it is its own replacement.
        own = tuple(piece.text for piece in found if piece.kind == USER_DEFINED)
        kept = {text: new for text, new in model.replacements.items() if not text.startswith(own)}
        self._replacements = kept | {text: text for text in own}
        self._lengths = lengths_by_first(self._replacements)
        self._stops = stops(kept, own)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's pieces."""
        ids: list[int] = []
        for piece in self.segment(self.normalize(text)):
            number = self._ids.get(piece)
            ids += [self._byte_ids[byte] for byte in piece.encode()] if number is None else [number]
        return ids

    def normalize(self, text: str) -> str:
        """Return the text with replacements made, "▁" in front, one "▁" for spaces in a row, and none at the end."""
        chunks: list[str] = []
        after_space = True  # the space in front is put there below
        for chunk in self._replaced(valid(text)):
            if after_space:
                chunk = chunk.lstrip(" ")
            if chunk:
                chunks.append(chunk)
                after_space = chunk.endswith(" ")
        return (SPACE + "".join(chunks).replace(" ", SPACE)).rstrip(SPACE)

    def _replaced(self, text: str) -> Iterator[str]:
        """Yield the parts of a text: replacements, and between them what stays, with one space for several.

        At each place the longest text of the map counts.
        """
        done = at = 0
        while stop := self._stops.search(text, at):
            start = at = stop.start()
            for length in self._lengths.get(text[start], ()):
                new = self._replacements.get(text[start : start + length])
                if new is not None:
                    yield SPACES.sub(" ", text[done:start])
                    yield new
                    done = at = start + length
                    break
            else:
                at += 1
        yield SPACES.sub(" ", text[done:])

    def segment(self, text: str) -> list[str]:
        """Return the pieces of the best way to cut a normalized text, and unknown characters each alone.

        best[i] is the score of the best way to cut the first i characters, and begin[i] where the last piece of that way
        begins. Of two ways that are equally good, the one whose last piece is longer counts.
        """
        scores, n = self._scores, len(text)
        # 32 bits, as SentencePiece keeps them: rounding decides between ways that are almost equally good.
        best = array("f", [-math.inf]) * (n + 1)
        best[0] = 0.0
        begin = [0] * (n + 1)
        for start in range(n):
            so_far = best[start]
            for end in range(start + 1, n + 1):
                score = scores.get(text[start:end])
                if score is None:  # no piece begins like this
                    break
                if so_far + score > best[end]:
                    before = best[end]
                    best[end] = so_far + score  # rounded to 32 bits here
                    if best[end] > before:
                        begin[end] = start
            if text[start] not in self._ids and rounded(so_far + self._unknown_score) > best[start + 1]:
                best[start + 1] = so_far + self._unknown_score
                begin[start + 1] = start
        pieces, end = [], n
        while end > 0:
            pieces.append(text[begin[end] : end])
            end = begin[end]
        return pieces[::-1]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids. Control pieces, and ids that no piece has, are left out.

        Bytes that are no UTF-8 are each written as U+FFFD. The first "▁" of the text, which `normalize` put there, is
        left out.
        """
        text = ""
        pieces = (self.pieces[number] for number in ids if 0 <= number < len(self.pieces))
        for kind, group in groupby(pieces, key=lambda piece: piece.kind):
            if kind == BYTE:
                text += decode_bytes(bytes(BYTE_PIECES.index(piece.text) for piece in group))
                continue
            for piece in group:
                if kind == UNKNOWN:
                    text += UNKNOWN_TEXT
                elif kind != CONTROL:
                    text += (piece.text if text else piece.text.removeprefix(SPACE)).replace(SPACE, " ")
        return text


def rounded(number: float) -> float:
    """Return the float of 32 bits that is nearest to a number."""
    return array("f", [number])[0]


def lengths_by_first(texts: dict[str, str]) -> dict[str, list[int]]:
    """Return the lengths of the texts that begin with each character, the longest first."""
    lengths: dict[str, set[int]] = {}
    for text in texts:
        lengths.setdefault(text[0], set()).add(len(text))
    return {first: sorted(some, reverse=True) for first, some in lengths.items()}


def stops(replacements: dict[str, str], own: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of the places in a text at which something may have to be replaced, so that most are passed fast.

    These are: a character that is replaced by itself, two with which a longer text may begin, and a user's piece.
    """
    single = {text for text in replacements if len(text) == 1}
    first, second = ({text[i] for text in replacements if len(text) > 1} for i in (0, 1))
    patterns = [one_of(single), f"{one_of(first)}(?={one_of(second)})", *map(re.escape, own)]
    return re.compile("|".join(patterns))


def one_of(characters: set[str]) -> str:
    """Return a pattern of one character out of some, and of nothing that exists where there are none."""
    return f"[{''.join(map(re.escape, sorted(characters)))}]" if characters else "(?!)"


def decode_bytes(content: bytes) -> str:
    """Return UTF-8 as text, with U+FFFD for each byte that isn't."""
    return NOT_UTF8.sub("\ufffd", content.decode("utf-8", "surrogateescape"))
