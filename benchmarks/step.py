"""Times one kind of training step, in a process of its own, through the project's own loop, on random tokens.

Its time stands beside the time that its matrix products alone would take. growth.py and gpu.py run it, from the checkout's
root, as python -m benchmarks.step.

The limit is the rate of x @ w at the model's shapes, [tokens, D] times [D, 4D], measured directly before and after the
steps, the better of both; the operations are counted by torch while a step runs, so they are what is really computed.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist
from torch.utils.flop_counter import (
    FlopCounterMode,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import peft
from config import Run, resolve
from data.batching import Batch, Batches, Example
from data.spam import RECIPE
from model import config_of, fast_path
from pipeline.build import build_model
from pipeline.result import count_parameters, device_name, peak_memory_bytes, reset_peak_memory
from train import accumulate_gradients, update, windows_of
from training import distributed
from training.checkpoints import Progress
from training.device import pick_amp, pick_device
from training.meter import Meter
from training.metrics_log import Metrics
from training.optimizer import make_optimizer

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_RATE = 2e-7  # at the recipe's, losses of large models jump on one batch, and rounding would decide where to
aten = torch.ops.aten


# torch counts attention on GPUs only. Like there, a causal mask doesn't lower the count.
@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)
def attention_flops(q, k, v, *args, **kwargs) -> int:
    """Return the operations of attention with q, k, v [B, H, T, D/H]."""
    return sdpa_flop_count(q, k, v)


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu_backward)
def attention_backward_flops(grad, q, k, v, *args, **kwargs) -> int:
    """Return the operations of the gradients of all three."""
    return sdpa_backward_flop_count(grad, q, k, v)


def timed(work: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Return the seconds that each of so many calls of `work` took. None of them waits for a GPU to be done."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(times):
            work()
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]  # of milliseconds


def product_rate(tokens: int, dim: int, amp: str, device: torch.device, seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of the fastest [tokens, dim] @ [dim, 4 dim] in that time."""
    x, w = (torch.randn(*shape, dtype=DTYPES[amp], device=device) for shape in ((tokens, dim), (dim, 4 * dim)))
    best, until, in_a_row = float("inf"), time.perf_counter() + seconds, 10 if device.type == "cuda" else 1
    while best == float("inf") or time.perf_counter() < until:
        best = min(best, *timed(lambda: x @ w, in_a_row, device))
    return 2 * tokens * dim * 4 * dim / best


def random_batches(run: Run, length: int, vocab_size: int) -> Batches:
    """Return one full batch of drawn tokens, [batch, length], with the classes 0 and 1 in turns.

    peers/hf_step.py draws the same: from a generator of their own, and never the last token, which pads.
    """
    generator = torch.Generator().manual_seed(run.seed)
    ids = torch.randint(vocab_size - 1, (run.batch_size, length), generator=generator).tolist()
    return Batches([Example(row, i % 2) for i, row in enumerate(ids)], run.batch_size, 0, length)


class Step:
    """A training step of the run's model on one batch, which every call repeats: its loss falls.

    losses   of each step that changed the model, before it did. fp16 leaves out steps while it looks for its scale
    """

    def __init__(self, run: Run, length: int, device: torch.device, ddp: bool = False):
        torch.manual_seed(run.seed)
        drawn = not Path(run.model).is_dir()
        started = time.perf_counter()
        model = build_model(replace(run, weights="random" if drawn else "pretrained"), 2)
        self.load_seconds, self.load_peak_bytes = time.perf_counter() - started, peak_memory_bytes(device)
        self.model = peft.attach(model, peft.method_of(run)).to(device).train()
        self.run, self.device = run, device
        self.optimizer = make_optimizer(model, run)
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.amp == "fp16")
        batches = random_batches(run, length, model.config.vocab_size)
        self.window = next(windows_of(batches.epoch(), 1))
        self.meter = Meter(Metrics(), run, 1, batches, Progress())
        self.loss_of = distributed.in_ddp(model) if ddp else partial(fast_path.loss, model)
        self.losses: list[torch.Tensor] = []

    def __call__(self) -> None:
        """Take the step."""
        scale = self.scaler.get_scale()  # 1 without fp16
        accumulate_gradients(self.compute_loss, self.window, self.run, self.scaler, self.meter, self.device)
        update(self.optimizer, self.scaler, self.run.learning_rate, self.run.max_grad_norm)
        if self.scaler.get_scale() < scale:  # a gradient was too large for it, so nothing was changed
            self.losses.pop()

    def compute_loss(self, batch: Batch, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the loop asks for, and keep the mean loss."""
        found = self.loss_of(batch, ignore_index)
        self.losses.append(found[0].detach() / len(batch.labels))
        return found


def measure(run: Run, length: int, steps: int, device: torch.device, compiled: bool = False, ddp: bool = False) -> dict:
    """Return the times of `steps` steps, after one whose operations are counted and one to warm up.

    compiled   after the first step, torch compiles the blocks
    ddp        gradients go through DistributedDataParallel, in a group of one process
    """
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    step = Step(run, length, device, ddp)
    with FlopCounterMode(display=False) as counter:
        step()
    for block in step.model.blocks if compiled else ():
        block.compile()
    tokens, dim = run.batch_size * length, step.model.config.dim
    rates = [product_rate(tokens, dim, run.amp, device)]
    seconds = timed(step, steps + 1, device)
    rates.append(product_rate(tokens, dim, run.amp, device))
    step.meter.bar.close()
    median, flops, rate = statistics.median(seconds[1:]), counter.get_total_flops(), max(rates)
    return {
        "seconds": median,
        "limit_seconds": flops / rate,
        "peak_bytes": peak_memory_bytes(device),
        "bytes_before": before,
        "load_peak_bytes": step.load_peak_bytes,
        "load_seconds": step.load_seconds,
        "tokens_per_second": tokens / median,
        "flops": flops,
        "rate": rate,
        "device": device_name(device),
        "trainable_parameters": count_parameters(step.model)[0],
        "losses": [loss.item() for loss in step.losses],
        "step_seconds": seconds,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a published name, whose weights are drawn, or a directory")
    parser.add_argument("--trainable_layers", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--base_precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ddp", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure one step and print it as a line of JSON."""
    args = parse(argv)
    device = pick_device(args.device)
    said = {name: getattr(args, name) for name in ("model", "trainable_layers", "batch_size", "base_precision")}
    lora = {"lora_rank": 16, "lora_alpha": 16.0} if args.trainable_layers == "lora" else {}
    run = resolve(Run(**said, **lora, learning_rate=LEARNING_RATE, amp=pick_amp(args.amp, device)), RECIPE)
    limit = config_of(run.model).context_length
    assert args.length <= limit, f"--length {args.length} is above the model's context, {limit}"
    if args.ddp:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    print(json.dumps(measure(run, args.length, args.steps, device, args.compile, args.ddp)))
    if args.ddp:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
