"""Files that are there whole or not at all, whenever a process is killed or a disk is full."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to. It takes the place of `path` once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`path` never holds half of it."""
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")


def sweep(directory: Path) -> None:
    """Removes what writers that were killed left behind: ours, and safetensors with files like .tmpuZ6CF8."""
    for path in directory.glob(".*"):
        if re.fullmatch(r"\..+\.\d+|\.tmp\w{6}", path.name) and path.is_file():
            path.unlink(missing_ok=True)
