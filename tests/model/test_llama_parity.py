"""Hold the Llama family to the reference library on drawn weights: logits, gradients, steps, padding, the cache."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from model import fast_path, from_pretrained, kv_cache
from model.generation import generate, left_padded
from model.registry import entries_of
from model.weights import save_pretrained

SIZES = {
    **{"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
FAR = {"rope_type": "default", "rope_theta": 1e6}
MEMBERS = {
    "llama": transformers.LlamaConfig(**SIZES, head_dim=8),
    "llama 3, tied, heads wider than D/H": transformers.LlamaConfig(
        **SIZES, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3
    ),
    "llama with biases": transformers.LlamaConfig(**SIZES, head_dim=8, attention_bias=True, mlp_bias=True),
    "llama, one head of keys": transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 1}),
    "llama, as many heads of keys": transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 6}),
    "mistral": transformers.MistralConfig(**SIZES, head_dim=8, sliding_window=None),
    "mistral with a window": transformers.MistralConfig(**SIZES, head_dim=8, sliding_window=5),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=FAR),
    "qwen2, windows from layer 2": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True, rope_parameters=FAR),
    "smollm3": transformers.SmolLM3Config(**SIZES),
    "smollm3 with windows": transformers.SmolLM3Config(**SIZES, use_sliding_window=True, sliding_window=6),
}
REAL = (21, 15, 8)  # tokens of three texts


def library_model(config, kind: str = "AutoModelForCausalLM"):
    """Make a model of the library, with weights far from those it starts with: no part can be missing unnoticed."""
    torch.manual_seed(1)
    model = getattr(transformers, kind).from_config(config).eval()
    for parameter in model.parameters():
        flat = parameter.ndim == 1
        torch.nn.init.normal_(parameter, mean=1.0 if flat else 0.0, std=0.3 if flat else 0.2)
    return model


@pytest.fixture(scope="module", params=MEMBERS)
def pair(request, tmp_path_factory):
    """Return a member's model of the library, ours of its files, and the directory."""
    directory = tmp_path_factory.mktemp("member")
    theirs = library_model(MEMBERS[request.param])
    theirs.save_pretrained(directory)
    return theirs, from_pretrained(directory).eval(), directory


