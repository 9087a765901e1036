"""The classifier that an adapter of the library `peft` brings: how many classes it has, and how they are put in order."""

from collections.abc import Sequence

import torch

from model.architecture import Architecture
from model.weights import name_of

# Tensors of the layer that scores the classes, whole or added, with a row per class.
WITH_ROWS = (
    "weight",
    "bias",
    "lora_B.weight",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "ia3_l",
    "vera_lambda_b",
    "hira_B",
)


def classifier_path(architecture: Architecture) -> str:
    """Return the published path of the layer that scores the classes: score, classifier, classifier.out_proj."""
    return name_of("head.classifier.weight", architecture.names).removesuffix(".weight")


def number_of_classes(tensors: dict[str, torch.Tensor], architecture: Architecture) -> int | None:
    """Return how many classes the classifier of an adapter has, or None where it brings none."""
    weight = tensors.get(f"{classifier_path(architecture)}.weight")
    return None if weight is None or not weight.ndim else len(weight)


def in_order(tensors: dict[str, torch.Tensor], order: Sequence[int], architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter with these classes of its classifier, in this order."""
    names = {f"{classifier_path(architecture)}.{part}" for part in WITH_ROWS}
    return {
        name: tensor[list(order)] if name in names and tensor.ndim and len(tensor) > max(order) else tensor
        for name, tensor in tensors.items()
    }
