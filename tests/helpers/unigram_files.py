"""Write SentencePiece model files: small ones of our own, and ones that are broken in a way that a test chooses."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from model.tokenizers.chatglm import GMASK, MASK, WRITTEN
from model.tokenizers.unigram_file import (
    BYTE,
    BYTE_PIECES,
    CHARSMAP,
    CONTROL,
    NORMAL,
    NORMALIZER,
    TRAINER,
    UNKNOWN,
    USER_DEFINED,
)

# Scores are exact in 32 bits, so that what is to be equal is.
WORDS = {"▁": -3.0, "▁a": -4.0, "▁ab": -7.5, "a": -4.0, "b": -4.0, "c": -4.0, "aa": -7.0, "bc": -6.0, "f": -5.0, "i": -5.0}
CONTROLS = (MASK, GMASK, "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
MAP = {"ﬁ": "fi", "\n": " ", "\t": " ", "\x01": "", "e\u0301": "c", "\u3000": " "}

PIECES = [
    ("<unk>", 0.0, UNKNOWN),
    *((name, 0.0, CONTROL) for name in ("<s>", "</s>", "<pad>")),
    ("<n>", 0.0, USER_DEFINED),
    *((text, score, NORMAL) for text, score in WORDS.items()),
    *((name, 0.0, CONTROL) for name in CONTROLS),
    *((name, 0.0, USER_DEFINED) for name in WRITTEN if name != "<n>"),
    *((name, 0.0, BYTE) for name in BYTE_PIECES),
]


def varint(value: int) -> bytes:
    """Return a whole number as protobuf writes it."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: int | float | bytes) -> bytes:
    """Return one field of a message."""
    if isinstance(value, bytes):
        return varint(number * 8 + 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number * 8 + 5) + struct.pack("<f", value)
    return varint(number * 8) + varint(value)


def message(fields: Mapping[int, int | float | bytes]) -> bytes:
    return b"".join(field(number, value) for number, value in fields.items())


def piece(text: str, score: float, kind: int) -> bytes:
    return field(1, message({1: text.encode(), 2: score, 3: kind}))


def charsmap(replacements: Mapping[str, str]) -> bytes:
    """Return a map with a trie that has a block of 256 places for the children of each node."""
    keys = {text.encode(): new.encode() for text, new in replacements.items()}
    nodes = sorted({key[:length] for key in keys for length in range(len(key) + 1)})
    base = {node: 256 * (number + 1) for number, node in enumerate(nodes)}
    units, texts = [0] * (256 * (len(nodes) + 1)), b""
    for node in nodes:
        place = base[node[:-1]] ^ node[-1] if node else 0
        units[place] = (node[-1] if node else 0) | (place ^ base[node]) << 10
        if node in keys:
            units[place] |= 0x100
            units[base[node]] = 1 << 31 | len(texts)
            texts += keys[node] + b"\0"
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + texts


def unigram(
    pieces: Iterable[tuple[str, float, int]] = tuple(PIECES),
    trainer: Mapping[int, int | bytes] = {},
    normalizer: Mapping[int, int | bytes] = {},
    more: bytes = b"",
) -> bytes:
    """Return the content of a file. What is given for `trainer` and `normalizer` comes to what is usual there."""
    content = b"".join(piece(*one) for one in pieces)
    content += field(TRAINER, message({1: b"texts.txt", 35: 1, **trainer}))
    return content + field(NORMALIZER, message({1: b"nmt_nfkc", CHARSMAP: charsmap(MAP), **normalizer})) + more


def save(folder: Path, content: bytes | None = None) -> Path:
    """Write ice_text.model. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ice_text.model").write_bytes(unigram() if content is None else content)
    return folder
