"""Checkpoints in Hugging Face layout -> our modules, and back: a table of names, read lazily with safetensors.

A row of a table says: their tensor, the tensors of ours that it holds, and whether it lies transposed. `{}` stands for
the number of the layer. One table serves both directions.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from errors import UserError
from model.gpt2 import GPT2, GPT2Config


class Entry(NamedTuple):
    theirs: str
    ours: tuple[str, ...]  # several: theirs is their concatenation along the output dimension (fused query, key, value)
    transposed: bool = False  # their Conv1D stores (in, out), our Linear (out, in)
    optional: bool = False
    head: bool = False  # theirs stands outside the body's prefix


def _linear(theirs: str, *ours: str) -> list[Entry]:
    return [
        Entry(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed=True),
        Entry(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours)),
    ]


def _norm(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.{part}", (f"{ours}.{part}",)) for part in ("weight", "bias")]


GPT2_PREFIX = "transformer."  # there in files of the models with a head, absent in those of the bare body
GPT2_NAMES = [
    Entry("wte.weight", ("token_embedding.weight",)),
    Entry("wpe.weight", ("position_embedding.weight",)),
    *_norm("h.{}.ln_1", "blocks.{}.attn_norm"),
    *_linear("h.{}.attn.c_attn", "blocks.{}.attn.q", "blocks.{}.attn.k", "blocks.{}.attn.v"),
    *_linear("h.{}.attn.c_proj", "blocks.{}.attn.out"),
    *_norm("h.{}.ln_2", "blocks.{}.mlp_norm"),
    *_linear("h.{}.mlp.c_fc", "blocks.{}.mlp.up"),
    *_linear("h.{}.mlp.c_proj", "blocks.{}.mlp.down"),
    *_norm("ln_f", "final_norm"),
    Entry("score.weight", ("head.classifier.weight",), optional=True, head=True),
    Entry("score.bias", ("head.classifier.bias",), optional=True, head=True),  # theirs has none; ours is kept
    Entry("h.{}.attn.bias", (), optional=True),  # the causal mask, stored as a buffer by old versions
    Entry("h.{}.attn.masked_bias", (), optional=True),
    Entry("lm_head.weight", (), optional=True, head=True),  # tied to wte.weight
]


def expand(table: list[Entry], n_layers: int) -> list[Entry]:
    """The table with `{}` replaced by each layer's number."""
    entries = []
    for entry in table:
        for layer in range(n_layers if "{}" in entry.theirs else 1):
            ours = tuple(name.format(layer) for name in entry.ours)
            entries.append(entry._replace(theirs=entry.theirs.format(layer), ours=ours))
    return entries


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
            pickled = " (a pickled pytorch_model.bin is never loaded)" if (directory / "pytorch_model.bin").exists() else ""
            raise UserError(f"{directory} has neither {single.name} nor {index.name}{pickled}")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            with self._open(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self._file_of[name] = file

    def read(self, name: str) -> torch.Tensor:
        """One tensor. The file is opened anew each time: closing it lets go of the pages mapped so far, so that loading
        needs the model's own size and one tensor more, never the file beside the model."""
        with self._open(self._file_of[name]) as tensors:
            return tensors.get_tensor(name)

    def _open(self, file: Path):
        try:
            return safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} can't be read as safetensors: {error}") from None


def _shard_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is no index of safetensors shards (no readable weight_map)") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}; shards must be files in the same directory")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names the shard {name}, which isn't there")
    return [index.parent / name for name in names]


