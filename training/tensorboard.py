"""Event files for TensorBoard beside metrics.jsonl: the same numbers, by PyTorch's own writer.

    tensorboard --logdir runs

shows the runs below a directory. A curve is named after its value and split, such as loss/validation; the stages of a plan
follow one another.
"""

from collections.abc import Iterable
from pathlib import Path

from training.steps import StepsInAll
from utils.errors import UserError, note

PATTERN = "events.out.tfevents.*"


def need_tensorboard():
    """Return PyTorch's SummaryWriter. Raises UserError where the package that it needs isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--log tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter


def remove_event_files(directory: Path) -> None:
    """Remove the event files that an earlier run left in its directory."""
    for file in directory.glob(PATTERN):
        file.unlink()


class EventFiles:
    """The event files of a run. What they can't take, on a full disk, ends no run: metrics.jsonl has it too."""

    def __init__(self, directory: Path):
        self._directory, self._make, self._writer, self._failed = directory, need_tensorboard(), None, False
        self.restart([])

    def restart(self, records: Iterable[dict]) -> None:
        """Begin anew with these records: those that an interrupted run keeps."""
        self.close()
        self._steps = StepsInAll()
        self._tolerate(self._open)
        for record in records:
            self.write(record)

    def _open(self) -> None:
        remove_event_files(self._directory)
        self._writer = self._make(str(self._directory))

    def write(self, record: dict) -> None:
        """Add a record of metrics.jsonl."""
        step = self._steps.at(record["step"], record.get("stage"))
        split = record["split"].replace(" ", "_")
        for name, value in record.items():
            if name not in ("step", "split", "stage"):
                self._tolerate(lambda name=name, value=value: self._writer.add_scalar(f"{name}/{split}", value, step))

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer:
            self._tolerate(self._writer.close)

    def _tolerate(self, act) -> None:
        """Act, unless that has failed before; say in one line that it fails."""
        if self._failed:
            return
        try:
            act()
        except OSError as error:
            self._failed = True
            note(f"can't write event files in {self._directory}, the run goes on: {error}")
