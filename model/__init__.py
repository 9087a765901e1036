"""Hand-written models. `from_pretrained` is the way in."""

import re
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from model import config_file, hub, weights
from model.architecture import Architecture
from model.base_precision import quantize, quantize_head
from model.heads import POSITIONS
from model.registry import PUBLISHED, architecture_of
from model.transformer import Transformer
from utils.errors import UserError

HEADS = ("lm", "classifier", None)


def canonical_name(name: str) -> str:
    """Return a name without its size: "gpt2-small (124M)", as the published commands write it -> "gpt2-small"."""
    return re.sub(r"\s*\(\d+M\)$", "", name)


def config_of(name_or_dir: str | Path) -> Any:
    """Return the configuration of a model alone; of a published size it needs no file."""
    return _config_and_labels(canonical_name(str(name_or_dir)))[0]


def architecture(name_or_dir: str | Path) -> Architecture:
    """Return the architecture of a model. Needs config.json alone, and of a published size no file."""
    return architecture_of(config_of(name_or_dir))


def _config_and_labels(name: str) -> tuple[Any, tuple[str, ...] | None]:
    """Fetch no more than config.json: that a model can't be read shows before its weights have been downloaded."""
    if name in PUBLISHED:
        return PUBLISHED[name], None
    return config_file.read_config(hub.locate(name, files=hub.CONFIG_FILES))


def from_pretrained(
    name_or_dir: str | Path,
    head: str | None = "lm",
    num_labels: int | None = None,
    *,
    random_weights: bool = False,
    position: str | None = None,
    average: bool = False,
    seed: int | None = None,
    base_precision: str = "fp32",
    trained: Collection[str] = (),
    **config_changes,
) -> Transformer:
    """Return a model with the weights of a checkpoint on the CPU.

    name_or_dir     "gpt2-small", "bert-base-uncased", "gpt2-pocket", a repository on the hub (owner/name, or
                    owner/name@revision), or a directory in Hugging Face layout
    head            "lm": logits [B, T, V] for the next token, or for masked ones where the model is an encoder;
                    "classifier": logits [B, num_labels]; None: encode() only
    num_labels      None: what the checkpoint says, else 2
    random_weights  PyTorch's default initialisation instead of the checkpoint's weights, drawn from torch's generator
    position, average   which hidden states a classifier reads (see `ClassifierHead`); None: the architecture's own choice,
                    "last" for GPT-2 and "first" for encoders
    seed            of torch's global generator, set before the body is drawn and again before the head is, as the
                    published spam script does; None leaves the generator as it is
    base_precision  how the weights of the blocks' Linear layers and the token embedding are kept: "fp32", or a name of
                    `PRECISIONS` (model/base_precision.py) to keep those that don't train in fewer bits
    trained         names of parameters that are going to train, and so stay in float32
    config_changes  fields of the configuration to replace: dropout=0.1, causal=False

    An adapter that lies in the directory isn't read: `attach` puts it on (peft.FromPeft).
    A classifier that the checkpoint doesn't hold is drawn from torch's global generator, and `drawn` of the model names
    its tensors. Raises UserError.
    """
    name = canonical_name(str(name_or_dir))
    config, labels = _config_and_labels(name)
    config, kind = _changed(config, config_changes), architecture_of(config)
    _check_head(head, position, kind)
    checkpoint = None if random_weights else weights.Checkpoint(hub.locate(name))
    if checkpoint is not None and head == "lm":
        config = replace(config, tied=weights.is_tied(config, checkpoint))
    if seed is not None:
        torch.manual_seed(seed)
    if checkpoint is None:
        model = _drawn(kind, config)
    else:
        with torch.device("meta"), NothingDrawn():  # every tensor comes from the checkpoint
            model = kind.model(config)
    if base_precision != "fp32":
        quantize(model, base_precision, trained)
    if checkpoint is not None:
        weights.match(model, checkpoint)  # nothing is allocated of what config.json says before the file agrees
        model._apply(lambda one: torch.empty(one.shape, dtype=one.dtype))  # `to_empty` brings torch's compiler
    if seed is not None:
        torch.manual_seed(seed)
    n = _number_of_labels(num_labels, labels, checkpoint, kind) if head == "classifier" else 0
    model.head = make_head(model, head, n, position, average)
    if head == "classifier" and labels and len(labels) == n:
        model.head.labels = labels
    if base_precision != "fp32":
        quantize_head(model, base_precision, trained)
    kept = [name for name, _ in model.named_parameters()]
    if checkpoint is not None:
        kept = weights.load(model, checkpoint)
        uncovered = [path for path in kept if path.split(".")[0] != "head"]
        assert not uncovered, f"the table of names doesn't cover {uncovered}"  # else they would be arbitrary memory
        if "head.classifier.bias" in kept and "head.classifier.weight" not in kept:
            torch.nn.init.zeros_(model.head.classifier.bias)  # the published classifier has none
    model.drawn = weights.drawn_names(model, kept)
    return model


class NothingDrawn(TorchFunctionMode):
    """Leaves new parameters as they are. On the meta device, drawing an embedding would import torch's compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", *args[:1])
        return func(*args, **(kwargs or {}))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out. A GPU's error has a class of its own, the CPU allocator's has none."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _drawn(kind: Architecture, config) -> Transformer:
    try:
        return kind.model(config)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"there isn't enough memory for a model of this size: {config}") from None


def make_head(
    model: Transformer, head: str | None, num_labels: int = 2, position: str | None = None, average: bool = False
) -> torch.nn.Module | None:
    """Return a new head for a model; the arguments are those of `from_pretrained`."""
    architecture = architecture_of(model.config)
    _check_head(head, position, architecture)
    if head == "classifier":
        return architecture.classifier_head(model.config, num_labels, position or architecture.position, average)
    return architecture.lm_head(model) if head == "lm" else None


def _check_head(head: str | None, position: str | None, kind: Architecture) -> None:
    if head in kind.hf_classes and kind.hf_classes[head] is None:
        raise UserError(f"a {kind.model_type} has no {head}, here as in the published code; train it on dialogues")
    if head not in HEADS:
        raise UserError(f"unknown head {head!r}: choose {', '.join(map(repr, HEADS))}")
    if position not in (None, *POSITIONS):
        raise UserError(f"unknown position {position!r}: choose {', '.join(POSITIONS)}")


def _changed(config, changes: dict) -> Any:
    known = [field.name for field in fields(config)]
    if unknown := [name for name in changes if name not in known]:
        raise UserError(f"{type(config).__name__} has no {', '.join(unknown)}; its fields: {', '.join(known)}")
    return replace(config, **changes)


def _number_of_labels(
    wanted: int | None,
    labels: tuple[str, ...] | None,
    checkpoint: weights.Checkpoint | None,
    architecture: Architecture,
) -> int:
    """Return the number asked for, else config.json's, else the classifier's own, else 2. Raises UserError."""
    found = checkpoint and weights.classifier_size(checkpoint, architecture)
    n = wanted if wanted is not None else len(labels) if labels else found or 2
    if not 0 < n <= config_file.MOST_LABELS:
        raise UserError(f"num_labels is {n}; it must be from 1 to {config_file.MOST_LABELS}")
    if checkpoint is not None and found not in (None, n):
        said = "num_labels" if wanted is not None else "its config.json"
        raise UserError(f"{checkpoint.directory} has a classifier for {found} labels, but {said} says {n}")
    return n
