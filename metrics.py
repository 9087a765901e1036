"""`metrics.jsonl`: what is logged of a run while it goes on."""

import errno
import json
import os
from pathlib import Path

from durable import write_text
from errors import note


class Metrics:
    """One record per logged step and per evaluation. Without a path they are only kept in memory."""

    def __init__(self, path: Path | None = None, append: bool = False):
        self.records: list[dict] = []
        self.stage: int | None = None  # of a run in several stages: the number that each record gets
        self._path, self._file, self._unwritten = path, None, b""
        if path and not append:
            path.write_bytes(b"")
        if path:
            self._open()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()  # of the whole lines in it

    def write(self, **record) -> None:
        record |= {} if self.stage is None else {"stage": self.stage}
        self.records.append(record)
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
        """Drops what an interrupted run wrote after it had last been saved, and remembers the rest."""
        if not self._file:
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut off
        here = (stage or 0, step)
        self.records = [
            one for one in records
            if (one.get("stage", 0), one["step"]) <= here and not one["split"].startswith("final ")
        ]  # fmt: skip
        self._file.close()
        write_text(self._path, "".join(json.dumps(one) + "\n" for one in self.records))
        self._open()

    def last(self, split: str) -> dict | None:
        """The newest record of a split."""
        return next((record for record in reversed(self.records) if record["split"] == split), None)

    def close(self) -> None:
        if self._file:
            if self._unwritten:
                self._flush()
            self._file.close()
