"""The optimizer of a training."""

import torch
from torch import nn

from config import Run


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters, grouped by the factor on their learning rate and by their decay.

    A module sets the factors of its own parameters in `rate_factors`, by name (peft/lora.py: LoRA+); else it is 1. With
    `--decay_norms no` only matrices decay, no biases and norms.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.requires_grad:
            factor = getattr(model.get_submodule(path), "rate_factors", {}).get(own, 1.0)
            decays = run.decay_norms == "yes" or parameter.ndim > 1
            groups.setdefault((factor, run.weight_decay if decays else 0.0), []).append(parameter)
    in_groups = [
        {"params": members, "factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()
    ]
    return torch.optim.AdamW(in_groups, lr=run.learning_rate, fused=True)
