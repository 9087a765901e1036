"""Read a SentencePiece model file of type unigram: its pieces, and the map by which texts are normalized.

The file is one protobuf message (https://protobuf.dev/programming-guides/encoding), so it is fields one after the other.
Each begins with a number that says which field it is and how long its value is. The fields are those of
sentencepiece_model.proto in google/sentencepiece. Nothing in the file is executed.
"""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces
SPACE = "▁"  # stands for a space in pieces
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]

UNIGRAM = 1
MODEL_TYPES = {UNIGRAM: "unigram", 2: "BPE", 3: "word", 4: "character"}
TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 2, 3, 4, 5  # parts of the file beside the pieces, which are 1
# Part -> field -> its name, its value where it is missing, the value that it must have. Other fields of TRAINER say how
# the pieces were learned.
REQUIRED: dict[int, dict[int, tuple[str, object, object]]] = {
    TRAINER: {
        24: ("treat_whitespace_as_suffix", 0, 0),
        35: ("byte_fallback", 0, 1),
        44: ("unk_surface", " ⁇ ".encode(), " ⁇ ".encode()),
    },
    NORMALIZER: {
        3: ("add_dummy_prefix", 1, 1),
        4: ("remove_extra_whitespaces", 1, 1),
        5: ("escape_whitespaces", 1, 1),
    },
}
CHARSMAP = 2  # the field of NORMALIZER and DENORMALIZER with their map
NORMALIZER_FIELDS = {1, CHARSMAP, 3, 4, 5, 6}  # 1 and 6: the name of the map, and the file that it was made of

# Far more than any published file has. What a broken file says must not fill the memory.
LONGEST_PIECE = 128  # characters
LONGEST_KEY, LONGEST_REPLACEMENT = 128, 1024  # bytes
MOST_KEYS = 1_000_000

Value = int | float | bytes


class Piece(NamedTuple):
    """One piece of the vocabulary. Its id is its place in the file."""

    text: str
    score: float  # logarithm of its probability
    kind: int  # NORMAL, ...


@dataclass(frozen=True)
class UnigramModel:
    """What a file holds."""

    pieces: list[Piece]
    replacements: dict[str, str]  # what each text of the normalizer's map becomes


