"""Break a file: each function takes a random generator and the file's bytes, and returns other bytes."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

Draw = random.Random
Mutation = Callable[[Draw, bytes], bytes]


class Trap:
    """Leave a file in the current directory when a pickle of it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("pickle-was-loaded"),)


PICKLED = pickle.dumps(Trap())
NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 65536, 10**6, 10**7, 10**9, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63))
FLOATS = (0.0, -0.5, 1.5, 2.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "x", "1", "-1", "true", "a\nb", "\x00", "\ud800", "\x1b[31m", "é" * 50, "x" * 20_000, "<x>", "all")
PATHS = ("../outside/model.safetensors", "../../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "model.safetensors/..")
PLAIN = (None, True, False, [], {}, [[]], [None], {"x": 1}, {"": {}}, [1, 2], ["a", "b"])
BOMBS = ("[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000, "9" * 5000, "1e9999", '"\\ud800"', "[1e400]", "NaN", "")


def hostile(draw: Draw) -> object:
    """Draw a value that no reader expects."""
    return draw.choice(draw.choice((NUMBERS, NUMBERS, FLOATS, TEXTS, PATHS, PLAIN)))


def twisted(draw: Draw, value: object) -> object:
    """Draw a value near to the right one: a float for an int, its text, itself in a list, twice itself."""
    near = [str(value), [value], {"value": value}, hostile(draw), hostile(draw)]
    if isinstance(value, int | float):
        near += [float(value), value + 1, value * 2, -value, value * 1000]
    if isinstance(value, str | list):
        near += [value * 2, value[:-1], value[::-1]]
    return draw.choice(near)


def containers(content: object) -> list:
    """Return all objects and lists in `content` that aren't empty."""
    if not isinstance(content, dict | list):
        return []
    inner = content.values() if isinstance(content, dict) else content
    return [content] * bool(content) + [one for part in inner for one in containers(part)]


def change(draw: Draw, content: object) -> None:
    """Change one thing somewhere in `content`, in place."""
    if not (places := containers(content)):
        return
    place = draw.choice(places)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, other = draw.choice(keys), draw.choice(keys)
    what = draw.randrange(6)
    if what == 0:
        del place[key]
    elif what == 1:
        place[key], place[other] = place[other], place[key]
    elif what == 2 and isinstance(place, dict):
        place[str(hostile(draw))] = place.pop(key)
    elif what == 2:
        place.insert(key, hostile(draw))
    else:
        place[key] = twisted(draw, place[key])


def tree(draw: Draw, raw: bytes) -> bytes:
    """Return JSON with other values, fewer keys, keys of other names or a key twice."""
    content = json.loads(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change(draw, content)
    text = json.dumps(content)
    if isinstance(content, dict) and content and draw.random() < 0.1:
        text = text[:-1] + f", {json.dumps(draw.choice(list(content)))}: {json.dumps(hostile(draw))}}}"
    return text.encode()


def escape(draw: Draw, raw: bytes) -> bytes:
    """Return an index of shards that puts one of them in another place."""
    content = json.loads(raw)
    content["weight_map"][draw.choice(list(content["weight_map"]))] = draw.choice(PATHS)
    return json.dumps(content).encode()


def bomb(draw: Draw, raw: bytes) -> bytes:
    """Return what is no JSON, or is nested too deeply, as a whole or in one value."""
    chosen = draw.choice(BOMBS)
    if draw.random() < 0.5:
        return chosen.encode()
    at = raw.find(b":") + 1
    return raw[:at] + chosen.encode() + raw[draw.choice((at, len(raw))) :]


def lines(draw: Draw, raw: bytes) -> bytes:
    """Return a text with its lines or columns in disorder."""
    rows = raw.split(b"\n")
    at, other = draw.randrange(len(rows)), draw.randrange(len(rows))
    cells = rows[at].split(b"\t")
    odd = ("\ufeff", "\x00", '"', '""', "\t", "\r", "\u2028", "\x1b]0;x\x07", " ", "x" * 200_000, "\t" * 1000, ",", "[PAD]")
    changes = (
        lambda: rows.pop(at),
        lambda: rows.insert(at, rows[other]),
        lambda: rows.__setitem__(at, rows[other] + rows[at]),
        lambda: rows.__setitem__(at, b""),
        lambda: rows.insert(at, draw.choice(odd).encode()),
        lambda: rows.__setitem__(at, draw.choice(odd).encode() + rows[at]),
        lambda: rows.__setitem__(at, rows[at] + draw.choice(odd).encode()),
        lambda: rows.__setitem__(at, b"\t".join(draw.sample(cells, len(cells)))),
        lambda: rows.__setitem__(at, b"\t".join(cells[:-1])),
        lambda: rows.__setitem__(slice(None), rows[:at]),
        lambda: rows.__setitem__(slice(None), [row + b"\r" for row in rows]),
        lambda: rows.reverse(),
    )
    for _ in range(draw.choice((1, 1, 2, 5))):
        draw.choice(changes)()
        if not rows:
            break
        at, other = draw.randrange(len(rows)), draw.randrange(len(rows))
        cells = rows[at].split(b"\t")
    return b"\n".join(rows)


def line_of_json(draw: Draw, raw: bytes) -> bytes:
    """Return JSONL with one broken record."""
    rows = raw.split(b"\n")
    at = draw.randrange(len(rows) - 1)
    rows[at] = draw.choice((tree, tree, bomb))(draw, rows[at])
    return b"\n".join(rows)


def raw_bytes(draw: Draw, raw: bytes) -> bytes:
    """Flip a bit; cut a part out, insert or repeat it; return nothing, or something else altogether."""
    at, end = sorted((draw.randint(0, len(raw)), draw.randint(0, len(raw))))
    junk = draw.randbytes(draw.choice((1, 4, 100)))
    changes = (
        lambda: raw[:at],
        lambda: raw[:at] + raw[end:],
        lambda: raw[:at] + junk + raw[at:],
        lambda: raw[:at] + junk + raw[at + len(junk) :],
        lambda: raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :] if at < len(raw) else junk,
        lambda: raw[:end] + raw[at:],
        lambda: raw + raw,
        lambda: b"",
        lambda: draw.choice((junk, PICKLED, b"\xff" * 100, b"\x00" * 100, raw.decode("latin-1").encode("utf-16"))),
    )
    return draw.choice(changes)()


def misplace(draw: Draw, file: Path) -> None:
    """Remove the file, put a directory or a pickle in its place, or put a pickle beside it."""
    what = draw.randrange(4)
    if what < 3:
        file.unlink()
    if what == 1:
        file.mkdir()
    if what == 2:
        file.with_name("pytorch_model.bin").write_bytes(PICKLED)
    if what == 3:
        file.write_bytes(PICKLED)


# --- safetensors: the header's length in 8 bytes, the header in JSON, the data


def safetensors_length(draw: Draw, raw: bytes) -> bytes:
    """State a wrong length of the header."""
    (size,) = struct.unpack("<Q", raw[:8])
    lies = (0, 1, 7, size - 1, size + 1, size * 2, len(raw), len(raw) - 8, len(raw) - 7, 10**8, 10**8 + 1, 2**63, 2**64 - 1)
    return struct.pack("<Q", draw.choice((*lies, draw.randrange(size)))) + raw[8:]


def safetensors_header(draw: Draw, raw: bytes) -> bytes:
    """Return a header that describes other tensors than there are."""
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    for _ in range(draw.choice((1, 1, 1, 3))):
        lie_about_a_tensor(draw, header, len(data))
    text = json.dumps(header)
    if draw.random() < 0.1:  # a name twice
        name = draw.choice(list(header))
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[draw.choice(list(header))])}}}"
    header = text.encode()
    if draw.random() < 0.1:
        header = draw.choice((bomb, raw_bytes))(draw, header)
    return struct.pack("<Q", len(header)) + header + draw.choice((data, data, data, data[:-4], data + b"\0" * 4))


