"""What a fit keeps of its past: the best weights so far, for early stopping, and the files from which --resume goes on."""

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

from data.batching import Batches
from model.weights import read_metadata, read_safetensors, write_safetensors
from training import distributed
from utils.errors import UserError, note

STATES = "states"  # a folder of the run's: the stage under way, the newest --save_total_limit of them
TRAINED = "trained.safetensors"  # between two stages, and after the last, it is all that is needed to go on
TRY = "try a smaller --learning_rate, --max_grad_norm 1 or --amp off"


class Best:
    """Early stopping: what has the lowest validation loss so far, and for how many evaluations nothing was better."""

    def __init__(self, patience: int, trained: dict[str, nn.Parameter], validation: Batches | None):
        if patience and validation is None:
            raise UserError(f"--early_stopping_patience is {patience}, but the data set has no validation part")
        self.patience, self.trained = patience, trained
        self.step, self.loss, self.waited = 0, math.inf, 0
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def is_over(self) -> bool:
        return bool(self.patience) and self.waited >= self.patience

    def see(self, step: int, loss: float) -> None:
        """Keeps a copy of what is trained if this loss is the lowest so far."""
        if not self.patience:
            return
        self.waited += 1
        if loss < self.loss:
            self.step, self.loss, self.waited = step, loss, 0
            self.tensors = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """What is trained goes back to the best evaluation's values."""
        for name, tensor in self.tensors.items():
            self.trained[name].copy_(tensor)


@dataclass(frozen=True)
class Past:
    """What a fit has behind it, earlier parts of a resumed one included."""

    step: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    targets: int = 0  # these and what is summed up over them, since the last record
    loss: torch.Tensor | float = 0.0
    hits: torch.Tensor | int = 0


