"""`--predict`: the labels of one text, printed as a line, or of a file's texts, written as CSV or JSONL while they come.

The texts themselves aren't written. A cell such as `=cmd` would be a formula to a spreadsheet, and whatever is put in front
of it changes the text; the rows are those of the input, in their order.
"""

import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from config import Run, explicit
from data.text_files import LINES, READ, TextRow, read_stream, read_texts
from pipeline.flags import typed
from pipeline.predict import COLUMN_FLAGS, WINDOW, Prediction, Predictor, predictor_of_model, predictor_of_run
from training.device import return_freed_memory
from utils.errors import UserError, note
from utils.files import user_path

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formula begins
STANDARD_INPUT = "-"


def predict(words: list[str], overrides: Run, options: dict) -> int:
    """Do what `--predict` with these words asks for. Returns the exit status. Raises UserError."""
    file = file_named(words)
    texts = [typed(word, "--predict") for word in words] if file is None else []
    check_texts(texts, overrides, options)
    out = options.get("out")
    check_out(out)
    directory = options.get("run_dir")
    if directory is None and overrides.source is None:
        raise UserError("--predict needs a classifier: --run_dir of an earlier run, or --checkpoint or --model of one")
    return_freed_memory()
    predictor = predictor_of_run(directory, overrides) if directory else predictor_of_model(overrides)
    print(f"model    {predictor.description}", file=sys.stderr, flush=True)
    for said in predictor.notes:
        note(said)
    if file is None:
        return print_one(predictor, texts)
    window = WINDOW * predictor.batch_size
    if file == STANDARD_INPUT and sys.stdin.isatty():
        window = 1  # who types waits for each answer
    return write_all(predictor, rows_of(file, predictor, overrides), window, out)


# --- what is asked for


def file_named(words: list[str]) -> str | None:
    """Return the file that --predict names, or STANDARD_INPUT; None: its words are the texts. Raises UserError."""
    if words == [STANDARD_INPUT]:
        return STANDARD_INPUT
    if len(words) > 1 or not words[0].strip():
        return None
    path = user_path(words[0])
    if not (os.path.exists(path) or (path.suffix.lower() in READ and len(words[0].split()) == 1)):
        return None
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "isn't there"
        raise UserError(
            f"--predict {words[0]} {what}; it takes a text, a file, or - (a text that looks so: echo TEXT | ...)"
        )
    return str(path)


def check_texts(texts: list[str], overrides: Run, options: dict) -> None:
    """Raise UserError where the words of --predict are neither a text nor a pair, or a flag is about files alone."""
    if len(texts) > 2:
        raise UserError(f"--predict takes a text, or the two of a pair, and got {len(texts)}; put quotes around each")
    if texts and not all(text.strip() for text in texts):
        raise UserError("--predict is empty; write a text behind it")
    for name in ("out", *COLUMN_FLAGS) if texts else ():
        if name in options or name in explicit(overrides):
            raise UserError(f"--{name} goes with --predict FILE or --predict -")


def check_out(out: str | None) -> None:
    """Raise UserError where the predictions can't be written to a new file of this name."""
    if out is None:
        return
    if Path(out).suffix.lower() not in WRITERS:
        raise UserError(f"--out {out} must end in one of {', '.join(WRITERS)}, which says how it is written")
    if os.path.lexists(out):
        raise UserError(f"--out {out} is there already; remove it, or name another file")
    if not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out {out} can't be written: {Path(out).parent} is no directory")


def rows_of(file: str, predictor: Predictor, overrides: Run) -> Iterator[TextRow]:
    """Return the texts of a file, or of standard input, which has one a line. Say which columns they stand in.

    Columns that no flag names are those that the run's flags named. Raises UserError.
    """
    named = [name for name in COLUMN_FLAGS if name in explicit(overrides)]
    has_columns = file != STANDARD_INPUT and Path(file).suffix.lower() != LINES
    if named and not has_columns:
        raise UserError(f"--{named[0]} names a column, and {file} has none: each of its lines is a text")
    if file == STANDARD_INPUT:
        return read_stream(sys.stdin.buffer, "standard input")
    columns = zip(("text_column", "pair_column", "label_column"), predictor.columns, strict=False)
    inherited = [f"--{name} {shlex.quote(value)}" for name, value in columns if value is not None and name not in named]
    if inherited and has_columns:
        note(f"as in the run: {' '.join(inherited)}")
    rows, said = read_texts(Path(file), predictor.columns, predictor.trained_columns)
    if said:
        print(f"columns  {said}", file=sys.stderr, flush=True)
    return rows


