"""The loss of Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

A pair is a prompt with a chosen and a rejected answer. How much likelier the trained model finds an answer than a fixed
reference does, log p(answer) - log p_ref(answer), times beta, is the answer's reward. The loss is that of a classifier that
tells by the rewards which answer was chosen:

    loss = -log sigmoid(beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))))

The log-probability of an answer is the sum of those of its tokens; the prompt's tokens are none of it. Both texts of a pair
lie in one row of a batch, where neither sees the other, as with --packing.

Letters used for shapes: B pairs, N answer tokens of a batch, D width, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.quantized import half_as
from model.vocabulary_loss import SCORES_AT_ONCE


def preference_loss(
    log_probabilities: torch.Tensor, references: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed loss of pairs, and log p(chosen) - log p(rejected) of each: of the trained model [B], and of the
    reference [B].

    log_probabilities, references   [B, 2] of the chosen and of the rejected answer, to the trained model and the reference
    """
    gaps = log_probabilities[:, 0] - log_probabilities[:, 1]  # [B]
    reference_gaps = references[:, 0] - references[:, 1]  # [B]
    loss = -F.logsigmoid(beta * (gaps - reference_gaps)).sum()
    return loss, gaps.detach(), reference_gaps


def answer_log_probabilities(hidden: torch.Tensor, head: Any, labels: torch.Tensor, batch: Any) -> torch.Tensor:
    """Return the log-probability of each answer of a batch, [B, 2] in float32.

    hidden, labels   [N, D] and [N], what stands before each token in `batch.targets`, and that token
    """
    weight, at_once = half_as(hidden, head.weight), max(1, SCORES_AT_ONCE // len(head.weight))
    # The scores [N, V] are the largest tensor by far: there are few at a time, which the backward pass computes again.
    parts = [
        checkpoint(token_log_probabilities, some, weight, head.bias, targets, use_reentrant=False)
        for some, targets in zip(hidden.split(at_once), labels.split(at_once), strict=True)
    ]
    answers = (batch.documents.flatten()[batch.targets] - 1) + 2 * (batch.targets // batch.documents.shape[1])  # [N]
    sums = torch.zeros(2 * len(batch.documents), device=hidden.device)  # [2 B]: chosen, rejected, chosen, ...
    return sums.index_add(0, answers, torch.cat(parts)).unflatten(0, (-1, 2))


def token_log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each label [N] behind hidden states [N, D], in float32."""
    return -F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")


def pair_loss(
    hidden: torch.Tensor, head: Any, labels: torch.Tensor, batch: Any, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `preference_loss` of a batch. A row without targets, which only fills up a batch, is no pair."""
    known = (batch.labels != ignore_index).any(dim=1)
    log_probabilities = answer_log_probabilities(hidden, head, labels, batch)
    return preference_loss(log_probabilities[known], batch.references[known], batch.beta)
