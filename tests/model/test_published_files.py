"""The published checkpoints' own config.json and tokenizer files, with every key that they carry, are read without a note.

The configurations are those of the hub, word for word; the vocabularies are the published ones. Only the weights are drawn,
and of a small width.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import transformers

from config import Run
from model import from_pretrained
from model.config_file import read_config
from model.tokenizers.load import load_tokenizer
from pipeline.inputs import read_tokenizer
from pipeline.job import prepare
from tests.helpers.texts import ODD_TEXTS

pytestmark = pytest.mark.not_quick  # whole vocabularies, beside the library's

OWN_GPT2 = {  # of gpt2; its relatives differ in sizes and in the first key
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
OWN_BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
OWN_DISTILBERT = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 30522,
}
OWN_ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
OWN_SCIBERT = {  # from before config.json named a model
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 31090,
}
SENTIMENTS = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
OLD = {  # what transformers 2 and 3 wrote into every config.json
    "bad_words_ids": None,
    "bos_token_id": 0,
    "decoder_start_token_id": None,
    "do_sample": False,
    "early_stopping": False,
    "eos_token_ids": 0,
    "finetuning_task": "sst-2",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_labels": 2,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "predict_special_tokens": True,
    "prefix": None,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "task_specific_params": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "tf_legacy_loss": False,
    "use_bfloat16": False,
    "xla_device": False,
}
CASED = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
ANGLED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
ANGLED |= {"cls_token": "<s>", "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False}}
MINILM_TOKENIZER = CASED | {
    "do_lower_case": True,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "do_basic_tokenize": True,
    "never_split": None,
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 512,
}
DECODER = {
    number: {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    for number, token in {"0": "[PAD]", "100": "[UNK]", "101": "[CLS]", "102": "[SEP]", "103": "[MASK]"}.items()
}


@dataclass
class Published:
    """What a repository holds beside its weights, and the data that a run of it is tried on."""

    vocabulary: str
    config: dict
    tokenizer: dict = field(default_factory=dict)  # tokenizer_config.json
    special: dict = field(default_factory=dict)  # special_tokens_map.json
    dataset: str = "sst2"


OWN = {
    "gpt2": Published("gpt2", OWN_GPT2, {"model_max_length": 1024}, dataset="spam-pocket"),
    "distilgpt2": Published(
        "gpt2",
        {"_num_labels": 1, **OWN_GPT2, "n_layer": 6, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
        {"model_max_length": 1024},
        dataset="spam-pocket",
    ),
    "bert-base-uncased": Published("bert-base-uncased", OWN_BERT, {"do_lower_case": True, "model_max_length": 512}),
    "distilbert-base-uncased": Published(
        "bert-base-uncased", OWN_DISTILBERT, {"do_lower_case": True, "model_max_length": 512}
    ),
    "distilbert-base-uncased-finetuned-sst-2-english": Published(
        "bert-base-uncased",
        OWN_DISTILBERT
        | SENTIMENTS
        | {
            "architectures": ["DistilBertForSequenceClassification"],
            "finetuning_task": "sst-2",
            "output_past": True,
        },
        {"do_lower_case": True, "model_max_length": 512},
        CASED,
    ),
    "roberta-base": Published("roberta-base", OWN_ROBERTA, {"model_max_length": 512}),
    "distilroberta-base": Published("roberta-base", OWN_ROBERTA | {"num_hidden_layers": 6}, {"model_max_length": 512}),
    "a RoBERTa as newer versions save it": Published(
        "roberta-base",
        OWN_ROBERTA | SENTIMENTS | {"classifier_dropout": None, "torch_dtype": "float32", "_name_or_path": "roberta-base"},
        ANGLED
        | {"add_prefix_space": False, "errors": "replace", "trim_offsets": True, "tokenizer_class": "RobertaTokenizer"},
        ANGLED,
    ),
    "scibert": Published("scibert-scivocab-uncased", OWN_SCIBERT, {"do_lower_case": True, "model_max_length": 512}),
    "scibert with its kind": Published("scibert-scivocab-uncased", {"model_type": "bert", **OWN_SCIBERT}),
    "all-MiniLM-L6-v2": Published(
        "bert-base-uncased",
        OWN_BERT
        | {"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"], "num_hidden_layers": 6}
        | {"hidden_size": 384, "intermediate_size": 1536, "transformers_version": "4.8.2"},
        MINILM_TOKENIZER,
        CASED,
    ),
    "MiniLM as newer versions save it": Published(
        "bert-base-uncased",
        OWN_BERT | {"classifier_dropout": None, "torch_dtype": "float32", "_attn_implementation_autoset": True},
        MINILM_TOKENIZER
        | {"added_tokens_decoder": DECODER, "clean_up_tokenization_spaces": True, "extra_special_tokens": {}}
        | {"max_length": 128, "pad_to_multiple_of": None, "pad_token_type_id": 0, "padding_side": "right", "stride": 0}
        | {"truncation_side": "right", "truncation_strategy": "longest_first", "special_tokens_map_file": "/root/map.json"},
        {name: {"content": token, "lstrip": False, "normalized": False} for name, token in CASED.items()},
    ),
    "a BERT classifier of transformers 2": Published("bert-base-uncased", OWN_BERT | OLD, {"init_inputs": []}, CASED),
    "FinBERT": Published(
        "bert-base-uncased",
        OWN_BERT
        | {
            "id2label": {"0": "positive", "1": "negative", "2": "neutral"},
            "architectures": ["BertForSequenceClassification"],
        }
        | {"label2id": {"positive": 0, "negative": 1, "neutral": 2}, "pooler_type": "first_token_transform"}
        | {"directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3}
        | {"pooler_size_per_head": 128},
        {"do_lower_case": True, "model_max_length": 512, "special_tokens_map_file": None, "full_tokenizer_file": None},
        dataset="restaurant_sup",
    ),
}
SMALL = {"n_embd": 16, "n_head": 2, "n_layer": 1, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 24}
SMALL |= {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24}
FILES = {"gpt2": {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}}


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def shrunk(config: dict) -> dict:
    """Return a configuration with a small width and one layer."""
    return config | {key: value for key, value in SMALL.items() if key in config}


def as_published_then(content: dict) -> dict:
    """Return a tokenizer.json as the version of tokenizers wrote it with which those of the hub were made."""
    model = content["model"]
    for name in ("ignore_merges", "byte_fallback"):
        model.pop(name, None)
    if model.get("merges"):
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        for section in ("pre_tokenizer", "post_processor", "decoder"):
            content[section].pop("use_regex", None)
    content["truncation"] = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    content["padding"] = padding | {"pad_token": "[PAD]"}
    return content


@pytest.fixture(
    params=[(name, one_file) for name in OWN for one_file in (False, True)], ids=lambda one: f"{one[0]} {one[1]}"
)
def published(request, shared, tmp_path) -> tuple[Published, Path]:
    """Return what a repository holds, with and without a tokenizer.json, and its folder, where the model is small."""
    name, one_file = request.param
    made, folder = OWN[name], tmp_path / "published"
    folder.mkdir()
    for file in (shared / "tokenizers" / made.vocabulary).iterdir():
        shutil.copy(file, folder / FILES.get(made.vocabulary, {}).get(file.name, file.name))
    if made.tokenizer:
        write(folder / "tokenizer_config.json", made.tokenizer)
    if made.special:
        write(folder / "special_tokens_map.json", made.special)
    write(folder / "config.json", {"model_type": "bert"} | made.config)
    if one_file:
        there = transformers.AutoTokenizer.from_pretrained(folder)
        write(folder / "tokenizer.json", as_published_then(json.loads(there.backend_tokenizer.to_str())))
    classifies = len(made.config.get("id2label", ())) > 1 or "num_labels" in made.config
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModel
    auto.from_config(transformers.AutoConfig.for_model(**({"model_type": "bert"} | shrunk(made.config)))).save_pretrained(
        folder
    )
    write(folder / "config.json", made.config)
    return made, folder


def test_the_files_are_read_without_a_note(published):
    made, folder = published
    config, _ = read_config(folder)
    n_layers = next(made.config[name] for name in ("num_hidden_layers", "n_layers", "n_layer") if name in made.config)
    assert (config.n_layers, config.vocab_size) == (n_layers, made.config["vocab_size"])
    assert read_tokenizer(folder, config).vocab_size == config.vocab_size
    write(folder / "config.json", shrunk(made.config))
    assert prepare(Run(checkpoint=str(folder), dataset=made.dataset)).notes == ()
    assert from_pretrained(folder, head=None).config.n_layers == 1


def test_a_text_has_the_ids_of_the_library(published):
    made, folder = published
    if "model_type" not in made.config:
        write(folder / "config.json", {"model_type": "bert"} | made.config)  # which today's library asks for
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for text in ODD_TEXTS if "\ufffd" not in text]
    expected = [theirs(text, truncation=False, padding=False)["input_ids"] for text in texts]
    assert [list(ours.build(ours.encode(text))[0]) for text in texts] == expected
