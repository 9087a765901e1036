"""Define what the fixture `experiment` returns, and compare two of it."""

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


THIRTY_STEPS = {"max_steps": 30, "num_epochs": 40, "eval_steps": 7}


def assert_same_losses(one, other, tolerance: float = 1e-5) -> None:
    """Training and validation losses of two runs within a part of their size, and the same accuracies everywhere."""
    for split in ("train", "validation"):
        ours, theirs = (torch.tensor(found.logged("loss", split)) for found in (one, other))
        assert len(ours) >= 5 and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance / 10)
    if tolerance == 1e-5:
        for split in ("train", "validation"):
            assert one.logged("accuracy", split) == other.logged("accuracy", split)
    for split in ("train", "validation", "test"):
        assert one.result[f"{split}_accuracy"] == other.result[f"{split}_accuracy"]
