"""Products by oneDNN: equal to torch's own, taken where they are faster, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.products import ByOneDNN, fast_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SHAPES = [(1, 512), (700, 512), (512,), (3, 5, 512), (2, 1, 512)]


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """The number of rows of each product that oneDNN computes."""
    rows, linear = [], ByOneDNN.linear
    monkeypatch.setattr(ByOneDNN, "linear", lambda self, x, *more: rows.append(x.numel() // 512) or linear(self, x, *more))
    return rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep_ordered", [True, False])
def test_products_are_those_of_torch(bias, keep_ordered, taken):
    layer, mode = nn.Linear(512, 640, bias=bias), ByOneDNN(keep_ordered)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            with mode:
                found = layer(x)
            torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)
        x = torch.randn(4, 6, 512)[:, -1:]  # not contiguous
        with mode:
            found = layer(x)
        torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)
    assert taken == [1, 700, 1, 15, 2, 4] and len(mode.ordered) == keep_ordered


def test_what_is_differentiated_small_or_in_other_types_is_left_to_torch(taken):
    layer, x = nn.Linear(512, 640), torch.randn(4, 512)
    with ByOneDNN():
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            layer(x[:0])
            nn.Linear(512, 8)(x)
            layer.double()(x.double())
            F.linear(x, weight=torch.ones(640, 512))  # by name
            with torch.autocast("cpu", torch.bfloat16):
                layer.float()(x)
            assert taken == []
            layer(x)
    assert taken == [4]


def test_a_copy_in_another_order_is_made_of_parameters_alone_and_once():
    mode = ByOneDNN(keep_ordered=True)
    layer, x = nn.Linear(512, 640), torch.randn(4, 512)
    with torch.no_grad(), mode:
        for _ in range(3):
            layer(x)
            F.linear(x, layer.weight * 2)  # as a quantized weight: another tensor each time
    assert [weight is layer.weight for weight, _ in mode.ordered.values()] == [True]


def test_processors_without_long_vectors_keep_torchs_products(monkeypatch):
    for capability, is_taken in (("AVX2", False), ("DEFAULT", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert isinstance(fast_products(), ByOneDNN) == is_taken
        with fast_products():
            pass
