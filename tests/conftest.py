"""Share fixtures between all tests: data sets, small checkpoints, and a run of the command line."""

import json
import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.helpers")  # before they are imported, so that their asserts show values too
# Before torch is imported, and for the processes that tests start: a second thread costs small models more than it saves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from huggingface_hub import constants
from safetensors.torch import load_file

import experiments
from model import fast_path, from_pretrained, hub
from model.gpt2 import GPT2
from model.weights import save_pretrained
from tests.helpers.outcome import Outcome
from tests.helpers.paths import SHARED
from tests.helpers.real_weights import real_weights
from tests.helpers.small import TINY, make_checkpoint, make_encoder, write_messages, write_sentences
from tools.learn_vocabulary import save_tokenizer


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data sets, or skip the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the checkpoint of SmolLM2-135M-Instruct (a Llama), or skip. Tests only read it."""
    return real_weights("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the checkpoint of all-MiniLM-L6-v2 (a BERT of 6 layers), or skip. Tests only read it."""
    return real_weights("all-MiniLM-L6-v2")


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
    """Return a checkpoint of a small GPT-2, with a vocabulary learned from `small_data`. Tests only read it."""
    text = (small_data / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8")
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", text)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Return a checkpoint that a test may change, with a vocabulary of single bytes."""
    directory = tmp_path / "checkpoint"
    save_pretrained(GPT2(TINY), directory)
    save_tokenizer([], directory)
    return directory


@pytest.fixture(scope="session")
def encoder_data(tmp_path_factory) -> Path:
    """Return a --data_dir with small glue_sst2 and glue_rte: 60 texts or pairs to train, 20 to validate."""
    return write_sentences(tmp_path_factory.mktemp("encoder_data"))


@pytest.fixture(scope="session", params=["distilbert", "bert", "roberta"])
def encoder(request, tmp_path_factory, encoder_data) -> Path:
    """Return a checkpoint of each kind of encoder in turn."""
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
