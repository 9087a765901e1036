"""Makes `gpt2-pocket`: its byte-level BPE, then next-token prediction through the same `fit` as everything else.

    python pretrain.py --data_dir ../shared/data            (about an hour on 2 cores)

Writes config.json, model.safetensors (fp16), vocab.json, merges.txt and pretraining.json (tokens seen, held-out loss).
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from data import get_task
from data.batching import IGNORED, Batches, Example, seeded_order
from errors import run_program
from model.bpe import learn_merges, save_tokenizer
from model.gpt2 import GPT2, GPT2Config, init_gpt2
from model.heads import LanguageModelHead
from model.hub import POCKET_DIR
from model.tokenizer import GPT2Tokenizer
from model.weights import save_pretrained
from run import Run, resolve
from train import Metrics, evaluate, fit, pick_amp, pick_device

HELD_OUT_EVERY = 50  # each 50th document is held out


def read_documents(data_dir: Path) -> list[str]:
    """English texts as documents. Of labelled data sets only training splits, and only their texts."""
    documents: list[str] = []
    corpus = data_dir / "text_corpus"
    for path in sorted(corpus.glob("*.txt")):
        if not path.name.startswith("wikitext2"):  # tokenised, with <unk>
            documents += passages(path.read_text(encoding="utf-8"))
    lines = (corpus / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    documents += [json.loads(line)["text"] for line in lines]
    for name in ("alpaca_en_demo", "instruction-data"):
        for record in json.loads((data_dir / "chat_sft" / f"{name}.json").read_text(encoding="utf-8")):
            documents.append("\n".join(record[key] for key in ("instruction", "input", "output") if record[key]))
    with open(data_dir / "glue_rte" / "train.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            documents.append(row["sentence1"] + "\n" + row["sentence2"])
    restaurants = json.loads((data_dir / "restaurant_sup" / "train.json").read_text(encoding="utf-8"))
    documents += sorted({record["sentence"] for record in restaurants.values()})
    for name in ("spam", "spam-pocket"):
        documents += [example.text for example in get_task(name).read(data_dir)["train"]]
    return documents


def passages(text: str, least: int = 1500) -> Iterator[str]:
    """A long text cut at blank lines into pieces of at least `least` characters."""
    piece: list[str] = []
    for paragraph in text.split("\n\n"):
        piece.append(paragraph.strip())
        if sum(map(len, piece)) >= least:
            yield "\n\n".join(piece)
            piece = []
    if any(piece):
        yield "\n\n".join(piece)


def to_examples(documents: list[str], tokenizer: GPT2Tokenizer, length: int) -> list[Example]:
    """All documents in one stream, <|endoftext|> after each, cut into rows of `length` tokens with shifted targets."""
    stream = [tokenizer.end_of_text]
    for document in documents:
        stream += [*tokenizer.encode(document), tokenizer.end_of_text]
    rows = (stream[start : start + length + 1] for start in range(0, len(stream) - 1, length))
    return [Example(row[:-1], row[1:]) for row in rows]


def bits_per_byte(model: GPT2, held_out: Batches, n_bytes: int, amp: str) -> float:
    result = evaluate(model, held_out, amp, IGNORED)
    return result["loss"] * result["targets"] / math.log(2) / n_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=POCKET_DIR / "gpt2-pocket")
    parser.add_argument("--merges", type=int, default=2800)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--n_layers", type=int, default=4)
    parser.add_argument("--n_heads", type=int, default=3)
    parser.add_argument("--context_length", type=int, default=512, help="of the model, and tokens per training row")
    parser.add_argument("--num_epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--max_steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=123)
    args = parser.parse_args()

    started = time.perf_counter()
    documents = read_documents(args.data_dir)
    held_out = documents[::HELD_OUT_EVERY]
    training = [document for i, document in enumerate(documents) if i % HELD_OUT_EVERY]
    save_tokenizer(learn_merges(training, args.merges), args.output_dir)
    tokenizer = GPT2Tokenizer.from_directory(args.output_dir)
    config = GPT2Config(tokenizer.vocab_size, args.context_length, args.dim, args.n_heads, args.n_layers)
    examples = to_examples(training, tokenizer, args.context_length)
    order = seeded_order(len(examples), args.seed)
    train = Batches(examples, args.batch_size, tokenizer.end_of_text, args.context_length, order)
    check = Batches(to_examples(held_out, tokenizer, args.context_length), 16, tokenizer.end_of_text, args.context_length)
    n_bytes = sum(len(document.encode("utf-8")) for document in held_out)

    device = pick_device("auto")
    settings = {name: getattr(args, name) for name in ("num_epochs", "batch_size", "learning_rate", "max_steps", "seed")}
    recipe = {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_ratio": 0.02, "max_grad_norm": 1.0}
    run = resolve(Run(**settings, amp=pick_amp("auto", device), logging_steps=50), recipe)
    torch.manual_seed(args.seed)
    model = init_gpt2(GPT2(config)).to(device)
    model.head = LanguageModelHead(model.token_embedding)
    untrained = bits_per_byte(model, check, n_bytes, run.amp)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(examples):,} rows, untrained {untrained:.3f} bits per byte", flush=True)
    fitted = fit(model, train, run, Metrics(args.output_dir / "pretraining.jsonl"), check)
    report = {
        "parameters": parameters,
        "documents": len(training),
        "training_bytes": sum(len(document.encode("utf-8")) for document in training),
        "training_tokens": sum(len(example.ids) for example in examples),
        "tokens_seen": fitted.steps * args.batch_size * args.context_length,
        "held_out_documents": len(held_out),
        "held_out_bytes": n_bytes,
        "held_out_bits_per_byte": bits_per_byte(model, check, n_bytes, run.amp),
        "untrained_bits_per_byte": untrained,
        "steps": fitted.steps,
        "seconds": time.perf_counter() - started,
        "config": asdict(config),
        "settings": settings,
    }
    save_pretrained(model, args.output_dir, torch.float16)
    (args.output_dir / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    run_program(main)
