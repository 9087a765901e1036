"""ChatGLM-6B, from the parts to the whole (Du et al. 2021, "GLM", arXiv:2103.10360; Zeng et al. 2022, arXiv:2210.02414; the
details are those of the published files' final version, of April 27, 2023).

Begin at `ChatGLM.forward`, at the end. A text is context, [gMASK], <sop>, answer. What is unusual in it:
- Every position of the context sees the whole context, later positions too. <sop> and the answer see what lies before them
  (`layout`).
- A token has two positions: its place in the context, which for the answer is that of the mask token; and its place in the
  answer, which for the context is 0. One half of each head turns by the first, the other half by the second (`rotation`).
- What goes on around a layer is not x but its normalised form, `alpha` times (`Block`).
- Query, key and value of all heads come from one layer, head by head (`SelfAttention`).
Letters used for shapes: B batch, T tokens, D width of the model, H heads, d = D/H, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from model.attention import scaled_dot_product_attention
from model.llama import Rotation, rotate
from model.transformer import Transformer, check_heads
from utils.errors import UserError


@dataclass(frozen=True)
class ChatGLMConfig:
    """The numbers that fix a ChatGLM. The defaults are those of the published one (6.2 billion parameters)."""

    vocab_size: int = 130528  # V; the tokenizer has 130344 tokens, the last rows have none
    context_length: int = 2048  # the longest input, in tokens
    dim: int = 4096  # D
    n_heads: int = 32  # H
    n_layers: int = 28
    mlp_dim: int = 16384  # the inner width of the feed-forward layers
    layer_norm_eps: float = 1e-5
    alpha: float = 56**0.5  # sqrt(2 · 28), in the published code for any number of layers
    dropout: float = 0.0  # the published model has none anywhere
    tied: bool = True  # the head is the token embedding's tensor once the published files are loaded
    pad_id: int | None = 3
    mask_id: int = 130000  # [MASK], a blank in the text
    gmask_id: int = 130001  # [gMASK], a blank at its end
    start_id: int = 130004  # <sop>, before the answer
    end_ids: tuple[int, ...] = (130005,)  # <eop>

    causal: ClassVar[bool] = True  # `layout` says where it isn't
    token_where_invalid: ClassVar[int] = 5  # "▁", which is written where a score is no number, as in the published code

    def __post_init__(self):
        check_heads(self.dim, self.n_heads)
        head_dim = self.dim // self.n_heads
        if head_dim % 4:
            raise UserError(f"the width of a head, {head_dim}, must be divisible by 4: two halves turn in pairs")


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotated queries and keys. One layer computes q, k and v, in the order of the heads:
    q, k, v of head 0, then those of head 1, ..."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Mix what the positions hold, [B, T, D] -> [B, T, D].

        mask      True where a position may look at another, [B, 1, T, T]
        rotation  of the T positions
        """
        heads = self.qkv(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # -> [B, T, H, 3d] -> [B, H, T, 3d]
        q, k, v = heads.chunk(3, dim=-1)  # [B, H, T, d] each
        q, k = rotate_halves(q, rotation), rotate_halves(k, rotation)
        mixed = self.attend(q, k, v, mask, is_causal=False)  # [B, H, T, d]
        return self.out(mixed.transpose(1, 2).flatten(2))  # -> [B, T, H, d] -> [B, T, D]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """softmax(q kᵀ / sqrt(d)) v: queries [B, H, T, d] look at S keys and values [B, H, S, d].

        A method of its own, because prefix tuning adds to it (peft/prefix.py).
        """
        dropout = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


class FeedForward(nn.Module):
    """Two Linear layers around GELU in its tanh approximation."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # [B, T, D] -> [B, T, mlp_dim] -> [B, T, D]


class Block(nn.Module):
    """Attention and feed-forward, each with a LayerNorm in front; the residual connection begins behind the LayerNorm."""

    norm_first = True  # read by model/fast_path.py alone

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.alpha = config.alpha
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = self.attn_norm(x)  # [B, T, D]
        x = self.alpha * x + self.attn(x, mask, rotation)
        x = self.mlp_norm(x)
        return self.alpha * x + self.mlp(x)


class ChatGLM(Transformer):
    """Token embeddings, blocks, a last LayerNorm, and a language-model head (`model/heads.py`).

    A new model has PyTorch's default initialisation, drawn in the order of the lines below.
    """

    states_stay = False  # a longer context is another one at every position of it

    def __init__(self, config: ChatGLMConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.head = head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of token ids [B, T], [B, T, V].

        attention_mask  [B, T], 1 = real and 0 = padding on either side; None: everything is real
        lengths, token_type_ids, positions   ignored: they follow from the tokens

        Raises UserError for a text without a mask token or <sop>, one that is longer than the context, and without a head.
        """
        if self.head is None:
            raise UserError('this ChatGLM has no head: use encode(), or from_pretrained(..., head="lm")')
        visible, positions = self.layout(input_ids, attention_mask)  # [B, T, T] and [B, 2, T]
        x = self.embed(input_ids)  # [B, T] -> [B, T, D]
        mask, turns = self.block_inputs(x, visible, positions)  # [B, 1, T, T]; cos and sin, [B, 1, T, 2, d/4]
        for block in self.blocks:
            x = block(x, mask, turns)  # [B, T, D]
        return self.head(self.final_norm(x))  # [B, T, V]

    def layout(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each position may look at, [B, T, T], and its two positions, [B, 2, T], for ids [B, T].

        The context is what lies before the first <sop>. Its mask token is the first [gMASK] or, without one, the first
        [MASK]. Padding is seen by nothing, and real tokens are counted as if there were none. `positions` aren't used.
        Raises UserError for a text whose context has no mask token, and for several texts in a row.
        """
        if attention_mask is not None and attention_mask.ndim == 3:
            raise UserError("a ChatGLM can't take several texts in a row: its context is one. Leave --packing out")
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()  # [B, T]
        is_sop, is_mask = input_ids == self.config.start_id, input_ids == self.config.gmask_id
        is_mask = torch.where(is_mask.any(1, keepdim=True), is_mask, input_ids == self.config.mask_id)
        sop, mask = (one.long().argmax(dim=1, keepdim=True) for one in (is_sop, is_mask))  # [B, 1], the first of each
        if not input_ids.is_meta:
            self.check_marks(is_sop.any(1) & is_mask.any(1) & (mask < sop).squeeze(1))
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # [1, T]
        n_left = real.argmax(dim=1, keepdim=True)  # [B, 1], tokens of padding on the left
        in_context = (torch.where(places < sop, places, mask) - n_left).clamp(min=0)  # [B, T]
        in_answer = (places - sop + 1).clamp(min=0)  # [B, T]: <sop> is 1
        # Everything sees the context, padding too, so no row of the mask is empty.
        seen = (places[..., None, :] <= places[..., None]) | (places < sop)[:, None]  # [B, T, T]
        return seen & real.bool()[:, None], torch.stack([in_context, in_answer], dim=1)

    @staticmethod
    def check_marks(has_them: torch.Tensor) -> None:
        """Raise UserError unless every text [B] has a mask token and behind it <sop>. Waits for the device once."""
        if lacking := (~has_them).nonzero().flatten().tolist():
            raise UserError(
                f"text {lacking[0]} of the batch has no [gMASK] or [MASK] with <sop> behind it; ChatGLM's tokenizer puts "
                "[gMASK] <sop> behind every prompt"
            )

    def places_behind(self, last: torch.Tensor | None, positions: torch.Tensor | None) -> torch.Tensor:
        """Return the positions of the answer's next token, [B, 2, 1], from those of its last one."""
        assert last is not None and (positions is None or positions.shape[-1] == 1), "an answer goes on token by token"
        return torch.stack([last[:, 0], last[:, 1] + 1], dim=1)

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [B, T, D] that enter block 0."""
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit:
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
        return self.token_embedding(input_ids)

    def block_inputs(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, Rotation]:
        """Return what every block gets beside the hidden states, from what `layout` returns: mask and rotation."""
        if attention_mask is None or attention_mask.ndim != 3 or positions is None:
            raise UserError("a ChatGLM's blocks need the mask and positions that layout(input_ids, attention_mask) returns")
        return attention_mask.bool()[:, None], self.rotation(positions)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """Return the rotation of positions [B, 2, T]."""
        is_half = self.token_embedding.weight.dtype == torch.float16  # as the published model was trained and logged
        dtype = torch.float16 if is_half else torch.float32
        return rotation(positions, self.config.dim // self.config.n_heads, dtype)


def rotation(positions: torch.Tensor, head_dim: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """Return cos and sin of the angles of each half of a head: positions [B, 2, T] -> [B, 1, T, 2, d/4] each.

    dtype   of the model. In half precision the angles themselves are rounded, as in the published code: in float16 that
            moves cos by up to 0.5 at position 2000, in bfloat16 by more. Frequencies are always rounded to float16.
    """
    width = head_dim // 2
    places = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)  # [d/4]
    frequencies = (1.0 / 10000 ** (places / width)).half().to(dtype)  # radians per position
    angles = positions.transpose(1, 2)[:, None, :, :, None].to(dtype) * frequencies  # [B, 1, T, 2, d/4]
    return angles.cos(), angles.sin()


def rotate_halves(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Turn each half of every head by its own position: [B, H, T, d] -> [B, H, T, d]."""
    return rotate(x.unflatten(-1, (2, -1)), by).flatten(-2)  # -> [B, H, T, 2, d/2] -> [B, H, T, d]
