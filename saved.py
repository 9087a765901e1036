"""The model of an earlier run, from what the run left in its directory."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from torch import nn

import peft
import samples
from data import get_task
from data.chat import ChatTask
from errors import UserError
from execute import build_model
from job import find_tokenizer, weights_fingerprint
from model.sequence import Tokenizer
from model.weights import read_metadata, read_safetensors
from published.plans import stages_of
from record import read_result, write_json
from run import Run, resolve
from train import pick_device


@dataclass(frozen=True)
class Saved:
    run: Run  # resolved, as it was trained
    model: nn.Module  # on the CPU, in evaluation mode, what the method added folded in where it can be
    tokenizer: Tokenizer
    source: str  # what it is, in a few words


def load_run(directory: str | Path) -> Saved:
    """What `directory`, the --output_dir of a run, holds. An interrupted run counts too. Raises UserError."""
    directory = Path(directory)
    result, file = read_result(directory), directory / "trained.safetensors"
    if result is None:
        what = "has no result.json of a run" if directory.is_dir() else "is no directory"
        raise UserError(f"{directory} {what}; name the --output_dir of an earlier run, such as runs/NAME")
    if not file.is_file():
        raise UserError(
            f"{directory} has no {file.name}, so nothing of what was trained; train again with that --output_dir"
        )
    if unknown := result["config"].keys() - {one.name for one in fields(Run)}:
        raise UserError(f"{directory}/result.json has settings that are unknown here: {', '.join(sorted(unknown))}")
    run = resolve(Run(**result["config"]), {})  # fields that are newer than the run are at their defaults
    check_weights(run, result, directory)
    model = build_model(run, len(get_task(run.dataset).labels))
    attach_and_fill(model, stages_reached(run, file, len(model.blocks)), file)
    tokenizer, _ = find_tokenizer(run, model.config.vocab_size)
    peft.merge(model).eval()
    return Saved(run, model, tokenizer, f"{run.source}, {run.trainable_layers} on {run.dataset}")


def check_weights(run: Run, result: dict, directory: Path) -> None:
    """What was trained means something only on the weights that it was trained on."""
    known = result.get("weights_sha256")
    if known and weights_fingerprint(run) not in (None, known):
        raise UserError(f"{run.source} has other weights than when {directory} was trained on it; train again")


def stages_reached(run: Run, file: Path, n_blocks: int) -> list[Run]:
    """The run's stages; of an interrupted run only those that it had finished when the tensors were written, and the one
    in which it was."""
    metadata, stages = read_metadata(file), stages_of(run, n_blocks)
    return stages[: int(metadata.get("stages", len(stages))) + ("step" in metadata)]


def attach_and_fill(model: nn.Module, stages: list[Run], file: Path) -> None:
    """The methods of the stages, one after the other as in `train_stages`, and then the trained tensors. In place."""
    whole, attached = model.blocks, None
    for stage in stages:
        method = peft.method_of(stage)
        if method != attached:
            peft.attach(peft.merge(model), method)
            attached = method
    tensors, _ = read_safetensors(file)
    if len(stages) > 1:
        for name, parameter in model.named_parameters():  # the file has those of earlier stages too
            parameter.requires_grad_(parameter.requires_grad or name in tensors)
    peft.restore(model, tensors)
    model.blocks = whole[: stages[-1].depth or len(whole)]


def evaluate_answers(directory: str | Path, count: int, device: str | None = None) -> dict:
    """What `--eval_generate count` adds to a run, for one that has ended. Returns its `result.json` with the scores."""
    samples.need_scorers()
    saved, directory = load_run(directory), Path(directory)
    task, result = get_task(saved.run.dataset), read_result(directory)
    if not isinstance(task, ChatTask):
        raise UserError(f"{directory} was trained on {task.name}, which has no dialogues to answer")
    if result["interrupted"]:
        raise UserError(f"{directory} holds an interrupted run; end it with --resume first")
    run = replace(saved.run, eval_generate=count)
    model = saved.model.to(pick_device(device or "auto"))
    scores = samples.answer_and_score(model, run, task.splits(run), saved.tokenizer, directory)
    result |= scores | {"config": asdict(run)}
    write_json(directory / "result.json", result)
    return result
