"""LoRA itself: the formula, its two ways to compute it, scalings, initialisations, dropout, targets, published counts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from config import Run, resolve
from data.spam import SPAM
from model.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from model.heads import ClassifierHead, LanguageModelHead
from peft import LoRA, attach, method_of
from peft.lora import LoRALinear, LoRAProduct, draw_a
from peft.targets import find_sites
from utils.errors import UserError

IDS = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(5))  # [B, T]
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def tiny(n_layers: int = 2, dim: int = 32) -> GPT2:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=50, context_length=16, dim=dim, n_heads=4, n_layers=n_layers)
    return GPT2(config, ClassifierHead(dim, 2))


def with_lora(method: LoRA, seed: int = 2) -> GPT2:
    """A model whose LoRA matters: B drawn too, instead of zero."""
    model = tiny()
    torch.manual_seed(seed)
    attach(model, method)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b, std=0.1)
    return model


# What it computes


@pytest.mark.parametrize("merged_forward", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_the_formula(merged_forward: bool, bias: bool):
    base = nn.Linear(7, 5, bias=bias).double()
    layer = LoRALinear(base, LoRA(rank=3, alpha=6, scaling="alpha/r", merged_forward=merged_forward)).double()
    assert layer.lora_a.shape == (3, 7) and layer.lora_b.shape == (5, 3)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    expected = base(x) + 2.0 * torch.einsum("bti,ri,or->bto", x, layer.lora_a, layer.lora_b)
    torch.testing.assert_close(layer(x), expected)
    plain = layer.merged()
    assert type(plain) is nn.Linear and (plain.bias is None) != bias
    torch.testing.assert_close(plain(x), expected)


def test_lora_alternative_computes_the_same_with_the_same_gradients():
    models = [with_lora(LoRA(rank=4, targets="all", merged_forward=merged)) for merged in (False, True)]
    found = [model(IDS) for model in models]
    assert not torch.allclose(found[0], tiny()(IDS), atol=1e-2)  # the product takes part
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    for logits in found:
        F.cross_entropy(logits, LABELS).backward()
    pairs = zip(models[0].named_parameters(), models[1].named_parameters(), strict=True)
    compared = 0
    for (name, left), (other, right) in pairs:
        assert name == other
        if name.endswith(("lora_a", "lora_b")):
            assert left.grad.abs().max() > 1e-7, name
            torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-4)
            compared += 1
    assert compared == 2 * (2 * 6 + 1)


@pytest.mark.parametrize(("scaling", "scale"), [("alpha", 24.0), ("alpha/r", 3.0)])
def test_the_scalings(scaling: str, scale: float):
    method = LoRA(rank=8, alpha=24, scaling=scaling)
    assert method.scale == scale
    layer = LoRALinear(nn.Linear(7, 5), method)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 7)
    added = layer(x) - F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(added, scale * (x @ layer.lora_a.T @ layer.lora_b.T), atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only_and_on_the_product_only():
    dropped, plain = (with_lora(LoRA(rank=4, targets="attn.v", dropout=p)) for p in (0.5, 0.0))
    with torch.no_grad():
        expected = plain.eval()(IDS)
        assert torch.equal(dropped.eval()(IDS), expected)
        dropped.train()
        assert not torch.allclose(dropped(IDS), dropped(IDS))
        for module in dropped.modules():
            if isinstance(module, LoRALinear):
                module.lora_b.zero_()
        assert torch.equal(dropped(IDS), tiny()(IDS))  # nothing is left that dropout could touch


def test_dropout_keeps_the_mean():
    layer = LoRALinear(nn.Linear(7, 5), LoRA(rank=3, dropout=0.25))
    nn.init.normal_(layer.lora_b)
    x = torch.randn(7)
    with torch.no_grad():
        expected = layer.eval()(x)
        drawn = layer.train()(x.expand(40_000, 7))
    standard_error = drawn.std(dim=0) / 200
    assert ((drawn.mean(dim=0) - expected).abs() < 5 * standard_error).all()


# How it starts


@pytest.mark.parametrize(("init", "bound"), [("wide", 1 / math.sqrt(9)), ("kaiming", 1 / math.sqrt(300))])
def test_the_inits(init: str, bound: float):
    layer = LoRALinear(nn.Linear(300, 40), LoRA(rank=9, init=init))
    assert 0.99 * bound < layer.lora_a.max() <= bound
    assert -bound <= layer.lora_a.min() < -0.99 * bound
    assert layer.lora_a.mean().abs() < 0.05 * bound
    assert not layer.lora_b.any()


def test_the_draws_are_those_of_the_sources():
    torch.manual_seed(4)
    published = nn.init.kaiming_uniform_(torch.empty(30, 6), a=math.sqrt(5)).T  # the spam script holds A as (in, r)
    torch.manual_seed(4)
    assert torch.equal(draw_a(30, 6, "wide"), published)
    torch.manual_seed(4)
    paper = nn.init.kaiming_uniform_(torch.empty(6, 30), a=math.sqrt(5))  # the authors' code
    torch.manual_seed(4)
    assert torch.equal(draw_a(30, 6, "kaiming"), paper)


def test_attach_draws_from_the_global_generator_in_the_models_order():
    model = tiny()
    torch.manual_seed(9)
    attach(model, LoRA(rank=4, targets="all"))
    torch.manual_seed(9)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert list(layers)[-1] == "head.classifier"  # drawn last, as published
    for path, layer in layers.items():
        assert torch.equal(layer.lora_a, draw_a(layer.in_features, 4, "kaiming")), path


# What it is attached to


def sites(targets: str) -> list[str]:
    return list(find_sites(tiny(n_layers=13, dim=8), targets))


def test_targets_match_whole_components():
    assert sites("attn.q,attn.v") == [f"blocks.{i}.attn.{name}" for i in range(13) for name in "qv"]
    assert sites(" attn.v , attn.q ") == sites("attn.q,attn.v")  # in the model's order, whatever theirs
    assert sites("2.attn.q") == ["blocks.2.attn.q"]  # not that of block 12
    assert sites("blocks.2.attn.q") == ["blocks.2.attn.q"]
    assert sites("1.mlp") == ["blocks.1.mlp.up", "blocks.1.mlp.down"]
    assert {path.split(".")[1] for path in sites("1")} == {"1"}  # not 10, 11, 12
    assert len(sites("1")) == 6
    assert sites("classifier") == sites("head") == ["head.classifier"]
    assert sites("11.mlp.up,head") == ["blocks.11.mlp.up", "head.classifier"]


def test_all_means_every_linear_layer_and_the_head():
    assert len(sites("all")) == 13 * 6 + 1
    assert sites("all")[-1] == "head.classifier"
    language_model = tiny()
    language_model.head = LanguageModelHead(language_model.token_embedding)  # tied to the embedding: no Linear layer
    assert len(find_sites(language_model, "all")) == 2 * 6


@pytest.mark.parametrize(
    "targets", ["attn.qq", "query", "attn.q,nope", "q.attn", "tn.q", "attn.q.weight", "attn_norm", "", "attn.q,"]
)
def test_a_target_that_matches_nothing_lists_the_choices(targets: str):
    with pytest.raises(UserError) as caught:
        attach(tiny(n_layers=13, dim=8), LoRA(targets=targets))
    message = str(caught.value)
    culprit = targets.split(",")[-1]
    assert f"the target {culprit!r} matches no Linear layer" in message
    choices = "all, attn.k, attn.out, attn.q, attn.v, head.classifier, mlp.down, mlp.up"
    assert message.endswith(f"choose {choices}")


def test_every_listed_choice_is_one():
    with pytest.raises(UserError) as caught:
        sites("nope")
    for choice in str(caught.value).split("choose ")[1].split(", "):
        assert sites(choice)


# The settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, ["--lora_rank is 0", "at least 1"]),
        ({"rank": -3}, ["--lora_rank is -3"]),
        ({"dropout": 1.0}, ["--lora_dropout is 1.0", "below 1"]),
        ({"dropout": -0.1}, ["--lora_dropout is -0.1", "at least 0"]),
        ({"dropout": float("nan")}, ["--lora_dropout is nan"]),
        ({"scaling": "r"}, ["--lora_scaling is 'r'", "choose alpha, alpha/r"]),
        ({"init": "zero"}, ["--lora_init is 'zero'", "choose kaiming, wide"]),
        ({"merged_forward": True, "dropout": 0.1}, ["lora_alternative", "--lora_dropout 0.1"]),
    ],
)
def test_settings_that_make_no_sense(settings: dict, words: list[str]):
    with pytest.raises(UserError) as caught:
        LoRA(**settings)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"lora_rank": 3}, {"rank": 3}),
        ({"lora_alpha": 5.5}, {"alpha": 5.5}),
        ({"lora_dropout": 0.25}, {"dropout": 0.25}),
        ({"lora_scaling": "alpha/r"}, {"scaling": "alpha/r"}),
        ({"lora_init": "kaiming"}, {"init": "kaiming"}),
        ({"lora_target": "attn.k"}, {"targets": "attn.k"}),
        ({"layers": "last3"}, {"layers": "last3"}),
        ({"train_head": "no"}, {"train_head": False}),
        ({"trainable_layers": "lora_alternative"}, {"merged_forward": True}),
    ],
)
def test_each_flag_arrives(said: dict, meant: dict):
    published = LoRA(rank=8, alpha=8.0, dropout=0.0, scaling="alpha", init="wide", targets="all")
    assert method_of(resolve(Run(trainable_layers="lora"), SPAM.recipe)) == published
    found = method_of(resolve(Run(**{"trainable_layers": "lora", **said}), SPAM.recipe))
    assert found == replace(published, **meant) and found != published


def test_row_11_trains_as_many_parameters_as_published():
    config = GPT2_SIZES["gpt2-small"]
    with torch.device("meta"):  # shapes without memory
        model = GPT2(config, ClassifierHead(config.dim, 2))
        run = Run(trainable_layers="lora", lora_rank=16, lora_alpha=16)
        method = method_of(resolve(run, SPAM.recipe_for(config)))
        attach(model, method)
    assert method == LoRA(rank=16, alpha=16, scaling="alpha", init="wide", targets="all") and method.scale == 16
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    added = {name: n for name, n in trained.items() if name.endswith(("lora_a", "lora_b"))}
    assert sum(added.values()) == 2_666_528
    assert sum(trained.values()) - sum(added.values()) == 1_538
    assert trained.keys() - added.keys() == {"head.classifier.weight", "head.classifier.bias"}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_fused_form_computes_the_formula(dropout: float):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 5), LoRA(rank=3, alpha=2, dropout=dropout))
    nn.init.normal_(layer.lora_b)
    for x in (torch.randn(2, 4, 6), torch.randn(4, 6), torch.randn(6)):
        torch.manual_seed(1)
        expected = layer.formula(x)
        torch.manual_seed(1)
        torch.testing.assert_close(layer(x), expected)
    layer.scale = -layer.scale
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_the_fused_forms_gradients_are_those_of_the_formula(drops: bool, trains: bool):
    torch.manual_seed(0)
    n, n_in, n_out, rank = 4, 6, 5, 3
    x, z = (torch.randn(n, n_in, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=trains) for s in ((n_out, n_in), (n_out,)))
    a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((rank, n_in), (n_out, rank)))
    assert torch.autograd.gradcheck(LoRAProduct.apply, (x, z if drops else None, weight, bias, a, b, 0.7))


def test_under_autocast_the_fused_form_has_the_formulas_gradients():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(48, 40).requires_grad_(False), LoRA(rank=3, alpha=2))
    nn.init.normal_(layer.lora_b)
    found = []
    for function in (layer.formula, layer.forward):
        x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3)).requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x)
        y.float().square().sum().backward()
        found.append([y.float(), x.grad, layer.lora_a.grad, layer.lora_b.grad])
    for fused, expected in zip(found[1], found[0], strict=True):
        assert fused is not None and fused.dtype == torch.float32
        assert (fused - expected).norm() < 2e-2 * expected.norm()
