"""Methods on ChatGLM: P-Tuning v2 held to figures of the published code, and the log's names of layers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model import from_pretrained
from model.generation import generate
from model.registry import CHATGLM_ENTRY, PUBLISHED
from peft import Freeze, FreezeBlocks, LoRA, PrefixTuning, PromptTuning, attach, export, merge, restore
from peft.targets import find_parts, find_sites
from tests.helpers.chatglm import checkpoint, close, figures, golden, loss_of, losses_of_ten_steps, tensors, untied
from utils.errors import UserError

P, L, D = 4, 3, 64
ENCODER = "transformer.prefix_encoder."


@pytest.fixture(scope="module")
def prefixes(golden):
    return load_file(golden / "ptuning_tiny.safetensors"), json.loads((golden / "ptuning_tiny.json").read_text())


def with_prefix(checkpoint, prefixes, kind: str):
    """Return the untied model with the published encoder's values, where one tensor holds those of all layers."""
    model = attach(untied(checkpoint), PrefixTuning(P, projection=kind == "proj"))
    state = {name.split(ENCODER)[-1]: one for name, one in prefixes[0].items() if name.startswith(f"{kind}.state.")}
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            prefix, own = block.attn.prefix, slice(2 * number * D, 2 * (number + 1) * D)
            if kind == "noproj":
                prefix.weight.copy_(state["embedding.weight"][:, own].unflatten(-1, (2, D)).transpose(0, 1))
            else:
                prefix.up.weight.copy_(state["trans.2.weight"][own])
                prefix.up.bias.copy_(state["trans.2.bias"][own])
        if kind == "proj":
            trunk = model.blocks[0].attn.prefix.trunk
            trunk.embedding.copy_(state["embedding.weight"])
            trunk.dense.weight.copy_(state["trans.0.weight"])
            trunk.dense.bias.copy_(state["trans.0.bias"])
    return model.eval()


@pytest.mark.parametrize("kind", ["noproj", "proj"])
def test_a_prefix_as_published(kind, checkpoint, tensors, prefixes):
    (published, numbers), model = prefixes, with_prefix(checkpoint, prefixes, kind)
    for number, block in enumerate(model.blocks):
        keys, values = block.attn.prefix().detach().unflatten(-1, (4, -1))  # [P, H, d] each
        close(keys, published[f"{kind}.kv.layer{number}.key"])
        close(values, published[f"{kind}.kv.layer{number}.value"])
    with torch.no_grad():
        close(model(tensors["A.input_ids"]), published[f"{kind}.logits"])
        close(model.encode(tensors["A.input_ids"]), published[f"{kind}.hidden.final_layernorm"])
    loss = loss_of(model, tensors)
    assert loss.item() == pytest.approx(numbers[kind]["loss"], abs=1e-5)
    loss.backward()
    if kind == "noproj":
        blocks = [block.attn.prefix.weight.grad.transpose(0, 1).flatten(1) for block in model.blocks]  # [P, 2 D] each
        found = {"embedding.weight": torch.cat(blocks, dim=1)}
    else:
        trunk, ups = model.blocks[0].attn.prefix.trunk, [block.attn.prefix.up for block in model.blocks]
        found = {
            "embedding.weight": trunk.embedding.grad,
            "trans.0.weight": trunk.dense.weight.grad,
            "trans.0.bias": trunk.dense.bias.grad,
            "trans.2.weight": torch.cat([up.weight.grad for up in ups]),
            "trans.2.bias": torch.cat([up.bias.grad for up in ups]),
        }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, published[f"{kind}.grad.{ENCODER}{name}"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rate", ["0.001", "0.01"])
@pytest.mark.parametrize("kind", ["noproj", "proj"])
def test_ten_steps_of_a_prefix(kind, rate, checkpoint, tensors, prefixes):
    model = with_prefix(checkpoint, prefixes, kind)  # without dropout, as published for these figures
    trained = [one for name, one in model.named_parameters() if one.requires_grad and not name.startswith("head")]
    optimizer = torch.optim.AdamW(trained, lr=float(rate), weight_decay=0.0)
    expected = prefixes[1][kind][f"adamw_lr{rate}_wd0_losses"]
    assert losses_of_ten_steps(model, optimizer, tensors) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["noproj", "proj"])
