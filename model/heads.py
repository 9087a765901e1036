"""What turns final hidden states [B, T, D] into logits. Every head has the same call: (hidden, attention_mask, lengths)."""

import torch
from torch import nn
from torch.nn import functional as F

POSITIONS = ("first", "last", "flexible")


class LanguageModelHead(nn.Module):
    """Scores for the next token. The weight is the token embedding's own tensor (tied), counted and trained once."""

    def __init__(self, token_embedding: nn.Embedding):
        super().__init__()
        self.weight = token_embedding.weight  # [V, D]

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return F.linear(hidden, self.weight)  # [B, T, D] -> [B, T, V]


class ClassifierHead(nn.Module):
    """One Linear layer on the hidden state of one position, or on the mean over positions.

    position  "first": index 0. "last": the last position the model attends to, so index -1 without an attention mask,
              even where a padding token sits there, as in the published spam rows. "flexible": the last real token,
              known from the attention mask or, without one, from `lengths`.
    average   the mean over all positions (over the real ones where an attention mask is given) instead of one of them.
    """

    def __init__(self, dim: int, num_labels: int, position: str = "last", average: bool = False):
        super().__init__()
        self.classifier = nn.Linear(dim, num_labels)
        self.position = position
        self.average = average

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.classifier(self.pool(hidden, attention_mask, lengths))  # [B, T, D] -> [B, D] -> [B, C]

    def pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, lengths: torch.Tensor | None) -> torch.Tensor:
        if self.average:
            if attention_mask is None:
                return hidden.mean(dim=1)  # [B, T, D] -> [B, D]
            real = attention_mask.to(hidden.dtype).unsqueeze(-1)  # [B, T, 1]
            return (hidden * real).sum(dim=1) / real.sum(dim=1)
        if self.position == "first":
            return hidden[:, 0]
        if attention_mask is not None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            last = (positions * attention_mask).argmax(dim=1)  # [B]; right for padding on either side
        elif self.position == "flexible" and lengths is not None:
            last = lengths - 1  # [B]; without a mask, padding is on the right
        else:
            return hidden[:, -1]
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