def texts(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [3, 21] of texts with padding on that side."""
    torch.manual_seed(2)
    ids, places = torch.randint(3, 97, (3, 21)), torch.arange(21)
    lengths = torch.tensor(REAL)[:, None]
    mask = places < lengths if side == "right" else places >= 21 - lengths
    return ids.masked_fill(~mask, 0), mask.long()


def close(found: torch.Tensor, expected: torch.Tensor, to: float = 1e-5) -> None:
    """Assert that two tensors differ by no more than `to` of the largest number."""
    assert (found - expected).abs().max() <= to * expected.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_gradients(pair, side):
    theirs, ours, _ = pair
    ids, mask = texts(side)
    real = mask.bool()
    expected = theirs(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[real]
    found = ours(ids, mask)[real]
    close(found, expected)
    weights = torch.randn_like(expected)
    named = dict(theirs.named_parameters())
    expected_gradients = dict(zip(named, torch.autograd.grad((expected * weights).sum(), named.values()), strict=True))
    ours.zero_grad()
    (found * weights).sum().backward()
    parameters, compared = dict(ours.named_parameters()), 0
    for entry in entries_of(ours):
        if entry.names and all(name in parameters for name in entry.names):
            close(parameters[entry.names[0]].grad, expected_gradients[entry.hf_name], 1e-4)
            compared += 1
    assert compared == len(named)


@torch.no_grad()
def test_hidden_states_of_each_block(pair):
    theirs, ours, _ = pair
    ids, _ = texts("right")
    expected = theirs(ids, output_hidden_states=True).hidden_states  # the last is behind the norm
    hidden = ours.embed(ids)
    for number in range(4):
        close(hidden, expected[number])
        hidden = ours.run_blocks(hidden, None, number, number + 1)
    close(ours.final_norm(hidden), expected[-1])


@torch.no_grad()
def test_rows_of_several_texts_are_the_texts_alone(pair):
    _, ours, _ = pair
    torch.manual_seed(3)
    one, other = torch.randint(3, 97, (1, 11)), torch.randint(3, 97, (1, 9))
    documents = torch.tensor([[0] * 11 + [1] * 9])
    positions = torch.cat([torch.arange(11), torch.arange(9)])[None]
    mask = documents[:, :, None] == documents[:, None, :]
    found = ours(torch.cat([one, other], dim=1), mask, positions=positions)
    close(found, torch.cat([ours(one), ours(other)], dim=1))


@torch.no_grad()
def test_the_cache_gives_what_the_whole_text_gives(pair):
    _, ours, _ = pair
    ids, mask = texts("left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = kv_cache.KVCache(ours)
    kv_cache.next_logits(ours, ids[:, :9], mask[:, :9], positions[:, :9], cache)
    kv_cache.next_logits(ours, ids[:, 9:20], mask[:, :20], positions[:, 9:20], cache)
    found = kv_cache.next_logits(ours, ids[:, 20:], mask, positions[:, 20:], cache)
    close(found, ours(ids, mask)[:, -1])
    cache = kv_cache.KVCache(ours)  # without padding
    for start, stop in ((0, 7), (7, 12), (12, 13)):
        found = kv_cache.next_logits(ours, ids[:1, start:stop], None, torch.arange(start, stop)[None], cache)
    close(found, ours(ids[:1, :13])[:, -1])


def test_greedy_answers(pair):
    theirs, ours, _ = pair
    prompts = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22]]
    ids, mask = left_padded(prompts, 0)
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)[
        :, ids.shape[1] :
    ]
    assert generate(ours, ids, mask, max_new_tokens=12) == expected.tolist()


def test_twenty_steps(pair):
    theirs, _, directory = pair
    ours, theirs = from_pretrained(directory), library_model(theirs.config).train()
    ids, mask = texts("right")
    labels = ids.masked_fill(mask == 0, -100)
    losses = {}
    for name, model in (("theirs", theirs), ("ours", ours)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[name] = []
        for _ in range(20):
            output = model(ids, mask) if name == "ours" else model(ids, attention_mask=mask).logits
            loss = F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses["ours"]), torch.tensor(losses["theirs"]), atol=1e-4, rtol=1e-4)
    assert losses["ours"][-1] < losses["ours"][0]


def test_files_written_here_are_read_alike_by_the_library(pair, tmp_path):
    theirs, ours, _ = pair
    save_pretrained(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(theirs)
    ids, mask = texts("left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(again(ids, attention_mask=mask, position_ids=positions).logits, expected, atol=0, rtol=0)
    assert from_pretrained(tmp_path).config == ours.config


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral with a window"])
def test_classifiers(name, tmp_path):
    config = MEMBERS[name]
    config.num_labels = 3
    theirs = library_model(config, "AutoModelForSequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, head="classifier").eval()
    assert ours.drawn == () and ours.head.classifier.bias is None
    ids, mask = texts("right")
    expected = theirs(ids, attention_mask=mask).logits
    close(ours(ids, mask), expected)
    hidden = ours.embed(ids)
    close(fast_path.logits(ours, hidden, mask), expected)  # one query in the last block
    close(ours(ids, lengths=torch.tensor(REAL)), expected)  # nothing real lies behind what is read


def test_old_and_new_forms_of_the_rotation_are_the_same(tmp_path):
    theirs = library_model(MEMBERS["llama 3, tied, heads wider than D/H"])
    theirs.save_pretrained(tmp_path)
    path = Path(tmp_path) / "config.json"
    settings = json.loads(path.read_text())
    assert settings["rope_parameters"]["rope_type"] == "llama3"
    new = from_pretrained(tmp_path).config
    rope = settings.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    path.write_text(json.dumps(settings | {"rope_theta": theta, "rope_scaling": rope}))
    assert from_pretrained(tmp_path).config == new
    rope["type"] = rope.pop("rope_type")
    path.write_text(json.dumps(settings | {"rope_theta": theta, "rope_scaling": rope}))
    assert from_pretrained(tmp_path).config == new and new.rope.factor == 32
