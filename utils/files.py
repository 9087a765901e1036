"""Files that are there whole or not at all, whenever a process is killed or a disk is full; and JSON files."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError


def user_path(text: str) -> Path:
    """Return a path as a user writes it: ~ stands for the home directory, which a shell puts in only after a space."""
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write to. It takes the place of `path` once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, so that `path` never holds half of it."""
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")


def check_holds_only(directory: Path, names: Iterable[str], flag: str) -> None:
    """Raise UserError where a directory that is to be written holds, beside hidden files, more than what will be written.

    What lies there may be of another model, and whoever reads the directory would take it for a part of this one.
    """
    if not directory.is_dir():
        return
    names = [*names]
    others = sorted(path.name for path in directory.iterdir() if path.name not in names and not path.name.startswith("."))
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise UserError(
            f"{flag} {directory} holds {others[0]}{more}, which the export doesn't write: name an empty or a new directory"
        )


def remove_temporary_files(directory: Path) -> None:
    """Remove what killed writers left behind: our temporary files, and those of safetensors such as .tmpuZ6CF8."""
    for path in directory.glob(".*"):
        if re.fullmatch(r"\..+\.\d+|\.tmp\w{6}", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def read_json(file: Path) -> Any:
    """Return the content of a JSON file. Whatever is wrong with the file is an OSError or a ValueError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it has too many brackets within brackets") from None
