"""Change settings, not files: each mutation leaves valid JSON in which a key has another value, is gone, or is new."""

import json

from model.config_settings import ALIASES, known_settings
from model.registry import ARCHITECTURES
from model.tokenizers import settings as tokenizers
from model.tokenizers.steps import LLAMA3_PATTERN, QWEN_PATTERN
from peft.huggingface.settings import ADAPTER
from tests.helpers.decoder_tokenizers import begins_with, digits, split
from tests.helpers.mutations import Draw
from utils.settings import KnownSettings

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
NORMALIZERS = (
    *({"type": kind} for kind in ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Nmt")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "x"},
    {"type": "Replace", "pattern": {"String": "o"}, "content": "a"},
    {"type": "Replace", "pattern": {"Regex": "o+"}, "content": "a"},
    *(BERT | change for change in ({}, {"lowercase": False}, {"strip_accents": False}, {"handle_chinese_chars": False})),
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]},
    None,
)
PRE_TOKENIZERS = (
    *(BYTES | change for change in ({}, {"add_prefix_space": True}, {"use_regex": False}, {"trim_offsets": False})),
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTES]},
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
    {"type": "Punctuation", "behavior": "Isolated"},
    None,
)
PROCESSORS = (
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    None,
)
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
VALUES = (True, False, None, 0, 1, 2, 4, 0.25, 1e-3, "x", "gelu", "relu", "gelu_new", [], {}, [1], {"a": 1}, "all", "none")
INSIDE = ("rope_scaling", "rope_parameters", "layer_types", "no_rope_layers")  # settings that hold several
ROPE = ("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "original_max_position_embeddings", "beta_fast")
NOBODYS = ("rotary", "bias_free", "attn_scale", "embedding_multiplier", "hidden_act", "logit_scale", "sliding_window")


def new_value(draw: Draw, old: object) -> object:
    """Draw another value, more often one of the old one's type."""
    if draw.random() < 0.3:
        return draw.choice(VALUES)
    if isinstance(old, bool) or old is None:
        return draw.choice((True, False, None))
    if isinstance(old, int):
        return draw.choice((old + 1, max(1, old - 1), old * 2, max(1, old // 2), 1))
    if isinstance(old, float):
        return draw.choice((old * 10, 0.0, 0.5))
    return draw.choice(VALUES)


Pools = tuple[tuple[str, ...], ...]  # names of a kind each; a kind is drawn first


def change(draw: Draw, content: dict, pools: Pools) -> None:
    """Change a key of an object, remove it, or set one of the `pools`. In place."""
    there = list(content)
    if there and draw.random() < 0.2:
        del content[draw.choice(there)]
    elif there and draw.random() < 0.5:
        name = draw.choice(there)
        content[name] = new_value(draw, content[name])
    else:
        name = draw.choice(draw.choice(pools))
        content[name] = new_value(draw, content.get(name))


def of_list(known: KnownSettings) -> Pools:
    return tuple(filter(None, (known.used, tuple(sorted(known.names_of_harmless())), tuple(known.refused), NOBODYS)))


def config(draw: Draw, raw: bytes) -> bytes:
    """Change config.json. A setting that has a second name may get its value, the old or another, under that one."""
    content = json.loads(raw)
    entry = ARCHITECTURES[content["model_type"]]
    aliases = {alias: name for alias, name in ALIASES.get(content["model_type"], {}).items() if name in content}
    if aliases and draw.random() < 0.25:
        alias = draw.choice(list(aliases))
        value = content[aliases[alias]] if draw.random() < 0.3 else content.pop(aliases[alias])
        content[alias] = draw.choice((value, new_value(draw, value)))
    else:
        change(draw, content, of_list(known_settings(entry, entry.config())))
    return json.dumps(content).encode()


def llama_config(draw: Draw, raw: bytes) -> bytes:
    """Change config.json as `config` does, or one of the values inside: of the rotation, of what is said of each layer."""
    content = json.loads(raw)
    inside = [value for name, value in content.items() if name in INSIDE and value]
    if not inside or draw.random() < 0.7:
        return config(draw, raw)
    value = draw.choice(inside)
    if isinstance(value, dict):
        change(draw, value, (ROPE, NOBODYS))
    elif draw.random() < 0.3:
        value.pop()
    else:
        value[draw.randrange(len(value))] = draw.choice((0, 1, 2, True, "full_attention", "sliding_attention", "chunked"))
    return json.dumps(content).encode()


def adapter_config(draw: Draw, raw: bytes) -> bytes:
    """Change adapter_config.json."""
    content = json.loads(raw)
    change(draw, content, of_list(ADAPTER[content["peft_type"]]))
    return json.dumps(content).encode()


TOKENS = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "<s>", "</s>", "<pad>", "<|endoftext|>", "<new>", "good")
CLASSES = (*(name for names in tokenizers.CLASSES.values() for name in names), *tokenizers.WHOLE_CLASSES, "T5Tokenizer")
SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")  # of WordPiece


def tokenizer_config(draw: Draw, raw: bytes) -> bytes:
    """Change tokenizer_config.json or special_tokens_map.json: a class, a special token, or any other key."""
    content, what = json.loads(raw), draw.random()
    if what < 0.2:
        content["tokenizer_class"] = draw.choice(CLASSES)
    elif what < 0.4:
        content[draw.choice(tokenizers.NAMED)] = draw.choice((*TOKENS, {"content": draw.choice(TOKENS), "lstrip": True}))
    elif what < 0.55:
        content[draw.choice(tokenizers.FURTHER)] = draw.sample(TOKENS, 2)
    elif what < 0.8:
        is_wordpiece = "[CLS]" in raw.decode() or "[PAD]" in raw.decode()
        name = draw.choice(SWITCHES if is_wordpiece else ("add_prefix_space",))
        content[name] = draw.choice((True, False))
    else:
        kind = draw.choice(list(tokenizers.CONFIG))
        change(draw, content, of_list(tokenizers.CONFIG[kind]))
    return json.dumps(content).encode()


def tokenizer_json(draw: Draw, raw: bytes) -> bytes:
    """Change a section of tokenizer.json, what its model says, or an added token."""
    content, what = json.loads(raw), draw.randrange(6)
    if what < 3:
        name, values = (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS), ("post_processor", PROCESSORS))[
            what
        ]
        content[name] = draw.choice(values)
    elif what == 3:
        settings = {name: value for name, value in content["model"].items() if name not in ("vocab", "merges", "type")}
        name = draw.choice((*settings, "dropout", "unk_token", "max_input_chars_per_word", "ignore_merges"))
        content["model"][name] = new_value(draw, settings.get(name))
    elif what == 4 and content["added_tokens"]:
        token = draw.choice(content["added_tokens"])
        token[draw.choice(FLAGS)] = draw.choice((True, False))
    else:
        number = max(token["id"] for token in content["added_tokens"]) + 1
        number = max(number, len(content["model"]["vocab"])) + draw.choice((0, 0, 0, 0, 5))
        flags = {flag: draw.choice((True, False, False)) for flag in FLAGS}
        content["added_tokens"].append(
            {"id": number, "content": draw.choice(("ilm", "<u>", "FILM", "a film", "is ")), **flags}
        )
    return json.dumps(content).encode()


def decoder_json(draw: Draw, raw: bytes) -> bytes:
    """Change tokenizer.json as `tokenizer_json` does, or put in how another decoder cuts a text or what it puts around."""
    content, what = json.loads(raw), draw.random()
    if what < 0.1:
        content["pre_tokenizer"] = draw.choice((split(QWEN_PATTERN), split(LLAMA3_PATTERN), split(r"\s+|\S+"), digits()))
    elif what < 0.2:
        token = draw.choice(content["added_tokens"])
        content["post_processor"] = begins_with(token["content"], token["id"] + draw.choice((0, 0, 0, 1)))
    else:
        return tokenizer_json(draw, raw)
    return json.dumps(content).encode()


def added_tokens(draw: Draw, raw: bytes) -> bytes:
    """Add to added_tokens.json, or give a token another id."""
    content = json.loads(raw)
    number = max(content.values()) + draw.choice((1, 1, 1, 3))
    content[draw.choice(("ilm", "<u>", "FILM", *content))] = number
    return json.dumps(content).encode()
