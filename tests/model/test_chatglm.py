"""Hold ChatGLM to figures of the published code: a model of 3 blocks, its gradients, training, positions, generation."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from model import config_of, from_pretrained, kv_cache
from model.chatglm import ChatGLM, ChatGLMConfig, rotate_halves, rotation
from model.generation import generate
from model.registry import CHATGLM_ENTRY, PUBLISHED, entries_of
from model.weights import save_pretrained
from tests.helpers.chatglm import PAD, checkpoint, close, figures, golden, loss_of, losses_of_ten_steps, tensors, untied
from utils.errors import UserError


@torch.no_grad()
def test_every_block_and_the_logits(checkpoint, tensors):
    model = untied(checkpoint)
    visible, positions = model.layout(tensors["A.input_ids"])
    assert torch.equal(visible, tensors["A.attention_mask"][:, 0] == 0)
    assert torch.equal(positions, tensors["A.position_ids"])
    hidden = model.embed(tensors["A.input_ids"])
    close(hidden, tensors["A.hidden.embed"])
    inputs = model.block_inputs(hidden, visible, positions)
    for number, block in enumerate(model.blocks):
        normed = block.attn_norm(hidden)
        close(normed, tensors[f"A.layer{number}.input_layernorm_out"])
        attended = block.attn(normed, *inputs)
        close(attended, tensors[f"A.layer{number}.attention_out"])
        close(block.mlp(block.mlp_norm(block.alpha * normed + attended)), tensors[f"A.layer{number}.mlp_out"])
        hidden = model.run_blocks(hidden, visible, number, number + 1, positions)
        close(hidden, tensors[f"A.hidden.block{number}"])
    close(model.final_norm(hidden), tensors["A.hidden.final_layernorm"])
    close(model(tensors["A.input_ids"]), tensors["A.logits"])
    close(model.head(model.encode(tensors["A.input_ids"])), tensors["A.logits"])


@torch.no_grad()
def test_attention_weights_and_the_cache(checkpoint, tensors):
    model = untied(checkpoint)
    hidden, (visible, positions) = model.embed(tensors["A.input_ids"]), model.layout(tensors["A.input_ids"])
    mask, turns = model.block_inputs(hidden, visible, positions)
    for number in (0, 2):
        attn = model.blocks[number].attn
        states = model.blocks[number].attn_norm(model.run_blocks(hidden, visible, 0, number, positions))
        q, k, v = attn.qkv(states).unflatten(-1, (attn.n_heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        q, k = rotate_halves(q, turns), rotate_halves(k, turns)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        close(weights, tensors[f"A.attn_probs.layer{number}"])
        if not number:  # published are [T, B, H, d]
            close(k.permute(2, 0, 1, 3), tensors["A.kv.layer0.key"])
            close(v.permute(2, 0, 1, 3), tensors["A.kv.layer0.value"])


@torch.no_grad()
def test_a_head_in_the_files_is_left_unread(checkpoint, tensors, figures):
    model = from_pretrained(checkpoint).eval()
    assert model.config.tied and model.head.weight is model.token_embedding.weight
    close(model(tensors["A.input_ids"]), tensors["A.tied.logits"])
    assert loss_of(model, tensors).item() == pytest.approx(figures["A.tied.loss"], abs=1e-4)


@torch.no_grad()
def test_alpha_is_a_setting_of_its_own(checkpoint, tensors, figures):
    model = untied(checkpoint, alpha=6**0.5)
    close(model(tensors["A.input_ids"]), tensors["A.alpha_sqrt6.logits"])
    assert ChatGLMConfig().alpha == ChatGLMConfig(n_layers=3).alpha == pytest.approx(figures["alpha_used"])


def test_gradients(checkpoint, tensors, figures):
    model = untied(checkpoint)
    loss = loss_of(model, tensors)
    assert loss.item() == pytest.approx(figures["A.loss"], abs=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = {entry.hf_name: parameters[entry.names[0]].grad.norm().item() for entry in entries_of(model) if entry.names}
    assert norms == pytest.approx(figures["A.grad_norms"], rel=1e-4)
    whole = [name for name in tensors if name.startswith("A.grad.")]
    by_name = {f"A.grad.{entry.hf_name}": parameters[entry.names[0]].grad for entry in entries_of(model) if entry.names}
    assert len(whole) == 9
    for name in whole:
        torch.testing.assert_close(by_name[name], tensors[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tied", "decay", "name"),
    [(False, 0.0, "A.adamw_lr1e-3_wd0.0_losses"), (False, 0.01, "A.adamw_lr1e-3_wd0.01_losses"),
     (True, 0.0, "A.tied.adamw_lr1e-3_wd0_losses")],
)  # fmt: skip
def test_ten_steps(checkpoint, tensors, figures, tied, decay, name):
    model = from_pretrained(checkpoint) if tied else untied(checkpoint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    assert losses_of_ten_steps(model, optimizer, tensors) == pytest.approx(figures[name], abs=1e-4)
    if name == "A.adamw_lr1e-3_wd0.0_losses":
        close(model.final_norm.bias.detach(), tensors["A.after10.final_layernorm.bias"])
        close(model.blocks[0].attn.qkv.bias.detach(), tensors["A.after10.layers.0.attention.query_key_value.bias"])


@torch.no_grad()
@pytest.mark.parametrize("row", range(4))
def test_padding_on_the_left(checkpoint, tensors, figures, row):
    """The published tokenizer takes [MASK] where a text has [gMASK] too, the model the other: row 3 has both."""
    model, ids = untied(checkpoint), tensors["B.input_ids"]
    real = ids != PAD
    alone = torch.tensor([figures["B.rows"][row]])
    _, positions = model.layout(alone)
    assert positions[0].tolist() == figures["B.own"][row]["model_position_ids"]
    close(model(alone)[0], tensors[f"B.own{row}.logits"])
    close(model(ids, real.long())[row][real[row]], tensors[f"B.own{row}.logits"])
    visible = tensors["B.attention_mask"][:, 0] == 0
    assert torch.equal(model.layout(ids, real.long())[0][row][real[row]], visible[row][real[row]])
    hidden = model.run_blocks(
        model.embed(ids), visible | ~visible.any(2, keepdim=True), positions=tensors["B.position_ids"]
    )
    close(model.head(model.final_norm(hidden))[row][real[row]], tensors["B.logits"][row][real[row]])


@torch.no_grad()
def test_without_a_mask_padding_is_a_token_like_any_other(checkpoint, tensors):
    model = untied(checkpoint)
    assert torch.equal(model.layout(tensors["B.input_ids"])[1], tensors["B.nomask.position_ids"])
    close(model(tensors["B.input_ids"]), tensors["B.nomask.logits"])


def test_positions_and_masks_of_the_version_that_is_read(golden):
    vintages = json.loads((golden / "positions_vintages.json").read_text())["vintages"]
    with torch.device("meta"):
        model = ChatGLM(replace(PUBLISHED["chatglm-6b"], dim=64, n_heads=4, n_layers=1, mlp_dim=8, vocab_size=8))
    read = [name for name in vintages if name[:10] >= "2023-04-14"]
    assert len(read) == 3
    for name in read:
        for case in vintages[name]["2d"].values():
            visible, positions = model.layout(torch.tensor([case["ids"]]))
            assert positions[0].tolist() == case["forward_position_ids"] == case["generation_first_position_ids"]
            assert ["".join(str(int(not one)) for one in row) for row in visible[0]] == case["forward_mask_rows"]
            behind = model.places_behind(positions[..., -1:], None)
            assert behind[0].tolist() == case["generation_next_position_ids"]


def test_rotation_bit_for_bit(golden):
    tables = load_file(golden / "rotary.safetensors")
    positions = tables["positions"][None, None].expand(1, 2, -1)
    for name, dtype in (("float", torch.float32), ("half", torch.float16)):
        cos, sin = rotation(positions, 128, dtype)
        for half in range(2):
            assert torch.equal(cos[0, 0, :, half].repeat(1, 2), tables[f"{name}.cos"])
            assert torch.equal(sin[0, 0, :, half].repeat(1, 2), tables[f"{name}.sin"])
    turns = rotation(tables["ex.position_ids"], 16)
    for name in "qk":  # published are [T, B, H, d]
        turned = rotate_halves(tables[f"ex.{name}"].permute(1, 2, 0, 3), turns)
        close(turned.permute(2, 0, 1, 3), tables[f"ex.{name}_out"])
    close(F.gelu(tables["gelu.x"], approximate="tanh"), tables["gelu.y"])


@pytest.fixture(scope="module")
def generations(golden) -> dict:
    return json.loads((golden / "generation_tiny.json").read_text())


def test_greedy_answers(checkpoint, generations):
    model = untied(checkpoint)
    for case in generations["single"]:
        ids = torch.tensor([case["prompt"]])
        assert generate(model, ids, max_new_tokens=20) == [case["out_cache1_auto"]]
        plainly = ids
        with torch.no_grad():
            for _ in range(20):
                plainly = torch.cat([plainly, model(plainly)[:, -1:].argmax(-1)], dim=1)
        assert plainly[0, ids.shape[1] :].tolist() == case["out_cache0_auto"]


def test_greedy_answers_of_a_batch(checkpoint, generations):
    model, batch = untied(checkpoint), generations["batch"]
    ids = torch.tensor(batch["input_ids"])
    _, positions = model.layout(ids, (ids != PAD).long())
    assert positions.tolist() == batch["position_ids"]
    assert generate(model, ids, (ids != PAD).long(), max_new_tokens=20) == batch["out_cache1"]


def test_an_answer_ends_with_its_last_token(checkpoint, generations):
    case, model = generations["eos_stop"], untied(checkpoint)
    found = generate(model, torch.tensor([case["prompt"]]), max_new_tokens=20, eos_id=case["eos_token_id"])
    assert found == [case["out"][:-1]] or found == [[token for token in case["out"] if token != case["eos_token_id"]]]


def test_the_first_positions_of_an_answer(checkpoint, generations):
    model = untied(checkpoint)
    first, second, *_ = generations["trace_auto"]
    ids, cache = torch.tensor(first["input_ids"]), kv_cache.KVCache(model)
    with torch.no_grad():
        kv_cache.next_logits(model, ids, None, None, cache)
    assert model.layout(ids)[1].tolist() == first["position_ids"]
    assert model.places_behind(cache.last_places, None).tolist() == second["position_ids"]


# --- settings and files


def test_the_published_configuration(golden, tmp_path):
    (tmp_path / "config.json").write_text((golden / "published_config.json").read_text())
    assert config_of(tmp_path) == PUBLISHED["chatglm-6b"]
    with torch.device("meta"):
        model = ChatGLM(replace(config_of(tmp_path), n_layers=1))
    norms = [one for one in model.modules() if isinstance(one, torch.nn.LayerNorm)]
    assert [one.eps for one in norms] == [1e-5] * 3  # 1e-6 would move the logits by no more than 2.7e-5


def test_the_names_and_shapes_of_the_published_index(golden):
    index = json.loads((golden / "published_index.json").read_text())["weight_map"]
    with torch.device("meta"):
        model = CHATGLM_ENTRY.model(PUBLISHED["chatglm-6b"])
        model.head = CHATGLM_ENTRY.lm_head(model)
    assert {entry.hf_name for entry in entries_of(model)} == set(index) and len(index) == 28 * 13 + 4
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_173_286_400
    assert sum(parameter.numel() for parameter in model.blocks[0].parameters()) == 201_379_840
    assert model.token_embedding.weight.numel() == 6_707_929_088 - 6_173_286_400  # the published count without the tie


def test_it_is_written_as_it_is_read(checkpoint, tensors, tmp_path):
    model = from_pretrained(checkpoint).eval()
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path).eval()
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(tensors["A.input_ids"]), model(tensors["A.input_ids"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gmask_token_id": 150001, "vocab_size": 150528}, "files of March 2023.*Take the revision main"),
        ({"padded_vocab_size": 65024}, "ChatGLM2 or later"),
        ({"position_encoding_2d": False}, "position_encoding_2d"),
        ({"pre_seq_len": 128}, "pre_seq_len"),
        ({"quantization_bit": 4}, "quantization_bit"),
        ({"num_attention_heads": 5}, "64 isn't divisible"),
        ({"num_attention_heads": 32}, "width of a head, 2"),
        ({"mask_token_id": "x"}, "mask_token_id"),
    ],
)
def test_other_settings_are_refused(figures, tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(figures["config"] | {"model_type": "chatglm"} | changes))
    with pytest.raises(UserError, match=message):
        config_of(tmp_path)


def test_a_text_without_its_marks(checkpoint):
    model = from_pretrained(checkpoint)
    with pytest.raises(UserError, match=r"text 0 of the batch has no .* with <sop> behind it"):
        model(torch.tensor([[5, 6, 291]]))
    with pytest.raises(UserError, match="with <sop> behind it"):
        model(torch.tensor([[5, 6, 294]]))
    with pytest.raises(UserError, match="several texts in a row"):
        model(torch.tensor([[5, 291, 294]]), torch.ones(1, 3, 3))
    with pytest.raises(UserError, match="layout"):
        model.run_blocks(torch.zeros(1, 3, 64))
    with pytest.raises(UserError, match="no classifier"):
        from_pretrained(checkpoint, head="classifier")
