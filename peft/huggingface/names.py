"""What the published names of modules and tensors stand for in a model of ours."""

import re
from dataclasses import dataclass

from torch import nn

from model.base_precision import weights_of
from model.names import Entry
from model.registry import architecture_of, entries_of
from model.transformer import Transformer
from model.weights import name_of
from peft.huggingface.files import AdapterFiles
from utils.errors import UserError


@dataclass(frozen=True)
class PublishedNames:
    """What the published names of a model's modules and tensors stand for here."""

    modules: dict[str, list[str]]  # transformer.h.0.attn.c_attn -> blocks.0.attn.q, .k, .v
    tensors: dict[str, Entry]
    prefix: str  # which names lack in a file of the bare body

    @classmethod
    def of(cls, model: Transformer) -> "PublishedNames":
        """Return the names of a model to which nothing has been added."""
        parameters = weights_of(model)  # without the weight of a head that is tied
        tensors = {entry.hf_name: entry for entry in entries_of(model) if entry.names}
        tensors = {name: entry for name, entry in tensors.items() if all(one in parameters for one in entry.names)}
        modules = {
            entry.hf_name.removesuffix(".weight"): [name.removesuffix(".weight") for name in entry.names]
            for entry in tensors.values()
            if entry.hf_name.endswith(".weight") and all(name.endswith(".weight") for name in entry.names)
        }
        return cls(modules, tensors, architecture_of(model.config).prefix)

    def find(self, path: str, name: str, adapter: AdapterFiles) -> str:
        """Return the full path of a module that the tensor `name` is for. Raises UserError where there is none."""
        for candidate in (path, self.prefix + path):
            if candidate in self.modules:
                return candidate
        raise no_place(adapter, name)


def no_place(adapter: AdapterFiles, name: str) -> UserError:
    """Return the error for a tensor that fits nowhere."""
    if found := re.fullmatch(r"(.+)\.(lora_embedding_[AB]|base_layer\.\w+)", name):  # the library has adapters for both
        return UserError(
            f"{adapter.folder} adapts {found[1]}; an adapter of an embedding or of a language model's head isn't supported"
        )
    return UserError(f"{adapter.folder} has {name}, for which the model has no place; was it made for another model?")


def tied_names(model: Transformer) -> tuple[str, str]:
    """Return the published names of the token embedding's tensor and of the language-model head's."""
    names = architecture_of(model.config).names
    return name_of("token_embedding.weight", names), name_of("head.weight", names)


def sizes_of(layers: dict[str, nn.Linear]) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of the published module that these layers are."""
    return next(iter(layers.values())).in_features, sum(layer.out_features for layer in layers.values())
