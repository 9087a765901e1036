"""ChatGLM's tokenizer: the published one's ids and texts, its rules on a small file of our own, and what is refused."""

import json
import time

import pytest

from model.generation import left_padded
from model.tokenizers.bpe import GPT2Tokenizer
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.files import copy_tokenizer, has_tokenizer_files, library_files
from model.tokenizers.load import load_tokenizer
from tests.helpers.paths import SHARED
from tests.helpers.texts import ODD_TEXTS
from tests.helpers.unigram_files import PIECES, save, unigram
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # two vocabularies are read, and 484 texts with each

GOLDEN = SHARED / "golden" / "chatglm"
# The published file, and one of the same structure that was learned from other texts.
FILES = {
    "published": (SHARED / "tokenizers" / "chatglm-6b", GOLDEN / "tokenizer_ice_text.json"),
    "small": (GOLDEN / "small_ice", GOLDEN / "tokenizer_small.json"),
}


@pytest.fixture(scope="module", params=FILES)
def published(request) -> tuple[ChatGLMTokenizer, dict]:
    """Return a tokenizer, and what the published code makes of texts with its file, or skip."""
    folder, golden = FILES[request.param]
    if not folder.is_dir() or not golden.is_file():
        pytest.skip(f"needs {folder} and {golden}")
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, ChatGLMTokenizer)
    return tokenizer, json.loads(golden.read_text(encoding="utf-8"))


def test_special_tokens_have_the_published_ids(published):
    tokenizer, golden = published
    number_of = {piece.text: number for number, piece in enumerate(tokenizer.unigram.pieces)}
    assert {text: number_of[text] for text in golden["special_ids"]} == golden["special_ids"]
    assert number_of["<0x00>"] == golden["byte0_id"]
    assert tokenizer.vocab_size == golden["vocab_size"]
    ids = golden["special_ids"]
    assert tokenizer.end_ids == (ids["<eop>"],) and tokenizer.pad_id == ids["<pad>"]
    assert (tokenizer.mask_id, tokenizer.gmask_id, tokenizer.start_id) == (ids["[MASK]"], ids["[gMASK]"], ids["<sop>"])
    assert tokenizer.special_ids == {number for text, number in ids.items() if "|" not in text and text != "<n>"}


def test_all_texts_have_the_published_ids(published):
    tokenizer, golden = published
    assert len(golden["texts"]) == 484
    for one in golden["texts"]:
        assert tokenizer.unigram.encode(one["t"]) == one.get("raw", one["sp"])
        assert tokenizer.encode_words(one["t"]) == one["sp"]
        assert tokenizer.encode(one["t"]) == one.get("ids", one["sp"])


def test_all_texts_come_back_as_published(published):
    tokenizer, golden = published
    cleaned = 0
    for one in golden["texts"]:
        ids = one.get("ids", one["sp"])
        text = one.get("d", one["t"])
        uncleaned = one.get("dfn", text)
        assert tokenizer.decode(ids) == text == uncleaned
        assert tokenizer.decode(ids, clean_up=True) == one.get("df", text)
        assert tokenizer.decode(ids, skip_special=True) == one.get("dfs", uncleaned)
        cleaned += "df" in one
    assert cleaned == 19


def test_random_ids_are_written_as_published(published):
    tokenizer, golden = published
    assert len(golden["random_decode"]) == 60
    for one in golden["random_decode"]:
        assert tokenizer.unigram.decode(one["ids"]) == one["raw"]
        assert tokenizer.decode(one["ids"]) == one["d"] == one["dfn"]


def test_flags(published):
    tokenizer, golden = published
    for one in golden["flags"]:
        assert tokenizer.encode_words(one["t"], prefix=False) == one["no_dummy_prefix"]
        assert tokenizer.encode_words(one["t"], line_breaks=False) == one["no_linebreak"]
        assert tokenizer.encode_words(one["t"], blanks=False) == one["no_whitespaces"]


