"""What pretraining begins with."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import pretrain
from model.transformer import SelfAttention


@pytest.mark.parametrize("dim, n_heads", [(128, 4), (64, 2), (48, 4)])
def test_heads_begin_by_looking_at_neighbours(dim: int, n_heads: int):
    torch.manual_seed(0)
    attn = SelfAttention(SimpleNamespace(dim=dim, n_heads=n_heads, dropout=0.0))
    pretrain.look_aside(attn, dim)
    torch.nn.init.zeros_(attn.q.bias)
    torch.nn.init.zeros_(attn.k.bias)
    words = torch.randn(64, dim) * 0.02 * (768 / dim) ** 0.5  # as large as token embeddings are drawn
    x = F.layer_norm(words + pretrain.waves(64, dim), (dim,))
    for head, offset in zip(range(n_heads), (-1, 1, -2, 2), strict=False):
        rows = slice(head * dim // n_heads, (head + 1) * dim // n_heads)
        scores = attn.q(x)[:, rows] @ attn.k(x)[:, rows].T  # [T, T]
        seen = scores.argmax(dim=1)[8:56] - torch.arange(64)[8:56]
        assert (seen == offset).float().mean() > 0.8
