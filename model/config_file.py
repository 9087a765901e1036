"""config.json of a published model -> our configuration, and back."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.architecture import Architecture
from model.config_settings import by_their_own_names, known_settings
from model.registry import ARCHITECTURES, architecture_of
from model.transformer import Transformer
from utils.errors import UserError
from utils.files import read_json

MAY_BE_NULL = ("pad_id", "head_dropout", "start_id", "end_ids")  # null there means the same as no setting
# Limits far above every published model; products of such sizes still fit an int.
MOST_BLOCKS, MOST = 1000, 2**24
MOST_LABELS = 2**16


def read_config(directory: Path) -> tuple[Any, tuple[str, ...] | None]:
    """Return the configuration that config.json describes, and the labels of a classifier where it names any.

    Raises UserError for an architecture that isn't known, or a setting that it doesn't have or that isn't known.
    """
    path = directory / "config.json"
    settings = _read_settings(path)
    architecture = _architecture_in(path, settings)
    if (how := settings.get("quantization_config")) is not None:
        raise UserError(
            f"{path} sets quantization_config to {how!s:.80}: weights in few bits aren't read; take the model's files "
            "in bfloat16, float16 or float32"
        )
    settings, problem = by_their_own_names(settings, architecture)
    if problem:
        raise UserError(f"{path} {problem}")
    config = _config_from(path, settings | _ends_of_generation(directory), architecture)
    known_settings(architecture, config).check(str(path), settings)
    for name, allowed in architecture.fixed_settings(config).items():
        if settings.get(name, allowed[0]) is None and None not in allowed:  # null isn't the library's default for these
            values = " or ".join(map(repr, allowed))
            raise UserError(f"{path} sets {name} to None; {architecture.model_type} has {values}")
    for name in ("bos_token_id", "eos_token_id"):
        if settings.get(name) is not None:
            _check(path, name, settings[name], "end_ids" if name == "eos_token_id" else "start_id", default=None)
    return config, _labels(path, settings)


def _read_settings(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no checkpoint directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None


def _architecture_in(path: Path, settings: object) -> Architecture:
    """Return the architecture that the settings name. SciBERT's are from before they named one."""
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind is None and isinstance(settings, dict) and {"hidden_size", "type_vocab_size"} <= settings.keys():
        kind = "bert"
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{path} describes a model of type {kind!r}; the types that are read: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind]


def _config_from(path: Path, settings: dict, architecture: Architecture) -> Any:
    values = {}
    for field, hf_name in architecture.settings.items():
        value = settings.get(hf_name)
        if hf_name in settings and not (value is None and field in MAY_BE_NULL):
            _check(path, hf_name, value, field, default=getattr(architecture.config, field))
            values[field] = value
    try:
        values |= architecture.read_settings(settings)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    if "end_ids" in architecture.settings:
        values |= _tokens_of(values, values.get("vocab_size", architecture.config.vocab_size))
    try:
        config = architecture.config(**values)
        if "context_length" in values:  # published is the number of rows in the table of positions
            config = replace(config, context_length=config.context_length - _first_position(config))
        if config.context_length < 1:
            raise UserError(f"the table of positions has {values['context_length']} rows, none of them for a token")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def _ends_of_generation(directory: Path) -> dict:
    """Return what generation_config.json says about the end of a text: the library asks it before config.json."""
    path = directory / "generation_config.json"
    try:
        settings = read_json(path) if path.is_file() else {}
        ends = settings.get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if ends is not None:
        _check(path, "eos_token_id", ends, "end_ids", default=())
    return {} if ends is None else {"eos_token_id": ends}


def _tokens_of(values: dict, vocab_size: int) -> dict:
    """Return the ids of a decoder's tokens with a meaning, without those that its vocabulary doesn't have."""
    ends = values.get("end_ids", [])
    ids = {"start_id": values.get("start_id"), "pad_id": values.get("pad_id")}
    ids = {name: number if number in range(vocab_size) else None for name, number in ids.items()}
    ends = ends if isinstance(ends, list) else [ends]
    return ids | {"end_ids": tuple(number for number in ends if number in range(vocab_size))}


