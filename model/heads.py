"""What turns final hidden states [B, T, D] into logits. Every head has the same two calls.

rows(hidden, attention_mask, lengths)      the one position [B] that it reads of each text, or None for all of them
head(hidden, attention_mask, heard)        the logits, from the hidden states of the positions it reads

`taps` are the paths of submodules whose output at the position read it wants too: `heard` holds them, tap -> [B, D].
`kind` is what `from_pretrained(head=...)` calls it.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

POSITIONS = ("first", "last", "flexible")


@contextlib.contextmanager
def listen(model: nn.Module, taps: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """What these submodules put out while the context lasts: tap -> output."""
    heard: dict[str, torch.Tensor] = {}

    def keep(tap: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        heard[tap] = output

    hooks = [model.get_submodule(tap).register_forward_hook(partial(keep, tap)) for tap in taps]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


class LanguageModelHead(nn.Module):
    """Scores for the next token. The weight is the token embedding's own tensor (tied), counted and trained once."""

    kind = "lm"
    taps: tuple[str, ...] = ()

    def __init__(self, token_embedding: nn.Embedding):
        super().__init__()
        self.weight = token_embedding.weight  # [V, D]
        self.bias = None

    def rows(self, hidden, attention_mask=None, lengths=None) -> None:
        return None

    def prepare(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the weight is applied to, [..., D]."""
        return hidden

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, heard=None) -> torch.Tensor:
        return F.linear(self.prepare(hidden), self.weight, self.bias)  # [B, T, D] -> [B, T, V]


class MaskedLanguageModelHead(LanguageModelHead):
    """Scores for the token that belongs at each position: a dense layer, GELU and LayerNorm before the tied weight."""

    def __init__(self, token_embedding: nn.Embedding, layer_norm_eps: float):
        super().__init__(token_embedding)
        vocab_size, dim = self.weight.shape
        self.dense = published_init(nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def prepare(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(F.gelu(self.dense(hidden)))  # [..., D]


def published_init(linear: nn.Linear) -> nn.Linear:
    """As the published libraries draw what an encoder's checkpoint doesn't hold: N(0, 0.02), bias zero. In place."""
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


class ClassifierHead(nn.Module):
    """One Linear layer on the hidden state of one position, or on the mean over positions.

    position  "first": index 0. "last": the last position the model attends to, so index -1 without an attention mask,
              even where a padding token sits there, as in the published spam rows. "flexible": the last real token,
              known from the attention mask or, without one, from `lengths`.
    average   the mean over all positions (over the real ones where an attention mask is given) instead of one of them.

    `labels` are the names of the classes where the checkpoint gives them names.
    """

    kind = "classifier"
    taps: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None

    def __init__(self, dim: int, num_labels: int, position: str = "last", average: bool = False):
        super().__init__()
        self.classifier = nn.Linear(dim, num_labels)
        self.position = position
        self.average = average

    def rows(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Index [B] of the position that `position` means, or None for the mean over all. Only the shape [B, T] is used."""
        if self.average:
            return None
        n_texts, length = hidden.shape[:2]
        if self.position == "first":
            return torch.zeros(n_texts, dtype=torch.long, device=hidden.device)
        if attention_mask is not None:
            positions = torch.arange(length, device=hidden.device)
            return (positions * attention_mask).argmax(dim=1)  # right for padding on either side
        if self.position == "flexible" and lengths is not None:
            return lengths - 1  # without a mask, padding is on the right
        return torch.full((n_texts,), length - 1, device=hidden.device)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, heard=None) -> torch.Tensor:
        """Hidden states [B, T, D] of the positions read (T = 1 for a single one) -> logits [B, C]."""
        if attention_mask is None:
            return self.classify(hidden.mean(dim=1))  # [B, T, D] -> [B, D] -> [B, C]
        real = attention_mask.to(hidden.dtype).unsqueeze(-1)  # [B, T, 1]
        return self.classify((hidden * real).sum(dim=1) / real.sum(dim=1))

    def classify(self, state: torch.Tensor) -> torch.Tensor:
        return self.classifier(state)  # [B, D] -> [B, C]


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