def test_answers_with_a_prefix(kind, checkpoint, prefixes):
    model = with_prefix(checkpoint, prefixes, kind)
    for case in prefixes[1][kind]["generation"]:
        assert generate(model, torch.tensor([case["prompt"]]), max_new_tokens=20) == [case["out_cache1_auto"]]


def test_a_prefix_is_dropped_out_in_training_alone(checkpoint, tensors):
    model = attach(from_pretrained(checkpoint), PrefixTuning(P, dropout=0.5))
    ids = tensors["A.input_ids"]
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(ids), model(ids))
        model.train()
        torch.manual_seed(1)
        one = model(ids[:1].repeat(2, 1))
        assert not torch.equal(one[0], one[1])  # each text draws its own


def published_model(method):
    """Return the published model on the meta device, with a method attached."""
    with torch.device("meta"):
        model = CHATGLM_ENTRY.model(PUBLISHED["chatglm-6b"])
        model.head = CHATGLM_ENTRY.lm_head(model)
        return attach(model, method)


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        (PrefixTuning(16), 3_670_016),
        (PrefixTuning(128), 128 * 2 * 28 * 4096),
        (LoRA(8, 32, targets="query_key_value"), 28 * 8 * (4096 + 12288)),
        (LoRA(8, 32, targets="25.attention.query_key_value,26-27.query_key_value"), 3 * 8 * (4096 + 12288)),
        (FreezeBlocks("last3", "mlp"), 3 * (2 * 4096 * 16384 + 16384 + 4096)),
        (FreezeBlocks("first3", "qkv"), 3 * (3 * 4096 * 4096 + 3 * 4096)),
        (Freeze("all"), 6_173_286_400),
    ],
    ids=str,
)
def test_how_much_trains_of_the_published_model(method, trained):
    model = published_model(method)
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == trained


def test_the_tool_of_that_month_found_targets_by_how_names_end():
    model = published_model(LoRA(8, 32, targets="query_key_value"))
    first3 = ",".join(f"{i}.attention.query_key_value" for i in range(3))
    nine = [f"blocks.{i}.attn.qkv" for i in (0, 1, 2, 10, 11, 12, 20, 21, 22)]
    assert [*find_sites(model, first3, matching="endswith")] == nine
    assert len(find_sites(model, first3)) == 3
    last3 = ",".join(f"{i}.attention.query_key_value" for i in (25, 26, 27))
    assert [*find_sites(model, last3, matching="endswith")] == [*find_sites(model, last3)]
    with pytest.raises(UserError, match=r"ends with 'attn.qkv': they end with attention.dense, attention.query_key_value"):
        find_sites(model, "attn.qkv", matching="endswith")


def test_the_names_of_the_log():
    model = published_model(LoRA(8, 32, targets="query_key_value"))
    assert [*find_sites(model, "25.attention.query_key_value")] == ["blocks.25.attn.qkv"]
    assert [*find_sites(model, "transformer.layers.2.mlp.dense_h_to_4h")] == ["blocks.2.mlp.up"]
    assert [*find_sites(model, "2.attention.dense")] == ["blocks.2.attn.out"]  # not of block 12 or 22
    assert next(iter(find_parts(model, "27", "mlp"))) == "blocks.27.mlp"
    assert [*find_parts(model, "27", "qkv")] == ["blocks.27.attn.qkv"]


@pytest.mark.parametrize("method", [LoRA(4, targets="all"), PrefixTuning(P), FreezeBlocks("last1", "qkv")], ids=str)
def test_a_method_trains_and_comes_back(method, checkpoint, tensors):
    model = attach(from_pretrained(checkpoint), method).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    before = loss_of(model, tensors).item()
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, tensors).backward()
        optimizer.step()
    assert loss_of(model, tensors).item() < before
    again = restore(attach(from_pretrained(checkpoint), method), export(model)).eval()
    with torch.no_grad():
        expected = model.eval()(tensors["A.input_ids"])
        assert torch.equal(again(tensors["A.input_ids"]), expected)
        close(merge(model)(tensors["A.input_ids"]), expected)


def test_a_prompt_has_no_place(checkpoint):
    with pytest.raises(UserError, match="choose prefix"):
        attach(from_pretrained(checkpoint), PromptTuning(P))
