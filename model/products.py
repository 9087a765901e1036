"""Matrix products in float32 on the CPU, by the faster of the two libraries that torch has on board for them.

torch gives `F.linear` to MKL, which on AMD's processors leaves the units for 512 bits (AVX-512) unused. oneDNN uses them:
the same product takes a third to a half of the time there. torch itself takes oneDNN only in compiled models.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WORTHWHILE = 2**18  # multiplications, from which on a product by oneDNN is faster; MKL begins sooner


def fast_products(keep_ordered: bool = False) -> AbstractContextManager:
    """Return what to enter with `with`, so that products that aren't differentiated are oneDNN's where that is faster."""
    usable = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return ByOneDNN(keep_ordered) if usable else nullcontext()


class ByOneDNN(TorchFunctionMode):
    """Within `with ByOneDNN():` every large F.linear of float32 on the CPU is oneDNN's, where nothing is differentiated.

    Numbers differ from MKL's by rounding alone. All other functions are as they were.

    keep_ordered   of each weight, from its first product on, keep a copy in oneDNN's own order: products with 2 to some
                   hundred rows of x take half the time then. It lives as long as this object, and doubles what the
                   weights take; they must not change meanwhile
    """

    def __init__(self, keep_ordered: bool = False):
        super().__init__()
        self.keep_ordered = keep_ordered
        self.ordered: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of a weight -> it, and its copy

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear and not kwargs and is_served(*args[:2]):
            return self.linear(*args)
        return func(*args, **(kwargs or {}))

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x weightᵀ + bias: [..., D] and [E, D] -> [..., E]."""
        if self.keep_ordered and isinstance(weight, nn.Parameter):  # any other was made for this product alone
            if id(weight) not in self.ordered:
                rows = x.numel() // x.shape[-1]
                self.ordered[id(weight)] = weight, torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            weight = self.ordered[id(weight)][1]
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def is_served(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether oneDNN takes this product over."""
    return (
        x.dtype == weight.dtype == torch.float32
        and type(weight) in (torch.Tensor, nn.Parameter)  # none that is spread over processes
        and x.is_cpu
        and weight.is_cpu
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
