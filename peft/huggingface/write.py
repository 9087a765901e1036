"""Writes what a run has trained as files of the Hugging Face library `peft` (`--export_peft`); `read.py` has the format."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from model.gpt2 import GPT2
from model.registry import architecture_of
from model.transformer import Transformer
from model.weights import write_safetensors
from peft.attach import merge
from peft.dora import DoRALinear
from peft.hira import HiRALinear
from peft.huggingface.in_front import check_writable, embeddings_of, settings_in_front
from peft.huggingface.names import PublishedNames, tied_names
from peft.huggingface.settings import NAME_PREFIX
from peft.huggingface.vera import written_as_one
from peft.ia3 import IA3Linear
from peft.lora import LoRALinear, principal_parts
from peft.prefix import Prefix, ProjectedPrefix
from peft.prompt import Prompt
from peft.targets import AdaptedLinear, Added
from peft.vera import SharedMatrices, VeRALinear
from utils.errors import UserError

IN_FRONT = (Prefix, Prompt)  # kinds of what stands in front of a text


@torch.no_grad()
def write_adapter(model: Transformer, base: Transformer, directory: Path, about: dict) -> None:
    """Write what makes `model` of `base`, the same model with nothing attached or trained yet.

    What was added to a module on its published weights is written as such. Every other module that differs, and the
    classifier always (the published model has none, or another), is written whole, with what was added folded in.
    `about` are further settings, such as base_model_name_or_path.

    Raises UserError for what the library can't express; otherwise `model` comes out merged.
    """
    kind = kind_of(model)
    check_expressible(model)
    if kind in IN_FRONT:
        check_writable(model)
    names = PublishedNames.of(model)
    added, whole = what_differs(model, base, names, kind)
    shared = {}
    if kind is HiRALinear:
        added = of_one_rank(added)
    if kind is VeRALinear and added:
        shared, vectors = written_as_one({path: layers for path, (layers, _) in added.items()})
        added = {path: (None, parts) for path, parts in vectors.items()}
    if not added and kind not in IN_FRONT:
        raise UserError("the adapter would be empty: what was trained is whole modules; use --export_model")
    merge(model)
    if fold_bias(model):
        whole.add("transformer.ln_f")
    embedding = tied_names(model)[0].removesuffix(".weight")
    if embedding in whole and model.head.kind == "lm" and model.config.tied:
        raise UserError("the token embedding was trained, which the head shares, as no adapter can say; use --export_model")
    config = about | settings_of(model, kind, added, whole, names)
    tensors = {f"{path}.{name}": tensor for path, (_, parts) in added.items() for name, tensor in parts.items()}
    tensors |= whole_tensors(model, names, whole)
    prefix = NAME_PREFIX[config["peft_type"]]
    tensors = {prefix + name: tensor for name, tensor in tensors.items()} | shared
    if kind in IN_FRONT:
        tensors["prompt_embeddings"] = embeddings_of(model)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    write_safetensors(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


def what_differs(
    model: Transformer, base: Transformer, names: PublishedNames, kind: type
) -> tuple[dict[str, tuple], set[str]]:
    """Return what was added to modules whose own weights are the published ones, and the modules that differ otherwise.

    Both go by the published paths. What was added is a pair, see `part_of`.
    """
    added, whole = {}, set()
    for path, own_paths in names.modules.items():
        layers: list[Any] = [model.get_submodule(name) for name in own_paths]
        originals: list[Any] = [base.get_submodule(name) for name in own_paths]
        part = None
        if not own_paths[0].startswith("head.") and all(map(untouched, layers, originals)):
            if not any(isinstance(layer, AdaptedLinear) for layer in layers):
                continue
            part = part_of(layers, originals, kind)
        if part:
            added[path] = part
        else:
            whole.add(path)
    return added, whole


def part_of(layers: list, originals: list, kind: type) -> tuple | None:
    """Return what was added to a published module, None where the library can't say it there.

    That is (scale, tensors) of a LoRA, (None, tensors) of a HiRA, (of_input, tensors) of an IA3; of a VeRA, whose tensors
    depend on all modules, (layers, {}).
    """
    if kind is VeRALinear:
        return layers, {}
    if kind is IA3Linear:
        return vector_of(layers)
    return factors_of(layers) if kind is HiRALinear else product_of(layers, originals)


def settings_of(model: Transformer, kind: type, added: dict[str, tuple], whole: set[str], names: PublishedNames) -> dict:
    """Return the content of adapter_config.json."""
    replaced = {"classifier" if path.startswith("classifier.") else path for path in whole}  # RoBERTa's has two layers
    settings = {
        "inference_mode": True,
        "task_type": "SEQ_CLS" if model.head.kind == "classifier" else "CAUSAL_LM",
        "modules_to_save": sorted(replaced) or None,
    }
    if kind in IN_FRONT:
        return settings | settings_in_front(model)
    settings["fan_in_fan_out"] = any(entry.transposed for entry in names.tensors.values())  # GPT-2's Conv1D: (in, out)
    if kind is IA3Linear:
        return settings | {"peft_type": "IA3"} | ia3_settings(added, names.modules)
    if kind is VeRALinear:
        return (
            settings
            | {"peft_type": "VERA", "bias": "none", "save_projection": True}
            | rank_settings(added, "vera_lambda_d", names.modules)
        )
    if kind is HiRALinear:
        return settings | {"peft_type": "HIRA"} | rank_settings(added, "hira_A", names.modules)
    lora = {"peft_type": "LORA", "use_dora": kind is DoRALinear, "bias": "none"}
    return settings | lora | lora_settings(added, names.modules)


def kind_of(model: Transformer) -> type:
    """Return the one kind of what was added. Raises UserError where the library has none, or can't have both."""
    kinds = {type(one) for one in model.modules() if isinstance(one, (AdaptedLinear, Added))} - {SharedMatrices}
    kinds = {Prefix if kind is ProjectedPrefix else kind for kind in kinds}
    names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
    if len(kinds) != 1 or not kinds <= {LoRALinear, DoRALinear, VeRALinear, HiRALinear, IA3Linear, *IN_FRONT}:
        kinds_there = "LoRA, DoRA, VeRA, HiRA, IA3, a prefix or a prompt"
        raise UserError(f"the run has added {names}; an adapter of the library is {kinds_there}")
    return kinds.pop()


