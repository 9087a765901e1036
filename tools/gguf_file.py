"""Reads a GGUF file: its settings by name, and its tensors by name (github.com/ggml-org/ggml, docs/gguf.md).

The header is read by the package `gguf`, which is optional, and the tensors stay on the disk until they are asked for.
Nothing in the file is executed. A name such as "llama.block_count" is called "block_count" here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError

try:
    import gguf
except ImportError:
    gguf = None

# How weights may be stored. Those that begin with Q come in blocks of 32 along a row, each with a scale d in fp16:
# d * q of 8 bits or of 4; or d * q + m, with a minimum m in fp16.
TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")
PLAIN = TYPES[:2]
CHUNK = 1 << 22  # weights that are dequantized at a time
BROKEN = (
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
    TypeError,
)  # what gguf raises for a header that makes no sense


class Tensor(NamedTuple):
    """Describe a tensor; its bytes are on the disk. `shape` is PyTorch's, and `stored` has the same rows."""

    type: str
    shape: tuple[int, ...]
    stored: np.ndarray


class Reader(gguf.GGUFReader if gguf else object):
    """Is gguf's reader, and refuses a file that ends too early, where gguf goes on with what there is."""

    def _get(self, offset, dtype, count=1, override_order=None):
        found = super()._get(offset, dtype, count, override_order)
        if len(found) < count:
            raise ValueError(f"it is cut short: it ends before byte {int(offset) + int(count) * np.dtype(dtype).itemsize}")
        return found

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type == gguf.GGUFValueType.ARRAY and self._get(orig_offs + 4, np.uint64)[0] > len(self.data):
            raise ValueError(f"the list at byte {orig_offs} has more entries than the file has bytes")
        return super()._get_field_parts(orig_offs, raw_type)


class GGUFFile:
    """The settings and tensors of a file, and `architecture`, which names what kind of model it is.

    Raises UserError for a file that can't be read, or whose tensors are stored in a way that isn't known here.
    """

    def __init__(self, path: Path):
        if gguf is None:
            raise UserError("reading a GGUF file needs the package gguf, which isn't installed: python -m pip install gguf")
        self.path = path
        try:
            reader = Reader(path)
            fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        except BROKEN as error:
            raise UserError(f"{path} can't be read as GGUF: {error}") from None
        if reader.byte_order != "I":
            raise UserError(f"{path} has the byte order of another kind of machine")
        self.architecture = str(fields.pop("general.architecture", None))
        prefix = f"{self.architecture}."
        self.settings: dict[str, Any] = {name.removeprefix(prefix): value for name, value in fields.items()}
        self.tensors = {one.name: self._tensor(one) for one in reader.tensors}

    def _tensor(self, one) -> Tensor:
        kind, shape = one.tensor_type.name, tuple(int(n) for n in one.shape[::-1])  # they count from the innermost
        if kind not in TYPES:
            raise UserError(f"{self.path} stores {one.name} as {kind}; what is read: {', '.join(TYPES)}")
        if len(shape) == 1 and kind not in PLAIN:
            raise UserError(f"{self.path} stores the vector {one.name} as {kind}; what is read: {', '.join(PLAIN)}")
        return Tensor(kind, shape, one.data)

    def rows(self, name: str, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield a tensor's rows in fp32, some at a time, all or those that `order` lists. Raises UserError for a NaN."""
        kind, shape, stored = self.tensors[name]
        order = np.arange(shape[0]) if order is None else order
        step = max(1, CHUNK // int(np.prod(shape[1:])))
        for start in range(0, len(order), step):
            part = stored[order[start : start + step]]
            with np.errstate(all="ignore"):  # of a scale that is no number; found below
                weights = gguf.dequantize(part, gguf.GGMLQuantizationType[kind])
            if not np.isfinite(weights).all():
                raise UserError(f"{self.path}: {name} holds a weight that isn't a finite number")
            yield weights

    def size(self, name: str, default: int | None = None) -> int:
        """Return a setting that counts something. Raises UserError where it doesn't, or is missing without a default."""
        value = self.settings.get(name, default)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.path} sets {name} to {value!r}; it must be a number from 1 on")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Return a positive setting in fp32 as the shortest number that means it: 9.999999747378752e-06 is 1e-05."""
        value = self.settings.get(name, default)
        if type(value) is not float or not 0 < value < float("inf"):
            raise UserError(f"{self.path} sets {name} to {value!r}; it must be a number above 0")
        return float(str(np.float32(value)))
