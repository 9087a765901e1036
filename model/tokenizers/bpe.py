"""Byte-level BPE, the tokenizer of GPT-2 and RoBERTa: text -> words -> bytes, whose frequent pairs are joined to tokens.

tiktoken does the joining; here its tables are read from the files that lie beside the weights, and checked."""

import re
from pathlib import Path

import tiktoken

from model.tokenizers.base import Tokenizer
from model.tokenizers.files import BPE_FILE_SETS, choices, first_complete
from utils.errors import UserError
from utils.files import read_json

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token
START = "<s>"  # RoBERTa's first

# How GPT-2 cuts text into words before BPE (openai/gpt-2, src/encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

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


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE. Every character is text, `<|endoftext|>` too: a text can't smuggle in a special token."""

    name: str
    required: tuple[str, ...]  # special tokens that the vocabulary must have
    ids_follow_merges: bool

    def __init__(self, tokens: list[str], vocab: dict[str, int]):
        """Set up tiktoken.

        tokens   those of single bytes, then what each merge makes
        vocab    token -> id, of these and of special tokens
        """
        byte_of = {character: byte for byte, character in byte_alphabet().items()}
        made = set(tokens)
        special = [token for token in vocab if token not in made]
        # tiktoken joins the pair with the lowest rank first: a rank is a place in the order of the merges, not yet an id.
        self._id_of_rank = [vocab[token] for token in tokens + special]
        self._rank_of_id = {token_id: rank for rank, token_id in enumerate(self._id_of_rank)}
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks={bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)},
            special_tokens={token: rank for rank, token in enumerate(special, start=len(tokens))},
        )
        self.vocab_size = max(self._id_of_rank) + 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return [self._id_of_rank[rank] for rank in self._encoding.encode_ordinary(text)]

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids. An id that no token has, such as an unused row of the embedding, is left out."""
        return self._encoding.decode([self._rank_of_id[token_id] for token_id in ids if token_id in self._rank_of_id])

    @classmethod
    def from_directory(cls, directory: str | Path) -> "BytePairTokenizer":
        """Return the tokenizer in the first complete set of BPE_FILE_SETS. Raises UserError, also for a broken one."""
        file, vocab, tokens = read_byte_pairs(Path(directory), cls.name)
        missing = [token for token in cls.required if token not in vocab]
        if missing:
            raise UserError(f"{file} is no {cls.name} vocabulary: it has no entry {', '.join(missing)}")
        _check(file, vocab, tokens, cls.ids_follow_merges)
        return cls(tokens, vocab)


class GPT2Tokenizer(BytePairTokenizer):
    """`end_of_text` is also the padding id, as in the published spam rows. `build` puts a newline between two texts."""

    name = "GPT-2"
    required = (END_OF_TEXT,)
    ids_follow_merges = True

    def __init__(self, tokens: list[str], vocab: dict[str, int]):
        super().__init__(tokens, vocab)
        self.pad_id = self.end_of_text = vocab[END_OF_TEXT]
        self.end_ids = (self.end_of_text,)  # what ends a text that the model writes; see ends.py
        self.special_ids = frozenset([self.end_of_text])
        self.between = tuple(self.encode("\n"))


class RobertaTokenizer(BytePairTokenizer):
    """GPT-2's merges with ids in another order: `<s> A </s>`, and `<s> A </s></s> B </s>`, where tokens have no types."""

    name = "RoBERTa"
    required = (START, "<pad>", "</s>", "<unk>")
    ids_follow_merges = False

    def __init__(self, tokens: list[str], vocab: dict[str, int]):
        super().__init__(tokens, vocab)
        start, self.pad_id, end, _ = (vocab[token] for token in self.required)
        self.mask_id = vocab.get("<mask>")
        self.special_ids = frozenset(vocab[token] for token in (*self.required, "<mask>") if token in vocab)
        self.start, self.between, self.end = (start,), (end, end), (end,)


def read_byte_pairs(directory: Path, name: str) -> tuple[Path, dict[str, int], list[str]]:
    """Return the vocabulary's file, token -> id, and the tokens: of the single bytes, then what each merge makes.

    name   of the tokenizer, for an error
    """
    files = first_complete(directory, BPE_FILE_SETS)
    if files is None:
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
    """Return the same from tokenizer.json, where a merge is a pair or a line, and special tokens may stand apart."""
    content = read_json(file)
    if content["model"]["type"] != "BPE":
        raise ValueError(f"it holds a tokenizer of type {content['model']['type']!r}, not BPE")
    apart = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    merged = ["".join(merge.split() if isinstance(merge, str) else merge) for merge in content["model"]["merges"]]
    return content["model"]["vocab"] | apart, merged


def _check(file: Path, vocab: dict[str, int], tokens: list[str], ids_follow_merges: bool) -> None:
    """Raise UserError where vocabulary and merges aren't of the same tokenizer, or what is no id stands for one."""
    apart = f"{file}: vocabulary and merges don't belong together"
    for rank, token in enumerate(tokens):
        found = vocab.get(token)
        if found is None or (ids_follow_merges and found != rank):
            raise UserError(f"{apart}: token {rank} is {token!r} by the merges, but the vocabulary gives it the id {found}")
    made = set(tokens)
    unmade = [token for token in vocab if token not in made and not WHOLE_TOKEN.fullmatch(token)]
    if unmade:
        raise UserError(f"{apart}: the vocabulary has {unmade[0]!r} (and {len(unmade) - 1} more), which no merge makes")
    if len(made) < len(tokens):
        raise UserError(f"{file}: two of the merges make the same token")
    if unknown := set().union(*tokens) - set(byte_alphabet().values()):
        raise UserError(f"{file}: the merges hold characters that stand for no byte: {''.join(sorted(unknown))!r}")
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id not in range(2**31) or owner.setdefault(token_id, token) != token:
            raise UserError(f"{file} gives {token} the id {token_id!r}; ids are whole numbers from 0 on, each given once")
