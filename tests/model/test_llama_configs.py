"""config.json of Llama's family: published ones are read without a note, bad ones are refused by name."""

import json
from pathlib import Path

import pytest
import torch

from model import config_of, from_pretrained, make_head
from model.registry import ARCHITECTURES, architecture_of
from tests.helpers.published_llamas import CONFIGS, PARAMETERS
from tests.helpers.small import make_llama
from utils.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture(params=CONFIGS)
def published(request, tmp_path) -> Path:
    """Return a directory with the config.json of each published model in turn."""
    directory = tmp_path / request.param
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    return directory


def test_a_published_config_means_what_it_means_to_the_library(published):
    import transformers

    ours, theirs = config_of(published), transformers.AutoConfig.from_pretrained(published)
    rope = theirs.rope_parameters
    assert (ours.rope.theta, ours.rope.factor) == (rope["rope_theta"], rope.get("factor"))
    if ours.rope.factor:
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        stretched = (ours.rope.low_freq_factor, ours.rope.high_freq_factor, ours.rope.original_context)
        assert stretched == tuple(rope[name] for name in names)
    width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.n_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, width)
    assert (ours.tied, ours.norm_eps) == (theirs.tie_word_embeddings, theirs.rms_norm_eps)
    kinds = getattr(theirs, "layer_types", None) or [SLIDING if CONFIGS[published.name].get("sliding_window") else ""] * 32
    assert ours.window_layers == tuple(layer for layer, kind in enumerate(kinds) if kind == SLIDING)
    assert not ours.window_layers or ours.window == theirs.sliding_window
    still = [layer for layer, turns in enumerate(getattr(theirs, "no_rope_layers", [])) if not turns]
    assert ours.layers_without_rotation == tuple(still)
    ends = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert (ours.start_id, ours.end_ids, ours.pad_id) == (theirs.bos_token_id, tuple(ends), theirs.pad_token_id)


@pytest.mark.parametrize("name", PARAMETERS)
def test_so_many_parameters(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    config = config_of(tmp_path)
    with torch.device("meta"):
        model = architecture_of(config).model(config)
        model.head = make_head(model, "lm")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


# --- what is refused

STRETCHED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCHED |= {"original_max_position_embeddings": 64}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}


def rope(**changes) -> dict:
    """Return settings with Llama 3's rotation; None leaves a number out."""
    return {"rope_scaling": {name: value for name, value in (STRETCHED | changes).items() if value is not None}}


