"""The shipped model and the job that it is shipped for."""

import json
from pathlib import Path

import pytest
import torch

import experiments
import pretrain
from data.batching import IGNORED, Batches
from model import from_pretrained, hub
from model.tokenizer import GPT2Tokenizer

POCKET = hub.POCKET_DIR / "gpt2-pocket"
CARD = json.loads((POCKET / "pretraining.json").read_text())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub.why_no_hub.cache_clear()
    yield
    hub.why_no_hub.cache_clear()


def accuracy_of(*flags: str) -> dict:
    assert experiments.main([*flags, "--output_dir", "out"]) == 0
    return json.loads(Path("out/result.json").read_text())


def test_the_first_command_reaches_90_per_cent_and_random_weights_are_visibly_worse(offline):
    pretrained = accuracy_of()
    assert (pretrained["model"], pretrained["dataset"]) == ("gpt2-pocket", "spam-pocket")
    assert "HF_HUB_OFFLINE" in pretrained["model_reason"] and "HF_HUB_OFFLINE" in pretrained["data_reason"]
    assert pretrained["test_accuracy"] >= 0.90
    assert accuracy_of("--weights", "random")["test_accuracy"] < pretrained["test_accuracy"] - 0.02


def test_checkpoint_is_small_and_as_described():
    assert (POCKET / "model.safetensors").stat().st_size <= 6 * 10**6
    model = from_pretrained("gpt2-pocket")
    assert sum(p.numel() for p in model.parameters()) == CARD["parameters"]
    assert 10**6 <= CARD["parameters"] <= 3 * 10**6


def test_reference_library_reads_it_strictly_and_agrees():
    transformers = pytest.importorskip("transformers")
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(POCKET, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = GPT2Tokenizer.from_directory(POCKET)
    ids = torch.tensor([tokenizer.encode("The minister said the new road would open in spring.")])
    expected = theirs.float().eval()(ids).logits
    assert (from_pretrained("gpt2-pocket")(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_held_out_loss_is_that_of_the_card(shared):
    """Recomputed from the shipped fp16 weights, so the last digits may differ."""
    documents = pretrain.read_documents(shared / "data")
    held_out = documents[:: pretrain.HELD_OUT_EVERY][:40]
    n_bytes = sum(len(document.encode()) for document in held_out)
    tokenizer = GPT2Tokenizer.from_directory(POCKET)
    rows = pretrain.to_examples(held_out, tokenizer, 512)
    model = from_pretrained("gpt2-pocket")
    batches = Batches(rows, 8, tokenizer.end_of_text, 512)
    found = pretrain.measure(model, batches, n_bytes, "off")["bits_per_byte"]
    assert all(target != IGNORED for row in rows for target in row.label)
    assert found == pytest.approx(CARD["held_out_bits_per_byte"], rel=0.1)  # the first 40 documents of all
    assert found < 0.7 * CARD["untrained_bits_per_byte"]
