"""A user's own texts with labels: in which columns they stand, which labels there are, which texts are held out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.files import TextExample, shown
from data.own_splits import (
    SPLIT,
    SPLIT_NAMES,
    SPLIT_OF,
    UNTOLD,
    Text,
    check_labels,
    counts_of,
    describe_equal,
    divide,
    find_labels,
    key_of,
    printable,
    with_labels_told,
    with_numbers_alike,
)
from data.tables import Row, as_rows, read_table
from utils.errors import UserError

# The usual names of columns, in lower case.
TEXTS = (
    *("text", "sentence", "review", "content", "comment", "message", "document", "utterance", "tweet", "question"),
    *("body", "headline"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("text_a", "text_b"), ("question1", "question2")),
    *(("text1", "text2"), ("sentence_a", "sentence_b"), ("question", "sentence"), ("#1 string", "#2 string")),
)
LABELS = (
    *("label", "labels", "class", "target", "category", "sentiment", "gold_label", "intent", "topic", "emotion"),
    *("polarity", "rating", "stars", "is_duplicate", "quality"),
)
UNDECIDED = ("gold_label", "-")  # how SNLI and MultiNLI write that their annotators agreed on no label
LONGEST_LABEL = 200  # characters
NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


class Columns(NamedTuple):
    """The names of the columns that are read."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    split: str | None = None


class Own(NamedTuple):
    """A user's own data."""

    splits: dict[str, list[TextExample]]
    labels: tuple[str, ...]
    said: tuple[str, ...]  # what the header of a run says of it, a line each
    columns: Columns | None  # in which the texts of all files stand; None where they differ


def read_own(files: dict[str | None, list[Path]], named: Columns, notes: Sequence[str] = ()) -> Own:
    """Return the texts of some files. Raises UserError.

    files   the files of each split; those under None say themselves where a text belongs, or all is drawn
    named   the columns that flags name
    notes   on how the files were found
    """
    texts: list[Text] = []
    columns: dict[str, Columns] = {}  # by what is said of them, each once
    for split, paths in files.items():
        for path in paths:
            found, read, said = read_file(path, named, with_splits=split is None)
            texts += found if split is None else [one._replace(split=split) for one in found]
            columns[said] = Columns(read.text, read.pair)
    place = str(next(path for paths in files.values() for path in paths))
    texts, untold = with_labels_told(with_numbers_alike(texts))
    check_labels(texts, place)
    texts, origin = divide(texts, place, by_files=None not in files)
    labels = find_labels(texts)
    numbers = {label: number for number, label in enumerate(labels)}
    splits = {name: [one for one in texts if one.split == name] for name in SPLIT_NAMES}
    examples = {
        name: [TextExample(one.text, numbers[one.label], one.pair) for one in some] for name, some in splits.items() if some
    }
    first = "; ".join([*columns, *notes, *untold, *origin, *describe_equal(texts)])
    same = {*columns.values()}
    said = (f"columns  {first}", f"classes  {counts_of(examples, labels)}")
    return Own(examples, labels, said, same.pop() if len(same) == 1 else None)


# --- columns


def find_columns(place: str, names: Sequence[str], named: Columns, with_splits: bool) -> Columns:
    """Return the columns to read: those that flags name, else those with usual names. Raises UserError.

    A column without a usual name is taken where no other is left.
    """
    text, pair = text_columns(place, names, named)
    label = called(place, names, "label_column", named.label)
    split = usual(names, SPLIT) if with_splits else None
    free = [name for name in names if name and name not in (text, pair, label, split)]
    label = label or only_usual(place, names, free, LABELS, "label")
    free = [name for name in free if name != label]
    text = text or only_usual(place, names, free, TEXTS, "text")
    free = [name for name in free if name != text]
    if not (text and label) and (text or label) and len(free) == 1:
        text, label = text or free[0], label or free[0]
    return checked(place, names, Columns(text, pair, label, split), ("text", "label"))


