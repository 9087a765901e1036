"""Adapters as files of the Hugging Face library `peft`. Here they are read (`--adapter`), in `exchange_out.py` written.

Such an adapter is a directory with two files. `adapter_config.json` says of which kind it is (`peft_type`) and how it acts;
`adapter_model.safetensors` holds its tensors, PATH being a module of the published model (transformer.h.0.attn.c_attn):

    LORA           base_model.model.PATH.lora_A.weight [r, in] and lora_B.weight [out, r]; y += scale · x Aᵀ Bᵀ, with scale
                   lora_alpha / r, or lora_alpha / sqrt(r) for `use_rslora`; `rank_pattern` and `alpha_pattern` give
                   single modules other values
    with use_dora  also PATH.lora_magnitude_vector [out]
    IA3            base_model.model.PATH.ia3_l, [out, 1] for what comes out of a module, [1, in] for what goes in
    PREFIX_TUNING  prompt_embeddings [P, layers · 2 · D]: for each layer a key and a value
    any of them    whole modules (`modules_to_save`), such as a new classifier: base_model.model.PATH.weight, beside a
                   prefix base_model.PATH.weight

The library ignores `target_modules` that aren't in the file and tensors whose name lacks `base_model.model.`; so that
neither goes unnoticed, the names of the tensors decide here, and what can't be placed is an error.

GPT-2's query, key and value are one module there, c_attn, and three here. Read, each gets its rows of B and a copy of A.
Written, three products of rank r become one of rank 3 r whose B is block-diagonal: the same sum exactly.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from model import hub
from model.names import Entry
from model.registry import architecture_of, entries_of
from model.weights import read_safetensors
from peft.attach import train_head
from peft.dora import DoRALinear
from peft.ia3 import IA3Linear
from peft.lora import LoRA, LoRALinear
from peft.prefix import Prefix, PrefixAttention
from peft.registry import method
from peft.targets import adapt, replace_module
from utils.errors import UserError
from utils.files import read_json

BEFORE = {"LORA": "base_model.model.", "IA3": "base_model.model.", "PREFIX_TUNING": "base_model."}  # their names
# Settings of a LORA that change what is computed and have no counterpart here: the values that mean "not used".
UNUSED = {"bias": ("none",)} | dict.fromkeys(
    (
        *("layer_replication", "lora_bias", "trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
        *("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
    ),
    (None, False),
)
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations (`init_lora_weights`)


@dataclass(frozen=True)
class Adapter:
    """The content of such a directory."""

    folder: Path
    config: dict
    tensors: dict[str, torch.Tensor]  # without what BEFORE says

    def setting(self, name: str, kind: type | tuple, default=None):
        """A setting of a type. Without a default it has to be there."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{self.folder}/adapter_config.json has {name} = {value!r}; it must be {wanted}")
        return value

    def of_module(self, name: str, path: str, kind: type | tuple, default: float):
        """What `rank_pattern` or `alpha_pattern` says of a module: the first pattern that matches the end of its path."""
        for pattern, value in self.setting(name, dict, {}).items():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", path)
            except re.error:
                raise UserError(f"{self.folder}/adapter_config.json: {pattern!r} in {name} is no pattern") from None
            if found:
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise UserError(f"{self.folder}/adapter_config.json: {name} gives {pattern!r} the value {value!r}")
                return value
        return default


def adapter_folder(name: str) -> Path:
    """A directory, or a repository on the hub (owner/name, owner/name@revision). Raises UserError."""
    if os.path.isdir(name):
        return Path(name)
    if not hub.REPOSITORY.fullmatch(name.partition("@")[0]):
        raise UserError(f"--adapter {name!r} is no directory, and no repository on the hub is called so (owner/name)")
    return hub.locate(name, files=hub.ADAPTER_FILES)


def read_adapter(name: str) -> Adapter:
    """By the name of `adapter_folder`. Raises UserError for what can't be read, or would mean something else here."""
    folder = adapter_folder(name)
    path, file = (folder / one for one in hub.ADAPTER_FILES)
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--adapter {name} has no readable adapter_config.json: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in BEFORE:
        raise UserError(f"{path} has peft_type = {kind!r}; what can be read: {', '.join(BEFORE)}")
    if not file.is_file():
        pickled = " (a pickled adapter_model.bin is never loaded)" if (folder / "adapter_model.bin").exists() else ""
        raise UserError(f"--adapter {name} has no {file.name}{pickled}; save it with safetensors")
    tensors, _ = read_safetensors(file)
    before = BEFORE[kind]
    if lost := [one for one in tensors if not one.startswith(before) and one != "prompt_embeddings"]:
        raise UserError(f"{file} has {lost[0]}, which doesn't begin with {before}; the library wouldn't load it either")
    for setting, harmless in UNUSED.items() if kind == "LORA" else ():
        if config.get(setting) not in (None, *harmless):
            raise UserError(
                f"{path} has {setting} = {config[setting]!r}, which isn't supported; it must be {harmless[0]!r}"
            )
    if str(config.get("init_lora_weights")).startswith(CHANGES_THE_BASE):
        raise UserError(
            f"{path} has init_lora_weights = {config['init_lora_weights']!r}, which changes the base model; save it with "
            "path_initial_model_for_weight_conversion"
        )
    return Adapter(folder, config, {one.removeprefix(before): tensor.float() for one, tensor in tensors.items()})


