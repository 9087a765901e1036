"""Reads adapters that the Hugging Face library `peft` has made (`--adapter`); `write.py` writes such files.

An adapter is a directory with two files. `adapter_config.json` says of which kind it is (`peft_type`) and how it acts;
`adapter_model.safetensors` holds its tensors, where PATH is a module of the published model (transformer.h.0.attn.c_attn):

    LORA           base_model.model.PATH.lora_A.weight [r, in] and lora_B.weight [out, r]; y += scale · x Aᵀ Bᵀ, with scale
                   lora_alpha / r, or lora_alpha / sqrt(r) for `use_rslora`; `rank_pattern` and `alpha_pattern` give
                   single modules other values
    with use_dora  also PATH.lora_magnitude_vector [out]
    VERA           vectors for each module and matrices for all of them, see `vera.py`
    HIRA           base_model.model.PATH.hira_A [r, in] and hira_B [out, r]; `rank_pattern` as for LORA
    IA3            base_model.model.PATH.ia3_l, [out, 1] for what comes out of a module, [1, in] for what goes in
    PREFIX_TUNING, PROMPT_TUNING  prompt_embeddings, see `in_front.py`
    any of them    whole modules (`modules_to_save`), such as a new classifier: base_model.model.PATH.weight, beside
                   prompt_embeddings base_model.PATH.weight

The library ignores `target_modules` that aren't in the file, and tensors whose name lacks `base_model.model.`. So that
neither goes unnoticed, the names of the tensors decide here, and what can't be placed is an error.

GPT-2's query, key and value are one published module, c_attn, and three Linear layers here. Read, each gets its rows of B
and a copy of A. Written, three products of rank r become one of rank 3 r whose B is block-diagonal: exactly the same sum.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import Run
from model import hub
from model.base_precision import weights_of
from model.heads import untie
from model.quantized import check_whole
from model.registry import architecture_of
from model.transformer import Transformer
from model.weights import published_shape, read_safetensors
from peft.attach import train_head
from peft.dora import DoRALinear
from peft.hira import HiRA, HiRALinear
from peft.huggingface.classifier import in_order
from peft.huggingface.files import AdapterFiles
from peft.huggingface.in_front import ATTACH_IN_FRONT
from peft.huggingface.names import PublishedNames, no_place, sizes_of, tied_names
from peft.huggingface.promises import check_complete
from peft.huggingface.settings import NAME_PREFIX, check_settings
from peft.huggingface.vera import PAIR, attach_vera, read_pair
from peft.ia3 import IA3Linear
from peft.lora import LoRA, LoRALinear
from peft.registry import method
from peft.targets import adapt
from utils.errors import UserError
from utils.files import read_json

SHARED = {"VERA": PAIR} | dict.fromkeys(ATTACH_IN_FRONT, ("prompt_embeddings",))  # tensors of no module, by the kind
ADDED = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_magnitude_vector|hira_A|hira_B|vera_lambda_b|vera_lambda_d|ia3_l)(\.weight)?"
)  # names of added tensors


# --- the files


def adapter_folder(name: str) -> Path:
    """Return the directory of an adapter: a directory itself, or a repository on the hub (owner/name@revision).

    Raises UserError.
    """
    if os.path.isdir(name):
        return Path(name)
    if not hub.REPOSITORY.fullmatch(name.partition("@")[0]):
        raise UserError(f"--adapter {name!r} is no directory, and no repository on the hub is called so (owner/name)")
    return hub.locate(name, files=hub.ADAPTER_FILES)


def read_adapter(name: str) -> AdapterFiles:
    """Return an adapter by the name of `adapter_folder`.

    Raises UserError for what can't be read, or would mean something else here.
    """
    folder = adapter_folder(name)
    config_file, tensor_file = (folder / file for file in hub.ADAPTER_FILES)
    try:
        config = read_json(config_file)
    except (OSError, ValueError) as error:
        raise UserError(f"--adapter {name} has no readable adapter_config.json: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in NAME_PREFIX:
        raise UserError(f"{config_file} has peft_type = {kind!r}; what can be read: {', '.join(NAME_PREFIX)}")
    if not tensor_file.is_file():
        pickled = " (a pickled adapter_model.bin is never loaded)" if (folder / "adapter_model.bin").exists() else ""
        raise UserError(f"--adapter {name} has no {tensor_file.name}{pickled}; save it with safetensors")
    tensors, _ = read_safetensors(tensor_file)
    prefix = NAME_PREFIX[kind]
    if lost := [one for one in tensors if not one.startswith(prefix) and one not in SHARED.get(kind, ())]:
        raise UserError(
            f"{tensor_file} has {lost[0]}, which doesn't begin with {prefix}; the library wouldn't load it either"
        )
    check_settings(str(config_file), config)
    return AdapterFiles(folder, config, {one.removeprefix(prefix): tensor.float() for one, tensor in tensors.items()})


# --- onto a model


@method("peft")
@dataclass(frozen=True)
class FromPeft:
    """What an adapter of the library adds, with its values. That, and the modules that it replaces, trains on."""

    name: str
    plus_ratio: float = 1.0  # of a LoRA, as in lora.py
    train_head: bool = True

    @classmethod
    def from_run(cls, name: str, run: Run) -> "FromPeft":
        """Return the method of a complete run. Raises UserError where it names no adapter."""
        if not run.adapter:
            raise UserError("--trainable_layers peft needs --adapter with a directory or the name of a repository")
        return cls(run.adapter, run.lora_plus_ratio, train_head=run.train_head == "yes")

    @torch.no_grad()
    def attach(self, model: Transformer) -> None:
        """Put the adapter on a model, in place. Raises UserError where it doesn't fit."""
        adapter, order = read_adapter(self.name), getattr(model.head, "order", None)
        if order:
            adapter = replace(adapter, tensors=in_order(adapter.tensors, order, architecture_of(model.config)))
        untie_if_apart(model, adapter)
        kind = adapter.config["peft_type"]
        names, added, there = PublishedNames.of(model), {}, {}
        for name, tensor in adapter.tensors.items():
            if found := ADDED.fullmatch(name):
                path = names.find(found[1], name, adapter)
                added.setdefault(path, {})[found[2]] = tensor
                there[path] = found[1]
            elif name not in SHARED.get(kind, ()):
                replace_tensor(model, names, adapter, name)
        if not added and kind not in ATTACH_IN_FRONT:
            raise UserError(f"{adapter.folder} has no tensor of a {kind} adapter")
        sites = {path: layers_of(model, names, adapter, path) for path in added}
        pair = read_pair(adapter, added, sites) if kind == "VERA" else None
        for path, tensors in added.items():
            layers = sites[path]
            if kind == "LORA":
                attach_lora(model, adapter, path, there[path], tensors, layers, self.plus_ratio)
            elif kind == "HIRA":
                attach_hira(model, adapter, path, there[path], tensors, layers)
            elif pair:
                attach_vera(model, adapter, path, tensors, layers, pair.to(next(iter(layers.values())).weight.device))
            else:
                attach_ia3(model, adapter, path, tensors, layers)
        if kind in ATTACH_IN_FRONT:
            ATTACH_IN_FRONT[kind](model, adapter)
        check_complete(model, names, adapter, there)
        train_head(model, self.train_head)


