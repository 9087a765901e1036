"""Attention where torch's own is slow: its backward pass in half precision on the CPU, and one query of grouped heads."""

from typing import Any

import torch
from torch.nn import functional as F

aten = torch.ops.aten
SHORT = 192  # keys; with more of them torch's own backward pass is as fast, or faster


def scaled_dot_product_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what torch's function of this name returns, softmax(q kᵀ / sqrt(d)) v, with the same arguments. A
    mask is the same for all heads.

    torch's backward pass in half precision on the CPU takes two to eight times as long for short texts as in float32; and
    for one query of each head its forward pass takes up to six times as long as for the same queries of fewer heads.
    """
    if enable_gqa and q.shape[2] == 1 and not is_causal:  # as in generation: all heads of a group see the same positions,
        in_groups = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # so they are one's: -> [B, K, H/K, 1, d] -> [B, K, H/K, d]
        mixed = scaled_dot_product_attention(in_groups, k, v, attn_mask, dropout_p)
        return mixed.flatten(1, 2).unsqueeze(2)  # [B, K, H/K, d] -> [B, H, 1, d]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.device.type == "cpu" and dtype.itemsize == 2 and trains and not dropout_p and k.shape[2] <= SHORT:
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [B, K, S, d] -> [B, H, S, d]
        if attn_mask is not None:  # as torch does with a mask of truth values; [..., T, S]
            attn_mask = torch.zeros(attn_mask.shape, dtype=dtype).masked_fill_(~attn_mask, float("-inf"))
        return HalfAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask, is_causal)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, enable_gqa=enable_gqa
    )


class HalfAttention(torch.autograd.Function):
    """torch's own two passes, the second one of them in float32. Heads q [B, H, T, d], k and v [B, H, S, d]."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        mixed, log_sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, attn_mask=mask)
        ctx.save_for_backward(q, k, v, mixed, log_sums)
        ctx.mask, ctx.is_causal = mask, is_causal
        return mixed  # [B, H, T, d]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, mixed, log_sums = ctx.saved_tensors
        in_full = (x.float() for x in (gradient, q, k, v, mixed))
        mask = None if ctx.mask is None else ctx.mask.float()
        of_heads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *in_full, log_sums, 0.0, ctx.is_causal, attn_mask=mask
        )
        return *(x.to(q.dtype) for x in of_heads), None, None
