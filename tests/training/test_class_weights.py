"""Classes: with weights a step follows the weighted mean, however its window is cut. And what is measured of each class."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.encode import balanced_weights
from model import fast_path
from tests.helpers.loop import make_batches, make_examples, make_model, settings
from train import evaluate, fit, plain_loss
from training.activation_cache import cached
from training.metrics_log import Metrics
from training.scores import by_class, confusion_matrix

WEIGHTS = torch.tensor([0.4, 2.5])


def weighed(examples, batch_size, weights=WEIGHTS):
    batches = make_batches(examples, batch_size, None)
    batches.class_weights = weights
    return batches


def expected_gradients(examples):
    model, losses = make_model(), []
    logits = torch.cat([model(torch.tensor([one.ids])) for one in examples])
    losses = F.cross_entropy(logits, torch.tensor([one.label for one in examples]), WEIGHTS)  # torch's weighted mean
    losses.backward()
    return losses.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(5, 1), (2, 3), (1, 5)])
def test_a_step_follows_the_weighted_mean_however_it_is_cut(batch_size, accumulation, seen_by_optimizer):
    examples = make_examples(5)  # three texts of one class, two of the other
    run = settings(batch_size=batch_size, accumulation_steps=accumulation)
    fit(make_model(), weighed(examples, batch_size), run, Metrics())
    _, expected = expected_gradients(examples)
    (step,) = seen_by_optimizer
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(step["gradients"], expected, strict=True))


def test_the_fast_path_weighs_as_the_plain_loss_does():
    model, examples = make_model(), make_examples(6)
    (batch,) = weighed(examples, 6).epoch()
    plain, fast = plain_loss(model, batch, -100), fast_path.loss(model, batch, -100)
    assert plain[0].item() == pytest.approx(fast[0].item(), rel=1e-5)
    assert plain[0].item() / batch.weight(-100) == pytest.approx(expected_gradients(examples)[0], rel=1e-5)
    assert batch.weight(1) == pytest.approx(3 * 0.4)  # of three texts, as class 1 is left out


def test_kept_states_are_weighed_too():
    model, losses = make_model(layers="last_layer"), []
    batches = {"train": weighed(make_examples(6), 3), "train_in_order": make_batches(make_examples(6), 3, None)}
    for used in (batches, cached(model, batches, "off")[0]):
        for name in batches:
            losses.append([fast_path.loss(model, batch, -100)[0].item() for batch in used[name].epoch()])
    assert losses[0] == pytest.approx(losses[2], rel=1e-5) and losses[1] == pytest.approx(losses[3], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_balanced_weights():
    assert balanced_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
    assert balanced_weights([0, 2, 2], 4).tolist() == pytest.approx([1.5, 0, 0.75, 0])  # absent classes are none
    weights = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = torch.randint(5, (40,)).tolist()
    assert balanced_weights(labels, 5).tolist() == pytest.approx(
        weights("balanced", classes=np.arange(5), y=labels).tolist()
    )


def test_classes_are_measured_as_the_reference_library_does():
    metrics = pytest.importorskip("sklearn.metrics")
    for n_classes, n in ((2, 30), (6, 9)):  # with 9 texts some of the 6 classes are no one's label or guess
        guesses, labels = torch.randint(n_classes, (2, n))
        names = tuple(f"class {i}" for i in range(n_classes))
        found = by_class(confusion_matrix(guesses, labels), names)
        everything = {"labels": range(n_classes), "zero_division": 0}
        assert found["confusion"] == metrics.confusion_matrix(labels, guesses, labels=range(n_classes)).tolist()
        columns = metrics.precision_recall_fscore_support(labels, guesses, **everything)
        expected = zip(*(column.tolist() for column in columns), strict=True)
        for name, one in zip(names, expected, strict=True):
            assert [*found["per_class"][name].values()] == pytest.approx(one)


def test_an_evaluation_counts_every_known_label_once():
    found = evaluate(make_model(), make_batches(make_examples(11), 4))
    assert [sum(row) for row in found["confusion"]] == [6, 5]
    ignoring = evaluate(make_model(), make_batches(make_examples(11), 4), ignore_index=1)
    assert sum(map(sum, ignoring["confusion"])) == 6
