"""Measures of a classifier's predictions beside its accuracy."""

import torch


def macro_f1(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean over the classes of 2 TP / (2 TP + FP + FN), for classes [N] and [N].

    A class counts if it is anyone's label or anyone's prediction.
    """
    scores = []
    for one in torch.cat([predictions, labels]).unique():
        hits = ((predictions == one) & (labels == one)).sum().item()
        scores.append(2 * hits / ((predictions == one).sum().item() + (labels == one).sum().item()))
    return sum(scores) / len(scores)