def test_pairs(published):
    tokenizer, golden = published
    for one in golden["pairs"]:
        ids, types = tokenizer.build(tokenizer.encode(one["a"]), tokenizer.encode(one["b"]))
        assert ids == one["ids"] == one["call_pair"] and types is None


def test_truncation(published):
    tokenizer, golden = published
    one = golden["truncation"]
    assert tokenizer.build(tokenizer.encode(one["t"]), None, one["max_length"])[0] == one["ids"]
    assert len(tokenizer.encode(one["t"])) > one["max_length"] - 2


def test_batches_are_padded_on_the_left(published):
    tokenizer, golden = published
    for one in golden["batches"]:
        rows = [tokenizer.build(tokenizer.encode(text))[0] for text in one["texts"]]
        assert left_padded(rows, tokenizer.pad_id)[0].tolist() == one["input_ids"]


# The scores before them decide, by how the sums are rounded; these are the last pieces in sentencepiece 0.2.3.
EQUALLY_GOOD = {"abc||||": "| |||", "<n>||||": "||| |", "<|blank_20|>=||||": "| |||", "greek||||": "| |||"}


def test_equally_good_ways_are_decided_as_in_sentencepiece(published):
    tokenizer, golden = published
    if golden["vocab_size"] < 130_000:
        pytest.skip("the small file has other pieces")
    for text, last in EQUALLY_GOOD.items():
        assert tokenizer.unigram.segment(tokenizer.unigram.normalize(text))[-2:] == last.split()


@pytest.mark.slow
def test_speed(shared, capsys):
    """Print the speed on one core: python -m pytest -m slow -k speed tests/model/test_chatglm_tokenizer.py"""
    folder, _ = FILES["published"]
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    start = time.process_time()
    tokenizer = load_tokenizer(folder)
    loaded = time.process_time()
    data = shared / "data"
    texts = (data / "text_corpus" / "wikitext2_test.txt").read_text(encoding="utf-8").split("\n")[:1500]
    texts += [row["output"] for row in json.loads((data / "chat_sft" / "alpaca_zh_demo.json").read_text(encoding="utf-8"))]
    begun = time.process_time()
    n = sum(len(tokenizer.encode(text)) for text in texts)
    speed = n / (time.process_time() - begun)
    with capsys.disabled():
        print(f"\n{n:,} tokens of {len(texts):,} English and Chinese texts: {speed:,.0f} a second of processor time")
        print(f"the tokenizer was read in {loaded - start:.1f} s")
    assert speed > 20_000


# The rules, on a small file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("ice"))


@pytest.fixture(scope="module")
def small(folder) -> ChatGLMTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, ChatGLMTokenizer)
    return tokenizer


def texts_of(tokenizer: ChatGLMTokenizer, text: str) -> list[str]:
    return [tokenizer.unigram.pieces[number].text for number in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a\nb\tc", "▁a <n> b <|tab|> c"),
        ("a   b", "▁a <|blank_3|> b"),
        (" " * 163, "▁ <|blank_80|> <|blank_80|> <|blank_3|>"),
        ("a" + " " * 81 + "b", "▁a <|blank_80|> ▁ b"),
        ("a <sop> b", "▁a <sop> ▁ b"),
        ("a \n<eop>\t b[MASK]", "▁a <eop> ▁ b [MASK]"),
        ("<pad><unk>", "<pad> <unk>"),
    ],
)
def test_the_rules(small, text, pieces):
    assert texts_of(small, text) == pieces.split()


@pytest.mark.parametrize("token", ["[gMASK]", "</s>", "<s>", "[sMASK]", "<ENC>"])
def test_other_special_tokens_are_text(small, token):
    ids = small.encode(f"a{token}b")
    assert not small.special_ids & {*ids}
    assert small.decode(ids) == f"a{token}b"


def test_what_normalizing_keeps_comes_back(small):
    for text in ("a\n\n\tb   c", "ab" + " " * 99 + "c", "海 🙂", "a<n"):
        assert small.decode(small.encode(text)) == text
    for text in ODD_TEXTS:
        again = small.decode(small.encode(text))
        assert small.decode(small.encode(again)) == again


