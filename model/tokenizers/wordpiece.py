"""BERT's WordPiece tokenizer: text -> words -> the longest pieces of each word that the vocabulary holds.

The ids are those of the reference library's `BertTokenizer`, with one difference: there a "[SEP]" written in a text becomes
the special token, here every character of a text is text.
"""

import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.tokenizers.added import AddedToken, AddedTokens
from model.tokenizers.base import Tokenizer
from model.tokenizers.description import Description
from model.tokenizers.files import WORDPIECE_FILE_SETS, choices, first_complete
from model.tokenizers.settings import INPUTS
from model.tokenizers.steps import Step, in_sequence, lowercase, make_normalizer
from utils.errors import UserError
from utils.files import read_json
from utils.settings import check_value

PAD, UNKNOWN, START, SEPARATOR, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"  # a piece that doesn't begin its word
MAX_WORD = 100  # characters; a longer word is [UNK]
CACHED_WORDS = 2**16

# What BasicTokenizer's arguments are called in tokenizer.json's normalizer, and in tokenizer_config.json; the default.
SETTINGS: dict[str, tuple[str, str, Any]] = {
    "lower_case": ("lowercase", "do_lower_case", True),
    "strip_accents": ("strip_accents", "strip_accents", None),
    "isolate_ideographs": ("handle_chinese_chars", "tokenize_chinese_chars", True),
}

# Ideographs: each is a word of its own. Hangul and kana are not among them: those are written with spaces or as words.
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class Replacements(dict):
    """A table for str.translate: what a character becomes is computed when it is first met."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def clean(character: str) -> str:
    """Return "" for control, format and private characters, and one space for any white space."""
    if character in "\t\n\r":
        return " "
    # Unassigned code points ("Cn") stay: they may be the letters of a later Unicode version.
    if character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return " " if character.isspace() else character


def isolate_ideograph(character: str) -> str:
    """Return the character, with a space on both sides of an ideograph, which makes it a word of its own."""
    return f" {character} " if any(low <= ord(character) <= high for low, high in IDEOGRAPHS) else character


def drop_mark(character: str) -> str:
    """Return "" for an accent, which stands alone in the NFD form."""
    return "" if unicodedata.category(character) == "Mn" else character


def isolate_punctuation(character: str) -> str:
    """Return the character, with a space on both sides of punctuation.

    All of ASCII's symbols count as such, `$` and `+` too, which Unicode doesn't call punctuation.
    """
    ascii_symbol = "!" <= character <= "~" and not character.isalnum()
    return f" {character} " if ascii_symbol or unicodedata.category(character)[0] == "P" else character


class BasicTokenizer:
    """Cuts text into words. `strip_accents` None: they are stripped wherever letters are lower-cased."""

    def __init__(self, lower_case: bool = True, strip_accents: bool | None = None, isolate_ideographs: bool = True):
        self.lower_case, self.isolate_ideographs = lower_case, isolate_ideographs
        self.strip_accents = lower_case if strip_accents is None else strip_accents
        self._clean = Replacements(lambda c: isolate_ideograph(clean(c)) if isolate_ideographs and clean(c) else clean(c))
        self._drop_marks = Replacements(drop_mark)
        self._isolate_punctuation = Replacements(isolate_punctuation)

    def words(self, text: str) -> list[str]:
        """Return the text's words and punctuation marks, in order."""
        return self.split(self.normalize(text))

    def normalize(self, text: str) -> str:
        """Return the text without control characters and, if so set, in lower case and without accents."""
        text = text.translate(self._clean)
        if self.strip_accents and not text.isascii():
            text = unicodedata.normalize("NFD", text).translate(self._drop_marks)  # é -> e and a mark -> e
        return lowercase(text) if self.lower_case else text

    def split(self, text: str) -> list[str]:
        """Return the words and punctuation marks of a normalized text."""
        return text.translate(self._isolate_punctuation).split()


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer. Decoding can't bring back case, accents or the spaces around punctuation."""

    has_token_types = True

    def __init__(
        self,
        vocab: dict[str, int],
        basic: BasicTokenizer | None = None,
        added: Iterable[AddedToken] = (),
        normalize: Step | None = None,
    ):
        """Set up the tables.

        vocab       token -> id, without added tokens
        basic       what cuts a text into words
        added       tokens that are found before a text is cut
        normalize   what is done to a text before it is cut; None: what `basic` does
        """
        self.basic = basic or BasicTokenizer()
        found = [token for token in added if token.content not in SPECIAL_TOKENS]
        self.added = AddedTokens(found, normalize or self.basic.normalize)
        self.pad_id, self.unknown_id, start, separator = (vocab[token] for token in SPECIAL_TOKENS[:4])
        self.mask_id = vocab.get(MASK)
        own = {vocab[token] for token in SPECIAL_TOKENS if token in vocab}
        self.special_ids = frozenset(own | {token.id for token in found if token.special})
        self.start, self.between, self.end = (start,), (separator,), (separator,)
        self._vocab = vocab
        self._tokens = {token_id: token for token, token_id in vocab.items()} | {token.id: token.content for token in found}
        self.vocab_size = max(self._tokens) + 1
        self._longest = max(map(len, vocab))
        # Most words of a text have been met before, so the pieces of the latest ones are kept.
        self._pieces = lru_cache(CACHED_WORDS)(self._split)

    def encode_words(self, text: str) -> list[int]:
        return [piece for word in self.basic.split(text) for piece in self._pieces(word)]

    def _split(self, word: str) -> tuple[int, ...]:
        """Return the pieces of a word, from left to right the longest in the vocabulary; [UNK] alone where one lacks."""
        if len(word) > MAX_WORD:
            return (self.unknown_id,)
        pieces, start = [], 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._vocab.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return (self.unknown_id,)
            pieces.append(piece)
            start = end
        return tuple(pieces)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids. An id that no token has, as of SciBERT's empty line, is left out."""
        return " ".join(self._tokens[token_id] for token_id in ids if token_id in self._tokens).replace(f" {CONTINUES}", "")

    @classmethod
    def from_directory(cls, directory: str | Path) -> "WordPieceTokenizer":
        """Return the tokenizer in tokenizer.json, else in vocab.txt; the settings beside it say what case and accents mean.

        Raises UserError if neither is there, or one is broken.
        """
        directory = Path(directory)
        files = first_complete(directory, WORDPIECE_FILE_SETS)
        if files is None:
            raise UserError(f"{directory} has no WordPiece tokenizer files ({choices(WORDPIECE_FILE_SETS)})")
        (file,) = files
        try:
            vocab = _read_model(file) if file.suffix == ".json" else _read_lines(file)
            missing = [token for token in SPECIAL_TOKENS[:4] if token not in vocab]
            if missing:
                raise ValueError(f"it has no entry {', '.join(missing)}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no WordPiece vocabulary: {error}") from None
        described = Description.read(directory, "wordpiece")
        basic, normalize = _cutting(described)
        size = len(vocab) if file.suffix == ".json" else max(vocab.values()) + 1  # an empty line is a token there
        tokenizer = cls(vocab, basic, described.added_tokens(vocab, size), normalize)
        tokenizer.has_token_types = "token_type_ids" in (described.config.get("model_input_names") or INPUTS)
        return tokenizer


