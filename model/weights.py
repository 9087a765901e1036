"""Tensors in Hugging Face layout -> the parameters of our models, and back, by the tables of `model/names.py`."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.architecture import Architecture
from model.base_precision import weights_of
from model.config_file import write_config
from model.hub import PICKLED
from model.names import Entry, expand
from model.quantized import as_tensor
from model.registry import architecture_of, entries_of
from model.transformer import Transformer
from utils.errors import UserError
from utils.files import read_json, written_whole

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what weights are stored as
MOST_SHOWN = 12  # tensors that a message names


class Checkpoint:
    """The tensors of a directory: `model.safetensors` or, without it, the shards that `model.safetensors.index.json` lists.

    That order is the published library's: an index beside the single file is from another time, and isn't read.
    Only names and shapes are read at first; `read` reads one tensor.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if single.is_file():
            files = [single]
        elif index.is_file():
            files = _shard_files(index)
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
        """Return one tensor. Raises UserError for a type that no weights have.

        The file is opened anew each time: closing it lets go of the pages mapped so far. So loading takes the size of the
        model and of one tensor more, never that of the model and of the file.
        """
        file = self._file_of[name]
        with opened(file) as tensors:
            tensor = tensors.get_tensor(name)
        if tensor.dtype not in FLOATS:
            raise UserError(f"{file} holds {name} as {tensor.dtype}; what is read: {', '.join(map(str, FLOATS))}")
        return tensor


@contextlib.contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """Open a safetensors file to read from it. A broken header is found here, before any tensor is read."""
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors: {error}") from None


def _shard_files(index: Path) -> list[Path]:
    """Return the shards that an index of safetensors lists. Raises UserError."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is no index of safetensors shards (no readable weight_map)") from None
    return shards_beside(index, names)


def shards_beside(index: Path, names: list) -> list[Path]:
    """Return the files that an index names. Raises UserError for one that isn't in its directory."""
    there = {file.name for file in index.parent.iterdir() if file.is_file()}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}; shards must be files in the same directory")
        if name not in there:
            raise UserError(f"{index} names the shard {name}, which isn't there")
    return [index.parent / name for name in names]


# --- reading


def load(model: Transformer, checkpoint: Checkpoint) -> list[str]:
    """Fill the model's parameters from a checkpoint, in place and in the parameters' own type.

    Returns the names of the parameters that the checkpoint doesn't hold, which keep their values: an optional tensor that
    is missing (a classifier, where the checkpoint is of a language model), or one that no published file has.
    Raises UserError as `match` does.
    """
    parameters = weights_of(model)
    filled = set()
    with torch.no_grad():
        for entry, name_in_file in match(model, checkpoint):
            tensor = checkpoint.read(name_in_file)
            tensor = tensor.T if entry.transposed else tensor
            for name, part in zip(entry.names, tensor.chunk(len(entry.names)), strict=True):
                parameters[name].copy_(part)
                filled.add(name)
    return [name for name in parameters if name not in filled]


def match(model: Transformer, checkpoint: Checkpoint) -> list[tuple[Entry, str]]:
    """Return which tensor fills what: rows of the table of names, each with the tensor's name in the checkpoint.

    Looks at shapes only, so the model may be on the meta device. Raises UserError with the names of all tensors that are
    missing, have another shape, or have no place in the model.
    """
    parameters = weights_of(model)
    entries = entries_of(model)
    name_in_file = _names_in_file(checkpoint, architecture_of(model.config), entries)
    if model.config.tied:
        _name_shared_tensor(name_in_file, architecture_of(model.config))
    held = {entry.names for entry in entries if entry.hf_name in name_in_file}  # two rows may hold the same
    matched, problems = [], []
    for entry in entries:
        if not entry.names or not all(name in parameters for name in entry.names):
            continue
        if entry.hf_name in name_in_file:
            shape = checkpoint.shapes[name_in_file[entry.hf_name]]
            expected = published_shape(entry, parameters)
            if shape != expected:
                problems.append(f"{entry.hf_name} has shape {list(shape)}, expected {list(expected)}")
            matched.append((entry, name_in_file[entry.hf_name]))
        elif not entry.optional and entry.names not in held:
            problems.append(f"missing {entry.hf_name}")
    built = (entry for entry in entries if entry.head or all(name in parameters for name in entry.names))
    known = {entry.hf_name for entry in built}  # config.json may say that the body lacks something, such as its biases
    problems += [f"unread {name}" for hf_name, name in name_in_file.items() if hf_name not in known]
    if problems and (wrapper := _wrapper(checkpoint, known)):
        problems = [f"all names of its tensors begin with {wrapper!r}, which a wrapper adds; save the model inside it"]
    filled = {name for entry, _ in matched for name in entry.names}
    if "head.classifier.weight" in filled and "head.dense.weight" in parameters.keys() - filled:
        dense = name_of("head.dense.weight", entries)
        problems.append(f"it has a classifier without the dense layer below ({dense}), so of another kind")
    if problems:
        raise UserError(f"{checkpoint.directory} doesn't fit the model: {_joined(problems)}")
    return matched