def replace_tensor(model: Transformer, names: PublishedNames, adapter: AdapterFiles, name: str) -> None:
    """Put a tensor of a whole module in the place of the model's. It trains on. Raises UserError."""
    embedding, head = tied_names(model)
    hf_name = embedding if model.config.tied and name == head else name
    hf_name = hf_name if hf_name in names.tensors else names.prefix + hf_name
    parameters = weights_of(model)
    entry, tensor = names.tensors.get(hf_name), adapter.tensors[name]
    if entry is None:
        raise no_place(adapter, name)
    adapter.check_shape(name, tensor, published_shape(entry, parameters))
    parts = (tensor.T if entry.transposed else tensor).chunk(len(entry.names))
    for one, value in zip(entry.names, parts, strict=True):
        check_whole(parameters[one])
        parameter = parameters[one]  # not filled in place: another model may share its memory, see `share`
        parameter.data = value.to(parameter).clone(memory_format=torch.contiguous_format)
        parameter.requires_grad_(True)
    model.drawn = tuple(one for one in model.drawn if one != hf_name)
    bias = model.head.classifier.bias if hf_name == "score.weight" else None
    if bias is not None and "score.bias" not in adapter.tensors:  # a published GPT-2 has none
        bias.data = torch.zeros_like(bias)


def untie_if_apart(model: Transformer, adapter: AdapterFiles) -> None:
    """Give the model's head a weight of its own where the adapter brings another embedding or another head alone. In place.

    That is what the library does with either of them in `modules_to_save`: the other one stays the base's.
    """
    if getattr(model.head, "kind", None) != "lm" or not model.config.tied or adapter.ties_again:
        return
    prefix = architecture_of(model.config).prefix
    for name in tied_names(model):
        for there in (name, name.removeprefix(prefix)):
            if there in adapter.tensors and adapter.replaces(there.rpartition(".")[0]):
                return untie(model)


def layers_of(model: Transformer, names: PublishedNames, adapter: AdapterFiles, path: str) -> dict[str, nn.Linear]:
    """Return the layers, by path, that a published module is here. Raises UserError where they aren't Linear layers."""
    modules = {name: model.get_submodule(name) for name in names.modules[path]}
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    if len(layers) < len(modules):
        raise UserError(f"{adapter.folder} adapts {path}, which is no Linear layer here")
    return layers


