"""Training in several stages."""

import json
import signal

import pytest
import torch

from config import Run
from model import from_pretrained
from pipeline import execute, stages
from pipeline.stages import stages_of
from published.plans import PLANS
from tests.helpers.interrupt import interrupt_run
from tests.helpers.loop import assert_equal
from utils.errors import UserError

SETTINGS = {"max_steps": 3, "num_epochs": 1}


def test_a_plan_is_data():
    layers = stages_of(Run(stages="layer_by_layer", num_epochs=2, seed=5), 6)
    assert [(one.trainable_layers, one.layers, one.depth, one.train_head) for one in layers] == [
        ("freeze", "0", 1, "no"), ("freeze", "1", 2, "no"), ("freeze", "2", 3, "no"),
        ("freeze", "3", 4, "no"), ("freeze", "4", 5, "no"), ("freeze", "5", 6, "yes"),
    ]  # fmt: skip
    assert all((one.num_epochs, one.seed, one.stages) == (2, 5, None) for one in layers)
    rounds = stages_of(Run(stages="10_rounds", trainable_layers="lora", lora_rank=4, num_epochs=7), 6)
    assert len(rounds) == 10 and {(one.trainable_layers, one.lora_rank, one.num_epochs) for one in rounds} == {
        ("lora", 4, 1)
    }
    both = stages_of(Run(stages="layer_by_layer_then_lora", lora_rank=4), 6)
    assert both[:6] == stages_of(Run(stages="layer_by_layer", lora_rank=4), 6) and len(both) == 12
    assert stages_of(Run(), 6) == [Run()]
    with pytest.raises(UserError, match="unknown --stages 'some': choose layer_by_layer, "):
        stages_of(Run(stages="some"), 6)
    assert all(PLANS.values())


def test_layer_by_layer_trains_one_block_after_the_other(experiment, small_checkpoint):
    """Stage 1 must be a run of one block alone, and stage 2 one that starts from what stage 1 left."""
    found = experiment("--stages", "layer_by_layer", **SETTINGS)
    stages = found.result["stages"]
    assert [stage["steps"] for stage in stages] == [3, 3] and found.result["steps"] == 6
    assert [record["stage"] for record in found.metrics if record["split"] == "train"] == [1, 1, 1, 2, 2, 2]
    assert stages[1]["trainable_parameters"] - stages[0]["trainable_parameters"] == 32 * 2 + 2  # the head
    names = {name.rsplit(".", 1)[0].split(".attn")[0].split(".mlp")[0] for name in found.tensors}
    assert names == {"blocks.0", "blocks.1", "head.classifier"}

    first = experiment("--trainable_layers", "freeze", "--layers", 0, "--depth", 1, "--train_head", "no", **SETTINGS)
    assert found.logged("loss")[:3] == first.logged("loss")
    assert_equal(first.tensors, {name: found.tensors[name] for name in first.tensors})
    start = dict(from_pretrained(small_checkpoint, "classifier").named_parameters())
    moved = [name for name, tensor in found.tensors.items() if not torch.equal(tensor, start[name])]
    assert set(moved) == set(found.tensors)


def test_rounds_go_on_with_the_same_adapter_and_start_the_schedule_anew(experiment):
    flags = ["--trainable_layers", "lora", "--lr_scheduler_type", "linear", "--lora_target", "attn.q"]
    found = experiment("--stages", "6_rounds", *flags, **SETTINGS)
    assert found.logged("learning_rate") == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3] * 6)
    one = experiment(*flags, **SETTINGS)
    assert found.tensors.keys() == one.tensors.keys() and found.logged("loss")[:3] == one.logged("loss")


def test_what_a_stage_added_is_folded_in_before_the_next(experiment, monkeypatch):
    plan = [Run(trainable_layers="lora", lora_target="0.attn.q"), Run(trainable_layers="freeze", layers="1")]
    monkeypatch.setitem(PLANS, "both", lambda n_blocks: plan)
    found = experiment("--stages", "both", **SETTINGS)
    assert "blocks.0.attn.q.weight" in found.tensors and not any("lora" in name for name in found.tensors)
    # The evaluation at the end is that of a plain model with these tensors.
    assert found.logged("loss", "final test")


