"""The layers that turn final hidden states [B, T, D] into logits.

Every head is called as head(hidden, attention_mask, lengths). `kind` is what `from_pretrained(head=...)` calls it.
Letters used for shapes: B batch, T tokens, D width of the model, V vocabulary, C classes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from model.quantized import half_as

POSITIONS = ("first", "last", "flexible")


class LanguageModelHead(nn.Module):
    """Scores for the next token.

    The weight is the token embedding's own tensor, counted and trained once. Where it isn't `tied`, it is another of the
    same shape, drawn as the published libraries draw it.
    """

    kind = "lm"
    taps: tuple[str, ...] = ()

    def __init__(self, token_embedding: nn.Embedding, tied: bool = True):
        super().__init__()
        self.weight = token_embedding.weight  # [V, D]
        if not tied:
            self.weight = nn.Parameter(torch.empty_like(token_embedding.weight))
            nn.init.normal_(self.weight, std=0.02)
        self.bias: nn.Parameter | None = None

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.prepare(hidden)  # [B, T, D]
        return F.linear(hidden, half_as(hidden, self.weight), self.bias)  # [B, T, D] -> [B, T, V]

    def prepare(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the weight is multiplied with, [..., D]."""
        return hidden

    def rows(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> None:
        """Return None: every position is read."""
        return None


class MaskedLanguageModelHead(LanguageModelHead):
    """Scores for the token that belongs at each position: a dense layer, GELU and LayerNorm before the weight."""

    def __init__(self, token_embedding: nn.Embedding, layer_norm_eps: float, tied: bool = True):
        super().__init__(token_embedding, tied)
        vocab_size, dim = self.weight.shape
        self.dense = published_init(nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def prepare(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(F.gelu(self.dense(hidden)))  # [..., D]


def untie(model: Any) -> None:
    """Give a model's language-model head a weight of its own, frozen and equal to the token embedding's. In place."""
    model.head.weight = nn.Parameter(model.token_embedding.weight.detach().clone(), requires_grad=False)  # [V, D]
    model.config = replace(model.config, tied=False)


def published_init(linear: nn.Linear) -> nn.Linear:
    """Draw a layer as the published libraries draw what an encoder's checkpoint lacks: N(0, 0.02), bias zero. In place."""
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def take(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return one position of each text: [B, T, D] and [B] -> [B, D]."""
    return x[torch.arange(len(x), device=x.device), rows]


class ClassifierHead(nn.Module):
    """One Linear layer on the hidden state of one position, or on the mean over positions.

    position  "first": index 0. "last": the last position the model attends to, so index -1 without an attention mask,
              even where a padding token sits there, as in the published spam rows. "flexible": the last real token,
              known from the attention mask or, without one, from `lengths`.
    average   the mean over all positions (over the real ones where an attention mask is given) instead of one of them.

    bias      whether the Linear layer has one. The published classifiers of GPT-2 and Llama have none.

    `labels` are the names of the classes where the checkpoint gives them names. `order` are the checkpoint's numbers of the
    classes that were kept, where not all were or in another order. `taps` are the paths of modules whose output a subclass
    reads too (peft/bypass.py).
    """

    kind = "classifier"
    taps: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    order: tuple[int, ...] | None = None

    def __init__(self, dim: int, num_labels: int, position: str = "last", average: bool = False, bias: bool = True):
        super().__init__()
        self.classifier = nn.Linear(dim, num_labels, bias=bias)
        self.position = position
        self.average = average

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = self.rows(hidden, attention_mask, lengths)  # [B], or None for the mean
        if rows is not None:
            state = hidden[torch.arange(len(hidden), device=hidden.device), rows]  # [B, T, D] -> [B, D]
        elif attention_mask is None:
            state = hidden.mean(dim=1)  # [B, T, D] -> [B, D]
        else:
            real = attention_mask.to(hidden.dtype).unsqueeze(-1)  # [B, T, 1]
            state = (hidden * real).sum(dim=1) / real.sum(dim=1)  # [B, D]
        return self.classify(state)  # [B, C]

    def rows(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Return the index [B] of the position that is read of each text, or None for the mean over all.

        hidden   [B, T, D]; only its shape and device matter
        """
        n_texts, length = hidden.shape[:2]
        if self.average:
            return None
        if self.position == "first":
            return torch.zeros(n_texts, dtype=torch.long, device=hidden.device)
        if attention_mask is not None:
            places = torch.arange(length, device=hidden.device)
            return (places * attention_mask).argmax(dim=1)  # right for padding on either side
        if self.position == "flexible" and lengths is not None:
            return lengths - 1  # without a mask, padding is on the right
        return torch.full((n_texts,), length - 1, device=hidden.device)

    def classify(self, state: torch.Tensor) -> torch.Tensor:
        """Return the logits of one hidden state per text, [B, D] -> [B, C]."""
        return self.classifier(state)


class EncoderClassifierHead(ClassifierHead):
    """A dense layer, its activation and dropout before the classifier, as the encoders were published with.

    BERT: tanh (dense is its pooler). DistilBERT: ReLU. RoBERTa: tanh, and dropout before the dense layer too.
    """

    def __init__(
        self,
        dim: int,
        num_labels: int,
        position: str = "first",
        average: bool = False,
        *,
        dropout: float,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh,
        dropout_first: bool = False,
    ):
        super().__init__(dim, num_labels, position, average)
        self.dense = published_init(nn.Linear(dim, dim))
        published_init(self.classifier)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation
        self.dropout_first = dropout_first

    def classify(self, state: torch.Tensor) -> torch.Tensor:
        state = self.dropout(state) if self.dropout_first else state
        return self.classifier(self.dropout(self.activation(self.dense(state))))  # [B, D] -> [B, D] -> [B, C]
