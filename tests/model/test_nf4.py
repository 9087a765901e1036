"""NF4 beside the figures of the library bitsandbytes, and beside the library itself where it is installed."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from model.nf4 import BLOCK, LEVELS, SCALE_LEVELS, SCALES_BLOCK, NF4Weight
from model.quantized import multiply


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden/nf4/golden_nf4.json").read_text())


def kept(weight):
    return NF4Weight(weight.shape).copy_(weight)


def test_the_golden_tensor(golden):
    x = [math.sin(0.7 * i) * math.exp(-(i % 97) / 40) * 0.1 for i in range(1280)]
    weight = kept(torch.tensor(x, dtype=torch.float64).float().view(4, 320))
    assert bytes(weight.codes.tolist()).hex() == golden["codes_hex"]
    assert weight.scales.tolist() == golden["absmax8"]
    assert weight.scale_maxima.tolist() == pytest.approx(golden["absmax2"], rel=1e-6)
    assert weight.scale_mean.item() == pytest.approx(golden["offset"], rel=1e-6)
    numbers = weight.dequantize(torch.float32).flatten()
    assert numbers[:16].tolist() == pytest.approx(golden["dequantized_first16"], abs=1e-7)
    error = (numbers - torch.tensor(x)).abs().mean().item()
    assert error == pytest.approx(golden["mean_abs_error"]["double"], rel=1e-5)
    assert LEVELS.tolist() == golden["levels"]
    for number, level in golden["dynamic_levels_some"].items():
        assert SCALE_LEVELS[int(number)].item() == pytest.approx(level, abs=1e-9)


def test_levels_are_quantiles_of_the_normal_distribution():
    """Where the paper says they lie: at equal distances of probability, apart for each side of zero."""
    outer = 1 - (1 / 32 + 1 / 30) / 2

    def quantiles(n):
        return torch.special.ndtri(torch.linspace(outer, 0.5, n, dtype=torch.float64)[:-1])

    expected = torch.cat([-quantiles(8), torch.zeros(1, dtype=torch.float64), quantiles(9)]).sort().values
    assert torch.allclose(LEVELS.double(), expected / expected.max(), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 64), (5, 13), (1, 1), (40, 96), (130, 257)])
def test_each_weight_goes_to_its_nearest_level(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = kept(weight)
    flat = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    parts = flat / flat.abs().amax(dim=1, keepdim=True)
    nearest = (parts[..., None] - LEVELS).abs().argmin(dim=-1)
    codes = torch.stack([found.codes >> 4, found.codes & 15], dim=1).view(-1, BLOCK)
    assert torch.equal(codes.long(), nearest)
    # the magnitudes are off by half the distance of two levels at most, which are 0.0141 of the largest deviation apart
    maxima = flat.abs().amax(dim=1)
    assert ((found.maxima() - maxima).abs() <= 0.0071 * (maxima - maxima.mean()).abs().max() + 1e-7).all()
    assert found.dequantize(torch.float32).shape == shape


def test_bits_of_a_weight():
    weight = NF4Weight(torch.Size([1024, 1024]))
    bits = 8 * sum(buffer.nbytes for buffer in weight.buffers()) / weight.numel()
    assert bits == pytest.approx(4 + 8 / BLOCK + 32 / (BLOCK * SCALES_BLOCK), abs=1e-4)


def test_beside_the_library():
    """Codes equal. A magnitude's level may be the neighbouring one where the library's CPU kernel rounds otherwise."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="the comparison needs bitsandbytes")
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(7)) * 0.03
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    found = kept(weight)
    assert torch.equal(found.codes, codes.flatten())
    distance = (found.scales.int() - state.absmax.int()).abs()
    assert distance.max() <= 1 and (distance > 0).sum() <= len(distance) / 200
    same = (distance == 0).repeat_interleave(BLOCK).view(weight.shape)
    theirs = functional.dequantize_4bit(codes, state)
    assert (found.dequantize(torch.float32) - theirs)[same].abs().max() < 1e-7


def test_a_product_and_its_gradient_beside_the_library():
    modules = pytest.importorskip("bitsandbytes.nn", reason="the comparison needs bitsandbytes")
    torch.manual_seed(3)
    weight, bias = torch.randn(96, 128) * 0.05, torch.randn(96)
    layer = modules.Linear4bit(128, 96, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = modules.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer.bias.data = bias.clone()
    layer = layer.to("cpu")
    x = torch.randn(7, 128)
    outputs, gradients = [], []
    for product in (layer, lambda x: multiply(x, kept(weight), bias)):
        given = x.clone().requires_grad_()
        y = product(given)
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append(given.grad)
    assert (outputs[0] - F.linear(x, weight, bias)).abs().max() > 0.1  # what NF4 itself changes
    assert torch.allclose(*outputs, atol=5e-3) and torch.allclose(*gradients, atol=2e-2)  # a neighbouring level at times
