"""The optimizer of a training."""

import torch
from torch import nn

from config import Run


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters, grouped by the factor on their learning rate.

    A module sets the factors of its own parameters in `rate_factors`, by name (peft/lora.py: LoRA+); else it is 1.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.requires_grad:
            factor = getattr(model.get_submodule(path), "rate_factors", {}).get(own, 1.0)
            groups.setdefault(factor, []).append(parameter)
    in_groups = [{"params": members, "factor": factor} for factor, members in groups.items()]
    return torch.optim.AdamW(in_groups, lr=run.learning_rate, weight_decay=run.weight_decay, fused=True)
