"""Byte-level BPE, the tokenizer of GPT-2 and RoBERTa: text -> words -> bytes, whose frequent pairs are joined to tokens.

tiktoken does the joining; here its tables are read from the files that lie beside the weights, and checked."""

import re
from collections.abc import Iterable
from pathlib import Path

import regex  # comes with tiktoken
import tiktoken

from model.tokenizers.added import AddedToken, AddedTokens
from model.tokenizers.base import Tokenizer
from model.tokenizers.description import Description
from model.tokenizers.files import BPE_FILE_SETS, choices, first_complete, refuse_sentencepiece
from model.tokenizers.steps import GPT2_PATTERN, WHITE, ByteLevel, Step, in_sequence, make_normalizer, unchanged
from utils.errors import UserError
from utils.files import read_json

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token
START = "<s>"  # RoBERTa's first

LONGEST_SPACE = 10_000  # characters of white space in a row that tiktoken's pattern gets; it fails on very many
LONG_SPACE = re.compile(f"[{WHITE}]{{{LONGEST_SPACE},}}")

# Entries that no merge makes and that need none: special tokens, and the ones that fill RoBERTa's table up.
WHOLE_TOKEN = re.compile(r"<.*>|\[.*\]|madeupword\d+")


def byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte, in the order of GPT-2's first 256 tokens.

    The files are text, so bytes that don't print (and the space) are written as characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    unprintable = [byte for byte in range(256) if byte not in alphabet]
    return alphabet | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}


