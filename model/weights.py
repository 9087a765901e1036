"""Checkpoints in Hugging Face layout -> our modules, and back, by the tables of `model/names.py`; read lazily."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.hub import PICKLED
from model.names import ARCHITECTURES, Architecture, Entry, architecture_of, entries_of
from model.transformer import Transformer
from utils.errors import UserError
from utils.files import whole
from utils.json_files import read_json

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what weights are stored as


class Checkpoint:
    """The tensors of a directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists."""

    def __init__(self, directory: Path):
        self.directory = directory
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if index.is_file():
            files = _shard_files(index)
        elif single.is_file():
            files = [single]
        else:
            pickled = f" ({PICKLED})" if (directory / "pytorch_model.bin").exists() else ""
            raise UserError(f"{directory} has neither {single.name} nor {index.name}{pickled}")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            with opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self._file_of[name] = file

    def read(self, name: str) -> torch.Tensor:
        """One tensor. The file is opened anew each time: closing it lets go of the pages mapped so far, so that loading
        needs the model's own size and one tensor more, never the file beside the model."""
        file = self._file_of[name]
        with opened(file) as tensors:
            tensor = tensors.get_tensor(name)
        if tensor.dtype not in FLOATS:
            raise UserError(f"{file} holds {name} as {tensor.dtype}; what is read: {', '.join(map(str, FLOATS))}")
        return tensor


@contextlib.contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A safetensors file to read from. What is wrong with its header is found when it is opened, before any tensor is."""
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors: {error}") from None


def _shard_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is no index of safetensors shards (no readable weight_map)") from None
    there = {file.name for file in index.parent.iterdir() if file.is_file()}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}; shards must be files in the same directory")
        if name not in there:
            raise UserError(f"{index} names the shard {name}, which isn't there")
    return [index.parent / name for name in names]


def load(model: Transformer, checkpoint: Checkpoint) -> list[str]:
    """Fills the model's parameters in place from a checkpoint; converts to the parameters' own type.

    Returns the names of ours that the checkpoint doesn't hold though the table knows of them as optional (a classifier
    on a language model's checkpoint), and those the table doesn't know: they keep their values.
    Raises UserError as `fit` does.
    """
    parameters = dict(model.named_parameters())
    filled = set()
    with torch.no_grad():
        for entry, theirs in fit(model, checkpoint):
            tensor = checkpoint.read(theirs)
            tensor = tensor.T if entry.transposed else tensor
            for name, part in zip(entry.ours, tensor.chunk(len(entry.ours)), strict=True):
                parameters[name].copy_(part)
                filled.add(name)
    return [name for name in parameters if name not in filled]


def fit(model: Transformer, checkpoint: Checkpoint) -> list[tuple[Entry, str]]:
    """What of the checkpoint belongs where: rows of the table of names, each with the tensor's name in the file. Only
    shapes are looked at, so the model may be on the meta device.

    Raises UserError with the names of all missing, unread and misshaped tensors.
    """
    parameters = dict(model.named_parameters())
    entries = entries_of(model)
    theirs_of = _published_names(checkpoint, entries, architecture_of(model.config).prefix)
    plan, problems = [], []
    for entry in entries:
        wanted = bool(entry.ours) and all(name in parameters for name in entry.ours)
        if not wanted:
            continue
        if entry.theirs not in theirs_of:
            if not entry.optional:
                problems.append(f"missing {entry.theirs}")
            continue
        shape = checkpoint.shapes[theirs_of[entry.theirs]]
        expected = _their_shape(entry, parameters)
        if shape != expected:
            problems.append(f"{entry.theirs} has shape {list(shape)}, expected {list(expected)}")
        plan.append((entry, theirs_of[entry.theirs]))
    known = {entry.theirs for entry in entries}
    problems += [f"unread {theirs}" for name, theirs in theirs_of.items() if name not in known]
    filled = {name for entry, _ in plan for name in entry.ours}
    if "head.classifier.weight" in filled and "head.dense.weight" in parameters.keys() - filled:
        problems.append("it has a classifier without the dense layer below, so of another kind")
    if problems:
        raise UserError(f"{checkpoint.directory} doesn't fit the model: {_shorten(problems)}")
    return plan


def _published_names(checkpoint: Checkpoint, entries: list[Entry], prefix: str) -> dict[str, str]:
    """The name of each tensor as the table writes it -> its name in the file.

    A file of the bare body lacks the prefix; in old ones LayerNorm's tensors are called gamma and beta.
    """
    prefixed = any(name.startswith(prefix) for name in checkpoint.shapes)
    outside = {entry.theirs for entry in entries if not entry.theirs.startswith(prefix)}
    theirs_of = {}
    for theirs in checkpoint.shapes:
        name = theirs
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        theirs_of[name if prefixed or name in outside else prefix + name] = theirs
    return theirs_of


def _their_shape(entry: Entry, parameters: dict[str, torch.Tensor]) -> tuple[int, ...]:
    first, *rest = parameters[entry.ours[0]].shape
    shape = (first * len(entry.ours), *rest)
    return shape[::-1] if entry.transposed else shape


def _shorten(problems: list[str], most: int = 12) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def classifier_size(checkpoint: Checkpoint, architecture: Architecture) -> int | None:
    """The number of classes that the checkpoint's classifier tells apart, or None where it has none."""
    name = next(entry.theirs for entry in architecture.names if entry.ours == ("head.classifier.weight",))
    return checkpoint.shapes[name][0] if checkpoint.shapes.get(name) else None