# --- what comes out


def print_one(predictor: Predictor, texts: list[str]) -> int:
    """Print the label of a text or a pair and the probabilities of all labels, on a line."""
    found = predictor(*texts)
    if found.probabilities is None:
        raise UserError("--predict: the tokenizer finds nothing in the text")
    print(f"{found.label}  ({', '.join(f'{label} {value:.4f}' for label, value in found.probabilities.items())})")
    if found.is_cut:
        note(f"the text was cut to {predictor.encoder.length} tokens")
    return 0


def write_all(predictor: Predictor, rows: Iterator[TextRow], window: int, out: str | None) -> int:
    """Write a row for each text, window by window, and say at the end what was cut or empty."""
    texts = (row.text if row.pair is None else (row.text, row.pair) for row in rows)
    windows = predictor.windows(texts, window)
    first = next(windows)  # before a file is made: what is wrong with the first texts leaves none
    n_rows = n_empty = n_cut = 0
    with new_file(out) if out else nullcontext(sys.stdout) as file:
        write = WRITERS[Path(out or "standard.csv").suffix.lower()](file, predictor.labels)
        try:
            for predictions in chain([first], windows):
                for found in predictions:
                    n_rows += 1
                    write(n_rows, found)
                file.flush()
                n_empty += sum(found.label is None for found in predictions)
                n_cut += sum(found.is_cut for found in predictions)
        except UserError as error:
            raise UserError(f"{error} (rows of texts before it: {n_rows:,})") from None
    if n_cut:
        note(f"{n_cut:,} of {n_rows:,} texts were cut to {predictor.encoder.length} tokens")
    if n_empty:
        note(f"{n_empty:,} of {n_rows:,} texts are empty and have no label")
    if out:
        print(f"saved    {out}", file=sys.stderr, flush=True)
    return 0


def new_file(out: str) -> TextIO:
    """Return a new file to write to. Raises UserError where one is there by now, or none can be."""
    try:
        return open(out, "x", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None


Writer = Callable[[int, Prediction], Any]  # writes the row of the text with this number, counted from 1


def csv_writer(file: TextIO, labels: tuple[str, ...]) -> Writer:
    """Write the names of the columns. Return what writes a row: its number, the label, a probability per label."""
    if risky := [label for label in labels if label.startswith(FORMULA) and not is_number(label)]:
        note(f"a spreadsheet may take the label {risky[0]!r} for a formula; --out FILE.jsonl is safe there")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["row", "label", *(f"probability_{label}" for label in labels)])

    def write(number: int, found: Prediction) -> None:
        probabilities = found.probabilities or dict.fromkeys(labels, None)
        values = ("" if value is None else f"{value:.9g}" for value in probabilities.values())
        rows.writerow([number, "" if found.label is None else found.label, *values])

    return write


def jsonl_writer(file: TextIO, labels: tuple[str, ...]) -> Writer:
    """Return what writes a row as a JSON object on a line of its own."""

    def write(number: int, found: Prediction) -> None:
        probabilities = found.probabilities and {label: float(f"{one:.9g}") for label, one in found.probabilities.items()}
        row = {"row": number, "label": found.label, "probabilities": probabilities}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


def is_number(text: str) -> bool:
    """Return whether a text is a number, such as -1."""
    try:
        float(text)
    except ValueError:
        return False
    return True


WRITERS: dict[str, Callable[[TextIO, tuple[str, ...]], Writer]] = {".csv": csv_writer, ".jsonl": jsonl_writer}
