"""Every method on Llamas: with grouped heads and rotated positions, without biases, and with norms of queries and keys."""

import re

import pytest
import torch
import transformers
from torch.nn import functional as F

from model import fast_path, make_head
from model.llama import Llama, LlamaConfig, Qwen3Config, rotate
from model.weights import save_pretrained
from peft import (
    IA3,
    Adapter,
    BitFit,
    DoRA,
    FreezeBlocks,
    Joined,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    export,
    merge,
    restore,
)
from peft.targets import find_sites
from tests.helpers import methods
from tests.helpers.architectures import small_config
from tests.helpers.generation import assert_cached_as_plain
from tests.helpers.methods import ALL, FOLDED, IDS, NEUTRAL, logits, snapshot, tiny, train, trained_names
from tests.helpers.parity import CONTEXT, VOCAB, assert_same_on_real_tokens, distance, padding_mask
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # GPT-2 and BERT stand for these there
P = 5
KINDS = ("llama", "qwen3")
WITHOUT_BIASES = {name: chosen for name, chosen in ALL.items() if "BitFit" not in str(chosen)}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch) -> str:
    """Let `tiny` make a plain Llama, then a Qwen3. A Qwen2 is among the kinds of the other tests."""
    monkeypatch.setattr(methods, "ARCHITECTURE", request.param)
    return request.param


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("name", WITHOUT_BIASES)
def test_every_promise_of_a_method(name: str):
    chosen, base = ALL[name], tiny()
    model = attach(tiny(), chosen)
    if name in NEUTRAL:
        assert torch.equal(logits(model), logits(base))
    before, names = snapshot(model), trained_names(model)
    expected = logits(train(model))
    after = snapshot(model)
    assert {one for one in after if not torch.equal(after[one], before[one])} == names
    assert {one for one, parameter in model.named_parameters() if parameter.grad is not None} == names
    torch.manual_seed(77)
    fresh = attach(tiny(), chosen)
    assert not torch.allclose(logits(fresh), expected, atol=1e-3)
    assert torch.equal(logits(restore(fresh, export(model))), expected)
    with torch.no_grad():  # one query in the last block
        torch.testing.assert_close(fast_path.logits(model, model.embed(IDS)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(merge(model)), expected, atol=1e-5, rtol=0)
    if name in FOLDED:
        assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]


@pytest.mark.parametrize("method", [BitFit(), Joined((LoRA(), Adapter(), BitFit(train_head=False)))])
def test_biases_that_are_not_there(kind, method):
    """Those of an adapter aren't the model's."""
    with pytest.raises(UserError) as caught:
        attach(tiny(), method)
    expected = "bitfit trains biases, and the blocks of this Llama have none; choose lora or last_block"
    assert str(caught.value) == expected


# --- which parts


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attn.q", "blocks.[012].attn.q"),
        ("q_proj", "blocks.[012].attn.q"),
        ("self_attn.q_proj,o_proj", "blocks.[012].attn.(q|out)"),
        ("model.layers.1.self_attn.q_proj", "blocks.1.attn.q"),
        ("mlp", "blocks.[012].mlp.(gate|up|down)"),
        ("mlp.gate", "blocks.[012].mlp.gate"),
        ("mlp.gate_proj,0-1.up_proj", "blocks.([012].mlp.gate|[01].mlp.up)"),
        ("score", "head.classifier"),
        ("all", "blocks.[012].(attn.(q|k|v|out)|mlp.(gate|up|down))|head.classifier"),
    ],
)
def test_targets_by_our_names_and_the_published(kind, targets, expected):
    model = tiny()
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = list(find_sites(model, targets))
    assert found and found == [path for path in linears if re.fullmatch(expected, path)]
    added = {f"{path}.lora_{ab}" for path in found for ab in "ab"}
    assert trained_names(attach(model, LoRA(targets=targets, train_head=False))) == added


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("mlp", "blocks.1.mlp.(gate|up|down).weight"),
        ("qkv", "blocks.1.attn.[qkv].weight"),
        ("norm", "blocks.1.((attn|mlp)_norm|attn.[qk]_norm).weight"),
        ("input_layernorm,v_proj", "blocks.1.(attn_norm|attn.v).weight"),
    ],
)
def test_parts_of_a_block(kind, part, expected):
    model = tiny()
    wanted = {name for name, _ in model.named_parameters() if re.fullmatch(expected, name)}
    assert trained_names(attach(model, FreezeBlocks("1", part, train_head=False))) == wanted
    assert any("q_norm" in name for name in wanted) == (kind == "qwen3" and part == "norm")


def test_dropout_is_left_out_while_a_method_is_attached():
    model = Llama(small_config("llama", dropout=0.5))
    model.head = make_head(model, "lm")
    attach(model.train(), PromptTuning(P))
    assert model.training
    apart = (model.token_embedding.weight - model.prompt.weight[:, None]).abs().amax(-1)  # [P, V]
    assert torch.equal(apart.amin(-1), torch.zeros(P))  # each is a token's


# --- what stands in front of a text

FAR = {"vocab_size": VOCAB, "context_length": CONTEXT, "dim": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3}
FAR |= {"head_dim": 16, "mlp_dim": 48, "tied": False}
CONFIGS = {
    "llama": LlamaConfig(**FAR),
    "qwen3": Qwen3Config(**FAR),
    "with windows": Qwen3Config(**FAR, window=4, window_layers=(0, 2)),
    "some don't rotate": LlamaConfig(**FAR, layers_without_rotation=(1,)),
}


