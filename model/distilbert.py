"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's encoder with half the layers and without token types.

The blocks are those of `model/bert.py`, but for one dropout. The rest of what differs is in the heads: the classifier's
dense layer is followed by ReLU instead of tanh, and is no part of a published checkpoint (BERT's is its pooler); see
`model/heads.py`.
"""

from dataclasses import dataclass

from torch import nn

from model.bert import Bert, BertConfig, Block


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """The defaults are those of distilbert-base-uncased (66M)."""

    n_layers: int = 6
    n_token_types: int = 0
    head_dropout: float = 0.2


class DistilBlock(Block):
    """BERT's, without dropout on what attention gives."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config)
        self.attn_dropout = nn.Identity()


class DistilBert(Bert):
    """`Bert` with these blocks."""

    block = DistilBlock
