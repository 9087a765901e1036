"""Llama and its family, from the parts to the whole (Touvron et al. 2023, arXiv:2302.13971; Llama 3, SmolLM2, Mistral,
Qwen2, Qwen3).

Begin at `Llama.forward`, at the end. What differs from GPT-2: no table of positions, as each head turns its queries and
keys by an angle that grows with the position (`rotation`, `rotate`); several query heads share the keys and values of one
head; RMSNorm without a mean or a bias; a feed-forward layer with a gate; no biases, except where a member has some.
Letters used for shapes: B batch, T tokens, D width of the model, H query heads, K key and value heads, d width of a head,
V vocabulary, C classes.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from model.attention import scaled_dot_product_attention
from model.transformer import Transformer, make_mask
from utils.errors import UserError

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin of the angles, [B, 1, T, d/2] each


@dataclass(frozen=True)
class Rope:
    """What the angles of the rotation depend on (Su et al. 2021, arXiv:2104.09864).

    Llama 3.1 and later stretch the slow waves for a longer context than they were trained with (`factor` and below).
    """

    theta: float = 10000.0
    factor: float | None = None  # by which the slow waves are stretched; None: none is
    low_freq_factor: float = 1.0  # waves of which fewer than this fit into `original_context` are stretched whole ...
    high_freq_factor: float = 4.0  # ... and those of which more than this fit not at all; in between, in part
    original_context: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that fix a model of the family. The defaults are those of SmolLM2-135M."""

    vocab_size: int = 49152  # V
    context_length: int = 8192  # the longest input, in tokens
    dim: int = 576  # D
    n_heads: int = 9  # H
    n_kv_heads: int = 3  # K
    head_dim: int = 64  # d; H d need not be D
    n_layers: int = 30
    mlp_dim: int = 1536  # the inner width of the feed-forward layers
    norm_eps: float = 1e-5
    rope: Rope = Rope(theta=100000.0)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None  # how many tokens, itself included, a position of a layer with a window sees
    window_layers: tuple[int, ...] = ()  # the numbers of those layers
    layers_without_rotation: tuple[int, ...] = ()  # SmolLM3: these know no positions
    dropout: float = 0.0  # none of the published models was trained with any
    causal: bool = True  # False lets every position look at every other
    tied: bool = True  # whether the language-model head is the token embedding's own tensor
    # The tokens that begin, end and pad a text, where config.json names them. Otherwise they are the tokenizer's.
    start_id: int | None = None
    end_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    qk_norm: ClassVar[bool] = False  # whether each query and key is normalised

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"{self.n_heads} query heads can't share {self.n_kv_heads} heads of keys and values evenly")
        if self.head_dim % 2:
            raise UserError(f"the width of a head, {self.head_dim}, must be even: a rotation turns pairs of numbers")


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Mistral 7B: Llama, in its first version with a window."""


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Qwen2 and Qwen2.5: biases of queries, keys and values."""

    qkv_bias: bool = True


@dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Qwen3: no biases, but queries and keys are normalised."""

    qk_norm: ClassVar[bool] = True


@dataclass(frozen=True)
class SmolLM3Config(LlamaConfig):
    """SmolLM3: Llama, with layers that don't rotate."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, arXiv:1910.07467). The mean is taken in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)  # [..., D]
        return self.weight * normed.to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotated queries and keys. H / K query heads share a head of keys and values
    (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.dropout, self.causal = config.dropout, config.causal
        self.window = config.window if layer in config.window_layers else None
        self.rotates = layer not in config.layers_without_rotation
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = nn.Linear(config.dim, q_dim, bias=config.qkv_bias)
        self.k = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.v = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.out = nn.Linear(q_dim, config.dim, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rotation: Rotation) -> torch.Tensor:
        """Mix what the positions hold, [B, T, D] -> [B, T, D].

        mask      True where a position may look at another, [B, 1, 1 or T, T]; None: everything is seen or, if causal, only
                  the position itself and those before it
        rotation  of the T positions
        """
        q = self.q_norm(self.q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2))  # -> [B, T, H, d] -> [B, H, T, d]
        k = self.k_norm(self.k(x).unflatten(-1, (self.n_kv_heads, -1)).transpose(1, 2))  # [B, K, T, d]
        v = self.v(x).unflatten(-1, (self.n_kv_heads, -1)).transpose(1, 2)  # [B, K, T, d]
        if self.rotates:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.window is not None:
            mask = window_mask(mask, torch.arange(x.shape[1], device=x.device), x.shape[1], self.window, self.causal)
        mixed = self.attend(q, k, v, mask, is_causal=self.causal and mask is None)  # [B, H, T, d]
        return self.out(mixed.transpose(1, 2).flatten(2))  # -> [B, T, H, d] -> [B, T, D]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """softmax(q kᵀ / sqrt(d)) v: queries [B, H, T, d] look at S keys and values [B, K, S, d].

        A method of its own, because prefix tuning adds to it (peft/prefix.py).
        """
        dropout = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=self.n_heads != self.n_kv_heads
        )


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)): a third layer decides how much of each inner number passes (Shazeer 2020,
    arXiv:2002.05202, "SwiGLU")."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate = nn.Linear(config.dim, config.mlp_dim, bias=config.mlp_bias)
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # [B, T, D] -> [B, T, mlp_dim] -> [B, T, D]


class Block(nn.Module):
    """Attention and feed-forward, each with its norm in front ("pre-norm") and a residual connection around."""

    norm_first = True  # read by model/fast_path.py alone

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = SelfAttention(config, layer)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rotation: Rotation) -> torch.Tensor:
        x = x + self.attn_dropout(self.attn(self.attn_norm(x), mask, rotation))  # [B, T, D]
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)))  # [B, T, D]


class Llama(Transformer):
    """Token embeddings, blocks that rotate, a last RMSNorm, and a head (`model/heads.py`).

    A new model has PyTorch's default initialisation, drawn in the order of the lines below.
    """

    def __init__(self, config: LlamaConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = RMSNorm(config.dim, config.norm_eps)
        self.head = head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of token ids [B, T]: [B, T, V] with a language-model head, [B, C] with a classifier.

        attention_mask  [B, T], 1 = real and 0 = padding, or [B, T, T], where [b, i, j] says whether position i may look at
                        position j; None: nothing is padding. A causal model sees no later position in any case
        lengths         [B], the number of real tokens; used only by a classifier with position="flexible" and no mask
        token_type_ids  ignored: these models know one kind of token
        positions       [B, T], the place of each token in its text; None: real tokens are counted

        Raises UserError for a text that is longer than the context, and without a head.
        """
        if self.head is None:
            raise UserError('this Llama has no head: use encode(), or from_pretrained(..., head="lm" or "classifier")')
        x = self.embed(input_ids)  # [B, T] -> [B, T, D]
        mask, turns = self.block_inputs(x, attention_mask, positions)  # [B, 1, 1 or T, T] or None; cos, sin: [B, 1, T, d/2]
        for block in self.blocks:
            x = block(x, mask, turns)  # [B, T, D]
        x = self.final_norm(x)  # [B, T, D]
        return self.head(x, attention_mask, lengths)  # [B, T, V] or [B, C]

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [B, T, D] that enter block 0. They know no positions."""
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit and positions is None:  # else it may be several texts, each with positions of its own
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
        return self.dropout(self.token_embedding(input_ids))

    def block_inputs(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, Rotation]:
        """Return what every block gets beside the hidden states [B, T, D]: the mask, and the rotation of the positions."""
        mask = None if attention_mask is None else make_mask(attention_mask, self.config.causal)  # [B, 1, 1 or T, T]
        if positions is None and attention_mask is not None and attention_mask.ndim == 2:
            positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [B, T]: 0 is the first real token
        elif positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]  # [1, T]
        return mask, self.rotation(positions)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """Return the rotation of positions [B, T]."""
        return rotation(positions, self.config)


def rotation(positions: torch.Tensor, config: LlamaConfig) -> Rotation:
    """Return cos and sin of the angles of each position: [B, T] -> [B, 1, T, d/2] each.

    Number i of a head turns by position / theta^(2i/d) radians: the first ones fast, the last ones hardly.
    """
    rope, n = config.rope, config.head_dim
    places = torch.arange(0, n, 2, dtype=torch.float32, device=positions.device)  # [d/2]
    frequencies = 1.0 / rope.theta ** (places / n)  # radians per position
    if rope.factor is not None:
        fit = rope.original_context * frequencies / (2 * math.pi)  # how many waves fit into the context of the pretraining
        kept = (fit - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = kept.clamp(0, 1)  # 1: the wave stays as it is; 0: it is stretched
        frequencies = kept * frequencies + (1 - kept) * frequencies / rope.factor
    angles = positions[:, None, :, None].float() * frequencies  # [B, 1, T, d/2]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Turn each pair (x[i], x[i + d/2]) of every head by its angle: [B, H, T, d] -> [B, H, T, d], in the type of x."""
    cos, sin = by
    first, second = x.chunk(2, dim=-1)  # [B, H, T, d/2] each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def window_mask(mask: torch.Tensor | None, rows: torch.Tensor, n_keys: int, window: int, causal: bool) -> torch.Tensor:
    """Return the mask of a layer with a window: no query sees what lies `window` places or more before it.

    mask    of the same layer without a window; None: everything is seen or, if causal, nothing later
    rows    the places of the Q queries among the S keys, [Q], or [B, 1, 1] for one of each text
    """
    places = torch.arange(n_keys, device=rows.device)  # [S]
    near = rows[..., None] - places < window  # [Q, S], or [B, 1, 1, S]
    if mask is None and causal:
        mask = places <= rows[..., None]
    return near if mask is None else mask & near
