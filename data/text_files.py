"""Streams the texts of a user's own file: a text a line, or from columns of CSV, TSV, JSONL or JSON.

No more than a record is held at once, whatever the size of the file. What is wrong is an error of one line, with the place.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.files import parse_json, shown
from utils.errors import UserError

LONGEST = 2**24  # bytes of a line, or characters of a record of a JSON file; where no line ends, a file isn't text
BLOCK = 2**16  # characters of a JSON file that are read at once

# The usual names of columns, as they are found in any case. A file has one of them, or one of the pairs.
TEXT_COLUMNS = ("text", "sentence", "review", "content")
PAIR_COLUMNS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text_a", "text_b"))

Record = tuple[str, dict]  # its place, "reviews.csv, line 3", and its values by column


class TextRow(NamedTuple):
    """A text, or a pair of texts, and where it stands."""

    place: str
    text: str
    pair: str | None = None


def read_texts(file: Path, text_column: str | None = None, pair_column: str | None = None) -> Iterator[TextRow]:
    """Yield the texts of a file, in their order. Its suffix, one of READERS, says what it is.

    text_column, pair_column   the columns; None: those with a usual name

    Raises UserError.
    """
    with opened(file) as stream:
        yield from texts_of(stream, str(file), file.suffix.lower(), text_column, pair_column)


def opened(file: Path) -> BinaryIO:
    """Return a file to read from. Raises UserError where it can't be read, or isn't one of READERS."""
    if file.suffix.lower() not in READERS:
        raise UserError(f"{file} is a file of an unknown kind; what is read: {', '.join(READERS)}")
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from None


def texts_of(
    stream: BinaryIO, name: str, suffix: str, text_column: str | None = None, pair_column: str | None = None
) -> Iterator[TextRow]:
    """Yield the texts of a stream. As `read_texts`; `name` is what errors call it."""
    if suffix == ".txt":
        if column := text_column or pair_column:
            raise UserError(f"{name} has no columns, so none is named {column}: each of its lines is a text")
        rows: Iterator[TextRow] = (TextRow(place, line) for place, line in numbered_lines(stream, name))
    else:
        rows = texts_in_columns(READERS[suffix](stream, name), name, text_column, pair_column)
    row = None
    for row in rows:
        yield row
    if row is None:
        raise UserError(f"{name} holds no texts")


def texts_in_columns(
    records: Iterator[Record], name: str, text_column: str | None, pair_column: str | None
) -> Iterator[TextRow]:
    """Yield the texts of records; which columns hold them is said by the first one."""
    columns: tuple[str, ...] = ()
    for place, record in records:
        columns = columns or find_columns(name, [*record], text_column, pair_column)
        for column in columns:
            if not isinstance(record.get(column), str):
                raise UserError(f"{place}: expected a text under {column}, got {shown(record.get(column))}")
        yield TextRow(place, *(record[column] for column in columns))


# --- which columns


def find_columns(name: str, columns: list[str], text_column: str | None, pair_column: str | None) -> tuple[str, ...]:
    """Return the column of the texts, or those of pairs: the ones that are named, else the ones with a usual name.

    name   of the file, for an error

    Raises UserError, with the columns, where a named one isn't there, or not exactly one choice is.
    """
    if text_column:
        wanted = [(text_column,)]
    else:
        wanted = [*((one,) for one in TEXT_COLUMNS), *(() if pair_column else PAIR_COLUMNS)]
        wanted = [names for names in wanted if {*names} <= {one.lower() for one in columns}]
        if len(wanted) != 1:
            which = "no column text (or sentence, review, content; of pairs sentence1 and sentence2, ...)"
            if wanted:
                which = f"more than one column that may be the text ({shown_columns([*chain(*wanted)])})"
            raise UserError(f"{name} has {which}; its columns: {shown_columns(columns)}; choose one with --text_column")
    found = tuple(column_named(name, columns, one) for one in (*wanted[0], *([pair_column] if pair_column else [])))
    if len({*found}) < len(found):
        raise UserError(f"--text_column and --pair_column are both {shown(found[0])}; a pair has two columns")
    return found


def column_named(name: str, columns: list[str], wanted: str) -> str:
    """Return the column with this name, else the only one with it in another case. Raises UserError."""
    found = [one for one in columns if one == wanted] or [one for one in columns if one.lower() == wanted.lower()]
    if len(found) != 1:
        what = f"more than one column {shown(wanted)}" if found else f"no column {shown(wanted)}"
        raise UserError(f"{name} has {what}; its columns: {shown_columns(columns)}")
    return found[0]


def shown_columns(columns: list[str], most: int = 20) -> str:
    """Return names of columns for a message."""
    return ", ".join(map(shown, columns[:most])) + (f" and {len(columns) - most} more" if columns[most:] else "")


# --- lines


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line of a stream in UTF-8, without its end. Raises UserError."""
    for number, line in enumerate(whole_lines(stream, name), start=1):
        yield f"{name}, line {number}", line.removesuffix("\n").removesuffix("\r")


