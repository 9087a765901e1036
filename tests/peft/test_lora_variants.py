"""rsLoRA, DoRA, PiSSA, LoRA+ and IA3: their formulas, and the reference library's own layers."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from config import Run
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from peft import IA3, DoRA, HiRA, LoRA, VeRA, attach
from peft.dora import DoRALinear
from peft.ia3 import IA3Linear
from peft.lora import LoRALinear
from peft.targets import AdaptedLinear
from tests.helpers.methods import tiny_gpt2
from training.optimizer import make_optimizer

LARGE = torch.float64


def tiny() -> GPT2:
    torch.manual_seed(1)
    return GPT2(GPT2Config(50, 16, 32, 4, 2), ClassifierHead(32, 2))


def drawn(layer: nn.Module) -> nn.Module:
    """In float64, with everything that it adds drawn, so that it matters."""
    torch.manual_seed(4)
    for name, parameter in layer.named_parameters():
        if name not in ("weight", "bias"):
            nn.init.normal_(parameter, mean=1.0 if name in ("magnitude", "ia3") else 0.0, std=0.3)
    return layer.to(LARGE)


@pytest.mark.parametrize("bias", [True, False])
def test_dora_is_magnitude_times_direction(bias):
    base = nn.Linear(7, 5, bias=bias).to(LARGE)
    x = torch.randn(4, 2, 7, dtype=LARGE)
    before = base(x)
    layer = DoRALinear(base, DoRA(rank=3, alpha=6))
    torch.testing.assert_close(layer.to(LARGE)(x), before)  # it starts as the layer that it replaces
    drawn(layer)
    v = layer.weight + 2.0 * layer.lora_b @ layer.lora_a
    expected = x @ (layer.magnitude[:, None] * v / v.norm(dim=1, keepdim=True)).T + (layer.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected)
    assert not torch.allclose(expected, before, atol=0.1)
    plain = layer.merged()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), expected)


def test_no_gradient_of_dora_goes_through_the_length():
    layer = drawn(DoRALinear(nn.Linear(7, 5), DoRA(rank=3, alpha=3)))
    x = torch.randn(4, 7, dtype=LARGE)
    layer(x).square().sum().backward()
    found = layer.lora_a.grad.clone()
    v = layer.weight + layer.lora_b @ layer.lora_a
    layer.lora_a.grad = None
    fixed = layer.magnitude.detach() / v.detach().norm(dim=1)
    (x @ (fixed[:, None] * v).T + layer.bias).square().sum().backward()
    torch.testing.assert_close(found, layer.lora_a.grad)


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_ia3_scales_what_comes_out_or_goes_in(of_input, bias):
    base = nn.Linear(7, 5, bias=bias)
    layer = drawn(IA3Linear(base, of_input))
    x = torch.randn(4, 2, 7, dtype=LARGE)
    weight, bias = layer.weight.clone(), 0 if layer.bias is None else layer.bias.clone()
    expected = (x * layer.ia3) @ weight.T + bias if of_input else (x @ weight.T + bias) * layer.ia3
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)


def test_ia3_is_where_the_paper_has_it():
    model = attach(tiny(), IA3(layers="1"))
    found = {path: module.of_input for path, module in model.named_modules() if isinstance(module, IA3Linear)}
    assert found == {"blocks.1.attn.k": False, "blocks.1.attn.v": False, "blocks.1.mlp.down": True}
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name)
    assert trained == 32 + 32 + 4 * 32


def test_pissa_starts_from_the_principal_parts_and_changes_nothing():
    base = nn.Linear(9, 6).to(LARGE)
    weight = base.weight.detach().clone()
    layer = LoRALinear(base, LoRA(rank=2, alpha=6, init="pissa"))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    torch.testing.assert_close(layer.scale * layer.lora_b @ layer.lora_a, best)
    torch.testing.assert_close(layer.weight, weight - best)
    torch.testing.assert_close(layer.merged().weight, weight)


def test_rslora_divides_by_the_root_of_the_rank():
    assert LoRA(rank=16, alpha=8, scaling="alpha/sqrt(r)").scale == 2.0


def test_lora_plus_is_a_learning_rate_of_its_own_for_b():
    def groups(ratio: float) -> dict[float, set[str]]:
        model = attach(tiny(), LoRA(rank=2, plus_ratio=ratio))
        names = {parameter: name for name, parameter in model.named_parameters()}
        trained = [parameter for parameter in names if parameter.requires_grad]
        found = make_optimizer(model, Run(learning_rate=0.1, weight_decay=0.0)).param_groups
        assert sum(len(group["params"]) for group in found) == len(trained)
        return {group["factor"]: {names[parameter].split(".")[-1] for parameter in group["params"]} for group in found}

    assert groups(16) == {1.0: {"lora_a", "weight", "bias"}, 16: {"lora_b"}}
    assert groups(1.0) == {1.0: {"lora_a", "lora_b", "weight", "bias"}}


REFERENCE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from torch import nn
from peft import IA3Config, LoraConfig, get_peft_model
folder, kinds = sys.argv[1], sys.argv[2:]
for kind in kinds:
    given = load_file(f"{folder}/{kind} given.safetensors")
    model = nn.Sequential(nn.Linear(12, 10).to(given["weight"].dtype))
    model.load_state_dict({"0.weight": given["weight"], "0.bias": given["bias"]})
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["0"]}
    config = {
        "dora": lambda: LoraConfig(**lora, use_dora=True),
        "rslora": lambda: LoraConfig(**lora, use_rslora=True),
        "pissa": lambda: LoraConfig(**lora, init_lora_weights="pissa"),
        "ia3 outputs": lambda: IA3Config(target_modules=["0"], feedforward_modules=[]),
        "ia3 inputs": lambda: IA3Config(target_modules=["0"], feedforward_modules=["0"]),
    }[kind]()
    model = get_peft_model(model, config)
    names = {"lora_a": "lora_A", "lora_b": "lora_B", "magnitude": "magnitude", "ia3": "ia3_l"}
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for ours, theirs in names.items():
        if ours in given:
            (parameter,) = (one for name, one in own.items() if theirs in name)
            parameter.data = given[ours].reshape(parameter.shape)
    x = given["x"].clone().requires_grad_()
    y = model.to(x.dtype)(x)
    y.square().sum().backward()
    found = {"y": y.detach(), "x.grad": x.grad}
    for ours, theirs in names.items():
        for name, parameter in own.items():
            if theirs in name:
                found[f"{ours}.grad"] = parameter.grad.reshape(given[ours].shape if ours in given else parameter.shape)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{folder}/{kind} found.safetensors")
"""


