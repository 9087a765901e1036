"""NF4, four bits a weight, with double quantization (Dettmers et al. 2023, "QLoRA", arXiv:2305.14314).

A weight [out, in] is cut, row after row, into blocks of 64. Of a block is kept its largest magnitude and, for each weight,
which of 16 levels its part of that is nearest to. The levels lie where the weights of a normal distribution do: each is
taken about equally often. The largest magnitudes are quantized in their turn, in blocks of 256, to 8 bits: 4 + 8/64 +
32/(64 · 256) = 4.127 bits a weight in all. Codes and levels are those of the library bitsandbytes.
"""

import torch
from torch.nn import functional as F

from model.quantized import QuantizedWeight

BLOCK, SCALES_BLOCK = 64, 256

# Table 6 of the paper (appendix E): quantiles of N(0, 1), 7 below zero, 8 above, scaled to [-1, 1].
LEVELS = torch.tensor((
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
))  # fmt: skip


def dynamic_levels() -> torch.Tensor:
    """Return the 256 levels of the magnitudes: ±10^-e times a fraction. The larger e, the fewer fractions there are.

    Of the "dynamic" 8-bit numbers of Dettmers 2015 (arXiv:1511.04561), with a sign.
    """
    levels = [0.0, 1.0]
    for i in range(7):  # e = 6 - i
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels))


SCALE_LEVELS = dynamic_levels()
# The two weights in each byte, [256, 2]: the first in the high four bits.
PAIRS = torch.stack([LEVELS.repeat_interleave(16), LEVELS.repeat(16)], dim=1)
PART = 2048 * BLOCK  # weights that are dequantized at once on the CPU


class NF4Weight(QuantizedWeight):
    """A weight of n numbers in NF4, in n/64 blocks."""

    codes: torch.Tensor  # [n/2], two weights a byte
    scales: torch.Tensor  # [n/64], the level of each block's largest magnitude
    scale_maxima: torch.Tensor  # [n/64/256]
    scale_mean: torch.Tensor  # [], taken from the magnitudes before they are quantized

    def __init__(self, shape: torch.Size):
        super().__init__(shape)
        n_blocks = -(-self.numel() // BLOCK)
        self.register_buffer("codes", torch.empty(n_blocks * BLOCK // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(n_blocks, dtype=torch.uint8))
        self.register_buffer("scale_maxima", torch.empty(-(-n_blocks // SCALES_BLOCK)))
        self.register_buffer("scale_mean", torch.empty(()))

    def copy_(self, weight: torch.Tensor) -> "NF4Weight":
        codes, maxima = nearest_in_blocks(weight.float().flatten(), LEVELS, BLOCK)  # [n/64, 64], [n/64]
        self.codes.copy_((codes[:, ::2] << 4 | codes[:, 1::2]).flatten())
        self.scale_mean.copy_(maxima.mean())
        scales, scale_maxima = nearest_in_blocks(maxima - maxima.mean(), SCALE_LEVELS, SCALES_BLOCK)
        self.scales.copy_(scales.flatten()[: len(maxima)])
        self.scale_maxima.copy_(scale_maxima)
        return self

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        pairs = PAIRS.to(self.device).view(torch.int64).flatten()  # [256]: both float32 of a byte in one number
        maxima, values = self.maxima()[:, None], torch.empty(2 * len(self.codes), dtype=dtype, device=self.device)  # [n]
        size = PART if self.device.type == "cpu" else len(values)
        for start in range(0, len(values), size):  # in parts that stay in the processor's cache
            part = slice(start, start + size)
            found = pairs.index_select(0, self.codes[start // 2 : part.stop // 2].int()).view(torch.float32)  # [size]
            values[part] = found.view(-1, BLOCK).mul_(maxima[start // BLOCK : part.stop // BLOCK]).flatten()
        return values[: self.numel()].view(self.shape)

    def maxima(self) -> torch.Tensor:
        """Return the largest magnitude of each block, [n/64]."""
        levels = SCALE_LEVELS.to(self.device).index_select(0, self.scales.int())
        return levels * self.scale_maxima.repeat_interleave(SCALES_BLOCK)[: len(levels)] + self.scale_mean


def nearest_in_blocks(x: torch.Tensor, levels: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which level each part of its block's largest magnitude is nearest to, [blocks, size], and these magnitudes.

    Halfway, the lower level is taken. The last block is filled up with zeros.
    """
    blocks = F.pad(x, (0, -len(x) % size)).view(-1, size)
    maxima = blocks.abs().amax(dim=1)  # [blocks]
    parts = blocks * (1.0 / maxima.clamp(min=1e-38))[:, None]
    borders = ((levels[:-1] + levels[1:]) / 2).to(x.device)
    return torch.bucketize(parts, borders).to(torch.uint8), maxima