def _read_lines(file: Path) -> dict[str, int]:
    """Return token -> id, the number of its line. SciBERT's file has an empty line: an id that no text gets."""
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab: dict[str, int] = {}
    for number, token in enumerate(lines):
        if token and vocab.setdefault(token, number) != number:
            raise ValueError(f"{token!r} stands in line {vocab[token] + 1} and again in line {number + 1}")
    if not vocab:
        raise ValueError("it is empty")
    return vocab


def _read_model(file: Path) -> dict[str, int]:
    model = read_json(file)["model"]
    if model.get("type", "WordPiece") != "WordPiece" or "merges" in model:
        raise ValueError(f"it holds a tokenizer of type {model.get('type', 'BPE')!r}, not WordPiece")
    vocab = dict(model["vocab"].items())
    if not vocab:
        raise ValueError("it is empty")
    if not all(type(token_id) is int and token_id >= 0 for token_id in vocab.values()):
        raise ValueError("not all of its ids are numbers from 0 on")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two of its tokens have the same id")
    return vocab


def _cutting(described: Description) -> tuple[BasicTokenizer, Step | None]:
    """Return what cuts a text into words, and what is done to a text before where that isn't all. Raises UserError."""
    place = f"{described.directory}/tokenizer.json: its"
    if described.pre_tokenizers() not in (None, [{"type": "BertPreTokenizer"}]):
        if described.whole:
            raise UserError(f"{place} pre_tokenizer is {described.json['pre_tokenizer']!r}; it must be BertPreTokenizer")
        raise described.refuse("pre_tokenizer", described.json["pre_tokenizer"])
    steps, place = described.normalizers(), f"{place} normalizer"
    for step in steps:
        check_value(place, "clean_text", step.get("clean_text"), (True,))
    if described.whole and "normalizer" in described.json:
        done = [_basic(step).normalize if step["type"] == "BertNormalizer" else make_normalizer(step) for step in steps]
        return BasicTokenizer(), in_sequence(done)
    options: dict[str, Any] = {name: described.setting(key, default) for name, (_, key, default) in SETTINGS.items()}
    basic = BasicTokenizer(**options)
    if steps and [step["type"] for step in steps] != ["BertNormalizer"]:
        raise described.refuse("normalizer", described.json["normalizer"])
    for argument, (name, key, _) in SETTINGS.items() if steps else ():
        said, done = (getattr(one, argument) for one in (_basic(steps[0]), basic))
        if described.config.get(key) is None and said != done:
            raise UserError(
                f"{place} sets {name} to {steps[0][name]!r}, but the library takes {key} from "
                f"tokenizer_config.json, where it is missing and means {done}; set it there"
            )
    return basic, None


def _basic(step: dict[str, Any]) -> BasicTokenizer:
    """Return what does a BertNormalizer's work."""
    return BasicTokenizer(**{argument: step[name] for argument, (name, _, _) in SETTINGS.items()})
