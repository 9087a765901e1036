"""Runs with --objective dpo: what they learn, what they refuse, and that they go on bit for bit."""

import json
import re

import pytest
import torch

import experiments
from config import Run
from data import preferences
from model import from_pretrained
from tests.helpers.architectures import small_config
from tests.helpers.interrupt import interrupt_run
from tests.helpers.loop import assert_equal
from tests.helpers.small import make_llama
from utils.errors import UserError

DPO = ("--objective", "dpo")
POCKET = {"checkpoint": None, "model": "gpt2-pocket", "data_dir": None, "max_steps": None}
SMALL = {"data_dir": None, "num_epochs": 2}


def test_the_shipped_model_learns_to_prefer_the_persona(experiment):
    found = experiment(*DPO, "--max_steps", 20, "--eval_steps", 10, **POCKET | {"max_steps": None})
    result = found.result
    assert result["test_margin"] > 0.3 and result["test_gap"] > result["test_gap_before"] + 3
    assert result["test_loss"] < 0.6 and result["test_accuracy"] >= 0.75
    assert "108 / 12 / 30 pairs" in found.out and re.search(r"\nmargin +train \d", found.out)
    assert found.logged("margin", "validation")[-1] > found.logged("margin", "validation")[0] > 0
    assert found.logged("loss")[0] == pytest.approx(0.6931, abs=1e-3)  # in the first step the model is its reference


