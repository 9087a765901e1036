"""Times one kind of training step, in a process of its own, through the project's own loop, on random tokens.

Its time stands beside the time that its matrix products alone would take. growth.py runs it, from the checkout's root, as
python -m benchmarks.step.

The limit is the rate of x @ w at the model's shapes, [tokens, D] times [D, 4D], measured directly before and after the
steps, the better of both; the operations are counted by torch while a step runs, so they are what is really computed.
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import peft
from config import Run, resolve
from data.batching import Batches, Example
from data.spam import RECIPE
from model import config_of, fast_path, from_pretrained
from pipeline.result import count_parameters, peak_memory_bytes, reset_peak_memory
from train import accumulate_gradients, update, windows_of
from training.checkpoints import Progress
from training.device import pick_amp
from training.meter import Meter
from training.metrics_log import Metrics
from training.optimizer import make_optimizer

CPU = torch.device("cpu")
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


def product_rate(tokens: int, dim: int, amp: str, seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of the fastest [tokens, dim] @ [dim, 4 dim] in that time."""
    dtype = torch.float32 if amp == "off" else torch.bfloat16
    x, w = torch.randn(tokens, dim, dtype=dtype), torch.randn(dim, 4 * dim, dtype=dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        x @ w
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * dim * 4 * dim / best


def random_batches(run: Run, length: int, steps: int, vocab_size: int) -> Batches:
    """Return so many full batches of drawn tokens, [batch, length] each, with the classes 0 and 1 in turns."""
    ids = torch.randint(vocab_size, (steps * run.batch_size, length)).tolist()
    return Batches([Example(row, i % 2) for i, row in enumerate(ids)], run.batch_size, 0, length)


def measure(run: Run, length: int, steps: int) -> dict:
    """Return the times of `steps` steps, after one to warm up and before one whose operations are counted."""
    torch.manual_seed(run.seed)
    model = from_pretrained(run.model, head="classifier", num_labels=2, random_weights=True)
    peft.attach(model, peft.method_of(run))
    model.train()
    optimizer = make_optimizer(model, run)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = random_batches(run, length, steps + 2, model.config.vocab_size)
    compute_loss = partial(fast_path.loss, model)
    meter = Meter(Metrics(), run, steps + 2, batches, Progress())

    def step(window: list) -> None:
        accumulate_gradients(compute_loss, window, run, scaler, meter, CPU)
        update(optimizer, scaler, run.learning_rate, run.max_grad_norm)

    *timed, counted = windows_of(batches.epoch(), 1)
    tokens, dim = run.batch_size * length, model.config.dim
    rates = [product_rate(tokens, dim, run.amp)]
    seconds = []
    for window in timed:
        started = time.perf_counter()
        step(window)
        seconds.append(time.perf_counter() - started)
    rates.append(product_rate(tokens, dim, run.amp))
    peak = peak_memory_bytes(CPU)
    with FlopCounterMode(display=False) as counter:
        step(counted)
    meter.bar.close()
    median, flops, rate = statistics.median(seconds[1:]), counter.get_total_flops(), max(rates)
    return {
        "seconds": median,
        "limit_seconds": flops / rate,
        "peak_bytes": peak,
        "tokens_per_second": tokens / median,
        "flops": flops,
        "rate": rate,
        "trainable_parameters": count_parameters(model)[0],
        "step_seconds": seconds,
    }


def main() -> None:
    """Measure one step and print it as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trainable_layers", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--amp", default="auto")
    args = parser.parse_args()
    said = {name: getattr(args, name) for name in ("model", "trainable_layers", "batch_size")}
    lora = {"lora_rank": 16, "lora_alpha": 16.0} if args.trainable_layers == "lora" else {}
    run = resolve(Run(**said, **lora, amp=pick_amp(args.amp, CPU)), RECIPE)
    limit = config_of(run.model).context_length
    assert args.length <= limit, f"--length {args.length} is above the model's context, {limit}"
    reset_peak_memory(CPU)
    print(json.dumps(measure(run, args.length, args.steps)))


if __name__ == "__main__":
    main()
