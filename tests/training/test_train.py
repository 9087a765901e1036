"""The loop: what a step's gradient is, what reaches the optimizer, and what leaves the training untouched."""

import math

import pytest
import torch
from torch.nn import functional as F

from data.batching import IGNORED, Example, seeded_order
from model import fast_path
from tests.helpers.loop import WIDTH, assert_equal, differ, make_batches, make_examples, make_model, settings, weights
from train import evaluate, fit, schedule
from training.metrics_log import Metrics
from utils.errors import UserError

# --- the gradient of a window


@pytest.mark.parametrize("labels", ["class", "token"])
def test_eight_times_one_equals_one_times_eight(labels, seen_by_optimizer):
    # 20 examples: windows of 8, 8 and a short one of 4. Per-token labels weigh by their number, which differs per text.
    examples = make_examples(20, labels)
    ends = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        model = make_model("lm" if labels == "token" else "classifier")
        run = settings(batch_size=batch_size, accumulation_steps=accumulation)
        pad_to = WIDTH if labels == "class" else None
        fit(model, make_batches(examples, batch_size, pad_to, seeded_order(20, 7)), run, Metrics())
        ends.append(weights(model))
    whole, pieces = seen_by_optimizer[:3], seen_by_optimizer[3:]
    assert len(pieces) == 3
    for one, other in zip(whole, pieces, strict=True):
        for left, right in zip(one["gradients"], other["gradients"], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-6)
    for name in ends[0]:
        if "attn.k.bias" not in name:  # softmax doesn't see it: its gradient is pure rounding, which Adam blows up
            torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("n", [8, 5])
def test_a_window_weighs_targets_not_batches(n, seen_by_optimizer):
    # The gradient is that of the mean over all targets; the mean of the batches' means would be another one.
    examples, model = make_examples(n, "token"), make_model("lm")
    reference = make_model("lm")
    losses = []
    for example in examples:
        logits = reference(torch.tensor([example.ids]))[0]
        losses.append(F.cross_entropy(logits, torch.tensor(example.label), reduction="none")[-count(example) :])
    gradients = torch.autograd.grad(torch.cat(losses).mean(), list(reference.parameters()), retain_graph=True)
    per_batch = torch.autograd.grad(torch.stack([loss.mean() for loss in losses]).mean(), list(reference.parameters()))
    fit(model, make_batches(examples, 1, None), settings(batch_size=1, accumulation_steps=8), Metrics())
    (step,) = seen_by_optimizer
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(step["gradients"], gradients, strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(per_batch, gradients, strict=True))


def count(example):
    return sum(label != IGNORED for label in example.label)


def test_an_ignored_class_is_as_if_its_examples_were_absent(seen_by_optimizer):
    examples = make_examples(8)
    fit(make_model(), make_batches(examples, 8), settings(batch_size=8, ignore_index=1), Metrics())
    zeros = [example for example in examples if example.label == 0]
    fit(make_model(), make_batches(zeros, 8), settings(batch_size=8), Metrics())
    fit(make_model(), make_batches(examples, 8), settings(batch_size=8), Metrics())
    ignoring, absent, present = (step["gradients"] for step in seen_by_optimizer)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ignoring, absent, strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(ignoring, present, strict=True))
    assert evaluate(make_model(), make_batches(examples, 3), ignore_index=1)["targets"] == len(zeros)


def test_a_window_with_nothing_but_ignored_labels_moves_nothing_but_by_decay():
    model = make_model()
    before = weights(model)
    only_zeros = [Example([1, 2, 3], 0)] * 4
    fit(model, make_batches(only_zeros, 4), settings(ignore_index=0, weight_decay=0.0), Metrics())
    assert_equal(weights(model), before)


def test_ignore_index_50256_changes_nothing():
    # Row 18: no label of this task is 50256.
    ends = []
    for ignore_index in (-100, 50256):
        model = make_model()
        fit(model, make_batches(make_examples(10), 4), settings(ignore_index=ignore_index), Metrics())
        ends.append(weights(model))
    assert_equal(*ends)


# --- the learning rate


