"""Training in stages on one model. A plain run is one stage; `--stages PLAN` names a list of them (published/plans.py)."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import distributed
import peft
from data.batching import Batches
from frozen import reuse
from model.weights import read_safetensors, write_safetensors
from record import count_parameters
from run import Run
from train import Metrics, fit, score

STATE = "training_state.safetensors"  # there while a stage can be resumed


def train_stages(
    model: nn.Module,
    stages: list[Run],
    batches: dict[str, Batches],
    metrics: Metrics,
    directory: Path,
    finished: list[dict],
    record_unfinished: Callable[[list[dict]], None] = lambda finished: None,
) -> tuple[list[dict], dict[str, Batches]]:
    """Each stage attaches its method, unless the one before left the same attached, and trains with a fresh optimizer and
    schedule. What a method added is folded in before the next is attached. In place.

    model      with the first stage's method attached
    finished   what an interrupted run had recorded of the stages it finished; the next one is resumed
    record_unfinished   is told of the finished stages, whenever there is something to be resumed
    Returns what `result.json` says of each stage and the batches to evaluate with, and leaves the trained tensors of all
    stages in `directory`.
    """
    whole, attached, changed = model.blocks, peft.method_of(stages[0]), set()
    records, used = list(finished), batches
    for number, stage in enumerate(stages):
        model.blocks = whole
        method = peft.method_of(stage)
        if method != attached:
            changed |= {f"{path}.weight" for path, module in model.named_modules() if hasattr(module, "merged")}
            torch.manual_seed(stage.seed)  # what it adds is drawn alike in a run that is resumed here
            peft.attach(peft.merge(model), method)
            attached = method
        parameters = dict(model.named_parameters())
        changed = {name for name in parameters if name in changed or parameters[name].requires_grad}
        model.blocks = whole[: stage.depth or len(whole)]
        if number < len(finished):
            if number + 1 == len(finished) and not (directory / STATE).is_file():  # it ended before the next had begun
                for name in changed:
                    parameters[name].requires_grad_(True)
                peft.restore(model, read_trained(directory))
            if stage.fsdp:
                distributed.shard_model(model, score, torch.device(stage.device))
            continue
        resumed = stage.resume and number == len(finished) and (directory / STATE).is_file()
        if resumed:
            peft.fill({name: parameters[name] for name in changed}, read_trained(directory))
        metrics.stage = number + 1 if len(stages) > 1 else None
        if metrics.stage:
            trainable, total = count_parameters(model)
            print(
                f"stage {metrics.stage} of {len(stages)}: {method}, {trainable:,} of {total:,} parameters train", flush=True
            )
        if stage.fsdp:
            distributed.shard_model(model, score, torch.device(stage.device))
            parameters = dict(model.named_parameters())
        trained = {name: parameters[name] for name in sorted(changed)}

        def before_saving(trained=trained) -> None:
            write_trained(wholes(trained), directory)
            record_unfinished(records)

        record, used = train_stage(model, replace(stage, resume=resumed), batches, metrics, directory, before_saving)
        records.append(record)
        tensors = wholes(trained)
        write_trained(tensors if record["interrupted"] else peft.fold(model, tensors), directory)
        if record["interrupted"]:  # what is resumed goes on in the form in which it trains
            break
        record_unfinished(records)
        if distributed.rank() == 0:
            (directory / STATE).unlink(missing_ok=True)
    return records, used


def read_trained(directory: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(directory / "trained.safetensors")[0]


def wholes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: distributed.whole(tensor).cpu() for name, tensor in tensors.items()}


def write_trained(trained: dict[str, torch.Tensor], directory: Path) -> None:
    if distributed.rank():
        return
    tensors = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    write_safetensors(tensors, directory / "trained.safetensors", {"format": "pt"})


def train_stage(
    model: nn.Module,
    stage: Run,
    batches: dict[str, Batches],
    metrics: Metrics,
    directory: Path,
    before_saving: Callable[[], None],
):
    """What `result.json` says of one stage, and the batches that it used."""
    started = time.perf_counter()
    used = reuse(model, batches, stage.amp) if stage.reuse_frozen == "yes" and not stage.fsdp else batches
    fitted = fit(model, used["train"], stage, metrics, used.get("validation"), directory / STATE, before_saving)
    trainable, total = count_parameters(model)
    return {
        "method": stage.trainable_layers,
        "steps": fitted.steps,
        "seconds": round(time.perf_counter() - started, 3),
        "tokens": fitted.tokens,
        "step_seconds": round(fitted.step_seconds, 3),
        "interrupted": fitted.interrupted,
        "best_step": fitted.best_step,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "validation": metrics.last("validation"),
    }, used