def to_hugging_face(model: Transformer) -> dict[str, torch.Tensor]:
    """The model's tensors under their names and in their layout: the inverse of `load`.

    Raises UserError for a model that holds more than that layout knows (an attached method).
    """
    parameters = dict(model.named_parameters())
    entries = entries_of(model)
    known = {name for entry in entries for name in entry.ours}
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(f"can't save {_shorten(unknown, 3)} in Hugging Face layout; merge(model) first")
    tensors = {}
    for entry in entries:
        if entry.ours and all(name in parameters for name in entry.ours):
            tensor = torch.cat([parameters[name].detach() for name in entry.ours])
            tensors[entry.theirs] = tensor.T if entry.transposed else tensor
    return tensors


def save_pretrained(model: Transformer, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and then model.safetensors in Hugging Face layout."""
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in to_hugging_face(model).items()}
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(write_config(model), indent=2) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")
    write_safetensors(tensors, directory / "model.safetensors", {"format": "pt"})


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a file that `write_safetensors` wrote."""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_safetensors` was given beside the tensors."""
    with opened(path) as file:
        return file.metadata() or {}


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """`path` never holds half a file."""
    try:
        with whole(path) as file:
            save_file(tensors, file, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't write {path}: {error}") from None


def read_config(directory: Path) -> tuple[Any, tuple[str, ...] | None]:
    """config.json -> our configuration, and the labels of a classifier where it names any.

    Raises UserError for an architecture that isn't there, or a setting that it doesn't have.
    """
    path = directory / "config.json"
    try:
        settings = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{directory} is no checkpoint directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind is None and isinstance(settings, dict) and {"hidden_size", "type_vocab_size"} <= settings.keys():
        kind = "bert"  # as SciBERT's: from before the type was written down
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{path} describes a model of type {kind!r}; the types that are read: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[kind]
    values = {}
    for ours, theirs in architecture.fields.items():
        value = settings.get(theirs)
        if theirs in settings and not (value is None and ours in MAY_BE_NULL):
            values[ours] = _checked(path, theirs, value, ours, getattr(architecture.config, ours))
    try:
        config = architecture.config(**values)
        if "context_length" in values:  # theirs is the size of the table
            config = replace(config, context_length=config.context_length - _first_position(config))
        if config.context_length < 1:
            raise UserError(f"the table of positions has {values['context_length']} rows, none of them for a token")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, allowed in architecture.fixed(config).items():
        if settings.get(name, allowed[0]) not in allowed:
            raise UserError(f"{path} sets {name} to {settings[name]!r}; {kind} has {' or '.join(map(repr, allowed))}")
    return config, _labels(path, settings)


MAY_BE_NULL = ("pad_id", "head_dropout")  # as much as not there
MOST_BLOCKS, MOST = 1000, 2**24  # of anything else; far above every published model, and products of them still fit an int
MOST_LABELS = 2**16


def _checked(path: Path, theirs: str, value, ours: str, default):
    if ours.endswith("dropout"):
        right, must = type(value) in (int, float) and 0 <= value < 1, "at least 0 and below 1"
    elif ours == "pad_id":
        right, must = type(value) is int and value >= 0, "an int, at least 0"
    else:
        kind, most = type(default), MOST_BLOCKS if ours == "n_layers" else MOST
        right, must = type(value) is kind and 0 < value <= most, f"a positive {kind.__name__}, up to {most}"
    if not right:
        raise UserError(f"{path} sets {theirs} to {value!r}; it must be {must}")
    return value


def _first_position(config) -> int:
    """Rows of the position table before the one of the first token; only some configurations have such."""
    return getattr(config, "first_position", 0)


def _labels(path: Path, settings: dict) -> tuple[str, ...] | None:
    """The names of the classes, from id2label or, without names, num_labels."""
    try:
        if settings.get("id2label"):
            names = {int(number): str(name) for number, name in settings["id2label"].items()}
            return tuple(names[i] for i in range(len(names)))
    except (AttributeError, ValueError, TypeError, KeyError):
        raise UserError(f"{path}: id2label must name the classes 0, 1, 2, ...") from None
    if not (n := settings.get("num_labels")):
        return None
    if type(n) is not int or not 0 < n <= MOST_LABELS:
        raise UserError(f"{path} sets num_labels to {n!r}; it must be the number of classes, up to {MOST_LABELS}")
    return tuple(f"LABEL_{i}" for i in range(n))


def write_config(model: Transformer) -> dict:
    """The settings that config.json gets, under their published names."""
    config, architecture = model.config, architecture_of(model.config)
    kind = getattr(model.head, "kind", None)
    settings = {"model_type": architecture.model_type, "architectures": [architecture.classes[kind]]}
    settings |= {theirs: getattr(config, ours) for ours, theirs in architecture.fields.items()}
    settings[architecture.fields["context_length"]] += _first_position(config)
    settings |= {name: allowed[0] for name, allowed in architecture.fixed(config).items()}
    settings |= architecture.written(config)
    if kind == "classifier":
        names = model.head.labels or [f"LABEL_{i}" for i in range(model.head.classifier.out_features)]
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    return settings
