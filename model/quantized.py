"""Frozen weights in fewer bits, so that a large model fits: in half precision, in 8 or in 4 bits.

A weight that trains stays in float32. One that doesn't is only multiplied with; it is turned back into numbers for each
product, forward and backward, and thrown away again. What is kept of it is the `QuantizedWeight` of its layer.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from utils.errors import UserError


class QuantizedWeight(nn.Module):
    """A frozen weight [out, in] in fewer bits. It lies where the layer's parameter would, and has no parameter itself."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape = shape

    def copy_(self, weight: torch.Tensor) -> "QuantizedWeight":
        """Keep the nearest values to those of a weight [out, in]."""
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight as numbers, [out, in]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Return where it lies."""
        return next(self.buffers()).device

    @property
    def requires_grad(self) -> bool:
        """Return False: it doesn't train."""
        return False

    def numel(self) -> int:
        """Return the number of weights."""
        return self.shape.numel()


class HalfWeight(QuantizedWeight):
    """Each weight in 16 bits: float16 or bfloat16."""

    values: torch.Tensor  # [out, in]

    def __init__(self, shape: torch.Size, dtype: torch.dtype):
        super().__init__(shape)
        self.register_buffer("values", torch.empty(shape, dtype=dtype))

    def copy_(self, weight: torch.Tensor) -> "HalfWeight":
        self.values.copy_(weight)
        return self

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        return self.values.to(dtype)


class RowwiseWeight(QuantizedWeight):
    """Each weight as a whole number of 8 or of 4 bits, times a scale of its row: max |row| is the largest number.

    The form of ChatGLM-6B's published quantizer. Of 4 bits, two numbers share a byte, the first in the high half.
    """

    codes: torch.Tensor  # [out, in], or [out, in/2] of 4 bits
    scales: torch.Tensor  # [out, 1]

    def __init__(self, shape: torch.Size, bits: int):
        super().__init__(shape)
        self.bits, self.largest = bits, 2 ** (bits - 1) - 1  # 127 or 7
        n_out, n_in = shape
        if bits == 4 and n_in % 2:
            raise UserError(f"int4 keeps two weights in a byte; a row of {n_in} can't be halved: choose int8")
        self.register_buffer("codes", torch.empty(n_out, n_in * bits // 8, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(n_out, 1))

    def copy_(self, weight: torch.Tensor) -> "RowwiseWeight":
        weight = weight.float()
        scales = torch.linalg.vector_norm(weight, float("inf"), dim=1, keepdim=True) / self.largest  # [out, 1]
        codes = (weight / scales.clamp(min=1e-30)).round_().to(torch.int8)  # [out, in]; a row of zeros stays one
        self.codes.copy_(codes if self.bits == 8 else codes[:, ::2] << 4 | codes[:, 1::2] & 15)
        self.scales.copy_(scales)
        return self

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        codes = self.codes
        if self.bits == 4:  # shifts keep the sign: the high half as it is, the low half shifted up and back
            codes = torch.stack([codes >> 4, codes << 4 >> 4], dim=-1).flatten(1)  # [out, in/2, 2] -> [out, in]
        return (codes * self.scales).to(dtype)


# --- multiplying with it


class Product(torch.autograd.Function):
    """x Wᵀ + b with a quantized W, which is dequantized anew for the backward pass instead of being kept till then."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight, ctx.input_dtype = weight, x.dtype
        dtype = compute_dtype(x)
        return F.linear(x.to(dtype), weight.dequantize(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ ctx.weight.dequantize(gradient.dtype)).to(ctx.input_dtype)  # [..., out] -> [..., in]
        if ctx.needs_input_grad[2]:
            of_bias = gradient.flatten(0, -2).sum(dim=0, dtype=torch.float32)  # [..., out] -> [out]
        return of_x, None, of_bias


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return what a product with x is computed in: autocast's type where that is on, else that of x."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def multiply(x: torch.Tensor, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x Wᵀ + b, [..., in] -> [..., out]: F.linear, for a weight of either kind."""
    if isinstance(weight, QuantizedWeight):
        return Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def as_tensor(weight: torch.Tensor | QuantizedWeight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a weight of either kind as numbers, [out, in], in a type. None: a quantized one in float32, else its own."""
    if isinstance(weight, QuantizedWeight):
        return weight.dequantize(dtype or torch.float32)
    return weight.to(dtype or weight.dtype)


def half_as(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight of half precision in the type that a product with x is computed in; any other as it is."""
    return weight if weight.dtype == torch.float32 else weight.to(compute_dtype(x))


class LinearInPlace(nn.Linear):
    """Takes the place of a Linear layer and its tensors, which keep their names. The weight may be of either kind."""

    weight: Any

    def __init__(self, base: nn.Linear, weight: QuantizedWeight | None = None):
        nn.Module.__init__(self)  # not Linear's own: nothing is drawn
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight if weight is None else weight, base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, self.weight, self.bias)  # [..., in] -> [..., out]


class HalfEmbedding(nn.Embedding):
    """A frozen table of half precision. What comes out of it is float32, as everything between the layers is."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids).float()  # [B, T] -> [B, T, D]


def check_whole(weight: Any) -> None:
    """Raise UserError for a weight that is about to train and is kept in fewer bits."""
    if isinstance(weight, QuantizedWeight):
        raise UserError("weights in fewer bits can't train; load the model with base_precision fp32 or name them `trained`")
