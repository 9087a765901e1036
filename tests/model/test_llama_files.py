"""Weights of Llama's family in every kind of file that holds them, and files that don't fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import from_pretrained
from tests.helpers.small import make_llama, shard
from utils.errors import UserError

IDS = torch.arange(3, 25).reshape(2, 11)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def directory(tmp_path):
    """Return a checkpoint, for the tests to change."""
    return make_llama(tmp_path / "model")


def change(directory, how) -> dict[str, torch.Tensor]:
    """Write {name: tensor} as `how` makes it of what is there, and return what was there."""
    before = load_file(directory / "model.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in how(dict(before)).items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return before


@torch.no_grad()
def outputs(directory, head: str | None = "lm") -> torch.Tensor:
    model = from_pretrained(directory, head=head).eval()
    return model(IDS) if head else model.encode(IDS)


def refused(directory, head: str | None = "lm") -> str:
    with pytest.raises(UserError) as caught:
        from_pretrained(directory, head=head)
    assert str(directory) in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def bare(tensors: dict) -> dict:
    """Return the tensors as the library's LlamaModel has them."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != HEAD}


def with_frequencies(tensors: dict) -> dict:
    """Return the tensors with the buffers of old files, in each layer or in front of them."""
    names = ["model.rotary_emb.inv_freq", *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3))]
    return tensors | {name: torch.ones(4) for name in names}


SAME = {
    "the bare body": bare,
    "old buffers": with_frequencies,
    "old buffers in the bare body": lambda tensors: bare(with_frequencies(tensors)),
    "the tied tensor under both names": lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()},
    "the tied tensor under the head's name": lambda tensors: tensors | {HEAD: tensors.pop(EMBEDDING)},
}


@pytest.mark.parametrize("how", SAME.values(), ids=SAME)
def test_files_that_hold_the_same(how, directory):
    before = outputs(directory)
    change(directory, how)
    assert torch.equal(outputs(directory), before)
    shard(directory)
    assert torch.equal(outputs(directory), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, directory):
    change(directory, lambda tensors: {name: tensor.to(dtype).float() for name, tensor in tensors.items()})
    rounded = outputs(directory)
    change(directory, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert torch.equal(outputs(directory), rounded)
    assert {parameter.dtype for parameter in from_pretrained(directory).parameters()} == {torch.float32}


def test_a_head_that_was_trained_apart_counts_even_where_config_says_tied(directory):
    before = outputs(directory)
    change(directory, lambda tensors: tensors | {HEAD: 2 * tensors[EMBEDDING]})
    torch.testing.assert_close(outputs(directory), 2 * before)
    assert not from_pretrained(directory).config.tied
    assert from_pretrained(directory, head="classifier").drawn == ("score.weight",)


@pytest.mark.parametrize("how", [bare, lambda tensors: {name: one for name, one in tensors.items() if name != HEAD}])
def test_an_untied_model_without_its_head(how, tmp_path):
    directory = make_llama(tmp_path / "model", tied=False)
    hidden = outputs(directory, None)
    change(directory, how)
    assert refused(directory).endswith("doesn't fit the model: missing lm_head.weight")
    assert torch.equal(outputs(directory, None), hidden)  # what needs no such head works
    assert from_pretrained(directory, head="classifier").drawn == ("score.weight",)


@pytest.mark.parametrize(
    ("kind", "added", "shape"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias", 32),
        ("llama", "model.layers.1.self_attn.o_proj.bias", 32),
        ("llama", "model.layers.1.mlp.up_proj.bias", 48),
        ("qwen2", "model.layers.2.self_attn.o_proj.bias", 32),
        ("llama", "model.layers.0.self_attn.q_norm.weight", 8),
        ("qwen3", "model.layers.0.self_attn.k_proj.bias", 16),
        ("llama", "model.layers.3.input_layernorm.weight", 32),
        ("llama", "model.layers.0.block_sparse_moe.gate.weight", 32),
        ("llama", "lm_head.bias", 422),
    ],
)
def test_what_config_does_not_announce_is_refused_by_name(kind, added, shape, tmp_path):
    directory = make_llama(tmp_path / "model", kind)
    change(directory, lambda tensors: tensors | {added: torch.ones(shape)})
    assert f"unread {added}" in refused(directory)
    change(directory, bare)
    change(directory, lambda tensors: tensors | {added.removeprefix("model."): torch.ones(shape)})
    assert f"unread {added.removeprefix('model.')}" in refused(directory)


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "model.layers.2.mlp.gate_proj.weight"),
    ],
)
def test_what_is_missing_is_named(kind, lacking, tmp_path):
    directory = make_llama(tmp_path / "model", kind)
    change(directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != lacking})
    assert refused(directory).endswith(f"missing {lacking}")


def test_another_shape_is_named(directory):
    name = "model.layers.0.mlp.down_proj.weight"
    change(directory, lambda tensors: tensors | {name: tensors[name].T})
    assert f"{name} has shape [48, 32], expected [32, 48]" in refused(directory)


def test_a_shard_that_is_missing(directory):
    (directory / shard(directory)[1]).unlink()
    assert "names the shard model-00002-of-00002.safetensors, which isn't there" in refused(directory)
