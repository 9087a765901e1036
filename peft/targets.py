"""Find what a target means: layers by path (`attn.q`), blocks by number (`last3`). Shared by every method."""

import re
from collections.abc import Callable, Iterator

import torch
from torch import nn

from model.base_precision import weights_of
from model.quantized import LinearInPlace
from model.registry import entries_of
from model.transformer import Transformer
from utils.errors import UserError

# Names for several modules of a block, of which a model has some.
PARTS = {"qkv": ("q", "k", "v", "qkv"), "norm": ("attn_norm", "mlp_norm", "q_norm", "k_norm")}


class Added(nn.Module):
    """A module that a method adds beside the model's own: nothing in it is another method's target."""


class Reparameterised(Added):
    """An added module that computes its tensor from other parameters while it trains; `merged()` holds just the tensor."""

    def merged(self) -> nn.Module:
        raise NotImplementedError


class AdaptedLinear(LinearInPlace):
    """Takes the place of a Linear layer and its tensors, which keep their names. A subclass adds to what it computes.

    The weight is a parameter or, of a base in fewer bits, a `QuantizedWeight` (model/quantized.py); `multiply` takes both.
    """


def plain_linear(weight: torch.Tensor, bias: nn.Parameter | None, like: nn.Linear) -> nn.Linear:
    """Return a Linear layer with a new weight [out, in], which trains if that of `like` does. Nothing is drawn."""
    plain = nn.Linear(like.in_features, like.out_features, bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, like.weight.requires_grad)
    plain.register_parameter("bias", bias)
    return plain


def find_sites(model: Transformer, targets: str, layers: str = "all", matching: str = "components") -> dict[str, nn.Linear]:
    """Return the Linear layers that comma-separated targets match, by path, in the model's order.

    "all" means every one, the head included. Any other target is components of a path, in order: "attn.q", "5.q" and
    "2-5.attn" match blocks.5.attn.q; none matches blocks.15.attn.q by its "5". The checkpoint's own names do too
    ("transformer.layer.5.attention.q_lin", "q_lin"). With the matching "endswith", a target is how the checkpoint's name
    of a layer ends, as in the library peft until May 2023: "2.mlp.up" matches blocks.12.mlp.up too. Of the blocks only
    those of `layers` count. Raises UserError for a target that matches nothing, with what could match.
    """
    chosen = set(parse_layers(layers, len(model.blocks)))
    linears = {path: module for path, module in own_modules(model) if isinstance(module, nn.Linear)}
    find = _ending if matching == "endswith" else _matching
    sites = linears if targets == "all" else find(model, linears, targets, "Linear layer")
    inside = {path: linear for path, linear in sites.items() if (n := block_of(path)) is None or n in chosen}
    if not inside:
        raise UserError(f"the targets {targets!r} match nothing in --layers {layers!r}; choose other layers or all")
    return inside


def find_parts(model: Transformer, layers: str, part: str) -> dict[str, nn.Module]:
    """Return modules of some blocks, by path. Raises UserError where nothing matches.

    layers   as in `parse_layers`
    part     "all", a name of PARTS, or targets as in `find_sites`
    """
    chosen = set(parse_layers(layers, len(model.blocks)))
    if part == "all":
        return {f"blocks.{n}": model.blocks[n] for n in sorted(chosen)}
    modules = {path: module for path, module in own_modules(model) if block_of(path) in chosen}
    modules = {path: module for path, module in modules.items() if path.count(".") > 1 and weights_of(module)}
    if part in PARTS:
        return {path: module for path, module in modules.items() if path.split(".")[-1] in PARTS[part]}
    return _matching(model, modules, part, "part of a block", *PARTS)


def block_of(path: str) -> int | None:
    """Return the number of the block that a path leads into, or None."""
    found = re.match(r"blocks\.(\d+)", path)
    return int(found[1]) if found else None


