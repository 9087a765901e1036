"""Make small encoders of the reference library, to compare ours with."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

LAYERS, DIM, HEADS, VOCAB, CONTEXT, LABELS = 3, 96, 4, 500, 64, 3
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
BERT_SIZES = {"vocab_size": VOCAB, "hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
BERT_SIZES |= {"intermediate_size": 200, "num_labels": LABELS} | NO_DROPOUT
MASK = (torch.arange(20) < torch.tensor([20, 13, 6])[:, None]).long()  # 20, 13 and 6 real tokens
MASKS = {"no mask": None, "right": MASK, "left": MASK.flip(1)}
TYPES = (torch.arange(20) >= 9).long().expand(3, 20)  # two texts in a row


@dataclass(frozen=True)
class Kind:
    """Describe a small model of one of the library's architectures."""

    prefix: str  # of the library's classes
    config: object
    pad_id: int
    types: torch.Tensor | None = None

    def make(self, suffix: str) -> nn.Module:
        """Make a model. Biases and norms are random too: a mix-up of zeros or ones wouldn't show."""
        model = getattr(transformers, self.prefix + suffix)(copy.deepcopy(self.config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def their_body(self, model: nn.Module) -> nn.Module:
        return getattr(model, self.config.model_type)

    def inputs(self, mask: torch.Tensor | None) -> torch.Tensor:
        ids = torch.randint(5, VOCAB, (3, 20))
        return ids if mask is None else torch.where(mask.bool(), ids, self.pad_id)

    def both_ways(self, mask: torch.Tensor | None) -> tuple[dict, dict]:
        """Return the same inputs as arguments of the library's model and of ours."""
        inputs = {"input_ids": self.inputs(mask)}
        inputs |= {} if mask is None else {"attention_mask": mask}
        inputs |= {} if self.types is None else {"token_type_ids": self.types}
        return inputs, inputs


KINDS = {
    "distilbert": Kind(
        "DistilBert",
        transformers.DistilBertConfig(
            vocab_size=VOCAB,
            max_position_embeddings=CONTEXT,
            dim=DIM,
            n_heads=HEADS,
            n_layers=LAYERS,
            hidden_dim=200,
            num_labels=LABELS,
            **dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0),
        ),
        pad_id=0,
    ),
    "bert": Kind("Bert", transformers.BertConfig(max_position_embeddings=CONTEXT, **BERT_SIZES), pad_id=0, types=TYPES),
    "roberta": Kind(
        "Roberta",
        transformers.RobertaConfig(
            max_position_embeddings=CONTEXT + 2, type_vocab_size=1, layer_norm_eps=1e-5, **BERT_SIZES
        ),
        pad_id=1,
    ),
}
SUFFIXES = {"lm": "ForMaskedLM", "classifier": "ForSequenceClassification", None: "Model"}