def whole_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield each line with its end; only a newline ends one. Raises UserError for what is no text in UTF-8, or too long."""
    number = 0
    while data := stream.readline(LONGEST + 1):
        number += 1
        place = f"{name}, line {number}"
        if len(data) > LONGEST:
            raise UserError(f"{place}: longer than {LONGEST:,} bytes; is this a text file with a newline behind each line?")
        yield decoded(data.removeprefix(codecs.BOM_UTF8) if number == 1 else data, place)
    if not number:
        raise UserError(f"{name} is empty")


def decoded(data: bytes, place: str) -> str:
    """Return bytes as text. Raises UserError."""
    if b"\0" in data:
        raise UserError(f"{place}: expected text in UTF-8, got the byte 0x0")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: expected text in UTF-8, got the byte {data[error.start]:#x}") from None


# --- records


def read_csv(stream: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the records of CSV: the columns' names, then rows. A text between quotes may run over several lines."""
    reader, place, header = csv.reader(whole_lines(stream, name), strict=True), f"{name}, line 1", None
    try:
        for row in reader:
            if header is None:
                header = checked_header(row, place)
            elif row or len(header) == 1:  # an empty line is an empty text, unless a row has several
                yield place, record_of(row or [""], header, place)
            place = f"{name}, line {reader.line_num + 1}"
    except csv.Error as error:
        # At csv's own limit on a text as well: a quote that never closes takes in all that follows.
        open_quote = f"a quote opens that never closes, or a text has more than {csv.field_size_limit():,} characters"
        said = open_quote if "limit" in str(error) or "end of data" in str(error) else error
        raise UserError(f"{place}: {said}") from None


def read_tsv(stream: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the records of TSV: the columns' names, then rows in which quotes are text, as in the files of GLUE."""
    header = None
    for place, line in numbered_lines(stream, name):
        row = line.split("\t")
        if header is None:
            header = checked_header(row, place)
        elif line or len(header) == 1:
            yield place, record_of(row, header, place)


def checked_header(row: list[str], place: str) -> list[str]:
    """Return the columns' names, without spaces around them. Raises UserError where two are the same."""
    names = [name.strip() for name in row]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{place}: two columns are named {shown(twice[0])}")
    return names


def record_of(row: list[str], header: list[str], place: str) -> dict[str, str]:
    """Return a row by the names of its columns. Raises UserError."""
    if len(row) != len(header):
        raise UserError(f"{place}: expected {len(header)} columns ({shown_columns(header)}), got {len(row)}: {shown(row)}")
    return dict(zip(header, row, strict=True))


def read_jsonl(stream: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the records of a file with a JSON object per line. Lines without one are empty."""
    for number, (place, line) in enumerate(numbered_lines(stream, name), start=1):
        if line.strip():
            yield place, checked_record(parse_json(line, Path(name), number), place)


def checked_record(record: object, place: str) -> dict:
    """Return a record. Raises UserError unless it is an object."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object with texts by their columns, got {shown(record)}")
    return record


def read_json(stream: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the records of a JSON file, one list of objects, of which no more than a part is held."""
    content, number = JsonStream(stream, name), 0
    if (first := content.next_character()) != "[":
        more = "; a file with an object per line is a .jsonl" if first == "{" else ""
        raise UserError(f"{name} is empty" if not first else f"{name}: expected a list of objects{more}")
    ended = content.skip("[") and content.skip("]")
    while not ended:
        number += 1
        place = f"{name}, record {number}"
        yield place, checked_record(content.value(place), place)
        ended = content.skip("]")
        if not ended and not content.skip(","):
            raise UserError(f"{place}: expected a comma or the end of the list behind it")
    if character := content.next_character():
        raise UserError(f"{name}: expected nothing behind the end of its list, got {character!r}")


class JsonStream:
    """The characters of a JSON file, of which a part is held: what isn't read yet of the blocks so far."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream, self.name = stream, name
        self.decoder, self.parser = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self.text, self.at, self.line = "", 0, 1

    def more(self) -> bool:
        """Read on: as much as is held, so that a long record isn't tried too often. Return whether there was more."""
        data = self.stream.read(max(BLOCK, len(self.text) - self.at))
        try:
            text = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = f"{self.name}, line {self.line + error.object.count(10, 0, error.start)}"
            raise UserError(f"{place}: expected text in UTF-8, got the byte {error.object[error.start]:#x}") from None
        self.line += data.count(10)
        self.text, self.at = self.text[self.at :] + text, 0
        return bool(data)

    def next_character(self) -> str:
        """Return the next character that is no white space, without going past it, or "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self, character: str) -> bool:
        """Go past the next character that is no white space, if it is this one. Return whether it is."""
        found = self.next_character() == character
        self.at += found
        return found

    def value(self, place: str) -> object:
        """Return the value that begins here, and go past it. Raises UserError."""
        self.next_character()
        while True:
            try:
                value, self.at = self.parser.raw_decode(self.text, self.at)
                return value
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at > LONGEST:
                    raise UserError(f"{place}: no JSON, or longer than {LONGEST:,} characters") from None
                if not self.more():
                    raise UserError(f"{place}: no JSON: {getattr(error, 'msg', error)}") from None


READERS: dict[str, Callable[[BinaryIO, str], Iterator]] = {
    ".txt": numbered_lines,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".json": read_json,
}
