"""The architectures: one entry holds all that the rest of the program has to know about one.

Add yours here: its classes, its names of tensors (model/names.py), its tokenizer, what config.json calls its settings.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from model.architecture import Answering, Architecture
from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.chatglm import ChatGLM, ChatGLMConfig
from model.chatglm_settings import CHATGLM_SETTINGS_READ, read_chatglm, write_chatglm
from model.distilbert import DistilBert, DistilBertConfig
from model.generation import Sampling
from model.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from model.heads import ClassifierHead, EncoderClassifierHead, LanguageModelHead, MaskedLanguageModelHead
from model.llama import Llama, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config
from model.llama_settings import (
    LLAMA_SETTINGS_READ,
    MISTRAL_SETTINGS_READ,
    ROTATION_SETTINGS_READ,
    WINDOW_SETTINGS_READ,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
    read_smollm3,
    write_biases,
    write_llama,
    write_mistral,
    write_qwen,
    write_smollm3,
)
from model.names import BERT_NAMES, CHATGLM_NAMES, DISTILBERT_NAMES, GPT2_NAMES, LLAMA_NAMES, ROBERTA_NAMES, Entry, expand
from model.tokenizers.bpe import GPT2Tokenizer, RobertaTokenizer
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.decoder import DecoderTokenizer
from model.tokenizers.wordpiece import WordPieceTokenizer
from model.transformer import Transformer


def _gpt2_fixed(config: GPT2Config) -> dict[str, tuple]:
    return {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": (None, 4 * config.dim),
    }


def _gpt2_written(config: GPT2Config) -> dict[str, Any]:
    return dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), config.dropout)


BERT_SETTINGS = {
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
    "tied": "tie_word_embeddings",
}


def _bert_fixed(config: BertConfig) -> dict[str, tuple]:
    return {"hidden_act": ("gelu", "gelu_python"), "position_embedding_type": ("absolute",)}


def _encoder_classifier(config: BertConfig, num_labels: int, position: str, average: bool, **options) -> nn.Module:
    return EncoderClassifierHead(config.dim, num_labels, position, average, dropout=config.classifier_dropout, **options)


def _masked_lm(model: Bert) -> nn.Module:
    return MaskedLanguageModelHead(model.token_embedding, model.config.layer_norm_eps, model.config.tied)


GPT2_ENTRY = Architecture(
    model_type="gpt2",
    model=GPT2,
    config=GPT2Config,
    names=GPT2_NAMES,
    prefix="transformer.",
    settings={
        "vocab_size": "vocab_size",
        "context_length": "n_positions",
        "dim": "n_embd",
        "n_heads": "n_head",
        "n_layers": "n_layer",
        "layer_norm_eps": "layer_norm_epsilon",
        "start_id": "bos_token_id",
        "end_ids": "eos_token_id",
        "pad_id": "pad_token_id",
        "tied": "tie_word_embeddings",
    },
    written_settings=_gpt2_written,
    fixed_settings=_gpt2_fixed,
    hf_classes={"lm": "GPT2LMHeadModel", "classifier": "GPT2ForSequenceClassification", None: "GPT2LMHeadModel"},
    lm_head=lambda model: LanguageModelHead(model.token_embedding, model.config.tied),
    classifier_head=lambda config, *options: ClassifierHead(config.dim, *options),
    position="last",
    tokenizer=GPT2Tokenizer,
    vocabulary_model="gpt2-small",
    vocabulary_folder="gpt2",
    default_dataset="spam",
)

BERT_ENTRY = Architecture(
    model_type="bert",
    model=Bert,
    config=BertConfig,
    names=BERT_NAMES,
    prefix="bert.",
    settings=BERT_SETTINGS,
    written_settings=lambda config: {"attention_probs_dropout_prob": config.dropout},
    fixed_settings=_bert_fixed,
    hf_classes={"lm": "BertForMaskedLM", "classifier": "BertForSequenceClassification", None: "BertModel"},
    lm_head=_masked_lm,
    classifier_head=_encoder_classifier,
    position="first",
    tokenizer=WordPieceTokenizer,
    vocabulary_model="bert-base-uncased",
    vocabulary_folder="bert-base-uncased",
    default_dataset="sst2",
)

ROBERTA_ENTRY = Architecture(
    model_type="roberta",
    model=Roberta,
    config=RobertaConfig,
    names=ROBERTA_NAMES,
    prefix="roberta.",
    settings=BERT_SETTINGS,
    written_settings=lambda config: {"attention_probs_dropout_prob": config.dropout},
    fixed_settings=_bert_fixed,
    hf_classes={"lm": "RobertaForMaskedLM", "classifier": "RobertaForSequenceClassification", None: "RobertaModel"},
    lm_head=_masked_lm,
    classifier_head=partial(_encoder_classifier, dropout_first=True),
    position="first",
    tokenizer=RobertaTokenizer,
    vocabulary_model="roberta-base",
    vocabulary_folder="roberta-base",
    default_dataset="sst2",
)

DISTILBERT_ENTRY = Architecture(
    model_type="distilbert",
    model=DistilBert,
    config=DistilBertConfig,
    names=DISTILBERT_NAMES,
    prefix="distilbert.",
    settings={
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "dim": "dim",
        "n_heads": "n_heads",
        "n_layers": "n_layers",
        "mlp_dim": "hidden_dim",
        "pad_id": "pad_token_id",
        "dropout": "dropout",
        "head_dropout": "seq_classif_dropout",
        "tied": "tie_word_embeddings",
    },
    written_settings=lambda config: {"attention_dropout": config.dropout},
    fixed_settings=lambda config: {"activation": ("gelu", "gelu_python")},
    hf_classes={
        "lm": "DistilBertForMaskedLM",
        "classifier": "DistilBertForSequenceClassification",
        None: "DistilBertModel",
    },
    lm_head=_masked_lm,
    classifier_head=partial(_encoder_classifier, activation=torch.relu),
    position="first",
    tokenizer=WordPieceTokenizer,
    vocabulary_model="distilbert-base-uncased",
    vocabulary_folder="bert-base-uncased",
    default_dataset="sst2",
)


def _llama_classifier(config: LlamaConfig, num_labels: int, position: str, average: bool) -> nn.Module:
    head = ClassifierHead(config.dim, num_labels, position, average, bias=False)
    nn.init.normal_(head.classifier.weight, std=0.02)  # as the published library draws it
    return head


def _llama_entry(model_type: str, config: type, hf_name: str, **own: Any) -> Architecture:
    """Return the entry of a member of the family; `own` is what it reads and writes beside what all do."""
    return Architecture(
        model_type=model_type,
        model=Llama,
        config=config,
        names=LLAMA_NAMES,
        prefix="model.",
        settings={
            "vocab_size": "vocab_size",
            "context_length": "max_position_embeddings",
            "dim": "hidden_size",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
            "mlp_dim": "intermediate_size",
            "norm_eps": "rms_norm_eps",
            "start_id": "bos_token_id",
            "end_ids": "eos_token_id",
            "pad_id": "pad_token_id",
            "tied": "tie_word_embeddings",
        },
        hf_classes={
            "lm": f"{hf_name}ForCausalLM",
            "classifier": f"{hf_name}ForSequenceClassification",
            None: f"{hf_name}Model",
        },
        lm_head=lambda model: LanguageModelHead(model.token_embedding, model.config.tied),
        classifier_head=_llama_classifier,
        position="flexible",
        tokenizer=DecoderTokenizer,
        vocabulary_model="smollm2-135m-instruct",
        vocabulary_folder="smollm2-135m-instruct",
        default_dataset="spam",
        **own,
    )


_SILU = {"hidden_act": ("silu", "swish")}
LLAMA_ENTRY = _llama_entry(
    *("llama", LlamaConfig, "Llama"),
    read_settings=read_llama,
    settings_read=LLAMA_SETTINGS_READ,
    written_settings=lambda config: write_llama(config) | write_biases(config),
    fixed_settings=lambda config: _SILU | {"rope_interleaved": (False,)},
)
MISTRAL_ENTRY = _llama_entry(
    *("mistral", MistralConfig, "Mistral"),
    read_settings=read_mistral,
    settings_read=(*MISTRAL_SETTINGS_READ, "sliding_window"),
    written_settings=write_mistral,
    fixed_settings=lambda config: _SILU | {"attention_bias": (False,), "mlp_bias": (False,)},
)
QWEN2_ENTRY = _llama_entry(
    *("qwen2", Qwen2Config, "Qwen2"),
    read_settings=read_qwen2,
    settings_read=(*LLAMA_SETTINGS_READ, *WINDOW_SETTINGS_READ),
    written_settings=write_qwen,
    fixed_settings=lambda config: _SILU | {"use_mrope": (False,)},
)
QWEN3_ENTRY = _llama_entry(
    *("qwen3", Qwen3Config, "Qwen3"),
    read_settings=read_qwen3,
    settings_read=(*LLAMA_SETTINGS_READ, *WINDOW_SETTINGS_READ),
    written_settings=lambda config: write_qwen(config) | {"attention_bias": config.qkv_bias},
    fixed_settings=lambda config: _SILU,
)
SMOLLM3_ENTRY = _llama_entry(
    *("smollm3", SmolLM3Config, "SmolLM3"),
    read_settings=read_smollm3,
    settings_read=(*LLAMA_SETTINGS_READ, *WINDOW_SETTINGS_READ, *ROTATION_SETTINGS_READ),
    written_settings=write_smollm3,
    fixed_settings=lambda config: _SILU,
)

CHATGLM_ENTRY = Architecture(
    model_type="chatglm",
    model=ChatGLM,
    config=ChatGLMConfig,
    names=CHATGLM_NAMES,
    prefix="transformer.",
    settings={
        "vocab_size": "vocab_size",
        "context_length": "max_sequence_length",
        "dim": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_layers",
        "mlp_dim": "inner_hidden_size",
        "layer_norm_eps": "layernorm_epsilon",
        "start_id": "bos_token_id",
        "end_ids": "eos_token_id",
        "pad_id": "pad_token_id",
        "tied": "tie_word_embeddings",
    },
    read_settings=read_chatglm,
    settings_read=CHATGLM_SETTINGS_READ,
    written_settings=write_chatglm,
    fixed_settings=lambda config: {
        "position_encoding_2d": (True,),
        "pre_seq_len": (None,),
        "prefix_projection": (False,),
        "quantization_bit": (0,),
    },
    hf_classes={"lm": "ChatGLMForConditionalGeneration", "classifier": None, None: "ChatGLMModel"},
    lm_head=lambda model: LanguageModelHead(model.token_embedding, model.config.tied),
    classifier_head=ClassifierHead,
    position="last",
    tokenizer=ChatGLMTokenizer,
    vocabulary_model="chatglm-6b",
    vocabulary_folder="chatglm-6b",
    default_dataset="persona",
    # What the chat log's tool takes where nothing else is said; the published prefix encoder drops out a tenth.
    recipe={
        "lora_target": "attn.qkv",
        "max_source_length": 512,
        "max_target_length": 512,
        "max_grad_norm": 1.0,
        "decay_norms": "no",
        "base_precision": "fp16",
        "gradient_checkpointing": True,
        "prefix_dropout": 0.1,
    },
    sampling=Sampling(2048, temperature=0.95, top_p=0.7),  # of the published chat
    # The log's tool left prompts their 512 tokens, of 768 in all.
    answering=Answering(Sampling(768, temperature=0.95, top_p=0.7), max_length=768, room=256, measures="chatglm"),
    always_tied=True,
)

_ENCODERS = (BERT_ENTRY, ROBERTA_ENTRY, DISTILBERT_ENTRY)
_ALL = (GPT2_ENTRY, *_ENCODERS, LLAMA_ENTRY, MISTRAL_ENTRY, QWEN2_ENTRY, QWEN3_ENTRY, SMOLLM3_ENTRY, CHATGLM_ENTRY)
ARCHITECTURES: dict[str, Architecture] = {entry.model_type: entry for entry in _ALL}

# The configurations of the published sizes, which need no file.
PUBLISHED = GPT2_SIZES | {
    "distilbert-base-uncased": DistilBertConfig(),
    "bert-base-uncased": BertConfig(),
    "roberta-base": RobertaConfig(),
    "chatglm-6b": ChatGLMConfig(),
}


def architecture_of(config: Any) -> Architecture:
    """Return the entry that a configuration belongs to."""
    return next(entry for entry in ARCHITECTURES.values() if entry.config is type(config))


def entries_of(model: Transformer) -> list[Entry]:
    """Return the rows for every tensor that a checkpoint of this model may hold.

    The tensors of another kind of head than the model's are known and not read.
    """
    kind = getattr(model.head, "kind", None)
    entries = expand(architecture_of(model.config).names, model.config.n_layers)
    return [
        entry if entry.head in (None, kind) else entry._replace(names=(), optional=True, transposed=False)
        for entry in entries
    ]
