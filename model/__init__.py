"""Hand-written models. `from_pretrained` is the way in."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from errors import UserError
from model import hub, weights
from model.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from model.heads import POSITIONS, ClassifierHead, LanguageModelHead

HEADS = ("lm", "classifier", None)


def canonical_name(name: str) -> str:
    """ "gpt2-small (124M)", as the published commands write it -> "gpt2-small"."""
    return re.sub(r"\s*\(\d+M\)$", "", name)


def config_of(name_or_dir: str | Path) -> GPT2Config:
    """The configuration alone; of a published size it needs no file."""
    name = canonical_name(str(name_or_dir))
    return GPT2_SIZES[name] if name in GPT2_SIZES else weights.read_gpt2_config(hub.locate(name))


def from_pretrained(
    name_or_dir: str | Path,
    head: str | None = "lm",
    num_labels: int = 2,
    *,
    random_weights: bool = False,
    position: str = "last",
    average: bool = False,
    seed: int | None = None,
    **config_changes,
) -> GPT2:
    """A model with the weights of a checkpoint, in float32 on the CPU.

    name_or_dir     "gpt2-small", "gpt2-pocket", a repository on the hub, or a directory in Hugging Face layout
    head            "lm": logits [B, T, V]; "classifier": logits [B, num_labels]; None: encode() only
    random_weights  PyTorch's default initialisation instead of the checkpoint's weights, drawn from torch's generator
    position, average   which hidden states a classifier reads (see `ClassifierHead`)
    seed            of torch's global generator, set before the body is drawn and again before the head is, as the
                    published spam script does; None leaves the generator as it is
    config_changes  fields of the configuration to replace: dropout=0.1, causal=False

    A classifier that the checkpoint doesn't hold is drawn from torch's global generator. Raises UserError.
    """
    if head not in HEADS:
        raise UserError(f"unknown head {head!r}: choose {', '.join(map(repr, HEADS))}")
    if position not in POSITIONS:
        raise UserError(f"unknown position {position!r}: choose {', '.join(POSITIONS)}")
    name = canonical_name(str(name_or_dir))
    config = replace(config_of(name), **config_changes)
    if seed is not None:
        torch.manual_seed(seed)
    if random_weights:
        model = GPT2(config)
    else:
        with torch.device("meta"):  # shapes without memory: every tensor comes from the checkpoint
            model = GPT2(config)
        model.to_empty(device="cpu")
    if seed is not None:
        torch.manual_seed(seed)
    if head == "lm":
        model.head = LanguageModelHead(model.token_embedding)
    elif head == "classifier":
        model.head = ClassifierHead(config.dim, num_labels, position, average)
    if not random_weights:
        kept = weights.load(model, hub.locate(name), weights.GPT2_NAMES, weights.GPT2_PREFIX)
        uncovered = [path for path in kept if path.split(".")[0] != "head"]
        assert not uncovered, f"the table of names doesn't cover {uncovered}"  # else they would be arbitrary memory
        if "head.classifier.bias" in kept and "head.classifier.weight" not in kept:
            torch.nn.init.zeros_(model.head.classifier.bias)  # their classifier has none
    return model


def kind_of(name):
    return "gpt2"


def defaults(name):
    return {"trainable_token_pos": "last"}