def find_texts(place: str, names: Sequence[str], named: Columns, trained: Columns | None = None) -> Columns:
    """Return the columns of the texts that a prediction reads. Raises UserError.

    Flags go before the columns that the run read in training, where the file has all of them, and those before what
    `find_columns` would return. A file needs no labels here. What else holds labels or splits is no text.
    """
    read = {one: one if one in names else usual(names, one.casefold()) for one in filter(None, trained or ())}
    if trained and all(read.values()):
        named = named._replace(text=named.text or read[trained.text], pair=named.pair or read.get(trained.pair))
    text, pair = text_columns(place, names, named)
    unread = (named.label.casefold(),) if named.label and usual(names, named.label.casefold()) else LABELS
    free = [name for name in names if name and name != pair and name.casefold() not in (*unread, SPLIT)]
    text = text or only_usual(place, names, free, TEXTS, "text") or (free[0] if len(free) == 1 else None)
    return checked(place, names, Columns(text, pair), ("text",))


def text_columns(place: str, names: Sequence[str], named: Columns) -> tuple[str | None, str | None]:
    """Return the columns of the text and its pair that flags name, or the only two with usual names. Raises UserError."""
    text, pair = called(place, names, "text_column", named.text), called(place, names, "pair_column", named.pair)
    pairs = [(one, two) for first, second in PAIRS if (one := usual(names, first)) and (two := usual(names, second))]
    return pairs[0] if not text and not pair and len(pairs) == 1 else (text, pair)


def checked(place: str, names: Sequence[str], columns: Columns, needed: tuple[str, ...]) -> Columns:
    """Return columns. Raises UserError where one that is needed wasn't found, or two are the same."""
    for what in needed:
        if not getattr(columns, what):
            usual_names = ", ".join(TEXTS if what == "text" else LABELS)
            raise UserError(
                f"{place}: no column has a usual name for the {what} ({usual_names}); the columns, which "
                f"the first line has to name, are {', '.join(map(shown, names))}: say --{what}_column NAME"
            )
    text, pair, label, _ = columns
    chosen = [name for name in (text, pair, label) if name]
    if len({*chosen}) < len(chosen):
        raise UserError(f"{place}: text, pair and label are {text}, {pair} and {label}: each needs a column of its own")
    return columns


def called(place: str, names: Sequence[str], flag: str, wanted: str | None) -> str | None:
    """Return the column that a flag names; a name in another case counts, if it is the only one. Raises UserError."""
    if wanted is None or wanted in names:
        return wanted
    alike = [name for name in names if name.casefold() == wanted.strip().casefold()]
    if len(alike) != 1:
        raise UserError(f"--{flag} is {wanted!r}; {place} has the columns {', '.join(map(shown, names))}")
    return alike[0]


def usual(names: Sequence[str], wanted: str) -> str | None:
    """Return the column with a usual name, in any case, or None."""
    return next((name for name in names if name.casefold() == wanted), None)


def only_usual(place: str, names: Sequence[str], free: list[str], wanted: Sequence[str], what: str) -> str | None:
    """Return the only column with one of the usual names, or None where none has. Raises UserError for several."""
    found = [name for name in free if name.casefold() in wanted]
    if len(found) > 1:
        more = " (and --pair_column for a pair)" if what == "text" else ""
        raise UserError(
            f"{place}: {' and '.join(map(shown, found))} may each be the {what}: say --{what}_column NAME{more}"
        )
    return found[0] if found else None


def describe_columns(columns: Columns, names: Sequence[str]) -> str:
    """Return which columns are read and which aren't, in words."""
    text, pair, label, _ = columns
    read = f"text {text!r}" if pair is None else f"pair {text!r} and {pair!r}"
    unread = [printable(name) or "one without a name" for name in names if name not in columns]
    read += f", label {label!r}" if label else ""
    return read + (f"; not read: {', '.join(unread)}" if unread else "")


