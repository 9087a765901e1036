"""Attention in half precision on the CPU: what torch's own function computes, with gradients nearer to float32's."""

import pytest
import torch
from torch.nn import functional as F

from model.attention import SHORT, HalfAttention, scaled_dot_product_attention

B, H, T, D = 3, 4, 21, 16


def heads(n: int, seed: int, length: int = T) -> torch.Tensor:
    return torch.randn(B, n, length, D, generator=torch.Generator().manual_seed(seed))


def drawn_mask() -> torch.Tensor:
    """[B, 1, T, T]: each position sees itself and about two of three others."""
    mask = torch.rand(B, 1, T, T, generator=torch.Generator().manual_seed(9)) < 0.67
    return mask | torch.eye(T, dtype=torch.bool)


def results(function, dtype: torch.dtype, n_kv: int = H, **how) -> list[torch.Tensor]:
    """What attention puts out and the gradients of q, k and v, in float32."""
    inputs = [heads(n, seed).to(dtype).requires_grad_() for seed, n in enumerate((H, n_kv, n_kv))]
    out = function(*inputs, enable_gqa=n_kv != H, **how)
    out.backward(heads(H, 7).to(dtype))
    return [out.detach().float(), *(x.grad.float() for x in inputs)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_kv", [H, 2, 1])
@pytest.mark.parametrize("kind", ["everything", "causal", "masked", "one row for all"])
def test_outputs_and_gradients_are_those_of_float32(kind: str, n_kv: int, dtype: torch.dtype):
    mask = {"masked": drawn_mask(), "one row for all": drawn_mask()[:, :, :1]}.get(kind)
    how = {"attn_mask": mask, "is_causal": kind == "causal"}
    exact = results(F.scaled_dot_product_attention, torch.float32, n_kv, **how)
    for found, expected in zip(results(scaled_dot_product_attention, dtype, n_kv, **how), exact, strict=True):
        assert (found - expected).norm() < 1e-2 * expected.norm()


def test_short_texts_in_half_precision_take_the_backward_pass_in_float32(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(HalfAttention, "apply", lambda *args: calls.append(args))

    def asked(dtype=torch.bfloat16, length: int = T, trains: bool = True, dropout: float = 0.0) -> int:
        before = len(calls)
        scaled_dot_product_attention(*(heads(H, 1, length).to(dtype).requires_grad_(trains),) * 3, dropout_p=dropout)
        return len(calls) - before

    assert asked() == asked(torch.float16) == asked(length=SHORT) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert asked(torch.float32) == 1
    # nothing is gained without a gradient, in float32 or for long texts; dropout is torch's own
    assert not any((asked(torch.float32), asked(length=SHORT + 1), asked(trains=False), asked(dropout=0.1)))


def test_float32_is_torchs_own_bit_for_bit():
    ours, torchs = (
        results(function, torch.float32, is_causal=True)
        for function in (scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_kv", [2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_one_query_of_grouped_heads_sees_what_each_head_would(masked: bool, n_kv: int, dtype: torch.dtype):
    q, k, v = (heads(n, n, length).double() for n, length in ((H, 1), (n_kv, T), (n_kv, T)))
    mask = drawn_mask()[:, :, :1] if masked else None  # [B, 1, 1, T], another for each text
    repeated = [x.repeat_interleave(H // n_kv, dim=1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *repeated, attn_mask=mask)
    given = [x.to(dtype) for x in (q, k, v)]
    found = scaled_dot_product_attention(*given, attn_mask=mask, enable_gqa=True)
    assert found.shape == expected.shape and found.dtype == dtype
    assert (found - expected).norm() < (1e-6 if dtype == torch.float32 else 1e-2) * expected.norm()
