"""The model that a run trains, before any method is attached."""

from dataclasses import replace

import torch
from torch import nn

import peft
from config import Run
from model import NothingDrawn, config_of, from_pretrained
from pipeline.stored import number_of, stored_classifier
from training.device import return_freed_memory
from utils.errors import UserError


def build_model(run: Run, n_labels: int) -> nn.Module:
    """Return the run's model with a classifier for so many labels, or for none with its language-model head.

    What isn't in the checkpoint is drawn from the run's seed in the published script's order: the body, then the head, from
    a fresh generator; what a method adds is drawn next. Raises UserError.
    """
    trained = ()
    if run.base_precision != "fp32":  # memory is short
        return_freed_memory()
        trained = trained_names(run, n_labels)
    stored = stored_classifier(run, config_of(run.source)) if run.head_labels else None
    model = from_pretrained(
        run.source,
        head="classifier" if n_labels else "lm",
        num_labels=stored.n_labels if stored else n_labels or None,
        random_weights=run.weights == "random",
        position=run.trainable_token_pos,
        average=run.average_embeddings,
        seed=run.seed,
        dropout=run.dropout,
        base_precision=run.base_precision,
        trained=trained,
        **({"causal": False} if run.disable_causal_mask else {}),
    )
    if run.head_labels and stored:
        keep_labels(model.head, run.head_labels.split(","), n_labels, stored.names or ())
    if run.depth > len(model.blocks):
        raise UserError(f"--depth is {run.depth}; the model has {len(model.blocks)} blocks")
    model.blocks = model.blocks[: run.depth or None]
    return model


def trained_names(run: Run, n_labels: int) -> set[str]:
    """Return the names of the parameters that the run is going to train. Nothing is read and no memory taken.

    Raises UserError for what can't be done with a base in fewer bits.
    """
    if unfit := "--fsdp" if run.fsdp else "--stages" if run.stages else "":
        raise UserError(f"{unfit} needs whole weights; leave it out, or --base_precision {run.base_precision}")
    unread = replace(run, weights="random", base_precision="fp32", head_labels=None)
    with torch.device("meta"), NothingDrawn():
        model = peft.attach(build_model(unread, n_labels), peft.method_of(run))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def keep_labels(head: nn.Module, labels: list[str], n_labels: int, names: tuple[str, ...] = ()) -> None:
    """Cut a classifier down, in place, to some of its labels, given by their names or numbers, in this order.

    names    of the labels, as the checkpoint or the adapter that brings the classifier calls them

    Raises UserError unless they are `n_labels` different labels of the classifier.
    """
    n_own = head.classifier.out_features
    numbers = [number_of(label.strip(), names) for label in labels]
    different = len(set(numbers)) == len(numbers) == n_labels
    if not different or not all(0 <= number < n_own for number in numbers):
        raise UserError(
            f"--head_labels is {','.join(labels)!r}; name {n_labels} different ones of the checkpoint's labels: "
            f"{', '.join(names) or f'0 to {n_own - 1}'}"
        )
    head.classifier.weight = nn.Parameter(head.classifier.weight[numbers].clone())  # [C, D]
    if head.classifier.bias is not None:
        head.classifier.bias = nn.Parameter(head.classifier.bias[numbers].clone())  # [C]
    head.classifier.out_features, head.labels, head.order = n_labels, None, tuple(numbers)