METHODS = ["all", "last_block", "bitfit", "lora", "vera", "ia3", "adapter", "prefix", "prompt", "freeze"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_compared_with_the_model_as_it_was(method, experiment):
    before = experiment(*DPO, "--trainable_layers", method, "--num_epochs", 0, data_dir=None, max_steps=None).result
    after = experiment(*DPO, "--trainable_layers", method, **SMALL | {"max_steps": 8}).result
    reference = experiment(*DPO, "--num_epochs", 0, data_dir=None, max_steps=None).result["test_gap_before"]
    assert before["test_gap_before"] == after["test_gap_before"] == reference
    drawn = method in ("prefix", "prompt")  # which change the model from the start
    assert (abs(before["test_margin"]) > 1e-5) == drawn
    assert after["train_margin"] > before["train_margin"]


@pytest.mark.parametrize("method", ["lora", "all", "prefix"])
def test_a_resumed_run_equals_an_uninterrupted_one(method, experiment, alone, monkeypatch):
    flags = [*DPO, "--trainable_layers", method, "--accumulation_steps", 2, "--dropout", 0.1]
    whole = experiment(*flags, data_dir=None, max_steps=6)
    interrupt_run(monkeypatch, 6)  # in the third step
    half = experiment(*flags, data_dir=None, max_steps=6, output_dir=alone / "other")
    assert half.code == 130 and half.result["steps"] == 3
    resumed = experiment(*flags, "--resume", data_dir=None, max_steps=6, output_dir=alone / "other")
    assert resumed.code == 0 and resumed.result["steps"] == 6
    assert_equal(resumed.tensors, whole.tensors)
    names = [
        name for name in whole.result if re.match("(train|validation|test)_(loss|margin|gap|gap_before|accuracy)$", name)
    ]
    assert len(names) == 15 and all(resumed.result[name] == whole.result[name] for name in names)
    assert resumed.logged("loss") == whole.logged("loss")


@pytest.mark.parametrize("flags", [("--reuse_frozen", "no"), ("--gradient_checkpointing",), ("--data_order", "bucketed")])
def test_ways_to_save_work_change_nothing_that_counts(flags, experiment):
    plain = experiment(*DPO, "--trainable_layers", "last_block", **SMALL | {"max_steps": 6}).result
    other = experiment(*DPO, "--trainable_layers", "last_block", *flags, **SMALL | {"max_steps": 6}).result
    tolerance = 0.3 if "bucketed" in flags else 1e-4
    assert other["test_margin"] == pytest.approx(plain["test_margin"], rel=tolerance) and plain["test_margin"] > 0


def test_supervised_training_first(experiment, alone, capsys):
    """The model of a finished run is the reference of the next: as a checkpoint, or as an adapter of the library peft."""
    first = experiment("--dataset", "persona", "--num_epochs", 1, **SMALL | {"max_steps": 10}, output_dir=alone / "sft")
    assert experiments.main(["--export_model", "sft", "--run_dir", str(first.directory)]) == 0
    assert experiments.main(["--export_peft", "adapter", "--run_dir", str(first.directory)]) == 0
    whole = experiment(*DPO, **SMALL | {"checkpoint": "sft", "max_steps": 4}, output_dir=alone / "one").result
    adapted = experiment(*DPO, "--adapter", "adapter", **SMALL | {"max_steps": 4}, output_dir=alone / "two").result
    plain = experiment(*DPO, "--num_epochs", 0, data_dir=None, max_steps=None, output_dir=alone / "three").result
    assert whole["test_gap_before"] == pytest.approx(adapted["test_gap_before"], abs=1e-3)
    assert abs(whole["test_gap_before"] - plain["test_gap_before"]) > 0.05
    assert adapted["test_margin"] > 0 and whole["test_margin"] > 0


def test_what_was_trained_is_used_like_any_other(experiment, alone, capsys):
    found = experiment(*DPO, **SMALL | {"max_steps": 4})
    run = str(found.directory)
    assert experiments.main(["--generate", "Who are you?", "--run_dir", run, "--max_new_tokens", "5"]) == 0
    assert experiments.main(["--export_model", "whole", "--run_dir", run]) == 0
    assert experiments.main(["--export_peft", "adapter", "--run_dir", run]) == 0
    assert json.loads((alone / "here" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    ids = torch.tensor([[5, 6, 7]])
    model, base = (from_pretrained(one, head="lm").eval() for one in ("whole", found.result["config"]["checkpoint"]))
    assert not torch.allclose(model(ids), base(ids))


def test_a_llama_is_trained_on_a_users_own_file(experiment, alone):
    rows = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f"It is {2 * i}, sailor.", "rejected": f"{2 * i} exactly."}
        for i in range(20)
    ]
    (alone / "mine.json").write_text(json.dumps(rows))
    folder = make_llama(alone / "llama", "llama")
    found = experiment(*DPO, "--dataset", alone / "mine.json", **SMALL | {"checkpoint": folder, "max_steps": 8})
    assert "16 / 2 / 2 pairs" in found.out and "(named; pairs of answers)" in found.out
    assert found.result["train_gap"] > found.result["train_gap_before"]


REFUSED = {
    "encoder": (
        ["--model", "distilbert-pocket"],
        "--objective dpo trains models of the kinds GPT-2 and Llama, and",
    ),
    "dialogues": (
        ["--dataset", "persona"],
        "--objective dpo needs pairs of answers, and persona has none; choose",
    ),
    "texts": (["--dataset", "sentiment-pocket"], "--objective is about dialogues, and sentiment-pocket has none"),
    "beta 0": (["--dpo_beta", "0"], "--dpo_beta is 0; it must be above 0"),
    "packing": (["--packing"], "--packing doesn't go with --objective dpo; leave one of them out"),
    "general": (["--general_dataset", "general"], "--general_dataset doesn't go with --objective dpo"),
    "auxiliary": (["--auxiliary_dataset", "general"], "--auxiliary_dataset doesn't go with --objective dpo"),
    "fsdp": (["--fsdp"], "--fsdp doesn't go with --objective dpo"),
    "stages": (["--stages", "6_rounds"], "--stages doesn't go with --objective dpo"),
    "columns": (
        ["--dataset", "a.csv"],
        "a.csv, line 2: the column rejected is missing; a pair has prompt,",
    ),
    "objective": (["--objective", "ppo"], "--objective is 'ppo'; choose supervised, dpo"),
    "other objective": (
        ["--objective", "supervised", "--dataset", "preferences"],
        "--dataset preferences holds pairs of answers, for --objective dpo; say that too",
    ),
}


@pytest.mark.parametrize("flags, said", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(flags, said, experiment, alone):
    (alone / "here" / "a.csv").write_text("prompt,chosen\na,b\n")
    with pytest.raises(UserError, match=re.escape(said)) as found:
        experiment(*DPO, *flags, data_dir=None, checkpoint=None, **({} if "--model" in flags else {"model": "gpt2-pocket"}))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", ["chatglm", "roberta"])
def test_other_kinds_of_models_are_named(kind):
    (task,) = preferences.TASKS
    with pytest.raises(UserError, match=f"kinds GPT-2 and Llama, and some/model is a {kind}$") as found:
        task.make_batches(Run(model="some/model"), {}, None, small_config(kind))
    assert "\n" not in str(found.value)
