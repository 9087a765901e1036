"""Adapters: the formula, the placements, the width; and published parameter counts of all methods."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import from_pretrained
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from peft import Adapter, BitFit, Bypass, LoRA, attach
from peft.adapter import AdapterLinear
from utils.errors import UserError


def tiny(dim: int = 32, n_layers: int = 2) -> GPT2:
    torch.manual_seed(1)
    return GPT2(GPT2Config(50, 16, dim, 4, n_layers), ClassifierHead(dim, 2))


def test_the_formula():
    base = nn.Linear(7, 5).double()
    layer = AdapterLinear(base, width=3).double()
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))
    nn.init.normal_(layer.adapter.up.weight)
    nn.init.normal_(layer.adapter.up.bias)
    down, up, y = layer.adapter.down, layer.adapter.up, base(x)
    expected = y + torch.relu(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert not torch.allclose(expected, y, atol=0.1)
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight is base.weight and layer.bias is base.bias


def test_only_up_starts_at_zero():
    bottleneck = AdapterLinear(nn.Linear(7, 32), width=4).adapter
    assert not bottleneck.up.weight.any() and not bottleneck.up.bias.any()
    assert bottleneck.down.weight.std() > 0.05  # else neither of them would ever get a gradient


def test_it_stands_before_the_residual_connection_is_added():
    model = attach(tiny(n_layers=1), Adapter("houlsby", 4))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AdapterLinear):
                nn.init.normal_(module.adapter.up.weight)
    block, x = model.blocks[0].eval(), torch.randn(2, 5, 32)

    def adapter(linear: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return y + linear.adapter.up(F.relu(linear.adapter.down(y)))

    plain = tiny(n_layers=1).blocks[0].eval()  # the same draws, without adapters
    after_attention = x + adapter(block.attn.out, plain.attn(plain.attn_norm(x)))
    expected = after_attention + adapter(block.mlp.down, plain.mlp(plain.mlp_norm(after_attention)))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("factor", "width"), [(16, 2), (5, 6), (32, 1), (1, 32)])
def test_the_width_of_the_bottleneck(factor: int, width: int):
    model = attach(tiny(), Adapter(reduction_factor=factor))
    assert model.blocks[0].mlp.down.adapter.down.weight.shape == (width, 32)


def test_a_factor_above_the_width_is_refused():
    with pytest.raises(UserError, match="--reduction_factor is 33; it must be at most the model's width, 32"):
        attach(tiny(), Adapter(reduction_factor=33))
    with pytest.raises(UserError, match="--reduction_factor is 0; it must be at least 1"):
        Adapter(reduction_factor=0)
    with pytest.raises(UserError, match="--adapter_placement is 'after'; choose pfeiffer, houlsby"):
        Adapter("after")


# Published counts: trained parameters with 2 labels


HEAD = 768 * 768 + 768 + 768 * 2 + 2
COUNTS = [
    ("roberta-base", BitFit(train_head=False), 102_914),  # printed in the RoBERTa notes
    ("roberta-base", BitFit(), 102_914 - 768 - 2 + HEAD),
    ("roberta-base", LoRA(rank=8, targets="attn.q,attn.v", train_head=False), 294_912),
    ("roberta-base", LoRA(rank=8, targets="attn.q,attn.v"), 887_042),
    ("roberta-base", Adapter(train_head=False), 12 * (768 * 48 * 2 + 48 + 768)),
    ("roberta-base", Adapter(train_head=False), 894_528),
    ("roberta-base", Adapter("houlsby"), 2 * 894_528 + HEAD),
    ("distilbert-base-uncased", LoRA(rank=8, targets="attn.q,attn.v"), 739_586),
    ("distilbert-base-uncased", Bypass("4", train_head=False), 590_592),
    ("distilbert-base-uncased", Bypass("3,4,5", train_head=False), 3 * 590_592),
    ("distilbert-base-uncased", Bypass("2,3,4,5", depth=2), 8 * 590_592 + HEAD),
    ("distilbert-base-uncased", Bypass("attn.2,attn.3,attn.4", into="dense", train_head=False), 3 * 590_592),
]


@pytest.mark.parametrize(("name", "method", "expected"), COUNTS)
def test_published_counts(name: str, method, expected: int):
    with torch.device("meta"):  # shapes without memory
        model = attach(from_pretrained(name, "classifier", 2, random_weights=True), method)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
