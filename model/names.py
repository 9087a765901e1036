"""How Hugging Face stores each architecture: the one entry per architecture that everything else looks things up in.

A row of a table of names says: their tensor, the tensors of ours that it holds, and whether it lies transposed. `{}` stands
for the number of the layer. One table serves both directions. Names are those of the models with a head; a file of the
bare body lacks the prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.distilbert import DistilBert, DistilBertConfig
from model.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from model.heads import ClassifierHead, EncoderClassifierHead, LanguageModelHead, MaskedLanguageModelHead
from model.transformer import Transformer


class Entry(NamedTuple):
    """One published tensor, `{}` in the names standing for each layer, and what it is here."""

    theirs: str
    ours: tuple[str, ...]  # several: theirs is their concatenation along the output dimension; none: theirs is dropped
    transposed: bool = False  # their Conv1D stores (in, out), our Linear (out, in)
    optional: bool = False
    head: str | None = None  # the kind of head that it belongs to; None: the body


def _both(theirs: str, ours: str, **flags) -> list[Entry]:
    """Weight and bias, of a Linear layer or a LayerNorm."""
    return [Entry(f"{theirs}.{part}", (f"{ours}.{part}",), **flags) for part in ("weight", "bias")]


def _conv1d(theirs: str, *ours: str) -> list[Entry]:
    weights, biases = (tuple(f"{name}.{part}" for name in ours) for part in ("weight", "bias"))
    return [Entry(f"{theirs}.weight", weights, transposed=True), Entry(f"{theirs}.bias", biases)]


def _dropped(*theirs: str) -> list[Entry]:
    return [Entry(name, (), optional=True) for name in theirs]


GPT2_NAMES = [
    Entry("transformer.wte.weight", ("token_embedding.weight",)),
    Entry("transformer.wpe.weight", ("position_embedding.weight",)),
    *_both("transformer.h.{}.ln_1", "blocks.{}.attn_norm"),
    *_conv1d("transformer.h.{}.attn.c_attn", "blocks.{}.attn.q", "blocks.{}.attn.k", "blocks.{}.attn.v"),
    *_conv1d("transformer.h.{}.attn.c_proj", "blocks.{}.attn.out"),
    *_both("transformer.h.{}.ln_2", "blocks.{}.mlp_norm"),
    *_conv1d("transformer.h.{}.mlp.c_fc", "blocks.{}.mlp.up"),
    *_conv1d("transformer.h.{}.mlp.c_proj", "blocks.{}.mlp.down"),
    *_both("transformer.ln_f", "final_norm"),
    *_both("score", "head.classifier", head="classifier", optional=True),  # theirs has no bias; ours is kept
    *_dropped("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),  # the causal mask, in old files
    *_dropped("lm_head.weight"),  # tied to wte.weight
]

DISTILBERT_NAMES = [
    Entry("distilbert.embeddings.word_embeddings.weight", ("token_embedding.weight",)),
    Entry("distilbert.embeddings.position_embeddings.weight", ("position_embedding.weight",)),
    *_both("distilbert.embeddings.LayerNorm", "embedding_norm"),
    *_both("distilbert.transformer.layer.{}.attention.q_lin", "blocks.{}.attn.q"),
    *_both("distilbert.transformer.layer.{}.attention.k_lin", "blocks.{}.attn.k"),
    *_both("distilbert.transformer.layer.{}.attention.v_lin", "blocks.{}.attn.v"),
    *_both("distilbert.transformer.layer.{}.attention.out_lin", "blocks.{}.attn.out"),
    *_both("distilbert.transformer.layer.{}.sa_layer_norm", "blocks.{}.attn_norm"),
    *_both("distilbert.transformer.layer.{}.ffn.lin1", "blocks.{}.mlp.up"),
    *_both("distilbert.transformer.layer.{}.ffn.lin2", "blocks.{}.mlp.down"),
    *_both("distilbert.transformer.layer.{}.output_layer_norm", "blocks.{}.mlp_norm"),
    *_both("pre_classifier", "head.dense", head="classifier", optional=True),
    *_both("classifier", "head.classifier", head="classifier", optional=True),
    *_both("vocab_transform", "head.dense", head="lm"),
    *_both("vocab_layer_norm", "head.norm", head="lm"),
    Entry("vocab_projector.bias", ("head.bias",), head="lm"),
    *_dropped("vocab_projector.weight"),  # tied to the word embeddings
    *_dropped("distilbert.embeddings.position_ids"),
]


def _bert_body(prefix: str) -> list[Entry]:
    """BERT's encoder, which RoBERTa shares."""
    return [
        Entry(f"{prefix}embeddings.word_embeddings.weight", ("token_embedding.weight",)),
        Entry(f"{prefix}embeddings.position_embeddings.weight", ("position_embedding.weight",)),
        Entry(f"{prefix}embeddings.token_type_embeddings.weight", ("token_type_embedding.weight",)),
        *_both(f"{prefix}embeddings.LayerNorm", "embedding_norm"),
        *_both(f"{prefix}encoder.layer.{{}}.attention.self.query", "blocks.{}.attn.q"),
        *_both(f"{prefix}encoder.layer.{{}}.attention.self.key", "blocks.{}.attn.k"),
        *_both(f"{prefix}encoder.layer.{{}}.attention.self.value", "blocks.{}.attn.v"),
        *_both(f"{prefix}encoder.layer.{{}}.attention.output.dense", "blocks.{}.attn.out"),
        *_both(f"{prefix}encoder.layer.{{}}.attention.output.LayerNorm", "blocks.{}.attn_norm"),
        *_both(f"{prefix}encoder.layer.{{}}.intermediate.dense", "blocks.{}.mlp.up"),
        *_both(f"{prefix}encoder.layer.{{}}.output.dense", "blocks.{}.mlp.down"),
        *_both(f"{prefix}encoder.layer.{{}}.output.LayerNorm", "blocks.{}.mlp_norm"),
        *_dropped(f"{prefix}embeddings.position_ids"),
    ]


