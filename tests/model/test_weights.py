"""Checkpoints in Hugging Face layout: every kind of file that holds a GPT-2, every way in which one can be broken."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import from_pretrained, weights
from model.gpt2 import GPT2, GPT2Config, init_gpt2
from model.heads import LanguageModelHead
from tests.helpers.small import shard
from utils.errors import UserError

CONFIG = GPT2Config(vocab_size=60, context_length=16, dim=32, n_heads=4, n_layers=2)
IDS = torch.arange(30).reshape(2, 15)


@pytest.fixture
def model():
    model = init_gpt2(GPT2(CONFIG))
    model.head = LanguageModelHead(model.token_embedding)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases and norms that can be told apart
    return model.eval()


@pytest.fixture
def directory(model, tmp_path):
    """A checkpoint of ours, for the tests to change."""
    weights.save_pretrained(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewrite_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors) or tensors, directory / "model.safetensors", {"format": "pt"})


def rewrite_config(directory: Path, **settings) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(directory: Path, head: str | None = "lm") -> str:
    """The one line with which loading ends."""
    with pytest.raises(UserError) as caught:
        from_pretrained(directory, head=head)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert directory.name in line  # which checkpoint
    return line


# Theirs -> ours


@pytest.fixture(scope="module")
def theirs():
    import transformers

    torch.manual_seed(2)
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=60, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("body_only", [False, True])
def test_their_checkpoints_load(theirs, tmp_path, dtype, shard_size, body_only):
    saved = type(theirs)(theirs.config)
    saved.load_state_dict(theirs.state_dict())
    saved.to(dtype)
    # The bare body is saved without the prefix `transformer.`; its language-model head is its own embedding.
    (saved.transformer if body_only else saved).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "40KB")
    ours = from_pretrained(tmp_path, head="lm").eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    with torch.no_grad():  # the reference: the same rounded numbers, computed in float32
        torch.testing.assert_close(ours(IDS), saved.float().eval()(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_old_mask_buffers_and_a_stored_tied_head_are_accepted(model, directory, prefix):
    def change(tensors):
        tensors = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for layer in range(CONFIG.n_layers):
            tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
        return tensors

    rewrite_tensors(directory, change)
    loaded = from_pretrained(directory).eval()
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.head.weight is loaded.token_embedding.weight  # one tensor, trained once


# Ours -> theirs


def test_what_we_save_loads_strictly_in_transformers_and_in_ours(model, directory):
    from transformers import GPT2LMHeadModel

    theirs, report = GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report  # nothing missing, unexpected or misshaped
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(IDS).logits, model(IDS), rtol=1e-5, atol=1e-5)
    again = from_pretrained(directory).eval()
    assert again.config == CONFIG
    assert torch.equal(again(IDS), model(IDS))


def test_save_pretrained_in_half_precision(model, tmp_path):
    weights.save_pretrained(model, tmp_path, torch.bfloat16)
    again = from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.bfloat16().float()), name


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(directory, monkeypatch, error):
    path = directory / "model.safetensors"
    before = path.read_bytes()

    def fails(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(weights, "save_file", fails)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        weights.write_safetensors({"x": torch.ones(1)}, path, {})
    assert path.read_bytes() == before
    assert sorted(file.name for file in directory.iterdir()) == ["config.json", "model.safetensors"]


# Tensors that don't fit


def test_missing_unread_and_misshaped_tensors_are_all_named(directory):
    def change(tensors):
        del tensors["transformer.h.1.mlp.c_fc.bias"]
        tensors["transformer.h.2.ln_1.weight"] = torch.ones(32)  # a layer that the configuration doesn't have
        tensors["transformer.wpe.weight"] = torch.ones(8, 32)

    rewrite_tensors(directory, change)
    line = refused(directory)
    assert "missing transformer.h.1.mlp.c_fc.bias" in line
    assert "unread transformer.h.2.ln_1.weight" in line
    assert "wpe.weight has shape [8, 32], expected [16, 32]" in line


def test_a_transposed_matrix_is_refused(directory):
    def change(tensors):
        name = "transformer.h.0.attn.c_attn.weight"
        tensors[name] = tensors[name].T.contiguous()

    rewrite_tensors(directory, change)
    assert "h.0.attn.c_attn.weight has shape [96, 32], expected [32, 96]" in refused(directory)


def test_a_long_list_of_problems_is_cut(directory):
    rewrite_tensors(directory, lambda tensors: {"transformer.wte.weight": tensors["transformer.wte.weight"]})
    line = refused(directory)
    assert line.count("missing") == 12
    assert "and 15 more" in line  # 27 = 2 layers x 12 tensors, the position embedding and two of the last norm


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_names_that_a_wrapper_made_longer_are_told_so(directory, wrapper):
    rewrite_tensors(directory, lambda tensors: {wrapper + name: tensor for name, tensor in tensors.items()})
    for head in ("lm", "classifier"):
        assert f"all names of its tensors begin with '{wrapper}'" in refused(directory, head=head)


def test_another_number_of_labels_is_refused(directory):
    rewrite_tensors(directory, lambda tensors: tensors.update({"score.weight": torch.ones(3, 32)}))
    assert from_pretrained(directory, head="classifier").head.classifier.out_features == 3
    with pytest.raises(UserError, match="classifier for 3 labels, but num_labels says 2"):
        from_pretrained(directory, head="classifier", num_labels=2)
    rewrite_config(directory, num_labels=4)
    assert "classifier for 3 labels, but its config.json says 4" in refused(directory, head="classifier")


# Files that can't be read


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file(directory, keep):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert path.name in refused(directory)


@pytest.mark.parametrize("content", [b"<html>404</html>" * 10, b"\x05" + bytes(7) + b"hello", b"\xff" * 64])
def test_a_garbage_file(directory, content):
    (directory / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(directory)


def test_the_single_file_counts_before_an_index(model, directory):
    """The published library's order: what lies beside a fresh model.safetensors is from an earlier, sharded save."""
    fresh = load_file(directory / "model.safetensors")
    rewrite_tensors(directory, lambda tensors: {name: torch.zeros_like(one) for name, one in tensors.items()})
    shard(directory)
    save_file(fresh, directory / "model.safetensors", {"format": "pt"})
    assert torch.equal(from_pretrained(directory).eval()(IDS), model(IDS))
    (directory / "model.safetensors").unlink()
    assert not from_pretrained(directory).eval()(IDS).any()
    (directory / "model.safetensors.index.json").write_text("")  # an index that isn't read may be anything
    save_file(fresh, directory / "model.safetensors", {"format": "pt"})
    assert torch.equal(from_pretrained(directory).eval()(IDS), model(IDS))


