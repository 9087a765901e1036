"""What the model finds of each pair of answers before it is trained: the reference of model/preference_loss.py.

The reference never changes, so that its log-probabilities are computed once, before the first step, and no second model is
held or switched on and off. A run that is resumed begins with the same model, and computes the same numbers again.
"""

from dataclasses import replace

import torch

from data.batching import Batches
from model.fast_path import target_states
from model.preference_loss import answer_log_probabilities
from model.transformer import Transformer, evaluating
from training.device import autocast


def with_references(model: Transformer, batches: dict[str, Batches], amp: str, beta: float) -> dict[str, Batches]:
    """Return the batches, each pair with its log-probabilities under the model as it is now, and with the loss's beta.

    "train" has the same pairs as "train_in_order". Every process of several computes all of them.
    """
    pairs = {name: references(model, some, amp) for name, some in batches.items() if name != "train"}
    pairs["train"] = pairs["train_in_order"]
    return {
        name: Batches(
            [replace(one, references=pair, beta=beta) for one, pair in zip(some.examples, pairs[name], strict=True)],
            *(some.batch_size, some.pad_id, some.pad_to, some.order, some.class_weights),
        )
        for name, some in batches.items()
    }


@torch.no_grad()
def references(model: Transformer, batches: Batches, amp: str) -> list[tuple[float, float]]:
    """Return the log-probabilities of the chosen and the rejected answer of each pair, in the order of the examples.

    Pairs are computed in the batches of an evaluation, without dropout.
    """
    device, found = next(model.parameters()).device, []
    with evaluating(model):
        for batch in batches.epoch():
            batch = batch.to(device)
            with autocast(amp, device):
                hidden, labels = target_states(model, batch)
                found.append(answer_log_probabilities(hidden, model.head, labels, batch))
    by_place = dict(zip(batches.order(0), torch.cat(found).tolist(), strict=True))
    return [tuple(by_place[i]) for i in range(len(batches.examples))]
