"""The keys of a tokenizer's JSON files in three lists: what is used, what changes no id, and what is refused.

Five kinds of tokenizer: "gpt2", "roberta", "wordpiece", "decoder", which is byte-level BPE of newer decoders, and
"chatglm", whose vocabulary is no JSON file (`unigram_file.py` lists what is read of it). The steps of tokenizer.json's
normalizer and pre_tokenizer are listed in `model/tokenizers/steps.py`.
"""

from utils.settings import KnownSettings

# Settings that name a special token, and those that list further ones. The first are in the order of the library.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FURTHER = ("additional_special_tokens", "extra_special_tokens")  # the older name, and the newer, which counts first

# Classes of the library that build their own normalizer and pre-tokenizer, by kind, and those that take tokenizer.json's.
CLASSES = {
    "gpt2": ("GPT2Tokenizer", "GPT2TokenizerFast"),
    "roberta": ("RobertaTokenizer", "RobertaTokenizerFast"),
    "wordpiece": ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"),
    # Where there is a tokenizer.json, it counts as it stands for these too.
    "decoder": (
        *("Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"),
        *("LlamaTokenizer", "LlamaTokenizerFast"),
    ),
    "chatglm": ("ChatGLMTokenizer",),
}
WHOLE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")

# What the special tokens must be called that stand around texts or for what isn't known.
NAMES = {
    "gpt2": {},
    "roberta": {
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "wordpiece": {
        "sep_token": "[SEP]",
        "cls_token": "[CLS]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    },
    "decoder": {},
    "chatglm": {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "[MASK]",
        "gmask_token": "[gMASK]",
        "end_token": "</s>",
    },
}

HARMLESS = {
    "name_or_path special_tokens_map_file tokenizer_file vocab_file merges_file processor_class init_inputs use_fast "
    "backend is_local local_files_only transformers_version _commit_hash device_map full_tokenizer_file": (
        "notes on where the files come from"
    ),
    "model_max_length max_len max_length stride pad_to_multiple_of padding_side pad_token_type_id pad_token_type "
    "truncation padding truncation_strategy": "length and padding are the run's; the padding stands on the right",
    "errors trim_offsets clean_up_tokenization_spaces": "about text that is written, or places in a text",
    "chat_template": "dialogues follow `--template`; it is compared with known templates and never run",
}
REFUSED: dict[str, tuple] = {
    "truncation_side": ("right",),
    "split_special_tokens": (False,),
    "add_bos_token": (False,),
    "add_eos_token": (False,),
    "do_basic_tokenize": (True,),
    "clean_text": (True,),
    "never_split": ([],),
    "wordpieces_prefix": ("##",),
    "fast_tokenizer_files": ([],),
    "auto_map": (),
    "model_specific_special_tokens": ({},),
}

_BPE_CONFIG = KnownSettings(
    ("tokenizer_class", "added_tokens_decoder", *NAMED, *FURTHER, "add_prefix_space"),
    HARMLESS | {"model_input_names": "the model has no token types"},
    REFUSED | {"do_lower_case": (False,), "do_lowercase": (False,)},
)
ADDS = ("add_bos_token", "add_eos_token")  # of a decoder: the library takes tokenizer.json's post_processor instead
# `model_input_names` beside a model with token types, and beside one without.
INPUTS, INPUTS_WITHOUT_TYPES = ["input_ids", "token_type_ids", "attention_mask"], ["input_ids", "attention_mask"]
# tokenizer_config.json
CONFIG = {
    "gpt2": _BPE_CONFIG,
    "roberta": _BPE_CONFIG,
    "wordpiece": KnownSettings(
        (
            *("tokenizer_class", "added_tokens_decoder", *NAMED, *FURTHER),
            *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        ),
        HARMLESS,
        REFUSED | {"add_prefix_space": (False,), "model_input_names": (INPUTS, INPUTS_WITHOUT_TYPES)},
    ),
}

_BPE = CONFIG["gpt2"]
CONFIG["decoder"] = KnownSettings(
    (*_BPE.used, *ADDS), _BPE.harmless, {name: allowed for name, allowed in _BPE.refused.items() if name not in ADDS}
)
CONFIG["chatglm"] = KnownSettings(
    ("tokenizer_class", *NAMES["chatglm"]),
    HARMLESS
    | {"auto_map": "names the published code, whose work is done here", "model_input_names": "the model makes them"},
    {
        "num_image_tokens": (0,),
        "remove_space": (False,),
        "do_lower_case": (False,),
        "added_tokens_decoder": ({},),
        **dict.fromkeys(FURTHER, ([],)),
        "truncation_side": ("right",),
        "split_special_tokens": (False,),
    },
)

# special_tokens_map.json; in added_tokens.json every key is a token and its value the id
SPECIAL_TOKENS_MAP = KnownSettings((*NAMED, *FURTHER), {}, {})

# One token in any of the files
ADDED_TOKEN = KnownSettings(
    ("content", "id", "lstrip", "rstrip", "single_word", "normalized", "special"), {"__type": "says what it is"}, {}
)

# tokenizer.json: its sections, and what its model says
SECTIONS = KnownSettings(
    ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"),
    {
        "version": "there is one",
        "truncation padding": "length and padding are the run's",
        "decoder": "about text that is written",
    },
    {},
)
_BPE_MODEL = KnownSettings(
    ("type", "vocab", "merges"),
    {"unk_token fuse_unk byte_fallback": "every byte has a token, so nothing is unknown"},
    {
        "dropout": (0, 0.0),
        "continuing_subword_prefix": ("",),
        "end_of_word_suffix": ("",),
        "ignore_merges": (False,),
    },
)
MODEL = {
    "gpt2": _BPE_MODEL,
    "roberta": _BPE_MODEL,
    "wordpiece": KnownSettings(
        ("type", "vocab"),
        {},
        {"unk_token": ("[UNK]",), "continuing_subword_prefix": ("##",), "max_input_chars_per_word": (100,)},
    ),
}

MODEL["decoder"] = KnownSettings(
    (*MODEL["gpt2"].used, "ignore_merges"),
    {"fuse_unk": "nothing is unknown: a byte without a token vanishes"},
    {name: allowed for name, allowed in MODEL["gpt2"].refused.items() if name != "ignore_merges"}
    | {"unk_token": (), "byte_fallback": (False,)},
)

# What a post_processor of tokenizer.json may put around one text and two; A and B stand for them. A decoder's is read.
AROUND = {
    "gpt2": (["A"], ["A", "B"]),
    "roberta": (["<s>", "A", "</s>"], ["<s>", "A", "</s>", "</s>", "B", "</s>"]),
    "wordpiece": (["[CLS]", "A", "[SEP]"], ["[CLS]", "A", "[SEP]", "B", "[SEP]"]),
}
