"""What every method promises: attach changes nothing but what trains; export, restore and merge keep the function."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from config import Run, resolve
from data.spam import RECIPE
from model.heads import LanguageModelHead
from model.weights import to_hugging_face
from peft import (
    Adapter,
    BitFit,
    Bypass,
    Freeze,
    FreezeBlocks,
    Joined,
    LoRA,
    attach,
    export,
    merge,
    method_of,
    restore,
)
from tests.helpers.methods import (
    ALL,
    FINAL_NORM,
    FOLDED,
    HEAD,
    NEUTRAL,
    every_method,
    logits,
    snapshot,
    tiny,
    train,
    trained_names,
)
from utils.errors import UserError


@pytest.mark.usefixtures("architecture")
@pytest.mark.parametrize("chosen", NEUTRAL.values(), ids=NEUTRAL.keys())
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


@pytest.mark.parametrize("chosen", FOLDED.values(), ids=FOLDED.keys())
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


KEPT = ALL.keys() - FOLDED.keys()


@pytest.mark.parametrize("name", sorted(KEPT))
def test_merge_keeps_what_cannot_be_folded(name: str):
    model = train(attach(tiny(), ALL[name]))
    expected = logits(model)
    assert not torch.allclose(expected, logits(tiny()), atol=1e-3)
    added = {key for key in model.state_dict() if re.search(r"\.adapter\.|\.branches\.|\.prefix\.|^prompt\.", key)}
    assert added and merge(model) is model
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == tiny().state_dict().keys() | added  # LoRA beside it is folded
    with pytest.raises(UserError, match=r"can't save .* in Hugging Face layout"):
        to_hugging_face(model)
    with pytest.raises(UserError, match="already"):
        attach(model, ALL[name])


@every_method
def test_the_base_keeps_its_names_and_tensors(chosen):
    model = tiny()
    before = dict(model.named_parameters())
    after = dict(attach(model, chosen).named_parameters())
    assert before.keys() <= after.keys()
    assert "blocks.0.attn.q.weight" in after
    rest = {name for name in before if f"{name.removesuffix('weight')}lora_a" in after and "pissa" in str(chosen)}
    assert {name for name in before if after[name] is not before[name]} == rest


# Which parameters each choice trains

LINEARS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")


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
    with pytest.raises(UserError, match="leaves nothing to train: --train_head is no"):
        attach(tiny(), Freeze("last_layer", train_head=False))
    writer = tiny()
    writer.head = LanguageModelHead(writer.token_embedding)
    with pytest.raises(UserError, match="leaves nothing to train: a language model's head is its token embedding"):
        attach(writer, Freeze("last_layer"))


def test_what_lora_trains():
    added = {f"blocks.{i}.{layer}.lora_{ab}" for i in range(3) for layer in ("attn.q", "attn.v") for ab in "ab"}
    assert trained_names(attach(tiny(), LoRA())) == added | HEAD
    assert trained_names(attach(tiny(), LoRA(train_head=False))) == added
    everywhere = {f"blocks.{i}.{layer}.lora_{ab}" for i in range(3) for layer in LINEARS for ab in "ab"}
    everywhere |= {"head.classifier.lora_a", "head.classifier.lora_b"}
    assert trained_names(attach(tiny(), LoRA(targets="all"))) == everywhere | HEAD
    assert trained_names(attach(tiny(), LoRA(targets="all", train_head=False))) == everywhere


def test_bitfit_trains_the_biases_and_nothing_that_only_contains_the_word():
    biases = {f"blocks.{i}.{part}.bias" for i in range(3) for part in (*LINEARS, "attn_norm", "mlp_norm")}
    biases |= {"final_norm.bias", "head.classifier.bias"}
    assert trained_names(attach(tiny(), BitFit(train_head=False))) == biases
    assert trained_names(attach(tiny(), BitFit())) == biases | HEAD
    model = tiny()
    model.bias_free = nn.Linear(2, 2)
    assert trained_names(attach(model, BitFit(train_head=False))) == biases | {"bias_free.bias"}


@pytest.mark.parametrize(
    ("layers", "part", "expected"),
    [
        ("all", "all", block(0) | block(1) | block(2)),
        ("last1", "all", block(2)),
        ("0,2", "attn", {name for name in block(0) | block(2) if ".attn." in name}),
        ("first2", "mlp", {name for name in block(0) | block(1) if ".mlp." in name}),
        ("1-2", "norm", {name for name in block(1) | block(2) if "_norm." in name}),
        ("1", "qkv", {f"blocks.1.attn.{name}.{kind}" for name in "qkv" for kind in ("weight", "bias")}),
        ("1", "attn.out", {"blocks.1.attn.out.weight", "blocks.1.attn.out.bias"}),
        (
            "0",
            "up,attn_norm",
            {f"blocks.0.{name}.{kind}" for name in ("mlp.up", "attn_norm") for kind in ("weight", "bias")},
        ),
        ("2", "ln_1", {"blocks.2.attn_norm.weight", "blocks.2.attn_norm.bias"}),  # the checkpoint's own name
    ],
)
def test_what_freeze_trains(layers: str, part: str, expected: set[str]):
    run = resolve(Run(trainable_layers="freeze", layers=layers, part=part, train_head="no"), RECIPE)
    assert method_of(run) == FreezeBlocks(layers, part, train_head=False)
    assert trained_names(attach(tiny(), method_of(run))) == expected
    assert trained_names(attach(tiny(), FreezeBlocks(layers, part))) == expected | HEAD


def test_a_model_without_a_last_norm_has_top_blocks_too():
    model = tiny()
    del model.final_norm
    assert trained_names(attach(model, Freeze("last_block"))) == HEAD | block(2)


def test_what_adapters_train():
    def added(part: str, *blocks: int) -> set[str]:
        kinds = ("down.weight", "down.bias", "up.weight", "up.bias")
        return {f"blocks.{i}.{part}.adapter.{kind}" for i in blocks for kind in kinds}

    assert trained_names(attach(tiny(), Adapter())) == added("mlp.down", 0, 1, 2) | HEAD
    both = added("mlp.down", 2) | added("attn.out", 2)
    assert trained_names(attach(tiny(), Adapter("houlsby", layers="2", train_head=False))) == both


def test_what_branches_train():
    found = trained_names(attach(tiny(), Bypass("2,attn.1", depth=2, train_head=False)))
    assert found == {
        f"head.branches.{tap}.{i}.{kind}" for tap in ("h_2", "attn_1") for i in "01" for kind in ("weight", "bias")
    }
    assert trained_names(attach(tiny(), Bypass("2,attn.1", depth=2))) == found | HEAD


def test_joined_methods_train_what_each_of_them_trains():
    run = resolve(Run(trainable_layers="lora+bypass+bitfit", train_head="no"), RECIPE)
    parts = [method_of(replace(run, trainable_layers=name)) for name in ("lora", "bypass", "bitfit")]
    assert method_of(run) == Joined(tuple(parts))
    each = [trained_names(attach(tiny(), part)) for part in parts]
    found = trained_names(attach(tiny(), method_of(run)))
    assert found - {name for name in found if ".branches." in name} == (each[0] | each[2])
    assert each[1] <= found
    # In the other order LoRA meets the branches, and leaves them alone.
    backwards = replace(run, trainable_layers="bitfit+bypass+lora")
    assert trained_names(attach(tiny(), method_of(backwards))) == found
    assert sum(".lora_a" in name for name in found) == 3 * 6 + 1


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


# Joined


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LoRA(), LoRA(rank=2)),
        (Adapter(), LoRA(targets="mlp.down")),
        (LoRA(targets="all"), Adapter()),
        (Bypass(), Bypass("1")),
    ],
)
def test_two_methods_for_one_layer_are_refused(first, second):
    with pytest.raises(UserError, match="already"):
        attach(tiny(), Joined((first, second)))