def test_a_truncated_shard(directory):
    last = directory / shard(directory)[-1]
    assert from_pretrained(directory) is not None
    last.write_bytes(last.read_bytes()[:-1])
    assert last.name in refused(directory)


def test_only_a_pickled_file(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "never loaded" in refused(directory)
    (directory / "pytorch_model.bin").unlink()
    line = refused(directory)
    assert "has neither" in line and "never loaded" not in line


@pytest.mark.parametrize("name", ["model-00003-of-00002.safetensors", "../evil.safetensors", "/etc/passwd", "..", 7, None])
def test_an_index_that_names_no_shard_beside_it(directory, name):
    shard(directory)
    (directory.parent / "evil.safetensors").write_bytes(b"")
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {key: name if "wte" in key else file for key, file in weight_map.items()}}))
    line = refused(directory)
    assert index.name in line
    assert str(name) in line or not isinstance(name, str)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"wte.weight": []}}'])
def test_a_malformed_index(directory, content):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(content)
    assert "index" in refused(directory)


# Configurations


def test_no_config(directory):
    (directory / "config.json").unlink()
    assert "no config.json" in refused(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'"gpt2"'])
def test_a_malformed_config(directory, content):
    (directory / "config.json").write_bytes(content)
    assert "config.json" in refused(directory)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "t5"}, "'t5'.*gpt2, bert, roberta, distilbert"),
        ({"model_type": None}, "None.*gpt2"),
        ({"activation_function": "relu"}, "activation_function.*'relu'.*'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings.*'no'.*true or false"),
        ({"n_head": 5}, "width 32.*heads, 5"),
        ({"n_inner": 100}, "n_inner.*100.*128"),
        ({"n_embd": -32}, "n_embd.*-32"),
        ({"n_layer": 0}, "n_layer.*0"),
        ({"n_head": 4.0}, "n_head.*4.0"),
        ({"vocab_size": "60"}, "vocab_size.*'60'"),
        ({"n_positions": True}, "n_positions.*True"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon.*-1e-05"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon.*inf"),
        ({"model_type": ["gpt2"]}, "\\['gpt2'\\].*gpt2, bert"),
        ({"n_layer": 10**6}, "n_layer.*1000000.*up to 1000"),
        ({"vocab_size": 10**12}, "vocab_size.*1000000000000.*up to 16777216"),
        ({"num_labels": 10**9}, "num_labels.*1000000000.*up to 65536"),
        ({"num_labels": -3}, "num_labels.*-3"),
    ],
)
def test_a_config_that_is_no_gpt2(directory, settings, said):
    rewrite_config(directory, **settings)
    with pytest.raises(UserError, match=said):
        from_pretrained(directory)
    refused(directory)


def test_a_config_that_is_too_deep(directory):
    (directory / "config.json").write_text("[" * 10**5)
    assert "config.json" in refused(directory)


def test_a_config_larger_than_its_file_is_refused_before_memory_is_taken(directory):
    rewrite_config(directory, n_embd=2**22, n_head=2**10)  # one matrix of it would take 64 TiB
    assert "wte.weight has shape [60, 32], expected [60, 4194304]" in refused(directory)


def test_numbers_that_are_no_weights_are_refused(directory):
    rewrite_tensors(directory, lambda tensors: tensors.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int32)}))
    assert "ln_f.bias as torch.int32; what is read: torch.float32" in refused(directory)
