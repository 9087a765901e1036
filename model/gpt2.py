"""GPT-2, from the leaves to the whole (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Letters used for shapes: B batch, T tokens, D width of the model, H heads, V vocabulary, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.heads import listen


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
        if self.dim % self.n_heads:
            raise UserError(f"the width {self.dim} isn't divisible by the number of heads, {self.n_heads}")


# Table 2 of the paper; the parameter counts are those of the published checkpoints, tied head counted once.
GPT2_SIZES = {
    "gpt2-small": GPT2Config(),  # 124M
    "gpt2-medium": GPT2Config(dim=1024, n_heads=16, n_layers=24),  # 355M
    "gpt2-large": GPT2Config(dim=1280, n_heads=20, n_layers=36),  # 774M
    "gpt2-xl": GPT2Config(dim=1600, n_heads=25, n_layers=48),  # 1558M
}


class SelfAttention(nn.Module):
    """Multi-head self-attention. Query, key and value are three Linear layers, so that each can be adapted alone."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        queries = x if rows is None else take(x, rows)  # [B, T, D], or [B, 1, D]: everything is looked at, but by one
        q, k, v = (
            linear(of).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, T, H, D/H] -> [B, H, T, D/H]
            for linear, of in ((self.q, queries), (self.k, x), (self.v, x))
        )
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.out(x.transpose(1, 2).flatten(2))  # [B, H, T, D/H] -> [B, T, H, D/H] -> [B, T, D]


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
        self, x: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D], or with `rows` [B], the one position wanted of each text, -> [B, 1, D]."""
        attended = self.attn(self.attn_norm(x), mask, is_causal, rows)
        x = (x if rows is None else take(x, rows)) + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def take(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One position of each text: [B, T, D] and [B] -> [B, 1, D]."""
    return x[torch.arange(len(x), device=x.device), rows].unsqueeze(1)


class GPT2(nn.Module):
    """Embeddings, blocks, a last LayerNorm, and an exchangeable head (see `model/heads.py`).

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

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] -> the hidden states [B, T, D] that enter block 0."""
        length, limit = input_ids.shape[1], self.config.context_length
        if length > limit:
            raise UserError(f"an input of {length} tokens is longer than the model's context of {limit} tokens")
        positions = torch.arange(length, device=input_ids.device)  # [T]
        return self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))

    def run_blocks(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> torch.Tensor:
        """Blocks start..stop-1 on given hidden states [B, T, D] -> [B, T, D].

        With this seam a caller can keep the output of frozen blocks and continue from there.
        """
        mask, is_causal = self._attention_rule(attention_mask, hidden.shape[1])
        for block in self.blocks[start:stop]:
            hidden = block(hidden, mask, is_causal)
        return hidden

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [B, T] and an optional mask [B, T] (1 = real, 0 = padding) -> final hidden states [B, T, D]."""
        return self.final_norm(self.run_blocks(self.embed(input_ids), attention_mask))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits: [B, T, V] with the language-model head, [B, C] with the classifier head.

        `lengths` [B] counts the real tokens of each text. It only tells the classifier where a text ends (position
        `flexible`); what attention sees is up to `attention_mask` alone.
        """
        if self.head is None:
            raise UserError('this GPT-2 has no head: use encode(), or build it with head="lm" or "classifier"')
        rows = self.head.rows(input_ids, attention_mask, lengths)  # [B], or None where every position is read
        if rows is None:
            return self.head(self.encode(input_ids, attention_mask), attention_mask)
        # The same, without the last block's output at the positions that nothing reads.
        with listen(self, self.head.taps) as heard:
            hidden = self.run_blocks(self.embed(input_ids), attention_mask, stop=-1)
            hidden = self.blocks[-1](hidden, self._visible_to(rows, hidden.shape[1], attention_mask), False, rows)
        # [B, T, D] -> [B, D]; what the last block puts out is [B, 1, D] already
        heard = {tap: (take(x, rows) if x.shape[1] > 1 else x).squeeze(1) for tap, x in heard.items()}
        return self.head(self.final_norm(hidden), None, heard)  # [B, 1, D] -> [B, C]

    def _visible_to(self, rows: torch.Tensor, length: int, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What one position of each text, `rows` [B], may attend to: a boolean mask [B, 1, 1, T]."""
        keys = torch.arange(length, device=rows.device)
        visible = keys <= rows[:, None] if self.config.causal else (keys >= 0).expand(len(rows), -1)  # [B, T]
        if attention_mask is not None:
            visible = visible & attention_mask.bool()
        return visible[:, None, None, :]

    def _attention_rule(self, attention_mask: torch.Tensor | None, length: int) -> tuple[torch.Tensor | None, bool]:
        """What SDPA needs: a boolean mask (True = may attend) that broadcasts to [B, H, T, T], and its causal switch.

        Without padding to hide, the switch alone says it all and leaves SDPA free to take its fastest kernel.
        """
        if attention_mask is None:
            return None, self.config.causal
        mask = attention_mask.bool()[:, None, None, :]  # [B, T] -> [B, 1, 1, T]: keys to look at
        if self.config.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()  # [B, 1, T, T]
        return mask, False


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
