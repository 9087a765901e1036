"""Prefix tuning against explicit past keys and values, the folding of its network, and generation with it."""

import copy
import re

import pytest
import torch
from torch.nn import functional as F

import peft
from config import Run, resolve
from model.bert import Bert, BertConfig
from model.gpt2 import GPT2, GPT2Config
from peft import PrefixTuning, attach, export, merge, method_of, restore
from tests.helpers.generation import assert_cached_as_plain
from tests.helpers.interrupt import interrupt_run
from tests.helpers.methods import tiny_gpt2, trained_names
from tests.helpers.parity import LAYERS, TOLERANCE, assert_same_on_real_tokens, distance, padding_mask
from training.activation_cache import n_frozen_blocks
from utils.errors import UserError

P = 5
METHODS = {
    "plain": PrefixTuning(P),
    "projected": PrefixTuning(P, projection=True),
    "last2": PrefixTuning(P, layers="last2"),
    "projected last2": PrefixTuning(P, projection=True, layers="last2"),
}


def their_past(model, batch: int):
    """What a prefixed model of ours holds, as their cache of past keys and values. All blocks must have a prefix."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for i, block in enumerate(model.blocks):
        pairs = block.attn.prefix().unflatten(-1, (block.attn.n_heads, -1)).transpose(1, 2)  # [2, H, P, D/H]
        cache.update(*(one.expand(batch, -1, -1, -1) for one in pairs), i)
    return cache


# --- the function


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("side", [None, "right", "left"])
def test_logits_loss_and_gradients_equal_theirs_with_past_keys_and_values(pair, side, projection):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    attach(ours, PrefixTuning(P, projection))
    ids = torch.randint(500, (3, 20))
    mask = torch.ones_like(ids) if side is None else padding_mask(side)
    found = ours(ids, None if side is None else mask)
    expected = theirs(
        ids,
        attention_mask=F.pad(mask, (P, 0), value=1),
        position_ids=torch.arange(20)[None],  # a text's positions don't depend on the prefix
        past_key_values=their_past(ours, 3),
    ).logits
    assert assert_same_on_real_tokens(ours, found, expected, ids, mask) == (LAYERS * 2 + 3 if projection else LAYERS)
    real = mask.bool()
    assert distance(found[real], pair[1](ids, None if side is None else mask)[real]) > 0.01  # it does something


def by_hand(model, ids, mask, number: int) -> torch.Tensor:
    """Block `number`'s attention output with its prefix, from the definition, position by position. [B, T, D]"""
    attention, hidden = model.blocks[number].attn, model.run_blocks(model.embed(ids), mask, 0, number)
    if isinstance(model, GPT2):  # whose norm comes before attention
        hidden = model.blocks[number].attn_norm(hidden)
    keys, values = attention.prefix()  # [P, D] each
    k, v, q = (getattr(attention, name)(hidden) for name in "kvq")
    outputs = torch.zeros_like(hidden)
    width = hidden.shape[-1] // attention.n_heads
    for b in range(len(ids)):
        for t in range(ids.shape[1]):
            seen = [s for s in range(ids.shape[1]) if mask[b, s] and (s <= t or not model.config.causal)]
            for h in range(attention.n_heads):
                part = slice(h * width, (h + 1) * width)
                of_keys = torch.cat([keys[:, part], k[b, seen][:, part]])
                of_values = torch.cat([values[:, part], v[b, seen][:, part]])
                weights = (of_keys @ q[b, t, part] / width**0.5).softmax(0)
                outputs[b, t, part] = weights @ of_values
    return attention.out(outputs)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "gpt2 without causal mask", "bert"])
