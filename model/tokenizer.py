"""GPT-2's byte-level BPE, run by tiktoken from the files that lie beside the weights. Nothing is downloaded here."""

import json
from pathlib import Path

import tiktoken

from errors import UserError

END_OF_TEXT = "<|endoftext|>"

# How GPT-2 cuts text into words before BPE (openai/gpt-2, src/encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# Vocabulary and merges: under the Hugging Face names, under OpenAI's, and both in the one file that newer tools write.
FILE_SETS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",))


def byte_alphabet() -> dict[int, str]:
    """Each byte's printable stand-in, in the order of GPT-2's first 256 tokens.

    The files are text, so bytes that don't print (and the space) are written as characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    unprintable = [byte for byte in range(256) if byte not in alphabet]
    return alphabet | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}


class GPT2Tokenizer:
    """Text -> token ids and back. `end_of_text` also serves as the padding id, as in the published spam rows."""

    def __init__(self, ranks: dict[bytes, int], end_of_text: int):
        self.end_of_text = end_of_text
        self.vocab_size = max(end_of_text, *ranks.values()) + 1
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end_of_text}
        )

    def encode(self, text: str) -> list[int]:
        """Every character is text, `<|endoftext|>` too: a message can't smuggle in a special token."""
        return self._encoding.encode_ordinary(text)

    @property
    def pad_id(self) -> int:
        return self.end_of_text

    def build(self, ids, pair_ids=None, max_length=None):
        ids = [*ids, *([] if pair_ids is None else [*self.encode("\n"), *pair_ids])]
        return ids[:max_length], None

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "GPT2Tokenizer":
        """Reads the files of FILE_SETS, the first set that is there. Raises UserError if none is, or one is broken."""
        directory = Path(directory)
        for names in FILE_SETS:
            files = [directory / name for name in names]
            if all(file.is_file() for file in files):
                try:
                    vocab, merged = _read_json(*files) if len(files) == 1 else _read_pair(*files)
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{directory}: can't read {' + '.join(names)}: {error}") from None
                return cls(*_ranks(vocab, merged, files[0]))
        choices = " or ".join(" + ".join(names) for names in FILE_SETS)
        raise UserError(f"{directory} has no GPT-2 tokenizer files ({choices})")


def has_tokenizer_files(directory: Path) -> bool:
    return any(all((directory / name).is_file() for name in names) for names in FILE_SETS)


def _read_pair(vocab_file: Path, merges_file: Path) -> tuple[dict[str, int], list[str]]:
    """(token -> id, what each merge makes), the merges as lines of two symbols."""
    lines = merges_file.read_text(encoding="utf-8").splitlines()
    merged = ["".join(line.split()) for line in lines if line and not line.startswith("#version")]
    return dict(json.loads(vocab_file.read_text(encoding="utf-8")).items()), merged


def _read_json(file: Path) -> tuple[dict[str, int], list[str]]:
    """The same from tokenizer.json, where a merge is a pair or a line, and special tokens may stand apart."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["model"]["type"] != "BPE":
        raise ValueError(f"it holds a tokenizer of type {content['model']['type']!r}, not BPE")
    apart = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    merged = ["".join(merge.split() if isinstance(merge, str) else merge) for merge in content["model"]["merges"]]
    return content["model"]["vocab"] | apart, merged


def _ranks(vocab: dict[str, int], merged: list[str], file: Path) -> tuple[dict[bytes, int], int]:
    """tiktoken's table (the bytes of each token -> its id), and the id of <|endoftext|>.

    tiktoken joins the pair with the lowest id first, so ids must follow the order of the merges; that is checked here.
    """
    tokens = [*byte_alphabet().values(), *merged]
    if END_OF_TEXT not in vocab:
        raise UserError(f"{file} is no GPT-2 vocabulary: it has no entry {END_OF_TEXT}")
    for rank, token in enumerate(tokens):
        if vocab.get(token) != rank:
            raise UserError(
                f"{file}: vocabulary and merges don't belong together: token {rank} is {token!r} by the merges, but the "
                f"vocabulary gives it the id {vocab.get(token)}"
            )
    end_of_text = vocab[END_OF_TEXT]
    if type(end_of_text) is not int or end_of_text not in range(len(tokens), 2**31):
        raise UserError(f"{file} gives {END_OF_TEXT} the id {end_of_text!r}; the ids from {len(tokens)} on are free")
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    try:
        return {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}, end_of_text
    except KeyError as error:
        raise UserError(f"{file}: the merges hold the character {error}, which stands for no byte") from None


def load_tokenizer(directory):
    return GPT2Tokenizer.from_directory(directory)
