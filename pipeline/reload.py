"""An earlier run's model, from the directory that the run filled."""

import copy
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

import peft
from config import DATASETS, PATHS, Run, resolve
from data.encode import TextEncoder, make_text_encoder
from data.registry import TASKS, get_task
from model import config_of, hub
from model.weights import read_safetensors
from pipeline.build import build_model
from pipeline.inputs import Inputs
from pipeline.result import about_texts, data_sha256, is_about_texts, read_result
from pipeline.stages import stages_of
from utils.errors import UserError


@dataclass(frozen=True)
class TrainedRun:
    """An earlier run, its model as it was trained, and what went into it."""

    run: Run  # with every setting filled in
    inputs: Inputs
    model: nn.Module  # on the CPU, in evaluation mode
    result: dict  # what `result.json` holds

    @property
    def description(self) -> str:
        """Return what it is, in a few words."""
        return f"{self.run.source}, {self.run.trainable_layers} on {self.run.dataset}"

    @cached_property
    def texts(self) -> dict:
        """Return what `about_texts` says of the run's texts. They are read again where the run hasn't written it down.

        Raises UserError where they have changed since.
        """
        if is_about_texts(known := self.result.get("texts")):
            return known
        inputs = self.inputs
        if self.result.get("data_sha256") not in (None, data_sha256(inputs.splits)):
            raise UserError(f"{self.run.dataset} has other texts than when {self.description} was trained; train again")
        batches, _ = inputs.task.make_batches(self.run, inputs.splits, inputs.tokenizer, self.model.config)
        return about_texts(inputs.splits, batches)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Return the encoder that the run's texts went through. Raises UserError as `texts` does.

        Where padding is hidden, a text may be longer than those of the run: --context_length alone cuts it.
        """
        by_data = self.run.context_length == "longest_training_example"
        longest = self.texts["longest"] if by_data else self.model.config.context_length
        return make_text_encoder(self.run, self.inputs.tokenizer, self.model.config, longest)

    @property
    def padded_to(self) -> int | None:
        """Return the tokens to which a batch is padded; None: to its longest text, or an old run would have to be read."""
        by_data = self.run.context_length == "longest_training_example"
        return self.text_encoder.pad_to if not by_data or "texts" in self.result else None


def load_run(directory: str | Path, merged: bool = True) -> TrainedRun:
    """Return the run with this --output_dir, an interrupted one too. Raises UserError.

    merged    fold what the method added into the model's own layers, where that can be done and they are in float32
    """
    directory = Path(directory)
    run, inputs, result = read_run(directory)
    file = directory / "trained.safetensors"
    check_inputs(inputs, result, directory)
    tensors, metadata = read_safetensors(file)
    model = build_model(run, len(inputs.task.labels))
    stages = stages_reached(run, metadata, len(model.blocks), file)
    with torch.device("meta"):  # before memory is taken that the settings ask for: do they fit what was trained?
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        attach_and_fill(copy_of_shapes(model), stages, shapes)
    attach_and_fill(model, stages, tensors)
    model = peft.merge(model) if merged and run.base_precision == "fp32" else model
    return TrainedRun(run, inputs, model.eval(), result)


def read_run(directory: Path) -> tuple[Run, Inputs, dict]:
    """Return the run that a directory is of, its inputs, and its result. Raises UserError."""
    result = read_result(directory)
    if result is None:
        what = "has no result.json of a run" if directory.is_dir() else "is no directory"
        raise UserError(f"{directory} {what}; name the --output_dir of an earlier run, such as runs/NAME")
    if not (directory / "trained.safetensors").is_file():
        raise UserError(
            f"{directory} has no trained.safetensors, so nothing of what was trained; train again with that --output_dir"
        )
    if unknown := result["config"].keys() - {one.name for one in fields(Run)}:
        raise UserError(f"{directory}/result.json has settings that are unknown here: {', '.join(sorted(unknown))}")
    run = seen_from_here(Run(**result["config"]), directory)
    if not run.source or not run.dataset:
        raise UserError(f"{directory}/result.json doesn't name the model and the dataset of the run")
    task, model_config = get_task(run.dataset, run, result.get("labels")), config_of(run.source)
    run = resolve(run, task.recipe_for(model_config))  # settings that are newer than the run are at their defaults
    return run, Inputs(run, task, model_config), result


def seen_from_here(run: Run, directory: Path) -> Run:
    """Return a run whose relative paths are those from here. It may have been made in another directory.

    Where that is, --output_dir says: it is written as the user typed it, and `directory` is it.
    """
    there, typed = os.path.abspath(directory), os.path.normpath(run.output_dir or "")
    if os.path.isabs(typed) or not there.endswith(os.sep + typed):
        return run
    base, names = there.removesuffix(typed), {"model": [*hub.REPOSITORIES, *hub.pocket_names()]}
    names |= {name: [*TASKS] for name in DATASETS}
    given = {name: value for name in PATHS if (value := getattr(run, name)) and value not in names.get(name, ())}
    moved = {name: os.path.join(base, path) for name, path in given.items() if not os.path.exists(path)}
    return replace(run, **{name: path for name, path in moved.items() if os.path.exists(path)})


def check_inputs(inputs: Inputs, result: dict, directory: Path) -> None:
    """Raise UserError where the weights or the adapter changed: what was trained means something only on the old ones."""
    run, earlier = inputs.run, result.get("weights_sha256")
    if earlier and inputs.weights_sha256 not in (None, earlier):
        raise UserError(f"{run.source} has other weights than when {directory} was trained on it; train again")
    earlier = result.get("adapter_sha256")
    if earlier and run.adapter and inputs.adapter_sha256 != earlier:
        raise UserError(f"--adapter {run.adapter} has changed since {directory} was trained on it; train again")


def copy_of_shapes(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device, which takes no memory."""
    shapes: dict[int, torch.Tensor] = {id(one): torch.empty_like(one, device="meta") for one in model.buffers()}
    shapes |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shapes)


def stages_reached(run: Run, metadata: dict[str, str], n_blocks: int, file: Path) -> list[Run]:
    """Return the run's stages that the trained tensors have come through; the last of them may be under way.

    metadata    of the file of trained tensors: how many "stages" had been finished, and the "step" of the next one
    """
    stages = stages_of(run, n_blocks)
    try:
        finished = int(metadata.get("stages", len(stages)))
    except ValueError:
        raise UserError(f"{file} has come through {metadata['stages']!r} stages, which is no number; train again") from None
    reached = stages[: max(0, finished) + ("step" in metadata)]
    if not reached:
        raise UserError(f"{file} has come through {finished} stages; train again")
    return reached


def attach_and_fill(model: nn.Module, stages: list[Run], tensors: dict[str, torch.Tensor]) -> None:
    """Attach the methods of the stages, one after the other as `train_stages` does, then fill in the trained tensors. In
    place."""
    all_blocks, attached = model.blocks, None
    for stage in stages:
        method = peft.method_of(stage)
        if method != attached:
            peft.attach(peft.merge(model), method)
            attached = method
    if len(stages) > 1:
        for name, parameter in model.named_parameters():  # the file has those of earlier stages too
            parameter.requires_grad_(parameter.requires_grad or name in tensors)
    peft.restore(model, tensors)
    model.blocks = all_blocks[: stages[-1].depth or len(all_blocks)]
