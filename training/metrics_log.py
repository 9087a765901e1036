"""`metrics.jsonl`: what is logged of a run while it goes on."""

import errno
import json
import os
from pathlib import Path

from training.tensorboard import EventFiles
from utils.errors import UserError, note
from utils.files import write_text


def read_records(path: Path) -> list[dict]:
    """Return the records of a run's log. What stands behind the last newline was cut off, and is none. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    records = [parse_record(line) for line in lines]
    if None in records:
        number = records.index(None)
        raise UserError(f"{path}, line {number + 1}: no record of a run: {lines[number][:80]!r}")
    return records


def parse_record(line: str) -> dict | None:
    """Return what a line says, or None where no run can have written it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"step", "split", "loss", "accuracy"} <= record.keys():
        return None
    numbers = all(isinstance(value, int | float) for name, value in record.items() if name != "split")
    return record if numbers and isinstance(record["split"], str) else None


class Metrics:
    """One record per logged step and per evaluation. Without a path they are only kept in memory.

    events    where the records go besides
    """

    def __init__(self, path: Path | None = None, append: bool = False, events: EventFiles | None = None):
        self.records: list[dict] = []
        self.stage: int | None = None  # of a run in several stages: the number that each record gets
        self._path, self._file, self._unwritten, self._events = path, None, b"", events
        try:
            if path and not append:
                path.write_bytes(b"")
            if path:
                self._open()
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}") from None

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()  # of the whole lines in it

    def write(self, **record) -> None:
        """Log the numbers of a record. What is a list, such as a confusion matrix, is left to `result.json`."""
        record = {name: value for name, value in record.items() if not isinstance(value, list | dict)}
        record |= {} if self.stage is None else {"stage": self.stage}
        self.records.append(record)
        if self._events:
            self._events.write(record)
        if self._file:
            behind = bool(self._unwritten)
            self._unwritten += (json.dumps(record) + "\n").encode()
            try:
                self._flush()
            except OSError as error:  # a full disk: what is missing is written as soon as it can be
                if not behind:
                    note(f"can't write {self._path}, the run goes on: {error}")

    def _flush(self) -> None:
        self._file.truncate(self._size)  # the last attempt may have written half of it
        written = self._file.write(self._unwritten)
        if written < len(self._unwritten):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size, self._unwritten = self._size + written, b""

    def forget_after(self, stage: int | None, step: float) -> None:
        """Drops what an interrupted run wrote after it had last been saved, and remembers the rest. Raises UserError."""
        if not self._file:
            return
        here = (stage or 0, step)
        self.records = [
            one for one in read_records(self._path)
            if (one.get("stage", 0), one["step"]) <= here and not one["split"].startswith("final ")
        ]  # fmt: skip
        self._file.close()
        write_text(self._path, "".join(json.dumps(one) + "\n" for one in self.records))
        self._open()
        if self._events:
            self._events.restart(self.records)

    def last(self, split: str) -> dict | None:
        """Return the newest record of a split, or None."""
        return next((record for record in reversed(self.records) if record["split"] == split), None)

    def close(self) -> None:
        if self._events:
            self._events.close()
        if self._file:
            if self._unwritten:
                self._flush()
            self._file.close()