def check_expressible(model: Transformer) -> None:
    """Raise UserError unless the published library reads the model's hidden states as this one does."""
    head, architecture = model.head, architecture_of(model.config)
    reads_last = architecture.reads_last
    if len(model.blocks) != model.config.n_layers:
        raise UserError(f"the model has {len(model.blocks)} blocks of {model.config.n_layers} (--depth); theirs has all")
    if reads_last and not model.config.causal:
        name = architecture.hf_classes[head.kind]
        raise UserError(f"the model was trained with --disable_causal_mask; the published {name} always has that mask")
    if head.kind == "lm" and not reads_last:
        raise UserError("a masked language model's head can't be exported; choose a run with a classifier")
    if head.kind == "classifier" and (head.average or (head.position != "first") is not reads_last):
        reads = "the mean of all positions" if head.average else f"the position {head.position!r}"
        raise UserError(f"the classifier reads {reads}, theirs the {'last real token' if reads_last else 'first position'}")


def untouched(layer: Any, original: Any) -> bool:
    """Return whether a layer's own tensors are the published ones, but for what PiSSA took from the weight."""
    bias = getattr(layer, "bias", None)
    if bias is not None and not torch.equal(bias, original.bias):
        return False
    if torch.equal(layer.weight, original.weight) or not isinstance(layer, LoRALinear):
        return torch.equal(layer.weight, original.weight)
    a, b = principal_parts(original.weight, len(layer.lora_a), layer.scale)
    return torch.allclose(layer.weight + layer.scale * b @ a, original.weight, atol=1e-5)


def product_of(layers: list[nn.Linear], originals: list[nn.Linear]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return one product for a published module: its scale, A [R, in] and B [out, R], and DoRA's magnitudes [out].

    layers   the Linear layers that the module is here
    """
    scale = max((layer.scale for layer in layers if isinstance(layer, LoRALinear)), key=abs)
    products = []
    for layer, original in zip(layers, originals, strict=True):
        a, b = torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0)
        if isinstance(layer, LoRALinear):
            a, b = layer.lora_a, layer.lora_b if layer.scale == scale else layer.lora_b * (layer.scale / scale)
            if not torch.equal(layer.weight, original.weight):  # PiSSA's product began as a part of the weight
                a0, b0 = principal_parts(original.weight, len(a), layer.scale)
                a, b = torch.cat([a, a0]), torch.cat([b, -b0], dim=1)  # [2 r, in], [out, 2 r]
        products.append((a, b))
    a, b = one_product(products)
    parts = {"lora_A.weight": a, "lora_B.weight": b}
    if any(isinstance(layer, DoRALinear) for layer in layers):
        pairs = zip(layers, originals, strict=True)
        parts["lora_magnitude_vector"] = torch.cat([getattr(one, "magnitude", of.weight.norm(dim=1)) for one, of in pairs])
    return scale, parts


def one_product(products: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [R, in] and B [out, R] whose product has the rows of several products, one below the other."""
    first = products[0][0]
    if all(torch.equal(a, first) for a, _ in products):
        return first, torch.cat([b for _, b in products])
    # 3 times [r, in] -> [3 r, in], 3 times [D, r] -> [3 D, 3 r]
    return torch.cat([a for a, _ in products]), torch.block_diag(*[b for _, b in products])


def factors_of(layers: list) -> tuple[None, dict[str, torch.Tensor]]:
    """Return HiRA's product for a published module, whose layers here may have one each or none."""
    products = []
    for layer in layers:
        nothing = (torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0))
        products.append((layer.hira_a, layer.hira_b) if isinstance(layer, HiRALinear) else nothing)
    a, b = one_product(products)
    return None, {"hira_A": a, "hira_B": b}