BERT_NAMES = [
    *_bert_body("bert."),
    *_both("bert.pooler.dense", "head.dense", head="classifier", optional=True),  # there before any classifier is
    *_both("classifier", "head.classifier", head="classifier", optional=True),
    *_both("cls.predictions.transform.dense", "head.dense", head="lm"),
    *_both("cls.predictions.transform.LayerNorm", "head.norm", head="lm"),
    Entry("cls.predictions.bias", ("head.bias",), head="lm"),
    *_dropped("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),  # the embeddings and the bias again
    *_dropped("cls.seq_relationship.weight", "cls.seq_relationship.bias"),  # next-sentence prediction
]

ROBERTA_NAMES = [
    *_bert_body("roberta."),
    *_both("classifier.dense", "head.dense", head="classifier", optional=True),
    *_both("classifier.out_proj", "head.classifier", head="classifier", optional=True),
    *_both("lm_head.dense", "head.dense", head="lm"),
    *_both("lm_head.layer_norm", "head.norm", head="lm"),
    Entry("lm_head.bias", ("head.bias",), head="lm"),
    *_dropped("lm_head.decoder.weight", "lm_head.decoder.bias"),  # the embeddings and the bias again
    *_dropped("roberta.pooler.dense.weight", "roberta.pooler.dense.bias"),  # its classifier doesn't use it
]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that reading and writing a published model of one `model_type` needs to know."""

    model_type: str
    model: type[Transformer]
    config: type
    prefix: str
    names: list[Entry]
    fields: dict[str, str]  # fields of our configuration -> settings in config.json
    written: Callable[[Any], dict[str, Any]]  # settings that are written and not read
    fixed: Callable[[Any], dict[str, tuple]]  # settings -> the values that they may have, the one to write first
    classes: dict[str | None, str]  # kind of head -> their class
    position: str  # what a classifier reads unless told otherwise
    lm_head: Callable[[Transformer], nn.Module]
    classifier_head: Callable[..., nn.Module]  # (config, num_labels, position, average)


def _gpt2_fixed(config: GPT2Config) -> dict[str, tuple]:
    return {
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "n_inner": (None, 4 * config.dim),
    }


def _gpt2_written(config: GPT2Config) -> dict[str, Any]:
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), config.vocab_size - 1)
    return dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), config.dropout) | ends


BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "n_token_types": "type_vocab_size",
    "pad_id": "pad_token_id",
    "dropout": "hidden_dropout_prob",
    "head_dropout": "classifier_dropout",
    "layer_norm_eps": "layer_norm_eps",
}


def _bert_fixed(config: BertConfig) -> dict[str, tuple]:
    return {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }


def _distilbert_fixed(config: DistilBertConfig) -> dict[str, tuple]:
    return {"activation": ("gelu",), "tie_word_embeddings": (True,)}


def _encoder_classifier(config: BertConfig, num_labels: int, position: str, average: bool, **how) -> nn.Module:
    return EncoderClassifierHead(config.dim, num_labels, position, average, dropout=config.classifier_dropout, **how)


def _masked_lm(model: Bert) -> nn.Module:
    return MaskedLanguageModelHead(model.token_embedding, model.config.layer_norm_eps)


_ALL = [
    Architecture(
        model_type="gpt2",
        model=GPT2,
        config=GPT2Config,
        prefix="transformer.",
        names=GPT2_NAMES,
        fields={
            "vocab_size": "vocab_size",
            "context_length": "n_positions",
            "dim": "n_embd",
            "n_heads": "n_head",
            "n_layers": "n_layer",
            "layer_norm_eps": "layer_norm_epsilon",
        },
        written=_gpt2_written,
        fixed=_gpt2_fixed,
        classes={"lm": "GPT2LMHeadModel", "classifier": "GPT2ForSequenceClassification", None: "GPT2LMHeadModel"},
        position="last",
        lm_head=lambda model: LanguageModelHead(model.token_embedding),
        classifier_head=lambda config, *how: ClassifierHead(config.dim, *how),
    ),
    Architecture(
        model_type="bert",
        model=Bert,
        config=BertConfig,
        prefix="bert.",
        names=BERT_NAMES,
        fields=BERT_FIELDS,
        written=lambda config: {"attention_probs_dropout_prob": config.dropout},
        fixed=_bert_fixed,
        classes={"lm": "BertForMaskedLM", "classifier": "BertForSequenceClassification", None: "BertModel"},
        position="first",
        lm_head=_masked_lm,
        classifier_head=_encoder_classifier,
    ),
    Architecture(
        model_type="roberta",
        model=Roberta,
        config=RobertaConfig,
        prefix="roberta.",
        names=ROBERTA_NAMES,
        fields=BERT_FIELDS,
        written=lambda config: {"attention_probs_dropout_prob": config.dropout},
        fixed=_bert_fixed,
        classes={"lm": "RobertaForMaskedLM", "classifier": "RobertaForSequenceClassification", None: "RobertaModel"},
        position="first",
        lm_head=_masked_lm,
        classifier_head=partial(_encoder_classifier, dropout_first=True),
    ),
    Architecture(
        model_type="distilbert",
        model=DistilBert,
        config=DistilBertConfig,
        prefix="distilbert.",
        names=DISTILBERT_NAMES,
        fields={
            "vocab_size": "vocab_size",
            "context_length": "max_position_embeddings",
            "dim": "dim",
            "n_heads": "n_heads",
            "n_layers": "n_layers",
            "mlp_dim": "hidden_dim",
            "pad_id": "pad_token_id",
            "dropout": "dropout",
            "head_dropout": "seq_classif_dropout",
        },
        written=lambda config: {"attention_dropout": config.dropout},
        fixed=_distilbert_fixed,
        classes={
            "lm": "DistilBertForMaskedLM",
            "classifier": "DistilBertForSequenceClassification",
            None: "DistilBertModel",
        },
        position="first",
        lm_head=_masked_lm,
        classifier_head=partial(_encoder_classifier, activation=torch.relu),
    ),
]
ARCHITECTURES = {one.model_type: one for one in _ALL}

# Configurations that need no file: the published sizes by name.
PUBLISHED = GPT2_SIZES | {
    "distilbert-base-uncased": DistilBertConfig(),
    "bert-base-uncased": BertConfig(),
    "roberta-base": RobertaConfig(),
}


def architecture_of(config) -> Architecture:
    """The architecture that a configuration belongs to."""
    return next(one for one in ARCHITECTURES.values() if one.config is type(config))


def expand(names: list[Entry], n_layers: int) -> list[Entry]:
    """The table with `{}` replaced by each layer's number."""
    entries = []
    for entry in names:
        for layer in range(n_layers if "{}" in entry.theirs else 1):
            ours = tuple(name.format(layer) for name in entry.ours)
            entries.append(entry._replace(theirs=entry.theirs.format(layer), ours=ours))
    return entries


def entries_of(model: Transformer) -> list[Entry]:
    """What a checkpoint of this architecture may hold. What belongs to another kind of head than the model's is dropped."""
    kind = getattr(model.head, "kind", None)
    entries = expand(architecture_of(model.config).names, model.config.n_layers)
    return [
        entry if entry.head in (None, kind) else entry._replace(ours=(), optional=True, transposed=False)
        for entry in entries
    ]
