"""Times transformers' greedy generation of a batch of prompts. Knows nothing of this project, so this runs with
python -P and outside of the checkout.

What was measured is printed as JSON, the last line.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def digest(ids: list[int]) -> str:
    """Return what tells the tokens of a text from others."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def peak_bytes() -> int | None:
    """Return the resident set's high-water mark, or None where the system isn't Linux."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON with input_ids and attention_mask [B, T]")
    parser.add_argument("--new_tokens", type=int, required=True)
    parser.add_argument("--precision", choices=DTYPES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args(argv)


def main() -> None:
    """Measure the generation and print it as a line of JSON."""
    args = parse()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=DTYPES[args.precision]).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # no text ends early
    prompts = {name: torch.tensor(rows) for name, rows in json.loads(args.prompts.read_text()).items()}
    model.generate(**prompts, max_new_tokens=2, do_sample=False)  # libraries warm up
    start = time.perf_counter()
    found = model.generate(**prompts, max_new_tokens=args.new_tokens, do_sample=False)
    seconds = time.perf_counter() - start
    written = found[:, prompts["input_ids"].shape[1] :].tolist()  # [B, new tokens]
    measured = {
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "tokens_per_second": sum(map(len, written)) / seconds,
        "texts": [digest(ids) for ids in written],
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
