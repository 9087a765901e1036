"""Layers by path and blocks by number: what a choice means, and what it says where it means nothing."""

import pytest
import torch
from torch import nn

from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from model.registry import ARCHITECTURES
from peft import Adapter, Bypass, LoRA, attach
from peft.targets import find_parts, find_sites, hf_paths, parse_layers
from utils.errors import UserError


def tiny(n_layers: int = 21) -> GPT2:
    with torch.device("meta"):  # names and shapes are all that matters here
        return GPT2(GPT2Config(vocab_size=50, context_length=16, dim=8, n_heads=2, n_layers=n_layers), ClassifierHead(8, 2))


def sites(targets: str, layers: str = "all") -> list[str]:
    return list(find_sites(tiny(), targets, layers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", list(range(28))),
        ("first3", [0, 1, 2]),
        ("last3", [25, 26, 27]),
        ("25-27", [25, 26, 27]),
        ("0,2,5-7", [0, 2, 5, 6, 7]),
        (" 7 , last1 ,2, 7", [2, 7, 27]),
        ("first28", list(range(28))),
    ],
)
def test_blocks_by_number(text: str, expected: list[int]):
    assert parse_layers(text, 28) == expected


@pytest.mark.parametrize("text", ["28", "25-28", "7-5", "first0", "last0", "first29", "last29", "0,99"])
def test_blocks_that_are_not_there(text: str):
    with pytest.raises(UserError) as caught:
        parse_layers(text, 28)
    culprit = text.split(",")[-1]
    assert str(caught.value).startswith(f"--layers {text!r}: {culprit} isn't there; the model has blocks 0-27; choose all")


@pytest.mark.parametrize("text", ["", "top", "-1", "1-", "3.5", "first", "0,,1", "lastx", "1 2"])
def test_blocks_in_no_known_form(text: str):
    with pytest.raises(UserError) as caught:
        parse_layers(text, 28)
    assert f"--layers {text!r} names no blocks by" in str(caught.value) and "last3, or numbers" in str(caught.value)


def test_targets_are_components_in_order_whether_or_not_adjacent():
    assert sites("5.q") == sites("5.attn.q") == sites("blocks.5.q") == ["blocks.5.attn.q"]  # not that of block 15
    assert sites("0.attn") == [f"blocks.0.attn.{name}" for name in ("q", "k", "v", "out")]  # not of blocks 10 and 20
    assert sites("q") == sites("attn.q") == [f"blocks.{i}.attn.q" for i in range(21)]
    assert sites("2-5.q") == [f"blocks.{i}.attn.q" for i in range(2, 6)]
    assert {path.split(".")[1] for path in sites("2-5")} == {"2", "3", "4", "5"} and len(sites("2-5")) == 4 * 6
    assert sites("last1.up,first1.q,head") == ["blocks.0.attn.q", "blocks.20.mlp.up", "head.classifier"]


def test_layers_narrow_the_targets_and_leave_the_head():
    assert sites("q,v", "last2") == [f"blocks.{i}.attn.{name}" for i in (19, 20) for name in "qv"]
    assert sites("all", "3")[-1] == "head.classifier" and len(sites("all", "3")) == 7
    with pytest.raises(UserError, match=r"the targets '5\.q' match nothing in --layers '4'"):
        sites("5.q", "4")


@pytest.mark.parametrize("target", ["21", "20-21.q", "7-5", "last22.mlp"])
def test_a_target_beyond_the_blocks_names_the_limit(target: str):
    with pytest.raises(UserError, match=f"the target '{target}': .* isn't there; the model has blocks 0-20;"):
        sites(f"attn.q,{target}")


def test_what_other_methods_added_is_no_target():
    model = tiny(2)
    before = list(find_sites(model, "all"))
    attach(model, Adapter(reduction_factor=4))
    attach(model, Bypass())
    assert any(".adapter." in name for name, _ in model.named_modules()) and hasattr(model.head, "branches")
    assert list(find_sites(model, "all")) == before
    with pytest.raises(UserError, match="matches no Linear layer"):
        find_sites(model, "branches")
    with pytest.raises(UserError, match="matches no part of a block"):
        find_parts(model, "all", "adapter")


def test_parts_that_are_not_there_list_the_choices():
    with pytest.raises(UserError) as caught:
        find_parts(tiny(2), "all", "attention")
    message = str(caught.value)
    assert message.startswith("the target 'attention' matches no part of a block: choose all, attn, attn.k, ")
    for choice in message.split("choose ")[1].split(", "):
        assert find_parts(tiny(2), "all", choice)
    with pytest.raises(UserError, match="matches no part"):
        find_parts(tiny(2), "all", "head")


# The checkpoint's own names


def test_gpt2s_own_names():
    assert hf_paths(tiny())["blocks.3.attn.k"] == "transformer.h.3.attn.c_attn"
    assert sites("h.3.attn.c_attn") == sites("3.c_attn") == [f"blocks.3.attn.{name}" for name in "qkv"]  # one fused layer
    assert sites("transformer.h.0.mlp.c_proj") == ["blocks.0.mlp.down"]
    assert sites("c_proj") == [f"blocks.{i}.{name}" for i in range(21) for name in ("attn.out", "mlp.down")]
    assert sites("score") == ["head.classifier"]
    assert sites("10-11.c_fc") == ["blocks.10.mlp.up", "blocks.11.mlp.up"]


def encoder(kind: str) -> nn.Module:
    """A model of 13 blocks with the names of its kind."""
    architecture = ARCHITECTURES[kind]
    config = architecture.config(vocab_size=50, context_length=16, dim=8, n_heads=2, n_layers=13, mlp_dim=16)
    with torch.device("meta"):
        return architecture.model(config, architecture.classifier_head(config, 2, "first", False))


def test_the_targets_of_the_distilbert_log():
    model = encoder("distilbert")
    found = list(
        find_sites(model, "transformer.layer.2.attention.q_lin,transformer.layer.2.attention.out_lin,pre_classifier")
    )
    assert found == ["blocks.2.attn.q", "blocks.2.attn.out", "head.dense"]  # not of block 12
    assert len(find_sites(model, "q_lin,k_lin,v_lin,out_lin,pre_classifier,classifier")) == 13 * 4 + 2
    assert list(find_sites(model, "distilbert.transformer.layer.5.ffn.lin2")) == ["blocks.5.mlp.down"]
    assert list(find_sites(model, "attn.q,lin1", "0")) == ["blocks.0.attn.q", "blocks.0.mlp.up"]  # ours beside theirs
    assert list(find_parts(model, "3", "attention")) == [f"blocks.3.attn.{name}" for name in ("q", "k", "v", "out")]


def test_where_a_name_is_ours_and_theirs_ours_is_meant():
    model = encoder("bert")
    assert list(find_sites(model, "dense")) == ["head.dense"]
    assert list(find_sites(model, "encoder.layer.2.attention.self.query")) == ["blocks.2.attn.q"]
    assert list(find_sites(model, "2.attention.output.dense")) == ["blocks.2.attn.out"]
    assert list(find_sites(model, "pooler")) == ["head.dense"]
    assert list(find_sites(model, "query,value", "12")) == ["blocks.12.attn.q", "blocks.12.attn.v"]


def test_a_dense_layer_of_the_head_is_adapted_while_the_head_stays():
    model = attach(encoder("distilbert"), LoRA(rank=2, targets="5.q_lin,pre_classifier", train_head=False))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{path}.lora_{ab}" for path in ("blocks.5.attn.q", "head.dense") for ab in "ab"}
