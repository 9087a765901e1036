"""Reads the files of data sets. What is wrong with one is an error of one line: the place, and what was expected."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError


class TextExample(NamedTuple):
    """A text, or a pair of them, with the number of its class in the task's `labels`."""

    text: str
    label: int
    pair: str | None = None  # the second text of a task about two

    def content(self) -> tuple:
        """Return what a hash of the data depends on."""
        return self[:2] if self.pair is None else self


def read_text(path: Path) -> str:
    """Return the content of a file in UTF-8. Raises UserError with the line where it isn't."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: expected UTF-8, got the byte {error.object[error.start]:#x}") from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line. Only a newline ends one: texts may hold other characters that Python splits at."""
    content = read_text(path)
    if not content.strip():
        raise UserError(f"{path} is empty")
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        yield f"{path}, line {number}", line.removesuffix("\r")


def read_tsv(path: Path, columns: tuple[str, ...], labels: tuple[str, ...]) -> list[TextExample]:
    """Return the examples of a file as GLUE has them: a line with the columns' names, then rows in which quotes are text.

    `columns` are those of the texts, one or two; the label stands in "label". Spaces around a text belong to it.
    Raises UserError.
    """
    lines = read_lines(path)
    place, first = next(lines)
    header = first.split("\t")
    if missing := [name for name in (*columns, "label") if name not in header]:
        raise UserError(f"{place}: expected the column {missing[0]}, got {shown(header)}")
    examples = []
    for place, line in lines:
        row = line.split("\t")
        if len(row) != len(header):
            raise UserError(f"{place}: expected {len(header)} columns ({', '.join(header)}), got {len(row)}: {shown(row)}")
        examples.append(make_example(place, dict(zip(header, row, strict=True)), columns, "label", labels))
    return at_least_one(str(path), examples)


def read_quoted(
    path: Path, swallows: Callable[[list[str]], bool], delimiter: str = ",", strict: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, row) for each row of a file in which a text between quotes may run over several lines.

    swallows   whether lines that a quote joined are several rows in truth

    Raises UserError with the line where a quote opens that swallows rows, or never closes.
    """
    lines = list(io.StringIO(read_text(path), newline=""))
    reader, done = csv.reader(lines, delimiter=delimiter, strict=strict), 0
    try:
        for row in reader:
            joined, place = lines[done : reader.line_num], f"{path}, line {done + 1}"
            if swallows(joined):
                raise UserError(
                    f"{place}: a quote opens that swallows lines up to line {reader.line_num}; close or remove it"
                )
            if reader.line_num == len(lines) and is_open(joined, delimiter):
                raise UserError(f"{place}: a quote opens that never closes; close or remove it")
            yield place, row
            done = reader.line_num
    except csv.Error as error:
        opened = f"; a quote opens in line {done + 1}" if reader.line_num > done + 1 else ""
        raise UserError(f"{path}, line {reader.line_num}: {error}{opened}") from None


def is_open(lines: list[str], delimiter: str) -> bool:
    """Return whether a quote is still open behind the lines of a row: it swallows whatever comes next."""
    return len(list(csv.reader([*lines, "next"], delimiter=delimiter))) == 1


def read_jsonl(path: Path, columns: tuple[str, ...], labels: tuple[str, ...]) -> list[TextExample]:
    """Return the examples of a file with a JSON object per line: texts under `columns`, the label under "label"."""
    return [
        make_example(place, parse_json(line, path, number), columns, "label", labels)
        for number, (place, line) in enumerate(read_lines(path), start=1)
    ]


def parse_json(text: str, path: Path, line: int = 1) -> object:
    """Return the content of a JSON text. Raises UserError with the line; that of the text's first is `line`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets within brackets
        line += getattr(error, "lineno", 1) - 1
        raise UserError(f"{path}, line {line}: no JSON: {getattr(error, 'msg', error)}") from None


def make_example(place: str, record: object, columns: tuple[str, ...], label: str, labels: tuple[str, ...]) -> TextExample:
    """Return one record as an example. `labels` are the file's own words, in the order of the task's. Raises UserError."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object with {', '.join((*columns, label))}, got {shown(record)}")
    for name in (*columns, label):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise UserError(f"{place}: expected a text under {name}, got {shown(record.get(name))}")
    if record[label] not in labels:
        raise UserError(f"{place}: the {label} is {shown(record[label])}; it must be one of {', '.join(labels)}")
    texts = [record[name] for name in columns]
    return TextExample(texts[0], labels.index(record[label]), *texts[1:])


def at_least_one(place: str, examples: list[TextExample]) -> list[TextExample]:
    """Return the examples. Raises UserError where there are none."""
    if not examples:
        raise UserError(f"{place} holds no examples")
    return examples


def has_labels(read: Callable[[Path], list[TextExample]], counts: tuple[int, ...]) -> Callable[[Path], None]:
    """Return a check of a download whose hash isn't known: it can be read, and has so many examples of each label."""

    def check(path: Path) -> None:
        labels = [example.label for example in read(path)]
        found = tuple(labels.count(label) for label in range(len(counts)))
        if found != counts:
            raise UserError(f"has {found} examples of each label, expected {counts}")

    return check


def shown(value: object) -> str:
    """Return a value of a file for a message: short, and unable to control the terminal."""
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:80] + "..."
