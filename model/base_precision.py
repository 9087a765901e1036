"""The forms in which a model's frozen weights can be kept, and a model that keeps them so."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from model.nf4 import NF4Weight
from model.quantized import HalfEmbedding, HalfWeight, LinearInPlace, QuantizedWeight, RowwiseWeight, as_tensor
from model.transformer import Transformer

# What --base_precision accepts beside fp32: how a weight is kept, and in what the token embedding then is.
PRECISIONS = {
    "fp16": (lambda shape: HalfWeight(shape, torch.float16), torch.float16),
    "bf16": (lambda shape: HalfWeight(shape, torch.bfloat16), torch.bfloat16),
    "int8": (lambda shape: RowwiseWeight(shape, 8), torch.float16),
    "int4": (lambda shape: RowwiseWeight(shape, 4), torch.float16),
    "nf4": (NF4Weight, torch.float16),
}


def quantize(model: Transformer, precision: str, trained: Collection[str] = ()) -> None:
    """Keep the weights of the blocks' Linear layers and the token embedding as `precision` says. In place.

    precision   a name of PRECISIONS
    trained     names of parameters that are left alone, because they are going to train

    A model on the meta device stays there: its weights get their values by `copy_` (`weights.load`).
    """
    make, dtype = PRECISIONS[precision]
    device = model.token_embedding.weight.device
    for path, module in list(model.blocks.named_modules(prefix="blocks")):
        if type(module) is not nn.Linear or f"{path}.weight" in trained:
            continue
        with torch.device(device):
            weight = make(module.weight.shape)
        if device.type != "meta":
            weight.copy_(module.weight.detach())
        model.set_submodule(path, LinearInPlace(module, weight))
    if "token_embedding.weight" not in trained:
        table = model.token_embedding.weight.detach().to(dtype)
        model.token_embedding = HalfEmbedding.from_pretrained(table)


def quantize_head(model: Transformer, precision: str, trained: Collection[str] = ()) -> None:
    """Keep the weight of a language-model head that isn't the token embedding's in half precision. In place."""
    is_own = getattr(model.head, "kind", None) == "lm" and model.head.weight is not model.token_embedding.weight
    if is_own and "head.weight" not in trained:
        model.head.weight = nn.Parameter(model.head.weight.detach().to(PRECISIONS[precision][1]), requires_grad=False)


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Return the parameters and the quantized weights of a model by name. Both have a shape and `copy_`."""
    quantized = {path: one for path, one in model.named_modules() if isinstance(one, QuantizedWeight)}
    return dict(model.named_parameters()) | quantized


def dequantize(model: Transformer) -> Transformer:
    """Keep every weight in float32 again, with the values that it has now. In place."""
    for path, weight in weights_of(model).items():
        if isinstance(weight, QuantizedWeight):
            layer = model.get_submodule(path.removesuffix(".weight"))
            del layer.weight
            layer.weight = nn.Parameter(as_tensor(weight), requires_grad=False)
    table = model.token_embedding.weight
    if table.dtype != torch.float32:
        model.token_embedding = nn.Embedding.from_pretrained(table.float())
        if getattr(model.head, "weight", None) is table:
            model.head.weight = model.token_embedding.weight
    return model
