"""The loss over a vocabulary, a few targets at a time, against PyTorch's over all of them at once."""

import pytest
import torch
from torch.nn import functional as F

from model import vocabulary_loss
from model.vocabulary_loss import VocabularyLoss

IGNORED = -100


def data(n: int = 23, dim: int = 8, vocabulary: int = 40) -> tuple:
    torch.manual_seed(3)
    hidden, weight, bias = torch.randn(n, dim), torch.randn(vocabulary, dim), torch.randn(vocabulary)
    labels = torch.randint(vocabulary, (n,))
    labels[::5] = IGNORED
    return hidden, weight, bias, labels


def plain(hidden, weight, bias, labels):
    scores = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum"), scores.argmax(dim=-1)


def gradients(compute, tensors: tuple, labels: torch.Tensor, trained: tuple[bool, ...]) -> tuple:
    tensors = [None if one is None else one.clone().requires_grad_(yes) for one, yes in zip(tensors, trained, strict=True)]
    found, guesses = compute(*tensors, labels)
    (found / 7).backward()
    return found.detach(), guesses, [one.grad for one in tensors if one is not None]


@pytest.mark.parametrize("at_once", [1, 160, 200, 10**9], ids=lambda n: f"{n} scores at once")
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients(at_once, trained, with_bias, monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "SCORES_AT_ONCE", at_once)
    hidden, weight, bias, labels = data()
    tensors = (hidden, weight, bias if with_bias else None)
    expected = gradients(plain, tensors, labels, trained)
    found = gradients(lambda *inputs: VocabularyLoss.apply(*inputs, IGNORED), tensors, labels, trained)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    assert torch.equal(found[1], expected[1])
    for ours, theirs in zip(found[2], expected[2], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mixed_precision():
    *tensors, labels = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(plain, tensors, labels, (True, True, True))
        found = gradients(lambda *inputs: VocabularyLoss.apply(*inputs, IGNORED), tensors, labels, (True, True, True))
    torch.testing.assert_close(found[0], expected[0], rtol=2e-2, atol=0)
    for ours, theirs in zip(found[2], expected[2], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=2e-2)


def test_no_targets_at_all():
    hidden, weight, _, labels = data()
    found, guesses = VocabularyLoss.apply(hidden.requires_grad_(), weight, None, torch.full_like(labels, IGNORED), IGNORED)
    found.backward()
    assert found.item() == 0 and not hidden.grad.any()
    found, guesses = VocabularyLoss.apply(hidden[:0], weight, None, labels[:0], IGNORED)
    assert found.item() == 0 and len(guesses) == 0


def test_the_scores_of_all_targets_are_never_there_at_once(monkeypatch):
    sizes = []
    linear = F.linear

    def spy(*inputs):
        sizes.append(linear(*inputs).numel())
        return linear(*inputs)

    hidden, weight, bias, labels = data(n=100)
    monkeypatch.setattr(vocabulary_loss, "SCORES_AT_ONCE", 10 * len(weight))
    monkeypatch.setattr(F, "linear", spy)
    VocabularyLoss.apply(hidden, weight, bias, labels, IGNORED)
    assert sizes == [10 * len(weight)] * 10
