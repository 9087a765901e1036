"""The command line with encoders, from texts to result.json."""

import json

import pytest
import torch
from safetensors.torch import load_file

import experiments
from config import Run
from model import from_pretrained
from pipeline.execute import build_model
from pipeline.job import prepare
from tests.helpers.small import make_encoder
from utils.errors import UserError

METHODS = ["all", "last_block", "last_layer", "freeze", "bitfit", "adapter", "bypass", "lora", "lora+bypass"]


@pytest.fixture
def run(experiment, encoder, encoder_data):
    def run(*flags, **replaced):
        base = {"checkpoint": encoder, "data_dir": encoder_data, "dataset": "sst2", "dropout": 0}
        return experiment(*flags, **(base | replaced))

    return run


@pytest.mark.parametrize("dataset", ["sst2", "rte"])
def test_a_run_and_its_record(dataset, run):
    found = run("--dataset", dataset)
    assert found.code == 0 and found.result["test_accuracy"] is None and 0 <= found.result["validation_accuracy"] <= 1
    assert found.result["config"]["trainable_token_pos"] == "first"
    assert "60 / 20 texts to train / validate, no padding" in found.out
    assert (found.result["train_accuracy"] is None) == (dataset == "sst2")
    assert "accuracy validation" in found.out or "accuracy train" in found.out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_an_encoder(method, run):
    narrow = ("--reduction_factor", 4) if method == "adapter" else ()
    found = run("--trainable_layers", method, *narrow, max_steps=40, num_epochs=40, learning_rate=5e-3)
    losses = found.logged("loss")
    assert sum(losses[-5:]) < 0.99 * sum(losses[:5])


def test_batches_hold_texts_of_similar_length_and_padding_is_masked(run):
    found = run("--batch_size", 8, max_steps=None, num_epochs=1)
    assert len(set(found.widths(True))) > 3 and any(masked for _, _, masked in found.forwards)


def test_only_evaluating(run, encoder):
    """Zero epochs: what the checkpoint itself is worth."""
    found = run("--num_epochs", 0, "--trainable_layers", "last_layer")
    assert found.result["steps"] == 0 and found.logged("loss") == [] and found.result["validation_accuracy"] is not None


def test_labels_of_the_checkpoints_own_classifier(experiment, encoder_data, alone):
    labels = ("positive", "neutral", "negative")
    checkpoint = make_encoder(alone / "student", "distilbert", encoder_data, labels=labels)
    stored = load_file(checkpoint / "model.safetensors")["classifier.weight"]
    flags = {"checkpoint": checkpoint, "data_dir": encoder_data, "dataset": "sst2", "num_epochs": 0}
    for wanted in ("negative,positive", "2,0"):
        head = build_model(prepare(Run(**vars_of(flags), head_labels=wanted)).run, 2).head
        assert torch.equal(head.classifier.weight, stored[[2, 0]])
    for wanted, found in (("negative", "negative"), ("negative,good", "negative,good"), ("0,3", "0,3"), ("2,2", "2,2")):
        with pytest.raises(
            UserError, match=f"--head_labels is '{found}'; name 2 different ones of the checkpoint's labels: pos"
        ):
            experiment("--head_labels", wanted, **flags)
    head = build_model(prepare(Run(**vars_of(flags))).run, 2).head  # by their names
    assert torch.equal(head.classifier.weight, stored[[2, 0]])


def vars_of(flags: dict) -> dict:
    return {name: value if isinstance(value, int) else str(value) for name, value in flags.items()}


def test_the_default_data_of_an_encoder_is_sentiment(encoder, encoder_data, alone):
    assert prepare(Run(checkpoint=str(encoder), data_dir=str(encoder_data))).run.dataset == "sst2"
    found = prepare(Run(checkpoint=str(encoder)))
    assert found.run.dataset == "sentiment-pocket" and found.data_reason.startswith("shipped; ")


def test_a_saved_run_restores(run, encoder):
    found = run("--trainable_layers", "lora", "--lora_target", "q,v", max_steps=5)
    assert {name.rsplit(".", 1)[-1] for name in found.tensors if "blocks" in name} == {"lora_a", "lora_b"}
    assert from_pretrained(encoder, "classifier").config.n_layers == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora_target", "nothing", "--trainable_layers", "lora"], "the target 'nothing' matches no Linear layer"),
        (["--bypass_taps", "4", "--trainable_layers", "bypass"], "--bypass_taps is '4'; '4' isn't there"),
        (["--layers", "3", "--trainable_layers", "freeze"], "--layers '3': 3 isn't there; the model has blocks 0-2"),
        (["--disable_causal_mask"], "has no causal"),
        (["--context_length", "0"], "--context_length is '0'; choose longest_training_example"),
    ],
)
def test_bad_values(flags, said, run):
    with pytest.raises(UserError, match=None) as caught:
        run(*flags)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocabulary_that_is_larger_than_the_embedding(run, encoder, encoder_data, alone):
    other = make_encoder(alone / "other", "bert", encoder_data)
    with (other / "vocab.txt").open("a") as file:
        file.write("".join(f"word{i}\n" for i in range(900)))
    if "roberta" in str(encoder):
        pytest.skip("its vocabulary is of another kind")
    with pytest.raises(UserError, match=r"the tokenizer in .* has \d+ tokens, the model only \d+"):
        run("--tokenizer", other)


def test_a_table_of_encoders_fills_in(encoder, encoder_data, alone, monkeypatch):
    """Every row of the four tables, on one small model, for one step."""
    from published import TABLES

    base = ["--checkpoint", str(encoder), "--dataset", "sentiment-pocket", "--max_steps", "1", "--train_samples", "16"]
    base += ["--eval_steps", "0", "--amp", "off", "--device", "cpu", "--output_dir", str(alone / "tables")]
    for name in ("roberta-glue", "encoders-adapter"):
        assert experiments.main(["--table", name, *base]) == 0
        lines = json.loads((alone / "tables" / f"table-{name}.json").read_text())
        assert [line["row"] for line in lines] == [row.number for row in TABLES[name].rows]
        assert all(line["measured"] for line in lines)
