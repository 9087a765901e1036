"""GPT-2, from the leaves to the whole (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Attention, and what runs blocks and head, is shared by all architectures: `model/transformer.py`.
Letters used for shapes: B batch, T tokens, D width of the model, H heads, V vocabulary, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.transformer import Past, SelfAttention, Transformer, check_heads, take


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that fix a GPT-2. The defaults are those of the smallest published model (124M)."""

    vocab_size: int = 50257
    context_length: int = 1024  # the longest input, in tokens
    dim: int = 768  # D
    n_heads: int = 12  # H
    n_layers: int = 12
    dropout: float = 0.0  # GPT-2 was pretrained with 0.1; the published fine-tuning rows use 0
    layer_norm_eps: float = 1e-5
    causal: bool = True  # False lets every position attend to every other (row 17 of the spam table)

    def __post_init__(self):
        check_heads(self.dim, self.n_heads)


# Table 2 of the paper; the parameter counts are those of the published checkpoints, tied head counted once.
GPT2_SIZES = {
    "gpt2-small": GPT2Config(),  # 124M
    "gpt2-medium": GPT2Config(dim=1024, n_heads=16, n_layers=24),  # 355M
    "gpt2-large": GPT2Config(dim=1280, n_heads=20, n_layers=36),  # 774M
    "gpt2-xl": GPT2Config(dim=1600, n_heads=25, n_layers=48),  # 1558M
}


class FeedForward(nn.Module):
    """Two Linear layers around the tanh approximation of GELU, which is the exact function GPT-2 was trained with."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.up = nn.Linear(config.dim, 4 * config.dim)
        self.down = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # [B, T, D] -> [B, T, 4D] -> [B, T, D]


class Block(nn.Module):
    """Attention and feed-forward, each with its LayerNorm in front and a residual connection around."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.attn = SelfAttention(config)
        self.mlp = FeedForward(config)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        rows: torch.Tensor | None = None,
        past: Past | None = None,
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D], or with `rows` [B], the one position wanted of each text, -> [B, 1, D]."""
        attended = self.attn(self.attn_norm(x), mask, is_causal, rows, past)
        x = (x if rows is None else take(x, rows)) + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT2(Transformer):
    """Embeddings, blocks, a last LayerNorm, and an exchangeable head; how they run is in `model/transformer.py`.

    Built without weights from a checkpoint, every part has PyTorch's default initialisation, drawn in the order of the
    lines below: that is what `--weights random` means in the spam table.
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

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids [B, T] -> the hidden states [B, T, D] that enter block 0. GPT-2 knows one kind of token."""
        self._check_length(input_ids)
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # [T]
        return self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.final_norm(hidden)


def init_gpt2(model: GPT2) -> GPT2:
    """The initialisation that GPT-2 itself was pretrained from: N(0, 0.02), residual outputs smaller by 1/sqrt(2 layers).

    In place, from torch's global generator. `pretrain.py` starts here; PyTorch's default (see the class) trains worse.
    """
    residual_outputs = {linear for block in model.blocks for linear in (block.attn.out, block.mlp.down)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = 0.02 / (2 * model.config.n_layers) ** 0.5 if module in residual_outputs else 0.02
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
