"""Check the flags of the loop."""

import pytest
import torch

from tests.helpers.flags.register import check


@check("num_epochs", "max_steps", "batch_size", "accumulation_steps")
def how_many_steps(experiment, fixtures):
    # 84 examples: 11 batches of 8 (the last has 4), 6 windows of two.
    assert experiment(max_steps=0, num_epochs=1).result["steps"] == 11
    assert experiment(max_steps=0, num_epochs=2).result["steps"] == 22
    assert experiment(max_steps=13, num_epochs=2).result["steps"] == 13
    wider = experiment("--batch_size", 30, max_steps=0, num_epochs=1)
    assert wider.result["steps"] == 3 and wider.sizes(True) == [30, 30, 24]
    accumulated = experiment("--accumulation_steps", 2, max_steps=0, num_epochs=1)
    assert accumulated.result["steps"] == 6 and accumulated.sizes(True) == [8] * 10 + [4]


@check("eval_batch_size")
def eval_batch_size(experiment, fixtures):
    assert max(experiment().sizes(False)) == 64
    assert experiment("--eval_batch_size", 10).sizes(False)[-3:] == [10, 10, 4]  # the test set


@check("learning_rate")
def learning_rate(experiment, fixtures):
    assert experiment(learning_rate=2e-4).logged("learning_rate") == [2e-4, 2e-4]
    before, slow, fast = (experiment(learning_rate=rate).tensors["head.classifier.weight"] for rate in (0, 1e-4, 1e-2))
    assert (slow - before).abs().max() == pytest.approx(2e-4, rel=0.3)  # two steps of Adam, each about the rate long
    assert (fast - before).abs().max() == pytest.approx(2e-2, rel=0.3)


@check("weight_decay")
def weight_decay(experiment, fixtures):
    without, decayed = (experiment("--weight_decay", value, max_steps=1).tensors for value in (0, 100))
    start = experiment(max_steps=1, learning_rate=0).tensors
    for name in start:  # everything decays, norms and biases too: by rate x decay = 0.1 in a step
        torch.testing.assert_close(decayed[name], without[name] - 0.1 * start[name], rtol=0, atol=1e-6)


@check("decay_norms")
def decay_norms(experiment, fixtures):
    flags = ("--weight_decay", 100, "--decay_norms")
    all_decayed, decayed = (experiment(*flags, choice, max_steps=1).tensors for choice in ("yes", "no"))
    without = experiment("--weight_decay", 0, max_steps=1).tensors
    assert {tensor.ndim for tensor in without.values()} == {1, 2}
    for name, tensor in without.items():
        torch.testing.assert_close(decayed[name], (tensor if tensor.ndim == 1 else all_decayed[name]), rtol=0, atol=0)


@check("lr_scheduler_type", "warmup_ratio")
def schedule(experiment, fixtures):
    def rates(*flags):
        return experiment(*flags, max_steps=4, learning_rate=1).logged("learning_rate")

    assert rates("--lr_scheduler_type", "constant") == [1, 1, 1, 1]
    assert rates("--lr_scheduler_type", "linear") == [1, 0.75, 0.5, 0.25]
    assert rates("--lr_scheduler_type", "cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)
    assert rates("--warmup_ratio", 0.5) == [0, 0.5, 1, 1]


@check("max_grad_norm")
def max_grad_norm(experiment, fixtures):
    start = experiment(learning_rate=0).tensors["head.classifier.weight"]
    free, clipped = (
        experiment("--max_grad_norm", bound, "--weight_decay", 0).tensors["head.classifier.weight"] for bound in (0, 1e-10)
    )
    assert (clipped - start).abs().max() < 0.1 * (free - start).abs().max()  # far below Adam's epsilon of 1e-8


@check("seed")
def seed(experiment, fixtures):
    heads = [experiment("--seed", value, learning_rate=0).tensors["head.classifier.weight"] for value in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@check("data_order")
def data_order(experiment, fixtures):
    assert experiment("--data_order", "seeded", max_steps=0, num_epochs=1).sizes(True) == [8] * 10 + [4]
    assert experiment("--data_order", "published", max_steps=0, num_epochs=1).sizes(True) == [8] * 10  # drops the last


@check("stages")
def stages(experiment, fixtures):
    assert len(experiment("--stages", "layer_by_layer").result["stages"]) == 2
    assert len(experiment().result["stages"]) == 1


@check("eval_train")
def eval_train(experiment, fixtures):
    found = experiment("--eval_train", "no")
    assert found.result["train_accuracy"] is None and found.result["test_accuracy"] is not None
    assert "accuracy validation" in found.out and experiment().result["train_accuracy"] is not None


@check("gradient_checkpointing")
def gradient_checkpointing(experiment, fixtures):
    report = experiment("--memory_report", "--trainable_layers", "all").out
    less = experiment("--memory_report", "--trainable_layers", "all", "--gradient_checkpointing").out
    whole, less = (float(text.split("activations")[1].split()[0]) for text in (report, less))
    assert less < whole / 3  # and nothing else changes: test_savings.py


@check("reuse_frozen")
def reuse_frozen(experiment, fixtures):
    assert "frozen   1 of 2 blocks run once per text" in experiment().out
    assert "\nfrozen " not in experiment("--reuse_frozen", "no").out  # and nothing else changes: test_savings.py