@method("peft")
@dataclass(frozen=True)
class FromPeft:
    """What an adapter made by the library adds, with its values. That, and the modules that it replaces, trains on."""

    name: str
    plus_ratio: float = 1.0  # of a LoRA, as in lora.py
    train_head: bool = True

    @classmethod
    def from_run(cls, name: str, run) -> "FromPeft":
        if not run.adapter:
            raise UserError("--trainable_layers peft needs --adapter with a directory or the name of a repository")
        return cls(run.adapter, run.lora_plus_ratio, train_head=run.train_head == "yes")

    @torch.no_grad()
    def attach(self, model: nn.Module) -> None:
        adapter = read_adapter(self.name)
        tables, added = Tables.of(model), {}
        for name, tensor in adapter.tensors.items():
            found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector|ia3_l)(\.weight)?", name)
            if found:
                added.setdefault(tables.known(found[1], name, adapter), {})[found[2]] = tensor
            elif name != "prompt_embeddings":
                replace_tensor(model, tables, adapter, name)
        kind = adapter.config["peft_type"]
        if not added and kind != "PREFIX_TUNING":
            raise UserError(f"{adapter.folder} has no tensor of a {kind} adapter")
        for path, parts in added.items():
            layers = {one: model.get_submodule(one) for one in tables.modules[path]}
            if not all(isinstance(layer, nn.Linear) for layer in layers.values()):
                raise UserError(f"{adapter.folder} adapts {path}, which is no Linear layer")
            if kind == "LORA":
                attach_lora(model, adapter, path, parts, layers, self.plus_ratio)
            else:
                attach_ia3(model, adapter, path, parts, layers)
        if kind == "PREFIX_TUNING":
            attach_prefix(model, adapter)
        train_head(model, self.train_head)


@dataclass(frozen=True)
class Tables:
    """Names of the published model -> ours."""

    modules: dict[str, list[str]]  # transformer.h.0.attn.c_attn -> blocks.0.attn.q, .k, .v
    tensors: dict[str, Entry]
    prefix: str  # which names of the bare body lack

    @classmethod
    def of(cls, model: nn.Module) -> "Tables":
        """Of a model without added parameters."""
        tensors = {entry.hf_name: entry for entry in entries_of(model) if entry.names}
        modules = {
            entry.hf_name.removesuffix(".weight"): [one.removesuffix(".weight") for one in entry.names]
            for entry in tensors.values()
            if entry.hf_name.endswith(".weight") and all(one.endswith(".weight") for one in entry.names)
        }
        return cls(modules, tensors, architecture_of(model.config).prefix)

    def known(self, path: str, name: str, adapter: Adapter) -> str:
        """The path as the table has it. Raises UserError where there is no such module."""
        for one in (path, self.prefix + path):
            if one in self.modules:
                return one
        raise UserError(f"{adapter.folder} has {name}, for which the model has no place; was it made for another model?")


def replace_tensor(model: nn.Module, tables: Tables, adapter: Adapter, name: str) -> None:
    """A tensor of a whole module, in place. It trains on."""
    path, _, part = name.rpartition(".")
    theirs = f"{tables.known(path, name, adapter)}.{part}"
    parameters = dict(model.named_parameters())
    entry, tensor = tables.tensors.get(theirs), adapter.tensors[name]
    if entry is None or not all(one in parameters for one in entry.names):
        raise UserError(f"{adapter.folder} has {name}, for which the model has no place; was it made for another model?")
    n_out, *n_in = parameters[entry.names[0]].shape
    shape = [n_out * len(entry.names), *n_in]
    check_shape(adapter, name, tensor, shape[::-1] if entry.transposed else shape)
    parts = (tensor.T if entry.transposed else tensor).chunk(len(entry.names))
    for one, value in zip(entry.names, parts, strict=True):
        parameter = parameters[one]  # not filled in place: another model may share its memory, see `share`
        parameter.data = value.to(parameter).clone(memory_format=torch.contiguous_format)
        parameter.requires_grad_(True)
    if theirs == "score.weight" and "score.bias" not in adapter.tensors:
        model.head.classifier.bias.data = torch.zeros_like(model.head.classifier.bias)  # theirs has none