# --- texts and labels


def read_file(path: Path, named: Columns, with_splits: bool) -> tuple[list[Text], Columns, str]:
    """Return the texts of a file, the columns they stand in, and what there is to say about these. Raises UserError."""
    table = read_table(path)
    texts, columns, over_lines = [], None, []
    names: dict[str, None] = {}  # of all columns, in their order
    for row in table.rows:
        if columns is None:
            columns = find_columns(str(path), [*row.cells], named, with_splits)
        elif row.cells.keys() != names.keys():  # of another JSON object
            check_split_is_read(row, columns, with_splits)
        names |= dict.fromkeys(row.cells)
        texts.append(text_of_row(row, columns))
        over_lines += [row] if row.lines else []
    if columns is None:
        raise UserError(f"{path} holds no texts")
    known = {one.label for one in texts}
    for row in over_lines:
        inner = as_rows(row, table.delimiter)
        if inner and all(cells[columns.label].strip() in known for cells in inner):
            raise UserError(f"{row.place}: a quote opens that swallows {len(inner) - 1} rows behind it; close or double it")
    return texts, columns, "; ".join(filter(None, (describe_columns(columns, [*names]), table.note)))


def check_split_is_read(row: Row, columns: Columns, with_splits: bool) -> None:
    """Raise UserError where an object says its split and the first one of the file doesn't."""
    if with_splits and columns.split is None and usual([*row.cells], SPLIT):
        raise UserError(f"{row.place}: it says its {SPLIT}, and the first object of the file doesn't: all have to, or none")


def text_of_row(row: Row, columns: Columns) -> Text:
    """Return what a row holds. Raises UserError."""
    text, pair = texts_in(row, columns)
    split = None
    if columns.split is not None:
        said = row.cells.get(columns.split)
        split = SPLIT_OF.get(str(said).strip().casefold())
        if split is None:
            names = ", ".join(SPLIT_OF)
            raise UserError(f"{row.place}: the {columns.split} is {shown(said)}; it must be one of {names}")
    return Text(row.place, text, pair, label_of(row, columns.label or ""), split, key_of(text, pair))


def texts_in(row: Row, columns: Columns, may_be_empty: bool = False) -> tuple[str, str | None]:
    """Return the text of a row, or the two of its pair. Raises UserError where it holds none, unless that may be."""
    text = cell_text(row, columns.text or "", may_be_empty)
    return text, None if columns.pair is None else cell_text(row, columns.pair, may_be_empty)


def cell_text(row: Row, column: str, may_be_empty: bool) -> str:
    """Return a cell with a text; what is null is empty. Raises UserError."""
    value = row.cells.get(column)
    if value is None and column in row.cells and may_be_empty:
        value = ""
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise UserError(f"{row.place}: expected a text under {column}, got {shown(value)}")
    if "\0" in value or value.encode("utf-8", "ignore").decode("utf-8") != value:  # JSON can name halves of characters
        raise UserError(f"{row.place}: the text under {column} holds a character that is none: {shown(value)}")
    return value


def label_of(row: Row, column: str) -> str:
    """Return the label in a cell as a name; a whole number is one without a point. Raises UserError."""
    value = row.cells.get(column)
    if isinstance(value, list | dict):
        raise UserError(f"{row.place}: the {column} is {shown(value)}; a text has one label here, a name or a number")
    name = "" if value is None else str(value).strip()
    if not name:
        raise UserError(f"{row.place}: expected a label under {column}, got {shown(value)}")
    if len(name) > LONGEST_LABEL:
        raise UserError(
            f"{row.place}: the {column} has {len(name):,} characters, at most {LONGEST_LABEL} are a label: {shown(name)}"
        )
    if NO_NUMBER.fullmatch(name):
        raise UserError(f"{row.place}: the {column} is {name}, which is no label; remove the row or give it one")
    return UNTOLD if (column.casefold(), name) == UNDECIDED else name