def _check(path: Path, hf_name: str, value: Any, field: str, default: Any) -> None:
    """Raise UserError unless the value can be that of the configuration's field."""
    if field.endswith("dropout"):
        right, must = type(value) in (int, float) and 0 <= value < 1, "at least 0 and below 1"
    elif field == "tied":
        right, must = type(value) is bool, "true or false"
    elif field in ("start_id", "end_ids") or (field == "pad_id" and default is None):  # of a GPT-2, any int
        numbers = value if field == "end_ids" and isinstance(value, list) else [value]
        right, must = all(type(number) is int for number in numbers), "the id of a token"
    elif field == "pad_id":
        right, must = type(value) is int and value >= 0, "an int, at least 0"
    else:
        kind, most = type(default), MOST_BLOCKS if field == "n_layers" else MOST
        right, must = type(value) is kind and 0 < value <= most, f"a positive {kind.__name__}, up to {most}"
    if not right:
        raise UserError(f"{path} sets {hf_name} to {value!r}; it must be {must}")


def _first_position(config) -> int:
    """Return how many rows of the position table come before that of the first token: 2 for RoBERTa, else none."""
    return getattr(config, "first_position", 0)


def read_labels(directory: Path) -> tuple[tuple[str, ...] | None, bool]:
    """Return the names of the classes, and whether label2id contradicts them. Raises UserError."""
    path = directory / "config.json"
    settings = _read_settings(path)
    names = _labels(path, settings)
    numbers = settings.get("label2id")
    numbers = numbers if isinstance(numbers, dict) else {}
    return names, any(str(numbers.get(name, number)) != str(number) for number, name in enumerate(names or ()))


def default_labels(n: int) -> tuple[str, ...]:
    """Return the names that the library gives to classes without names."""
    return tuple(f"LABEL_{number}" for number in range(n))


def _labels(path: Path, settings: dict) -> tuple[str, ...] | None:
    """Return the names of the classes, from id2label or, without names, label2id or num_labels.

    The library fills id2label with LABEL_0, LABEL_1, ... where only label2id was given: then that has the names.
    """
    try:
        names = _by_number(settings.get("id2label") or {})
    except (AttributeError, ValueError, TypeError, KeyError):
        raise UserError(f"{path}: id2label must name the classes 0, 1, 2, ...") from None
    if names == default_labels(len(names)):
        with contextlib.suppress(AttributeError, ValueError, TypeError, KeyError):  # the library doesn't read it again
            inverse = _by_number({number: name for name, number in settings["label2id"].items()})
            names = inverse if len(inverse) == (len(names) or len(inverse)) else names
    if names:
        return names
    n = settings.get("num_labels")
    if not n:
        return None
    if type(n) is not int or not 0 < n <= MOST_LABELS:
        raise UserError(f"{path} sets num_labels to {n!r}; it must be the number of classes, up to {MOST_LABELS}")
    return default_labels(n)


def _by_number(names: dict) -> tuple[str, ...]:
    """Return the names that are given by their numbers, as text or not: {"1": "spam", "0": "ham"} -> ("ham", "spam")."""
    found = {int(number): str(name) for number, name in names.items()}
    return tuple(found[number] for number in range(len(found)))


def write_config(model: Transformer) -> dict:
    """Return the settings that config.json gets, under their published names."""
    config, architecture = model.config, architecture_of(model.config)
    kind = getattr(model.head, "kind", None)
    settings = {"model_type": architecture.model_type, "architectures": [architecture.hf_classes[kind]]}
    settings |= {hf_name: getattr(config, field) for field, hf_name in architecture.settings.items()}
    if ends := getattr(config, "end_ids", None):
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else [*ends]
    elif ends is not None:
        settings["eos_token_id"] = None
    settings[architecture.settings["context_length"]] += _first_position(config)
    settings |= {name: allowed[0] for name, allowed in architecture.fixed_settings(config).items()}
    settings |= architecture.written_settings(config)
    if kind == "classifier":
        names = model.head.labels or default_labels(model.head.classifier.out_features)
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    return settings