def test_ids_without_a_piece_are_left_out(small):
    assert small.decode([-1, *small.encode("ab"), small.vocab_size, 10**12, small.pad_id]) == "ab"


def test_long_white_space_takes_no_longer_than_other_texts(small):
    start = time.process_time()
    small.encode(" " * 200_000 + "\x1f" * 200_000 + "<sop>" + "\n" * 200_000)
    assert time.process_time() - start < 20


def test_the_shape_of_one_text_and_two(small):
    ids, pair = small.encode("ab"), small.encode("c")
    mask, start, end = (small.special_tokens[name] for name in ("[gMASK]", "<sop>", "<eop>"))
    assert small.build(ids) == ([*ids, mask, start], None)
    assert small.build(ids, pair) == ([*ids, mask, start, *pair, end], None)
    assert small.build(ids, [], 3)[0] == [mask, start, end]
    with pytest.raises(UserError, match="a length of 1 is too short: the special tokens alone take 2"):
        small.build(ids, None, 1)


# Which files, and what beside them


def test_the_kind_is_found_with_and_without_other_files(folder, tmp_path):
    assert has_tokenizer_files(folder)
    assert isinstance(load_tokenizer(folder, "chatglm"), ChatGLMTokenizer)
    save(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text('{"model_type": "chatglm"}')
    assert isinstance(load_tokenizer(tmp_path / "b"), ChatGLMTokenizer)
    (tmp_path / "b" / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    (tmp_path / "b" / "vocab.txt").write_text("of another tokenizer")
    assert isinstance(load_tokenizer(tmp_path / "b"), ChatGLMTokenizer)
    with pytest.raises(UserError, match=r"has no ChatGLM tokenizer file \(ice_text.model\)"):
        load_tokenizer(tmp_path, "chatglm")
    with pytest.raises(UserError, match=r"no GPT-2 tokenizer files"):
        GPT2Tokenizer.from_directory(folder)


def test_the_files_are_copied(folder, tmp_path):
    copy_tokenizer(folder, tmp_path)
    assert [*library_files(tmp_path)] == ["ice_text.model"]
    assert (tmp_path / "ice_text.model").read_bytes() == unigram()


def test_the_published_settings_are_read(tmp_path):
    published = {
        **{"name_or_path": "THUDM/chatglm-6b", "bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>"},
        **{"gmask_token": "[gMASK]", "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>"},
        **{"remove_space": False, "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0},
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (save(tmp_path) / "tokenizer_config.json").write_text(json.dumps(published))
    load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_image_tokens", 20000),
        ("do_lower_case", True),
        ("remove_space", True),
        ("bos_token", "<s>"),
        ("gmask_token", "[MASK]"),
        ("pad_token", {"content": "<s>"}),
        ("pad_token", {"content": "<pad>", "lstrip": False}),  # which leaves the spaces around it
        ("additional_special_tokens", ["<new>"]),
        ("tokenizer_class", "T5Tokenizer"),
        ("vocabulary", "x"),
    ],
)
def test_settings_that_change_ids_are_refused(tmp_path, name, value):
    (save(tmp_path) / "tokenizer_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(UserError, match=f"tokenizer_config.json sets {name} to "):
        ChatGLMTokenizer.from_directory(tmp_path)


def test_files_beside_it_that_change_ids_are_refused(tmp_path):
    (save(tmp_path) / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match=r"special_tokens_map.json sets eos_token to '</s>'"):
        load_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "added_tokens.json").write_text('{"<new>": 400}')
    with pytest.raises(UserError, match=r"added_tokens.json adds '<new>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["[gMASK]", "<sop>", "<|tab|>", "<|blank_80|>", "<n>", "<pad>"])
def test_a_file_without_the_pieces_of_the_rules_is_refused(tmp_path, name):
    save(tmp_path, unigram([one for one in PIECES if one[0] != name]))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert f"is no ChatGLM tokenizer: it has no {name} (and 0 more)" in str(caught.value)
    assert "4de8efe" in str(caught.value)