def parse_layers(text: str, n_layers: int, source: str | None = None) -> list[int]:
    """Return the block numbers, from 0, that a text names: "all", "first3", "last3", "25-27", "0,2,5-7".

    source   what errors quote. Raises UserError.
    """
    source = source or f"--layers {text!r}"
    choices = f"the model has blocks 0-{n_layers - 1}; choose all, first3, last3, or numbers such as 0,2,5-7"
    numbers: set[int] = set()
    for item in text.split(","):
        found = re.fullmatch(r"all|(first|last)(\d{1,9})|(\d{1,9})(?:-(\d{1,9}))?", item.strip())
        if not found:
            raise UserError(f"{source} names no blocks by {item.strip()!r}; {choices}")
        end, count, low, high = found.groups()
        if end:
            first, last = (0, int(count) - 1) if end == "first" else (n_layers - int(count), n_layers - 1)
        else:
            first, last = (int(low), int(high or low)) if low else (0, n_layers - 1)
        if not 0 <= first <= last < n_layers:
            raise UserError(f"{source}: {item.strip()} isn't there; {choices}")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def hf_paths(model: nn.Module) -> dict[str, str]:
    """Return, for the path of each module, the path of what holds its tensors in the checkpoint's own layout."""
    if not isinstance(model, Transformer):
        return {}
    entries = entries_of(model)
    return {name.rpartition(".")[0]: entry.hf_name.rpartition(".")[0] for entry in entries for name in entry.names}


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path of each module, and the module, without those that a method added."""
    added = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Added))
    return ((path, module) for path, module in model.named_modules() if not f"{path}.".startswith(added))


def _matching(model: Transformer, modules: dict, targets: str, what: str, *more_choices: str) -> dict:
    """Return those of the modules that match a target, by our names or, where none does, by the checkpoint's."""
    published, found = hf_paths(model), set()
    for target in map(str.strip, targets.split(",")):
        wanted = [_component(name, target, len(model.blocks)) for name in target.split(".")]
        hits = {path for path in modules if _matches(wanted, path)}
        hits = hits or {path for path in modules if _matches(wanted, published.get(path, ""))}
        if not hits:
            choices = sorted({*more_choices, *map(_without_numbers, modules)})
            raise UserError(f"the target {target!r} matches no {what}: choose all, {', '.join(choices)}")
        found |= hits
    return {path: module for path, module in modules.items() if path in found}


def _ending(model: Transformer, modules: dict, targets: str, what: str) -> dict:
    """Return those of the modules whose name in the checkpoint ends with a target."""
    published, found = hf_paths(model), set()
    for target in map(str.strip, targets.split(",")):
        hits = {path for path in modules if published.get(path, "").endswith(target)}
        if not hits:
            names = sorted({_without_numbers(published[path]) for path in modules if path in published})
            raise UserError(f"no name of a {what} in the checkpoint ends with {target!r}: they end with {', '.join(names)}")
        found |= hits
    return {path: module for path, module in modules.items() if path in found}


def _component(name: str, target: str, n_layers: int) -> set[str]:
    """Return what a component of a target stands for: itself, or the numbers of a range of blocks."""
    if not re.fullmatch(r"(first|last)?\d+|\d+-\d+", name):
        return {name}
    return set(map(str, parse_layers(name, n_layers, f"the target {target!r}")))


def _matches(wanted: list[set[str]], path: str) -> bool:
    """Return whether all components that are wanted occur in the path, in their order."""
    parts = iter(path.split("."))
    return all(any(part in choices for part in parts) for choices in wanted)  # each `any` goes on where the last stopped


def _without_numbers(path: str) -> str:
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts)


def adapt(model: nn.Module, sites: dict[str, nn.Linear], wrap: Callable[[nn.Linear], nn.Linear]) -> None:
    """Put wrap(linear), an AdaptedLinear, in the place of each site. Raises UserError where one is there already."""
    for path, linear in sites.items():
        if isinstance(linear, AdaptedLinear):
            kind = type(linear).__name__
            raise UserError(f"{path} is adapted already ({kind}); choose other targets, or merge(model) if it is LoRA's")
        replace_module(model, path, wrap(linear))


def reparameterised(model: nn.Module) -> list[tuple[str, Reparameterised]]:
    """Return (path, module) of all modules that compute a tensor from other parameters."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Reparameterised)]


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at the path, in place. Forward hooks move along: a bypass may tap the path (peft/bypass.py)."""
    for hook in model.get_submodule(path)._forward_hooks.values():
        module.register_forward_hook(hook)
    model.set_submodule(path, module)
