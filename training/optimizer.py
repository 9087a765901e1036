"""The optimizer of a training."""

import torch
from torch import nn
from torch.optim.adamw import adamw

from config import Run
from model.llama import RMSNorm

NORMS = (nn.LayerNorm, RMSNorm)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), by the library's fused kernel.

    It is torch.optim.AdamW without what serves torch.compile alone: that class imports the compiler with its first step,
    which takes two seconds.

    param_groups    dicts of "params", "weight_decay", "lr", and whatever else a group was given
    state           of each parameter that has had a gradient: "step" [], "exp_avg" and "exp_avg_sq" of its shape
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.param_groups = [{**group, "lr": lr} for group in groups]
        self.betas, self.eps = betas, eps
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state_of(parameter) for parameter in parameters]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                fused=True,
                amsgrad=False,
                maximize=False,
            )

    def state_of(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Return the state of a parameter, which begins as zeros."""
        if parameter not in self.state:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | moments
        return self.state[parameter]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def make_optimizer(model: nn.Module, run: Run) -> AdamW:
    """Return AdamW over all trainable parameters, grouped by the factor on their learning rate and by their decay.

    A module sets the factors of its own parameters in `rate_factors`, by name (peft/lora.py: LoRA+); else it is 1. With
    `--decay_norms no` all but biases and norms decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.requires_grad:
            module = model.get_submodule(path)
            factor = getattr(module, "rate_factors", {}).get(own, 1.0)
            decays = run.decay_norms == "yes" or not (own == "bias" or isinstance(module, NORMS))
            groups.setdefault((factor, run.weight_decay if decays else 0.0), []).append(parameter)
    in_groups = [
        {"params": members, "factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()
    ]
    return AdamW(in_groups, lr=run.learning_rate)
