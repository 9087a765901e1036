"""Makes the shipped models: a vocabulary, then pretraining through the same `fit` as everything else.

    python -m tools.pretrain gpt2-pocket --data_dir ../shared/data         next-token prediction, about an hour on 2 cores
    python -m tools.pretrain distilbert-pocket --data_dir ../shared/data   masked tokens

Writes config.json, model.safetensors (fp16), the vocabulary and pretraining.json (tokens seen, held-out loss).
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

from config import Run, resolve
from data.batching import IGNORED, Batches, Example, bucketed_order, by_length, seeded_order
from data.masking import MaskedBatches
from data.registry import get_task
from model.distilbert import DistilBert, DistilBertConfig
from model.gpt2 import GPT2, GPT2Config, SelfAttention, init_gpt2
from model.heads import LanguageModelHead, MaskedLanguageModelHead
from model.hub import POCKET_DIR
from model.tokenizers.base import Tokenizer
from model.tokenizers.load import load_tokenizer
from model.transformer import Transformer
from model.weights import save_pretrained
from tools.learn_vocabulary import learn_merges, learn_vocabulary, save_tokenizer, save_vocabulary
from train import evaluate, fit
from training.device import pick_amp, pick_device
from training.metrics_log import Metrics
from utils.errors import run_program
from utils.files import user_path

HELD_OUT_EVERY = 50  # each 50th document is held out


def read_documents(data_dir: Path) -> list[str]:
    """Return English texts as documents. Of labelled data sets it takes only training splits, and only their texts."""
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


def film_sentences(data_dir: Path) -> list[str]:
    """Return the texts of SST-2's training split that are no part of another one: most are phrases of the others."""
    texts = {example.text.strip() for example in get_task("sst2").read(data_dir)["train"]}
    texts = sorted(texts, key=lambda text: (-len(text), text))  # equal lengths too: a set has no order of its own
    sentences, seen = [], set()
    for text in texts:
        words = text.split()
        if " ".join(words) in seen:
            continue
        sentences.append(text)
        seen.update(" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return sentences


def passages(text: str, least: int = 1500) -> Iterator[str]:
    """Yield pieces of at least `least` characters of a long text, which is cut at blank lines."""
    piece: list[str] = []
    for paragraph in text.split("\n\n"):
        piece.append(paragraph.strip())
        if sum(map(len, piece)) >= least:
            yield "\n\n".join(piece)
            piece = []
    if any(piece):
        yield "\n\n".join(piece)


def to_examples(documents: list[str], tokenizer: Tokenizer, length: int) -> list[Example]:
    """Return rows of `length` tokens, with shifted targets, of all documents in one stream, <|endoftext|> after each."""
    stream = [tokenizer.end_of_text]
    for document in documents:
        stream += [*tokenizer.encode(document), tokenizer.end_of_text]
    rows = (stream[start : start + length + 1] for start in range(0, len(stream) - 1, length))
    return [Example(row[:-1], row[1:]) for row in rows]


def to_windows(documents: list[str], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Return pieces of at most `length` tokens of each document, with the special tokens around each piece."""
    windows, room = [], length - len(tokenizer.build([])[0])
    for document in documents:
        ids = tokenizer.encode(document)
        windows += [tokenizer.build(ids[start : start + room])[0] for start in range(0, len(ids), room)]
    return windows


def make_gpt2(training: list[str], held_out: list[str], args) -> tuple[Transformer, Batches, Batches]:
    """Learn a vocabulary; return an untrained GPT-2, what it is trained on, and what it is measured on."""
    save_tokenizer(learn_merges(training, args.vocab_size - 257), args.output_dir)
    tokenizer = load_tokenizer(args.output_dir)
    ends = {"start_id": tokenizer.end_of_text, "end_ids": (tokenizer.end_of_text,)}
    sizes = (tokenizer.vocab_size, args.context_length, args.dim, args.n_heads, args.n_layers)
    model = init_gpt2(GPT2(GPT2Config(*sizes, **ends)))
    model.head = LanguageModelHead(model.token_embedding)
    length, pad_id = args.context_length, tokenizer.pad_id
    examples = to_examples(training, tokenizer, length)
    train = Batches(examples, args.batch_size, pad_id, length, seeded_order(len(examples), args.seed))
    return model, train, Batches(to_examples(held_out, tokenizer, length), 16, pad_id, length)


def make_distilbert(training: list[str], held_out: list[str], args) -> tuple[Transformer, Batches, Batches]:
    """Learn a vocabulary; return an untrained DistilBERT, what it is trained on, and what it is measured on."""
    save_vocabulary(learn_vocabulary(training, args.vocab_size), args.output_dir)
    tokenizer = load_tokenizer(args.output_dir, "wordpiece")
    sizes = {"dim": args.dim, "n_heads": args.n_heads, "n_layers": args.n_layers, "mlp_dim": 4 * args.dim}
    config = DistilBertConfig(tokenizer.vocab_size, args.context_length, **sizes, dropout=0.0, pad_id=tokenizer.pad_id)
    model = DistilBert(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=published_std(args.dim))
    model.position_embedding.weight.data = waves(args.context_length, args.dim)
    look_aside(model.blocks[0].attn, args.dim)
    model.head = MaskedLanguageModelHead(model.token_embedding, config.layer_norm_eps)
    windows = to_windows(training, tokenizer, args.window)
    order = bucketed_order([len(one) for one in windows], args.seed, args.batch_size)
    check = to_windows(held_out, tokenizer, args.window)
    return (
        model,
        MaskedBatches(windows, args.batch_size, tokenizer, args.seed, order, args.masked),
        MaskedBatches(check, 64, tokenizer, args.seed, by_length([len(one) for one in check])),
    )


# A masked language model first has to find out that it must look at neighbours, which takes longer than all of this
# training. So block 0 begins with that knowledge: the embeddings of positions are waves (Vaswani et al. 2017, section 3.5),
# and heads look one and two places aside (after Trockman & Kolter 2023, "Mimetic initialization of self-attention layers").
# Training may change all of it.


def published_std(dim: int) -> float:
    """Return the standard deviation with which BERT's weights were drawn, 0.02 at its width of 768, for another width."""
    return 0.02 * math.sqrt(768 / dim)


def wave_rates(dim: int) -> torch.Tensor:
    """Return the rates of the waves [dim / 2], in radians a position: half a turn at most."""
    return math.pi * 10_000 ** -(torch.arange(0, dim, 2) / dim)


def waves(length: int, dim: int) -> torch.Tensor:
    """Return embeddings of positions [length, dim]: sines, then cosines, as large as the other embeddings are drawn."""
    angles = torch.arange(length)[:, None] * wave_rates(dim)  # [length, dim / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=1) * published_std(dim) * math.sqrt(2)


@torch.no_grad()
def look_aside(attn: SelfAttention, dim: int, offsets: tuple[int, ...] = (-1, 1, -2, 2), gain: float = 1.3) -> None:
    """Let the heads of a layer look aside, in place.

    The keys of head h become the fastest waves of their position, its queries those of the position `offsets[h]` places on.
    """
    half = dim // attn.n_heads // 2  # waves that fit into a head
    for head, offset in enumerate(offsets[: attn.n_heads]):
        for wave, angle in enumerate((wave_rates(dim)[:half] * offset).tolist()):
            row, sine, cosine = 2 * (head * half + wave), wave, dim // 2 + wave  # of the weight; its columns
            for linear, turn in ((attn.k, 0.0), (attn.q, angle)):
                linear.weight[row : row + 2] = 0
                linear.weight[row, sine] = linear.weight[row + 1, cosine] = gain * math.cos(turn)
                linear.weight[row, cosine] = gain * math.sin(turn)  # sin(a + b) = sin a cos b + cos a sin b
                linear.weight[row + 1, sine] = -gain * math.sin(turn)  # cos(a + b) = cos a cos b - sin a sin b


def measure(model: Transformer, held_out: Batches, n_bytes: int, amp: str) -> dict[str, float]:
    """Return bits per byte of a causal model, or the loss and accuracy of a masked one, on the held-out documents."""
    result = evaluate(model, held_out, amp, IGNORED)
    if isinstance(held_out, MaskedBatches):
        return {"masked_token_loss": result["loss"], "masked_token_accuracy": result["accuracy"]}
    return {"bits_per_byte": result["loss"] * result["targets"] / math.log(2) / n_bytes}


# The function that makes each model, and the sizes of the shipped one.
SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "context_length", "num_epochs", "batch_size", "learning_rate")
MODELS = {
    "gpt2-pocket": (make_gpt2, (3057, 192, 4, 3, 512, 4, 8, 2e-3)),
    "distilbert-pocket": (make_distilbert, (4000, 128, 6, 4, 512, 4, 32, 1e-3)),
}


SETTINGS = ("num_epochs", "batch_size", "learning_rate", "warmup_ratio", "max_steps", "seed")  # of the training loop


def parse_args() -> argparse.Namespace:
    """Return the flags; what isn't given is that of the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--data_dir", type=user_path, required=True)
    parser.add_argument("--output_dir", type=user_path, help="default: where the shipped one lies")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=float if name == "learning_rate" else int)
    parser.add_argument("--window", type=int, default=128, help="of distilbert: tokens per training row")
    parser.add_argument("--masked", type=float, default=0.3, help="of distilbert: part of the tokens that is to be guessed")
    parser.add_argument("--warmup_ratio", type=float, default=0.02)
    parser.add_argument("--max_steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=123)
    args = parser.parse_args()
    for name, value in zip(SIZES, MODELS[args.name][1], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.output_dir = args.output_dir or POCKET_DIR / args.name
    return args


def main() -> int:
    """Make one of the shipped models and write its files. Return the exit status."""
    args, started = parse_args(), time.perf_counter()
    documents = read_documents(args.data_dir)
    if args.name == "distilbert-pocket":
        documents += film_sentences(args.data_dir)
    held_out = documents[::HELD_OUT_EVERY]
    training = [document for i, document in enumerate(documents) if i % HELD_OUT_EVERY]
    n_bytes = size_in_bytes(held_out)
    torch.manual_seed(args.seed)
    make, _ = MODELS[args.name]
    model, train, check = make(training, held_out, args)
    model.to(pick_device("auto"))
    run = run_of(args)
    before = measure(model, check, n_bytes, run.amp)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(train.examples):,} rows, untrained {before}", flush=True)
    steps = fit(model, train, run, Metrics(args.output_dir / "pretraining.jsonl"), check).steps
    tokens = sum(len(example.ids) for example in train.examples)
    after = measure(model, check, n_bytes, run.amp)
    report = {
        "parameters": parameters,
        "documents": len(training),
        "training_bytes": size_in_bytes(training),
        "training_tokens": tokens,
        "tokens_seen": round(tokens * steps / len(train)),
        "held_out_documents": len(held_out),
        "held_out_bytes": n_bytes,
        **{f"held_out_{name}": value for name, value in after.items()},
        **{f"untrained_{name}": value for name, value in before.items()},
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "config": asdict(model.config),
        "settings": {name: getattr(args, name) for name in SETTINGS},
    }
    save_pretrained(model, args.output_dir, torch.float16)
    (args.output_dir / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 0


def run_of(args: argparse.Namespace) -> Run:
    """Return the settings of the training loop."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    recipe = {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0}
    return resolve(Run(**settings, amp=pick_amp("auto", pick_device("auto")), logging_steps=50), recipe)


def size_in_bytes(documents: list[str]) -> int:
    """Return the size of all documents in UTF-8."""
    return sum(len(document.encode("utf-8")) for document in documents)


if __name__ == "__main__":
    run_program(main)
