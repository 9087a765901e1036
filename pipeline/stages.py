"""Training in stages on one model. A plain run is one stage; `--stages PLAN` names a list of them (published/plans.py)."""

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import torch
from torch import nn

import peft
from config import Run
from data.batching import Batches
from pipeline.result import count_parameters
from train import fit, score, steps_of
from training import distributed
from training.activation_cache import reuse
from training.checkpoints import Keeper, Point, wholes, write_trained
from training.metrics_log import Metrics
from utils.errors import UserError, note


def train_stages(
    model: nn.Module,
    stages: list[Run],
    batches: dict[str, Batches],
    metrics: Metrics,
    directory: Path,
    finished: list[dict],
    point: Point | None = None,
    record_unfinished: Callable[[list[dict]], None] = lambda finished: None,
) -> tuple[list[dict], dict[str, Batches]]:
    """Each stage attaches its method, unless the one before left the same attached, and trains with a fresh optimizer and
    schedule. What a method added is folded in before the next is attached. In place.

    model      with the first stage's method attached
    finished   what an interrupted run had recorded of the stages it finished; the next one is resumed
    point      where in it
    record_unfinished   is told of the finished stages, whenever something is about to be saved
    Returns what `result.json` says of each stage and the batches to evaluate with, and leaves the trained tensors of all
    stages in `directory`.
    """
    whole, attached, changed = model.blocks, peft.method_of(stages[0]), set()
    records, used = list(finished), batches
    if point:
        reached = len(finished) + (point.step is not None)
        metrics.forget_after(reached if len(stages) > 1 else None, inf if point.step is None else point.step)
    for number, stage in enumerate(stages):
        metrics.stage = number + 1 if len(stages) > 1 else None
        model.blocks = whole
        method = peft.method_of(stage)
        if method != attached:
            changed |= exchange(model, method, stage.seed)
            attached = method
        parameters = dict(model.named_parameters())
        changed = {name for name in parameters if name in changed or parameters[name].requires_grad}
        if number + 1 == len(finished) and point.step is None:  # it ended before the next had begun
            refill(model, changed, point.tensors)
        model.blocks = whole[: stage.depth or len(whole)]
        goes_on = point is not None and point.step is not None and number == len(finished)
        if goes_on:
            peft.fill({name: parameters[name] for name in changed}, point.part("trained"))
        if stage.fsdp:
            distributed.shard_model(model, score, torch.device(stage.device))
            parameters = dict(model.named_parameters())
        if number < len(finished):
            if number + 1 == len(stages):
                used = relearn(model, batches, stage, finished[-1]["steps"])
            continue
        if metrics.stage:
            trainable, total = count_parameters(model)
            print(
                f"stage {metrics.stage} of {len(stages)}: {method}, {trainable:,} of {total:,} parameters train", flush=True
            )
        trained = {name: parameters[name] for name in sorted(changed)}
        prefix = f"stage-{metrics.stage:02}-" if metrics.stage else ""
        keeper = Keeper(directory, stage.save_total_limit, number, prefix, trained, lambda: record_unfinished(records))
        keeper.point = point if goes_on else None
        record, used, signalled = train_stage(model, replace(stage, resume=goes_on), batches, metrics, keeper)
        records.append(record)
        if record["interrupted"]:
            break
        is_last = number + 1 == len(stages)  # before that, what the next stage may go on with isn't folded
        tensors = wholes(trained)
        keep_stage(peft.fold(model, tensors) if is_last else tensors, directory, records, record_unfinished, is_last)
        if signalled:  # in its last step
            raise KeyboardInterrupt
    return records, used


def exchange(model: nn.Module, method, seed: int) -> set[str]:
    """Folds in what the attached method added and attaches another, in place. Returns the names of the parameters into
    which something was folded."""
    folded = {f"{path}.weight" for path, module in model.named_modules() if hasattr(module, "merged")}
    biases = {name: one for name, one in model.named_parameters() if name.endswith(".bias")}
    peft.merge(model)
    folded |= {name for name, one in model.named_parameters() if one is not biases.get(name, one)}  # as IA3's
    torch.manual_seed(seed)  # what is added is drawn alike in a run that is resumed here
    peft.attach(model, method)
    return folded


def keep_stage(tensors: dict, directory: Path, records: list[dict], record_unfinished: Callable, is_last: bool) -> None:
    """Writes what the stages so far have trained. The record goes first: what it says too much is cut off in a resumed
    run by what the tensors say."""
    try:
        record_unfinished(records)
        write_trained(tensors, directory, len(records))
    except (UserError, OSError) as error:
        if is_last:
            raise
        note(f"not saved after stage {len(records)}, the run goes on: {error}")


def refill(model: nn.Module, changed: set[str], tensors: dict[str, torch.Tensor]) -> None:
    """Puts back what the stages so far have trained. What trains remains that of the last of them."""
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in changed)
    peft.restore(model, tensors)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.get(name, True))  # a new name is that of something folded, which has trained


def relearn(model: nn.Module, batches: dict[str, Batches], stage: Run, steps: int) -> dict[str, Batches]:
    """What `train_stage` makes of the batches, with what is kept of their texts, for a stage that an earlier process
    trained: texts that are computed together are the same, and so is the rounding."""
    if stage.reuse_frozen == "no" or stage.fsdp:
        return batches
    used = reuse(model, batches, stage.amp)
    if used is not batches:
        for step, *_ in steps_of(used["train"], stage):
            if step > steps:
                break
    return used


def train_stage(model: nn.Module, stage: Run, batches: dict[str, Batches], metrics: Metrics, keeper: Keeper):
    """What `result.json` says of one stage, the batches that it used, and whether a signal came."""
    started = time.perf_counter()
    used = reuse(model, batches, stage.amp) if stage.reuse_frozen == "yes" and not stage.fsdp else batches
    fitted = fit(model, used["train"], stage, metrics, used.get("validation"), keeper)
    trainable, total = count_parameters(model)
    record = {
        "method": stage.trainable_layers,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds_before + time.perf_counter() - started, 3),
        "tokens": fitted.tokens,
        "step_seconds": round(fitted.step_seconds, 3),
        "interrupted": fitted.interrupted,
        "best_step": fitted.best_step,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "validation": metrics.last("validation"),
    }
    return record, used, fitted.signalled
