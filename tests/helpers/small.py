"""Make small data sets and small checkpoints with drawn weights."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.gpt2 import GPT2, GPT2Config
from model.heads import LanguageModelHead
from model.llama import Llama
from model.registry import ARCHITECTURES
from model.tokenizers.load import load_tokenizer
from model.weights import save_pretrained
from tests.helpers.architectures import small_config
from tests.helpers.decoder_tokenizers import MAKERS
from tools.learn_vocabulary import learn_merges, learn_vocabulary, save_tokenizer, save_vocabulary

HAM_WORDS = "home later see you tonight lunch ok sorry bus love mum work soon me"
SPAM_WORDS = "free win prize claim now text cash urgent offer call 0800 code txt you"


def write_messages(path: Path, n: int, seed: int = 0) -> Path:
    """Write n ham and n spam messages of 4 to 20 words, in the collection's format."""
    words = {"ham": HAM_WORDS.split(), "spam": SPAM_WORDS.split()}
    draw = random.Random(seed)
    lines = [f"{kind}\t{' '.join(draw.choices(words[kind], k=draw.randint(4, 20)))}" for kind in words for _ in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


SENTIMENTS = {"1": ("good", "fine", "lovely", "funny", "warm"), "0": ("bad", "dull", "poor", "cold", "sad")}
NEUTRAL = ("film", "the", "a", "story", "plot", "with", "actors", "and", "is", "it")


def write_sentences(folder: Path) -> Path:
    """Write small glue_sst2 and glue_rte: 60 texts or pairs to train, 20 to validate."""
    draw = random.Random(0)

    def sentence(label: str) -> str:
        words = [draw.choice(NEUTRAL) for _ in range(draw.randint(3, 12))] + [draw.choice(SENTIMENTS[label])]
        draw.shuffle(words)
        return " ".join(words)

    for name in ("glue_sst2", "glue_rte"):
        (folder / name).mkdir()
        for file, n in (("train.tsv", 60), ("dev.tsv", 20)):
            rows = []
            for i in range(n):
                one, two = draw.choice("01"), draw.choice("01")
                if name == "glue_sst2":
                    rows.append(f"{sentence(one)} \t{one}")
                else:
                    same = "entailment" if one == two else "not_entailment"
                    rows.append(f"{i}\t{sentence(one)}\t{sentence(two)}\t{same}")
            head = "sentence\tlabel" if name == "glue_sst2" else "index\tsentence1\tsentence2\tlabel"
            (folder / name / file).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder


def make_checkpoint(directory: Path, text: str, n_merges: int = 100, n_layers: int = 2) -> Path:
    """Save a random GPT-2 of width 32 and context 256, and its tokenizer, for --checkpoint."""
    merges = learn_merges([text], n_merges)
    save_tokenizer(merges, directory)
    torch.manual_seed(1)
    save_pretrained(GPT2(GPT2Config(256 + len(merges) + 1, 256, 32, 4, n_layers)), directory)
    return directory


TINY = GPT2Config(vocab_size=257, context_length=16, dim=32, n_heads=4, n_layers=2)


def make_encoder(directory: Path, kind: str, data: Path, **labels) -> Path:
    """Save a random encoder of that kind and of width 32, and its tokenizer, for --checkpoint."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(data.glob("*/train.tsv"))]
    if kind == "roberta":
        save_tokenizer(learn_merges(texts, 60), directory)
        vocab = json.loads((directory / "vocab.json").read_text())
        ids = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
        ids |= {token: i + 4 for token, i in vocab.items() if token != "<|endoftext|>"}
        ids["<mask>"] = len(ids)
        (directory / "vocab.json").write_text(json.dumps(ids))
        size, pad_id = len(ids), 1
    else:
        tokens = learn_vocabulary(texts, 120)
        save_vocabulary(tokens, directory)
        size, pad_id = len(tokens), 0
    architecture = ARCHITECTURES[kind]
    torch.manual_seed(1)
    config = architecture.config(size, 128, 32, 4, 3, 64, dropout=0.0, pad_id=pad_id)
    model = architecture.model(config)
    if labels:
        model.head = architecture.classifier_head(config, len(labels["labels"]), "first", False)
        model.head.labels = labels["labels"]
    save_pretrained(model, directory)
    return directory


def shard(directory: Path) -> list[str]:
    """Split the single file in two, as the hub lays out large models. Return the shards' names."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = sorted(tensors)
    parts = [names[::2], names[1::2]]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def write_dialogues(path: Path, n: int = 40, word: str = "prize") -> Path:
    """Write n dialogues of two turns. 80% are for training, a tenth each for validation and testing."""
    turns = [(f"see {i}", f"{word} {i % 7}") for i in range(n)]
    records = [{"instruction": q, "input": "home", "output": a, "history": [["ok", "later"]]} for q, a in turns]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def make_llama(directory: Path, kind: str = "llama", tokenizer: str = "smollm2", **settings) -> Path:
    """Save a random member of Llama's family, of width 32, and a small tokenizer of that kind, for --checkpoint."""
    MAKERS[tokenizer](directory)
    size = load_tokenizer(directory, "decoder").vocab_size
    sizes = {"vocab_size": size, "context_length": 256, "n_layers": 3, "start_id": 1, "end_ids": (2,), "pad_id": 2}
    torch.manual_seed(1)
    model = Llama(small_config(kind, **sizes | settings))
    for parameter in model.parameters():  # far from where models start: a part that is missing shows
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    model.head = LanguageModelHead(model.token_embedding, model.config.tied)
    save_pretrained(model, directory)
    return directory
