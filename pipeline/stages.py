"""Training in stages on one model. A plain run is one stage; `--stages PLAN` names a list of them (published/plans.py)."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path

import torch
from torch import nn

import peft
from config import Run, override
from data.batching import Batches
from pipeline.result import count_parameters
from published.plans import PLANS
from train import fit, training_steps
from training import activation_cache, distributed
from training.checkpoints import Checkpointer, ResumePoint, gathered, write_trained
from training.metrics_log import Metrics
from utils.errors import UserError, note


def stages_of(run: Run, n_blocks: int) -> list[Run]:
    """Return the run's stages, each a complete run. Without --stages the run is its only stage. Raises UserError."""
    if run.stages is None:
        return [run]
    if run.stages not in PLANS:
        raise UserError(f"unknown --stages {run.stages!r}: choose {', '.join(PLANS)}")
    return [replace(override(run, stage), stages=None) for stage in PLANS[run.stages](n_blocks)]


@dataclass
class StagedTraining:
    """Trains the stages of a run, one after the other, each with a fresh optimizer and schedule. In place.

    A stage attaches its method, unless the one before left the same attached. What a method added is folded in before the
    next is attached.
    """

    model: nn.Module  # with the first stage's method attached
    stages: list[Run]
    batches: dict[str, Batches]
    metrics: Metrics
    directory: Path  # gets the trained tensors of all stages
    records: list[dict]  # of each finished stage, for result.json; at first those of the run that is resumed
    point: ResumePoint | None = None  # where the run that is resumed goes on, in the stage after the finished ones
    record_unfinished: Callable[[list[dict]], None] = lambda records: None  # called before anything is saved
    changed: set[str] = field(default_factory=set)  # the parameters that any stage so far has trained
    compute_loss: Callable | None = None  # of a model that is spread over processes; else None

    def run(self) -> dict[str, Batches]:
        """Train all stages, or until a signal comes. Return the batches to evaluate with."""
        whole, attached = self.model.blocks, peft.method_of(self.stages[0])
        used, n_finished = self.batches, len(self.records)
        self.forget_later_metrics()
        for number, stage in enumerate(self.stages):
            self.metrics.stage = number + 1 if len(self.stages) > 1 else None
            self.model.blocks = whole
            method = peft.method_of(stage)
            if method != attached:
                self.changed |= exchange(self.model, method, stage.seed)
                attached = method
            goes_on = self.restore(number, n_finished)
            self.model.blocks = whole[: stage.depth or len(whole)]
            if stage.fsdp:
                self.compute_loss = distributed.shard_model(self.model, torch.device(stage.device))
            if number >= n_finished:
                used, signalled = self.train(number, replace(stage, resume=goes_on), method)
                if self.records[-1]["interrupted"]:
                    break
                self.keep(is_last=number + 1 == len(self.stages))
                if signalled:  # in its last step
                    raise KeyboardInterrupt
            elif number + 1 == len(self.stages):
                used = self.recompute(stage, self.records[-1]["steps"])
        return used

    def forget_later_metrics(self) -> None:
        """Drop the records that an interrupted run wrote after it had last been saved."""
        if self.point is not None:
            reached = len(self.records) + (self.point.step is not None)
            step = inf if self.point.step is None else self.point.step
            self.metrics.forget_after(reached if len(self.stages) > 1 else None, step)

    def restore(self, number: int, n_finished: int) -> bool:
        """Put back what a resumed run had trained by this stage. Return whether the run goes on within the stage."""
        parameters = dict(self.model.named_parameters())
        self.changed = {name for name in parameters if name in self.changed or parameters[name].requires_grad}
        if self.point is None:
            return False
        if self.point.step is None:  # the stage had ended before the next had begun
            if number + 1 == n_finished:
                refill(self.model, self.changed, self.point.tensors)
            return False
        if number == n_finished:
            peft.fill({name: parameters[name] for name in self.changed}, self.point.part("trained"))
        return number == n_finished

    def train(self, number: int, stage: Run, method) -> tuple[dict[str, Batches], bool]:
        """Train one stage and add its record. Return the batches that it used, and whether a signal came."""
        started = time.perf_counter()
        trainable, total = count_parameters(self.model)
        if self.metrics.stage:
            counts = f"{trainable:,} of {total:,} parameters train"
            print(f"stage {self.metrics.stage} of {len(self.stages)}: {method}, {counts}", flush=True)
        checkpointer = Checkpointer(
            self.directory,
            stage.save_total_limit,
            stages=number,
            prefix=f"stage-{self.metrics.stage:02}-" if self.metrics.stage else "",
            changed=self.trained(),
            record=lambda: self.record_unfinished(self.records),
            point=self.point if stage.resume else None,
        )
        used, decision = self.with_cache(stage)
        if decision is not None:
            activation_cache.announce(decision, len(self.model.blocks))
        validation = used.get("validation")
        result = fit(self.model, used["train"], stage, self.metrics, validation, checkpointer, self.compute_loss)
        record = {
            "method": stage.trainable_layers,
            "steps": result.steps,
            "seconds": round(result.seconds_before + time.perf_counter() - started, 3),
            "tokens": result.tokens,
            "step_seconds": round(result.step_seconds, 3),
            "interrupted": result.interrupted,
            "best_step": result.best_step,
            "trainable_parameters": trainable,
            "total_parameters": total,
            "validation": self.metrics.last("validation"),
            "activation_cache": None if decision is None else asdict(decision),
        }
        self.records.append(record)
        return used, result.signalled

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what this stage or an earlier one has trained, by name."""
        return {name: one for name, one in sorted(self.model.named_parameters()) if name in self.changed}

    def with_cache(self, stage: Run) -> tuple[dict[str, Batches], activation_cache.Decision | None]:
        """Return the batches, with the hidden states of frozen blocks where they are kept, and why; None: not asked for."""
        if stage.reuse_frozen == "no" or stage.fsdp:
            return self.batches, None
        return activation_cache.cached(self.model, self.batches, stage.amp)

    def recompute(self, stage: Run, steps: int) -> dict[str, Batches]:
        """Return the batches of a stage that an earlier process trained, with the hidden states that it had kept.

        Texts that are computed together are the same, and so is the rounding.
        """
        used, decision = self.with_cache(stage)
        if decision is not None and decision.kept:
            for step, *_ in training_steps(used["train"], stage):
                if step > steps:
                    break
        return used

    def keep(self, is_last: bool) -> None:
        """Write what the stages so far have trained. What the next stage may go on with isn't folded before the last.

        The record goes first: what it says too much is cut off in a resumed run by what the tensors say.
        """
        tensors = gathered(self.trained())
        try:
            self.record_unfinished(self.records)
            write_trained(peft.fold(self.model, tensors) if is_last else tensors, self.directory, len(self.records))
        except (UserError, OSError) as error:
            if is_last:
                raise
            note(f"not saved after stage {len(self.records)}, the run goes on: {error}")


def exchange(model: nn.Module, method, seed: int) -> set[str]:
    """Fold in what the attached method added and attach another, in place. Return the names of the parameters into which
    something was folded."""
    folded = {f"{path}.weight" for path, module in model.named_modules() if hasattr(module, "merged")}
    biases = {name: one for name, one in model.named_parameters() if name.endswith(".bias")}
    peft.merge(model)
    folded |= {name for name, one in model.named_parameters() if one is not biases.get(name, one)}  # as IA3's
    torch.manual_seed(seed)  # what is added is drawn alike in a run that is resumed here
    peft.attach(model, method)
    return folded


def refill(model: nn.Module, changed: set[str], tensors: dict[str, torch.Tensor]) -> None:
    """Put back what the stages so far have trained. What trains remains that of the last of them."""
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in changed)
    peft.restore(model, tensors)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.get(name, True))  # a new name is that of something folded, which has trained
