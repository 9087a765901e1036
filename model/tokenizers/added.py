"""Added tokens: texts that are one token wherever they stand, found before a text is cut into words.

They are found as the library `tokenizers` does. First those that are taken as they are written; what lies between them is
normalized, and in that those whose own text is normalized too. Of several that begin at one place the longest counts.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from model.tokenizers.steps import WHITE, Step, unchanged

Part = int | str  # the id of an added token, or a text between them


@dataclass(frozen=True)
class AddedToken:
    """One added token."""

    content: str
    id: int
    lstrip: bool = False  # takes the white space to its left
    rstrip: bool = False  # takes the white space to its right
    single_word: bool = False  # isn't found within a word
    normalized: bool = True  # is looked for in the normalized text
    special: bool = False


class AddedTokens:
    """Finds added tokens in a text."""

    def __init__(self, tokens: Iterable[AddedToken] = (), normalize: Step = unchanged):
        self.normalize = normalize
        written, normalized = {}, {}
        for token in sorted(tokens, key=lambda token: not token.special):  # of two that are the same, the special one
            if token.normalized:
                normalized.setdefault(normalize(token.content), token)
            else:
                written.setdefault(token.content, token)
        self._written, self._normalized = Finder(written), Finder(normalized)

    def split(self, text: str) -> list[Part]:
        """Return the text's parts in order: added tokens by their ids, and the normalized texts between them."""
        parts: list[Part] = []
        for part in self._written.split(text):
            parts += [part] if isinstance(part, int) else self._normalized.split(self.normalize(part))
        return parts

    def without(self, ids: Collection[int]) -> "AddedTokens":
        """Return the same without the tokens that have these ids: their texts aren't found."""
        left = AddedTokens((), self.normalize)
        left._written, left._normalized = self._written.without(ids), self._normalized.without(ids)
        return left


class Finder:
    """Finds some texts in another."""

    def __init__(self, tokens: dict[str, AddedToken]):
        self.tokens = {text: token for text, token in tokens.items() if text}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if self.tokens else None

    def without(self, ids: Collection[int]) -> "Finder":
        """Return the same without the tokens that have these ids."""
        return Finder({text: token for text, token in self.tokens.items() if token.id not in ids})

    def split(self, text: str) -> list[Part]:
        """Return the parts of the text, those that are found as ids."""
        if self.pattern is None:
            return [text]
        parts, done = [], 0
        for found in self.pattern.finditer(text):
            token, start, stop = self.tokens[found[0]], found.start(), found.end()
            if token.single_word and (is_word(text[start - 1 : start]) or is_word(text[stop : stop + 1])):
                continue
            if token.lstrip:
                start = max(done, len(text[:start].rstrip(WHITE)))
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip(WHITE))
            parts += [text[done:start], token.id] if done < start else [token.id]
            done = stop
        return [*parts, text[done:]] if done < len(text) else parts


def is_word(character: str) -> bool:
    """Return whether a character belongs to a word: a letter, mark, digit or connector. "" doesn't."""
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d" or "Ⓐ" <= character <= "ⓩ"
