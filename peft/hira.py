"""HiRA: each weight times 1 + its entry in the product of two thin matrices (Huang et al. 2025, openreview TwJrTz9cRS)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from config import DEFAULTS, Run, check_setting
from model.quantized import QuantizedWeight
from model.transformer import Transformer
from peft.attach import train_head
from peft.lora import draw_a, shared_settings
from peft.registry import method
from peft.targets import AdaptedLinear, adapt, find_sites, plain_linear
from utils.errors import UserError


class HiRALinear(AdaptedLinear):
    """y = x Wᵀ + b + dropout(x) (W ⊙ B A)ᵀ. Only A [r, in] and B [out, r] train.

    What is added to W may have r times the rank of W, where LoRA's has r. B starts at zero: nothing is added at first.
    """

    def __init__(self, base: nn.Linear, rank: int, dropout: float = 0.0):
        super().__init__(base)
        if isinstance(base.weight, QuantizedWeight):
            raise UserError("hira multiplies each weight by a factor of its own; it needs --base_precision fp32")
        device = base.weight.device
        self.dropout = nn.Dropout(dropout)
        self.hira_a = nn.Parameter(draw_a(base.in_features, rank, "kaiming").to(device))
        self.hira_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dropout.p and self.training:
            return super().forward(x) + F.linear(self.dropout(x), self.weight * self.factors())  # [.., in] -> [.., out]
        return F.linear(x, self.merged_weight(), self.bias)  # the same with one large product instead of two

    def factors(self) -> torch.Tensor:
        """Return B A, [out, in]."""
        return self.hira_b @ self.hira_a  # [out, r] [r, in]

    def merged_weight(self) -> torch.Tensor:
        """Return W + W ⊙ B A, [out, in]."""
        return self.weight + self.weight * self.factors()

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain Linear layer that computes the same."""
        return plain_linear(self.merged_weight(), self.bias, like=self)


@method("hira")
@dataclass(frozen=True)
class HiRA:
    """The settings of HiRA, with the meaning that they have for LoRA; the product has no factor."""

    rank: int = 32
    dropout: float = 0.0
    targets: str = "attn.q,attn.v"
    layers: str = DEFAULTS["layers"]
    matching: str = DEFAULTS["lora_matching"]
    train_head: bool = True

    def __post_init__(self):
        for name in ("rank", "dropout", "matching"):
            check_setting(f"lora_{name}", getattr(self, name))

    @classmethod
    def from_run(cls, name: str, run: Run) -> "HiRA":
        return cls(rank=run.lora_rank, **shared_settings(run))

    def attach(self, model: Transformer) -> None:
        train_head(model, self.train_head)
        sites = find_sites(model, self.targets, self.layers, self.matching)
        adapt(model, sites, lambda linear: HiRALinear(linear, self.rank, self.dropout))
