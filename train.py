"""The plain loop: `fit` trains whatever requires a gradient, `evaluate` measures. Any model, head and method.

Begin at `fit`. What it leans on is in `training/`: progress bar, checkpoints, early stopping, several processes.
A window is the batches that share one optimizer step (gradient accumulation). Letters used for shapes: B batch, T tokens,
V vocabulary, C classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from config import Run
from data.batching import IGNORED, Batch, Batches
from model import fast_path
from model.transformer import Transformer, evaluating
from training import distributed
from training.checkpoints import Checkpointer, Progress, advice_when_diverged
from training.device import autocast
from training.divergence import check_finite
from training.early_stopping import EarlyStopping
from training.meter import Meter
from training.metrics_log import Metrics
from training.optimizer import AdamW, make_optimizer
from training.scores import measures_of
from training.signals import interrupt_flag
from utils.errors import UserError


def plain_loss(model: nn.Module, batch: Batch, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of a batch, the class ranked first for each label, and the labels.

    One rule for both tasks: classification has a label per text, language modelling one per position. Each label counts as
    much as its class weighs (--class_weights). Read this one; what runs is `model.fast_path.loss`, which saves work, and
    tests hold it to this one: the same loss, gradients and predictions. Positions without a target, which it leaves out,
    have the label `ignore_index` here.
    """
    logits = model(batch.input_ids, batch.visible(), batch.lengths, batch.token_type_ids, batch.positions)
    logits, labels = logits.flatten(0, -2).float(), batch.labels.flatten()  # [B, C] and [B], or [B T, V] and [B T]
    loss = F.cross_entropy(logits, labels, weight=batch.class_weights, ignore_index=ignore_index, reduction="sum")
    return loss, logits.argmax(dim=-1), labels


@dataclass(frozen=True)
class FitResult:
    """What came of a training."""

    steps: int  # optimizer steps done
    tokens: int  # that went in, padding not counted
    step_seconds: float  # spent on them, evaluations and saves not counted
    seconds_before: float  # of a resumed training: what its earlier parts took
    interrupted: bool  # a signal (Ctrl-C, SIGTERM) ended it before its last step
    signalled: bool  # a signal came, perhaps in the last step, too late to cut anything short
    best_step: int | None  # with early stopping: the step with the lowest validation loss


def fit(
    model: Transformer,
    train: Batches,
    run: Run,
    metrics: Metrics,
    validation: Batches | None = None,
    checkpointer: Checkpointer | None = None,
    compute_loss: Callable | None = None,
) -> FitResult:
    """Train what requires a gradient as the (resolved) run says. In place.

    Each step's gradient is that of the mean loss over all targets of its window, however that is cut into batches.
    Ctrl-C or SIGTERM ends the training after the step under way; `checkpointer` then saves what `run.resume` needs to go on
    from there, and before that every `run.save_steps`.

    run            with every setting filled in (config.resolve)
    metrics        gets a record per logged step and per evaluation
    validation     is evaluated after each epoch, and every `run.eval_steps`
    checkpointer   saves and loads what `run.resume` goes on from
    compute_loss   (batch, ignore_index) -> as `plain_loss`; None: `fast_path.loss` of the model, with its gradients
                   averaged over the processes where there are several

    Raises UserError where there is nothing to train on, and for a loss that is nan or inf.
    """
    if not len(train):
        raise UserError(f"nothing to train on: fewer examples than --batch_size {run.batch_size}")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(model, run)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=run.amp == "fp16")
    steps_per_epoch, total_steps = count_steps(train, run)
    lr_schedule = schedule(run.lr_scheduler_type, run.warmup_ratio, total_steps)
    torch.manual_seed(distributed.seed_of(run.seed))  # from here on only dropout draws from torch's global generator
    stopping = EarlyStopping(run.early_stopping_patience, trained, validation)
    resumed = checkpointer.load(optimizer, scaler, stopping) if checkpointer is not None and run.resume else Progress()
    meter = Meter(metrics, run, total_steps, train, resumed)
    model.gradient_checkpointing = run.gradient_checkpointing
    model.train()
    train_loss = compute_loss or distributed.ddp_wrap(model)
    done = resumed.step
    with interrupt_flag() as stop_signal, advice_when_diverged(checkpointer):
        for step, epoch, window in training_steps(train, run):
            if any(distributed.total(stop_signal.is_set())) or stopping.is_over:  # in any process
                break
            if step <= done:  # taken before the interruption: only the data moves forward
                meter.restart_clock()
                continue
            rate = run.learning_rate * lr_schedule(step - 1)
            n_targets = accumulate_gradients(train_loss, window, run, scaler, meter, device)
            update(optimizer, scaler, rate, run.max_grad_norm)
            done = step
            is_end_of_epoch = step % steps_per_epoch == 0 or step == total_steps
            is_evaluation_due = is_end_of_epoch or (run.eval_steps and step % run.eval_steps == 0)
            is_save_due = run.save_steps and step % run.save_steps == 0 and step < total_steps
            meter.step(step, epoch, n_targets, rate, must_check=bool(is_evaluation_due or is_save_due))
            if validation is not None and is_evaluation_due:
                result = evaluate(model, validation, run.amp, run.ignore_index, compute_loss)
                meter.evaluation(step, epoch, result)
                stopping.update(step, result["loss"])
            if checkpointer is not None and is_save_due:
                checkpointer.save(optimizer, scaler, stopping, meter.progress(step), required=False)
            meter.restart_clock()
        stopped = done < total_steps and not stopping.is_over
        if stopped and checkpointer is not None:
            checkpointer.save(optimizer, scaler, stopping, meter.progress(done), required=True)
        if not stopped:
            stopping.restore()
            check_finite(trained, done)
    meter.bar.close()
    tokens, signalled = distributed.total(meter.tokens, stop_signal.is_set())
    best_step = stopping.step if stopping.patience else None
    return FitResult(done, tokens, meter.step_seconds, resumed.seconds, stopped, signalled, best_step)


