"""What the tests share: where the outside files are, and small models."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

import experiments
import train
from model import from_pretrained, hub
from model.gpt2 import GPT2, GPT2Config
from model.names import ARCHITECTURES
from model.weights import save_pretrained
from tools.learn_vocabulary import learn_merges, learn_vocabulary, save_tokenizer, save_vocabulary

ROOT = Path(__file__).parent.parent
SHARED = Path(
    os.environ.get("PEFT_SHARED", ROOT.parent / "shared")
)  # real data sets and vocabularies, not in the repository


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


HAM_WORDS = ("home", "later", "see", "you", "tonight", "lunch", "ok", "sorry", "bus", "love", "mum", "work", "soon", "me")
SPAM_WORDS = (
    "free",
    "win",
    "prize",
    "claim",
    "now",
    "text",
    "cash",
    "urgent",
    "offer",
    "call",
    "0800",
    "code",
    "txt",
    "you",
)


def write_messages(path: Path, n: int, seed: int = 0) -> Path:
    """n ham and n spam messages of 4 to 20 words, in the collection's format."""
    words = {"ham": HAM_WORDS, "spam": SPAM_WORDS}
    draw = random.Random(seed)
    lines = [f"{kind}\t{' '.join(draw.choices(words[kind], k=draw.randint(4, 20)))}" for kind in words for _ in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A --data_dir with 60 ham and 60 spam messages: 84 to train, 12 to validate, 24 to test."""
    folder = tmp_path_factory.mktemp("data")
    write_messages(folder / "sms_spam" / "SMSSpamCollection", 60)
    return folder


def make_checkpoint(directory: Path, text: str, n_merges: int = 100, n_layers: int = 2) -> Path:
    """A --checkpoint directory: a random GPT-2 32 wide with a context of 256 tokens, and its tokenizer."""
    merges = learn_merges([text], n_merges)
    save_tokenizer(merges, directory)
    torch.manual_seed(1)
    save_pretrained(GPT2(GPT2Config(256 + len(merges) + 1, 256, 32, 4, n_layers)), directory)
    return directory


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory, small_data) -> Path:
    text = (small_data / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8")
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", text)


TINY = GPT2Config(vocab_size=257, context_length=16, dim=32, n_heads=4, n_layers=2)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint that a test may change, with a vocabulary of single bytes."""
    directory = tmp_path / "checkpoint"
    save_pretrained(GPT2(TINY), directory)
    save_tokenizer([], directory)
    return directory


SENTIMENTS = {"1": ("good", "fine", "lovely", "funny", "warm"), "0": ("bad", "dull", "poor", "cold", "sad")}
NEUTRAL = ("film", "the", "a", "story", "plot", "with", "actors", "and", "is", "it")


@pytest.fixture(scope="session")
def encoder_data(tmp_path_factory) -> Path:
    """A --data_dir with small glue_sst2 and glue_rte: 60 texts or pairs to train, 20 to validate."""
    folder, draw = tmp_path_factory.mktemp("encoder_data"), random.Random(0)

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


def make_encoder(directory: Path, kind: str, data: Path, **labels) -> Path:
    """A --checkpoint directory: a random encoder of that kind, 32 wide, and its tokenizer."""
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


@pytest.fixture(scope="session", params=["distilbert", "bert", "roberta"])
def encoder(request, tmp_path_factory, encoder_data) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param, encoder_data)


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """Offline, with empty caches, in an empty directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))  # huggingface_hub read HF_HOME long ago
    hub.why_no_hub.cache_clear()
    yield tmp_path
    hub.why_no_hub.cache_clear()


@dataclass
class Outcome:
    """All that one run left behind."""

    code: int
    out: str
    directory: Path
    result: dict
    metrics: list[dict]
    tensors: dict[str, torch.Tensor]
    forwards: list[tuple[bool, torch.Size, bool]]  # (in training, shape of the batch, masked)

    def logged(self, key: str, split: str = "train") -> list[float]:
        return [record[key] for record in self.metrics if record["split"] == split]

    def widths(self, training: bool) -> list[int]:
        return [shape[1] for trains, shape, _ in self.forwards if trains is training]

    def sizes(self, training: bool) -> list[int]:
        return [shape[0] for trains, shape, _ in self.forwards if trains is training]


@pytest.fixture
def experiment(alone, small_checkpoint, small_data, monkeypatch, capsys):
    """experiment("--flag", value, ...): the command line in this process, on the small model and data, for two steps."""
    forwards, score = [], train.score

    def spy(model, batch, ignore_index):
        forwards.append((model.training, batch.input_ids.shape, batch.attention_mask is not None))
        return score(model, batch, ignore_index)

    monkeypatch.setattr(train, "score", spy)

    def run(*flags, **replaced) -> Outcome:
        base = {"checkpoint": small_checkpoint, "data_dir": small_data, "max_steps": 2, "logging_steps": 1}
        base |= {"learning_rate": 1e-3, "amp": "off", "device": "cpu", "output_dir": alone / "out"}
        argv = [
            str(word) for name, value in (base | replaced).items() if value is not None for word in (f"--{name}", value)
        ]
        forwards.clear()
        capsys.readouterr()
        code = experiments.main([*argv, *map(str, flags)])
        out = capsys.readouterr().out
        directory = Path(out.split("saved    ")[1].split("\n")[0])
        result = json.loads((directory / "result.json").read_text())
        metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return Outcome(code, out, directory, result, metrics, load_file(directory / "trained.safetensors"), [*forwards])

    return run


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A GPT-2 of the reference library, and ours with its weights. Tests that change one take a deep copy."""
    from test_gpt2_parity import reference

    torch.manual_seed(1)
    theirs = reference("GPT2LMHeadModel")
    directory = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return theirs, from_pretrained(directory, head="lm").eval()