def attach_lora(
    model: Transformer,
    adapter: AdapterFiles,
    path: str,
    there: str,
    tensors: dict[str, torch.Tensor],
    layers: dict[str, nn.Linear],
    plus_ratio: float,
) -> None:
    """Put a LoRA or DoRA of the published module `path` on the layers that it is here. Raises UserError.

    there   the module's path in the adapter, which patterns are about
    """
    dora = adapter.setting("use_dora", bool, False)
    adapter.check_names(path, tensors, {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set()))
    rank = adapter.setting_of_module("rank_pattern", there, int, adapter.setting("r", int))
    alpha = adapter.setting("lora_alpha", (int, float), 8)
    alpha = adapter.setting_of_module("alpha_pattern", there, (int, float), alpha)
    scaling = "alpha/sqrt(r)" if adapter.setting("use_rslora", bool, False) else "alpha/r"
    lora = LoRA(rank, alpha, adapter.setting("lora_dropout", (int, float), 0.0), scaling, plus_ratio=plus_ratio)
    n_in, n_out = sizes_of(layers)
    adapter.check_shape(f"{path}.lora_A.weight", tensors["lora_A"], (rank, n_in))
    adapter.check_shape(f"{path}.lora_B.weight", tensors["lora_B"], (n_out, rank))
    if dora:
        adapter.check_shape(f"{path}.lora_magnitude_vector", tensors["lora_magnitude_vector"], (n_out,))
    kind = DoRALinear if dora else LoRALinear
    adapt(model, layers, lambda linear: kind(linear, lora))
    for i, name in enumerate(layers):
        layer: Any = model.get_submodule(name)  # of the kind that it has just become
        layer.lora_a.copy_(tensors["lora_A"])
        layer.lora_b.copy_(tensors["lora_B"].chunk(len(layers))[i])  # [3 D, r] -> [D, r]
        if dora:
            layer.magnitude.copy_(tensors["lora_magnitude_vector"].chunk(len(layers))[i])  # [3 D] -> [D]


def attach_hira(
    model: Transformer,
    adapter: AdapterFiles,
    path: str,
    there: str,
    tensors: dict[str, torch.Tensor],
    layers: dict[str, nn.Linear],
) -> None:
    """Put a HiRA of the published module `path` on the layers that it is here. Raises UserError; see `attach_lora`."""
    adapter.check_names(path, tensors, {"hira_A", "hira_B"})
    rank = adapter.setting("r", int, 32)
    by_pattern = adapter.setting_of_module("rank_pattern", there, int, rank)
    if tensors["hira_A"].shape[:1] == (by_pattern,):  # the library's version 0.21 writes r whatever its patterns say
        rank = by_pattern
    hira = HiRA(rank, adapter.setting("hira_dropout", (int, float), 0.0))
    n_in, n_out = sizes_of(layers)
    adapter.check_shape(f"{path}.hira_A", tensors["hira_A"], (rank, n_in))
    adapter.check_shape(f"{path}.hira_B", tensors["hira_B"], (n_out, rank))
    adapt(model, layers, lambda linear: HiRALinear(linear, hira.rank, hira.dropout))
    for name, rows in zip(layers, tensors["hira_B"].chunk(len(layers)), strict=True):
        layer: Any = model.get_submodule(name)  # a HiRALinear by now
        layer.hira_a.copy_(tensors["hira_A"])
        layer.hira_b.copy_(rows)


def attach_ia3(
    model: Transformer, adapter: AdapterFiles, path: str, tensors: dict[str, torch.Tensor], layers: dict[str, nn.Linear]
) -> None:
    """Put an IA3 of the published module `path` on the layers that it is here. Raises UserError.

    The shape of the vector says whether it is for what goes into the module, or for what comes out.
    """
    if tensors.keys() != {"ia3_l"}:
        raise UserError(f"{adapter.folder} has {', '.join(tensors)} for {path}; expected ia3_l")
    n_in, n_out = sizes_of(layers)
    of_input = tensors["ia3_l"].shape[:1] == (1,)
    adapter.check_shape(f"{path}.ia3_l", tensors["ia3_l"], (1, n_in) if of_input else (n_out, 1))
    adapt(model, layers, lambda linear: IA3Linear(linear, of_input))
    vector = tensors["ia3_l"].flatten()
    parts = [vector] * len(layers) if of_input else vector.chunk(len(layers))
    for name, part in zip(layers, parts, strict=True):
        layer: Any = model.get_submodule(name)  # an IA3Linear by now
        layer.ia3.copy_(part)
