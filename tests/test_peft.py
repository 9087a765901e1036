"""What every method promises: attach changes nothing but what trains; export, restore and merge keep the function."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import peft
from data.spam import RECIPE
from errors import UserError
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from peft import METHODS, Freeze, LoRA, attach, export, merge, method, method_of, restore
from run import Run, resolve

CONFIG = GPT2Config(vocab_size=50, context_length=16, dim=32, n_heads=4, n_layers=3)
IDS = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(5))  # [B, T]
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
ADDED = {
    "lora on a few": LoRA(rank=4, targets="attn.q,2.mlp"),
    "lora with scaling alpha, drawn wide": LoRA(rank=4, alpha=3, scaling="alpha", init="wide"),
    "lora without the head": LoRA(rank=4, targets="all", train_head=False),
}
# What --trainable_layers accepts, each with the settings of the spam task, and some settings beyond those.
ALL = {name: method_of(resolve(Run(trainable_layers=name), RECIPE)) for name in METHODS} | ADDED
every_method = pytest.mark.parametrize("chosen", ALL.values(), ids=ALL.keys())


def tiny(seed: int = 1) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(CONFIG, ClassifierHead(CONFIG.dim, 2))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    """Without weight decay, which would move a parameter that gets no gradient."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS), LABELS).backward()
        optimizer.step()
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IDS)


@every_method
def test_attach_changes_no_logit(chosen):
    model = tiny()
    before = logits(model)
    assert attach(model, chosen) is model
    assert torch.equal(logits(model), before)


@every_method
def test_only_what_was_chosen_moves_and_all_of_it_does(chosen):
    model = attach(tiny(), chosen)
    before, names = snapshot(model), trained_names(model)
    train(model)  # LoRA's A has no gradient until B has moved, so it takes more than one step
    after = snapshot(model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == names
    assert names  # the two sets aren't empty together
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in names), name


@every_method
def test_an_evaluation_in_between_changes_nothing(chosen):
    straight, interrupted = attach(tiny(), chosen), attach(tiny(), chosen)
    train(interrupted, steps=1)
    before, names = snapshot(interrupted), trained_names(interrupted)
    logits(interrupted)
    after = snapshot(interrupted)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert trained_names(interrupted) == names
    train(straight, steps=1)
    train(straight)
    train(interrupted)
    assert torch.equal(logits(straight), logits(interrupted))


@every_method
def test_what_is_exported_can_be_restored(chosen):
    model = train(attach(tiny(), chosen))
    tensors = export(model)
    assert tensors.keys() == trained_names(model)
    fresh = tiny()
    torch.manual_seed(77)  # other draws than the model had
    attach(fresh, chosen)
    expected = logits(model)
    assert not torch.allclose(logits(fresh), expected, atol=1e-3)  # so there is something to restore
    assert restore(fresh, tensors) is fresh
    assert torch.equal(logits(fresh), expected)


@every_method
def test_exported_tensors_are_copies(chosen):
    model = train(attach(tiny(), chosen))
    tensors = export(model)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    train(model)
    assert all(torch.equal(tensors[name], kept[name]) and not tensors[name].requires_grad for name in kept)


@every_method
def test_merge_leaves_plain_layers_that_compute_the_same(chosen):
    base, model = tiny(), train(attach(tiny(), chosen))
    expected = logits(model)
    assert not torch.allclose(expected, logits(base), atol=1e-3)  # so there is something to merge
    assert merge(model) is model
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
    attach(model, chosen)  # a merged model is a base like any other
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert trained_names(model) == trained_names(attach(base, chosen))


@every_method
def test_the_base_keeps_its_names_and_tensors(chosen):
    model = tiny()
    before = dict(model.named_parameters())
    after = dict(attach(model, chosen).named_parameters())
    assert before.keys() <= after.keys()
    assert "blocks.0.attn.q.weight" in after
    assert all(after[name] is before[name] for name in before)


# Which parameters each choice trains

LINEARS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
HEAD = {"head.classifier.weight", "head.classifier.bias"}
FINAL_NORM = {"final_norm.weight", "final_norm.bias"}