def lie_about_a_tensor(draw: Draw, header: dict, n_bytes: int) -> None:
    names = [name for name in header if isinstance(header[name], dict) and header[name].get("shape")]
    if not names:
        return
    name = draw.choice(names)
    entry = header[name]
    shape, n_items = entry["shape"], 1
    offsets = entry.get("data_offsets") or [0, 0]
    for length in shape if all(isinstance(one, int) for one in shape) else ():
        n_items *= length
    what = draw.randrange(13)
    if what == 0:
        entry["dtype"] = draw.choice(("F16", "BF16", "F64", "I32", "BOOL", "F8_E4M3", "F4", "C64", "X9", "f32", "", 7))
    elif what == 1:
        entry["shape"] = draw.choice((shape[::-1], [n_items], [1, *shape], [], [0], [-1], [-1, -n_items], [n_items, 1, 1]))
    elif what == 2:
        entry["shape"] = [draw.choice((2**31, 2**40, 2**62, 2**63, 2**64)), *shape[1:]]
    elif what == 3:
        entry["data_offsets"] = [offsets[0] + draw.choice((-4, 4, 8)), offsets[1] + draw.choice((0, 4))]
    elif what == 4:
        entry["data_offsets"] = draw.choice(([0, 2**40], [2**63, 2**63], [-4, 0], [n_bytes, n_bytes + 4], offsets[::-1]))
    elif what == 5:  # two tensors in one place
        entry["data_offsets"] = header[draw.choice(names)].get("data_offsets")
    elif what == 6:  # one that has what two had
        entry["shape"], entry["data_offsets"] = [n_items // 2], [offsets[0], (offsets[0] + offsets[1]) // 2]
    elif what == 7:
        entry[draw.choice(("dtype", "shape", "data_offsets", "more"))] = hostile(draw)
    elif what == 8:
        entry.pop(draw.choice(list(entry)))
    elif what == 9:
        header[draw.choice((*TEXTS, *PATHS, name + "\n", name.replace("0", "9"), "lm_head.weight"))] = header.pop(name)
    elif what == 10:
        del header[name]
    elif what == 11:
        header["__metadata__"] = draw.choice((None, [], {"a": 1}, {"a": {}}, "x", {}, {"format": "tf"}))
    else:
        header[name] = hostile(draw)


# --- zip


def archive(draw: Draw, raw: bytes) -> bytes:
    """Return a zip with paths that lead out, a name twice, wrong sizes, or flags and methods that no one uses."""
    with zipfile.ZipFile(io.BytesIO(raw)) as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    wanted = next(iter(members))
    buffer = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    what = draw.randrange(5)
    with zipfile.ZipFile(buffer, "w", method) as bundle:
        for name in draw.sample(list(members), len(members)):
            called = draw.choice((*PATHS, wanted + "/", "")) if what == 0 and name == wanted else name
            bundle.writestr(called, members[name])
        if what == 1:
            bundle.writestr("../" * draw.randint(1, 9) + "outside/evil", b"evil")
        if what == 2:
            bundle.writestr(wanted + " ", b"")
    changed = bytearray(buffer.getvalue())
    for signature, sizes in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):  # a lie about the sizes, or the flags and method
        if what == 3 and (at := changed.find(signature)) >= 0:
            changed[at + sizes : at + sizes + 8] = struct.pack("<II", *draw.choices((0, 1, 10**6, 2**31, 2**32 - 1), k=2))
        if what == 4 and (at := changed.find(signature)) >= 0:
            odd = draw.choices((0, 1, 8, 9, 12, 14, 99, 2049), k=2)
            changed[at + sizes - 12 : at + sizes - 8] = struct.pack("<HH", *odd)
    return bytes(changed)


def zip_bomb(draw: Draw, raw: bytes) -> bytes:
    """Fill the wanted member with zeros that take hundreds of times the archive's size."""
    with zipfile.ZipFile(io.BytesIO(raw)) as bundle:
        return packed_zeros(next(iter(bundle.namelist())))


@cache
def packed_zeros(member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle, bundle.open(member, "w") as file:
        for _ in range(256):
            file.write(bytes(2**20))
    return buffer.getvalue()
