"""Measures beside loss and accuracy: of a classifier's predictions, and of pairs of answers."""

import torch


def measures_of(predictions: torch.Tensor, labels: torch.Tensor, beta: float) -> dict:
    """Return macro_f1 and confusion of classes [N] and [N], or `pair_measures` of what is no whole number."""
    if predictions.is_floating_point():
        return pair_measures(predictions, labels, beta)
    return {"macro_f1": macro_f1(predictions, labels), "confusion": confusion_matrix(predictions, labels)}


def pair_measures(gaps: torch.Tensor, reference_gaps: torch.Tensor, beta: float) -> dict[str, float]:
    """Return the means over pairs of answers. Both arguments [N]: log p(chosen) - log p(rejected), in nats.

    gap, gap_before   of the trained model, and of the reference
    margin            of the rewards (model/preference_loss.py); 0 before training
    """
    gap, before = gaps.double().mean().item(), reference_gaps.double().mean().item()
    return {"gap": gap, "gap_before": before, "margin": beta * (gap - before)}


def macro_f1(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean over the classes of 2 TP / (2 TP + FP + FN), for classes [N] and [N].

    A class counts if it is anyone's label or anyone's prediction.
    """
    scores = []
    for one in torch.cat([predictions, labels]).unique():
        hits = ((predictions == one) & (labels == one)).sum().item()
        scores.append(2 * hits / ((predictions == one).sum().item() + (labels == one).sum().item()))
    return sum(scores) / len(scores)


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor) -> list[list[int]]:
    """Return how often each class (row) was taken for each (column), for classes [N] and [N], up to the last of them."""
    n = int(torch.cat([predictions, labels]).max()) + 1
    return torch.bincount(labels * n + predictions, minlength=n * n).view(n, n).tolist()


def by_class(confusion: list[list[int]], names: tuple[str, ...]) -> dict:
    """Return what `result.json` has of a confusion matrix: the matrix with a row and a column for each name, and for each
    name precision, recall, F1 and the number of texts. Precision of a class that is never predicted is 0."""
    matrix = torch.zeros(len(names), len(names), dtype=torch.long)
    matrix[: len(confusion), : len(confusion)] = torch.tensor(confusion)
    texts, guesses, hits = matrix.sum(dim=1).tolist(), matrix.sum(dim=0).tolist(), matrix.diagonal().tolist()
    per_class = {
        name: {
            "precision": hits[i] / max(guesses[i], 1),
            "recall": hits[i] / max(texts[i], 1),
            "f1": 2 * hits[i] / max(texts[i] + guesses[i], 1),
            "texts": texts[i],
        }
        for i, name in enumerate(names)
    }
    return {"per_class": per_class, "confusion": matrix.tolist()}
