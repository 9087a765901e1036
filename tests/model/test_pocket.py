"""The shipped models and the jobs that they are shipped for."""

import json
from pathlib import Path

import pytest
import torch

import experiments
from data.batching import IGNORED, Batches, by_length
from data.masking import MaskedBatches
from model import from_pretrained, hub
from model.tokenizers.load import load_tokenizer
from tools import pretrain

pytestmark = pytest.mark.not_quick  # trains on the shipped data


def card(name: str) -> dict:
    return json.loads((hub.POCKET_DIR / name / "pretraining.json").read_text())


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


def test_the_encoder_learns_sentences_that_counting_words_does_not_solve(offline):
    found = accuracy_of("--model", "distilbert-pocket", "--eval_train", "no")
    assert found["dataset"] == "sentiment-pocket" and "HF_HUB_OFFLINE" in found["data_reason"]
    assert found["test_accuracy"] >= 0.70


@pytest.mark.parametrize("name", hub.pocket_names())
def test_checkpoint_is_small_and_as_described(name):
    assert (hub.POCKET_DIR / name / "model.safetensors").stat().st_size <= 6 * 10**6
    model = from_pretrained(name)
    assert sum(p.numel() for p in model.parameters()) == card(name)["parameters"]
    assert 10**6 <= card(name)["parameters"] <= 3 * 10**6


@pytest.mark.parametrize(
    "name, kind", [("gpt2-pocket", "AutoModelForCausalLM"), ("distilbert-pocket", "AutoModelForMaskedLM")]
)
def test_reference_library_reads_it_strictly_and_agrees(name, kind):
    transformers = pytest.importorskip("transformers")
    folder = hub.POCKET_DIR / name
    theirs, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([load_tokenizer(folder).encode("The minister said the new road would open in spring.")])
    expected = theirs.float().eval()(ids).logits
    assert (from_pretrained(name).eval()(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_held_out_bits_are_those_of_the_card(shared):
    """Recomputed from the shipped fp16 weights, so the last digits may differ."""
    documents = pretrain.read_documents(shared / "data")
    held_out = documents[:: pretrain.HELD_OUT_EVERY][:40]
    n_bytes = sum(len(document.encode()) for document in held_out)
    tokenizer = load_tokenizer(hub.POCKET_DIR / "gpt2-pocket")
    rows = pretrain.to_examples(held_out, tokenizer, 512)
    batches = Batches(rows, 8, tokenizer.end_of_text, 512)
    found = pretrain.measure(from_pretrained("gpt2-pocket"), batches, n_bytes, "off")["bits_per_byte"]
    assert all(target != IGNORED for row in rows for target in row.label)
    assert found == pytest.approx(card("gpt2-pocket")["held_out_bits_per_byte"], rel=0.1)  # the first 40 documents of all
    assert found < 0.7 * card("gpt2-pocket")["untrained_bits_per_byte"]


def test_held_out_guesses_are_those_of_the_card(shared):
    """On the held-out documents but the film sentences, whose order was another when the model was made."""
    tokenizer = load_tokenizer(hub.POCKET_DIR / "distilbert-pocket")
    windows = pretrain.to_windows(pretrain.read_documents(shared / "data")[:: pretrain.HELD_OUT_EVERY], tokenizer, 128)
    batches = MaskedBatches(windows, 64, tokenizer, 123, by_length([len(one) for one in windows]))
    found = pretrain.measure(from_pretrained("distilbert-pocket"), batches, 0, "off")
    for name, value in found.items():
        assert value == pytest.approx(card("distilbert-pocket")[f"held_out_{name}"], rel=0.05)
    assert found["masked_token_loss"] < 0.6 * card("distilbert-pocket")["untrained_masked_token_loss"]
