"""Attach a method to a model, merge what it added, export what it trained, restore it. The same for every method."""

import torch
from torch import nn

from model.transformer import Transformer
from model.weights import FLOATS
from peft.registry import Method
from peft.targets import reparameterised, replace_module
from utils.errors import UserError


def attach(model: Transformer, method: Method) -> Transformer:
    """Freeze the whole model, then let the method pick or add what trains. In place.

    The model computes the same as before, with two exceptions: what stands in front of a text (a prefix, a prompt) is seen
    at once, and an adapter that was read brings its values. New parameters are drawn from torch's global generator.
    Raises UserError where nothing would train.
    """
    model.requires_grad_(False)
    method.attach(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{method} leaves nothing to train: {_why_the_head_does_not(model)}; choose another method")
    return model


def _why_the_head_does_not(model: nn.Module) -> str:
    has_parameters = any(name.split(".")[0] == "head" for name, _ in model.named_parameters())
    return "--train_head is no" if has_parameters else "a language model's head is its token embedding"


def train_head(model: nn.Module, yes: bool, untied: bool = False) -> None:
    """Let the whole head train, or leave it as it is. Every method has this switch.

    A language-model head's weight goes by the name of the token embedding, whose tensor it is. Where it is one of its own,
    it stays frozen as the embedding does, unless `untied` says that it is meant too.
    """
    for name, parameter in model.named_parameters():
        if yes and name.split(".")[0] == "head" and (untied or name != "head.weight"):
            parameter.requires_grad_(True)


def merge(model: nn.Module) -> nn.Module:
    """Replace every layer that has a `merged` form by it: a plain layer that computes the same. In place.

    What no plain layer can compute stays as it is: an adapter with its activation, the branches of a bypass, a prefix.
    """
    for path, module in list(model.named_modules()):
        merged = getattr(module, "merged", None)
        if merged is not None:
            replace_module(model, path, merged())
    return model


def export(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained tensors by name, detached and on the CPU.

    Of what is computed from other parameters during training (a projected prefix), only the result is returned.
    """
    return fold(model, {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})


def fold(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of tensors on the CPU, with what computes another tensor during training replaced by it."""
    tensors = dict(tensors)
    for path, module in reparameterised(model):
        own = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if own & tensors.keys():
            tensors = {name: tensor for name, tensor in tensors.items() if name not in own}
            tensors |= {f"{path}.{name}": parameter for name, parameter in module.merged().named_parameters()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def restore(model: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Copy exported tensors into a model with the same method attached. In place. Raises UserError unless all of them fit.

    A projected prefix becomes a plain one, unless the tensors are those of the projection itself.
    """
    for path, module in reparameterised(model):
        merged = module.merged()
        if all(f"{path}.{name}" in tensors for name, _ in merged.named_parameters()):
            replace_module(model, path, merged)
    fill({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}, tensors)
    return model


@torch.no_grad()
def fill(parameters: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the parameters of the same names. Raises UserError unless both are the same set."""
    problems = [f"missing {name}" for name in parameters if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in parameters]
    problems += [
        f"{name} has shape {list(tensor.shape)}, expected {list(parameters[name].shape)}"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    problems += [f"{name} is of type {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if problems:
        raise UserError(f"the tensors don't fit what this method trains: {'; '.join(problems[:12])}")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
