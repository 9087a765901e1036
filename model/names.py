"""The names of the published tensors, one table per architecture.

A row says: the name in a published file, the parameters here that it holds, and whether it is stored transposed. `{}`
stands for the number of a layer. The same table serves reading and writing. The names are those of a model with a head; in
a file of the bare body they lack the architecture's prefix ("transformer.").
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """One published tensor, and the parameters here that hold it."""

    hf_name: str
    names: tuple[str, ...]  # several: the published tensor is their concatenation along the output dimension; (): not read
    transposed: bool = False  # GPT-2's Conv1D stores [in, out], our Linear layers [out, in]
    optional: bool = False
    head: str | None = None  # the kind of head that it belongs to; None: the body
    again: bool = False  # holds what another row holds, and is written only beside a head that isn't tied


def _layer(hf_name: str, name: str, **flags) -> list[Entry]:
    """Return the rows of a Linear layer or a LayerNorm, which has a weight and a bias."""
    return [Entry(f"{hf_name}.{part}", (f"{name}.{part}",), **flags) for part in ("weight", "bias")]


def _conv1d(hf_name: str, *names: str) -> list[Entry]:
    """Return the rows of a Conv1D, GPT-2's linear layer, which holds one or several of our Linear layers."""
    weights = tuple(f"{name}.weight" for name in names)
    biases = tuple(f"{name}.bias" for name in names)
    return [Entry(f"{hf_name}.weight", weights, transposed=True), Entry(f"{hf_name}.bias", biases)]


def _not_read(*hf_names: str) -> list[Entry]:
    return [Entry(hf_name, (), optional=True) for hf_name in hf_names]


