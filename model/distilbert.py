"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's encoder with half the layers and without token types.

`forward` is BERT's (`model/bert.py`), and so are the blocks, but for one dropout. The classifier's dense layer is followed
by ReLU instead of tanh, and is no part of a published checkpoint (`EncoderClassifierHead` in `model/heads.py`).
"""

from dataclasses import dataclass

from torch import nn

from model.bert import Bert, BertConfig, Block


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """The defaults are those of distilbert-base-uncased (66M)."""

    n_layers: int = 6
    n_token_types: int = 0
    head_dropout: float | None = 0.2


class DistilBlock(Block):
    """BERT's block, without dropout on what attention returns."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.attn_dropout = nn.Identity()


class DistilBert(Bert):
    """BERT's encoder with these blocks."""

    block_class = DistilBlock
