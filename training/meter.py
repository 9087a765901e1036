"""The progress bar and the log of a training."""

import math
import sys
import time

import torch
from tqdm import tqdm  # comes with huggingface_hub

from config import Run
from data.batching import Batches
from training import distributed
from training.checkpoints import Progress
from training.divergence import Diverged
from training.metrics_log import Metrics


class Meter:
    """Counts what a training takes in and writes its records. Losses stay on the device until a record is due, so that no
    step waits for them."""

    def __init__(self, metrics: Metrics, run: Run, total_steps: int, train: Batches, progress: Progress):
        self.metrics, self.every, self.total_steps = metrics, run.logging_steps, total_steps
        per_step = min(run.batch_size * run.accumulation_steps, train.n_examples())
        scale = distributed.size() if distributed.size() > 1 else False  # the first process shows the others' examples too
        self.bar = tqdm(
            total=min(run.num_epochs * train.n_examples(), total_steps * per_step),
            initial=progress.step * per_step,
            unit=" examples",
            unit_scale=scale,
            desc="train",
            dynamic_ncols=True,
            disable=None if distributed.rank() == 0 else True,
        )
        self.tokens, self.step_seconds = progress.tokens, progress.step_seconds
        self.loss, self.hits, self.targets = progress.loss, progress.hits, progress.targets
        self.diverged_at: torch.Tensor | int = 0  # the first step whose loss was nan or inf
        self.step_started = time.perf_counter()
        self.started = self.step_started - progress.seconds

    def progress(self, step: int) -> Progress:
        """Return what lies behind the run at this step."""
        seconds = time.perf_counter() - self.started
        return Progress(step, self.tokens, self.step_seconds, seconds, self.targets, self.loss, self.hits)

    def restart_clock(self) -> None:
        """Begin the time of the next step now: what came before it (an evaluation, a save, a replay) is none of it."""
        self.step_started = time.perf_counter()

    def add(self, loss: torch.Tensor, hits: torch.Tensor, lengths: torch.Tensor) -> None:
        """Add a batch: its summed loss, its correct predictions, and the lengths of its texts [B]."""
        self.loss = loss.detach() + self.loss
        self.hits = hits + self.hits
        self.tokens += int(lengths.sum())
        self.bar.update(len(lengths))

    def step(self, step: int, epoch: int, targets: int, rate: float, must_check: bool = False) -> None:
        """End an optimizer step over that many targets. Writes a record every `run.logging_steps` and at the last step.

        must_check   look for a nan or inf loss now. Raises Diverged.
        """
        self.step_seconds += time.perf_counter() - self.step_started
        self.targets += targets
        is_due = step % self.every == 0 or step == self.total_steps
        self.check(step, must_check or is_due)
        if is_due:
            loss, hits = distributed.total(float(self.loss), int(self.hits))
            loss, accuracy = loss / max(self.targets, 1), hits / max(self.targets, 1)
            self.bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}", refresh=False)
            self._write(step, epoch, "train", loss=loss, accuracy=accuracy, learning_rate=rate)
            self.loss, self.hits, self.targets = 0.0, 0, 0
        self.restart_clock()

    def check(self, step: int, must_check: bool) -> None:
        """Raise Diverged for a loss that is nan or inf.

        The CPU says so at once. A GPU notes the step and is asked for it when something is read or saved anyway, so that no
        step waits for it. So do several processes, which end together.
        """
        on_cpu = self.loss.device.type == "cpu"
        if on_cpu:
            self.diverged_at = self.diverged_at or (0 if math.isfinite(self.loss) else step)
        else:
            self.diverged_at = torch.where(self.loss.isfinite() | (self.diverged_at != 0), self.diverged_at, step)
        if must_check or (on_cpu and distributed.size() == 1):
            first = [each for each in distributed.gather(int(self.diverged_at)) if each]
            if first:
                raise Diverged(f"the loss is {distributed.total(float(self.loss))[0]} at step {min(first)}")

    def evaluation(self, step: int, epoch: int, result: dict[str, float]) -> None:
        """Write the record of an evaluation."""
        self._write(step, epoch, "validation", **result)
        if not self.bar.disable:
            line = f"step {step}: validation loss {result['loss']:.4f}, accuracy {result['accuracy']:.2%}"
            self.bar.write(line, file=sys.stderr)  # where the bar is

    def _write(self, step: int, epoch: int, split: str, **values) -> None:
        seconds = round(time.perf_counter() - self.started, 3)
        self.metrics.write(step=step, epoch=epoch, split=split, **values, seconds=seconds)
