"""LoRA: a frozen Linear layer plus a trained product of two thin matrices (Hu et al. 2021, arXiv:2106.09685)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from config import DEFAULTS, Run, check_setting
from model.quantized import QuantizedWeight, as_tensor, compute_dtype, multiply
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import AdaptedLinear, adapt, find_sites, plain_linear
from utils.errors import UserError

SCALINGS = {
    "alpha/r": lambda alpha, rank: alpha / rank,  # the paper
    "alpha": lambda alpha, rank: alpha,  # the spam script (docs/source_differences.md)
    "alpha/sqrt(r)": lambda alpha, rank: alpha / math.sqrt(rank),  # rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)
}


class LoRALinear(AdaptedLinear):
    """y = x Wᵀ + b + scale · dropout(x) Aᵀ Bᵀ. W and b keep their names; `attach` (peft/attach.py) has frozen them before.

    lora_a is A [r, in], lora_b is B [out, r]. The layer starts as the one it replaces: B starts at zero or, with PiSSA, the
    product that A and B start with is taken out of W.
    """

    def __init__(self, base: nn.Linear, settings: "LoRA"):
        super().__init__(base)
        self.scale = settings.scale
        self.merged_forward = settings.merged_forward
        self.dropout = nn.Dropout(settings.dropout)
        device = base.weight.device
        if settings.init == "pissa":
            if isinstance(base.weight, QuantizedWeight):
                raise UserError("--lora_init pissa takes its parts out of the weights; it needs --base_precision fp32")
            a, b = principal_parts(base.weight.detach(), settings.rank, self.scale)
            rest = base.weight.detach() - self.scale * (b @ a)
            self.weight = nn.Parameter(rest, base.weight.requires_grad)
        else:
            a = draw_a(base.in_features, settings.rank, settings.init).to(device)
            b = torch.zeros(base.out_features, settings.rank, device=device)
        self.lora_a, self.lora_b = nn.Parameter(a), nn.Parameter(b)
        # LoRA+ (Hayou et al. 2024, arXiv:2402.12354): `make_optimizer` multiplies a parameter's learning rate by this
        self.rate_factors = {"lora_b": settings.plus_ratio}

    def formula(self, x: torch.Tensor) -> torch.Tensor:
        """Return what this layer computes, as the paper writes it: [..., in] -> [..., out].

        `forward` is the faster form that runs; a test holds it equal to this one.
        """
        y = multiply(x, self.weight, self.bias)  # [..., in] -> [..., out]
        low_rank = F.linear(self.dropout(x), self.lora_a)  # [..., in] -> [..., r]
        return y + self.scale * F.linear(low_rank, self.lora_b)  # [..., r] -> [..., out]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged_forward:  # lora_alternative: add the product to W first, then multiply once
            return F.linear(x, self.merged_weight(), self.bias)  # [..., in] -> [..., out]
        return with_product(x, self.dropout, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)

    def merged_weight(self) -> torch.Tensor:
        """Return W + scale · B A, [out, in]."""
        return as_tensor(self.weight) + self.scale * (self.lora_b @ self.lora_a)  # [out, in] + [out, r] [r, in]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain Linear layer that computes the same, with a weight of its own and this layer's bias."""
        return plain_linear(self.merged_weight(), self.bias, like=self)


def with_product(x: torch.Tensor, dropout: nn.Dropout, weight, bias, a, b, scale: float = 1.0) -> torch.Tensor:
    """Return x Wᵀ + b + scale · dropout(x) Aᵀ Bᵀ, [..., in] -> [..., out], for a weight of either kind."""
    rows = x.reshape(-1, x.shape[-1])  # [..., in] -> [N, in]
    dropped = dropout(rows) if dropout.p else None
    y = LoRAProduct.apply(rows, dropped, weight, bias, a, b, scale)
    return y.unflatten(0, x.shape[:-1]) if x.ndim > 1 else y[0]  # [N, out] -> [..., out]


