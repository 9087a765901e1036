"""What pretraining begins with."""

import pytest
import torch
from torch.nn import functional as F

from model.gpt2 import SelfAttention
from tools import pretrain


@pytest.mark.parametrize("size_of_words, least", [(0.0, 0.95), (1.0, 0.3)])
def test_heads_begin_by_looking_at_neighbours(size_of_words: float, least: float):
    """Wholly, where positions are all they see, and mostly between words as large as they are drawn."""
    torch.manual_seed(0)
    attn = SelfAttention(128, n_heads=4)
    pretrain.look_aside(attn, 128)
    torch.nn.init.zeros_(attn.q.bias)
    torch.nn.init.zeros_(attn.k.bias)
    words = torch.randn(64, 128) * 0.02 * (768 / 128) ** 0.5 * size_of_words
    x = F.layer_norm(words + pretrain.waves(64, 128), (128,))
    for head, offset in enumerate((-1, 1, -2, 2)):
        q, k = (linear(x)[:, 32 * head : 32 * (head + 1)] for linear in (attn.q, attn.k))  # [T, 32]
        weights = (q @ k.T / 32**0.5).softmax(dim=1)  # [T, T]
        assert weights.diagonal(offset).mean() > least > 1.1 * weights.diagonal(-offset).mean()