def _names_in_file(checkpoint: Checkpoint, architecture: Architecture, entries: list[Entry]) -> dict[str, str]:
    """Return {the name of each tensor as the table has it: its name in the file}.

    A file of the bare body lacks the prefix; in old ones LayerNorm's tensors are called gamma and beta.
    """
    prefix = architecture.prefix
    has_prefix = any(name.startswith(prefix) for name in checkpoint.shapes)
    outside_body = {entry.hf_name for entry in entries if not entry.hf_name.startswith(prefix)}
    names = {}
    for name in checkpoint.shapes:
        hf_name = name
        if name.endswith(".gamma"):
            hf_name = name.removesuffix(".gamma") + ".weight"
        elif name.endswith(".beta"):
            hf_name = name.removesuffix(".beta") + ".bias"
        names[hf_name if has_prefix or hf_name in outside_body else prefix + hf_name] = name
    return names


def _wrapper(checkpoint: Checkpoint, known: set[str]) -> str:
    """Return what stands before the published name in all of a file's names ("module."), or ""."""
    first = min(checkpoint.shapes, default="")
    found = next((first.removesuffix(hf_name) for hf_name in known if first.endswith(f".{hf_name}")), "")
    return found if all(name.startswith(found) for name in checkpoint.shapes) else ""


def name_of(parameter: str, entries: list[Entry]) -> str:
    """Return the published name of a tensor that is a parameter of its own, in no block."""
    return next(entry.hf_name for entry in entries if entry.names == (parameter,))


def _name_shared_tensor(name_in_file: dict[str, str], architecture: Architecture) -> None:
    """Let a file that holds a tied tensor under the head's name alone hold it under the embedding's too. In place."""
    embedding, head = (name_of(name, architecture.names) for name in ("token_embedding.weight", "head.weight"))
    if head in name_in_file:
        name_in_file.setdefault(embedding, name_in_file[head])


def is_tied(config: Any, checkpoint: Checkpoint) -> bool:
    """Return whether a language-model head is the token embedding's tensor.

    It is what config.json says, unless the file holds both and they differ: then it was trained apart.
    """
    architecture = architecture_of(config)
    name_in_file = _names_in_file(checkpoint, architecture, expand(architecture.names, config.n_layers))
    names = [name_of(name, architecture.names) for name in ("token_embedding.weight", "head.weight")]
    if not config.tied or architecture.always_tied or not all(name in name_in_file for name in names):
        return config.tied
    embedding, head = (checkpoint.read(name_in_file[name]) for name in names)
    return torch.equal(embedding.float(), head.float())


def drawn_names(model: Transformer, kept: list[str]) -> tuple[str, ...]:
    """Return what a file would call the parameters that `load` didn't fill. No published GPT-2 has a score.bias."""
    lacking = (entry.hf_name for entry in entries_of(model) if {*entry.names} & {*kept})
    return tuple(hf_name for hf_name in lacking if hf_name != "score.bias")


def published_shape(entry: Entry, parameters: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that a published tensor must have to fill its parameters."""
    n_out, *n_in = parameters[entry.names[0]].shape
    shape = (n_out * len(entry.names), *n_in)
    return shape[::-1] if entry.transposed else shape


def _joined(problems: list[str], most: int = MOST_SHOWN) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def classifier_size(checkpoint: Checkpoint, architecture: Architecture) -> int | None:
    """Return the number of classes of the checkpoint's classifier, or None where it has none."""
    if architecture.hf_classes["classifier"] is None:
        return None
    hf_name = name_of("head.classifier.weight", architecture.names)
    return checkpoint.shapes[hf_name][0] if checkpoint.shapes.get(hf_name) else None


# --- writing


def to_hugging_face(model: Transformer) -> dict[str, torch.Tensor]:
    """Return the model's tensors under their published names and in their published layout: the inverse of `load`.

    Raises UserError for a model that holds more than that layout knows (an attached method).
    """
    parameters = weights_of(model)
    entries = entries_of(model)
    known = {name for entry in entries for name in entry.names}
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(f"can't save {_joined(unknown, 3)} in Hugging Face layout; merge(model) first")
    tensors = {}
    for entry in entries:
        if entry.again and model.config.tied:
            continue
        if entry.names and all(name in parameters for name in entry.names):
            tensor = torch.cat([as_tensor(parameters[name]).detach() for name in entry.names])
            tensors[entry.hf_name] = tensor.T if entry.transposed else tensor
    return tensors


def save_pretrained(model: Transformer, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and then model.safetensors in Hugging Face layout. Raises UserError."""
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in to_hugging_face(model).items()}
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(write_config(model), indent=2) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")
    write_safetensors(tensors, directory / "model.safetensors", {"format": "pt"})


# --- safetensors files of any content


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that `write_safetensors` wrote. Raises UserError."""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `write_safetensors` was given. Raises UserError."""
    with opened(path) as file:
        return file.metadata() or {}


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and metadata; `path` never holds half a file. Raises UserError."""
    try:
        with written_whole(path) as file:
            save_file(tensors, file, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't write {path}: {error}") from None
