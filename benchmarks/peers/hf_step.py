"""Times a training step of a classifier of transformers on one batch of drawn tokens, with the library peft where LoRA is
asked for, and frozen weights in NF4 of the library bitsandbytes where that is. Knows nothing of this project: `peft` is the
library here, so this runs with python -P and outside of the checkout.

What was measured is printed as JSON, the last line.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from peft import LoraConfig, get_peft_model

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_TIMED = 2  # steps, in which libraries and the device warm up


def make_model(args) -> torch.nn.Module:
    """Return the library's classifier from the checkpoint, with what the library of `--method` attaches to it."""
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": DTYPES[args.amp]}
    in_4_bit = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4), "device_map": {"": args.device}}
    model = AutoModelForSequenceClassification.from_pretrained(args.checkpoint, **(in_4_bit if args.nf4 else {}))
    model.config.pad_token_id = model.config.vocab_size - 1
    if args.method == "lora":
        lora = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "target_modules": "all-linear"}
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora))
    return model.to(args.device).train()


def make_batch(args, vocab_size: int) -> dict[str, torch.Tensor]:
    """Return drawn tokens [B, T], of which none is the last one, which pads, and the classes 0 and 1 in turns [B]."""
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(vocab_size - 1, (args.batch_size, args.length), generator=generator)
    return {"input_ids": ids.to(args.device), "labels": (torch.arange(args.batch_size) % 2).to(args.device)}


def timed(work, times: int, device: str) -> list[float]:
    """Return the seconds that each of so many calls of `work` took. None of them waits for a GPU to be done."""
    if device != "cuda":
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
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]  # of milliseconds


def peak_bytes(device: str) -> int | None:
    """Return the GPU's peak; on the CPU the resident set's high-water mark, or None where the system isn't Linux."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--method", choices=("all", "lora"), required=True)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--lora_alpha", type=float, default=16.0)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--weight_decay", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--amp", choices=DTYPES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--nf4", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    """Measure the step and print it as a line of JSON."""
    args = parse()
    torch.manual_seed(args.seed)
    model = make_model(args)
    batch = make_batch(args, model.config.vocab_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.learning_rate, weight_decay=args.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
    losses = []

    def step() -> None:
        scale = scaler.get_scale()  # 1 without fp16
        with torch.autocast(args.device, dtype=DTYPES[args.amp], enabled=args.amp != "off"):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        losses.append(loss.detach())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() < scale:  # a gradient was too large for it, so nothing was changed
            losses.pop()

    seconds = timed(step, NOT_TIMED + args.steps, args.device)
    measured = {
        "seconds": statistics.median(seconds[NOT_TIMED:]),
        "peak_bytes": peak_bytes(args.device),
        "trainable_parameters": sum(parameter.numel() for parameter in trained),
        "losses": [loss.item() for loss in losses],
        "step_seconds": seconds[1:],  # the first of which isn't counted, as in ours
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