def check_shape(adapter: Adapter, name: str, tensor: torch.Tensor, shape: Iterable[int]) -> None:
    """Raises UserError unless the tensor has that shape."""
    if list(tensor.shape) != list(shape):
        raise UserError(f"{adapter.folder}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")


def attach_lora(
    model: nn.Module, adapter: Adapter, path: str, parts: dict, layers: dict[str, nn.Linear], plus_ratio: float
) -> None:
    """A LoRA or DoRA of one module of theirs, `path`, on ours."""
    dora = adapter.setting("use_dora", bool, False)
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    if parts.keys() != wanted:
        raise UserError(f"{adapter.folder} has {', '.join(parts)} for {path}; expected {', '.join(sorted(wanted))}")
    rank = adapter.of_module("rank_pattern", path, int, adapter.setting("r", int))
    alpha = adapter.of_module("alpha_pattern", path, (int, float), adapter.setting("lora_alpha", (int, float), 8))
    scaling = "alpha/sqrt(r)" if adapter.setting("use_rslora", bool, False) else "alpha/r"
    how = LoRA(rank, alpha, adapter.setting("lora_dropout", (int, float), 0.0), scaling, plus_ratio=plus_ratio)
    n_in, n_out = next(iter(layers.values())).in_features, sum(layer.out_features for layer in layers.values())
    check_shape(adapter, f"{path}.lora_A.weight", parts["lora_A"], (rank, n_in))
    check_shape(adapter, f"{path}.lora_B.weight", parts["lora_B"], (n_out, rank))
    if dora:
        check_shape(adapter, f"{path}.lora_magnitude_vector", parts["lora_magnitude_vector"], (n_out,))
    adapt(model, layers, lambda linear: (DoRALinear if dora else LoRALinear)(linear, how))
    for i, one in enumerate(layers):
        layer = model.get_submodule(one)
        layer.lora_a.copy_(parts["lora_A"])
        layer.lora_b.copy_(parts["lora_B"].chunk(len(layers))[i])  # [3 D, r] -> [D, r]
        if dora:
            layer.magnitude.copy_(parts["lora_magnitude_vector"].chunk(len(layers))[i])


def attach_ia3(model: nn.Module, adapter: Adapter, path: str, parts: dict, layers: dict[str, nn.Linear]) -> None:
    """An IA3 of one module of theirs, on ours. The vector's shape says whether it is of what goes in or comes out."""
    n_in, n_out = next(iter(layers.values())).in_features, sum(layer.out_features for layer in layers.values())
    if parts.keys() != {"ia3_l"}:
        raise UserError(f"{adapter.folder} has {', '.join(parts)} for {path}; expected ia3_l")
    of_input = parts["ia3_l"].shape[:1] == (1,)
    check_shape(adapter, f"{path}.ia3_l", parts["ia3_l"], (1, n_in) if of_input else (n_out, 1))
    adapt(model, layers, lambda linear: IA3Linear(linear, of_input))
    vector = parts["ia3_l"].flatten()
    for one, part in zip(layers, [vector] * len(layers) if of_input else vector.chunk(len(layers)), strict=True):
        model.get_submodule(one).ia3.copy_(part)


def attach_prefix(model: nn.Module, adapter: Adapter) -> None:
    """The library puts a text's first token behind the prefix, at position P; here it counts from 0. So the table of
    positions loses its first P rows, and the context P tokens."""
    n_blocks, dim = len(model.blocks), model.config.dim
    if "prompt_embeddings" not in adapter.tensors:
        raise UserError(f"{adapter.folder} has no prompt_embeddings")
    length, embeddings = adapter.setting("num_virtual_tokens", int), adapter.tensors["prompt_embeddings"]
    check_shape(adapter, "prompt_embeddings", embeddings, (length, n_blocks * 2 * dim))
    if not 0 < length < model.config.context_length:
        raise UserError(
            f"{adapter.folder} has {length} virtual tokens; the context is {model.config.context_length} tokens"
        )
    pairs = embeddings.view(length, n_blocks, 2, dim).permute(1, 2, 0, 3)  # [P, L 2 D] -> [L, 2, P, D]
    for block, (number, pair) in zip(model.blocks, enumerate(pairs), strict=True):
        prefix = Prefix(pair.contiguous().to(model.token_embedding.weight.device))
        replace_module(model, f"blocks.{number}.attn", PrefixAttention(block.attn, prefix))
    table, first = model.position_embedding, getattr(model.config, "first_position", 0)
    table.weight = nn.Parameter(torch.cat([table.weight[:first], table.weight[first + length :]]), requires_grad=False)
    table.num_embeddings -= length
    model.config = replace(model.config, context_length=model.config.context_length - length)
