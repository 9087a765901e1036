"""The plain loop: `fit` trains whatever requires a gradient, `evaluate` measures. Any model, head and method."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from config import Run
from data.batching import IGNORED, Batch, Batches
from model.transformer import Reading
from model.vocabulary_loss import vocabulary_loss
from training import distributed
from training.checkpoints import Best, Diverged, Keeper, Past, check_finite, kept_named
from training.metrics_log import Metrics
from utils.errors import UserError


def pick_device(wanted: str) -> torch.device:
    """auto: CUDA, else Apple's MPS, else the CPU."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        choices = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"--device {wanted} isn't available here; choose auto, {choices}")
    return torch.device(wanted)


def pick_amp(wanted: str, device: torch.device) -> str:
    """auto: bf16 where the hardware computes it natively, fp16 on older NVIDIA GPUs, else off.

    A processor without bf16 instructions would emulate them, several times slower than fp32.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; on the CPU choose auto, off or bf16")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "off"


def autocast(amp: str, device: torch.device):
    """The context in which the forward pass runs. The tensors that train stay float32 in any case."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


def score(model: nn.Module, batch: Batch, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the cross-entropy over the batch's targets; of each of them the class that the model ranks first; its label.

    One rule for both tasks: classification [B, C] against [B], language modelling [N, V] against N of the labels [B, T].
    """
    kept = batch.kept
    if kept is None:
        hidden, start = model.embed(batch.input_ids, batch.token_type_ids, batch.positions), 0
    else:
        hidden, start = kept.states, kept.start
    if start is None:
        reading = Reading.unstacked(hidden, model.head.taps)
    else:
        reading = model.read(hidden, batch.visible(), batch.lengths, start)
    if batch.labels.ndim == 1:
        logits = model.conclude(reading).float()  # [B, C]
        loss = F.cross_entropy(logits, batch.labels, ignore_index=ignore_index, reduction="sum")
        return loss, logits.argmax(dim=-1), batch.labels
    labels = batch.labels.flatten()[batch.targets]  # [N]
    hidden = model.head.prepare(model.finish(reading.hidden).flatten(0, 1)[batch.targets])  # [B, T, D] -> [N, D]
    loss, guesses = vocabulary_loss(hidden, model.head, labels, ignore_index)
    return loss, guesses, labels


def count_hits(guesses: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """How many targets the model ranks first, a tensor on the device."""
    return ((guesses == labels) & (labels != ignore_index)).sum()


def count_targets(batch: Batch, ignore_index: int) -> int:
    """How many labels the loss doesn't leave out."""
    return int((batch.labels != ignore_index).sum())


def macro_f1(guesses: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN). A class counts if it is anyone's label or anyone's guess."""
    scores = []
    for one in torch.cat([guesses, labels]).unique():
        right = ((guesses == one) & (labels == one)).sum().item()
        scores.append(2 * right / ((guesses == one).sum().item() + (labels == one).sum().item()))
    return sum(scores) / len(scores)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, amp: str = "off", ignore_index: int = IGNORED) -> dict[str, float]:
    """Mean loss and accuracy over every target of every example; of a classifier the macro-F1, else the perplexity.

    Draws no random number and leaves the mode as it was.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses, hits, targets, answers = [], [], 0, []
    scored = distributed.scorer(model, score)
    for batch in batches.epoch():
        targets += count_targets(batch, ignore_index)
        batch = batch.to(device)
        with autocast(amp, device):
            batch_loss, guesses, labels = scored(batch, ignore_index)
        losses.append(batch_loss)  # read at the end, so that the device never waits
        hits.append(count_hits(guesses, labels, ignore_index))
        if batch.labels.ndim == 1:
            known = labels != ignore_index
            answers.append((guesses[known], labels[known]))
    model.train(was_training)
    loss, right, targets = distributed.total(*(sum(one.item() for one in each) for each in (losses, hits)), targets)
    mean_loss, accuracy = loss / max(targets, 1), right / max(targets, 1)
    result = {"loss": mean_loss, "accuracy": accuracy, "targets": targets}
    if answers and targets:
        every = distributed.gather([torch.cat(part).cpu() for part in zip(*answers, strict=True)])
        result["macro_f1"] = macro_f1(*(torch.cat(part) for part in zip(*every, strict=True)))
    if not answers:
        result["perplexity"] = math.exp(min(mean_loss, 700.0))  # a float ends there
    return result


def schedule(kind: str, warmup_ratio: float, total_steps: int):
    """Factor on the learning rate as a function of the number of steps done."""
    warmup = math.ceil(warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        if kind == "linear":
            return max(0.0, 1.0 - progress)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return 1.0

    return factor


@contextlib.contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """While it lasts, a block keeps of its forward pass only what enters it; the backward pass computes the rest again
    (Chen et al. 2016, arXiv:1604.06174), dropout included. Less memory for about a third more time."""
    blocks = model.blocks if wanted else ()
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is back


@dataclass(frozen=True)
class Fitted:
    """What came of a fit."""

    steps: int  # optimizer steps done
    tokens: int  # that went in, padding not counted
    step_seconds: float  # spent on them, evaluations not counted
    seconds_before: float  # of a resumed fit: what its earlier parts took
    interrupted: bool  # by Ctrl-C or SIGTERM before it had ended
    signalled: bool  # by Ctrl-C or SIGTERM, if only in its last step
    best_step: int | None  # with early stopping: the step that it went back to


def windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Groups of `size` batches that share one optimizer step; the last group of an epoch may be smaller."""
    while window := list(islice(batches, size)):
        yield window


def count_steps(train: Batches, run: Run) -> tuple[int, int]:
    """Optimizer steps: (of an epoch, in all)."""
    per_epoch = math.ceil(len(train) / run.accumulation_steps)
    total = run.num_epochs * per_epoch
    return per_epoch, min(total, run.max_steps) if run.max_steps else total


def steps_of(train: Batches, run: Run) -> Iterator[tuple[int, int, list[Batch]]]:
    """Every optimizer step of a fit: (its number from 1 on, epoch, the batches that it takes in)."""
    per_epoch, total = count_steps(train, run)
    for epoch in range(math.ceil(total / max(1, per_epoch))):
        of_epoch = windows(train.epoch(epoch), run.accumulation_steps)
        for step in range(epoch * per_epoch + 1, min(total, (epoch + 1) * per_epoch) + 1):
            yield step, epoch, next(of_epoch)


def fit(
    model: nn.Module,
    train: Batches,
    run: Run,
    metrics: Metrics,
    validation: Batches | None = None,
    keeper: Keeper | None = None,
) -> Fitted:
    """Trains in place what requires a gradient, as the (resolved) run says.

    Each step's gradient is that of the mean loss over all targets of its window, whatever the window is cut into.
    Ctrl-C or SIGTERM ends it after the step under way; `keeper` then saves what `run.resume` needs to go on from there,
    and before that every `run.save_steps`.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(model, run)
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=run.amp == "fp16")
    if not len(train):
        raise UserError(f"nothing to train on: fewer examples than --batch_size {run.batch_size}")
    steps_per_epoch, total_steps = count_steps(train, run)
    factor = schedule(run.lr_scheduler_type, run.warmup_ratio, total_steps)
    torch.manual_seed(distributed.seed_of(run.seed))  # from here on only dropout draws from torch's global generator
    best = Best(run.early_stopping_patience, trained, validation)
    past = keeper.load(optimizer, scaler, best) if run.resume else Past()
    meter = Meter(metrics, run, total_steps, train, past)
    model.train()
    scored, done = distributed.trainer(model, score), past.step
    with interrupt_flag() as interrupted, checkpointed(model, run.gradient_checkpointing), kept_named(keeper):
        for step, epoch, window in steps_of(train, run):
            if any(distributed.total(interrupted.is_set())) or best.is_over:
                break
            if step <= done:
                continue
            rate = run.learning_rate * factor(step - 1)
            targets = accumulate(model, window, run, scaler, meter, scored)
            update(optimizer, scaler, rate, run.max_grad_norm)
            done = step
            at_end_of_epoch = step % steps_per_epoch == 0 or step == total_steps
            validate = validation and (at_end_of_epoch or (run.eval_steps and step % run.eval_steps == 0))
            save = keeper and run.save_steps and step % run.save_steps == 0 and step < total_steps
            meter.step(step, epoch, targets, rate, ask=bool(validate or save))
            if validate:
                result = evaluate(model, validation, run.amp, run.ignore_index)
                meter.evaluation(step, epoch, result)
                best.see(step, result["loss"])
            if save:
                keeper.save(optimizer, scaler, best, meter.past(step), must=False)
        stopped = done < total_steps and not best.is_over
        if stopped and keeper:
            keeper.save(optimizer, scaler, best, meter.past(done), must=True)
        if not stopped:
            best.restore()
            check_finite(trained, done)
    meter.bar.close()
    tokens, signalled = distributed.total(meter.tokens, interrupted.is_set())
    best_step = best.step if best.patience else None
    return Fitted(done, tokens, meter.step_seconds, past.seconds, stopped, signalled, best_step)


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """Of what requires a gradient, in groups by the factor on the learning rate that a module says of its own parameters
    (`rate_factors`, by name; else 1)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.requires_grad:
            factor = getattr(model.get_submodule(path), "rate_factors", {}).get(own, 1.0)
            groups.setdefault(factor, []).append(parameter)
    groups = [{"params": members, "factor": factor} for factor, members in groups.items()]
    return torch.optim.AdamW(groups, lr=run.learning_rate, weight_decay=run.weight_decay, fused=True)


def accumulate(
    model: nn.Module,
    window: list[Batch],
    run: Run,
    scaler: torch.amp.GradScaler,
    meter: "Meter",
    scored: Callable | None = None,
) -> int:
    """Adds the gradient of the mean loss over all targets of a window, batch by batch. Returns how many targets it has.

    scored    `score` of the model, as `distributed.trainer` gives it
    """
    scored = scored or distributed.scorer(model, score)
    device = next(model.parameters()).device
    (targets,) = distributed.total(sum(count_targets(batch, run.ignore_index) for batch in window))
    share = max(targets, 1) / distributed.size()  # several processes' gradients are averaged
    for number, batch in enumerate(window, start=1):
        with distributed.meeting(scored, last=number == len(window)):
            with autocast(run.amp, device):
                loss, guesses, labels = scored(batch.to(device), run.ignore_index)
            scaler.scale(loss / share).backward()
        meter.add(loss, count_hits(guesses, labels, run.ignore_index), batch.lengths)
    return targets


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, rate: float, max_grad_norm: float) -> None:
    """One optimizer step with the gradients that have been summed up, and a clean slate for the next."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    if max_grad_norm:
        scaler.unscale_(optimizer)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM only sets the flag, so that no step is cut in half; the second stops at once, unless
    torchrun passed it on, which gives its processes 30 seconds."""
    flag = threading.Event()

    def on_interrupt(signal_number, frame) -> None:
        if flag.is_set() and not distributed.launched():
            raise KeyboardInterrupt
        flag.set()

    if threading.current_thread() is not threading.main_thread():  # signals can only be handled there
        yield flag
        return
    previous = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Meter:
    """Progress bar and log of a fit. Losses stay on the device until a record is due, so that no step waits for them."""

    def __init__(self, metrics: Metrics, run: Run, total_steps: int, train: Batches, past: Past):
        self.metrics, self.every, self.total_steps = metrics, run.logging_steps, total_steps
        per_step = min(run.batch_size * run.accumulation_steps, train.n_examples())
        total = min(run.num_epochs * train.n_examples(), total_steps * per_step)
        begun = past.step * per_step
        scale = distributed.size() if distributed.size() > 1 else False  # of several processes each shows the others' too
        self.bar = tqdm(
            total=total, initial=begun, unit=" examples", unit_scale=scale, desc="train",
            dynamic_ncols=True, disable=None if distributed.rank() == 0 else True,
        )  # fmt: skip
        self.tokens, self.step_seconds = past.tokens, past.step_seconds
        self.since = time.perf_counter()  # of the step under way
        self.started = self.since - past.seconds
        self.loss, self.hits, self.targets = past.loss, past.hits, past.targets
        self.broken: torch.Tensor | int = 0  # the step whose loss was the first that is no number

    def past(self, step: int) -> Past:
        """What lies behind the run at this step."""
        seconds = time.perf_counter() - self.started
        return Past(step, self.tokens, self.step_seconds, seconds, self.targets, self.loss, self.hits)

    def add(self, loss: torch.Tensor, hits: torch.Tensor, lengths: torch.Tensor) -> None:
        """A batch: its summed loss, its correct guesses, and the lengths of its texts [B]."""
        self.loss = loss.detach() + self.loss
        self.hits = hits + self.hits
        self.tokens += int(lengths.sum())
        self.bar.update(len(lengths))

    def step(self, step: int, epoch: int, targets: int, rate: float, ask: bool = False) -> None:
        """An optimizer step is done, over that many targets. Writes a record every `run.logging_steps` and at the last."""
        now = time.perf_counter()
        self.step_seconds, self.since = self.step_seconds + now - self.since, now
        self.targets += targets
        due = step % self.every == 0 or step == self.total_steps
        self.check(step, ask or due)
        if not due:
            return
        loss, hits = distributed.total(float(self.loss), int(self.hits))
        loss, accuracy = loss / max(self.targets, 1), hits / max(self.targets, 1)
        self.bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}", refresh=False)
        self._write(step, epoch, "train", loss=loss, accuracy=accuracy, learning_rate=rate)
        self.loss, self.hits, self.targets = 0.0, 0, 0

    def check(self, step: int, ask: bool) -> None:
        """A loss that is no number ends the run. The CPU says so at once; a GPU notes the step, and is asked for it when
        something is read or saved anyway, so that no step waits for it. So do several processes, which end together."""
        on_cpu = self.loss.device.type == "cpu"
        if on_cpu:
            self.broken = self.broken or (0 if math.isfinite(self.loss) else step)
        else:
            self.broken = torch.where(self.loss.isfinite() | (self.broken != 0), self.broken, step)
        if ask or (on_cpu and distributed.size() == 1):
            first = [each for each in distributed.gather(int(self.broken)) if each]
            if first:
                raise Diverged(f"the loss is {distributed.total(float(self.loss))[0]} at step {min(first)}")

    def evaluation(self, step: int, epoch: int, result: dict[str, float]) -> None:
        self._write(step, epoch, "validation", **result)
        if not self.bar.disable:
            self.bar.write(f"step {step}: validation loss {result['loss']:.4f}, accuracy {result['accuracy']:.2%}")
        self.since = time.perf_counter()

    def _write(self, step: int, epoch: int, split: str, **values) -> None:
        seconds = round(time.perf_counter() - self.started, 3)
        self.metrics.write(step=step, epoch=epoch, split=split, **values, seconds=seconds)
