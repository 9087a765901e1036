"""The files from which --resume goes on: all that a training needs to continue as if nothing had happened, bit for bit."""

import contextlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.weights import read_metadata, read_safetensors, write_safetensors
from training import distributed
from training.divergence import ADVICE, Diverged, check_finite
from training.early_stopping import EarlyStopping
from training.optimizer import AdamW
from utils.errors import UserError, note

STATES = "states"  # a folder of the run's: the stage under way, the newest --save_total_limit of them
TRAINED = "trained.safetensors"  # between two stages, and after the last, it is all that is needed to go on


@dataclass(frozen=True)
class Progress:
    """What a training has behind it, the earlier parts of a resumed one included."""

    step: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    targets: int = 0  # these and what is summed up over them, since the last record
    loss: torch.Tensor | float = 0.0
    hits: torch.Tensor | int = 0


@dataclass(frozen=True)
class ResumePoint:
    """The saved state that a run goes on from."""

    file: Path
    stages: int  # that are finished
    step: int | None  # of the next stage; None: it has not begun
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def part(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose name begins with the kind, under the rest of their names."""
        return {name[len(kind) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{kind}.")}


def state_files(directory: Path) -> list[tuple[int, float, Path]]:
    """Return (stages finished, step of the next one, file) of each saved state, the newest last."""
    found = []
    for file in (directory / STATES).glob("*.safetensors"):
        if named := re.fullmatch(r"(?:stage-(\d+)-)?step-(\d+)", file.stem):
            found.append((int(named[1] or 1) - 1, float(named[2]), file))
    return sorted(found)


def remove_states(directory: Path) -> None:
    """Remove all saved states of a run, and their folder where nothing else is in it."""
    for *_, file in state_files(directory):
        file.unlink(missing_ok=True)
    if (directory / STATES).is_dir() and not any((directory / STATES).iterdir()):
        (directory / STATES).rmdir()


def newest(directory: Path) -> ResumePoint | None:
    """Return the newest saved state that can be read, or None where nothing was saved. Raises UserError."""
    files, broken = state_files(directory), []
    trained = directory / TRAINED
    if trained.is_file():
        try:
            metadata = read_metadata(trained)
            if "stages" in metadata and "step" not in metadata:
                files.append((int(metadata["stages"]) - 1, math.inf, trained))
        except (UserError, ValueError) as error:
            broken.append(error if isinstance(error, UserError) else UserError(f"{trained}: {error}"))
    for stages, step, file in sorted(files, reverse=True):
        try:
            tensors, metadata = read_safetensors(file)
            if file != trained and metadata.pop("crc32", None) != checksum(tensors, metadata):
                raise UserError(f"{file} is damaged: its content has another checksum")
        except UserError as error:
            broken.append(error)
            continue
        for error in broken if distributed.rank() == 0 else ():
            note(f"{error}; going on from {file}")
        ended = step == math.inf
        return ResumePoint(file, stages + ended, None if ended else int(step), tensors, metadata)
    if broken:
        raise UserError(f"--resume: {broken[0]}; train anew without --resume")
    return None


def checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Return the CRC-32 of all that a state holds. A disk that lost a bit of it would change the run unnoticed."""
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def gathered(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return whole tensors on the CPU, also of those that are spread over processes. Every process has to call."""
    return {name: distributed.whole(tensor).cpu() for name, tensor in tensors.items()}


def write_trained(tensors: dict[str, torch.Tensor], directory: Path, stages: int, step: int | None = None) -> None:
    """Write what has been trained.

    stages   how many are finished
    step     how far the next one has come; None: it hasn't begun. A finished run has one entry of metadata alone, so that
             its file is the same each time: safetensors writes several in any order
    """
    metadata = {"stages": str(stages)} | ({} if step is None else {"step": str(step)})
    if distributed.rank() == 0:
        write_safetensors(tensors, directory / TRAINED, metadata)


@dataclass
class Checkpointer:
    """Saves a stage under way, so that --resume goes on from there, and puts back what was saved."""

    directory: Path
    limit: int = 1  # files that are kept
    stages: int = 0  # that are finished
    prefix: str = ""  # of the files' names, in a plan of stages
    changed: dict[str, nn.Parameter] | None = None  # what earlier stages trained too; None: nothing but what trains now
    record: Callable[[], None] = lambda: None  # called before each save: writes down which run it is
    point: ResumePoint | None = None  # to go on from

    def newest_state(self) -> str:
        """Say in words what there is to go on from."""
        files = state_files(self.directory)
        return f"the last good state is {files[-1][2]}" if files else "nothing of this stage has been saved"

    def save(self, optimizer: AdamW, scaler, stopping: EarlyStopping, progress: Progress, required: bool) -> None:
        """Write all that `load` needs. Of several processes each has to call; the first one writes.

        required   raise UserError where it can't be written; else the run goes on without
        """
        state, metadata, trained = self._collect(optimizer, scaler, stopping, progress)
        if distributed.rank():
            return
        try:
            self.record()
            (self.directory / STATES).mkdir(exist_ok=True)
            file = self.directory / STATES / f"{self.prefix}step-{progress.step:06}.safetensors"
            write_safetensors(state, file, metadata | {"crc32": checksum(state, metadata)})
            write_trained(trained, self.directory, self.stages, progress.step)
        except (UserError, OSError) as error:
            if required:
                raise UserError(f"{error}; {self.newest_state()}") from None
            note(f"not saved at step {progress.step}, the run goes on: {error}; {self.newest_state()}")
        files = state_files(self.directory)
        so_far = [one for one in files if one[:2] <= (self.stages, progress.step)]  # later ones couldn't be read
        for *_, old in set(files) - set(so_far[-self.limit :]):
            old.unlink(missing_ok=True)

    def _collect(self, optimizer, scaler, stopping: EarlyStopping, progress: Progress) -> tuple[dict, dict, dict]:
        """Return (tensors of the state, its metadata, what is trained), gathered from all processes."""
        trained = gathered(self.changed or stopping.trained)
        check_finite(trained, progress.step)
        state = {f"trained.{name}": tensor for name, tensor in trained.items()}
        state |= {f"best.{name}": tensor for name, tensor in gathered(stopping.tensors).items()}
        for name, parameter in stopping.trained.items():
            state |= gathered({f"{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()})
        state |= distributed.generators()
        for name in ("loss", "hits"):  # of each process
            each = distributed.gather(torch.as_tensor(getattr(progress, name)).cpu())
            state[f"meter.{name}"] = torch.stack(each)
        numbers = {name: getattr(progress, name) for name in ("step", "tokens", "step_seconds", "seconds", "targets")}
        best = {"step": stopping.step, "loss": stopping.loss, "waited": stopping.waited}
        parts = {"past": distributed.gather(numbers), "scaler": scaler.state_dict(), "best": best}
        return state, {name: json.dumps(part) for name, part in parts.items()}, trained

    @torch.no_grad()
    def load(self, optimizer: AdamW, scaler, stopping: EarlyStopping) -> Progress:
        """Put everything that `save` wrote back, and return how far the training had come. Raises UserError."""
        assert self.point is not None
        state, metadata, trained = self.point.tensors, self.point.metadata, stopping.trained
        rank, spread = distributed.rank(), distributed.part_of
        name_of = {parameter: name for name, parameter in trained.items()}
        in_order = [(name_of[one], one) for group in optimizer.param_groups for one in group["params"]]
        try:
            numbers = json.loads(metadata["past"])[rank]
            scale, best = json.loads(metadata["scaler"]), json.loads(metadata["best"])
            progress = Progress(**numbers, loss=state["meter.loss"][rank], hits=state["meter.hits"][rank])
            moments = {
                parameter: {"step": state[f"step.{name}"].to(parameter.device)}
                | {key: spread(state[f"{key}.{name}"], parameter) for key in ("exp_avg", "exp_avg_sq")}
                for name, parameter in in_order
                if progress.step > 0  # before the first step there are none
            }
            stopping.step, stopping.loss, stopping.waited = best["step"], best["loss"], best["waited"]
            for name, parameter in trained.items():
                parameter.copy_(spread(state[f"trained.{name}"], parameter))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{self.point.file} lacks {error}; train anew without --resume") from None
        optimizer.state = moments
        scaler.load_state_dict(scale)
        stopping.tensors = {
            name: spread(tensor.to(trained[name].device), trained[name]) for name, tensor in self.point.part("best").items()
        }
        distributed.set_generators(state)
        return progress


@contextlib.contextmanager
def advice_when_diverged(checkpointer: Checkpointer | None) -> Iterator[None]:
    """Turn Diverged into an error that says what to try, and what there is to go on from."""
    try:
        yield
    except Diverged as error:
        raise UserError(f"{error}; {ADVICE}" + (f"; {checkpointer.newest_state()}" if checkpointer else "")) from None
