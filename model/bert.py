"""BERT and RoBERTa, from the parts to the whole (Devlin et al. 2018, arXiv:1810.04805;
Liu et al. 2019, arXiv:1907.11692).

Begin at `Bert.forward`. What differs from GPT-2: every position sees every other, LayerNorm comes after each residual
sum, and tokens have types. Attention is GPT-2's, without the causal mask. SciBERT is a BERT with a vocabulary of
its own; DistilBERT is in `model/distilbert.py`. Shapes: B batch, T tokens, D width, V vocabulary, C classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from model.gpt2 import SelfAttention
from model.transformer import Transformer, check_heads, make_mask
from utils.errors import UserError


@dataclass(frozen=True)
class BertConfig:
    """The numbers that fix an encoder. The defaults are those of bert-base-uncased (110M)."""

    vocab_size: int = 30522
    context_length: int = 512  # the longest input, in tokens
    dim: int = 768  # D
    n_heads: int = 12
    n_layers: int = 12
    mlp_dim: int = 3072  # the inner width of the feed-forward layers
    n_token_types: int = 2  # first and second text of a pair; 0: no such embedding
    pad_id: int = 0  # this token's embedding gets no gradient from the input side
    dropout: float = 0.1  # of hidden states and attention
    head_dropout: float | None = None  # before the classifier; None: as `dropout`; a dropout of 0 switches this one off too
    layer_norm_eps: float = 1e-12
    tied: bool = True  # as in `GPT2Config`

    causal: ClassVar[bool] = False  # every position sees every other

    def __post_init__(self):
        check_heads(self.dim, self.n_heads)
        if self.pad_id >= self.vocab_size:
            raise UserError(f"the padding id {self.pad_id} must be below the vocabulary's size, {self.vocab_size}")

    @property
    def first_position(self) -> int:
        """Return the row of the position table that belongs to a text's first token."""
        return 0

    @property
    def classifier_dropout(self) -> float:
        """Return the dropout before the classifier."""
        return self.dropout if self.head_dropout is None or not self.dropout else self.head_dropout


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The defaults are those of roberta-base (125M)."""

    vocab_size: int = 50265
    n_token_types: int = 1
    pad_id: int = 1
    layer_norm_eps: float = 1e-5

    @property
    def first_position(self) -> int:
        return self.pad_id + 1  # as fairseq numbers them: the row of the padding id is for padding


class FeedForward(nn.Module):
    """Two Linear layers around the exact GELU."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))  # [B, T, D] -> [B, T, mlp_dim] -> [B, T, D]


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection around and then its LayerNorm ("post-norm")."""

    norm_first = False

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attn = SelfAttention(config.dim, config.n_heads, config.dropout)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.attn_norm(x + self.attn_dropout(self.attn(x, mask)))  # [B, T, D]
        return self.mlp_norm(x + self.mlp_dropout(self.mlp(x)))  # [B, T, D]


class Bert(Transformer):
    """Embeddings with their LayerNorm, blocks, and a head (`model/heads.py`).

    A new model has PyTorch's default initialisation; heads have their own.
    """

    block_class: type[Block] = Block  # DistilBERT has its own

    def __init__(self, config: BertConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim, padding_idx=config.pad_id)
        self.position_embedding = nn.Embedding(config.first_position + config.context_length, config.dim)
        if config.n_token_types:
            self.token_type_embedding = nn.Embedding(config.n_token_types, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self.block_class(config) for _ in range(config.n_layers))
        self.final_norm = nn.Identity()  # each block ends with its own
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
                        position j; None: every position is seen, padding too
        lengths         [B], the number of real tokens; used only by a classifier with position="flexible" and no mask
        token_type_ids  [B, T], 0 in the first text of a pair and 1 in the second; None: all 0
        positions       [B, T], the place of each token in its text; None: 0, 1, 2, ... (RoBERTa counts real tokens only)

        Raises UserError for a text that is longer than the context, and without a head.
        """
        if self.head is None:
            name = type(self).__name__
            raise UserError(f'this {name} has no head: use encode(), or from_pretrained(..., head="lm" or "classifier")')
        x = self.embed(input_ids, token_type_ids, positions)  # [B, T] -> [B, T, D]
        mask = None if attention_mask is None else make_mask(attention_mask, causal=False)  # [B, 1, 1, T]
        for block in self.blocks:
            x = block(x, mask)  # [B, T, D]
        return self.head(x, attention_mask, lengths)  # [B, T, V] or [B, C]

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
        position_ids = self.position_ids(input_ids) if positions is None else positions + self.config.first_position
        x = self.token_embedding(input_ids) + self.position_embedding(position_ids)  # [B, T, D]
        if self.config.n_token_types:
            use_given = token_type_ids is not None and self.config.n_token_types > 1  # RoBERTa has one type only
            x = x + self.token_type_embedding(token_type_ids if use_given else torch.zeros_like(input_ids))
        return self.dropout(self.embedding_norm(x))

    def position_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the row of the position table for each token: [T], the same for every text, or [B, T]."""
        return torch.arange(input_ids.shape[1], device=input_ids.device)


class Roberta(Bert):
    """BERT's encoder, with positions that count real tokens only: padding on the left doesn't move a text."""

    def __init__(self, config: RobertaConfig, head: nn.Module | None = None):
        super().__init__(config, head)
        self.position_embedding.padding_idx = config.pad_id  # as the token's: no gradient

    def position_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        real = (input_ids != self.config.pad_id).long()  # [B, T]
        return real.cumsum(dim=1) * real + self.config.pad_id  # padding: pad_id; real tokens: pad_id + 1, + 2, ...
