"""Reads the rows of a table: CSV, TSV, JSON Lines, a JSON list, parquet. A row is a dict from the columns' names to cells.

No line is read beyond LONGEST characters, and of a CSV or JSON Lines file no more than one row is held at a time.
"""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.dialogues import parse_json
from data.files import read_text, shown
from utils.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
LONGEST = 1 << 24  # bytes of a line, characters of a cell
LARGEST_LIST = 1 << 28  # bytes of a JSON list, which is read as a whole
UTF16 = (b"\xff\xfe", b"\xfe\xff")
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs"}  # of a .csv whose first line has no comma


class BadRow(UserError):
    """A row with other cells than the first line names."""


class Row(NamedTuple):
    """A row, where it stands, and the lines that a quoted cell made it run over."""

    place: str
    cells: dict[str, object]
    lines: tuple[str, ...] = ()


class Table(NamedTuple):
    """The rows of a file, what separates their cells, and what there is to say about that."""

    rows: Iterator[Row]
    delimiter: str = ""
    note: str = ""


def read_table(path: Path) -> Table:
    """Return the rows of a file by its suffix, one of SUFFIXES. Each row is read as it is asked for. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Table(parquet_rows(path))
    if suffix in (".json", ".jsonl"):
        return Table(list_rows(path) if is_list(path) else json_rows(path))
    if suffix == ".tsv":
        quotes = quotes_enclose(path)
        return Table(csv_rows(path, "\t", quotes), "\t", "" if quotes else "quotes are read as text")
    first = head_of(path)
    delimiter, note = find_delimiter(first)
    names = first.split(delimiter)[1:]
    spaces = bool(names) and all(name.startswith(" ") for name in names)
    notes = [note, "the space before a cell is no part of it, as in the first line" if spaces else ""]
    return Table(csv_rows(path, delimiter, quotes=True, spaces=spaces), delimiter, "; ".join(filter(None, notes)))


# --- lines


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, as `lines_of` does. Raises UserError."""
    try:
        with path.open("rb") as file:
            yield from lines_of(file, str(path))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def lines_of(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of a stream in UTF-8, each with its newline, without a byte order mark in front. Raises UserError.

    name   what errors call the stream
    """
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        yield decoded(f"{name}, line {number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def decoded(place: str, line: bytes) -> str:
    """Return a line as text. Raises UserError."""
    if len(line) > LONGEST:
        raise UserError(too_long(place))
    if line.startswith(UTF16) or b"\0" in line:
        what = "is in UTF-16" if line.startswith(UTF16) else "holds a NUL byte"
        raise UserError(f"{place}: it {what}; save the file as UTF-8")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: expected UTF-8, got the byte {error.object[error.start]:#x}; save the file as UTF-8"
        ) from None


def too_long(place: str) -> str:
    """Return what is wrong with a line of more than LONGEST bytes."""
    return f"{place}: it has more than {LONGEST:,} bytes; is a line break or a quote missing?"


def beginning(path: Path, size: int) -> bytes:
    """Return the first bytes of a file, at most `size`. Raises UserError."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def head_of(path: Path) -> str:
    """Return the first line of a file that isn't blank, "" where there is none. Raises UserError."""
    return next((line for line in read_lines(path) if line.strip()), "")


# --- CSV


def find_delimiter(first: str) -> tuple[str, str]:
    """Return what separates the cells of a .csv by its first line, and a note where it is no comma."""
    for delimiter, name in OTHER_DELIMITERS.items():
        if delimiter in first and "," not in first:
            return delimiter, f"cells are separated by {name}"
    return ",", ""


def quotes_enclose(path: Path) -> bool:
    """Return whether quotes in a .tsv enclose cells. They are text where the whole file fits that alone. Raises UserError.

    Nothing in a .tsv says which is meant, and any row may decide it. So the file is gone through once before its first row
    is used, which takes no memory: a file is read alike by a run, which has all of it, and by --predict, which streams it.
    """
    return are_rows_whole(path, quotes=True) or not are_rows_whole(path, quotes=False)


def are_rows_whole(path: Path, quotes: bool) -> bool:
    """Return whether all rows of a .tsv have a cell for each column, none of them made of what may be several rows."""
    try:
        return not any(as_rows(row, "\t") for row in csv_rows(path, "\t", quotes))
    except BadRow:
        return False


@contextmanager
def long_cells():
    """Let the module csv read cells up to LONGEST; its own limit holds for the whole process."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_rows(path: Path, delimiter: str, quotes: bool, spaces: bool = False) -> Iterator[Row]:
    """Yield the rows of a file whose first line names the columns. Raises UserError.

    A blank line is none, unless there is one column: an empty cell.

    spaces   whether one stands before each cell without being a part of it, so that a quote behind it encloses the cell
    """
    taken: list[str] = []  # the lines of the row under way

    def lines() -> Iterator[str]:
        for line in read_lines(path):
            taken.append(line)
            yield line

    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=quotes, skipinitialspace=spaces)
    header: list[str] = []
    number = 1  # of the first line of the row under way
    while True:
        place = f"{path}, line {number}"
        try:
            with long_cells():
                cells = next(reader, None)
        except csv.Error as error:
            reason = f"{error}; is a quote in this row not closed, or not doubled?"
            if "new-line character" in str(error):  # the module's words are about how Python opens a file
                reason = "a carriage return stands outside of quotes; lines end with a newline, or with both"
            raise BadRow(f"{place}: {reason}") from None
        if cells is None:
            return
        number += len(taken)
        if header and (cells or len(header) == 1):
            cells = cells or [""]
            if len(cells) != len(header):
                names = ", ".join(header)
                raise BadRow(f"{place}: expected {len(header)} cells ({names}), got {len(cells)}: {shown(cells)}")
            yield Row(place, dict(zip(header, cells, strict=True)), tuple(taken) if len(taken) > 1 else ())
        elif cells:
            header = [name.strip() for name in cells]
            check_header(place, header)
        taken.clear()


def check_header(place: str, header: list[str]) -> None:
    """Raise UserError where two columns have one name. Several without a name are nobody's: they aren't read."""
    double = next((name for name in header if name and header.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{place}: two columns are called {shown(double)}; rename one of them")


def as_rows(row: Row, delimiter: str) -> list[dict[str, str]]:
    """Return the lines of a row as rows of their own, quotes being text; [] unless each of them can be one."""
    try:
        with long_cells():
            lines = [csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE) for line in row.lines]
            found = [next(reader, []) for reader in lines]
    except csv.Error:
        return []
    whole = all(len(cells) == len(row.cells) for cells in found)
    return [dict(zip(row.cells, cells, strict=True)) for cells in found] if whole else []


# --- JSON


def is_list(path: Path) -> bool:
    """Return whether a file is one JSON list rather than objects, one on each line. Raises UserError."""
    return beginning(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a file with one on each line. Raises UserError."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield object_row(f"{path}, line {number}", line)


def list_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a file that is one JSON list. Raises UserError."""
    if (size := path.stat().st_size) > LARGEST_LIST:
        raise UserError(
            f"{path} is a JSON list of {size:,} bytes; at most {LARGEST_LIST:,} are read: write one object a line"
        )
    try:
        records = parse_json(read_text(path).removeprefix("\ufeff"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets within brackets
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{where}: no JSON: {getattr(error, 'msg', error)}") from None
    for number, record in enumerate(records, start=1):
        yield checked_row(f"{path}, record {number}", record)


def object_row(place: str, line: str) -> Row:
    """Return the object on a line. Raises UserError."""
    try:
        return checked_row(place, parse_json(line))
    except RecursionError:
        raise UserError(f"{place}: no JSON: it has too many brackets within brackets") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{place}: no JSON: {getattr(error, 'msg', error)}") from None


def checked_row(place: str, record: object) -> Row:
    """Return a record as a row. Raises UserError unless it is an object."""
    if not isinstance(record, dict):
        raise UserError(f'{place}: expected an object such as {{"text": ..., "label": ...}}, got {shown(record)}')
    return Row(place, record)


def first_objects(path: Path, most: int = 20) -> list[dict]:
    """Return the first objects of a .json or .jsonl, as far as they can be read without the rest of it. Raises UserError.

    Whether the file is a list or has an object on each line makes no difference here.
    """
    head = beginning(path, LONGEST + 1)
    if len(head) > LONGEST and b"\n" not in head and not is_list(path):
        raise UserError(too_long(f"{path}, line 1"))
    text = head.decode("utf-8", "replace").removeprefix("\ufeff")
    found, end, decoder = [], 0, json.JSONDecoder()
    between = re.compile(r"[\s,\[]*")
    while len(found) < most:
        try:
            record, end = decoder.raw_decode(text, between.match(text, end).end())
        except (ValueError, RecursionError):
            break
        found += [record] if isinstance(record, dict) else []
    return found


# --- parquet


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, a batch in memory at a time. Raises UserError, also where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} is a parquet file, which needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_header(str(path), file.schema_arrow.names)
            classes = class_names(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(1000):
                for record in batch.to_pylist():
                    number += 1
                    named = {column: name_of(names, record.get(column)) for column, names in classes.items()}
                    yield Row(f"{path}, row {number}", record | named)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet: {error}") from None


def class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes in each column for which the library datasets wrote numbers, with names beside."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {column: [*map(str, one["names"])] for column, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def name_of(names: list[str], label: object) -> object:
    """Return the name of a numbered class; a number without one, such as -1 for a label that isn't told, stays."""
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label