def valid(text: str) -> str:
    """Return the text with a � for each half of a surrogate pair, as tiktoken does."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE. The names of its own special tokens are text like any other: a text can't smuggle one in."""

    kind: str
    name: str
    required: tuple[str, ...]  # special tokens that the vocabulary must have
    optional: tuple[str, ...] = ()
    ids_follow_merges: bool
    has_all_bytes = True  # whether a vocabulary that lacks the token of a byte is refused
    finds_special = True  # whether a text's added special tokens are found, beside its other added tokens
    special_tokens: dict[str, int]  # token -> id, of those in the files that no merge makes, and of added ones
    named: dict[str, str]  # "eos_token" -> the token that the files call so
    end_of_text: int  # of a kind that writes, as is the next
    end_ids: tuple[int, ...]  # what ends a text that the model writes

    def __init__(
        self,
        tokens: list[str],
        vocab: dict[str, int],
        added: Iterable[AddedToken] = (),
        normalize: Step = unchanged,
        byte_level: ByteLevel | None = None,
    ):
        """Set up tiktoken.

        tokens       those of single bytes, then what the merges make, in their order
        vocab        token -> id, of these, of special tokens and of added ones
        added        tokens that are found before a text is cut
        normalize    what is done to a text before that
        byte_level   how a text is cut into words
        """
        self.byte_level = byte_level or ByteLevel()
        byte_of = {character: byte for byte, character in byte_alphabet().items()}
        made = set(tokens)
        special = [token for token in vocab if token not in made]
        # tiktoken joins the pair with the lowest rank first: a rank is a place in the order of the merges, not yet an id.
        self._id_of_rank = [vocab[token] for token in tokens + special]
        self._rank_of_id = {token_id: rank for rank, token_id in enumerate(self._id_of_rank)}
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=self.byte_level.pattern or GPT2_PATTERN,
            mergeable_ranks={bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)},
            special_tokens={token: rank for rank, token in enumerate(special, start=len(tokens))},
        )
        self._missing = bytes(byte for character, byte in byte_of.items() if character not in made)
        self.vocab_size = max(self._id_of_rank) + 1
        added, own = list(added), self.required + self.optional
        found = [token for token in added if token.content not in own and (self.finds_special or not token.special)]
        self.added = AddedTokens(found, normalize)
        special_ids = {vocab[token] for token in own if token in vocab} | {token.id for token in added if token.special}
        self.special_ids = frozenset(special_ids)

    def encode_words(self, text: str) -> list[int]:
        return [self._id_of_rank[rank] for piece in self.byte_level.pieces(text) for rank in self._ranks(piece)]

    def _ranks(self, text: str) -> list[int]:
        """Return the ranks of what a text is cut into and joined to.

        Where tiktoken can't do both, a text is cut by `regex` first, which takes more time.
        """
        if self.byte_level.pattern is None:
            return self._ranks_of_word(text)
        if len(text) < LONGEST_SPACE and not self._missing:
            return self._encoding.encode_ordinary(text)
        if LONG_SPACE.search(text) or self._vanishes(text):
            return [rank for word in regex.findall(self.byte_level.pattern, text) for rank in self._ranks_of_word(word)]
        return self._encoding.encode_ordinary(text)

    def _ranks_of_word(self, word: str) -> list[int]:
        """Return the ranks of a word's tokens. A byte that has no token vanishes, as in the library."""
        known = valid(word).encode().translate(None, self._missing)
        return self._encoding._encode_single_piece(known) if known else []

    def _vanishes(self, text: str) -> bool:
        """Return whether a text has bytes that no token stands for."""
        content = valid(text).encode()
        return len(content.translate(None, self._missing)) < len(content)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids. An id that no token has, such as an unused row of the embedding, is left out."""
        return self._encoding.decode([self._rank_of_id[token_id] for token_id in ids if token_id in self._rank_of_id])

    @classmethod
    def from_directory(cls, directory: str | Path) -> "BytePairTokenizer":
        """Return the tokenizer in the first complete set of BPE_FILE_SETS. Raises UserError, also for a broken one."""
        directory = Path(directory)
        file, vocab, tokens = read_byte_pairs(directory, cls.name)
        described = Description.read(directory, cls.kind)
        added = cls.as_named(described.added_tokens(vocab, len(vocab)), described.named())
        special = {token: number for token, number in vocab.items() if WHOLE_TOKEN.fullmatch(token)} | described.ids()
        vocab |= {token.content: token.id for token in added}
        missing = [token for token in cls.required if token not in vocab]
        if missing:
            raise UserError(f"{file} is no {cls.name} vocabulary: it has no entry {', '.join(missing)}")
        how = cls.how_to_cut(described)
        if not cls.has_all_bytes:
            tokens = [token for rank, token in enumerate(tokens) if rank > 255 or token in vocab]
        _check(file, vocab, tokens, cls.ids_follow_merges, {token.content for token in added})
        tokenizer = cls(tokens, vocab, added, *how)
        tokenizer.special_tokens, tokenizer.named = special, described.named()
        tokenizer.chat_template = described.chat_template()
        tokenizer.set_up(described, vocab)
        return tokenizer

    @classmethod
    def as_named(cls, added: list[AddedToken], named: dict[str, str]) -> list[AddedToken]:
        """Return the added tokens; `named`: those with a name, such as "eos_token"."""
        return added

    @classmethod
    def how_to_cut(cls, described: Description) -> tuple[Step, ByteLevel]:
        """Return what is done to a text, and how it is cut into words. Raises UserError."""
        normalizers, pre_tokenizers = described.normalizers(), described.pre_tokenizers()
        place = f"{described.directory}/tokenizer.json: its pre_tokenizer"
        cut = ByteLevel() if pre_tokenizers is None else ByteLevel.of(place, pre_tokenizers)
        if described.whole:
            if [step for step in normalizers if step["type"] == "BertNormalizer"]:
                raise UserError(
                    f"{described.directory}/tokenizer.json: its normalizer is BertNormalizer, which is WordPiece's"
                )
            return in_sequence([make_normalizer(step) for step in normalizers]), cut
        if normalizers:
            raise described.refuse("normalizer", described.json["normalizer"])
        if cut.digits or cut.pattern != GPT2_PATTERN:
            raise described.refuse("pre_tokenizer", described.json["pre_tokenizer"])
        return unchanged, ByteLevel(prefix=bool(described.setting("add_prefix_space", False)))

    def set_up(self, described: Description, vocab: dict[str, int]) -> None:
        """Set what else the files say, where the kind has no fixed names. `vocab`: token -> id, with added tokens."""


class GPT2Tokenizer(BytePairTokenizer):
    """`end_of_text` is also the padding id, as in the published spam rows. `build` puts a newline between two texts."""

    kind = "gpt2"
    name = "GPT-2"
    required = (END_OF_TEXT,)
    ids_follow_merges = True

    def __init__(self, tokens: list[str], vocab: dict[str, int], *how):
        super().__init__(tokens, vocab, *how)
        self.pad_id = self.end_of_text = vocab[END_OF_TEXT]
        self.end_ids = (self.end_of_text,)  # what ends a text that the model writes; see ends.py
        self.between = tuple(self._id_of_rank[rank] for rank in self._ranks("\n"))


class RobertaTokenizer(BytePairTokenizer):
    """GPT-2's merges with ids in another order: `<s> A </s>`, and `<s> A </s></s> B </s>`, where tokens have no types."""

    kind = "roberta"
    name = "RoBERTa"
    required = (START, "<pad>", "</s>", "<unk>")
    optional = ("<mask>",)
    ids_follow_merges = False

    def __init__(self, tokens: list[str], vocab: dict[str, int], *how):
        super().__init__(tokens, vocab, *how)
        start, self.pad_id, end, _ = (vocab[token] for token in self.required)
        self.mask_id = vocab.get("<mask>")
        self.start, self.between, self.end = (start,), (end, end), (end,)


