"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from config import DEFAULTS, Run, check_setting
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import AdaptedLinear, Added, adapt, find_sites
from utils.errors import UserError

PLACEMENTS = {"pfeiffer": "mlp.down", "houlsby": "attn.out,mlp.down"}  # the last Linear layer of the sublayers meant


class Bottleneck(Added):
    """Computes what is added to y: up(ReLU(down(y))). `up` starts at zero, so that nothing is added at first.

    ReLU is the activation of the configuration that Pfeiffer et al. published; Houlsby et al. leave it open in the paper.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.up(F.relu(self.down(y)))  # [B, T, D] -> [B, T, width] -> [B, T, D]


class AdapterLinear(AdaptedLinear):
    """A Linear layer and an adapter after it, within the residual connection around both."""

    def __init__(self, base: nn.Linear, width: int):
        super().__init__(base)
        self.adapter = Bottleneck(base.out_features, width).to(base.weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + self.adapter(y)


@method("adapter")
@dataclass(frozen=True)
class Adapter:
    """pfeiffer: after the feed-forward sublayer. houlsby: after attention too. `layers` as in `find_sites`.

    The bottleneck is the model's width divided by the reduction factor, rounded down.
    """

    placement: str = DEFAULTS["adapter_placement"]
    reduction_factor: int = DEFAULTS["reduction_factor"]
    layers: str = DEFAULTS["layers"]
    train_head: bool = True

    def __post_init__(self):
        check_setting("adapter_placement", self.placement)
        check_setting("reduction_factor", self.reduction_factor)

    @classmethod
    def from_run(cls, name: str, run: Run) -> "Adapter":
        return cls(run.adapter_placement, run.reduction_factor, run.layers, train_head=run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        dim = model.config.dim
        if self.reduction_factor > dim:
            raise UserError(f"--reduction_factor is {self.reduction_factor}; it must be at most the model's width, {dim}")
        sites = find_sites(model, PLACEMENTS[self.placement], self.layers)
        adapt(model, sites, lambda linear: AdapterLinear(linear, dim // self.reduction_factor))
        train_head(model, self.train_head)
