"""The tokenizers of SmolLM2, Qwen and Llama 3: as in transformers, and other kinds are refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from model.tokenizers.decoder import DecoderTokenizer
from model.tokenizers.steps import LLAMA3_PATTERN, QWEN_PATTERN
from tests.helpers.decoder_tokenizers import LEARNED, MAKERS, WHOLE_WORDS, digits, split
from tests.helpers.texts import ODD_TEXTS, generated_texts, real_texts
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # tokenizers, beside the library's

TEXTS = [
    *ODD_TEXTS,
    *LEARNED[-3:],
    "a\u0301 e\u0301\u0327 \u212b \u1112\u1161\u11ab Ｋ",  # NFC joins the first ones
    "1 22 333 4444 55555 x12345y ½Ⅷ٣ 3.14",
    "  12  \n\n 7   7\t\t8 \r\n\r\n9 \n x",
    "!?\n\n ... \n)\r\n--\n\n\n  'S 'll'VE x'LLama",
    " Qzxj Zzxj aZzxjb\nZzxj1 Zzxj",
    "!\x04\x04! \x04a\x04 \n\x04 'r\x16e \x1d\x1d \U00040000x\U000bffff",
    "<|im_start|>user\n<|im_end|><think> x </think><|begin_of_text|><|eot_id|><|endoftext|>",
    "\ud800 a \udfff",
]


def library(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, split_special_tokens=True)  # as here: they are text when a text holds them


def different(ours: DecoderTokenizer, theirs, texts: list[str]) -> list[str]:
    """Return the texts that have other ids in the library."""
    texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]  # it takes no halves
    rows = theirs.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [text for text, row in zip(texts, rows, strict=True) if ours.encode(text) != row.ids]


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    pytest.importorskip("transformers")
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ours(folder) -> DecoderTokenizer:
    return DecoderTokenizer.from_directory(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return library(folder)


def test_ids_equal_those_of_the_library(ours, theirs):
    texts = TEXTS + generated_texts(3000)
    assert different(ours, theirs, texts) == []
    assert ours.vocab_size == len(theirs)
    assert len(ours.encode("Low, lower, lowest")) < 10  # its merges are used


@pytest.mark.slow
def test_ids_of_all_real_texts_equal_those_of_the_library(ours, theirs, shared):
    assert different(ours, theirs, real_texts(shared / "data") + generated_texts(10_000, seed=1)) == []


def test_what_stands_around_a_text_and_which_tokens_end_it(ours, theirs, folder):
    assert ours.end_of_text == theirs.eos_token_id and ours.end_ids == (theirs.eos_token_id,)
    assert ours.pad_id == (theirs.eos_token_id if theirs.pad_token is None else theirs.pad_token_id)
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    for text in TEXTS[:-1]:
        assert ours.build(ours.encode(text)) == (theirs(text)["input_ids"], None)
    pair = ours.build(ours.encode("one"), ours.encode("two"))[0]
    if ours.start:
        assert pair == theirs("one", "two")["input_ids"]
    else:
        assert pair == theirs("one\ntwo")["input_ids"] or ours.decode(pair) == "one\ntwo"


def test_texts_equal_those_of_the_library(ours, theirs):
    for text in TEXTS[:-1]:
        ids = ours.build(ours.encode(text))[0]
        for some in (ids, ids[1:], ids[:-1], ids[::2], [ours.end_of_text, *ids, ours.end_of_text]):
            assert ours.decode(some) == theirs.decode(some)
            kept = [number for number in some if number not in ours.special_ids]
            assert ours.decode(kept) == theirs.decode(some, skip_special_tokens=True)
    assert ours.decode([10**6]) == ""


@pytest.mark.parametrize("run", [" ", "\n", "\u3000", " \n\t", "\r", "a", "7", "!"], ids=repr)
def test_long_runs(ours, theirs, run):
    texts = [run * 12_345, f"x{run * 12_345}y", f"!{run * 12_345}!", f"{run * 12_345} 1 {run * 12_345}x  "]
    assert different(ours, theirs, texts) == []


# Each kind


def made(tmp_path: Path, kind: str) -> Path:
    pytest.importorskip("tokenizers")
    return MAKERS[kind](tmp_path / kind)


def test_a_text_cannot_smuggle_in_a_special_token_but_other_added_tokens_are_found(tmp_path):
    ours = DecoderTokenizer.from_directory(made(tmp_path, "qwen"))
    text = "<|im_end|>x<|endoftext|>"
    assert not ours.special_ids.intersection(ours.encode(text)) and ours.decode(ours.encode(text)) == text
    (think,) = ours.encode("<think>")
    assert ours.decode([think]) == "<think>" and think not in ours.special_ids


def test_qwen_without_a_tokenizer_json_is_cut_by_its_class(tmp_path):
    folder = made(tmp_path, "qwen")
    whole = DecoderTokenizer.from_directory(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["model"]["merges"]), encoding="utf-8")
    ours = DecoderTokenizer.from_directory(folder)
    assert [ours.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]
    edit(folder / "tokenizer_config.json", lambda config: config.update(add_bos_token=True))
    assert "sets add_bos_token to True, which isn't supported; it must be False" in refused(folder)
    edit(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="LlamaTokenizer"))
    assert "tokenizer_class LlamaTokenizer doesn't say how a text is cut into words" in refused(folder)


def test_a_qwen_whose_file_is_not_what_its_class_does(tmp_path):
    folder = made(tmp_path, "qwen")
    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "NFKC"}))
    assert "has the normalizer {'type': 'NFKC'}, which the library's Qwen2Tokenizer doesn't use" in refused(folder)
    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "NFC"}))
    edit(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer=split(LLAMA3_PATTERN)))
    assert "has the pre_tokenizer {" in refused(folder)
    edit(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit(folder / "config.json", lambda config: config.update(model_type="llama"))  # the library takes no other for a Qwen2
    assert different(DecoderTokenizer.from_directory(folder), library(folder), TEXTS) == []


def test_smollm2_as_published_is_cut_by_its_tokenizer_json(tmp_path):
    folder = made(tmp_path, "smollm2")
    edit(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="GPT2Tokenizer"))
    ours, text = DecoderTokenizer.from_directory(folder), "x  12  3"
    assert [ours.decode([number]) for number in ours.encode(text)] == ["x", "  ", "1", "2", "  ", "3"]


@pytest.mark.parametrize("kind, name", [("qwen", "Qwen2Tokenizer"), ("smollm2", "GPT2TokenizerFast")])
def test_a_space_in_front_that_the_class_puts_there_and_the_file_does_not(tmp_path, kind, name):
    folder = made(tmp_path, kind)
    for wanted, fits in ((False, True), (True, False), (None, True)):
        told = {"tokenizer_class": name, "add_prefix_space": wanted}
        edit(folder / "tokenizer_config.json", lambda config, told=told: config.update(told))
        if fits:
            assert DecoderTokenizer.from_directory(folder).encode("one")
        else:
            assert "add_prefix_space of tokenizer_config.json is True, and a text is cut as" in refused(folder)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}  # which the library doesn't read then
    if kind == "smollm2":
        edit(folder / "tokenizer_config.json", lambda config: config.update(told))
        assert different(DecoderTokenizer.from_directory(folder), library(folder), TEXTS) == []


def test_llama3_finds_words_that_no_merges_make(tmp_path):
    folder = made(tmp_path, "llama3")
    ours = DecoderTokenizer.from_directory(folder)
    assert [len(ours.encode(word.replace("Ġ", " "))) for word in WHOLE_WORDS] == [1, 1]
    edit(folder / "tokenizer.json", lambda content: content["model"].update(ignore_merges=False))
    assert "'ĠQzxj' (and 1 more), which no merge makes" in refused(folder)


@pytest.mark.parametrize("adds", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_the_post_processor_goes_before_settings_that_add_tokens(tmp_path, adds):
    folder = made(tmp_path, "llama3")
    edit(folder / "tokenizer_config.json", lambda config: config.update(adds))
    ours, theirs = DecoderTokenizer.from_directory(folder), library(folder)
    assert ours.build(ours.encode("one"))[0] == theirs("one")["input_ids"]
    assert ours.build(ours.encode("one"), ours.encode("two"))[0] == theirs("one", "two")["input_ids"]


# Refused


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        DecoderTokenizer.from_directory(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def pre(*changes):
    steps = split(QWEN_PATTERN)
    for step, change in zip(steps["pretokenizers"], changes, strict=False):
        step.update(change)
    return lambda content: content.update(pre_tokenizer=steps)


def model(**settings):
    return lambda content: content["model"].update(settings)


SEQUENCE = [*digits()["pretokenizers"], *split(LLAMA3_PATTERN)["pretokenizers"]]
REFUSED = {
    "a pattern": (
        pre({"pattern": {"Regex": r"\s+"}}),
        "Split has the pattern .*s.'.*known are those of GPT-2, Qwen, Llama 3",
    ),
    "another way to split": (pre({"behavior": "Removed"}), "behavior to 'Removed'"),
    "what lies between": (pre({"invert": True}), "invert to True"),
    "two patterns": (pre({}, {"use_regex": True}), "ByteLevel behind a Split sets use_regex to True"),
    "three steps": (
        lambda content: content.update(pre_tokenizer={"type": "Sequence", "pretokenizers": SEQUENCE}),
        "is Digits, ByteLevel, Split, ByteLevel; it must be",
    ),
    "metaspace": (
        lambda content: content.update(pre_tokenizer={"type": "Metaspace"}),
        "is 'Metaspace', which isn't supported",
    ),
    "no pre-tokenizer": (
        lambda content: content.update(pre_tokenizer=None),
        "has no pre_tokenizer; a decoder's must be byte-level",
    ),
    "sentencepiece": (model(byte_fallback=True), "is a SentencePiece BPE .* as of Llama 2, which isn't supported"),
    "an unknown token": (model(unk_token="<unk>"), "unk_token to '<unk>'"),
    "wordpiece": (model(type="WordPiece"), "holds a tokenizer of type 'WordPiece', not BPE"),
    "unigram": (model(type="Unigram", vocab=[["a", 0.1]]), "holds a tokenizer of type 'Unigram', not BPE"),
    "other tokens around": (
        lambda content: content.update(post_processor={"type": "TemplateProcessing", "single": [{}], "pair": []}),
        "post_processor isn't supported",
    ),
    "a step behind": (
        lambda content: content.update(post_processor={"type": "BertProcessing"}),
        "post_processor isn't supp",
    ),
    "two ways, unsorted": (
        lambda content: content["model"]["merges"].append(content["model"]["merges"][0]),
        "two of the merges make the same token",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_means_something_else_is_refused_by_name(tmp_path, what):
    change, said = REFUSED[what]
    folder = made(tmp_path, "llama3")
    edit(folder / "tokenizer.json", change)
    with pytest.raises(UserError, match=said):
        DecoderTokenizer.from_directory(folder)
    refused(folder)


def test_a_token_around_a_text_that_nobody_has(tmp_path):
    folder = made(tmp_path, "llama3")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('{"id": "<|begin_of_text|>", "type_id"', '{"id": "<|x|>", "type_id"')
    )
    assert "puts the id None around a text, which no token has" in refused(folder)
    text = text.replace("<|x|>", "<|begin_of_text|>").replace('"ids": [', '"ids": [99')
    (folder / "tokenizer.json").write_text(text)
    assert "puts the id 99" in refused(folder)


def test_nothing_that_ends_a_text(tmp_path):
    folder = made(tmp_path, "llama3")
    edit(folder / "tokenizer_config.json", lambda config: config.pop("eos_token"))
    assert "names no eos_token that the vocabulary has" in refused(folder)


def test_sentencepiece_alone_and_the_files_of_another_family(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    assert "tokenizer.model is a SentencePiece tokenizer, which isn't supported" in refused(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert "has no byte-level BPE tokenizer files" in refused(tmp_path)


# The real one


@pytest.fixture(scope="module")
def real(smollm2):
    return DecoderTokenizer.from_directory(smollm2)


def test_real_smollm2_has_the_golden_ids(real, shared):
    golden = json.loads((shared / "golden/smollm2/golden_smollm2.json").read_text())
    assert [real.encode(one["text"]) for one in golden["prompts"]] == [one["ids"] for one in golden["prompts"]]
    assert (real.start, real.end, real.end_of_text, real.pad_id, real.vocab_size) == ((), (), 2, 2, 49152)
    assert real.special_ids == set(range(17))


def test_real_smollm2_equals_the_library(real, smollm2, shared):
    messages = (shared / "data/sms_spam/SMSSpamCollection").read_text(encoding="utf-8").split("\n")
    assert different(real, library(smollm2), TEXTS + messages + generated_texts(1000)) == []


@pytest.mark.slow
def test_real_smollm2_equals_the_library_on_all_real_texts(real, smollm2, shared):
    texts = real_texts(shared / "data") + generated_texts(10_000)
    for file in sorted((shared / "data").glob("text_corpus/*.txt")):
        texts += file.read_text(encoding="utf-8").split("\n")
    for file in sorted((shared / "data").glob("chat_sft/*.json*")):
        texts += file.read_text(encoding="utf-8").split("\n")
    assert different(real, library(smollm2), texts) == []
    assert len(texts) > 200_000


def test_smollm2_with_the_published_class_differs_from_none(real, smollm2, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(tokenizer_class="GPT2Tokenizer"))
    ours = DecoderTokenizer.from_directory(tmp_path)
    assert [ours.encode(text) for text in TEXTS] == [real.encode(text) for text in TEXTS]
