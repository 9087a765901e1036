"""Share fixtures between all tests: data sets, small checkpoints, and a run of the command line."""

import json
import random
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.helpers")  # before they are imported, so that their asserts show values too

import torch
from huggingface_hub import constants
from safetensors.torch import load_file

import experiments
from model import fast_path, from_pretrained, hub
from model.gpt2 import GPT2
from model.weights import save_pretrained
from tests.helpers.outcome import Outcome
from tests.helpers.paths import SHARED
from tests.helpers.small import TINY, make_checkpoint, make_encoder, write_messages
from tools.learn_vocabulary import save_tokenizer

torch.set_num_threads(1)  # the models are small: a second thread costs more than it saves


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Return a --data_dir with 60 ham and 60 spam messages: 84 to train, 12 to validate, 24 to test."""
    folder = tmp_path_factory.mktemp("data")
    write_messages(folder / "sms_spam" / "SMSSpamCollection", 60)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory, small_data) -> Path:
    text = (small_data / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8")
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", text)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Return a checkpoint that a test may change, with a vocabulary of single bytes."""
    directory = tmp_path / "checkpoint"
    save_pretrained(GPT2(TINY), directory)
    save_tokenizer([], directory)
    return directory


SENTIMENTS = {"1": ("good", "fine", "lovely", "funny", "warm"), "0": ("bad", "dull", "poor", "cold", "sad")}
NEUTRAL = ("film", "the", "a", "story", "plot", "with", "actors", "and", "is", "it")


@pytest.fixture(scope="session")
def encoder_data(tmp_path_factory) -> Path:
    """Return a --data_dir with small glue_sst2 and glue_rte: 60 texts or pairs to train, 20 to validate."""
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


@pytest.fixture(scope="session", params=["distilbert", "bert", "roberta"])
def encoder(request, tmp_path_factory, encoder_data) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param, encoder_data)


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """Run a test offline, with empty caches, in an empty directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))  # huggingface_hub read HF_HOME long ago
    hub.why_no_hub.cache_clear()
    yield tmp_path
    hub.why_no_hub.cache_clear()


@pytest.fixture
def experiment(alone, small_checkpoint, small_data, monkeypatch, capsys):
    """Return a function that runs the command line in this process: small model and data, two steps, flags as given."""
    forwards, score = [], fast_path.loss

    def spy(model, batch, ignore_index):
        forwards.append((model.training, batch.input_ids.shape, batch.attention_mask is not None))
        return score(model, batch, ignore_index)

    monkeypatch.setattr(fast_path, "loss", spy)

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
    """Return a GPT-2 of the reference library, and ours with its weights. Tests that change one take a deep copy."""
    from tests.helpers.parity import reference

    torch.manual_seed(1)
    theirs = reference("GPT2LMHeadModel")
    directory = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return theirs, from_pretrained(directory, head="lm").eval()


QUICK = ("model", "peft", "training")  # folders


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what `-m quick` runs. Methods are tried on GPT-2 and BERT there, which stand for the other models."""
    for item in items:
        longer = any(item.get_closest_marker(name) for name in ("not_quick", "slow", "gpu"))
        architecture = item.callspec.params.get("architecture", "gpt2") if hasattr(item, "callspec") else "gpt2"
        if item.path.parent.name in QUICK and not longer and architecture in ("gpt2", "bert"):
            item.add_marker("quick")
