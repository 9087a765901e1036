"""GGUF files become the checkpoint that the reference library reads in them, or are refused in one line."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("gguf")

import gguf
import transformers

from tests.helpers import gguf_files
from tests.helpers.gguf_files import LLAMA3, TOKENS, draw_model, tensors_of, write_gguf
from tests.helpers.parity import TOLERANCE, distance
from tests.helpers.paths import ROOT
from tools import gguf_file
from tools.gguf_to_safetensors import convert
from utils.errors import UserError

IDS = torch.arange(3, 203).remainder(len(TOKENS))[None]


@pytest.fixture
def llama() -> torch.nn.Module:
    return draw_model("llama")


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def error_bound(kind: str, weight: torch.Tensor) -> torch.Tensor:
    """Return how far each weight may be from what it was before it was stored as `kind`."""
    blocks = weight.reshape(-1, 32)
    largest, span = blocks.abs().amax(1), blocks.amax(1) - blocks.amin(1)
    half_a_step = {"Q8_0": largest / 254, "Q4_0": largest / 8, "Q4_1": span / 30}[kind]  # a whole step at the end of Q4_0
    return (half_a_step + 2**-9 * largest)[:, None].expand_as(blocks).reshape(weight.shape)  # scales are in fp16


@pytest.mark.parametrize("kind", gguf_file.TYPES)
def test_each_type_is_read_as_the_library_reads_it(kind, llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama", kind)
    convert(tmp_path / "m.gguf", tmp_path / "out", "float32")
    ours, drawn = load_file(tmp_path / "out/model.safetensors"), tensors_of(llama)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    theirs = tensors_of(loaded)
    assert ours.keys() == theirs.keys() == drawn.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
        if kind == "F32" or ours[name].ndim == 1:
            assert torch.equal(ours[name], drawn[name]), name
        elif kind == "F16":
            assert torch.equal(ours[name], drawn[name].half().float()), name
        else:
            assert ((ours[name] - drawn[name]).abs() <= error_bound(kind, drawn[name])).all(), name
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float32
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_each_architecture_computes_what_it_did(architecture, tied, tmp_path):
    model = draw_model(architecture, tied, rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    write_gguf(tmp_path / "m.gguf", model, architecture)
    convert(tmp_path / "m.gguf", tmp_path / "out", "float32")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(again) is type(model) and not any(report.values())
    ours, drawn = tensors_of(again), tensors_of(model)
    assert ours.keys() == drawn.keys() and all(torch.equal(ours[name], drawn[name]) for name in ours)
    assert torch.equal(logits(again), logits(model))
    assert again.config.tie_word_embeddings == tied


def test_a_head_takes_its_size_from_the_width_where_the_file_says_no_other(tmp_path):
    model = draw_model("qwen2")
    sizes = {
        f"qwen2__{name}": None for name in ("attention__key_length", "attention__value_length", "rope__dimension_count")
    }
    write_gguf(tmp_path / "m.gguf", model, "qwen2", **sizes)
    convert(tmp_path / "m.gguf", tmp_path / "out", "float32")
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_llama_3_scales_its_rotary_positions(tmp_path):
    model = draw_model("llama", rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    plain = 500000.0 ** -(torch.arange(0, 32, 2) / 32)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().round(5)  # what llama.cpp's converter stores
    assert {1, 8} < {*factors}
    write_gguf(tmp_path / "m.gguf", model, "llama", tensors=lambda tensors: tensors | {"rope_freqs.weight": factors})
    convert(tmp_path / "m.gguf", tmp_path / "out", "float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.rope_parameters == model.config.rope_parameters
    assert distance(logits(again), logits(model)) <= TOLERANCE
    assert distance(logits(draw_model_like(model)), logits(model)) > 100 * TOLERANCE  # the scaling shows in these logits

    write_gguf(tmp_path / "other.gguf", model, "llama", tensors=lambda tensors: tensors | {"rope_freqs.weight": factors**2})
    with pytest.raises(UserError, match=r"rope_freqs\.weight isn't what .* 'llama3' have"):
        convert(tmp_path / "other.gguf", tmp_path / "other")


def draw_model_like(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model with the same weights and no scaling."""
    other = draw_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    other.load_state_dict(model.state_dict())
    return other