def of_one_rank(added: dict[str, tuple]) -> dict[str, tuple]:
    """Return HiRA's products, all with the largest rank, as the library loads them: with rows and columns of zeros."""
    rank = max((len(parts["hira_A"]) for _, parts in added.values()), default=0)
    wider = {}
    for path, (_, parts) in added.items():
        a, b = parts["hira_A"], parts["hira_B"]
        more = rank - len(a)
        wider[path] = None, {"hira_A": F.pad(a, (0, 0, 0, more)), "hira_B": F.pad(b, (0, more))}
    return wider


def vector_of(layers: list[nn.Linear]) -> tuple[bool, dict[str, torch.Tensor]] | None:
    """Return whether IA3's vector is for the input of a published module, and the vector; None where its layers differ."""
    of_input = {getattr(layer, "of_input", False) for layer in layers}
    vectors = [getattr(layer, "ia3", torch.ones(layer.out_features)) for layer in layers]
    if of_input == {False}:
        return False, {"ia3_l": torch.cat(vectors).unsqueeze(1)}  # [out, 1]
    same = of_input == {True} and all(torch.equal(one, vectors[0]) for one in vectors)
    return (True, {"ia3_l": vectors[0].unsqueeze(0)}) if same else None  # [1, in]


def lora_settings(added: dict[str, tuple], everywhere: Iterable[str]) -> dict:
    """Return target_modules, r, lora_alpha = scale · r, and patterns for modules that differ from the first one."""
    sizes = {path: (len(parts["lora_A.weight"]), scale) for path, (scale, parts) in added.items()}
    sizes = {name: (rank, scale * rank) for name, (rank, scale) in by_ending(sizes, everywhere).items()}
    rank, alpha = next(iter(sizes.values()))
    return {
        "target_modules": [*sizes],
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: size[0] for name, size in sizes.items() if size[0] != rank},
        "alpha_pattern": {name: size[1] for name, size in sizes.items() if size[1] != alpha},
    }


def rank_settings(added: dict[str, tuple], tensor: str, everywhere: Iterable[str]) -> dict:
    """Return target_modules, and r: the length of a tensor that all modules have."""
    ranks = by_ending({path: len(parts[tensor]) for path, (_, parts) in added.items()}, everywhere)
    return {"target_modules": [*ranks], "r": next(iter(ranks.values()))}


def ia3_settings(added: dict[str, tuple], everywhere: Iterable[str]) -> dict:
    """Return target_modules, and of these those whose input is scaled."""
    names = by_ending({path: of_input for path, (of_input, _) in added.items()}, everywhere)
    return {"target_modules": [*names], "feedforward_modules": [name for name, of_input in names.items() if of_input]}


def by_ending(values: dict, everywhere: Iterable[str]) -> dict:
    """Return the values by the ends of paths where all modules that end so have the same value.

    {h.0.attn.c_attn: 8, h.1.attn.c_attn: 8} -> {attn.c_attn: 8}
    """
    short = {}
    for path, value in values.items():
        ending = re.sub(r".*\.\d+\.", "", path)
        alike = all(values.get(one) == value for one in everywhere if one.endswith(f".{ending}"))
        short[ending if alike else path] = value
    return short


def whole_tensors(model: Transformer, names: PublishedNames, paths: set[str]) -> dict[str, torch.Tensor]:
    """Return all tensors of these published modules, by their published names and in that layout."""
    parameters, tensors = dict(model.named_parameters()), {}
    for hf_name, entry in names.tensors.items():
        if hf_name.rpartition(".")[0] in paths and all(one in parameters for one in entry.names):
            tensor = torch.cat([parameters[one] for one in entry.names])
            tensors[hf_name] = tensor.T if entry.transposed else tensor
    return tensors


@torch.no_grad()
def fold_bias(model: Transformer) -> bool:
    """Fold the bias of a GPT-2's classifier into the LayerNorm below, in place: the published classifier has no bias.

    To the LayerNorm's bias the shortest d with W d = b is added. Returns whether a bias other than zero was folded.
    Raises UserError where no such d exists.
    """
    if not isinstance(model, GPT2) or model.head.kind != "classifier" or model.head.classifier.bias is None:
        return False
    weight, bias = model.head.classifier.weight.double(), model.head.classifier.bias.double()  # [C, D], [C]
    shift = torch.linalg.pinv(weight) @ bias  # [D]
    if (weight @ shift - bias).abs().max() > 1e-6 * (1 + bias.abs().max()):
        raise UserError("GPT-2's published classifier has no bias, and this one's can't be folded into the LayerNorm below")
    model.final_norm.bias += shift.to(model.final_norm.bias.dtype)
    model.head.classifier.bias = None
    return bool(bias.any())
