"""VeRA: random matrices, shared by all layers, times two trained vectors (Kopiczko et al. 2023, arXiv:2310.11454)."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from config import DEFAULTS, Run, check_setting
from model.quantized import as_tensor
from model.transformer import Transformer
from peft.attach import train_head
from peft.lora import shared_settings, with_product
from peft.registry import method
from peft.targets import AdaptedLinear, Added, adapt, find_sites, plain_linear

D_AT_FIRST = 0.1  # the paper's; 0 would never train, since b starts at 0 too


class SharedMatrices(Added):
    """A [r, in] and B [out, r]. They never train, and no file of a run holds them: the seed draws them again."""

    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, a: torch.Tensor, b: torch.Tensor):
        super().__init__()
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)


def draw_matrices(rank: int, n_in: int, n_out: int, seed: int) -> SharedMatrices:
    """Draw A [r, in] and B [out, r], uniform within sqrt(6 / columns). The library peft draws the same from its key."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(rows: int, columns: int) -> torch.Tensor:
        bound = math.sqrt(6 / columns)
        return torch.empty(rows, columns, device="cpu").uniform_(-bound, bound, generator=generator)

    return SharedMatrices(draw(rank, n_in), draw(n_out, rank))  # A is drawn first


class VeRALinear(AdaptedLinear):
    """y = x Wᵀ + b + vera_b ⊙ (vera_d ⊙ (dropout(x) Aᵀ)) Bᵀ. Only vera_d [r] and vera_b [out] train.

    So it is LoRA whose A has its rows scaled by vera_d, and its B by vera_b, which starts at zero: nothing is added at
    first. A layer takes as many columns of the shared A as it has inputs, and as many rows of B as it has outputs, from
    `first_row` on: that isn't 0 where the layer is a part of a larger one of the library (peft/huggingface/vera.py).
    """

    def __init__(self, base: nn.Linear, shared: SharedMatrices, dropout: float = 0.0, first_row: int = 0):
        super().__init__(base)
        self.shared, self.first_row = shared, first_row
        self.dropout = nn.Dropout(dropout)
        device = base.weight.device
        self.vera_d = nn.Parameter(torch.full((len(shared.a),), D_AT_FIRST, device=device))
        self.vera_b = nn.Parameter(torch.zeros(base.out_features, device=device))

    def scaled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this layer's A [r, in] and B [out, r], with their rows scaled."""
        a = self.shared.a[:, : self.in_features]
        b = self.shared.b[self.first_row : self.first_row + self.out_features]
        return self.vera_d.unsqueeze(1) * a, self.vera_b.unsqueeze(1) * b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.scaled()
        return with_product(x, self.dropout, self.weight, self.bias, a, b)  # [..., in] -> [..., out]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain Linear layer that computes the same."""
        a, b = self.scaled()
        return plain_linear(as_tensor(self.weight) + b @ a, self.bias, like=self)


@method("vera")
@dataclass(frozen=True)
class VeRA:
    """The settings of VeRA.

    rank      r; the paper's are far above LoRA's, since a layer trains no more than r + out numbers
    seed      draws A and B
    dropout   on the input of A
    targets, layers, matching   which Linear layers, as in `find_sites`
    """

    rank: int = DEFAULTS["vera_rank"]
    seed: int = DEFAULTS["vera_seed"]
    dropout: float = 0.0
    targets: str = "attn.q,attn.v"
    layers: str = DEFAULTS["layers"]
    matching: str = DEFAULTS["lora_matching"]
    train_head: bool = True

    def __post_init__(self):
        for setting in ("vera_rank", "vera_seed", "lora_dropout", "lora_matching"):
            check_setting(setting, getattr(self, setting.partition("_")[2]))

    @classmethod
    def from_run(cls, name: str, run: Run) -> "VeRA":
        return cls(rank=run.vera_rank, seed=run.vera_seed, **shared_settings(run))

    def attach(self, model: Transformer) -> None:
        train_head(model, self.train_head)
        sites = find_sites(model, self.targets, self.layers, self.matching)
        n_in, n_out = (max(getattr(one, size) for one in sites.values()) for size in ("in_features", "out_features"))
        device = next(iter(sites.values())).weight.device
        shared = draw_matrices(self.rank, n_in, n_out, self.seed).to(device)
        adapt(model, sites, lambda linear: VeRALinear(linear, shared, self.dropout))
