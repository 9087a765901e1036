"""IA3: what a few Linear layers put out, or take in, times a trained vector (Liu et al. 2022, arXiv:2205.05638)."""

from dataclasses import dataclass

import torch
from torch import nn

from config import DEFAULTS, Run
from model.quantized import as_tensor, multiply
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import AdaptedLinear, adapt, find_sites, plain_linear

# the paper's: keys, values, and what enters the second feed-forward layer
OUTPUTS, INPUTS = "attn.k,attn.v", "mlp.down"


class IA3Linear(AdaptedLinear):
    """y = l · (x Wᵀ + b), or for `of_input` y = (l · x) Wᵀ + b. The vector l starts as ones."""

    def __init__(self, base: nn.Linear, of_input: bool):
        super().__init__(base)
        self.of_input = of_input
        size = base.in_features if of_input else base.out_features
        self.ia3 = nn.Parameter(torch.ones(size, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.of_input:
            return multiply(x * self.ia3.to(x.dtype), self.weight, self.bias)  # [B, T, in] -> [B, T, out]
        y = multiply(x, self.weight, self.bias)  # [B, T, in] -> [B, T, out]
        return y * self.ia3.to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain Linear layer that computes the same."""
        if self.of_input:
            return plain_linear(as_tensor(self.weight) * self.ia3, self.bias, like=self)
        bias = None if self.bias is None else nn.Parameter(self.bias * self.ia3, self.bias.requires_grad)
        return plain_linear(as_tensor(self.weight) * self.ia3.unsqueeze(1), bias, like=self)


@method("ia3")
@dataclass(frozen=True)
class IA3:
    """`layers` as in `find_sites`."""

    layers: str = DEFAULTS["layers"]
    train_head: bool = True

    @classmethod
    def from_run(cls, name: str, run: Run) -> "IA3":
        return cls(run.layers, run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        train_head(model, self.train_head)
        for targets, of_input in ((OUTPUTS, False), (INPUTS, True)):
            adapt(model, find_sites(model, targets, self.layers), lambda linear, of=of_input: IA3Linear(linear, of))
