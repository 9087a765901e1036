"""Bypass branches: which states they read, where their sum goes, and the two forms of the head."""

import copy

import pytest
import torch
from torch import nn

from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead, LanguageModelHead
from peft import Bypass, Joined, LoRA, attach, export, restore
from peft.bypass import parse_taps
from tests.helpers.methods import DenseHead
from utils.errors import UserError

IDS = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(5))  # [B, T]
LENGTHS = torch.tensor([9, 3, 5, 1, 9, 2])


def tiny(head=ClassifierHead, position: str = "flexible", dropout: float = 0.0) -> GPT2:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=50, context_length=16, dim=32, n_heads=4, n_layers=3, dropout=dropout)
    return GPT2(config, head(32, 2, position)).eval()


def states(model: GPT2) -> dict[str, torch.Tensor]:
    """h_1..h_3, attn_1..attn_3 and `last` [B, D] at the last real token, computed the long way."""
    rows, hidden, found = LENGTHS - 1, model.embed(IDS), {}
    each = torch.arange(len(rows))
    for k, block in enumerate(model.blocks, start=1):
        found[f"attn_{k}"] = block.attn(block.attn_norm(hidden))[each, rows]
        hidden = block(hidden)
        found[f"h_{k}"] = hidden[each, rows]
    return found | {"last": model.final_norm(hidden)[each, rows]}


TAPS = "1,2,3,attn.1,attn.3"  # attn.3: of a block that computes the read position only


def attached(head, into: str, form: str) -> tuple[GPT2, torch.Tensor, dict]:
    """A model whose branches matter, what they add [B, D], and the states it is computed from."""
    model = attach(tiny(head), Bypass(TAPS, depth=2, init="default", into=into, head=form)).eval()
    found = states(model)
    added = 0
    for name in ("h_1", "h_2", "h_3", "attn_1", "attn_3"):
        first, second = model.head.branches.get_submodule(name)
        added = added + second(first(found[name]))
    assert added.std() > 0.1
    return model, added, found


