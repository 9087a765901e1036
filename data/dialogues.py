"""Reads dialogues from JSON and JSONL, sets malformed records aside, and holds some out for validation and test.

What a record can be says `data/dialogue_records.py`.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.dialogue_records import SPLITS, Dialogue, Malformed, Turn, parse_record
from data.files import read_text
from utils.errors import UserError

__all__ = ["Dialogue", "Records", "Turn", "read_records", "split"]

LARGEST_PART = 100  # dialogues held out at most, the number on which the published plan measures
HELD_OUT_SEED = 2023  # of the draw, whatever the seed of the run: all runs are measured on the same dialogues


@dataclass(frozen=True)
class Records:
    """What a file holds: usable dialogues, each with its split or None, and what is wrong with the other records."""

    path: Path
    dialogues: list[tuple[Dialogue, str | None]]
    problems: list[str]  # "line 3: ..." or "record 3: ..."
    unread: Counter[str] = field(default_factory=Counter)  # keys that say nothing here: in how many records
    kind: str = "records"  # or "lines"

    @property
    def counts(self) -> str:
        """Return how many records the file has, how many of them are used, and which of their keys aren't read."""
        n, unread = len(self.dialogues), self.report_unread()
        return f"{n + len(self.problems)} {self.kind} in, {n} examples out" + (f", {unread}" if unread else "")

    def report(self, most: int = 3) -> str:
        """Return how many records were skipped and why, or "" where none was."""
        if not self.problems:
            return ""
        total, more = len(self.dialogues) + len(self.problems), len(self.problems) - most
        places = "; ".join(self.problems[:most]) + (f"; and {more} more" if more > 0 else "")
        return f"{self.path}: {len(self.problems)} of {total} records skipped: {places}"

    def report_unread(self, most: int = 8) -> str:
        """Return which keys say nothing here and how many records have each, or "" where all is read."""
        if not self.unread:
            return ""
        keys, more = [f"{key} ({n})" for key, n in self.unread.most_common(most)], len(self.unread) - most
        return f"keys that aren't read: {', '.join(keys)}" + (f" and {more} more" if more > 0 else "")


def read_records(path: Path) -> Records:
    """Return the records of a file: of one JSON list where it is one, else one record on each line.

    Raises UserError where none can be used.
    """
    text = read_text(path).removeprefix("\ufeff")
    records = parse_list(text, path) if text.lstrip().startswith("[") else None
    kind = "lines" if records is None else "records"
    dialogues, problems, unread = [], [], Counter()
    for place, record in enumerate_lines(text) if records is None else enumerate_list(records):
        try:
            found = parse_record(parse_line(record) if records is None else record)
        except Malformed as problem:
            problems.append(f"{place}: {problem}")
        else:
            dialogues.append((found.dialogue, found.split))
            unread.update(found.unread)
    if not dialogues:
        why = f"none of {len(problems)} records can be used: {problems[0]}" if problems else "no records"
        why += "; expected one record on each line, or one JSON list" if problems and records is None else ""
        raise UserError(f"{path}: {why}")
    return Records(path, dialogues, problems, unread, kind)


def parse_list(text: str, path: Path) -> list | None:
    """Return the elements of a text that begins with `[`, or None where only its first line is a list: it has one on each.

    Raises UserError where it is neither.
    """
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets within brackets
        try:
            parse_json(text.lstrip().partition("\n")[0])
        except (ValueError, RecursionError):
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{path}{line}: no JSON: {getattr(error, 'msg', error)}") from None
        return None


def enumerate_list(records: list):
    """Yield (place, record) for each element of a JSON list, counted from 1."""
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def enumerate_lines(text: str):
    """Yield (place, line) for each line that isn't empty. Only a newline ends one: texts may hold other separators."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def parse_line(line: str) -> object:
    """Return one record of a JSON Lines file; a comma behind it is no part of it. Raises Malformed."""
    try:
        return parse_json(line.rstrip().removesuffix(","))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {getattr(error, 'msg', error)}") from None


def parse_json(text: str) -> object:
    """Return the content of a JSON text. Raises ValueError or RecursionError, also where a key has two values."""
    return json.loads(text, object_pairs_hook=without_second_values)


def without_second_values(pairs: list[tuple[str, object]]) -> dict:
    """Return the members of a JSON object. Raises ValueError where a key has two values: which one is meant?"""
    members: dict[str, object] = {}
    for key, value in pairs:
        if key in members and members[key] != value:
            raise ValueError(f"the key {key} has two values")
        members[key] = value
    return members


def split(records: Records, share: float) -> dict[str, list[Dialogue]]:
    """Return the dialogues by split, each where its record says.

    Where no record is for validation or for test, that part is drawn from the training dialogues: this share of them, at
    most LARGEST_PART. A part that stays empty is left out.
    """
    splits = {name: [one for one, where in records.dialogues if (where or "train") == name] for name in SPLITS}
    rest = splits["train"]
    size = min(LARGEST_PART, round(share * len(rest)))
    missing = [name for name in ("test", "validation") if not splits[name]]
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(rest)).tolist()
    for i, name in enumerate(missing):
        splits[name] = [rest[j] for j in sorted(order[i * size : (i + 1) * size])]
    splits["train"] = [rest[j] for j in sorted(order[len(missing) * size :])]
    return {name: dialogues for name, dialogues in splits.items() if dialogues}