def far(name: str) -> torch.nn.Module:
    """Return a model of CONFIGS with weights far from those it starts with."""
    torch.manual_seed(1)
    model = Llama(CONFIGS[name])
    model.head = make_head(model, "lm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.eval()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("method", [PrefixTuning(P), PrefixTuning(P, projection=True), PromptTuning(P)], ids=str)
def test_logits_and_gradients_equal_the_library_s(name, side, method, tmp_path):
    """The positions of the text are those without anything in front, whatever the padding."""
    ours, plain = far(name), far(name)
    save_pretrained(plain, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    attach(ours, method)
    ids, mask = torch.randint(VOCAB, (3, 20)), padding_mask(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # [B, T]
    wide = F.pad(mask, (P, 0), value=1)
    if isinstance(method, PrefixTuning):
        cache = transformers.DynamicCache()
        for number, block in enumerate(ours.blocks):
            pairs = block.attn.prefix().unflatten(-1, (2, -1)).transpose(1, 2)  # [2, P, K d] -> [2, K, P, d]
            cache.update(*(one.expand(3, -1, -1, -1) for one in pairs), number)
        expected = theirs(ids, attention_mask=wide, position_ids=positions, past_key_values=cache).logits
    else:
        embedded = torch.cat([ours.prompt.weight.expand(3, -1, -1), theirs.model.embed_tokens(ids)], dim=1)
        places = torch.cat([torch.arange(P).expand(3, -1), positions + P], dim=1)
        expected = theirs(inputs_embeds=embedded, attention_mask=wide, position_ids=places).logits[:, P:]
    found = ours(ids, mask)
    assert_same_on_real_tokens(ours, found, expected, ids, mask)
    assert distance(found[mask.bool()], plain(ids, mask)[mask.bool()]) > 0.01  # it does something


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_by_hand(name):
    """One text, position by position: the prefix's keys aren't turned, and no window hides them."""
    model, length = far(name), 9
    hidden = model.blocks[2].attn_norm(model.run_blocks(model.embed(torch.randint(VOCAB, (1, length))), None, 0, 2))
    attach(model, PrefixTuning(P, layers="2"))
    attn = model.blocks[2].attn
    q, k, v = (getattr(attn, part)(hidden)[0].unflatten(-1, (-1, 16)).transpose(0, 1) for part in "qkv")  # [heads, T, d]
    turns = model.rotation(torch.arange(length)[None])
    q, k = rotate(attn.q_norm(q)[None], turns)[0], rotate(attn.k_norm(k)[None], turns)[0]
    keys, values = attn.prefix().unflatten(-1, (2, 16)).transpose(1, 2)  # [K, P, d] each
    rows = []
    for t in range(length):
        first = 0 if attn.window is None else max(0, t + 1 - attn.window)
        heads = []
        for h in range(4):
            of_keys = torch.cat([keys[h // 2], k[h // 2, first : t + 1]])
            of_values = torch.cat([values[h // 2], v[h // 2, first : t + 1]])
            heads.append((of_keys @ q[h, t] / 16**0.5).softmax(0) @ of_values)
        rows.append(torch.cat(heads))
    found = attn(hidden, None, turns)[0]
    torch.testing.assert_close(found, attn.out(torch.stack(rows)), atol=1e-5, rtol=1e-5)


IN_FRONT = {
    "prefix": PrefixTuning(P),
    "prefix in two blocks, and LoRA": Joined((PrefixTuning(P, layers="1-2"), LoRA(rank=4, targets="all"))),
    "prompt": PromptTuning(P),
    "prompt and DoRA": Joined((PromptTuning(P), DoRA(rank=4, targets="mlp"))),
}
PLACES = [(name, one) for name in CONFIGS for one in IN_FRONT if not (name == "with windows" and "prompt" in one)]


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), PLACES)
def test_each_of_several_texts_in_a_row_sees_it(name, method):
    model = attach(far(name), IN_FRONT[method])
    one, other = torch.randint(VOCAB, (1, 6)), torch.randint(VOCAB, (1, 4))
    documents = torch.tensor([[1] * 6 + [2] * 4])
    positions = torch.tensor([[*range(6), *range(4)]])
    found = model(torch.cat([one, other], 1), documents[:, :, None] == documents[:, None, :], positions=positions)
    expected = torch.cat([model(one), model(other)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), PLACES)
def test_padding_on_either_side_changes_nothing(name, method):
    model = attach(far(name), IN_FRONT[method])
    text = torch.randint(VOCAB, (1, 13))
    for side in ("left", "right"):
        mask = padding_mask(side)
        ids = torch.full((3, 20), 7).masked_scatter(mask.bool() & (torch.arange(3) == 1)[:, None], text)
        found = model(ids, mask)[1][mask[1].bool()]
        torch.testing.assert_close(found, model(text)[0], atol=1e-4, rtol=1e-4)


CACHED = {"adapters": Adapter("houlsby", 2), "dora": DoRA(rank=4, targets="all"), "ia3": IA3()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "method"), [*PLACES, *((name, one) for name in ("llama", "with windows") for one in CACHED)]
)
def test_generation_with_a_cache_equals_without_token_by_token(name, method):
    model = attach(far(name), (IN_FRONT | CACHED)[method])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert_cached_as_plain(model, far(name))
