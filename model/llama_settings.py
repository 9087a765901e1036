"""What config.json says of a Llama that takes more than one setting to know: heads, rotation, biases, windows; and back.

`model/registry.py` lists the settings that are a field each. Sources: the published library's configuration classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from model.llama import LlamaConfig, Rope
from utils.errors import UserError

Settings = Mapping[str, Any]
SLIDING = "sliding_attention"  # a layer with a window

# What the library takes for a setting that config.json lacks.
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN = _DEFAULTS | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_SMOLLM3 = {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16}
_SMOLLM3 |= {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True}
LLAMA_LIBRARY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _DEFAULTS | {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": _DEFAULTS
    | {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "qwen2": _QWEN | {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": _QWEN | {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    "smollm3": _DEFAULTS | _SMOLLM3 | {"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
}

_THETA = {"smollm3": 2e6}  # the others have 1e4

# Read by `read_llama` beside the entry's own `settings`.
MISTRAL_SETTINGS_READ = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters")  # no biases
LLAMA_SETTINGS_READ = (*MISTRAL_SETTINGS_READ, "attention_bias", "mlp_bias")
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
    return read_llama(settings) | _windows(settings, True, lambda layer: True)


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
            f"sets no_rope_layers to {_shown(turns)}; it must be {n_layers} numbers, 1 for a layer that rotates, else 0"
        )
    still = tuple(layer for layer, turn in enumerate(turns) if not turn)
    windows = _windows(settings, _yes_or_no(settings, "use_sliding_window"), lambda layer: layer in still)
    return read_llama(settings) | {"layers_without_rotation": still} | windows


def _read_qwen(settings: Settings) -> dict[str, Any]:
    first = settings.get("max_window_layers", 28)
    if type(first) is not int:
        raise UserError(f"sets max_window_layers to {first!r}; it must be the number of layers below the first window")
    return read_llama(settings) | _windows(
        settings, _yes_or_no(settings, "use_sliding_window"), lambda layer: layer >= first
    )


def _windows(settings: Settings, used: bool, has_window: Callable[[int], bool]) -> dict[str, Any]:
    """Return the window and the layers that have it: those of layer_types, else those of which `has_window` says so."""
    kinds = _layer_types(settings)
    if not used or settings.get("sliding_window") is None:
        if SLIDING in (kinds or ()):
            why = "sets no sliding_window" if used else "sets use_sliding_window to False"
            raise UserError(f"{why} and has {SLIDING} in layer_types; one must go")
        return {}
    if kinds is not None:
        layers = [layer for layer, kind in enumerate(kinds) if kind == SLIDING]
    else:
        layers = [layer for layer in range(_whole(settings, "num_hidden_layers")) if has_window(layer)]
    return {"window": _whole(settings, "sliding_window"), "window_layers": tuple(layers)}


def _layer_types(settings: Settings) -> list[str] | None:
    """Return which layers have a window, where the settings name each one's kind. Raises UserError."""
    n_layers, kinds = _whole(settings, "num_hidden_layers"), settings.get("layer_types")
    known = (SLIDING, "full_attention")
    if kinds is None or (isinstance(kinds, list) and len(kinds) == n_layers and all(one in known for one in kinds)):
        return kinds
    raise UserError(f"sets layer_types to {_shown(kinds)}; it must be {n_layers} of {' and '.join(known)}")


def read_rope(settings: Settings) -> Rope:
    """Return the rotation. Older files have rope_theta and rope_scaling side by side, newer ones rope_parameters."""
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(name) or {}
    if not isinstance(rope, dict):
        raise UserError(f"sets {name} to {rope!r}; it must be an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise UserError(f"sets the rope type to {kind!r} and to {rope['type']!r} in {name}; one must go")
    if kind not in ("default", "llama3"):
        raise UserError(f"sets the rope type {kind!r} in {name}; the types that are known: default, llama3")
    if unknown := rope.keys() - {"rope_type", "type", "rope_theta", *_ROPE_FIELDS}:
        raise UserError(f"sets {', '.join(sorted(unknown))} in {name}, and what that means isn't known here")
    if settings.get("rope_parameters") not in (None, {}, rope):
        raise UserError("has rope_scaling and rope_parameters, which differ; one must go")
    theta = _number(rope, "rope_theta", settings.get("rope_theta", _THETA.get(settings["model_type"], 10000.0)))
    if settings.get("rope_theta", theta) != theta:
        raise UserError(f"sets rope_theta to {settings['rope_theta']!r} and to {theta} in {name}; one must go")
    if kind == "default" and (without_use := [one for one in _ROPE_FIELDS if one in rope]):
        raise UserError(f"sets {', '.join(without_use)} in {name}, of which the rope type 'default' makes no use")
    if kind == "default":
        return Rope(theta)
    if missing := [one for one in _ROPE_FIELDS if one not in rope]:
        raise UserError(f"sets the rope type 'llama3' in {name} without {', '.join(missing)}")
    factor, low, high = (_number(rope, one) for one in ("factor", "low_freq_factor", "high_freq_factor"))
    if factor < 1 or low >= high:
        raise UserError(
            f"sets factor to {factor}, low_freq_factor to {low} and high_freq_factor to {high} in {name}; "
            "the first must be at least 1, the second below the third"
        )
    return Rope(theta, factor, low, high, _whole(rope, "original_max_position_embeddings"))


def write_llama(config: LlamaConfig) -> dict[str, Any]:
    """Return the settings of every member of the family but its biases (`write_biases`)."""
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
    kinds = [SLIDING if n in config.window_layers else "full_attention" for n in range(config.n_layers)]
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


def _shown(value: Any, most: int = 100) -> str:
    """Return a value as an error names it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
