"""GPT-2's and RoBERTa's tokenizers from their published files, and which of them a directory holds."""

import json
import shutil
from pathlib import Path

import pytest

from model.bert import RobertaConfig
from model.tokenizers.bpe import END_OF_TEXT, GPT2Tokenizer, RobertaTokenizer
from model.tokenizers.files import BPE_FILE_SETS, has_tokenizer_files
from model.tokenizers.load import load_tokenizer, tokenizer_beside
from model.tokenizers.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer
from pipeline.inputs import read_tokenizer
from tests.helpers.texts import ODD_TEXTS, TEXTS, generated_texts, real_texts, rte_pairs
from tools.learn_vocabulary import learn_merges, save_tokenizer
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # reads all real texts


def theirs_from(directory: Path):
    from transformers import GPT2Tokenizer as Reference

    return Reference.from_pretrained(directory)


def their_ids(theirs, text: str) -> list[int]:
    # split_special_tokens: `<|endoftext|>` inside a text is text, as in ours
    return theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


# The published vocabulary


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> dict[str, Path]:
    """The same two files, under OpenAI's names and under Hugging Face's."""
    ours = tmp_path_factory.mktemp("gpt2")
    shutil.copyfile(shared / "tokenizers/gpt2/encoder.json", ours / "vocab.json")
    shutil.copyfile(shared / "tokenizers/gpt2/vocab.bpe", ours / "merges.txt")
    return {"openai": shared / "tokenizers/gpt2", "hugging face": ours}


@pytest.fixture(scope="module")
def gpt2(published) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_directory(published["openai"])


def test_published_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995]) == "Hello world"
    assert gpt2.end_of_text == 50256
    assert gpt2.vocab_size == 50257


def test_both_pairs_of_file_names(gpt2, published):
    other = GPT2Tokenizer.from_directory(str(published["hugging face"]))
    assert all(other.encode(text) == gpt2.encode(text) for text in ODD_TEXTS)
    assert all(has_tokenizer_files(directory) for directory in published.values())


