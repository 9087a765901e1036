"""The published size, from checkpoints as transformers writes them, on the real messages: python -m pytest -m slow"""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import experiments
from data.encode import make_batches
from pipeline import execute, job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["fp32", "fp16", "fp32 in shards", "fp16 in shards"])
def checkpoint(request, tmp_path_factory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    folder = tmp_path_factory.mktemp("gpt2-small")
    theirs = theirs.half() if "fp16" in request.param else theirs
    theirs.save_pretrained(folder, max_shard_size="100MB" if "shards" in request.param else "5GB")
    assert (folder / "model.safetensors.index.json").exists() == ("shards" in request.param)
    return folder


def test_first_loss_of_a_run_equals_the_references(checkpoint, shared, tmp_path, monkeypatch):
    """The command itself, for one step; texts are cut to 40 tokens so that its evaluations take seconds."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    flags = {"checkpoint": checkpoint, "data_dir": shared / "data", "dataset": "spam", "output_dir": out}
    flags |= {"max_steps": 1, "logging_steps": 1, "context_length": 40, "amp": "off", "device": "cpu"}
    argv = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert experiments.main(argv) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = next(record["loss"] for record in records if record["split"] == "train")

    prepared = job.prepare(experiments.parse(argv)[0])
    ours = execute.build_model(prepared.run, 2)
    inputs = prepared.inputs
    batch = next(make_batches(prepared.task, prepared.run, inputs.splits, inputs.tokenizer, ours.config)["train"].epoch(0))
    theirs = transformers.GPT2Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = theirs(batch.input_ids).last_hidden_state[:, -1]  # the last position, padding or not
        expected = F.cross_entropy(ours.head.classifier(hidden), batch.labels).item()
    assert found == pytest.approx(expected, rel=1e-5)
