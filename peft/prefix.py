"""Prefix tuning: trained keys and values that every position of chosen blocks may look at (Li & Liang 2021,
arXiv:2101.00190; on every layer, as here by default, Liu et al. 2021, "P-Tuning v2", arXiv:2110.07602).

Nothing is put into the text: its positions count from 0 as without a prefix, and its context stays as long.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from config import DEFAULTS, Run, check_setting
from model.chatglm import SelfAttention as ChatGLMAttention
from model.gpt2 import SelfAttention
from model.llama import SelfAttention as LlamaAttention
from model.transformer import Transformer, causal_mask
from peft.attach import train_head
from peft.registry import method
from peft.targets import Added, Reparameterised, parse_layers, replace_module
from utils.errors import UserError


class Prefix(Added):
    """The keys and the values of P positions, [2, P, K d]: as wide as a layer's keys, in most models D."""

    def __init__(self, weight: torch.Tensor, dropout: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.dropout = nn.Dropout(dropout)  # drawn anew for each text of a batch

    def forward(self) -> torch.Tensor:
        return self.weight


class Trunk(nn.Module):
    """The part that the projected prefixes of all blocks share: an embedding of the P positions, and a layer on top."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, dim))
        self.dense = nn.Linear(dim, dim)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.dense(self.embedding))  # [P, D]


class ProjectedPrefix(Reparameterised):
    """The same from a small network, which is easier to train for some tasks and needed for nothing else.

    Every block's prefix holds the one trunk; its parameters go by their names in the lowest of the blocks.
    """

    def __init__(self, trunk: Trunk, width: int, dropout: float = 0.0):
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(trunk.dense.out_features, 2 * width)

    def forward(self) -> torch.Tensor:
        return torch.stack(self.up(self.trunk()).chunk(2, dim=-1))  # [P, D] -> [P, 2 K d] -> [2, P, K d]

    @torch.no_grad()
    def merged(self) -> Prefix:
        """Return the keys and values that the network comes down to."""
        return Prefix(self().clone(), self.dropout.p)


class WithPrefix(nn.Module):
    """Adds a prefix to what an attention layer does; it stands before the layer's class in the ones below.

    softmax(q [prefix_k; k]ᵀ / sqrt(D/H)) [prefix_v; v]: every position sees the prefix, beside what it saw before.
    """

    prefix: Any  # a Prefix or a ProjectedPrefix

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """Return what the layer itself returns with the prefix in front of its S keys and values, [B, H, T, d]."""
        pair = self.prefix().unflatten(-1, (k.shape[1], -1)).transpose(1, 2)  # [2, P, K d] -> [2, K, P, d]
        pair = self.prefix.dropout(pair.to(k.dtype)[:, None].expand(-1, len(k), -1, -1, -1))  # [2, B, K, P, d]
        if is_causal:  # that switch of the attention function would hide the prefix
            mask = causal_mask(k.shape[2], 0, k.device)  # [T, T]
        if mask is not None:
            mask = F.pad(mask, (pair.shape[3], 0), value=True)  # [..., T, S] -> [..., T, P + S]
        k, v = torch.cat([pair[0], k], dim=2), torch.cat([pair[1], v], dim=2)  # [B, K, P + S, d]
        layer: Any = super()
        return layer.attend(q, k, v, mask, is_causal=False)


class PrefixAttention(WithPrefix, SelfAttention):
    """Takes the place of an attention layer and its modules, which keep their names, and adds a prefix."""

    def __init__(self, base: SelfAttention, prefix: nn.Module):
        nn.Module.__init__(self)  # not SelfAttention's own: nothing is drawn
        self.n_heads, self.dropout, self.causal = base.n_heads, base.dropout, base.causal
        self.q, self.k, self.v, self.out = base.q, base.k, base.v, base.out
        self.prefix = prefix


class LlamaPrefixAttention(WithPrefix, LlamaAttention):
    """The same for a layer of model/llama.py. The prefix's keys aren't turned: every query meets them as at position 0."""

    def __init__(self, base: LlamaAttention, prefix: nn.Module):
        nn.Module.__init__(self)
        self.n_heads, self.n_kv_heads, self.dropout, self.causal = base.n_heads, base.n_kv_heads, base.dropout, base.causal
        self.window, self.rotates = base.window, base.rotates
        self.q, self.k, self.v, self.out = base.q, base.k, base.v, base.out
        self.q_norm, self.k_norm = base.q_norm, base.k_norm
        self.prefix = prefix


class ChatGLMPrefixAttention(WithPrefix, ChatGLMAttention):
    """The same for a layer of model/chatglm.py, as it was published: keys aren't turned, and no position moves."""

    def __init__(self, base: ChatGLMAttention, prefix: nn.Module):
        nn.Module.__init__(self)
        self.n_heads, self.dropout = base.n_heads, base.dropout
        self.qkv, self.out = base.qkv, base.out
        self.prefix = prefix


def add_prefix(model: Transformer, number: int, prefix: nn.Module) -> None:
    """Put a prefix on the attention of a block, in place."""
    attention = model.blocks[number].attn
    prefix = prefix.to(attention.out.weight.device)
    if isinstance(attention, LlamaAttention):
        prefixed = LlamaPrefixAttention(attention, prefix)
    elif isinstance(attention, ChatGLMAttention):
        prefixed = ChatGLMPrefixAttention(attention, prefix)
    else:
        prefixed = PrefixAttention(attention, prefix)
    replace_module(model, f"blocks.{number}.attn", prefixed)


def key_width(attention: Any) -> int:
    """Return how wide the keys of all heads of an attention layer are together, K d."""
    return attention.qkv.out_features // 3 if isinstance(attention, ChatGLMAttention) else attention.k.out_features


@method("prefix")
@dataclass(frozen=True)
class PrefixTuning:
    """The settings of prefix tuning. All is drawn as by the authors: N(0, 1), the network's embedding too.

    length      P, the number of positions
    projection  train the prefix through the network of `ProjectedPrefix`
    layers      which blocks get one, as in `parse_layers`
    dropout     of keys and values in training; 0.1 in the published code of ChatGLM
    """

    length: int = DEFAULTS["prefix_length"]
    projection: bool = DEFAULTS["prefix_projection"]
    layers: str = DEFAULTS["layers"]
    train_head: bool = True
    dropout: float = DEFAULTS["prefix_dropout"]

    def __post_init__(self):
        check_setting("prefix_length", self.length)
        check_setting("prefix_dropout", self.dropout)

    @classmethod
    def from_run(cls, name: str, run: Run) -> "PrefixTuning":
        settings = (run.prefix_length, run.prefix_projection, run.layers)
        return cls(*settings, train_head=run.train_head == "yes", dropout=run.prefix_dropout)

    def attach(self, model: Transformer) -> None:
        numbers, dim = parse_layers(self.layers, len(model.blocks)), model.config.dim
        trunk = Trunk(self.length, dim) if self.projection else None
        for number in numbers:
            attention = model.blocks[number].attn
            if isinstance(attention, WithPrefix):
                raise UserError(f"block {number} has a prefix already; attach to a fresh model")
            width = key_width(attention)  # K d
            if trunk is None:
                drawn = Prefix(torch.randn(2, self.length, width), self.dropout)
            else:
                drawn = ProjectedPrefix(trunk, width, self.dropout)
            add_prefix(model, number, drawn)
        train_head(model, self.train_head)
