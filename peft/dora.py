"""DoRA: a weight's direction by LoRA, its magnitude trained apart (Liu et al. 2024, arXiv:2402.09353)."""

from dataclasses import dataclass

import torch
from torch import nn

from model.quantized import as_tensor
from model.transformer import Transformer
from peft.attach import train_head
from peft.lora import LoRA, LoRALinear
from peft.registry import method
from peft.targets import adapt, find_sites


class DoRALinear(LoRALinear):
    """y = m / ‖V‖ · x Vᵀ + b with V = W + scale · B A, and ‖V‖ the length of each of its rows.

    The magnitude m [out] starts as ‖W‖, so that the layer starts as the one it replaces. As in the paper (section 4.3) no
    gradient goes through ‖V‖. Dropout acts on the input of the LoRA product only, as in `LoRALinear`.
    """

    def __init__(self, base: nn.Linear, settings: "DoRA"):
        super().__init__(base, settings)
        self.magnitude = nn.Parameter(as_tensor(base.weight).detach().norm(dim=1))  # [out, in] -> [out]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)  # [B, T, in] -> [B, T, out]
        stretch = self.stretch().to(y.dtype)  # [out]; autocast leaves a plain product to us
        if self.bias is None:
            return stretch * y
        return stretch * y + (1 - stretch) * self.bias.to(y.dtype)  # the bias isn't stretched

    def stretch(self) -> torch.Tensor:
        """Return m / ‖V‖, [out]."""
        return self.magnitude / super().merged_weight().detach().norm(dim=1)

    def merged_weight(self) -> torch.Tensor:
        """Return m / ‖V‖ · V, [out, in]."""
        return self.stretch().unsqueeze(1) * super().merged_weight()  # [out, 1] · [out, in]


@method("dora")
@dataclass(frozen=True)
class DoRA(LoRA):
    """The settings of LoRA."""

    def attach(self, model: Transformer) -> None:
        train_head(model, self.train_head)
        sites = find_sites(model, self.targets, self.layers, self.matching)
        adapt(model, sites, lambda linear: DoRALinear(linear, self))
