"""The tokenizer of a GGUF file is that of the reference library."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")

import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.helpers.gguf_files import MERGES, TEMPLATE, TOKENS, TYPES, draw_model, write_gguf
from tests.helpers.texts import ODD_TEXTS, SENTENCES, generated_texts
from tools.gguf_to_safetensors import convert
from tools.gguf_tokenizer import CUTS

TEXTS = [*ODD_TEXTS, *SENTENCES, *generated_texts(200, seed=3), "lower 42 <note>lowest<|im_end|>\n12345 e\u0301 I'LL"]


@pytest.fixture
def written(tmp_path):
    """Return a function that converts a file with changed settings, and returns the directory."""

    def write(**changes) -> Path:
        convert(write_gguf(tmp_path / "m.gguf", draw_model("llama"), "llama", **changes), tmp_path / "out")
        return tmp_path / "out"

    return write


def ids(tokenizer, **settings) -> list[list[int]]:
    return [tokenizer(text, **settings)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(("cut", "kind"), [("gpt-2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")])
def test_a_cut_is_that_of_the_librarys_class(cut, kind, written):
    ours = transformers.AutoTokenizer.from_pretrained(written(tokenizer__ggml__pre=cut))
    vocab = {token: i for i, token in enumerate(TOKENS) if not token.startswith("[PAD")}
    theirs = getattr(transformers, kind)(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES])
    theirs.add_tokens(TOKENS[:3], special_tokens=True)
    theirs.add_tokens(TOKENS[3:4])
    assert ids(ours) == ids(theirs)
    assert [ours.decode(row) for row in ids(ours)] == [theirs.decode(row) for row in ids(theirs)]


def test_the_pattern_of_llama_3_is_the_librarys():
    (split, byte_level), more = CUTS["llama-bpe"]
    assert split["pattern"]["Regex"] == TikTokenConverter().pattern
    assert not byte_level["use_regex"] and more["ignore_merges"]


def test_smollm_splits_digits_and_then_as_gpt_2(written):
    ours = transformers.AutoTokenizer.from_pretrained(written())
    cut = [word for word, _ in ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's 42  lows")]
    assert cut == ["it", "'s", "Ġ", "4", "2", "Ġ", "Ġlows"]


def test_each_text_begins_with_a_token_where_the_file_or_the_cut_says_so(written, tmp_path):
    plain = transformers.AutoTokenizer.from_pretrained(written(tokenizer__ggml__pre="llama-bpe"))
    assert plain("low")["input_ids"][0] != 1  # these files say add_bos_token: false
    (tmp_path / "out").rename(tmp_path / "plain")
    begun = transformers.AutoTokenizer.from_pretrained(
        written(tokenizer__ggml__pre="llama-bpe", tokenizer__ggml__add_bos_token=None)
    )
    assert ids(begun) == [[1, *row] for row in ids(plain)]
    assert ids(begun, add_special_tokens=False) == ids(plain)
    assert begun("low", "new")["input_ids"] == [1, *plain("low")["input_ids"], 1, *plain("new")["input_ids"]]


def test_the_other_files_say_the_same(written):
    directory = written()
    whole = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads((directory / "vocab.json").read_text(encoding="utf-8")) == whole["model"]["vocab"]
    assert (directory / "merges.txt").read_text(encoding="utf-8").splitlines()[1:] == whole["model"]["merges"] == MERGES
    assert len(whole["model"]["vocab"]) == len(TOKENS) - TYPES.count(5)  # what fills the table up is no token
    assert [token["id"] for token in whole["added_tokens"] if token["special"]] == [0, 1, 2]
    assert json.loads((directory / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    special = {"bos_token": TOKENS[1], "eos_token": TOKENS[2], "pad_token": TOKENS[2], "unk_token": TOKENS[0]}
    assert json.loads((directory / "special_tokens_map.json").read_text()) == special
    assert transformers.AutoTokenizer.from_pretrained(directory).special_tokens_map == special
