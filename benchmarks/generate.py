"""Times our greedy generation of a batch of prompts, or a dialogue, in a process of its own.

generation.py runs it, from the checkout's root, as python -m benchmarks.generate. What was measured is printed as JSON, the
last line.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch

from config import Run
from model import from_pretrained
from model.generation import generate
from model.kv_cache import KVCache
from pipeline.chat import Speaker, make_speaker
from pipeline.result import peak_memory_bytes

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUESTIONS = (
    "Why is the sky blue? Explain it to a child.",
    "And why is it red in the evening?",
    "Does the same happen on the Moon?",
    "Name three planets whose sky has another colour.",
    "Which of them is nearest to the Sun, and how long is a year there?",
    "Sum up what we talked about in one sentence.",
)


def digest(content: object) -> str:
    """Return what tells the tokens of a text, or an answer, from others."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def measure_batch(checkpoint: str, prompts: Path, new_tokens: int, precision: str) -> dict:
    """Return what it takes to continue prompts [B, T] by so many tokens each; loading isn't timed."""
    model = from_pretrained(checkpoint, head="lm").to(DTYPES[precision]).eval()
    given = [torch.tensor(rows) for rows in json.loads(prompts.read_text(encoding="utf-8")).values()]
    generate(model, *given, max_new_tokens=2)  # libraries warm up
    start = time.perf_counter()
    written = generate(model, *given, max_new_tokens=new_tokens)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_bytes": peak_memory_bytes(CPU),
        "tokens_per_second": sum(map(len, written)) / seconds,
        "texts": [digest(ids) for ids in written],
    }


def measure_chat(checkpoint: str, new_tokens: int, keep: bool) -> dict:
    """Return the seconds to the first token of each turn of a dialogue; `keep` keeps the cache between turns."""
    speaker = make_speaker(Run(checkpoint=checkpoint, device="cpu"), None, {"max_new_tokens": new_tokens})
    ask(speaker, QUESTIONS[0])  # libraries warm up
    speaker.turns, speaker.cache = (), KVCache(speaker.model)
    firsts, answers = [], []
    for question in QUESTIONS:
        if not keep:
            speaker.cache = KVCache(speaker.model)
        seconds, answer = ask(speaker, question)
        firsts.append(seconds)
        answers.append(digest(answer))
    return {
        "seconds": sum(firsts),
        "peak_bytes": peak_memory_bytes(CPU),
        "first_token_seconds": firsts,
        "texts": answers,
    }


def ask(speaker: Speaker, question: str) -> tuple[float, str]:
    """Return the seconds until the first token of the answer was there, and the answer."""
    pieces = speaker.answer(question)
    start = time.perf_counter()
    first = next(pieces, "")
    return time.perf_counter() - start, first + "".join(pieces)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--prompts", type=Path, help="JSON with input_ids and attention_mask [B, T]")
    parser.add_argument("--chat", choices=("keep", "anew"), help="instead of prompts: whether turns keep the cache")
    parser.add_argument("--new_tokens", type=int, required=True)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and print it as a line of JSON."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.chat:
        measured = measure_chat(args.checkpoint, args.new_tokens, args.chat == "keep")
    else:
        measured = measure_batch(args.checkpoint, args.prompts, args.new_tokens, args.precision)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