def accumulate_gradients(
    compute_loss: Callable,
    window: list[Batch],
    run: Run,
    scaler: torch.amp.GradScaler,
    meter: Meter,
    device: torch.device,
) -> int:
    """Add up the gradient of the mean loss over all targets of a window, batch by batch. Return how many targets it has."""
    own_targets = sum(count_targets(batch, run.ignore_index) for batch in window)
    weighed = window[0].class_weights is not None
    own_weight = sum(batch.weight(run.ignore_index) for batch in window) if weighed else own_targets
    n_targets, weight = distributed.total(own_targets, own_weight)  # summed over the processes
    # Several processes average their gradients, so that each divides by its part of the targets, not by all of them.
    divisor = (weight or 1) / distributed.size()
    for number, batch in enumerate(window, start=1):
        with distributed.no_sync(compute_loss, last=number == len(window)):
            with autocast(run.amp, device):
                loss, predictions, labels = compute_loss(batch.to(device), run.ignore_index)
            scaler.scale(loss / divisor).backward()
        meter.add(loss, count_hits(predictions, labels, run.ignore_index), batch.lengths)
    return n_targets


def update(optimizer: AdamW, scaler: Any, rate: float, max_grad_norm: float) -> None:
    """Take one optimizer step with the gradients that have been added up, and clear them for the next."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    if max_grad_norm:
        scaler.unscale_(optimizer)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def schedule(kind: str, warmup_ratio: float, total_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the number of steps done."""
    warmup = math.ceil(warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        part = (step - warmup) / max(1, total_steps - warmup)
        if kind == "linear":
            return max(0.0, 1.0 - part)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, part)))
        return 1.0

    return factor


def count_steps(train: Batches, run: Run) -> tuple[int, int]:
    """Return the number of optimizer steps (in an epoch, in all)."""
    per_epoch = math.ceil(len(train) / run.accumulation_steps)
    total = run.num_epochs * per_epoch
    return per_epoch, min(total, run.max_steps) if run.max_steps else total


def training_steps(train: Batches, run: Run) -> Iterator[tuple[int, int, list[Batch]]]:
    """Yield every optimizer step: (its number from 1 on, its epoch, the window of batches that it takes in)."""
    per_epoch, total = count_steps(train, run)
    for epoch in range(math.ceil(total / max(1, per_epoch))):
        windows = windows_of(train.epoch(epoch), run.accumulation_steps)
        for step in range(epoch * per_epoch + 1, min(total, (epoch + 1) * per_epoch) + 1):
            yield step, epoch, next(windows)


def windows_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of `size` batches that share one optimizer step; the last group of an epoch may be smaller."""
    while window := list(islice(batches, size)):
        yield window


def count_hits(predictions: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Return how many targets the model ranks first, or of how many pairs the chosen answer gained more; on the device."""
    if predictions.is_floating_point():  # of pairs of answers, as `model.preference_loss` returns them
        return (predictions > labels).sum()
    return ((predictions == labels) & (labels != ignore_index)).sum()


def count_targets(batch: Batch, ignore_index: int) -> int:
    """Return how many labels the loss doesn't leave out; of pairs of answers how many pairs."""
    known = batch.labels != ignore_index
    return int((known if batch.references is None else known.any(dim=1)).sum())


@torch.no_grad()
def evaluate(
    model: Transformer,
    batches: Batches,
    amp: str = "off",
    ignore_index: int = IGNORED,
    compute_loss: Callable | None = None,
) -> dict[str, Any]:
    """Return loss, accuracy (means over every target of every example) and targets (their number).

    A classifier that had a target, and pairs of answers, get `measures_of`, a language model perplexity. Draws no random
    number and leaves the model's mode alone. `compute_loss` is as for `fit`. `batches` without class weights: unweighted.
    """
    device, compute_loss = next(model.parameters()).device, compute_loss or partial(fast_path.loss, model)
    losses, hits, n_targets, answers = [], [], 0, []
    with evaluating(model):  # no dropout; behind it the model is in the mode that it was in
        for batch in batches.epoch():
            n_targets += count_targets(batch, ignore_index)
            with autocast(amp, device):
                loss, predictions, labels = compute_loss(batch.to(device), ignore_index)
            losses.append(loss)  # read at the end, so that the device never waits
            hits.append(count_hits(predictions, labels, ignore_index))
            if batch.labels.ndim == 1 or batch.references is not None:
                known = labels != ignore_index
                answers.append((predictions[known], labels[known]))
    total_loss, total_hits = sum(one.item() for one in losses), sum(one.item() for one in hits)
    total_loss, total_hits, n_targets = distributed.total(total_loss, total_hits, n_targets)
    result = {"loss": total_loss / max(n_targets, 1), "accuracy": total_hits / max(n_targets, 1), "targets": n_targets}
    if not answers:
        result["perplexity"] = math.exp(min(result["loss"], 700.0))  # exp overflows a float at about 709
    elif n_targets:
        per_process = distributed.gather([torch.cat(part).cpu() for part in zip(*answers, strict=True)])
        predictions, labels = (torch.cat(part) for part in zip(*per_process, strict=True))
        result |= measures_of(predictions, labels, batches.examples[0].beta)
    return result