def read_unigram(file: Path) -> UnigramModel:
    """Return the model in a file. Raises UserError for a broken file, and for one that is to be used in another way."""
    try:
        return parse_unigram(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no SentencePiece unigram model that can be read: {error}") from None


def parse_unigram(content: bytes) -> UnigramModel:
    """Return the model in the content of a file. Raises ValueError."""
    contents: list[bytes] = []
    parts: dict[int, dict[int, Value]] = {TRAINER: {}, NORMALIZER: {}, SELF_TEST: {}, DENORMALIZER: {}}
    for number, value in fields(content):
        if not isinstance(value, bytes) or number not in (1, *parts):
            raise ValueError(f"it has a field {number} that no such file has")
        if number == 1:
            contents.append(value)
        else:
            parts[number].update(fields(value))
    if not contents:
        raise ValueError("it holds no pieces")
    check_parts(parts)
    pieces = [piece_of(one, number) for number, one in enumerate(contents)]
    check_pieces(pieces)
    charsmap = parts[NORMALIZER].get(CHARSMAP, b"")
    if not isinstance(charsmap, bytes):
        raise ValueError("its normalizer's map is a number")
    return UnigramModel(pieces, read_charsmap(charsmap))


# --- protobuf


def fields(content: bytes) -> Iterator[tuple[int, Value]]:
    """Yield the number and the value of each field of a message. Raises ValueError where it is cut short or broken.

    A field begins with 8 * its number + its wire type. The type says what follows: 0 a whole number, 1 and 5 a float of 8
    or 4 bytes, 2 a length and so many bytes, which may be a text or a message again.
    """
    at = 0
    while at < len(content):
        key, at = varint(content, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = varint(content, at)
        elif wire_type == 2:
            length, at = varint(content, at)
            value = content[at : at + length]
            if len(value) < length:
                raise ValueError(f"it is cut short: field {number} has {length} bytes, of which {len(value)} are there")
            at += length
        elif wire_type in (1, 5):
            code, length = ("<d", 8) if wire_type == 1 else ("<f", 4)
            if len(content) < at + length:
                raise ValueError(f"it is cut short in field {number}")
            (value,) = struct.unpack_from(code, content, at)
            at += length
        else:
            raise ValueError(f"field {number} has the wire type {wire_type}; known are 0, 1, 2 and 5")
        yield number, value


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the whole number that stands at a place, and the place behind it. Raises ValueError.

    Each of its bytes holds 7 bits, the lowest first, and says with its highest bit whether another byte follows.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it is cut short within a number")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number in it has more than 10 bytes")


# --- what the fields mean


def piece_of(content: bytes, number: int) -> Piece:
    """Return a piece. `number` is its id. Raises ValueError."""
    found = dict(fields(content))
    text, score, kind = found.get(1), found.get(2, 0.0), found.get(3, NORMAL)
    if not isinstance(text, bytes) or not text:
        raise ValueError(f"its piece {number} has no text")
    if not isinstance(score, float) or not math.isfinite(score):
        raise ValueError(f"its piece {number} has the score {score!r}, which is no finite number")
    if not isinstance(kind, int) or kind not in range(NORMAL, BYTE + 1):
        raise ValueError(f"its piece {number} is of the kind {kind!r}; known are {NORMAL} to {BYTE}")
    decoded = text.decode()
    if len(decoded) > LONGEST_PIECE:
        raise ValueError(f"its piece {number} has {len(decoded)} characters; at most {LONGEST_PIECE} are read")
    return Piece(decoded, score, kind)


def check_pieces(pieces: list[Piece]) -> None:
    """Raise ValueError where pieces are missing, or stand there twice."""
    texts = {kind: [piece.text for piece in pieces if piece.kind == kind] for kind in range(NORMAL, BYTE + 1)}
    if not texts[NORMAL]:
        raise ValueError("it holds no pieces but special ones")
    if len(texts[UNKNOWN]) != 1:
        raise ValueError(f"it has {len(texts[UNKNOWN])} pieces for what is unknown; one is needed")
    if sorted(texts[BYTE]) != BYTE_PIECES:
        raise ValueError(f"its {len(texts[BYTE])} pieces of bytes aren't {BYTE_PIECES[0]} to {BYTE_PIECES[-1]}")
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if first.setdefault(piece.text, number) != number:
            raise ValueError(f"its pieces {first[piece.text]} and {number} are both {piece.text!r}")


def check_parts(parts: dict[int, dict[int, Value]]) -> None:
    """Raise ValueError where the model isn't a unigram, or a setting changes ids in a way that isn't known here."""
    model_type = parts[TRAINER].get(3, UNIGRAM)
    if model_type != UNIGRAM:
        name = MODEL_TYPES.get(model_type, model_type) if isinstance(model_type, int) else model_type
        raise ValueError(f"it is a model of type {name}; only unigram is read")
    for part, required in REQUIRED.items():
        for number, (name, default, needed) in required.items():
            found = parts[part].get(number, default)
            if found != needed:
                raise ValueError(f"it sets {name} to {found!r}, which isn't supported; it must be {needed!r}")
    if unknown := parts[NORMALIZER].keys() - NORMALIZER_FIELDS:
        raise ValueError(f"its normalizer has a field {min(unknown)}, and what that means isn't known here")
    if parts[DENORMALIZER].get(CHARSMAP):
        raise ValueError("it has a denormalizer, a map for texts that are written, which isn't supported")


# --- the normalizer's map


def read_charsmap(content: bytes) -> dict[str, str]:
    """Return what each text of a precompiled map becomes. Raises ValueError where the map is broken.

    The map is the size of a trie in bytes, the trie, and the replacements, each with a NUL byte behind it. A node of the
    trie stands for the first bytes of some texts. Its unit of 32 bits lies at a place in an array (a "double-array trie",
    Aoe 1989), and has these bits:

    0 to 7        the last of the node's bytes: its label
    8             whether the node is the end of a text
    9, 10 to 31   an offset, which is 256 times as large where bit 9 is set

    place XOR offset is the node's base, and base XOR label the place of the child with this label. At the base itself lies
    a leaf if the node is the end of a text: the highest bit is set, the others are the place of the replacement.
    """
    if not content:
        return {}
    size = int.from_bytes(content[:4], "little")
    if len(content) < 4 or size % 4 or not 4 <= size <= len(content) - 4:
        raise ValueError(f"its normalizer's map has {len(content)} bytes, which a trie of {size} bytes doesn't fit")
    units = struct.unpack_from(f"<{size // 4}I", content, 4)
    texts = content[4 + size :]
    children = defaultdict(list)  # base -> label and place of each child
    for place, unit in enumerate(units):
        label = unit & 0xFF
        if label and unit < 1 << 31:
            children[place ^ label].append((label, place))
    found: dict[str, str] = {}
    todo = [(b"", 0)]  # nodes, each with the bytes that lead to it, and its place
    while todo:
        key, place = todo.pop()
        unit = units[place]
        base = place ^ (unit >> 10) << (8 if unit & 0x200 else 0)
        if unit & 0x100 and key:
            found[key.decode()] = replacement_at(texts, units[base] & 0x7FFFFFFF if base < len(units) else len(texts))
        todo += [(key + bytes([label]), child) for label, child in children.get(base, ())]
        if len(key) > LONGEST_KEY or len(found) + len(todo) > MOST_KEYS:
            raise ValueError("its normalizer's map goes in a circle")
    return found


def replacement_at(texts: bytes, place: int) -> str:
    """Return the text that begins at a place and ends with a NUL byte. Raises ValueError where there is none."""
    end = texts.find(b"\0", place, place + LONGEST_REPLACEMENT)
    if end < 0:
        raise ValueError(f"its normalizer's map has no replacement at {place}")
    return texts[place:end].decode()
