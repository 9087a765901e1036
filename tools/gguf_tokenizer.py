"""Writes the tokenizer of a GGUF file as the files that lie beside published weights. Only byte-level BPE is known.

The file has the tokens, their types and the merges. How a text is cut before merging it only names (tokenizer.ggml.pre),
so what each name means stands here.
"""

import json
from typing import Any

from model.tokenizers.steps import LLAMA3_PATTERN, QWEN_PATTERN
from tools.gguf_file import GGUFFile
from utils.errors import UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens; an unused one fills the table up

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> list[dict]:
    """Return the steps that cut a text by a pattern."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [cut, BYTE_LEVEL | {"use_regex": False}]


# The name of a cut -> its steps in tokenizer.json, and what goes with it there.
CUTS: dict[str, tuple[list[dict], dict]] = {
    "gpt-2": ([BYTE_LEVEL], {}),
    "smollm": ([DIGITS, BYTE_LEVEL], {}),
    "qwen2": (split(QWEN_PATTERN), {"normalizer": {"type": "NFC"}}),
    "llama-bpe": (split(LLAMA3_PATTERN), {"ignore_merges": True, "starts": True}),
}
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}  # hf name -> name


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """Return {name of a file: its text}. Raises UserError for a tokenizer of another kind, or a broken one."""
    kind, cut = (file.settings.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2":
        raise UserError(f"{file.path} has a tokenizer of the kind {kind!r}; what is read: 'gpt2' (byte-level BPE)")
    if cut not in CUTS:
        raise UserError(f"{file.path} cuts texts by {cut!r}; what is read: {', '.join(CUTS)}")
    tokens, types, merges = (
        _strings(file, name, of) for name, of in (("tokens", str), ("token_type", int), ("merges", str))
    )
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise UserError(f"{file.path} has {len(tokens)} tokens, {len(set(tokens))} different ones, and {len(types)} types")
    if unknown := set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise UserError(
            f"{file.path} has tokens of the type {min(unknown)}; what is read: normal, control, user-defined, unused"
        )
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    added = {i: _added(tokens[i], kind == CONTROL) for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    special = {hf_name: tokens[i] for hf_name, name in SPECIAL.items() if (i := token_id(file, name)) is not None}
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.size("context_length"),
        "added_tokens_decoder": {str(i): token for i, token in added.items()},
    }
    if (template := file.settings.get("tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    return {
        "tokenizer.json": as_json(_description(file, vocab, merges, added)),
        "tokenizer_config.json": as_json(settings),
        "special_tokens_map.json": as_json(special),
        "vocab.json": as_json(vocab),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }


def as_json(content: Any) -> str:
    """Return content as the text of a JSON file."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def token_id(file: GGUFFile, name: str) -> int | None:
    """Return the id of the token that the file names "bos", "eos" and so on, or None. Raises UserError for no such id."""
    i, n_tokens = file.settings.get(f"tokenizer.ggml.{name}_token_id"), len(file.settings["tokenizer.ggml.tokens"])
    if i is not None and (type(i) is not int or not 0 <= i < n_tokens):
        raise UserError(f"{file.path} sets tokenizer.ggml.{name}_token_id to {i!r}; it must be from 0 to {n_tokens - 1}")
    return i


def _strings(file: GGUFFile, name: str, kind: type) -> list:
    values = file.settings.get(f"tokenizer.ggml.{name}")
    if type(values) is not list or not all(type(value) is kind for value in values):
        raise UserError(f"{file.path} has no list tokenizer.ggml.{name}")
    return values


def _added(content: str, special: bool) -> dict:
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _description(file: GGUFFile, vocab: dict[str, int], merges: list[str], added: dict[int, dict]) -> dict:
    """Return the content of tokenizer.json."""
    steps, more = CUTS[file.settings["tokenizer.ggml.pre"]]
    cut = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    starts = file.settings.get("tokenizer.ggml.add_bos_token", more.get("starts", False))
    bos = token_id(file, "bos")
    if type(starts) is not bool:
        raise UserError(f"{file.path} sets tokenizer.ggml.add_bos_token to {starts!r}; it must be true or false")
    if starts and bos is None:
        raise UserError(
            f"{file.path} begins each text with a token, and doesn't say with which: no tokenizer.ggml.bos_token_id"
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i} | token for i, token in added.items()],
        "normalizer": more.get("normalizer"),
        "pre_tokenizer": cut,
        "post_processor": _begin_with(file.settings["tokenizer.ggml.tokens"][bos], bos) if starts else None,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,  # a byte that has no token of its own vanishes
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": more.get("ignore_merges", False),
            "vocab": vocab,
            "merges": merges,
        },
    }


def _begin_with(token: str, i: int) -> dict:
    """Return the step that puts a token before each text."""
    begin, first, second = (
        {"SpecialToken": {"id": token, "type_id": 0}},
        *({"Sequence": {"id": s, "type_id": 0}} for s in "AB"),
    )
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }
