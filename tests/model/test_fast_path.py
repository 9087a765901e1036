"""`fast_path.loss` gives the numbers of the plain forward pass: the same loss, predictions and gradients."""

from dataclasses import replace

import pytest
import torch

import peft
from data.batching import IGNORED, CachedStates, Example, collate
from model import fast_path, make_head, vocabulary_loss
from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.distilbert import DistilBert, DistilBertConfig
from model.gpt2 import GPT2, GPT2Config
from model.llama import Llama
from tests.helpers.architectures import small_config
from train import plain_loss

SIZES = {"vocab_size": 60, "context_length": 24, "dim": 32, "n_heads": 4, "n_layers": 3}
CPU = torch.device("cpu")
MODELS = {
    "gpt2": (GPT2, GPT2Config(**SIZES)),
    "gpt2 without causal mask": (GPT2, GPT2Config(**SIZES, causal=False)),
    "bert": (Bert, BertConfig(**SIZES, mlp_dim=64, dropout=0.0)),
    "roberta": (Roberta, RobertaConfig(**SIZES, mlp_dim=64, dropout=0.0)),
    "distilbert": (DistilBert, DistilBertConfig(**SIZES, mlp_dim=64, dropout=0.0)),
    "llama": (Llama, small_config("llama", **SIZES)),
    "qwen3 with windows": (Llama, small_config("qwen3", **SIZES, window=5, window_layers=(0, 2))),
}
HEADS = {
    "lm": ("lm", {}),
    "first": ("classifier", {"position": "first"}),
    "last": ("classifier", {"position": "last"}),
    "flexible": ("classifier", {"position": "flexible"}),
    "mean": ("classifier", {"average": True}),
}
METHODS = {
    "all": peft.Freeze("all"),
    "LoRA": peft.LoRA(rank=2, targets="all"),
    "prefix": peft.PrefixTuning(length=3),
    "prompt": peft.PromptTuning(length=3),
    "adapters": peft.Adapter(reduction_factor=8),
    "bypass": peft.Bypass("1,2,3,attn.1,attn.3", init="default"),
    "bypass of the log": peft.Bypass("1,attn.2", init="default", into="dense", head="linear"),
    "prompt and bypass": peft.Joined((peft.PromptTuning(length=3), peft.Bypass("1,3,attn.2", init="default"))),
    "bypass and LoRA": peft.Joined((peft.Bypass("2,attn.3", init="default"), peft.LoRA(rank=2, targets="attn"))),
}


def make(name: str, head: str, method: str) -> torch.nn.Module:
    """A model whose method has an effect: what starts at zero is drawn."""
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config)
    what, how = HEADS[head]
    model.head = make_head(model, what, 3, **how)
    peft.attach(model, METHODS[method])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
    return model.train()


def batch_for(head: str, pad_to: int | None = None):
    """Four texts of different lengths with a class each, or a target at most of their positions."""
    draw = torch.Generator().manual_seed(1)
    examples = []
    for i, length in enumerate((9, 4, 12, 7)):
        ids = torch.randint(2, 60, (length,), generator=draw).tolist()
        targets = [IGNORED, *ids[2:], 5] if head == "lm" else i % 3
        examples.append(Example(ids, targets))
    return collate(examples, 1, pad_to).to(CPU)


def results(compute_loss, model, batch) -> tuple:
    """Loss, predictions and labels of the targets, and the gradients of whatever trains."""
    model.zero_grad()
    loss, predictions, labels = compute_loss(model, batch, IGNORED)
    loss.backward()
    known = labels != IGNORED
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), predictions[known], labels[known], gradients


def assert_equal(model, batch) -> None:
    """Both ways give the same. Gradients that are zero but for rounding (a key's bias) are compared by what is largest."""
    expected, found = results(plain_loss, model, batch), results(fast_path.loss, model, batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
    assert found[3].keys() == expected[3].keys()
    scale = max(gradient.abs().max() for gradient in expected[3].values())
    for name, gradient in expected[3].items():
        torch.testing.assert_close(found[3][name], gradient, rtol=1e-4, atol=1e-5 * float(scale), msg=name)


@pytest.mark.parametrize("padded", [True, False], ids=["padding seen", "padding masked"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_and_head(name: str, head: str, padded: bool):
    assert_equal(make(name, head, "all"), batch_for(head, 14 if padded else None))


TRIED = [(name, method) for name in ("gpt2", "bert", "llama") for method in METHODS]
TRIED += [("qwen3 with windows", method) for method in METHODS if "prompt" not in method]  # whose place is refused there


@pytest.mark.parametrize("padded", [True, False], ids=["padding seen", "padding masked"])
@pytest.mark.parametrize(("name", "method"), TRIED)
def test_every_method(name: str, method: str, padded: bool):
    assert_equal(make(name, "last", method), batch_for("last", 14 if padded else None))


@pytest.mark.parametrize("method", ["all", "LoRA", "bypass", "prompt", "prefix"])
@pytest.mark.parametrize("head", ["lm", "last"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradient_checkpointing(name: str, head: str, method: str):
    if method == "bypass" and head == "lm":
        pytest.skip("bypass needs a classifier")
    model, batch = make(name, head, method), batch_for(head)
    plain = results(fast_path.loss, model, batch)
    model.gradient_checkpointing = True
    twice = results(fast_path.loss, model, batch)
    torch.testing.assert_close(plain[0], twice[0])
    assert all(torch.allclose(plain[3][name], twice[3][name], atol=1e-6) for name in plain[3])


@pytest.mark.parametrize("n_kept", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_kept_states_of_lower_blocks(head: str, n_kept: int):
    model, batch = make("gpt2", head, "all").eval(), batch_for(head)
    with torch.no_grad():
        states = model.run_blocks(model.embed(batch.input_ids), batch.visible(), 0, n_kept)
        expected = fast_path.loss(model, batch, IGNORED)
        found = fast_path.loss(model, replace(batch, cached=CachedStates(states, n_kept)), IGNORED)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["all", "bypass"])
@pytest.mark.parametrize("head", ["first", "last", "flexible"])
def test_kept_states_of_all_that_a_head_reads(head: str, method: str):
    model, batch = make("gpt2", head, method).eval(), batch_for(head)
    with torch.no_grad():
        hidden = model.embed(batch.input_ids)
        states = fast_path.states_read(model, hidden, batch.visible(), batch.lengths)
        assert states.shape == (4, 1 + len(model.head.taps), 32)
        expected = fast_path.loss(model, batch, IGNORED)
        found = fast_path.loss(model, replace(batch, cached=CachedStates(states, None)), IGNORED)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


def test_the_last_block_computes_one_query_a_text():
    model, batch = make("gpt2", "last", "all"), batch_for("last", 14)
    shapes = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    fast_path.loss(model, batch, IGNORED)
    assert shapes == [(4, 14, 32), (4, 14, 32), (4, 1, 32)]
    plain_loss(model, batch, IGNORED)
    assert shapes[3:] == [(4, 14, 32)] * 3


def test_a_wrong_row_would_be_noticed(monkeypatch):
    """The comparison can fail: one query at another position, or one that sees too much, is another number."""
    model, batch = make("gpt2", "last", "all"), batch_for("last")
    monkeypatch.setattr(fast_path, "visible_to", lambda rows, length, mask, causal: None)
    with pytest.raises(AssertionError):
        assert_equal(model, batch)
    monkeypatch.undo()
    monkeypatch.setattr(fast_path, "take", lambda x, rows: x[:, 0])
    with pytest.raises(AssertionError):
        assert_equal(model, batch)


@pytest.mark.parametrize("grad", [True, False])
def test_an_evaluation_computes_no_gradient(grad: bool, monkeypatch):
    calls = []
    monkeypatch.setattr(vocabulary_loss, "add_gradients", lambda *args: calls.append(1))
    with torch.set_grad_enabled(grad):
        fast_path.loss(make("gpt2", "lm", "all"), batch_for("lm"), IGNORED)
    assert bool(calls) is grad
