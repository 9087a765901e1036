"""What config.json says of a Llama that takes more than one setting to know: heads, rotation, biases, windows; and back.

`model/registry.py` lists the settings that are a field each. Sources: the published library's configuration classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from model.llama import LlamaConfig, Rope
from utils.errors import UserError

Settings = Mapping[str, Any]

# What the library takes for a setting that config.json lacks.
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_QWEN = _DEFAULTS | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_SMOLLM3 = {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16}
_SMOLLM3 |= {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True}
LLAMA_LIBRARY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _DEFAULTS | {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": _DEFAULTS
    | {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "qwen2": _QWEN | {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": _QWEN | {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    "smollm3": _DEFAULTS | _SMOLLM3 | {"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
}

# Read by `read_llama` beside the entry's own `settings`.
LLAMA_SETTINGS_READ = (
    *("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters"),
    *("attention_bias", "mlp_bias"),
)
WINDOW_SETTINGS_READ = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
ROTATION_SETTINGS_READ = ("no_rope_layers", "no_rope_layer_interval")

_ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}


def read_llama(settings: Settings) -> dict[str, Any]:
    """Return the fields that every member of the family has. Raises UserError."""
    dim, n_heads = _whole(settings, "hidden_size"), _whole(settings, "num_attention_heads")
    if settings.get("head_dim") is None and dim % n_heads:
        raise UserError(f"sets hidden_size to {dim} and num_attention_heads to {n_heads}, which doesn't divide it")
    attention_bias = _yes_or_no(settings, "attention_bias")
    return {
        "n_kv_heads": _whole(settings, "num_key_value_heads", n_heads),
        "head_dim": _whole(settings, "head_dim", dim // n_heads),
        "rope": read_rope(settings),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": _yes_or_no(settings, "mlp_bias"),
    }


def read_mistral(settings: Settings) -> dict[str, Any]:
    """Return the fields of a Mistral: every layer has the window, where there is one."""
    return read_llama(settings) | _windows(settings, lambda layer: True)


def read_qwen2(settings: Settings) -> dict[str, Any]:
    """Return the fields of a Qwen2: queries, keys and values always have a bias."""
    return _read_qwen(settings) | {"qkv_bias": True, "out_bias": False, "mlp_bias": False}


def read_qwen3(settings: Settings) -> dict[str, Any]:
    """Return the fields of a Qwen3."""
    return _read_qwen(settings) | {"mlp_bias": False}


def read_smollm3(settings: Settings) -> dict[str, Any]:
    """Return the fields of a SmolLM3. In `no_rope_layers`, 1 means that the layer does rotate."""
    n_layers, interval = _whole(settings, "num_hidden_layers"), _whole(settings, "no_rope_layer_interval", 4)
    turns = settings.get("no_rope_layers")
    turns = [int((layer + 1) % interval != 0) for layer in range(n_layers)] if turns is None else turns
    if not isinstance(turns, list) or len(turns) != n_layers or any(one not in (0, 1) for one in turns):
        raise UserError(
            f"sets no_rope_layers to {turns!r}; it must be {n_layers} numbers, 1 for a layer that rotates, else 0"
        )
    still = tuple(layer for layer, turn in enumerate(turns) if not turn)
    windows = _windows(settings, lambda layer: layer in still) if _yes_or_no(settings, "use_sliding_window") else {}
    return read_llama(settings) | {"layers_without_rotation": still} | windows


def _read_qwen(settings: Settings) -> dict[str, Any]:
    first = settings.get("max_window_layers", 28)
    if type(first) is not int:
        raise UserError(f"sets max_window_layers to {first!r}; it must be the number of layers below the first window")
    used = _yes_or_no(settings, "use_sliding_window")
    if not used and "sliding_attention" in (settings.get("layer_types") or ()):
        raise UserError("sets use_sliding_window to False and has sliding_attention in layer_types; one must go")
    return read_llama(settings) | (_windows(settings, lambda layer: layer >= first) if used else {})


def _windows(settings: Settings, has_window: Callable[[int], bool]) -> dict[str, Any]:
    """Return the window and the layers that have it: those of layer_types, else those of which `has_window` says so."""
    n_layers, kinds = _whole(settings, "num_hidden_layers"), settings.get("layer_types")
    if settings.get("sliding_window") is None:
        return {}
    if kinds is not None:
        known = ("sliding_attention", "full_attention")
        if not isinstance(kinds, list) or len(kinds) != n_layers or any(one not in known for one in kinds):
            raise UserError(f"sets layer_types to {kinds!r}; it must be {n_layers} of {' and '.join(known)}")
        layers = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
    else:
        layers = [layer for layer in range(n_layers) if has_window(layer)]
    return {"window": _whole(settings, "sliding_window"), "window_layers": tuple(layers)}


def read_rope(settings: Settings) -> Rope:
    """Return the rotation. Older files have rope_theta and rope_scaling side by side, newer ones rope_parameters."""
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(name) or {}
    if not isinstance(rope, dict):
        raise UserError(f"sets {name} to {rope!r}; it must be an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"sets the rope type {kind!r} in {name}; the types that are known: default, llama3")
    if unknown := rope.keys() - {"rope_type", "type", "rope_theta", *_ROPE_FIELDS}:
        raise UserError(f"sets {', '.join(sorted(unknown))} in {name}, and what that means isn't known here")
    theta = _number(rope, "rope_theta", settings["rope_theta"])
    if kind == "default":
        return Rope(theta)
    if missing := [one for one in _ROPE_FIELDS if one not in rope]:
        raise UserError(f"sets the rope type 'llama3' in {name} without {', '.join(missing)}")
    values: dict[str, Any] = {field: _number(rope, one) for one, field in _ROPE_FIELDS.items()}
    return Rope(theta, **values | {"original_context": int(values["original_context"])})


def write_llama(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of every member of the family, the inverse of `read_llama`."""
    rope = config.rope
    scaling = {"rope_type": "llama3"} | {one: getattr(rope, field) for one, field in _ROPE_FIELDS.items()}
    return {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.factor is None else scaling,
        "attention_dropout": config.dropout,
    }


def write_biases(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of the biases, for members where they are a choice."""
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def write_mistral(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of a Mistral."""
    return write_llama(config) | {"sliding_window": config.window}


def write_qwen(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of a Qwen2 or Qwen3."""
    kinds = ["sliding_attention" if n in config.window_layers else "full_attention" for n in range(config.n_layers)]
    windows = {"use_sliding_window": config.window is not None, "sliding_window": config.window, "layer_types": kinds}
    return write_llama(config) | windows


def write_smollm3(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of a SmolLM3."""
    turns = [int(layer not in config.layers_without_rotation) for layer in range(config.n_layers)]
    return write_qwen(config) | write_biases(config) | {"no_rope_layers": turns}


def _whole(settings: Settings, name: str, default: int | None = None) -> int:
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= 2**24:
        raise UserError(f"sets {name} to {value!r}; it must be a positive int, up to {2**24}")
    return value


def _number(settings: Settings, name: str, default: float | None = None) -> float:
    value = settings.get(name, default)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"sets {name} to {value!r}; it must be a positive number")
    return float(value)


def _yes_or_no(settings: Settings, name: str) -> bool:
    value = settings.get(name, False)
    if type(value) is not bool:
        raise UserError(f"sets {name} to {value!r}; it must be true or false")
    return value