@pytest.mark.parametrize("forward", [2, 6, 10])  # in the first stage, in the second, in the third
@pytest.mark.parametrize("plan", ["layer_by_layer_then_lora", "mixed"])
def test_interrupted_in_any_stage_it_goes_on_bit_for_bit(plan, forward, experiment, alone, monkeypatch):
    lora, adapter = Run(trainable_layers="lora", lora_target="attn.q"), Run(trainable_layers="adapter", reduction_factor=4)
    monkeypatch.setitem(PLANS, "mixed", lambda n_blocks: [lora, adapter, lora])
    flags = ["--stages", plan, "--dropout", 0.1]
    whole = experiment(*flags, **SETTINGS)
    interrupt_run(monkeypatch, forward)
    half = experiment(*flags, **SETTINGS, output_dir=alone / "other")
    assert half.code == 130 and len(half.result["stages"]) == 1 + forward // 4
    resumed = experiment(*flags, "--resume", **SETTINGS, output_dir=alone / "other")
    assert resumed.code == 0
    assert_equal(resumed.tensors, whole.tensors)
    assert resumed.result["test_accuracy"] == whole.result["test_accuracy"]
    assert [stage["steps"] for stage in resumed.result["stages"]] == [stage["steps"] for stage in whole.result["stages"]]
    assert json.loads((alone / "other" / "result.json").read_text())["interrupted"] is False


PREFIX = ("--trainable_layers", "prefix", "--prefix_projection")
LAYER_BY_LAYER, MIXED = ("--stages", "layer_by_layer"), ("--stages", "mixed")
LAYERS_THEN_ROUNDS = ("--stages", "layer_by_layer_then_lora")


@pytest.mark.parametrize(
    "flags, stages_done",  # None: all of them, and it is stopped in the evaluation
    [
        (MIXED, 1),
        (MIXED, 2),
        (LAYER_BY_LAYER, 1),
        (MIXED, None),
        (LAYER_BY_LAYER, None),
        (PREFIX, None),
        (LAYERS_THEN_ROUNDS, 4),
        ((*PREFIX, "--stages", "6_rounds"), 2),  # the next stage goes on with the same method
    ],
)
def test_stopped_dead_between_stages_or_in_the_evaluation_it_goes_on(flags, stages_done, experiment, alone, monkeypatch):
    lora, adapter = Run(trainable_layers="lora", lora_target="attn.q"), Run(trainable_layers="adapter", reduction_factor=4)
    monkeypatch.setitem(PLANS, "mixed", lambda n_blocks: [lora, adapter, lora])
    flags, settings = [*flags, "--dropout", 0.1], SETTINGS | {"output_dir": alone / "other"}
    whole = experiment(*flags, **SETTINGS)
    with monkeypatch.context() as patch:
        if stages_done is None:
            patch.setattr(execute, "evaluate", lambda *args: signal.default_int_handler(signal.SIGINT, None))
        else:
            fit, calls = stages.fit, []

            def dies(*args):
                calls.append(0)
                return fit(*args) if len(calls) <= stages_done else signal.default_int_handler(signal.SIGINT, None)

            patch.setattr(stages, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            experiment(*flags, **settings)
    left = json.loads((alone / "other" / "result.json").read_text())
    assert left["interrupted"] and len(left["stages"]) == (stages_done or len(whole.result["stages"]))
    resumed = experiment(*flags, "--resume", **settings)
    assert resumed.code == 0 and not resumed.result["interrupted"]
    assert_equal(resumed.tensors, whole.tensors)
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy", "steps"):
        assert resumed.result[name] == whole.result[name]
    assert resumed.logged("loss", "final test") == whole.logged("loss", "final test")


def test_a_depth_beyond_the_model(experiment):
    with pytest.raises(UserError, match="--depth is 3; the model has 2 blocks"):
        experiment("--depth", 3)