REFUSED = {
    **{
        f"the rotation {kind}": ("llama", {"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope type '{kind}' in")
        for kind in ("yarn", "dynamic", "linear", "longrope")
    },
    "an older name of the type": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'.*llama3"),
    "two types": ("llama", rope(type="yarn"), "rope type to 'llama3' and to 'yarn' in rope_scaling; one must go"),
    **{
        f"no {name}": ("llama", rope(**{name: None}), f"rope type 'llama3' in rope_scaling without {name}")
        for name in STRETCHED
        if name != "rope_type"
    },
    "no type": ("llama", rope(rope_type=None), "factor.*, of which the rope type 'default' makes no use"),
    "a factor below 1": ("llama", rope(factor=0.5), "factor to 0.5, .*must be at least 1"),
    "no room between": ("llama", rope(low_freq_factor=4.0), "low_freq_factor to 4.0 and high_freq_factor to 4.0"),
    "half a token": ("llama", rope(original_max_position_embeddings=64.5), "original_max_position_embeddings to 64.5"),
    "a factor in words": ("llama", rope(factor="8"), "sets factor to '8'; it must be a positive number"),
    "what else it says": ("llama", rope(beta_fast=32), "sets beta_fast in rope_scaling, and what that means"),
    "a list": ("llama", {"rope_scaling": [8]}, r"sets rope_scaling to \[8\]; it must be an object"),
    "two thetas": (
        *("llama", {"rope_scaling": None, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}),
        "rope_theta to 10000.0 and to 500000.0 in rope_parameters; one must go",
    ),
    "two rotations": (
        *("llama", rope() | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
        "rope_scaling and rope_parameters, which differ",
    ),
    "theta 0": ("llama", {"rope_theta": 0}, "sets rope_theta to 0; it must be a positive number"),
    "a rotation in part": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor to 0.5"),
    "heads by heads of keys": ("llama", {"num_key_value_heads": 3}, "4 query heads can't share 3 heads of keys"),
    "more heads of keys": ("llama", {"num_key_value_heads": 8}, "4 query heads can't share 8 heads of keys"),
    "no heads of keys": ("llama", {"num_key_value_heads": 0}, "num_key_value_heads to 0; it must be a positive int"),
    "the width by heads": (
        *("llama", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": None}),
        "hidden_size to 32 and num_attention_heads to 5, which doesn't divide it",
    ),
    "an odd head": ("llama", {"head_dim": 7}, "the width of a head, 7, must be even"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act to 'gelu', .* it must be 'silu' or 'swish'"),
    "pairs side by side": ("llama", {"rope_interleaved": True}, "rope_interleaved to True, .* it must be False"),
    "a window that Llama lacks": ("llama", {"sliding_window": 16}, "sets sliding_window to 16, and what that means"),
    "biases in words": ("llama", {"attention_bias": "no"}, "attention_bias to 'no'; it must be true or false"),
    **{
        f"Mistral's {name}": ("mistral", {name: True}, f"sets {name} to True, which isn't supported; it must be False")
        for name in ("attention_bias", "mlp_bias")
    },
    "few bits": (
        *("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        "sets quantization_config to .*gptq.*: weights in few bits aren't read; take the model's files in",
    ),
    "code of its own": ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "sets auto_map to"),
    "window 0": ("mistral", {"sliding_window": 0}, "sets sliding_window to 0; it must be a positive int"),
    "half a window": ("mistral", {"sliding_window": 4.5}, "sets sliding_window to 4.5"),
    "a list that is too short": ("qwen2", WINDOWS | {"layer_types": [FULL]}, "layer_types to .*it must be 3 of"),
    "even where it isn't used": ("qwen3", {"layer_types": [FULL]}, "layer_types to .*it must be 3 of"),
    "no list": ("qwen2", {"layer_types": 5}, "sets layer_types to 5; it must be 3 of sliding_attention and full_att"),
    "a kind that isn't known": ("qwen3", WINDOWS | {"layer_types": [FULL, "chunked", FULL]}, "layer_types to .*'chunked'"),
    "windows that aren't used": (
        *("qwen2", {"use_sliding_window": False, "sliding_window": 4, "layer_types": [SLIDING] * 3}),
        "use_sliding_window to False and has sliding_attention in layer_types; one must go",
    ),
    "layers without their window": (
        *("smollm3", WINDOWS | {"sliding_window": None, "layer_types": [SLIDING] * 3}),
        "sets no sliding_window and has sliding_attention in layer_types",
    ),
    "a first window in words": ("qwen2", {"max_window_layers": "all"}, "max_window_layers to 'all'"),
    **{
        f"no_rope_layers {value}": ("smollm3", {"no_rope_layers": value}, "no_rope_layers to .*it must be 3 numbers, 1 for")
        for value in ([1], [1, 2, 0], "101", 5, [], [[1], 0, 1])
    },
    "every 0th layer": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval to 0"),
    **{
        f"a {kind}": ("llama", {"model_type": kind}, f"a model of type '{kind}'; the types that are read: .*llama, mistral")
        for kind in ("mixtral", "qwen3_moe", "qwen2_vl", "llava", "mllama", "gemma2", "phi3")
    },
    # Nothing is allocated of these before the file agrees.
    "a huge vocabulary": ("llama", {"vocab_size": 2**24}, r"embed_tokens.weight has shape .*, expected \[16777216, 32\]"),
    "a huge width": ("llama", {"hidden_size": 2**23}, r"expected \[\d+, 8388608\]"),
    "huge layers": ("llama", {"intermediate_size": 2**24}, r"gate_proj.weight has shape .*, expected \[16777216, 32\]"),
    "huge heads": (
        *("llama", {"num_attention_heads": 2**20, "num_key_value_heads": 2**20, "head_dim": 2**20}),
        "q_proj.weight has shape",
    ),
    "too many layers": ("llama", {"num_hidden_layers": 100}, "missing model.layers.3.input_layernorm.weight"),
    "many too many": ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers to 1000000; .* up to 1000"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(kind, settings, said, tmp_path):
    directory = make_llama(tmp_path / "model", kind)
    assert from_pretrained(directory).config  # as it was written
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=said) as caught:
        from_pretrained(directory)
    assert str(directory) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 2000


def test_every_member_has_its_own_configuration():
    assert len({entry.config for entry in ARCHITECTURES.values()}) == len(ARCHITECTURES)