@torch.no_grad()
@pytest.mark.parametrize("into", ["classifier", "dense"])
@pytest.mark.parametrize("form", ["own", "linear"])
def test_the_formulas(into: str, form: str):
    model, added, found = attached(DenseHead, into=into, form=form)
    dense, classifier = model.head.dense, model.head.classifier
    before = dense(found["last"] + added) if into == "dense" else dense(found["last"]) + added
    expected = classifier(before if form == "linear" else torch.relu(before))
    torch.testing.assert_close(model(IDS, lengths=LENGTHS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("into", ["classifier", "dense"])
@pytest.mark.parametrize("form", ["own", "linear"])
def test_a_head_without_a_dense_layer_adds_to_the_last_state(into: str, form: str):
    model, added, found = attached(ClassifierHead, into=into, form=form)
    expected = model.head.classifier(found["last"] + added)
    torch.testing.assert_close(model(IDS, lengths=LENGTHS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("into", ["classifier", "dense"])
def test_the_function_starts_unchanged_with_an_activation_too(into: str):
    expected = tiny(DenseHead)(IDS, lengths=LENGTHS)
    model = attach(tiny(DenseHead), Bypass(into=into, depth=3))
    assert torch.equal(model(IDS, lengths=LENGTHS), expected)
    for changed in ({"init": "default"}, {"head": "linear"}):  # the log's forms, which start as another function
        model = attach(tiny(DenseHead), Bypass(into=into, **changed)).eval()
        assert not torch.allclose(model(IDS, lengths=LENGTHS), expected, atol=1e-3)


def test_the_last_layer_of_each_branch_starts_at_zero_or_as_pytorch_draws_it():
    branches = attach(tiny(), Bypass("1,2", depth=2)).head.branches
    for first, last in branches.children():
        assert first.weight.std() > 0.05 and first.bias.any()
        assert not last.weight.any() and not last.bias.any()
    for layer in attach(tiny(), Bypass("1,2", depth=2, init="default")).head.branches.modules():
        assert not isinstance(layer, nn.Linear) or (layer.weight.std() > 0.05 and layer.bias.any())


@torch.no_grad()
def test_the_logs_head_drops_logits():
    model = attach(tiny(DenseHead), Bypass(head="linear")).train()
    drawn = torch.cat([model(IDS, lengths=LENGTHS) for _ in range(200)])
    assert (drawn == 0).float().mean() == pytest.approx(0.4, abs=0.05)  # the rate of the head's own dropout
    kept = torch.where(drawn[:6] == 0, drawn[:6], model.eval()(IDS, lengths=LENGTHS) / 0.6)
    torch.testing.assert_close(drawn[:6], kept)
    # A head without any takes the model's. (That of the blocks changes logits, but makes none of them zero.)
    for dropout in (0.0, 0.5):
        drawn = attach(tiny(dropout=dropout), Bypass(head="linear")).train()(IDS.repeat(50, 1))
        assert (drawn == 0).float().mean() == pytest.approx(dropout, abs=0.08)
    assert not (attach(tiny(DenseHead), Bypass()).train()(IDS) == 0).any()


def test_the_head_keeps_its_names_and_its_position():
    before = dict(tiny(DenseHead).named_parameters())
    after = dict(attach(tiny(DenseHead), Bypass("2")).named_parameters())
    assert after.keys() - before.keys() == {"head.branches.h_2.0.weight", "head.branches.h_2.0.bias"}
    assert before.keys() <= after.keys()
    for position in ("first", "last", "flexible"):
        base, model = tiny(position=position), attach(tiny(position=position), Bypass())
        assert torch.equal(model(IDS, lengths=LENGTHS), base(IDS, lengths=LENGTHS))


def test_nothing_captured_stays_behind_and_a_copy_captures_its_own():
    model = attach(tiny(DenseHead), Bypass(TAPS, init="default"))
    expected = model(IDS)
    assert not model.head.captured
    with pytest.raises(AssertionError, match="didn't run"):  # nothing was captured for a head that is called by itself
        model.head(torch.zeros(1, 1, 32))
    with pytest.raises(UserError, match="longer than the model's context"):  # a pass that ends early leaves nothing wrong
        model(torch.zeros(1, 99, dtype=torch.long))
    model.blocks[0](torch.randn(2, 5, 32))  # captured, and overwritten by the next pass
    other = copy.deepcopy(model)
    assert not other.head.captured and torch.equal(other(IDS), expected) and torch.equal(model(IDS), expected)
    with torch.no_grad():
        other.head.branches.h_1[0].weight.add_(1.0)
    assert not torch.allclose(other(IDS), expected) and torch.equal(model(IDS), expected)


@torch.no_grad()
def test_branches_hear_what_lora_does_to_a_tapped_layer():
    """The LoRA + bypass row: LoRA on attention layers and on the head's dense layer, branches from attention outputs."""
    lora = LoRA(rank=4, targets="1-2.attn,dense", train_head=False)
    for joined in (Joined((lora, Bypass("attn.2", train_head=False))), Joined((Bypass("attn.2", train_head=False), lora))):
        model = attach(tiny(DenseHead), joined).eval()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {"head.dense.lora_a", "head.branches.attn_2.0.weight", "blocks.1.attn.out.lora_b"} <= trained
        assert not any(name.startswith("head.classifier") for name in trained)
        model.head.branches.attn_2[0].weight.copy_(torch.eye(32))
        start = model(IDS, lengths=LENGTHS)
        model.blocks[1].attn.out.lora_b.normal_()
        model.head.dense.lora_b.normal_()
        found = states(model)
        expected = model.head.classifier(torch.relu(model.head.dense(found["last"]) + found["attn_2"]))
        torch.testing.assert_close(model(IDS, lengths=LENGTHS), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(start, expected, atol=1e-2)


def test_export_and_restore_of_the_logs_form():
    model = attach(tiny(DenseHead), Bypass(TAPS, depth=2, head="linear", init="default"))
    torch.manual_seed(8)
    other = attach(tiny(DenseHead), Bypass(TAPS, depth=2, head="linear", init="default"))
    nn.init.normal_(model.head.branches.h_1[0].weight)
    assert not torch.allclose(model.eval()(IDS), other.eval()(IDS), atol=1e-3)
    assert torch.equal(restore(other, export(model))(IDS), model(IDS))


# Taps and other settings


def test_taps():
    taps = {"h_3": ("blocks.2", 1), "h_4": ("blocks.3", 2), "attn_2": ("blocks.1.attn.out", 1)}
    assert parse_taps("3, 4x2,attn.2", 6, 1) == taps
    assert list(parse_taps("all", 6, 1)) == ["h_1", "h_2", "h_3", "h_4", "h_5"]
    assert parse_taps("6", 6, 3) == {"h_6": ("blocks.5", 3)}
    assert list(parse_taps("all", 1, 1)) == ["h_1"]


@pytest.mark.parametrize("taps", ["0", "4", "attn.0", "attn.4", "", "1,,2", "-1", "h_1", "mlp.1", "1.attn", "1-2"])
def test_taps_that_are_not_there(taps: str):
    with pytest.raises(UserError) as caught:
        attach(tiny(), Bypass(taps))
    message = str(caught.value)
    assert message.startswith(f"--bypass_taps is {taps!r}; ") and "choose all, or blocks counted from 1 to 3" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": -1}, "--bypass_depth is -1; it must be at least 0"),
        ({"depth": 4}, "--bypass_depth is 4; it must be below 4"),
        ({"into": "pooler"}, "--bypass_into is 'pooler'; choose classifier, dense"),
        ({"head": "log"}, "--bypass_head is 'log'; choose own, linear"),
        ({"init": "one"}, "--bypass_init is 'one'; choose zero, default"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        Bypass(**settings)


def test_a_head_that_does_not_read_one_position_is_refused():
    averaging, language, headless = tiny(), tiny(), tiny()
    averaging.head.average = True
    language.head = LanguageModelHead(language.token_embedding)
    headless.head = None
    for model, words in (
        (averaging, " that reads one position"),
        (language, "; this model has"),
        (headless, "; this model has"),
    ):
        with pytest.raises(UserError, match=f"bypass needs a classifier{words}"):
            attach(model, Bypass())