def test_one_block_by_hand(kind):
    if kind == "bert":
        model = Bert(BertConfig(50, 24, 32, 4, 3, 64, dropout=0.0)).eval()
    else:
        model = tiny_gpt2()
        if kind != "gpt2":
            model = GPT2(GPT2Config(50, 24, 32, 4, 3, causal=False)).eval()
    attach(model, PrefixTuning(3, layers="1", train_head=False))
    ids, mask = torch.randint(1, 50, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    outputs = []
    hook = model.blocks[1].attn.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.encode(ids, mask)
    hook.remove()
    expected = by_hand(model, ids, mask, 1)
    torch.testing.assert_close(outputs[0][mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("position", ["first", "last", "flexible"])
def test_a_classifier_reads_the_same_position_as_if_all_were_computed(position):
    model = attach(tiny_gpt2(), PrefixTuning(P))
    model.head.position = position
    ids, mask = torch.randint(50, (3, 20)), padding_mask("right")
    states = model.encode(ids, mask)  # [B, T, D]
    rows = [0, 0, 0] if position == "first" else [19, 12, 5]
    expected = model.head.classify(states[torch.arange(3), rows])
    torch.testing.assert_close(model(ids, mask), expected, atol=1e-5, rtol=1e-5)


# --- what trains


@pytest.mark.parametrize(
    ("layers", "blocks"), [("all", [0, 1, 2, 3]), ("first3", [0, 1, 2]), ("last3", [1, 2, 3]), ("1-2", [1, 2]), ("3", [3])]
)
def test_which_blocks_get_a_prefix(layers, blocks):
    run = Run(trainable_layers="prefix", layers=layers, prefix_length=7, train_head="no")
    model = attach(tiny_gpt2(n_layers=4), method_of(resolve(run, {})))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert shapes == {f"blocks.{i}.attn.prefix.weight": (2, 7, 32) for i in blocks}
    assert n_frozen_blocks(model) == blocks[0]
    projected = attach(tiny_gpt2(n_layers=4), PrefixTuning(7, True, layers, train_head=False))
    lowest = f"blocks.{blocks[0]}.attn.prefix.trunk"
    expected = {f"{lowest}.embedding", f"{lowest}.dense.weight", f"{lowest}.dense.bias"}
    expected |= {f"blocks.{i}.attn.prefix.up.{kind}" for i in blocks for kind in ("weight", "bias")}
    assert trained_names(projected) == expected and n_frozen_blocks(projected) == blocks[0]


def test_layer_numbers_are_whole_path_components():
    model = attach(tiny_gpt2(n_layers=21), PrefixTuning(2, layers="0", train_head=False))
    assert trained_names(model) == {"blocks.0.attn.prefix.weight"}  # and not of blocks 10 and 20


def test_other_methods_leave_the_prefix_alone():
    model = attach(tiny_gpt2(), PrefixTuning(P, projection=True, train_head=False))
    peft.METHODS["lora"](targets="all", train_head=False).attach(model)
    adapted = [name for name in trained_names(model) if "lora" in name]
    assert adapted and not any("prefix" in name for name in adapted)


@pytest.mark.parametrize("chosen", METHODS.values(), ids=METHODS)
def test_training_moves_the_prefix_alone_and_lowers_the_loss(chosen):
    model = attach(tiny_gpt2(head="lm"), chosen)
    ids = torch.randint(50, (4, 12))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == trained_names(model) and all(".prefix." in name for name in moved)
    assert losses[-1] < losses[0] - 0.1


# --- export, restore, merge


def drawn_anew(chosen) -> GPT2:
    """The same model with another prefix."""
    model = tiny_gpt2(head="lm")
    torch.manual_seed(77)
    return attach(model, chosen)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_folded_away_on_export(name):
    chosen, ids = METHODS[name], torch.randint(50, (3, 20))
    model = attach(tiny_gpt2(head="lm"), chosen)
    expected, trained = model(ids), trained_names(model)
    tensors = export(model)
    blocks = [1, 2] if "last2" in name else [0, 1, 2]
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert shapes == {f"blocks.{i}.attn.prefix.weight": (2, P, 32) for i in blocks}
    assert trained_names(model) == trained and torch.equal(model(ids), expected)  # the model itself stays as it was
    for method in (chosen, METHODS["last2" if "last2" in name else "plain"]):  # either takes them
        fresh = drawn_anew(method)
        assert distance(fresh(ids), expected) > 0.01
        assert distance(restore(fresh, tensors)(ids), expected) <= TOLERANCE
        assert export(fresh).keys() == tensors.keys()
    raw = {key: tensor.detach().clone() for key, tensor in model.named_parameters() if tensor.requires_grad}
    fresh = drawn_anew(chosen)
    assert trained_names(restore(fresh, raw)) == trained  # with those of the network itself, it stays
    assert torch.equal(fresh(ids), expected)
    merged = merge(model)
    assert distance(merged(ids), expected) <= TOLERANCE
    assert {key for key in merged.state_dict() if ".prefix." in key} == tensors.keys()


def test_tensors_of_another_length_or_other_layers_are_refused():
    tensors = export(attach(tiny_gpt2(), PrefixTuning(P, train_head=False)))
    with pytest.raises(UserError, match=r"prefix.weight has shape \[2, 5, 32\], expected \[2, 6, 32\]"):
        restore(attach(tiny_gpt2(), PrefixTuning(6, train_head=False)), tensors)
    with pytest.raises(UserError, match=r"unknown blocks\.0\.attn\.prefix\.weight"):
        restore(attach(tiny_gpt2(), PrefixTuning(P, layers="last2", train_head=False)), tensors)


def test_what_is_refused():
    with pytest.raises(UserError, match="--prefix_length is 0; it must be at least 1"):
        PrefixTuning(0)
    with pytest.raises(UserError, match="--layers '3': 3 isn't there"):
        attach(tiny_gpt2(), PrefixTuning(P, layers="3"))
    with pytest.raises(UserError, match="block 2 has a prefix already"):
        attach(attach(tiny_gpt2(), PrefixTuning(P, layers="2")), PrefixTuning(P, layers="1-2"))


# --- generation


@pytest.mark.parametrize("chosen", METHODS.values(), ids=METHODS)
def test_generation_with_a_cache_equals_without_token_by_token(pair, chosen):
    model = attach(copy.deepcopy(pair[1]), chosen)
    assert_cached_as_plain(model, pair[1])


# --- through the command line

FLAGS = ("--trainable_layers", "prefix", "--prefix_length", 3)


def test_a_run_with_projection_leaves_the_folded_prefix(experiment):
    found = experiment(*FLAGS, "--prefix_projection", "--train_head", "no")
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == {
        f"blocks.{i}.attn.prefix.weight": (2, 3, 32) for i in (0, 1)
    }
    assert found.result["trainable_parameters"] == 3 * 32 + 33 * 32 + 2 * 33 * 64


def test_frozen_blocks_below_the_prefix_are_computed_once(experiment):
    flags = (*FLAGS, "--layers", "last1")
    settings = {"max_steps": 12, "num_epochs": 4}
    with_it, without = experiment(*flags, **settings), experiment(*flags, "--reuse_frozen", "no", **settings)
    assert "frozen   1 of 2 blocks" in with_it.out and "\nfrozen " not in without.out
    assert with_it.logged("loss") == pytest.approx(without.logged("loss"), rel=1e-5)
    assert "\nfrozen " not in experiment(*FLAGS).out


def test_an_interrupted_run_keeps_the_network_and_is_resumed(experiment, alone, monkeypatch):
    flags, settings = (*FLAGS, "--prefix_projection"), {"max_steps": 6, "num_epochs": 4}
    expected = experiment(*flags, **settings)
    with monkeypatch.context() as patch:
        interrupt_run(patch, 3)
        interrupted = experiment(*flags, output_dir=alone / "halved", **settings)
    assert interrupted.result["interrupted"] and interrupted.result["steps"] == 3
    assert any(".trunk." in name for name in interrupted.tensors)
    resumed = experiment(*flags, "--resume", output_dir=alone / "halved", **settings)
    assert resumed.result["steps"] == 6 and resumed.tensors.keys() == expected.tensors.keys()
    assert not any(re.search("trunk|up", name) for name in resumed.tensors)
    assert all(torch.equal(resumed.tensors[name], expected.tensors[name]) for name in resumed.tensors)
