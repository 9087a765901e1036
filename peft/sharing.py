"""Several adapters on one base: a model for each, all of which share the tensors that none of them trains."""

import copy

import torch
from torch import nn

from model.transformer import Transformer
from peft.attach import attach, restore
from peft.registry import Method
from utils.errors import UserError


def share(model: Transformer) -> Transformer:
    """Return a second model over the same tensors, in new modules: what one gets, the other doesn't.

    So `merge(share(model))` folds an adapter in, and dropping the result undoes that to the last bit. Two models that are
    to train the same tensors can't share them: the optimizer's steps would show in both.
    """
    same: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}  # weights in fewer bits
    for parameter in model.parameters():
        same[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)  # the memory is the same
    return copy.deepcopy(model, same)


class Adapters:
    """Several adapters on one base, by name. The base stays as it is; each costs what it trains, and no more.

    adapters = Adapters(from_pretrained("gpt2-small", head="classifier", num_labels=2))
    adapters.add("spam", LoRA(rank=16), tensors)  # as `export` gave them
    adapters["spam"](input_ids, attention_mask)   # adapters.base(...) computes without any
    """

    def __init__(self, base: Transformer):
        self.base = base
        self.models: dict[str, Transformer] = {}

    def add(self, name: str, method: Method, tensors: dict[str, torch.Tensor] | None = None) -> Transformer:
        """Return a new model with the method attached: with the tensors that `export` gave, or as it is before training."""
        model = share(self.base)
        attach(model, method)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()  # such as the head's: each adapter has its own
        if tensors is not None:
            restore(model, tensors)
        self.models[name] = model
        return model

    def __getitem__(self, name: str) -> Transformer:
        if name not in self.models:
            raise UserError(f"no adapter {name!r}: choose {', '.join(self.models) or 'add one first'}")
        return self.models[name]
