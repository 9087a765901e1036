"""What stands in front of a text in adapters of the library `peft`, both ways. The tensor prompt_embeddings holds it:

    PREFIX_TUNING  [P, layers · 2 · K d]: for each layer keys and values, as wide as the layer's own
    PROMPT_TUNING  [P, D]: vectors in the place of token embeddings

The library counts a text's first token as position P; here it is 0. Where a table knows the positions, a model that gets
a prefix loses the first P rows of it, and there is no way back. A model that rotates knows only how far apart positions
are. A prefix's keys aren't turned, so a query at P + t meets them as (R(P + t) q) · k = (R(t) q) · (R(-P) k): a key is
turned back by P where it is read, and forward where it is written. A prompt is the same on either side.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.chatglm import ChatGLM
from model.llama import rotate
from model.transformer import Transformer
from peft.huggingface.files import AdapterFiles
from peft.prefix import Prefix, WithPrefix, add_prefix
from peft.prompt import add_prompt, check_windows
from utils.errors import UserError


def attach_prefix(model: Transformer, adapter: AdapterFiles) -> None:
    """Put a prefix on every block. The context loses its P tokens. Raises UserError."""
    refuse_chatglm(model)
    n_blocks, sizes = len(model.blocks), sizes_of_prefix(model)
    width = sizes["token_dim"]
    embeddings = read_embeddings(model, adapter, n_blocks * 2 * width, sizes)
    length = shorten_context(model, adapter, len(embeddings))
    check_windows(model, length, f"the prefix of {adapter.folder}")
    if not rotates(model):
        drop_positions(model, length)
    pairs = embeddings.view(length, n_blocks, 2, width).permute(1, 2, 0, 3)  # [P, L 2 K d] -> [L, 2, P, K d]
    for number, pair in enumerate(turned(model, pairs, -length)):
        add_prefix(model, number, Prefix(pair.contiguous()))


def attach_prompt(model: Transformer, adapter: AdapterFiles) -> None:
    """Put a prompt in front of every text. The context loses its P tokens. Raises UserError."""
    refuse_chatglm(model)
    if not rotates(model):
        raise UserError(f"{adapter.folder} is a prompt, which can be read for models that rotate positions (Llama) alone")
    embeddings = read_embeddings(model, adapter, model.config.dim, sizes_of_prompt(model))
    shorten_context(model, adapter, len(embeddings))
    add_prompt(model, embeddings.to(model.token_embedding.weight))


ATTACH_IN_FRONT = {"PREFIX_TUNING": attach_prefix, "PROMPT_TUNING": attach_prompt}


def read_embeddings(model: Transformer, adapter: AdapterFiles, width: int, sizes: dict[str, int]) -> torch.Tensor:
    """Return prompt_embeddings [P, width]. Raises UserError where it, or a size that the settings name, doesn't fit."""
    if "prompt_embeddings" not in adapter.tensors:
        raise UserError(f"{adapter.folder} has no prompt_embeddings")
    length, embeddings = adapter.setting("num_virtual_tokens", int), adapter.tensors["prompt_embeddings"]
    adapter.check_shape("prompt_embeddings", embeddings, (length, width))
    for name, size in {"num_layers": len(model.blocks), **sizes}.items():
        if adapter.setting(name, int, size) != size:
            raise UserError(
                f"{adapter.folder}/adapter_config.json has {name} = {adapter.config[name]}; the model has {size}"
            )
    return embeddings


def shorten_context(model: Transformer, adapter: AdapterFiles, length: int) -> int:
    """Take `length` tokens from the context, in place, and return `length`. Raises UserError where that leaves nothing."""
    context = model.config.context_length
    if not 0 < length < context:
        raise UserError(f"{adapter.folder} has {length} virtual tokens; the context is {context} tokens")
    model.config = replace(model.config, context_length=context - length)
    return length


def drop_positions(model: Transformer, length: int) -> None:
    """Take the first rows from a model's table of positions, in place."""
    table: Any = model.position_embedding  # an nn.Embedding
    first = getattr(model.config, "first_position", 0)
    table.weight = nn.Parameter(torch.cat([table.weight[:first], table.weight[first + length :]]), requires_grad=False)
    table.num_embeddings -= length


def check_writable(model: Transformer) -> None:
    """Raise UserError where what stands in front of a text can't be the same in the library."""
    refuse_chatglm(model)
    if not rotates(model):
        raise UserError(
            "a prefix or prompt can't be exported: the library moves a text's positions behind it, and ours stay"
        )
    lacking = [n for n, block in enumerate(model.blocks) if not isinstance(block.attn, WithPrefix)]
    if model.prompt is None and lacking:
        raise UserError(f"block {lacking[0]} has no prefix (--layers); theirs is on every block")
    if model.prompt is None:
        check_windows(model, len(model.blocks[0].attn.prefix()[0]), "a prefix of the library")


def embeddings_of(model: Transformer) -> torch.Tensor:
    """Return the prompt_embeddings of what stands in front of a text."""
    if model.prompt is not None:
        return model.prompt.weight  # [P, D]
    pairs = torch.stack([block.attn.prefix() for block in model.blocks])  # [L, 2, P, K d]
    return turned(model, pairs, pairs.shape[2]).permute(2, 0, 1, 3).flatten(1)  # [P, L 2 K d]


def settings_in_front(model: Transformer) -> dict[str, Any]:
    """Return the settings that say what stands in front of a text."""
    settings = {
        "num_virtual_tokens": len(embeddings_of(model)),
        "num_layers": len(model.blocks),
        "num_transformer_submodules": 1,
    }
    if model.prompt is not None:
        return settings | {"peft_type": "PROMPT_TUNING"} | sizes_of_prompt(model)
    return settings | {"peft_type": "PREFIX_TUNING"} | sizes_of_prefix(model)


def refuse_chatglm(model: Transformer) -> None:
    """Raise UserError for a ChatGLM, whose published prefixes have files of their own."""
    if isinstance(model, ChatGLM):
        raise UserError("what stands in front of a ChatGLM's text has no form in the library peft; use --run_dir")


def turned(model: Transformer, pairs: torch.Tensor, by: int) -> torch.Tensor:
    """Return the keys and values of all blocks [L, 2, P, K d], with the keys turned by so many positions."""
    rotation = model.rotation(torch.full((1, pairs.shape[2]), by, device=pairs.device))
    if rotation is None:
        return pairs
    keys = pairs[:, 0].unflatten(-1, (model.config.n_kv_heads, -1)).transpose(1, 2)  # [L, P, K d] -> [L, K, P, d]
    keys = rotate(keys, rotation).transpose(1, 2).flatten(2)  # [L, P, K d]
    still = torch.tensor([not block.attn.rotates for block in model.blocks], device=pairs.device)  # SmolLM3 has such
    keys = torch.where(still[:, None, None], pairs[:, 0], keys)
    return torch.stack([keys, pairs[:, 1]], dim=1)


def rotates(model: Transformer) -> bool:
    """Return whether a rotation, and no table, tells a model the positions."""
    return model.rotation(torch.zeros(1, 1, dtype=torch.long)) is not None


def sizes_of_prefix(model: Transformer) -> dict[str, int]:
    """Return K d and K, the width and the heads of a layer's keys, by the names of the settings."""
    heads = getattr(model.config, "n_kv_heads", model.config.n_heads)
    return {"token_dim": model.blocks[0].attn.k.out_features, "num_attention_heads": heads}


def sizes_of_prompt(model: Transformer) -> dict[str, int]:
    """Return D and H, by the names of the settings."""
    return {"token_dim": model.config.dim, "num_attention_heads": model.config.n_heads}