def load(model: nn.Module, directory: Path, table: list[Entry], prefix: str) -> list[str]:
    """Fills the model's parameters in place from a checkpoint directory; converts to the parameters' own type.

    Returns the names of ours that the checkpoint doesn't hold though the table knows of them as optional (a classifier
    on a language model's checkpoint), and those the table doesn't know (a classifier's bias): they keep their values.
    Raises UserError with the names of all missing, unread and misshaped tensors.
    """
    checkpoint = Checkpoint(directory)
    prefixed = any(name.startswith(prefix) for name in checkpoint.shapes)
    # A head's tensor stands outside the prefix; everything else inside, where there is one.
    theirs_of = {name.removeprefix(prefix) if prefixed else name: name for name in checkpoint.shapes}
    parameters = dict(model.named_parameters())
    entries = expand(table, model.config.n_layers)
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
        plan.append(entry)
    known = {entry.theirs for entry in entries}
    problems += [f"unread {name}" for name in theirs_of if name not in known]
    if problems:
        raise UserError(f"{directory} doesn't fit the model: {_shorten(problems)}")
    with torch.no_grad():
        for entry in plan:
            tensor = checkpoint.read(theirs_of[entry.theirs])
            tensor = tensor.T if entry.transposed else tensor
            for name, part in zip(entry.ours, tensor.chunk(len(entry.ours)), strict=True):
                parameters[name].copy_(part)
    filled = {name for entry in plan for name in entry.ours}
    return [name for name in parameters if name not in filled]


def _their_shape(entry: Entry, parameters: dict[str, torch.Tensor]) -> tuple[int, ...]:
    first, *rest = parameters[entry.ours[0]].shape
    shape = (first * len(entry.ours), *rest)
    return shape[::-1] if entry.transposed else shape


def _shorten(problems: list[str], most: int = 12) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def to_hugging_face(model: nn.Module, table: list[Entry], prefix: str) -> dict[str, torch.Tensor]:
    """The model's tensors under their names and in their layout: the inverse of `load`.

    Raises UserError for a model that holds more than that layout knows (an attached method).
    """
    parameters = dict(model.named_parameters())
    known = {name for entry in expand(table, model.config.n_layers) for name in entry.ours}
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(f"can't save {_shorten(unknown, 3)} in Hugging Face layout; merge(model) first")
    tensors = {}
    for entry in expand(table, model.config.n_layers):
        if entry.ours and all(name in parameters for name in entry.ours):
            tensor = torch.cat([parameters[name].detach() for name in entry.ours])
            name = entry.theirs if entry.head else prefix + entry.theirs
            tensors[name] = tensor.T if entry.transposed else tensor
    return tensors


def save_pretrained(model: GPT2, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and then model.safetensors in Hugging Face layout."""
    tensors = to_hugging_face(model, GPT2_NAMES, GPT2_PREFIX)
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    architecture = "GPT2ForSequenceClassification" if "score.weight" in tensors else "GPT2LMHeadModel"
    config = json.dumps(write_gpt2_config(model.config, architecture), indent=2) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")
    write_safetensors(tensors, directory / "model.safetensors", {"format": "pt"})


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a file that `write_safetensors` wrote."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read as safetensors: {error}") from None


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes beside `path` first and moves into place, so that `path` never holds half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't write {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


# Fields of Hugging Face's config.json beside ours.
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "layer_norm_eps": "layer_norm_epsilon",
}
# What GPT-2 fixes; a checkpoint that says otherwise is another architecture.
GPT2_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def read_gpt2_config(directory: Path) -> GPT2Config:
    """config.json -> GPT2Config. Raises UserError for another architecture or a setting that GPT-2 doesn't have."""
    path = directory / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory} is no checkpoint directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "gpt2":
        raise UserError(f"{path} describes a model of type {kind!r}; the types this project reads are: gpt2")
    for name, value in GPT2_FIXED.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path} sets {name} to {settings[name]!r}; GPT-2 has {value!r}")
    values = {ours: settings[theirs] for ours, theirs in GPT2_FIELDS.items() if theirs in settings}
    for ours, value in values.items():
        expected = type(getattr(GPT2Config, ours))
        if type(value) is not expected or not value > 0:
            raise UserError(f"{path} sets {GPT2_FIELDS[ours]} to {value!r}; it must be a positive {expected.__name__}")
    try:
        config = GPT2Config(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if settings.get("n_inner") not in (None, 4 * config.dim):
        raise UserError(f"{path} sets n_inner to {settings['n_inner']!r}; GPT-2 has 4 x n_embd = {4 * config.dim}")
    return config


def write_gpt2_config(config: GPT2Config, architecture: str) -> dict:
    end_of_text = config.vocab_size - 1
    return {
        "model_type": "gpt2",
        "architectures": [architecture],
        **{theirs: getattr(config, ours) for ours, theirs in GPT2_FIELDS.items()},
        **GPT2_FIXED,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), config.dropout),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
