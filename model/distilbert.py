"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's encoder with half the layers and without token types.

The blocks are those of `model/bert.py`. The rest of what differs is in the heads: the classifier's dense layer is followed
by ReLU instead of tanh, and is no part of a published checkpoint (BERT's is its pooler); see `model/heads.py`.
"""

from dataclasses import dataclass

from model.bert import Bert, BertConfig


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """The defaults are those of distilbert-base-uncased (66M)."""

    n_layers: int = 6
    n_token_types: int = 0
    head_dropout: float = 0.2


class DistilBert(Bert):
    """See above; what `Bert` does is all that it does."""
