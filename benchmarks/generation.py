"""Compares greedy generation in batches with transformers', and chat with its cache kept with chat computed anew.

Both sides read the same weights and prompts, and compute in the same precision with the same number of threads.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.encoders import PACKAGES as LIBRARIES
from benchmarks.inputs import SEED, write_drawn
from benchmarks.measure import ROOT, Comparison, Side, last_line, precision_of
from model import config_of
from model.generation import left_padded
from model.gpt2 import GPT2_SIZES, GPT2Config
from utils.errors import UserError

TITLE = "Generation"
PACKAGES = {"transformers": LIBRARIES["transformers"]}
REPEATS = 3
USELESS = ("fraction", "data_dir")  # flags
COMPARED = "texts"  # what both sides have to have in common


@dataclass(frozen=True)
class Row:
    """A batch of prompts of the model in --checkpoint or of a drawn GPT-2 small; batch_size 0: a dialogue."""

    model: str  # "checkpoint" or "gpt2-small"
    batch_size: int


@dataclass(frozen=True)
class Size:
    """How large things are. Tests name small numbers."""

    prompt: int = 64  # tokens of the longest one; the others have three quarters of them at least
    new_tokens: int = 64
    gpt2: GPT2Config = GPT2_SIZES["gpt2-small"]


ROWS = {
    **{row: Row("checkpoint", batch_size) for row, batch_size in enumerate((1, 8, 32), start=1)},
    **{row: Row("gpt2-small", batch_size) for row, batch_size in enumerate((1, 8, 32), start=4)},
    7: Row("checkpoint", 0),
}


def comparisons(rows: list[int], args, folder: Path, size: Size | None = None) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py. Raises UserError where they need a checkpoint."""
    size = size or Size()
    needy = [row for row in rows if ROWS[row].model == "checkpoint"]
    if needy and not args.checkpoint:
        others = ", ".join(str(row) for row, one in ROWS.items() if one.model != "checkpoint")
        raise UserError(
            f"--rows {', '.join(map(str, needy))}: a language model is needed, such as SmolLM2-135M-Instruct's directory; "
            f"name it with --checkpoint, or choose --rows {others}"
        )
    for row in rows:
        one = ROWS[row]
        own = one.model == "checkpoint"
        checkpoint = Path(args.checkpoint).resolve() if own else write_drawn(folder / one.model, size.gpt2)
        name = checkpoint.name if own else one.model
        if one.batch_size:
            yield compare_batch(row, name, checkpoint, args, folder, size)
        else:
            yield compare_chat(row, name, checkpoint, size)


def compare_batch(row: int, name: str, checkpoint: Path, args, folder: Path, size: Size) -> Comparison:
    """Return the comparison of a batch with transformers'."""
    batch_size, precision = ROWS[row].batch_size, precision_of(args.amp)
    prompts = write_prompts(folder / f"{name}-prompts-{batch_size}.json", checkpoint, batch_size, size.prompt)
    words = ["--checkpoint", str(checkpoint), "--prompts", str(prompts), "--new_tokens", str(size.new_tokens)]
    words += ["--precision", precision, *threads()]
    theirs = [sys.executable, "-P", str(ROOT / "benchmarks/peers/hf_generate.py"), *words]
    return Comparison(
        row,
        f"{name}, {batch_size} x {size.prompt} tokens, {size.new_tokens} new ones",
        "transformers",
        f"{precision} / {precision}",
        Side([sys.executable, "-m", "benchmarks.generate", *words], ROOT, last_line),
        Side(theirs, folder, last_line),
    )


def compare_chat(row: int, name: str, checkpoint: Path, size: Size) -> Comparison:
    """Return the comparison of a dialogue whose turns keep the cache with one whose turns compute everything anew."""
    words = ["--checkpoint", str(checkpoint), "--new_tokens", str(size.new_tokens), *threads()]
    program = [sys.executable, "-m", "benchmarks.generate", *words, "--chat"]
    ours, theirs = (Side([*program, how], ROOT, last_line) for how in ("keep", "anew"))
    return Comparison(row, f"{name}, first tokens of 6 turns", "ours, computed anew", "fp32 / fp32", ours, theirs)


def threads() -> list[str]:
    """Return the flag for the number of threads, which both sides have."""
    return ["--threads", str(torch.get_num_threads())]


def write_prompts(path: Path, checkpoint: Path, batch_size: int, longest: int) -> Path:
    """Write drawn prompts [B, T], left-padded, of which the first is the longest. Return the file."""
    draw = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(longest * 3 // 4, longest + 1, (batch_size,), generator=draw).tolist()
    lengths[0] = longest
    tokens = config_of(str(checkpoint)).vocab_size
    usual = (tokens // 10, tokens - tokens // 10)  # tokens with a meaning of their own stand at the beginning or end
    ids, mask = left_padded([torch.randint(*usual, (n,), generator=draw).tolist() for n in lengths])
    path.write_text(json.dumps({"input_ids": ids.tolist(), "attention_mask": mask.tolist()}), encoding="utf-8")
    return path


def derived(records: list[dict]) -> list[dict]:
    """Return the records with what both sides have in common."""
    return [judged(one) for one in records if one.get("peer_texts")]


def judged(record: dict) -> dict:
    """Return a record with the number of texts that are equal on both sides. In fp32 they have to be."""
    ours, theirs = record["ours_texts"], record["peer_texts"]
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    found: dict = {"equal_texts": equal}
    if "bf16" not in record["precision"]:  # there rounding decides between tokens that are nearly as likely
        found["agree"] = equal == len(ours)
    if "ours_tokens_per_second" in record:
        rates = (record[f"{side}_all_seconds"] for side in ("ours", "peer"))
        n_tokens = record["ours_tokens_per_second"] * record["ours_all_seconds"][0]
        first = " against ".join(f"{n_tokens / sorted(seconds)[len(seconds) // 2]:.3g}" for seconds in rates) + " tokens/s"
    else:
        turns = (record[f"{side}_first_token_seconds"] for side in ("ours", "peer"))
        first = " against ".join(", ".join(f"{seconds:.2f}" for seconds in side) for side in turns) + " s"
    return record | found | {"note": f"{first}; {equal} of {len(ours)} texts equal"}
