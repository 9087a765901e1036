"""Cross-entropy over a vocabulary, without holding the scores of all targets at once.

A vocabulary is wide: the scores of 2,000 targets over GPT-2's 50,257 tokens are 400 MB, their gradient as much again. Here
a few targets at a time go from hidden states to their part of the loss and, as nothing else depends on their scores,
straight on to their gradients.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from model.quantized import half_as

SCORES_AT_ONCE = 1 << 24  # 64 MB in float32


class VocabularyLoss(torch.autograd.Function):
    """The summed cross-entropy of F.linear(hidden, weight, bias) against labels, and the class that each row ranks first.

    hidden is [N, D], weight [V, D], bias [V] or None, labels [N]. Where an input requires a gradient, it is computed along
    with the loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        ignore_index: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[:3]
        weight = half_as(hidden, weight)
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradients = [
            torch.zeros_like(one) if yes and one is not None else None
            for one, yes in zip((hidden, weight, bias), wanted, strict=True)
        ]
        guesses = torch.empty_like(labels)
        at_once = max(1, SCORES_AT_ONCE // len(weight))
        for start in range(0, len(hidden), at_once):
            part = slice(start, start + at_once)
            scores = F.linear(hidden[part], weight, bias).float()  # [n, D] -> [n, V]
            guesses[part] = scores.argmax(dim=-1)
            loss += F.cross_entropy(scores, labels[part], ignore_index=ignore_index, reduction="sum")
            if any(wanted):
                add_gradients(gradients, scores, hidden[part], weight, labels[part], ignore_index, part)
        ctx.save_for_backward(*(one for one in gradients if one is not None))
        ctx.mark_non_differentiable(guesses)
        return loss, guesses

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return *(next(saved) * scale if yes else None for yes in ctx.needs_input_grad[:3]), None, None


def add_gradients(
    gradients: list[torch.Tensor | None],
    scores: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    part: slice,
) -> None:
    """Add the gradients of some rows: softmax minus one at the label, then as for any Linear layer. Overwrites the scores.

    gradients   of hidden [N, D], weight [V, D] and bias [V]; None where none is needed
    scores      [n, V], of the n rows that `part` selects
    """
    of_hidden, of_weight, of_bias = gradients
    known = labels != ignore_index
    torch.softmax(scores, dim=-1, out=scores)
    scores[torch.arange(len(labels), device=labels.device)[known], labels[known]] -= 1.0
    scores[~known] = 0.0
    if of_hidden is not None:
        of_hidden[part] = F.linear(scores, weight.T)  # [n, V] -> [n, D]
    if of_weight is not None:
        of_weight += F.linear(scores.T, hidden.T)  # [V, n] [n, D] -> [V, D]
    if of_bias is not None:
        of_bias += scores.sum(dim=0)


def vocabulary_loss(
    hidden: torch.Tensor, head: nn.Module, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of hidden states [N, D] under a language-model head, and the class [N] that each ranks first."""
    inputs = [hidden, head.weight, head.bias]
    if not torch.is_grad_enabled():  # a Function is told to compute gradients whenever an input requires them
        inputs = [None if one is None else one.detach() for one in inputs]
    return VocabularyLoss.apply(*inputs, labels, ignore_index)