KINDS = ("dora", "rslora", "pissa", "ia3 outputs", "ia3 inputs")


def example_of(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A layer of ours, and what the library needs to make the same one."""
    torch.manual_seed(7)
    base = nn.Linear(12, 10).to(torch.float32 if kind == "pissa" else LARGE)  # the library draws PiSSA in float32 only
    given = {"weight": base.weight.detach().clone(), "bias": base.bias.detach().clone()}
    given["x"] = torch.randn(5, 12, dtype=base.weight.dtype)
    if kind == "pissa":
        return LoRALinear(base, LoRA(rank=4, alpha=8, init="pissa")), given  # both sides take A and B from the weight
    if kind.startswith("ia3"):
        layer = IA3Linear(base, kind == "ia3 inputs")
    elif kind == "dora":
        layer = DoRALinear(base, DoRA(rank=4, alpha=8))
    else:
        layer = LoRALinear(base, LoRA(rank=4, alpha=8, scaling="alpha/sqrt(r)"))
    return layer, given | {name: one.detach() for name, one in added_by(drawn(layer)).items()}


def added_by(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in layer.named_parameters() if name not in ("weight", "bias")}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What the library's layers give, by kind. One process for all: importing the library takes its time."""
    if not list(metadata.distributions(name="peft")):
        pytest.skip("the library peft isn't installed")
    folder = tmp_path_factory.mktemp("theirs")
    for kind in KINDS:
        given = {name: tensor.contiguous() for name, tensor in example_of(kind)[1].items()}
        save_file(given, folder / f"{kind} given.safetensors")
    words = [sys.executable, "-c", REFERENCE, str(folder), *KINDS]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return {kind: load_file(folder / f"{kind} found.safetensors") for kind in KINDS}


@pytest.mark.not_quick  # the library runs in a process of its own
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_library_computes_the_same(kind, theirs):
    layer, given = example_of(kind)
    close = {"rtol": 1e-4, "atol": 1e-4} if kind == "pissa" else {"rtol": 1e-6, "atol": 1e-6}
    x = given["x"].clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    torch.testing.assert_close(y.detach(), theirs[kind]["y"], **close)
    torch.testing.assert_close(x.grad, theirs[kind]["x.grad"], **close)
    for name, parameter in added_by(layer).items():
        found, expected = parameter.grad, theirs[kind][f"{name}.grad"]
        if kind == "pissa":  # up to the signs of the singular vectors
            found, expected = found.norm(), expected.norm()
        torch.testing.assert_close(found, expected, **close)


ADAPTED = (LoRA(rank=2), DoRA(rank=2), IA3(), VeRA(rank=5), HiRA(rank=2))


@pytest.mark.parametrize("method", ADAPTED, ids=[type(one).__name__ for one in ADAPTED])
def test_an_adapted_layer_returns_what_a_plain_one_returns_under_autocast(method):
    """bf16, so that what follows a layer costs no more than without the method."""
    model = attach(tiny_gpt2(), method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for path, layer in model.named_modules():
            if isinstance(layer, AdaptedLinear):
                assert layer(torch.randn(2, 3, layer.in_features)).dtype == torch.bfloat16, path
