"""Make small tokenizers in the form in which Qwen's, Llama 3's and SmolLM2's are published: theirs aren't at hand."""

import json
from collections.abc import Iterable
from pathlib import Path

from model.tokenizers.steps import LLAMA3_PATTERN, QWEN_PATTERN
from tests.helpers.texts import ODD_TEXTS, SENTENCES, TEXTS

LEARNED = [
    *(SENTENCES + TEXTS) * 30,
    *ODD_TEXTS,
    "We've SEEN it's 2024, 1999 and 123456;\n\n  don't  they'LL\r\n\tgo  ?\n\n",
] * 2
# Tokens that no two others make: only `ignore_merges` finds them.
WHOLE_WORDS = ["ĠQzxj", "Zzxj"]


def byte_level(use_regex: bool = False) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def split(pattern: str) -> dict:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, byte_level()]}


def digits() -> dict:
    return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)]}


def begins_with(token: str, number: int) -> dict:
    """Return Llama 3's post_processor, which puts a token in front of each text."""
    special, a, b = ({"SpecialToken": {"id": token, "type_id": 0}}, *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"))
    about = {token: {"id": token, "ids": [number], "tokens": [token]}}
    template = {"type": "TemplateProcessing", "single": [special, a], "pair": [special, a, special, b]}
    return {"type": "Sequence", "processors": [byte_level(True), template | {"special_tokens": about}]}


def learn(pre_tokenizer: dict, normalizer: dict | None, size: int, alphabet: bool = True) -> dict:
    """Return what the library's trainer makes of LEARNED, as the content of a tokenizer.json without special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    tokenizer.train_from_iterator(
        LEARNED, trainers.BpeTrainer(vocab_size=size, initial_alphabet=initial, show_progress=False)
    )
    return json.loads(tokenizer.to_str()) | {"decoder": byte_level(True)}


def special(content: str, number: int, special: bool = True) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def save(folder: Path, content: dict, names: Iterable[dict], model_type: str, **config) -> Path:
    """Write a tokenizer with added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = list(names)
    config |= {"added_tokens_decoder": {str(token["id"]): {**token, "id": None} for token in tokens}}
    for token in config["added_tokens_decoder"].values():
        del token["id"]
    files = {
        "tokenizer.json": content | {"added_tokens": tokens},
        "tokenizer_config.json": config,
        "config.json": {"model_type": model_type},
    }
    for name, told in files.items():
        (folder / name).write_text(json.dumps(told), encoding="utf-8")
    return folder


def make_qwen(folder: Path) -> Path:
    """Write a small tokenizer of Qwen's kind: NFC, no token in front, <think> isn't special."""
    content = learn(split(QWEN_PATTERN), {"type": "NFC"}, 600) | {"post_processor": byte_level()}
    size = len(content["model"]["vocab"])
    names = [special(text, size + i) for i, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))]
    names += [special("<think>", size + 3, False), special("</think>", size + 4, False)]
    settings = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False, "add_prefix_space": False}
    settings |= {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "errors": "replace", "unk_token": None}
    settings |= {"split_special_tokens": False, "model_max_length": 131072, "clean_up_tokenization_spaces": False}
    return save(folder, content, names, "qwen2", eos_token="<|im_end|>", pad_token="<|endoftext|>", **settings)


def make_llama3(folder: Path) -> Path:
    """Write a small tokenizer of Llama 3's kind: all ways to make a token are merges, and a word need not have one."""
    content = learn(split(LLAMA3_PATTERN), None, 600)
    vocab = content["model"]["vocab"]
    merges = [[text[:i], text[i:]] for text in sorted(vocab, key=vocab.get) for i in range(1, len(text))]
    merges = [pair for pair in merges if pair[0] in vocab and pair[1] in vocab]
    assert len(merges) > len(content["model"]["merges"])
    vocab |= {word: len(vocab) + i for i, word in enumerate(WHOLE_WORDS)}
    content["model"] |= {"merges": merges, "ignore_merges": True}
    size = len(vocab)
    texts = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    content["post_processor"] = begins_with(texts[0], size)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    settings |= {"clean_up_tokenization_spaces": False, "model_max_length": 131072}
    names = [special(text, size + i) for i, text in enumerate(texts)]
    return save(folder, content, names, "llama", bos_token=texts[0], eos_token="<|eot_id|>", **settings)


def make_smollm2(folder: Path) -> Path:
    """Write a small tokenizer of SmolLM2's kind: digits stand alone, special tokens come first, some bytes lack a token."""
    content = learn(digits(), None, 500, alphabet=False)
    texts = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab = [*texts, *content["model"]["vocab"]]
    content["model"]["vocab"] = {text: number for number, text in enumerate(vocab)}
    content["post_processor"] = None
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "unk_token": "<|endoftext|>"}
    names = [special(text, number) for number, text in enumerate(texts)]
    return save(folder, content, names, "llama", eos_token="<|im_end|>", pad_token="<|im_end|>", **settings)


MAKERS = {"qwen": make_qwen, "llama3": make_llama3, "smollm2": make_smollm2}
