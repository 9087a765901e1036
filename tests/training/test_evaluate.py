"""Evaluation: it counts every example, leaves no trace, and measures as the reference library does."""

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.loop import WIDTH, assert_equal, make_batches, make_examples, make_model, weights
from train import evaluate
from training.scores import macro_f1


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_counts_everything_and_leaves_no_trace(training):
    model, examples = make_model(dropout=0.3).train(training), make_examples(10)
    before, state = weights(model), torch.get_rng_state()
    found = evaluate(model, make_batches(examples, 4))  # batches of 4, 4 and 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training is training for module in model.modules())
    assert_equal(weights(model), before)
    ids = torch.tensor([[*example.ids, *[39] * (WIDTH - len(example.ids))] for example in examples])
    labels = torch.tensor([example.label for example in examples])
    logits = model.eval()(ids)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    assert found["targets"] == 10


def test_macro_f1_is_the_reference_librarys():
    metrics = pytest.importorskip("sklearn.metrics")
    for n_classes, n in ((2, 30), (4, 50), (6, 9)):  # with 9 examples some of the 6 classes are no one's label or guess
        guesses, labels = torch.randint(n_classes, (2, n))
        expected = metrics.f1_score(labels, guesses, average="macro")
        assert macro_f1(guesses, labels) == pytest.approx(expected, abs=1e-12)
    assert macro_f1(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1])) == pytest.approx(3 / 7)  # (6/7 + 0) / 2


def test_macro_f1_of_an_evaluation_leaves_ignored_labels_out():
    examples = make_examples(12)
    model = make_model()
    found = evaluate(model, make_batches(examples, 5), ignore_index=1)
    kept = [example for example in examples if example.label != 1]
    assert found["macro_f1"] == pytest.approx(evaluate(model, make_batches(kept, 5))["macro_f1"])


def test_an_evaluation_that_fails_leaves_the_mode_as_it_was():
    model = make_model().train()

    def fails(batch, ignore_index):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        evaluate(model, make_batches(make_examples(4), 2), compute_loss=fails)
    assert model.training