class LoRAProduct(torch.autograd.Function):
    """x Wᵀ + b + scale · z Aᵀ Bᵀ for x [N, in], and z [N, in], which is x after dropout, or None for x -> [N, out].

    The formula's gradients with fewer passes over tensors as large as x and y: what is summed is added in place, x is cast
    once under autocast, and a frozen W isn't kept in half precision until the backward pass but cast again.
    """

    @staticmethod
    def forward(ctx: Any, x, z, weight, bias, a, b, scale: float) -> torch.Tensor:
        dtype = compute_dtype(x)
        half_x = x.to(dtype)
        half_z = half_x if z is None else z.to(dtype)
        low_rank = half_z @ a.to(dtype).T  # [N, in] [in, r] -> [N, r]
        y = F.linear(half_x, as_tensor(weight, dtype), None if bias is None else bias.to(dtype))  # [N, in] -> [N, out]
        y.addmm_(low_rank, b.to(dtype).T, alpha=scale)  # [N, out] + scale · [N, r] [r, out]
        ctx.weight = weight if isinstance(weight, QuantizedWeight) else None
        kept = (half_x if ctx.needs_input_grad[2] else None, None if ctx.weight is weight else weight)
        ctx.save_for_backward(*kept, half_z, low_rank, a, b)
        ctx.scale, ctx.input_dtype = scale, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor):  # [N, out]
        half_x, weight, half_z, low_rank, a, b = ctx.saved_tensors
        weight, dtype = weight if ctx.weight is None else ctx.weight, gradient.dtype
        of_low_rank = (gradient @ b.to(dtype)).mul_(ctx.scale)  # [N, out] [out, r] -> [N, r]
        of_a = (of_low_rank.T @ half_z).to(a.dtype)  # [r, N] [N, in] -> [r, in]
        of_b = (gradient.T @ low_rank).to(b.dtype).mul_(ctx.scale)  # [out, N] [N, r] -> [out, r]
        of_x = of_z = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ as_tensor(weight, dtype)  # [N, out] [out, in] -> [N, in]
            if ctx.needs_input_grad[1]:
                of_z = (of_low_rank @ a.to(dtype)).to(ctx.input_dtype)  # [N, r] [r, in] -> [N, in]
            else:
                of_x.addmm_(of_low_rank, a.to(dtype))  # [N, in] + [N, r] [r, in]
            of_x = of_x.to(ctx.input_dtype)
        if half_x is not None:
            of_weight = (gradient.T @ half_x).to(weight.dtype)  # [out, N] [N, in] -> [out, in]
        if ctx.needs_input_grad[3]:
            of_bias = gradient.sum(dim=0, dtype=torch.float32 if dtype.itemsize == 2 else dtype)  # [out]
        return of_x, of_z, of_weight, of_bias, of_a, of_b, None


def draw_a(n_in: int, rank: int, init: str) -> torch.Tensor:
    """Draw A [r, in], uniform.

    init   "kaiming": bound 1/sqrt(in), as in the code of the paper. "wide": bound 1/sqrt(r), as in the spam script, which
           stores A as [in, r], so that kaiming_uniform_ takes r for the number of inputs; we draw that shape and
           transpose it, to get the same random numbers
    """
    if init == "wide":
        return nn.init.kaiming_uniform_(torch.empty(n_in, rank), a=math.sqrt(5)).T.contiguous()
    return nn.init.kaiming_uniform_(torch.empty(rank, n_in), a=math.sqrt(5))


def principal_parts(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [r, in] and B [out, r] whose product times `scale` is the best approximation of the weight by rank r.

    PiSSA (Meng et al. 2024, arXiv:2404.02948) starts from them.
    """
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)  # [out, k], [k], [k, in] with k = min(out, in)
    root = (s[:rank] / scale).sqrt()
    return (root.unsqueeze(1) * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


def shared_settings(run: Run) -> dict[str, Any]:
    """Return the settings that LoRA shares with what is like it: on which layers it is, and what trains besides."""
    return {
        "dropout": run.lora_dropout,
        "targets": run.lora_target,
        "layers": run.layers,
        "matching": run.lora_matching,
        "train_head": run.train_head == "yes",
    }


@method("lora", "lora_alternative")
@dataclass(frozen=True)
class LoRA:
    """The settings of LoRA, with defaults for use from Python; on the command line the task's recipe decides.

    rank              r, at least 1
    alpha, scaling    give the factor of the product, see SCALINGS
    dropout           on the input of A
    init              how A is drawn, see `draw_a`; "pissa": A and B are the top r singular parts of W (all of them
                      where it has fewer), and W keeps the rest
    targets, layers, matching   which Linear layers, as in `find_sites`
    plus_ratio        the learning rate of B divided by that of A (LoRA+)
    merged_forward    add B A to the weight before the product with x (`lora_alternative`)
    train_head        whether the head trains in full
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    scaling: str = "alpha/r"
    init: str = "kaiming"
    targets: str = "attn.q,attn.v"
    layers: str = DEFAULTS["layers"]
    matching: str = DEFAULTS["lora_matching"]
    plus_ratio: float = DEFAULTS["lora_plus_ratio"]
    merged_forward: bool = False
    train_head: bool = True

    def __post_init__(self):
        for name in ("rank", "alpha", "dropout", "scaling", "init", "matching"):
            check_setting(f"lora_{name}", getattr(self, name))
        if self.init == "pissa" and self.alpha <= 0:
            raise UserError(f"--lora_init pissa needs --lora_alpha above 0; it is {self.alpha:g}")
        if self.plus_ratio <= 0:
            raise UserError(f"--lora_plus_ratio is {self.plus_ratio:g}; it must be above 0")
        if self.merged_forward and self.dropout:
            raise UserError(f"lora_alternative has no place for --lora_dropout {self.dropout}; use lora, or dropout 0")

    @property
    def scale(self) -> float:
        """Return the factor of the product B A."""
        return SCALINGS[self.scaling](self.alpha, self.rank)

    @classmethod
    def from_run(cls, name: str, run: Run) -> "LoRA":
        return cls(
            rank=run.lora_rank,
            alpha=run.lora_alpha,
            scaling=run.lora_scaling,
            init=run.lora_init,
            plus_ratio=run.lora_plus_ratio,
            merged_forward=name == "lora_alternative",
            **shared_settings(run),
        )

    def attach(self, model: Transformer) -> None:
        train_head(model, self.train_head)
        sites = find_sites(model, self.targets, self.layers, self.matching)
        adapt(model, sites, lambda linear: LoRALinear(linear, self))