def test_equal_to_transformers_on_messages_and_odd_texts(gpt2, published, shared):
    theirs = theirs_from(published["hugging face"])
    messages = (shared / "data/sms_spam/SMSSpamCollection").read_text(encoding="utf-8").splitlines()[:1000]
    different = [text for text in messages + ODD_TEXTS if gpt2.encode(text) != their_ids(theirs, text)]
    assert not different


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_survives(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_a_message_cannot_smuggle_in_the_end_of_text(gpt2):
    text = f"one{END_OF_TEXT}two {END_OF_TEXT}"
    ids = gpt2.encode(text)
    assert gpt2.end_of_text not in ids
    assert gpt2.decode(ids) == text
    assert gpt2.decode([gpt2.end_of_text]) == END_OF_TEXT  # as a padding id it still has a text


def test_a_single_text_gets_no_special_tokens_and_a_pair_a_newline(gpt2):
    assert gpt2.build([1, 2, 3]) == ([1, 2, 3], None)
    assert gpt2.build([1, 2, 3], max_length=2) == ([1, 2], None)
    pair, types = gpt2.build(gpt2.encode("one two"), gpt2.encode("three"))
    assert (gpt2.decode(pair), types) == ("one two\nthree", None)
    assert gpt2.build([1, 2, 3], [4], max_length=4) == ([1, 2, 198, 4], None)
    assert (gpt2.pad_id, gpt2.mask_id, gpt2.special_ids) == (50256, None, {50256})


# RoBERTa


@pytest.fixture(scope="module")
def roberta_files(shared) -> Path:
    return shared / "tokenizers/roberta-base"


@pytest.fixture(scope="module")
def roberta(roberta_files) -> RobertaTokenizer:
    return load_tokenizer(roberta_files)


@pytest.fixture(scope="module")
def their_roberta(roberta_files):
    from transformers import RobertaTokenizerFast

    return RobertaTokenizerFast.from_pretrained(roberta_files)


def test_published_ids_of_roberta(roberta):
    assert roberta.build(roberta.encode("Hello world")) == ([0, 31414, 232, 2], None)
    assert roberta.build([7], [8]) == ([0, 7, 2, 2, 8, 2], None)
    assert (roberta.pad_id, roberta.mask_id, roberta.vocab_size) == (1, 50264, 50265)
    assert roberta.special_ids == {0, 1, 2, 3, 50264}
    assert roberta.decode([0, 31414, 232, 50264, 2]) == "<s>Hello world<mask></s>"


def test_roberta_equals_transformers_on_all_real_texts_and_generated_unicode(roberta, their_roberta, shared):
    texts = real_texts(shared / "data") + ODD_TEXTS + generated_texts(10_000)
    theirs = their_roberta.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    different = [text for text, row in zip(texts, theirs, strict=True) if roberta.encode(text) != row.ids]
    assert not different[:3]


@pytest.mark.parametrize("max_length", [32, 64])
def test_pairs_of_roberta_equal_transformers(roberta, their_roberta, shared, max_length):
    pairs = rte_pairs(shared / "data")
    first, second = map(list, zip(*pairs, strict=True))
    theirs = their_roberta(first, second, truncation=True, max_length=max_length)["input_ids"]
    ours = [roberta.build(roberta.encode(text), roberta.encode(pair), max_length)[0] for text, pair in pairs]
    assert ours == theirs
    assert max(map(len, ours)) == max_length


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_survives_roberta(roberta, text):
    assert roberta.decode(roberta.encode(text)) == text


def test_a_text_cannot_smuggle_in_a_special_token_of_roberta(roberta):
    text = "<s>one</s><mask> <pad><|endoftext|>"
    assert not roberta.special_ids.intersection(roberta.encode(text))
    assert roberta.decode(roberta.encode(text)) == text


# Which tokenizer a directory holds


def save_roberta(directory: Path) -> Path:
    """A small vocabulary of RoBERTa's kind: special tokens first, the others in an order that isn't that of the merges."""
    save_tokenizer(learn_merges(TEXTS, 40), directory)
    vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(vocab), "<mask>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    return directory


def save_wordpiece(directory: Path) -> Path:
    (directory / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\nlow\n")
    return directory


def test_the_kind_is_found_out_from_the_files(learned, tmp_path, shared):
    assert type(load_tokenizer(learned)) is GPT2Tokenizer
    assert type(load_tokenizer(save_roberta(tmp_path / "roberta"))) is RobertaTokenizer
    assert type(load_tokenizer(save_wordpiece(tmp_path))) is WordPieceTokenizer
    assert type(load_tokenizer(shared / "tokenizers/gpt2")) is GPT2Tokenizer
    assert all(has_tokenizer_files(directory) for directory in (learned, tmp_path, tmp_path / "roberta"))


def test_the_model_type_decides_where_the_files_leave_it_open(learned):
    save_wordpiece(learned)
    for model_type, kind in {"gpt2": GPT2Tokenizer, "distilbert": WordPieceTokenizer, "other": WordPieceTokenizer}.items():
        (learned / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert type(load_tokenizer(learned)) is kind
    for broken in ("", "[]", '{"model_type": []}', "{}"):
        (learned / "config.json").write_text(broken)
        assert type(load_tokenizer(learned)) is WordPieceTokenizer
    assert type(load_tokenizer(learned, "gpt2")) is GPT2Tokenizer


def test_an_encoder_may_have_the_vocabulary_of_another(tmp_path):
    """Which it is, tokenizer_config.json says; a decoder's name there changes nothing."""
    save_wordpiece(tmp_path)
    named = {"BertTokenizer": WordPieceTokenizer, "RobertaTokenizer": RobertaTokenizer, "GPT2Tokenizer": RobertaTokenizer}
    for name, kind in named.items():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert tokenizer_beside(tmp_path, RobertaTokenizer) is kind
        assert tokenizer_beside(tmp_path, GPT2Tokenizer) is GPT2Tokenizer
    model_config = RobertaConfig(vocab_size=100)
    with pytest.raises(UserError, match="no RoBERTa tokenizer files"):
        read_tokenizer(tmp_path, model_config)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert read_tokenizer(tmp_path, model_config).pad_id == SPECIAL_TOKENS.index("[PAD]")


def test_the_kind_of_a_tokenizer_json(learned, tmp_path):
    for kind, directory in {GPT2Tokenizer: learned, RobertaTokenizer: save_roberta(tmp_path / "roberta")}.items():
        vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
        merges = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        expected = load_tokenizer(directory).encode("hello lowest")
        (directory / "vocab.json").unlink()
        content = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "normalizer": None}
        (directory / "tokenizer.json").write_text(json.dumps(content))
        assert type(load_tokenizer(directory)) is kind
        assert load_tokenizer(directory).encode("hello lowest") == expected
    content["model"] = {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(SPECIAL_TOKENS)}}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    assert type(load_tokenizer(directory)) is WordPieceTokenizer


def test_no_tokenizer_and_no_such_kind(tmp_path):
    assert not has_tokenizer_files(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer files \(tokenizer.json or vocab.json \+ .* or ice_text.model\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="unknown kind of tokenizer 'bpe': choose gpt2, roberta, wordpiece"):
        load_tokenizer(tmp_path, "bpe")
    with pytest.raises(UserError, match="has no RoBERTa tokenizer files"):
        load_tokenizer(save_wordpiece(tmp_path), "roberta")


# A vocabulary of our own


@pytest.fixture
def learned(tmp_path) -> Path:
    directory = tmp_path / "new" / "vocabulary"
    save_tokenizer(learn_merges(TEXTS, 40), directory)
    return directory


def test_a_learned_vocabulary_reads_back_and_keeps_any_text(learned):
    tokenizer = GPT2Tokenizer.from_directory(learned)
    assert tokenizer.vocab_size == 256 + 40 + 1
    assert tokenizer.end_of_text == 296
    for text in ODD_TEXTS + TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("hello")) < 5  # its merges are used


def test_transformers_reads_a_learned_vocabulary_alike(learned):
    ours, theirs = GPT2Tokenizer.from_directory(learned), theirs_from(learned)
    different = [text for text in ODD_TEXTS + TEXTS if ours.encode(text) != their_ids(theirs, text)]
    assert not different
    assert theirs.convert_tokens_to_ids(END_OF_TEXT) == ours.end_of_text


# Broken files


def refused(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        GPT2Tokenizer.from_directory(directory)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert str(directory) in line
    return line


def test_missing_files_name_both_pairs(learned):
    (learned / "merges.txt").unlink()
    line = refused(learned)
    assert all(name in line for names in BPE_FILE_SETS for name in names)
    assert not has_tokenizer_files(learned)


def test_files_of_different_vocabularies(learned):
    lines = (learned / "merges.txt").read_text(encoding="utf-8").splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    (learned / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    assert "token 258" in refused(learned)


def test_more_merges_than_the_vocabulary_holds(learned):
    with (learned / "merges.txt").open("a", encoding="utf-8") as merges:
        merges.write("zz zz\n")
    assert "token 296 is 'zzzz'" in refused(learned)


def test_a_vocabulary_in_another_order_of_bytes(learned):
    vocab = json.loads((learned / "vocab.json").read_text(encoding="utf-8"))
    vocab["!"], vocab['"'] = vocab['"'], vocab["!"]
    (learned / "vocab.json").write_text(json.dumps(vocab))
    assert "token 0 is '!'" in refused(learned)


def test_merges_of_characters_that_stand_for_no_byte(learned):
    vocab = json.loads((learned / "vocab.json").read_text(encoding="utf-8"))
    vocab |= {"汉字": 296, END_OF_TEXT: 297}
    (learned / "vocab.json").write_text(json.dumps(vocab))
    with (learned / "merges.txt").open("a", encoding="utf-8") as merges:
        merges.write("汉 字\n")
    assert "汉" in refused(learned)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"a": 0}', b"\xff\xfe"])
def test_a_broken_vocabulary(learned, content):
    (learned / "vocab.json").write_bytes(content)
    refused(learned)


@pytest.mark.parametrize("end_of_text", [5, -1, "296", None, 2.5, True, 10**20])
def test_an_impossible_end_of_text(learned, end_of_text):
    vocab = json.loads((learned / "vocab.json").read_text(encoding="utf-8"))
    (learned / "vocab.json").write_text(json.dumps(vocab | {END_OF_TEXT: end_of_text}))
    assert END_OF_TEXT in refused(learned)


def test_fewer_merges_than_the_vocabulary_holds(learned):
    lines = (learned / "merges.txt").read_text(encoding="utf-8").splitlines()
    (learned / "merges.txt").write_text("\n".join(lines[:-2]), encoding="utf-8")
    assert f"{''.join(lines[-2].split())!r} (and 1 more), which no merge makes" in refused(learned)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda vocab: vocab.pop("<pad>"), "has no entry <pad>"),
        (lambda vocab: vocab.pop("lo"), "'lo' by the merges, but the vocabulary gives it the id None"),
        (lambda vocab: vocab.update({"lo": 5}), "each given once"),
        (lambda vocab: vocab.update({"lo": "x"}), "gives lo the id 'x'"),
        (lambda vocab: vocab.update({"zzz": 1000}), "'zzz'"),
    ],
)
def test_a_broken_vocabulary_of_roberta(tmp_path, change, expected):
    directory = save_roberta(tmp_path / "roberta")
    vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    change(vocab)
    (directory / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError) as caught:
        load_tokenizer(directory, "roberta")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_merges_that_are_no_text(learned):
    (learned / "merges.txt").write_bytes(b"\xff\xfe\x00")
    refused(learned)
