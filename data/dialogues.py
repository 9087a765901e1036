"""Reads dialogues from JSON and JSONL, sets malformed ones aside, and holds some out for validation and test.

Two kinds of record, in one file or several:

    {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...]}
    {"messages": [{"role": "system", "content": "..."}, {"role": "user", ...}, {"role": "assistant", ...}, ...]}

`input`, `history` and the system message may be missing. A record may say which "split" it belongs to.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import parse_json, read_text, shown
from utils.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_OF = {name: name for name in SPLITS} | {"held_out": "test"}  # what a record says -> the split
LARGEST_PART = 100  # dialogues held out at most, the number on which the published plan measures
HELD_OUT_SEED = 2023  # of the draw, whatever the seed of the run: all runs are measured on the same dialogues


class Turn(NamedTuple):
    """One question and its answer."""

    question: str
    input: str  # what the question is about, "" where it says all
    answer: str


class Dialogue(NamedTuple):
    """Turns in their order; each is asked with those before it in view."""

    turns: tuple[Turn, ...]
    system: str = ""  # what the record itself puts in front

    def content(self) -> list:
        """Return what a hash of the data depends on."""
        return [self.turns, self.system]


class Malformed(ValueError):
    """What is wrong with one record."""


@dataclass(frozen=True)
class Records:
    """What a file holds: usable dialogues, each with its split or None, and what is wrong with the other records."""

    path: Path
    dialogues: list[tuple[Dialogue, str | None]]
    problems: list[str]  # "line 3: ..." or "record 3: ..."

    def report(self, most: int = 3) -> str:
        """Return how many records were skipped and why, or "" where none was."""
        if not self.problems:
            return ""
        total, more = len(self.dialogues) + len(self.problems), len(self.problems) - most
        places = "; ".join(self.problems[:most]) + (f"; and {more} more" if more > 0 else "")
        return f"{self.path}: {len(self.problems)} of {total} records skipped: {places}"


def read_records(path: Path) -> Records:
    """Return the records of a file: of one JSON list where it begins with `[`, else one record on each line.

    Raises UserError where none can be used.
    """
    text = read_text(path).removeprefix("\ufeff")
    dialogues, problems = [], []
    as_list = path.suffix != ".jsonl" and text.lstrip().startswith("[")
    for place, record in enumerate_list(text, path) if as_list else enumerate_lines(text):
        try:
            dialogues.append(parse_record(record if as_list else parse_line(record)))
        except Malformed as problem:
            problems.append(f"{place}: {problem}")
    if not dialogues:
        why = f"none of {len(problems)} records can be used: {problems[0]}" if problems else "no records"
        raise UserError(f"{path}: {why}")
    return Records(path, dialogues, problems)


def enumerate_list(text: str, path: Path):
    """Yield (place, record) for each element of a JSON list, counted from 1."""
    for number, record in enumerate(parse_json(text, path), start=1):
        yield f"record {number}", record


def enumerate_lines(text: str):
    """Yield (place, line) for each line that isn't empty. Only a newline ends one: texts may hold other separators."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def parse_line(line: str) -> object:
    """Return one record of a JSON Lines file. Raises Malformed."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {getattr(error, 'msg', error)}") from None


def parse_record(record: object) -> tuple[Dialogue, str | None]:
    """Return the dialogue and its split, or None where the record names none. Raises Malformed."""
    if not isinstance(record, dict):
        raise Malformed(f"expected an object with instruction and output, or messages, got {shown(record)}")
    name = record.get("split")
    if name is not None and (not isinstance(name, str) or name not in SPLIT_OF):
        raise Malformed(f"the split is {shown(name)}; it must be one of {', '.join(SPLIT_OF)}")
    dialogue = from_messages(record["messages"]) if "messages" in record else from_instruction(record)
    return dialogue, SPLIT_OF.get(name)


def from_instruction(record: dict) -> Dialogue:
    """Return the dialogue of a record of the first kind; `history` holds its earlier turns. Raises Malformed."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Malformed(f"expected a list of [question, answer] under history, got {shown(history)}")
    turns = [Turn(text_of(q, "a question in history"), "", text_of(a, "an answer in history")) for q, a in history]
    about = record.get("input")
    about = "" if about in (None, "") else text_of(about, "input", may_be_blank=True).strip()
    question, answer = (text_of(record.get(name), name) for name in ("instruction", "output"))
    return Dialogue((*turns, Turn(question, about, answer)))


def from_messages(messages: object) -> Dialogue:
    """Return the dialogue of a record of the second kind. Raises Malformed.

    There is at most one system message, which comes first; then user and assistant by turns, the assistant last.
    """
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise Malformed(f"expected a list of objects with role and content under messages, got {shown(messages)}")
    roles = [one.get("role") for one in messages]
    texts = [text_of(one.get("content"), f"content of message {i}") for i, one in enumerate(messages, start=1)]
    start = 1 if roles[:1] == ["system"] else 0
    questions, answers = texts[start::2], texts[start + 1 :: 2]
    if not answers or roles[start:] != ["user", "assistant"] * len(answers):
        raise Malformed(f"the roles must be user and assistant by turns, the assistant last, got {shown(roles)}")
    turns = tuple(Turn(question, "", answer) for question, answer in zip(questions, answers, strict=True))
    return Dialogue(turns, texts[0] if start else "")


def text_of(value: object, name: str, may_be_blank: bool = False) -> str:
    """Return the value where it is a text in valid Unicode that isn't blank. Raises Malformed."""
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        raise Malformed(f"expected a text under {name}, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, which no tokenizer takes
        raise Malformed(f"the text under {name} isn't valid Unicode: {shown(value)}") from None
    return value


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
