"""Write files of a user's own texts, and read them."""

import csv
from pathlib import Path

import pytest

from data.own import Columns, read_own
from utils.errors import UserError


def write(path: Path, rows: list[list], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def texts(n: int, *labels: object) -> list[list]:
    """Return n rows with a text of their own and the labels by turns."""
    return [[f"text {i}", labels[i % len(labels)]] for i in range(n)]


def own(path: Path, **columns: str):
    return read_own({None: [path]}, Columns(**columns))


def refused(path: Path, **columns: str) -> str:
    with pytest.raises(UserError) as caught:
        own(path, **columns)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value).replace(f"{path}", "FILE")