GPT2_NAMES = [
    Entry("transformer.wte.weight", ("token_embedding.weight",)),
    Entry("transformer.wpe.weight", ("position_embedding.weight",)),
    *_layer("transformer.h.{}.ln_1", "blocks.{}.attn_norm"),
    *_conv1d("transformer.h.{}.attn.c_attn", "blocks.{}.attn.q", "blocks.{}.attn.k", "blocks.{}.attn.v"),
    *_conv1d("transformer.h.{}.attn.c_proj", "blocks.{}.attn.out"),
    *_layer("transformer.h.{}.ln_2", "blocks.{}.mlp_norm"),
    *_conv1d("transformer.h.{}.mlp.c_fc", "blocks.{}.mlp.up"),
    *_conv1d("transformer.h.{}.mlp.c_proj", "blocks.{}.mlp.down"),
    *_layer("transformer.ln_f", "final_norm"),
    *_layer("score", "head.classifier", head="classifier", optional=True),  # the published one has no bias; ours is kept
    *_not_read("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),  # the causal mask, in old files
    Entry("lm_head.weight", ("head.weight",), head="lm"),  # no parameter of its own where it is tied to wte.weight
]

DISTILBERT_NAMES = [
    Entry("distilbert.embeddings.word_embeddings.weight", ("token_embedding.weight",)),
    Entry("distilbert.embeddings.position_embeddings.weight", ("position_embedding.weight",)),
    *_layer("distilbert.embeddings.LayerNorm", "embedding_norm"),
    *_layer("distilbert.transformer.layer.{}.attention.q_lin", "blocks.{}.attn.q"),
    *_layer("distilbert.transformer.layer.{}.attention.k_lin", "blocks.{}.attn.k"),
    *_layer("distilbert.transformer.layer.{}.attention.v_lin", "blocks.{}.attn.v"),
    *_layer("distilbert.transformer.layer.{}.attention.out_lin", "blocks.{}.attn.out"),
    *_layer("distilbert.transformer.layer.{}.sa_layer_norm", "blocks.{}.attn_norm"),
    *_layer("distilbert.transformer.layer.{}.ffn.lin1", "blocks.{}.mlp.up"),
    *_layer("distilbert.transformer.layer.{}.ffn.lin2", "blocks.{}.mlp.down"),
    *_layer("distilbert.transformer.layer.{}.output_layer_norm", "blocks.{}.mlp_norm"),
    *_layer("pre_classifier", "head.dense", head="classifier", optional=True),
    *_layer("classifier", "head.classifier", head="classifier", optional=True),
    *_layer("vocab_transform", "head.dense", head="lm"),
    *_layer("vocab_layer_norm", "head.norm", head="lm"),
    Entry("vocab_projector.bias", ("head.bias",), head="lm"),
    Entry("vocab_projector.weight", ("head.weight",), head="lm"),
    *_not_read("distilbert.embeddings.position_ids"),
]


def _bert_body(prefix: str) -> list[Entry]:
    """Return the rows of BERT's encoder, which RoBERTa shares."""
    return [
        Entry(f"{prefix}embeddings.word_embeddings.weight", ("token_embedding.weight",)),
        Entry(f"{prefix}embeddings.position_embeddings.weight", ("position_embedding.weight",)),
        Entry(f"{prefix}embeddings.token_type_embeddings.weight", ("token_type_embedding.weight",)),
        *_layer(f"{prefix}embeddings.LayerNorm", "embedding_norm"),
        *_layer(f"{prefix}encoder.layer.{{}}.attention.self.query", "blocks.{}.attn.q"),
        *_layer(f"{prefix}encoder.layer.{{}}.attention.self.key", "blocks.{}.attn.k"),
        *_layer(f"{prefix}encoder.layer.{{}}.attention.self.value", "blocks.{}.attn.v"),
        *_layer(f"{prefix}encoder.layer.{{}}.attention.output.dense", "blocks.{}.attn.out"),
        *_layer(f"{prefix}encoder.layer.{{}}.attention.output.LayerNorm", "blocks.{}.attn_norm"),
        *_layer(f"{prefix}encoder.layer.{{}}.intermediate.dense", "blocks.{}.mlp.up"),
        *_layer(f"{prefix}encoder.layer.{{}}.output.dense", "blocks.{}.mlp.down"),
        *_layer(f"{prefix}encoder.layer.{{}}.output.LayerNorm", "blocks.{}.mlp_norm"),
        *_not_read(f"{prefix}embeddings.position_ids"),
    ]


BERT_NAMES = [
    *_bert_body("bert."),
    *_layer("bert.pooler.dense", "head.dense", head="classifier", optional=True),  # there before any classifier is
    *_layer("classifier", "head.classifier", head="classifier", optional=True),
    *_layer("cls.predictions.transform.dense", "head.dense", head="lm"),
    *_layer("cls.predictions.transform.LayerNorm", "head.norm", head="lm"),
    Entry("cls.predictions.bias", ("head.bias",), head="lm"),
    Entry("cls.predictions.decoder.weight", ("head.weight",), head="lm"),
    Entry("cls.predictions.decoder.bias", ("head.bias",), head="lm", optional=True, again=True),
    *_not_read("cls.seq_relationship.weight", "cls.seq_relationship.bias"),  # next-sentence prediction
]

ROBERTA_NAMES = [
    *_bert_body("roberta."),
    *_layer("classifier.dense", "head.dense", head="classifier", optional=True),
    *_layer("classifier.out_proj", "head.classifier", head="classifier", optional=True),
    *_layer("lm_head.dense", "head.dense", head="lm"),
    *_layer("lm_head.layer_norm", "head.norm", head="lm"),
    Entry("lm_head.bias", ("head.bias",), head="lm"),
    Entry("lm_head.decoder.weight", ("head.weight",), head="lm"),
    Entry("lm_head.decoder.bias", ("head.bias",), head="lm", optional=True, again=True),
    *_not_read("roberta.pooler.dense.weight", "roberta.pooler.dense.bias"),  # its classifier doesn't use it
]


# Biases are there where config.json says so, the norms of queries and keys in Qwen3.
LLAMA_NAMES = [
    Entry("model.embed_tokens.weight", ("token_embedding.weight",)),
    Entry("model.layers.{}.input_layernorm.weight", ("blocks.{}.attn_norm.weight",)),
    *_layer("model.layers.{}.self_attn.q_proj", "blocks.{}.attn.q"),
    *_layer("model.layers.{}.self_attn.k_proj", "blocks.{}.attn.k"),
    *_layer("model.layers.{}.self_attn.v_proj", "blocks.{}.attn.v"),
    *_layer("model.layers.{}.self_attn.o_proj", "blocks.{}.attn.out"),
    Entry("model.layers.{}.self_attn.q_norm.weight", ("blocks.{}.attn.q_norm.weight",)),
    Entry("model.layers.{}.self_attn.k_norm.weight", ("blocks.{}.attn.k_norm.weight",)),
    Entry("model.layers.{}.post_attention_layernorm.weight", ("blocks.{}.mlp_norm.weight",)),
    *_layer("model.layers.{}.mlp.gate_proj", "blocks.{}.mlp.gate"),
    *_layer("model.layers.{}.mlp.up_proj", "blocks.{}.mlp.up"),
    *_layer("model.layers.{}.mlp.down_proj", "blocks.{}.mlp.down"),
    Entry("model.norm.weight", ("final_norm.weight",)),
    Entry("score.weight", ("head.classifier.weight",), head="classifier", optional=True),
    # In old files; it follows from config.json.
    *_not_read("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    Entry("lm_head.weight", ("head.weight",), head="lm"),  # no parameter of its own where it is tied
]


CHATGLM_NAMES = [
    Entry("transformer.word_embeddings.weight", ("token_embedding.weight",)),
    *_layer("transformer.layers.{}.input_layernorm", "blocks.{}.attn_norm"),
    *_layer("transformer.layers.{}.attention.query_key_value", "blocks.{}.attn.qkv"),
    *_layer("transformer.layers.{}.attention.dense", "blocks.{}.attn.out"),
    *_layer("transformer.layers.{}.post_attention_layernorm", "blocks.{}.mlp_norm"),
    *_layer("transformer.layers.{}.mlp.dense_h_to_4h", "blocks.{}.mlp.up"),
    *_layer("transformer.layers.{}.mlp.dense_4h_to_h", "blocks.{}.mlp.down"),
    *_layer("transformer.final_layernorm", "final_norm"),
    *_not_read("transformer.layers.{}.attention.rotary_emb.inv_freq"),  # it is computed, as in the published code
    Entry("lm_head.weight", ("head.weight",), head="lm"),  # in the files, and not read where it is tied
]


def expand(entries: list[Entry], n_layers: int) -> list[Entry]:
    """Return the rows with `{}` replaced by each layer's number."""
    expanded = []
    for entry in entries:
        for layer in range(n_layers if "{}" in entry.hf_name else 1):
            names = tuple(name.format(layer) for name in entry.names)
            expanded.append(entry._replace(hf_name=entry.hf_name.format(layer), names=names))
    return expanded