@pytest.mark.parametrize(
    "kind, warmup, expected",
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("constant", 0.4, [0, 1 / 2, 1, 1, 1]),
        ("linear", 0.0, [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        ("linear", 0.4, [0, 1 / 2, 1, 2 / 3, 1 / 3]),
        ("cosine", 0.0, [(1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)]),
        ("cosine", 0.2, [0, 1, (2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4]),
        ("linear", 0.21, [0, 1 / 2, 1, 2 / 3, 1 / 3]),  # a part of a step of warmup is a step
    ],
)
def test_the_schedule_reaches_the_optimizer(kind, warmup, expected, seen_by_optimizer):
    factor = schedule(kind, warmup, 5)
    assert [factor(step) for step in range(5)] == pytest.approx(expected)
    metrics = Metrics()
    run = settings(lr_scheduler_type=kind, warmup_ratio=warmup, learning_rate=0.01)
    fit(make_model(), make_batches(make_examples(20), 4), run, metrics)
    assert [step["rate"] for step in seen_by_optimizer] == pytest.approx([0.01 * value for value in expected])
    assert [record["learning_rate"] for record in metrics.records] == [step["rate"] for step in seen_by_optimizer]


def test_max_steps_shortens_the_schedule_and_the_run(seen_by_optimizer):
    run = settings(max_steps=7, num_epochs=3, lr_scheduler_type="linear", learning_rate=0.07)
    fitted = fit(make_model(), make_batches(make_examples(20), 4), run, Metrics())
    assert (fitted.steps, fitted.interrupted) == (7, False)
    assert [step["rate"] for step in seen_by_optimizer] == pytest.approx([0.01 * k for k in (7, 6, 5, 4, 3, 2, 1)])


def test_clipping_bounds_the_gradient(seen_by_optimizer):
    for bound in (0.0, 0.05):
        fit(make_model(), make_batches(make_examples(8), 4), settings(max_grad_norm=bound), Metrics())
    norms = [torch.cat([g.flatten() for g in step["gradients"]]).norm().item() for step in seen_by_optimizer]
    assert min(norms[:2]) > 0.1
    assert norms[2:] == pytest.approx([0.05, 0.05], rel=1e-3)


# --- what may not change anything, and what must


def trained_with(order_seed=3, validation=None, **changes):
    model = make_model(dropout=0.2)
    fit(
        model,
        make_batches(make_examples(14), 4, order=seeded_order(14, order_seed)),
        settings(**changes),
        Metrics(),
        validation,
    )
    return weights(model)


def test_evaluation_between_the_steps_changes_nothing():
    validation = make_batches(make_examples(5), 2)
    often = trained_with(validation=validation, eval_steps=1, num_epochs=2)
    assert_equal(often, trained_with(validation=validation, eval_steps=0, num_epochs=2))
    assert_equal(often, trained_with(validation=None, num_epochs=2))


def test_the_seed_decides_everything():
    assert_equal(trained_with(seed=1), trained_with(seed=1))
    assert differ(trained_with(seed=1), trained_with(seed=2))  # by dropout
    assert differ(trained_with(order_seed=3), trained_with(order_seed=4))


def test_each_epoch_has_its_own_order():
    model, seen = make_model(), []
    model.token_embedding.register_forward_pre_hook(lambda module, args: seen.extend(map(tuple, args[0].tolist())))
    fit(model, make_batches(make_examples(14), 4, order=seeded_order(14, 3)), settings(num_epochs=3), Metrics())
    epochs = [seen[start : start + 14] for start in (0, 14, 28)]
    assert len(seen) == 42 and sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_loss_that_is_no_number_ends_the_run_with_advice():
    with pytest.raises(UserError, match=r"the loss is nan at step \d+; try a smaller --learning_rate"):
        fit(make_model(), make_batches(make_examples(20), 4), settings(learning_rate=1e30), Metrics())


# --- the whole loop against transformers and a hand-written one


def test_twenty_steps_equal_a_plain_loop_on_transformers():
    transformers = pytest.importorskip("transformers")
    from model.weights import to_hugging_face

    ours, examples = make_model(), make_examples(40)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=32, n_head=4, n_layer=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    theirs, head = transformers.GPT2Model(config), torch.nn.Linear(32, 2)
    tensors = to_hugging_face(ours)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("score.")}
    theirs.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    head.load_state_dict(ours.head.classifier.state_dict())
    optimizer = torch.optim.AdamW(
        [*theirs.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.1, fused=False, foreach=False
    )
    losses = []
    for epoch in range(2):
        for batch in make_batches(examples, 4, order=seeded_order(40, 9)).epoch(epoch):
            logits = head(theirs(batch.input_ids).last_hidden_state[:, -1])
            loss = F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    metrics = Metrics()
    fit(ours, make_batches(examples, 4, order=seeded_order(40, 9)), settings(num_epochs=2, weight_decay=0.1), metrics)
    found = [record["loss"] for record in metrics.records]
    assert len(found) == len(losses) == 20
    assert found == pytest.approx(losses, rel=0, abs=1e-4)
    assert abs(losses[-1] - losses[0]) > 0.01  # the steps did something


def test_logits_at_the_targets_alone_give_the_loss_and_gradients_of_all_positions():
    model, batch = make_model("lm"), next(make_batches(make_examples(6, "token"), 6).epoch()).to(torch.device("cpu"))
    loss, guesses, labels = fast_path.loss(model, batch, IGNORED)
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert len(labels) == int((batch.labels != IGNORED).sum()) < batch.labels.numel() and IGNORED not in labels
    logits = model(batch.input_ids, batch.attention_mask)  # [B, T, V]
    wanted = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.equal(guesses, logits.argmax(-1)[batch.labels != IGNORED])
    expected = torch.autograd.grad(wanted, [p for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