def read_byte_pairs(directory: Path, name: str) -> tuple[Path, dict[str, int], list[str]]:
    """Return the vocabulary's file, token -> id, and the tokens: of the single bytes, then what each merge makes.

    name   of the tokenizer, for an error
    """
    files = first_complete(directory, BPE_FILE_SETS)
    if files is None:
        refuse_sentencepiece(directory)
        raise UserError(f"{directory} has no {name} tokenizer files ({choices(BPE_FILE_SETS)})")
    try:
        vocab, merged = _read_json(*files) if len(files) == 1 else _read_pair(*files)
        "".join([*vocab, *merged]).encode()  # raises unless all of it is valid text
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory}: can't read {' + '.join(file.name for file in files)}: {error}") from None
    return files[0], vocab, [*byte_alphabet().values(), *merged]


def _read_pair(vocab_file: Path, merges_file: Path) -> tuple[dict[str, int], list[str]]:
    """Return token -> id, and what each merge makes, which the file has as lines of two symbols."""
    lines = merges_file.read_text(encoding="utf-8").splitlines()
    merged = ["".join(line.split()) for line in lines if line and not line.startswith("#version")]
    return dict(read_json(vocab_file).items()), merged


def _read_json(file: Path) -> tuple[dict[str, int], list[str]]:
    """Return the same from tokenizer.json, where a merge is a pair or a line. Older files don't say their type."""
    model = read_json(file)["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"it holds a tokenizer of type {model['type']!r}, not BPE")
    merged = ["".join(merge.split() if isinstance(merge, str) else merge) for merge in model["merges"]]
    vocab = dict(model["vocab"].items())
    return vocab, without_second_ways(merged, vocab) + (whole_words(vocab, merged) if model.get("ignore_merges") else [])


def without_second_ways(merged: list[str], vocab: dict[str, int]) -> list[str]:
    """Return the tokens that merges make, each once, in the order of their ids where several ways lead to one.

    Llama 3's file lists every way to make a token, sorted by the token's id: which pair comes first is up to the id alone.
    Raises ValueError for second ways that aren't listed so.
    """
    once = list(dict.fromkeys(merged))
    ids = [vocab.get(token, -1) for token in merged] if len(once) < len(merged) else []
    if ids != sorted(ids):
        raise ValueError("two of the merges make the same token")
    return once


def whole_words(vocab: dict[str, int], merged: list[str]) -> list[str]:
    """Return the tokens that `ignore_merges` lets be words although no two other tokens make them."""
    alphabet = set(byte_alphabet().values())
    unmade = [token for token in vocab.keys() - {*alphabet, *merged} if not WHOLE_TOKEN.fullmatch(token)]
    words = sorted(token for token in unmade if alphabet.issuperset(token))
    return [word for word in words if not any(word[:i] in vocab and word[i:] in vocab for i in range(1, len(word)))]


def _check(file: Path, vocab: dict[str, int], tokens: list[str], ids_follow_merges: bool, added: set[str]) -> None:
    """Raise UserError where vocabulary and merges aren't of the same tokenizer, or what is no id stands for one.

    ids_follow_merges   the ids grow from token to token; special tokens may have ids before, between and behind them
    """
    apart = f"{file}: vocabulary and merges don't belong together"
    made = set(tokens)
    if len(made) < len(tokens):
        raise UserError(f"{file}: two of the merges make the same token")
    ids = [vocab.get(token) for token in tokens]
    in_order = sorted(number for number in ids if type(number) is int)
    for rank, (token, found) in enumerate(zip(tokens, ids, strict=True)):
        if found is None or (ids_follow_merges and len(in_order) == len(ids) and found != in_order[rank]):
            raise UserError(f"{apart}: token {rank} is {token!r} by the merges, but the vocabulary gives it the id {found}")
    known = made | added
    unmade = [token for token in vocab if token not in known and not WHOLE_TOKEN.fullmatch(token)]
    if unmade:
        raise UserError(f"{apart}: the vocabulary has {unmade[0]!r} (and {len(unmade) - 1} more), which no merge makes")
    if unknown := set().union(*tokens) - set(byte_alphabet().values()):
        raise UserError(f"{file}: the merges hold characters that stand for no byte: {''.join(sorted(unknown))!r}")
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id not in range(2**31) or owner.setdefault(token_id, token) != token:
            raise UserError(f"{file} gives {token} the id {token_id!r}; ids are whole numbers from 0 on, each given once")