@dataclass(frozen=True)
class Point:
    """What a run goes on from."""

    file: Path
    stages: int  # that are finished
    step: int | None  # of the next stage; None: it has not begun
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def part(self, kind: str) -> dict[str, torch.Tensor]:
        """The tensors whose name begins with the kind, under the rest of it."""
        return {name[len(kind) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{kind}.")}


def state_files(directory: Path) -> list[tuple[int, float, Path]]:
    """(stages finished, step of the next one, file), the newest last."""
    found = []
    for file in (directory / STATES).glob("*.safetensors"):
        if named := re.fullmatch(r"(?:stage-(\d+)-)?step-(\d+)", file.stem):
            found.append((int(named[1] or 1) - 1, float(named[2]), file))
    return sorted(found)


def remove_states(directory: Path) -> None:
    """All state files of a run, and their folder where nothing else is in it."""
    for *_, file in state_files(directory):
        file.unlink(missing_ok=True)
    if (directory / STATES).is_dir() and not any((directory / STATES).iterdir()):
        (directory / STATES).rmdir()


def newest(directory: Path) -> Point | None:
    """The newest that can be read of what a run has saved; None where it hasn't saved anything. Raises UserError."""
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
        return Point(file, stages + ended, None if ended else int(step), tensors, metadata)
    if broken:
        raise UserError(f"--resume: {broken[0]}; train anew without --resume")
    return None


def checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """CRC-32 of all that a state holds. A disk that lost a bit of it would change the run unnoticed."""
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def wholes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU; of tensors that are spread over processes all of them. Every process has to ask."""
    return {name: distributed.whole(tensor).cpu() for name, tensor in tensors.items()}


def write_trained(tensors: dict[str, torch.Tensor], directory: Path, stages: int, step: int | None = None) -> None:
    """`stages` are finished; the next one, where a step is named, has come that far. What is finished has one entry of
    metadata alone, so that its file is the same each time: safetensors writes several in any order."""
    metadata = {"stages": str(stages)} | ({} if step is None else {"step": str(step)})
    if distributed.rank() == 0:
        write_safetensors(tensors, directory / TRAINED, metadata)


class Diverged(UserError):
    """The training has come to what is no number."""


@contextlib.contextmanager
def kept_named(keeper: "Keeper | None") -> Iterator[None]:
    """Adds to such an end of the training what to try, and from where."""
    try:
        yield
    except Diverged as error:
        raise UserError(f"{error}; {TRY}" + (f"; {keeper.kept()}" if keeper else "")) from None


def check_finite(tensors: dict[str, torch.Tensor], step: int) -> None:
    """What is no number is never saved. Every process has to ask: of what is spread over them, each looks at its part."""

    def is_bad(tensor: torch.Tensor) -> bool:
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        return tensor.is_floating_point() and not tensor.isfinite().all()

    bad = next((name for name, tensor in tensors.items() if is_bad(tensor)), None)
    for name in filter(None, distributed.gather(bad)):
        raise Diverged(f"{name} holds nan or inf after step {step}")


@dataclass
class Keeper:
    """Saves a stage under way, so that --resume goes on from there, and hands back what was saved."""

    directory: Path
    limit: int = 1  # files that are kept
    stages: int = 0  # that are finished
    prefix: str = ""  # of the files' names, in a plan of stages
    changed: dict[str, nn.Parameter] | None = None  # what earlier stages trained too; None: nothing but what is trained now
    record: Callable[[], None] = lambda: None  # called before each save: writes down which run it is
    point: Point | None = None  # to go on from

    def kept(self) -> str:
        """What there is to go on from, in words."""
        files = state_files(self.directory)
        return f"the last good state is {files[-1][2]}" if files else "nothing of this stage has been saved"

    def save(self, optimizer: torch.optim.Optimizer, scaler, best: Best, past: Past, must: bool) -> None:
        """All that `load` needs. Where it can't be written and needn't be, the run goes on. Of several processes each has
        to call; the first one writes."""
        trained, step = best.trained, past.step
        mine = wholes(self.changed or trained)
        check_finite(mine, step)
        tensors = {f"trained.{name}": tensor for name, tensor in mine.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in wholes(best.tensors).items()}
        for name, parameter in trained.items():
            tensors |= wholes({f"{key}.{name}": value for key, value in optimizer.state[parameter].items()})
        tensors |= distributed.generators()
        for name in ("loss", "hits"):  # of each process
            each = distributed.gather(torch.as_tensor(getattr(past, name)).cpu())
            tensors[f"meter.{name}"] = torch.stack(each)
        seen = {"step": best.step, "loss": best.loss, "waited": best.waited}
        numbers = {name: value for name, value in vars(past).items() if name not in ("loss", "hits")}
        parts = {"past": distributed.gather(numbers), "scaler": scaler.state_dict(), "best": seen}
        metadata = {name: json.dumps(part) for name, part in parts.items()}
        if distributed.rank():
            return
        try:
            self.record()
            (self.directory / STATES).mkdir(exist_ok=True)
            file = self.directory / STATES / f"{self.prefix}step-{step:06}.safetensors"
            write_safetensors(tensors, file, metadata | {"crc32": checksum(tensors, metadata)})
            write_trained(mine, self.directory, self.stages, step)
        except (UserError, OSError) as error:
            if must:
                raise UserError(f"{error}; {self.kept()}") from None
            note(f"not saved at step {step}, the run goes on: {error}; {self.kept()}")
        for *_, old in state_files(self.directory)[: -self.limit]:
            old.unlink(missing_ok=True)

    @torch.no_grad()
    def load(self, optimizer: torch.optim.Optimizer, scaler, best: Best) -> Past:
        """Puts everything of `save` back."""
        tensors, metadata, trained = self.point.tensors, self.point.metadata, best.trained
        rank, spread = distributed.rank(), distributed.part_of
        name_of = {parameter: name for name, parameter in trained.items()}
        in_order = [(name_of[one], one) for group in optimizer.param_groups for one in group["params"]]
        try:
            past, scale = json.loads(metadata["past"])[rank], json.loads(metadata["scaler"])
            past = Past(**past, loss=tensors["meter.loss"][rank], hits=tensors["meter.hits"][rank])
            moments = [
                {"step": tensors[f"step.{name}"]}
                | {key: spread(tensors[f"{key}.{name}"], parameter) for key in ("exp_avg", "exp_avg_sq")}
                for name, parameter in in_order
                if past.step > 0  # before the first step there are none
            ]
            vars(best).update(json.loads(metadata["best"]))
            for name, parameter in trained.items():
                parameter.copy_(spread(tensors[f"trained.{name}"], parameter))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{self.point.file} lacks {error}; train anew without --resume") from None
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
        scaler.load_state_dict(scale)
        best.tensors = {
            name: spread(tensor.to(trained[name].device), trained[name]) for name, tensor in self.point.part("best").items()
        }
        distributed.set_generators(tensors)
        return past
