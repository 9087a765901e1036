"""GPT-2's byte-level BPE, run by tiktoken from the files that lie beside the weights. Nothing is downloaded here."""

import json
from pathlib import Path

import tiktoken

from errors import UserError

END_OF_TEXT = "<|endoftext|>"

# How GPT-2 cuts text into words before BPE (openai/gpt-2, src/encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# Vocabulary and merges, under the Hugging Face names and under OpenAI's.
GPT2_FILE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


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

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "GPT2Tokenizer":
        """Reads vocab.json + merges.txt, or encoder.json + vocab.bpe. Raises UserError where they are absent or broken."""
        directory = Path(directory)
        for names in GPT2_FILE_PAIRS:
            vocab_file, merges_file = (directory / name for name in names)
            if vocab_file.is_file() and merges_file.is_file():
                return cls(*_read_ranks(vocab_file, merges_file))
        pairs = " or ".join(" + ".join(names) for names in GPT2_FILE_PAIRS)
        raise UserError(f"{directory} has no GPT-2 tokenizer files ({pairs})")


def has_tokenizer_files(directory: Path) -> bool:
    return any(all((directory / name).is_file() for name in names) for names in GPT2_FILE_PAIRS)


def _read_ranks(vocab_file: Path, merges_file: Path) -> tuple[dict[bytes, int], int]:
    """tiktoken's table: the bytes of each token -> its id. BPE joins the pair with the lowest id first, so ids must follow
    the order of the merges; that is checked here against the merges file."""
    try:
        vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{vocab_file.parent}: can't read the tokenizer files: {error}") from None
    merged = ["".join(line.split()) for line in lines if line and not line.startswith("#version")]
    tokens = [*byte_alphabet().values(), *merged]
    if not isinstance(vocab, dict) or END_OF_TEXT not in vocab:
        raise UserError(f"{vocab_file} is no GPT-2 vocabulary: it has no entry {END_OF_TEXT}")
    for rank, token in enumerate(tokens):
        if vocab.get(token) != rank:
            raise UserError(
                f"{vocab_file} and {merges_file.name} don't belong together: token {rank} is {token!r} by the merges, "
                f"but the vocabulary gives it the id {vocab.get(token)}"
            )
    end_of_text = vocab[END_OF_TEXT]
    if type(end_of_text) is not int or end_of_text not in range(len(tokens), 2**31):
        raise UserError(f"{vocab_file} gives {END_OF_TEXT} the id {end_of_text!r}; the ids from {len(tokens)} on are free")
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    try:
        return {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}, end_of_text
    except KeyError as error:
        raise UserError(f"{merges_file} holds the character {error}, which stands for no byte") from None
