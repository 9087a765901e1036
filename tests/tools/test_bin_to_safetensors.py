"""Pickled checkpoints become safetensors; what isn't tensors is refused and never run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import from_pretrained
from model.chatglm import ChatGLM, ChatGLMConfig
from model.gpt2 import GPT2, GPT2Config
from model.heads import LanguageModelHead
from model.weights import save_pretrained
from tests.helpers.paths import ROOT
from tools.bin_to_safetensors import convert
from utils.errors import UserError

SMALL = ChatGLMConfig(
    vocab_size=60,
    context_length=64,
    dim=32,
    n_heads=2,
    n_layers=3,
    mlp_dim=48,
    mask_id=50,
    gmask_id=51,
    start_id=54,
    end_ids=(55,),
)


def pickled(model, folder: Path, n_shards: int, **torch_save) -> Path:
    """Save a model as the published repositories do, in so many pickles, and its safetensors in folder/whole."""
    torch.manual_seed(1)
    save_pretrained(model, folder / "whole", torch.float16)
    tensors = load_file(folder / "whole/model.safetensors")
    (folder / "config.json").write_bytes((folder / "whole/config.json").read_bytes())
    names = sorted(tensors)
    if n_shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **torch_save)
        return folder
    file_of = {name: f"pytorch_model-{1 + i % n_shards:05}-of-{n_shards:05}.bin" for i, name in enumerate(names)}
    for file in {*file_of.values()}:
        torch.save({name: tensors[name] for name in names if file_of[name] == file}, folder / file, **torch_save)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return folder


def chatglm() -> ChatGLM:
    model = ChatGLM(SMALL)
    model.head = LanguageModelHead(model.token_embedding)
    return model


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("make", [chatglm, lambda: GPT2(GPT2Config(40, 16, 16, 2, 2))], ids=["chatglm", "gpt2"])
def test_the_tensors_are_the_same(make, n_shards, tmp_path):
    folder = pickled(make(), tmp_path / "pickled", n_shards)
    convert(folder, tmp_path / "out")
    expected = load_file(folder / "whole/model.safetensors")
    found = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == expected.keys() and len(list((tmp_path / "out").glob("*.safetensors"))) == n_shards
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float16 for name in expected)
    loaded, again = (from_pretrained(one, head=None) for one in (tmp_path / "out", folder / "whole"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_a_head_that_shares_the_memory_of_the_embedding(tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 1)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["transformer.word_embeddings.weight"])


class Trap:
    """Make a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_program_in_a_pickle_is_refused_and_not_run(tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 1)
    torch.save({"transformer.word_embeddings.weight": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors"):
        convert(folder, tmp_path / "out")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"more than tensors|can't be read"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def change(folder: Path, **tensors) -> None:
    """Put other tensors into a single pickle; None takes one away."""
    content = torch.load(folder / "pytorch_model.bin", weights_only=True)
    content |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    torch.save({name: tensor for name, tensor in content.items() if tensor is not None}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer__final_layernorm__bias": None}, "missing transformer.final_layernorm.bias"),
        ({"transformer__final_layernorm__bias": torch.zeros(31)}, r"shape \[31\], expected \[32\]"),
        ({"transformer__extra": torch.zeros(3)}, "unread transformer.extra"),
        ({"transformer__final_layernorm__bias": torch.zeros(32, dtype=torch.int8)}, "as torch.int8"),
        ({"transformer__final_layernorm__bias": "text"}, "isn't a table of tensors"),
    ],
)
def test_tensors_that_do_not_fit(changes, message, tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 1)
    change(folder, **changes)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_files(tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 3)
    shard = folder / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"00002-of-00003.bin can't be read"):
        convert(folder, tmp_path / "out")
    shard.unlink()
    with pytest.raises(UserError, match=r"names the shard .* which isn't there"):
        convert(folder, tmp_path / "out")
    (folder / "pytorch_model.bin.index.json").write_text("{")
    with pytest.raises(UserError, match=r"neither pytorch_model.bin nor a readable"):
        convert(folder, tmp_path / "out")


def test_a_directory_of_another_model_is_left_alone(tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model-00001-of-00002.safetensors").write_text("another's")
    with pytest.raises(UserError, match=r"holds model-00001-of-00002.safetensors"):
        convert(folder, tmp_path / "out")


def test_the_command(tmp_path):
    folder = pickled(chatglm(), tmp_path / "pickled", 1)
    tool = [sys.executable, ROOT / "tools/bin_to_safetensors.py"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*tool, folder, tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    assert from_pretrained(tmp_path / "out").config == SMALL
    done = subprocess.run([*tool, "owner/name", tmp_path / "x"], cwd=tmp_path, capture_output=True, text=True, env=offline)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "HF_HUB_OFFLINE is set" in done.stderr
