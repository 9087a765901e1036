"""What every tokenizer shares: from the ids of one text, or of two, to the sequence that the model reads."""

from pathlib import Path

from model.tokenizers.added import AddedTokens
from utils.errors import UserError


class Tokenizer:
    """The base of every tokenizer: `encode` turns text into ids, `build` adds the special tokens, `decode` goes back."""

    vocab_size: int
    pad_id: int
    mask_id: int | None = None
    special_ids: frozenset[int]
    chat_template: str | None = None  # the model's own, a program in Jinja that isn't run; see data/chat_templates.py
    added: AddedTokens  # tokens that are found before a text is cut into words

    # Around a text A: start A end. Around a pair: start A between B pair_end, which is `end` where there is none.
    start: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    pair_end: tuple[int, ...] | None = None
    has_token_types = False  # whether the model tells the two texts of a pair apart by a type for each token

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens around it."""
        ids: list[int] = []
        for part in self.added.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.encode_words(part)
        return ids

    def encode_words(self, text: str) -> list[int]:
        """Return the token ids of a normalized text without added tokens."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids. An id that no token has is left out."""
        raise NotImplementedError

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """Return the tokenizer whose files lie in a directory. Raises UserError."""
        raise NotImplementedError

    def build(
        self, ids: list[int], pair_ids: list[int] | None = None, max_length: int | None = None
    ) -> tuple[list[int], list[int] | None]:
        """Return the ids with the special tokens, and the type of each: 0 up to the second text, 1 from there on.

        max_length   what is longer loses tokens on the right, the longer text first; the special tokens stay

        The types are None where the model has none. Raises UserError where not even the special tokens fit.
        """
        end = self.end if pair_ids is None or self.pair_end is None else self.pair_end
        added = len(self.start) + len(end) + (len(self.between) if pair_ids is not None else 0)
        if max_length is not None:
            room = max_length - added
            if room < 0:
                raise UserError(f"a length of {max_length} is too short: the special tokens alone take {added}")
            n, n_pair = longest_first(len(ids), len(pair_ids or ()), room)
            ids, pair_ids = ids[:n], pair_ids if pair_ids is None else pair_ids[:n_pair]
        if pair_ids is None:
            first, second = [*self.start, *ids, *end], []
        else:
            first, second = [*self.start, *ids, *self.between], [*pair_ids, *end]
        return first + second, [0] * len(first) + [1] * len(second) if self.has_token_types else None


def longest_first(n: int, n_pair: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts stay in `room` places: the longer is cut to the other's length, then both are.

    An odd place goes to the longer text, to the second of two equal ones (the reference library's choice).
    """
    short, long = sorted((n, n_pair))
    if short + long > room:
        short = min(short, room // 2)
        long = room - short
    return (short, long) if n <= n_pair else (long, short)
