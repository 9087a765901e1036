"""Streams the texts of a file that are to be predicted: rows are read as those of --dataset, of a .txt each line is a text.

No more than a row is held at once, whatever the size of the file, unless it is one JSON list.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.files import shown
from data.own import TEXTS, Columns, describe_columns, find_texts, texts_in
from data.tables import SUFFIXES, Row, Table, as_rows, lines_of, read_lines, read_table
from utils.errors import UserError, note

LINES = ".txt"
READ = (LINES, *SUFFIXES)  # the suffixes of what is read


class TextRow(NamedTuple):
    """A text, or a pair of texts, and where it stands."""

    place: str
    text: str
    pair: str | None = None


def read_texts(file: Path, named: Columns, trained: Columns | None = None) -> tuple[Iterator[TextRow], str]:
    """Return the texts of a file, in their order, and what there is to say about its columns, if any. Raises UserError.

    named     the columns that are to be read
    trained   where `named` names none, those that are read if the file has them; else it is those with usual names
    """
    suffix = file.suffix.lower()
    if suffix not in READ:
        raise UserError(f"{file} is a file of an unknown kind; what is read: {', '.join(READ)}")
    if suffix == LINES:
        return texts_of(read_lines(file), str(file)), ""
    table = read_table(file)
    first = next(table.rows, None)
    if first is None:
        raise UserError(f"{file} holds no texts")
    columns = find_texts(str(file), [*first.cells], named, trained)
    name = columns.text or ""
    if table.delimiter and len(first.cells) == 1 and named.text is None and name.casefold() not in TEXTS:
        note(f"{file}: the first line, {shown(name)}, is taken for the name of its column; if it is a text, name one above")
    said = "; ".join(filter(None, (describe_columns(columns, [*first.cells]), table.note)))
    return texts_in_rows(chain([first], table.rows), columns, table), said


def texts_in_rows(rows: Iterator[Row], columns: Columns, table: Table) -> Iterator[TextRow]:
    """Yield the texts of rows. Raises UserError. The first row that may be several is said: labels would tell, if read."""
    is_said = False
    for row in rows:
        if row.lines and not is_said and as_rows(row, table.delimiter):
            note(f"{row.place}: quotes enclose {len(row.lines)} lines, each of which may be a row: close or double a quote")
            is_said = True
        yield TextRow(row.place, *texts_in(row, columns, may_be_empty=True))


def read_stream(stream: BinaryIO, name: str) -> Iterator[TextRow]:
    """Yield the texts of a stream with one on each line; `name` is what errors call it. Raises UserError."""
    return texts_of(lines_of(stream, name), name)


def texts_of(lines: Iterator[str], name: str) -> Iterator[TextRow]:
    """Yield each line as a text, without its end. Only a newline ends one. Raises UserError."""
    number = 0
    for number, line in enumerate(lines, start=1):
        yield TextRow(f"{name}, line {number}", line.removesuffix("\n").removesuffix("\r"))
    if not number:
        raise UserError(f"{name} holds no texts")