def block(i: int) -> set[str]:
    parts = (*LINEARS, "attn_norm", "mlp_norm")
    return {f"blocks.{i}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


FROZEN_BUT = {
    "last_layer": HEAD,
    "last_block": HEAD | FINAL_NORM | block(2),
    "last_two_blocks": HEAD | FINAL_NORM | block(2) | block(1),
    "all": HEAD | FINAL_NORM | block(2) | block(1) | block(0) | {"token_embedding.weight", "position_embedding.weight"},
}


@pytest.mark.parametrize("name", FROZEN_BUT)
def test_what_each_freeze_variant_trains(name: str):
    assert trained_names(attach(tiny(), Freeze(name))) == FROZEN_BUT[name]
    run = resolve(Run(trainable_layers=name), RECIPE)
    assert method_of(run) == Freeze(name)


@pytest.mark.parametrize("name", ["last_block", "last_two_blocks", "all"])
def test_the_head_can_stay_frozen(name: str):
    run = resolve(Run(trainable_layers=name, train_head="no"), RECIPE)
    assert trained_names(attach(tiny(), method_of(run))) == FROZEN_BUT[name] - HEAD


def test_a_method_that_leaves_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="leaves nothing to train"):
        attach(tiny(), Freeze("last_layer", train_head=False))


def test_what_lora_trains():
    added = {f"blocks.{i}.{layer}.lora_{ab}" for i in range(3) for layer in ("attn.q", "attn.v") for ab in "ab"}
    assert trained_names(attach(tiny(), LoRA())) == added | HEAD
    assert trained_names(attach(tiny(), LoRA(train_head=False))) == added
    everywhere = {f"blocks.{i}.{layer}.lora_{ab}" for i in range(3) for layer in LINEARS for ab in "ab"}
    everywhere |= {"head.classifier.lora_a", "head.classifier.lora_b"}
    assert trained_names(attach(tiny(), LoRA(targets="all"))) == everywhere | HEAD
    assert trained_names(attach(tiny(), LoRA(targets="all", train_head=False))) == everywhere


@every_method
def test_attach_forgets_what_trained_before(chosen):
    model = tiny()
    model.requires_grad_(False)
    after_frozen = trained_names(attach(model, chosen))
    assert trained_names(attach(tiny(), chosen)) == after_frozen


# Tensors that don't fit


@pytest.mark.parametrize("chosen", [Freeze("last_block"), LoRA(rank=4)], ids=["freeze", "lora"])
def test_tensors_that_do_not_fit_are_refused(chosen):
    good = export(train(attach(tiny(), chosen)))
    name = sorted(good)[0]
    shape = list(good[name].shape)
    without = {key: tensor for key, tensor in good.items() if key != name}
    cases = {
        f"missing {name}": without,
        "unknown blocks.0.attn.q.weight": good
        | {"blocks.0.attn.q.weight": torch.zeros(32, 32)},  # it exists, but is frozen
        f"{name} has shape [1, 2, 3], expected {shape}": good | {name: torch.zeros(1, 2, 3)},
        "unknown other; ": without | {"other": good[name]} | {"more": good[name]},
    }
    for complaint, tensors in cases.items():
        model = attach(tiny(), chosen)
        before = snapshot(model)
        with pytest.raises(UserError) as caught:
            restore(model, tensors)
        assert complaint in str(caught.value) and "\n" not in str(caught.value)
        after = snapshot(model)
        assert all(torch.equal(after[key], before[key]) for key in before)  # not half restored


# Names


@pytest.mark.parametrize("name", ["loar", None])
def test_an_unknown_method_lists_the_choices(name: str | None):
    with pytest.raises(UserError) as caught:
        method_of(Run(trainable_layers=name))
    assert repr(name) in str(caught.value)
    for choice in ("last_layer", "last_block", "last_two_blocks", "all", "lora", "lora_alternative"):
        assert choice in str(caught.value)


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peft, "METHODS", dict(METHODS))  # what is registered here is gone after the test

    @method("mine", "mine_too")
    @dataclass(frozen=True)
    class Norms:
        name: str
        train_head: bool

        @classmethod
        def from_run(cls, name: str, run: Run) -> "Norms":
            return cls(name, run.train_head == "yes")

        def attach(self, model: nn.Module) -> None:
            model.final_norm.requires_grad_(True)
            peft.train_head(model, self.train_head)

    found = method_of(Run(trainable_layers="mine_too", train_head="no"))
    assert found == Norms("mine_too", False)
    assert trained_names(attach(tiny(), found)) == FINAL_NORM
    assert trained_names(attach(tiny(), method_of(Run(trainable_layers="mine", train_head="yes")))) == FINAL_NORM | HEAD
    with pytest.raises(UserError, match="mine, mine_too"):
        method_of(Run(trainable_layers="yours"))
