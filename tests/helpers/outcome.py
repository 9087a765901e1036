"""Define what the fixture `experiment` returns."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Outcome:
    """Hold all that one run left behind."""

    code: int
    out: str
    directory: Path
    result: dict
    metrics: list[dict]
    tensors: dict[str, torch.Tensor]
    forwards: list[tuple[bool, torch.Size, bool]]  # (in training, shape of the batch, masked)

    def logged(self, key: str, split: str = "train") -> list[float]:
        return [record[key] for record in self.metrics if record["split"] == split]

    def widths(self, training: bool) -> list[int]:
        return [shape[1] for trains, shape, _ in self.forwards if trains is training]

    def sizes(self, training: bool) -> list[int]:
        return [shape[0] for trains, shape, _ in self.forwards if trains is training]


def left_in(folder: Path) -> list[Path]:
    """Return what lies in a folder that may not be there."""
    return [*folder.iterdir()] if folder.exists() else []
