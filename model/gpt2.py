"""GPT-2, from the parts to the whole (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Begin at `GPT2.forward`, at the end: embed the tokens, run the blocks, normalise, and let the head read the result.
Letters used for shapes: B batch, T tokens, D width of the model, H heads, V vocabulary, C classes.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from model.attention import scaled_dot_product_attention
from model.transformer import Transformer, check_heads, make_mask
from utils.errors import UserError


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that fix a GPT-2. The defaults are those of the smallest published model (124M)."""

    vocab_size: int = 50257  # V
    context_length: int = 1024  # the longest input, in tokens
    dim: int = 768  # D
    n_heads: int = 12  # H
    n_layers: int = 12
    dropout: float = 0.0  # GPT-2 was pretrained with 0.1; the published fine-tuning runs use 0
    layer_norm_eps: float = 1e-5
    causal: bool = True  # False lets every position look at every other (docs/results/spam.md, row 17)
    tied: bool = True  # whether the language-model head is the token embedding's own tensor
    # The tokens that begin, end and pad a text, where config.json names them. Otherwise they are the tokenizer's.
    start_id: int | None = None
    end_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self):
        check_heads(self.dim, self.n_heads)


# Layers and widths: table 2 of the paper. Heads and parameter counts (tied head counted once): the published checkpoints.
_published = partial(GPT2Config, start_id=50256, end_ids=(50256,))
GPT2_SIZES = {
    "gpt2-small": _published(),  # 124M
    "gpt2-medium": _published(dim=1024, n_heads=16, n_layers=24),  # 355M
    "gpt2-large": _published(dim=1280, n_heads=20, n_layers=36),  # 774M
    "gpt2-xl": _published(dim=1600, n_heads=25, n_layers=48),  # 1558M
}


class SelfAttention(nn.Module):
    """Multi-head self-attention. Query, key and value are three Linear layers, so that each can be adapted alone."""

    def __init__(self, dim: int, n_heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        self.n_heads, self.dropout, self.causal = n_heads, dropout, causal
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Mix what the positions hold, [B, T, D] -> [B, T, D].

        mask    True where a position may look at another, broadcast to [B, H, T, T]. It has to hide later positions itself
                (`make_mask`). None: everything is seen or, if causal, only the position itself and those before it
        """
        q = self.q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, T, H, D/H] -> [B, H, T, D/H]
        k = self.k(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        mixed = self.attend(q, k, v, mask, is_causal=self.causal and mask is None)  # [B, H, T, D/H]
        return self.out(mixed.transpose(1, 2).flatten(2))  # -> [B, T, H, D/H] -> [B, T, D]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """softmax(q kᵀ / sqrt(D/H)) v: queries [B, H, T, D/H] look at S keys and values [B, H, S, D/H].

        A method of its own, because prefix tuning adds to it (peft/prefix.py).
        """
        dropout = self.dropout if self.training else 0.0
        # As torch.nn.functional's; with is_causal, position i sees none behind it.
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


class FeedForward(nn.Module):
    """Two Linear layers around GELU in its tanh approximation, the variant that GPT-2 was trained with."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.up = nn.Linear(config.dim, 4 * config.dim)
        self.down = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # [B, T, D] -> [B, T, 4D] -> [B, T, D]


class Block(nn.Module):
    """Attention and feed-forward, each with its LayerNorm in front ("pre-norm") and a residual connection around."""

    norm_first = True  # read by model/fast_path.py alone

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.attn = SelfAttention(config.dim, config.n_heads, config.dropout, config.causal)
        self.mlp = FeedForward(config)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn_dropout(self.attn(self.attn_norm(x), mask))  # [B, T, D]
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)))  # [B, T, D]


class GPT2(Transformer):
    """Token and position embeddings, blocks, a last LayerNorm, and a head (`model/heads.py`).

    `Transformer` adds encode(), the same up to the head, and run_blocks(). A new model has PyTorch's default
    initialisation, drawn in the order of the lines below: that is what `--weights random` means.
    """

    def __init__(self, config: GPT2Config, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.context_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
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
        """Return the logits of token ids [B, T]: [B, T, V] with a language-model head, [B, C] with a classifier.

        attention_mask  [B, T], 1 = real and 0 = padding, or [B, T, T], where [b, i, j] says whether position i may look at
                        position j; None: padding is seen too. A causal model sees no later position in any case
        lengths         [B], the number of real tokens; used only by a classifier with position="flexible" and no mask
        token_type_ids  ignored: GPT-2 knows one kind of token
        positions       [B, T], the place of each token in its text; None: 0, 1, 2, ...

        Raises UserError for a text that is longer than the context, and without a head.
        """
        if self.head is None:
            raise UserError('this GPT2 has no head: use encode(), or from_pretrained(..., head="lm" or "classifier")')
        x = self.embed(input_ids, token_type_ids, positions)  # [B, T] -> [B, T, D]
        # Without a mask, SelfAttention hides later positions itself. A mask has to hide both those and the padding:
        # [B, 1, T, T], in which nothing above the diagonal is seen, or [B, 1, 1, T] where nothing but padding is hidden.
        mask = None if attention_mask is None else make_mask(attention_mask, self.config.causal)
        for block in self.blocks:
            x = block(x, mask)  # [B, T, D]
        x = self.final_norm(x)  # [B, T, D]
        return self.head(x, attention_mask, lengths)  # [B, T, V] or [B, C]

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [B, T, D] that enter block 0."""
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit and positions is None:  # else it may be several texts, each with positions of its own
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
        if positions is None:
            positions = torch.arange(length, device=input_ids.device)  # [T]
        return self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))


def init_gpt2(model: GPT2) -> GPT2:
    """Draw weights for pretraining: normal with standard deviation 0.02, biases zero. In place, from torch's generator.

    As in the paper, the two layers of a block that write into the residual stream get 0.02 / sqrt(2 n_layers).
    `tools/pretrain.py` starts here; PyTorch's own default trains worse.
    """
    residual_outputs = {linear for block in model.blocks for linear in (block.attn.out, block.mlp.down)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = 0.02 / (2 * model.config.n_layers) ** 0.5 if module in residual_outputs else 0.02
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