def test_weights_are_rounded_to_half_precision_unless_told_otherwise(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama")
    said = convert(tmp_path / "m.gguf", tmp_path / "out")
    ours, drawn = load_file(tmp_path / "out/model.safetensors"), tensors_of(llama)
    assert all(torch.equal(ours[name], drawn[name].half()) for name in drawn)
    moved = max((ours[name].float() - drawn[name]).abs().max().item() for name in drawn)
    assert f"float16 moves none by more than {moved:.3g}" in said
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"


def test_the_size_of_a_part_changes_nothing(llama, tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf", llama, "llama", "Q4_1")
    convert(tmp_path / "m.gguf", tmp_path / "whole")
    monkeypatch.setattr(gguf_file, "CHUNK", 100)
    convert(tmp_path / "m.gguf", tmp_path / "parts")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other


def test_what_ends_an_answer_may_be_several_tokens(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama", tokenizer__ggml__eot_token_id=0)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


# --- refused


REFUSED = {
    "an architecture": ({}, "architecture 'gemma'; what is read: llama, qwen2, qwen3"),
    "a part of a model": ({"split__count": 2}, "split.count to 2, .* must be 0 or 1"),
    "experts": ({"llama__expert_count": 4}, "expert_count to 4, .* must be 0"),
    "another scaling": ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type to 'yarn'.* must be 'none'"),
    "half of a head": ({"llama__rope__dimension_count": 16}, "rope.dimension_count to 16; it must be a head's size, 32"),
    "unknown": ({"llama__attention__surprise": 1}, "attention.surprise to 1, and what that means isn't known"),
    "a window": ({"llama__attention__sliding_window": 64}, "attention.sliding_window to 64, and what that means isn't"),
    "no heads": ({"llama__attention__head_count": None}, "attention.head_count to None; it must be a number from 1 on"),
    "eps": ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon to nan; it must be"),
    "blocks": ({"llama__block_count": 2**31}, "it has no blk.2.attn_norm.weight"),
    "width": ({"llama__feed_forward_length": 95}, r"ffn_gate.weight has shape \[96, 64\], expected \[95, 64\]"),
    "vocabulary": ({"llama__vocab_size": 12}, f"vocab_size to 12 and has {len(TOKENS)} tokens"),
    "sentencepiece": ({"tokenizer__ggml__model": "llama"}, "kind 'llama'; what is read: 'gpt2'"),
    "a cut": ({"tokenizer__ggml__pre": "tekken"}, "cuts texts by 'tekken'; what is read: gpt-2, smollm, qwen2, llama-bpe"),
    "no cut": ({"tokenizer__ggml__pre": None}, "cuts texts by None"),
    "no merges": ({"tokenizer__ggml__merges": None}, "has no list tokenizer.ggml.merges"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "vocab_size to [0-9]+ and has 0 tokens"),
    "doubled": ({"tokenizer__ggml__tokens": ["a", *TOKENS[:-1]]}, "tokens, .* different ones"),
    "bytes": ({"tokenizer__ggml__token_type": [6] * len(TOKENS)}, "tokens of the type 6"),
    "an id": ({"tokenizer__ggml__eos_token_id": 9999}, "eos_token_id to 9999; it must be from 0 to"),
    "no start": (
        {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": None},
        "no tokenizer.ggml.bos_token_id",
    ),
    "an end": ({"tokenizer__ggml__add_eos_token": True}, "add_eos_token to True, .* must be False"),
}
REFUSED_TENSORS = {
    "missing": (lambda t: {n: w for n, w in t.items() if n != "blk.1.attn_k.weight"}, "has no blk.1.attn_k.weight"),
    "left over": (lambda t: t | {"blk.0.attn_q.bias": t["output_norm.weight"]}, "blk.0.attn_q.bias has no place"),
    "too large": (lambda t: t | {"output_norm.weight": t["output_norm.weight"] * 1e6}, "too large for --dtype float16"),
    "no number": (lambda t: t | {"output_norm.weight": t["output_norm.weight"] * float("nan")}, "isn't a finite number"),
}


@pytest.mark.parametrize("case", [*REFUSED, *REFUSED_TENSORS])
def test_what_is_not_known_is_refused_by_name(case, llama, tmp_path):
    changes, said = REFUSED.get(case) or ({"tensors": REFUSED_TENSORS[case][0]}, REFUSED_TENSORS[case][1])
    file = write_gguf(tmp_path / "m.gguf", llama, "gemma" if case == "an architecture" else "llama", **changes)
    with pytest.raises(UserError, match=said):
        convert(file, tmp_path / "out")
    assert os.listdir(tmp_path) == ["m.gguf"]  # not a trace of what was begun


@pytest.mark.parametrize("kind", ["BF16", "Q5_0", "TQ2_0"])
def test_another_type_is_refused_by_name(kind, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("token_embd.weight", gguf.quantize(torch.randn(4, 256).numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=f"token_embd.weight as {kind}; what is read: F32, F16, Q8_0, Q4_0, Q4_1"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_a_file_cut_anywhere_is_refused(llama, tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", llama, "llama", "Q8_0").read_bytes()
    header = gguf_file.Reader(tmp_path / "m.gguf").data_offset
    draw = random.Random(0)
    ends = [0, 3, 4, 8, 23, *(draw.randrange(24, header) for _ in range(25)), header, *(len(whole) - n for n in (1, 500))]
    for end in ends:
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        with pytest.raises(UserError, match="can't be read as GGUF"):
            convert(tmp_path / "cut.gguf", tmp_path / "out")


def test_a_header_without_sense_is_refused(llama, tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", llama, "llama", "Q8_0").read_bytes()
    tokens = (
        whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    )  # behind the types of the list
    tensor = whole.index(b"token_embd.weight") + len("token_embd.weight")
    endless = whole[:tokens] + struct.pack("<Q", 2**62) + whole[tokens + 8 :]
    broken = {
        b"GGML" + whole[4:]: "magic invalid",
        whole[:4] + struct.pack("<I", 9) + whole[8:]: "version 9",
        whole[:8] + struct.pack("<Q", 2**60) + whole[16:]: "can't be read",
        endless: "can't be read",
        whole[: tensor + 20] + struct.pack("<I", 999) + whole[tensor + 24 :]: r"999\)? is not a valid",
        whole[: tensor + 4] + struct.pack("<QQ", 2**63, 2**63) + whole[tensor + 20 :]: "can't be read",
    }
    for content, said in broken.items():
        assert content != whole
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "broken.gguf", tmp_path / "out")


def test_random_changes_of_the_header_are_refused_or_read(llama, tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", llama, "llama", "Q8_0").read_bytes()
    header, draw, refused = gguf_file.Reader(tmp_path / "m.gguf").data_offset, random.Random(1), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(header)] = draw.randrange(256)
        (tmp_path / "m.gguf").write_bytes(content)
        try:
            convert(tmp_path / "m.gguf", tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        except UserError:
            refused += 1
    assert 10 < refused < 60


def test_a_directory_that_holds_something_is_left_alone(llama, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", llama, "llama")
    (tmp_path / "empty").mkdir()
    convert(file, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").is_file()
    before = sorted((tmp_path / "empty").iterdir())
    with pytest.raises(UserError, match="empty is there already: name an empty or a new directory"):
        convert(file, tmp_path / "empty")
    assert sorted((tmp_path / "empty").iterdir()) == before


def test_without_the_package_the_error_says_how_to_install_it(llama, tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", llama, "llama")
    monkeypatch.setattr(gguf_file, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf, which isn't installed: python -m pip install gguf"):
        convert(file, tmp_path / "out")


def run(*argv: str | Path, before: str = "pass") -> subprocess.CompletedProcess:
    program = f"import runpy, sys; {before}; runpy.run_module('tools.gguf_to_safetensors', run_name='__main__')"
    words = [sys.executable, "-c", program, *map(str, argv)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_the_program_says_what_it_wrote_or_one_line(llama, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", llama, "llama", "Q8_0")
    done = run(file, tmp_path / "out", "--dtype", "float32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'out'}: 20 tensors, ")
    content, header = file.read_bytes(), gguf_file.Reader(file).data_offset
    (tmp_path / "nan.gguf").write_bytes(content[:header] + b"\xff" * (len(content) - header))  # scales that are no numbers
    for argv in (
        (file, tmp_path / "out"),
        (tmp_path / "none.gguf", tmp_path / "b"),
        (tmp_path, tmp_path / "c"),
        (tmp_path / "nan.gguf", tmp_path / "d"),
    ):
        done = run(*argv)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    done = run(file, tmp_path / "e", before="sys.modules['gguf'] = None")  # as where it isn't installed
    assert done.returncode == 2 and done.stderr.endswith("python -m pip install gguf\n")


def test_the_names_of_tensors_are_those_of_the_package():
    """A wrong entry in the tests' own table would be a wrong one in the tool's too."""
    for architecture in ("LLAMA", "QWEN2", "QWEN3"):
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], gguf_files.LAYERS)
        for hf_name in tensors_of(draw_model(architecture.lower(), tied=False)):
            module, _, kind = hf_name.rpartition(".")
            assert f"{names.get_name(module)}.{kind}" == gguf_files.gguf_name(hf_name)
