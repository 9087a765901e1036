"""BERT's WordPiece against the reference library's."""

import json
import time
import unicodedata
from pathlib import Path

import pytest

from model.tokenizers.base import longest_first
from model.tokenizers.files import has_tokenizer_files
from model.tokenizers.load import load_tokenizer
from model.tokenizers.wordpiece import MAX_WORD, SPECIAL_TOKENS, BasicTokenizer, WordPieceTokenizer
from tests.helpers.texts import ODD_TEXTS, SENTENCES, generated_texts, real_texts, rte_pairs, sst2, unchanged_since_2002
from tools.learn_vocabulary import learn_vocabulary, save_vocabulary
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # reads all real texts


def theirs_from(directory: Path, **settings):
    from transformers import BertTokenizerFast

    return BertTokenizerFast.from_pretrained(directory, **settings)


def differences(ours: WordPieceTokenizer, theirs, texts: list[str]) -> list[tuple[str, list[int], list[int]]]:
    backend = theirs.backend_tokenizer
    backend.encode_special_tokens = True  # "[SEP]" inside a text is text, as in ours
    rows = [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
    pairs = ((text, ours.encode(text), row) for text, row in zip(texts, rows, strict=True))
    return [(text, mine, row) for text, mine, row in pairs if mine != row]


@pytest.fixture(scope="module")
def cased(tmp_path_factory) -> Path:
    """A vocabulary that keeps case and accents."""
    directory = tmp_path_factory.mktemp("cased")
    save_vocabulary(learn_vocabulary(SENTENCES + ODD_TEXTS, 300, lower_case=False), directory, lower_case=False)
    return directory


@pytest.fixture(scope="module")
def vocabularies(shared, tmp_path_factory) -> dict[str, Path]:
    larger = tmp_path_factory.mktemp("larger")
    texts = [text for pair in rte_pairs(shared / "data")[::10] for text in pair] + generated_texts(500, seed=1)
    save_vocabulary(learn_vocabulary(texts, 4000, lower_case=False), larger, lower_case=False)
    published = {name: shared / "tokenizers" / name for name in ("bert-base-uncased", "scibert-scivocab-uncased")}
    return published | {"cased": larger}


NAMES = ["bert-base-uncased", "scibert-scivocab-uncased", "cased"]


@pytest.fixture(scope="module")
def bert(vocabularies) -> WordPieceTokenizer:
    return load_tokenizer(vocabularies["bert-base-uncased"])


# Against the reference library


def test_published_ids(bert):
    assert bert.build(bert.encode("Hello world")) == ([101, 7592, 2088, 102], [0, 0, 0, 0])
    assert bert.encode("unaffable") == [14477, 20961, 3468]  # un ##aff ##able
    assert (bert.pad_id, bert.unknown_id, bert.mask_id, bert.vocab_size) == (0, 100, 103, 30522)
    assert bert.special_ids == {0, 100, 101, 102, 103}


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_equal_to_transformers_on_all_real_texts(vocabularies, shared, name):
    texts = real_texts(shared / "data")
    assert len(texts) > 90_000
    assert not differences(load_tokenizer(vocabularies[name]), theirs_from(vocabularies[name]), texts)[:3]


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_transformers_on_generated_unicode(vocabularies, name):
    texts = ODD_TEXTS + generated_texts(10_000)
    assert not differences(load_tokenizer(vocabularies[name]), theirs_from(vocabularies[name]), texts)[:3]


@pytest.mark.parametrize("max_length", [32, 64])
def test_pairs_equal_transformers(vocabularies, bert, shared, max_length):
    pairs = rte_pairs(shared / "data")
    first, second = map(list, zip(*pairs, strict=True))
    theirs = theirs_from(vocabularies["bert-base-uncased"])
    rows = theirs(first, second, truncation=True, max_length=max_length, split_special_tokens=True)
    assert max(map(len, rows["input_ids"])) == max_length
    for i, (text, pair) in enumerate(pairs):
        ours = bert.build(bert.encode(text), bert.encode(pair), max_length)
        assert ours == (rows["input_ids"][i], rows["token_type_ids"][i]), pair


# Whether letters become lower-case, accents go, and ideographs stand alone. None: as the letters
SETTINGS = [
    (low, strip, ideographs) for low in (True, False) for strip in (None, True, False) for ideographs in (True, False)
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_settled_character_is_treated_alike(settings):
    """All characters whose category hasn't changed since Unicode 3.2, one by one, between two letters."""
    from tokenizers import normalizers, pre_tokenizers

    low, strip, ideographs = settings
    normalizer = normalizers.BertNormalizer(lowercase=low, strip_accents=strip, handle_chinese_chars=ideographs)
    split = pre_tokenizers.BertPreTokenizer()
    ours = BasicTokenizer(*settings)
    # private use and Hangul, 148,000 of them, are uniform: every 50th
    codes = [c for c in range(0x110000) if c % 50 == 0 or not (0xAC00 <= c < 0xD7A4 or 0xE000 <= c < 0xF900 or c > 0xEFFFF)]
    settled = [chr(code) for code in codes if unchanged_since_2002(code)]
    assert len(settled) > 80_000
    for start in range(0, len(settled), 500):
        text = " . ".join(f"a{character}B" for character in settled[start : start + 500])
        theirs = [word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))]
        assert ours.words(text) == theirs, f"{start}: U+{ord(settled[start]):04X} and the next 499"


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_are_those_of_tokenizer_config(cased, tmp_path, settings):
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    content = dict(zip(names, settings, strict=True))
    (tmp_path / "vocab.txt").write_bytes((cased / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    texts = SENTENCES + ODD_TEXTS + generated_texts(500, seed=2)
    assert not differences(load_tokenizer(tmp_path), theirs_from(cased, **content), texts)


@pytest.mark.parametrize("settings", SETTINGS)
def test_tokenizer_json_alone(cased, tmp_path, settings):
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    theirs = theirs_from(cased, **dict(zip(names, settings, strict=True)))
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert has_tokenizer_files(tmp_path)
    assert not differences(load_tokenizer(tmp_path), theirs, SENTENCES + ODD_TEXTS + generated_texts(500, seed=3))


def test_lower_case_unless_told_otherwise(cased, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((cased / "vocab.txt").read_bytes())
    assert load_tokenizer(tmp_path).basic.words("Ünder The") == ["under", "the"]
    assert load_tokenizer(cased).basic.words("Ünder The") == ["Ünder", "The"]


# What the reference library doesn't settle


def test_a_text_cannot_smuggle_in_a_special_token(bert):
    text = "one [SEP] two[CLS][MASK][PAD] [UNK]"
    assert not bert.special_ids.intersection(bert.encode(text))
    assert bert.decode(bert.encode(text)) == "one [ sep ] two [ cl ##s ] [ mask ] [ pad ] [ un ##k ]".replace(" ##", "")


def test_a_word_of_100_characters_is_the_longest(bert):
    assert bert.unknown_id not in bert.encode("a" * MAX_WORD)
    assert bert.encode("a" * (MAX_WORD + 1)) == [bert.unknown_id]


def test_unassigned_characters_and_lone_surrogates_do_no_harm(bert):
    assert unicodedata.category("\u0378") == "Cn"
    assert bert.basic.words("a\u0378b") == ["a\u0378b"]
    assert bert.basic.words("a\ud800b") == ["ab"]


def test_decoding_equals_transformers(bert, vocabularies, shared):
    theirs = theirs_from(vocabularies["bert-base-uncased"])
    for text in sst2(shared / "data", "dev")[:100]:
        ids = bert.build(bert.encode(text))[0]
        words = theirs.convert_ids_to_tokens(ids)
        assert bert.decode(ids) == " ".join(words).replace(" ##", "")
        assert bert.encode(bert.decode(ids[1:-1])) == ids[1:-1]


def test_speed(vocabularies, shared):
    """At least 50,000 tokens a second on one core, the best of three, each with nothing remembered from the one before."""
    texts = sst2(shared / "data", "dev") + sst2(shared / "data", "train")[:10_000]
    rates = []
    for _ in range(3):
        tokenizer = load_tokenizer(vocabularies["bert-base-uncased"])
        started = time.process_time()
        n = sum(len(tokenizer.encode(text)) for text in texts)
        rates.append(n / (time.process_time() - started))
    assert max(rates) >= 50_000


def test_remembered_words_are_bounded(bert):
    assert 0 < bert._pieces.cache_info().maxsize < 10**6


# Special tokens and truncation


@pytest.mark.parametrize("max_length", range(3, 13))
def test_truncation_equals_transformers(vocabularies, bert, max_length):
    theirs = theirs_from(vocabularies["bert-base-uncased"])
    word = bert.encode("a")
    lengths = [(n, n_pair) for n in range(8) for n_pair in range(8)]
    # lists: of two single texts the library drops an empty second one
    first, second = (["a " * n for n in column] for column in zip(*lengths, strict=True))
    pairs = theirs(first, second, truncation=True, max_length=max_length)
    singles = theirs(first, truncation=True, max_length=max_length)
    for i, (n, n_pair) in enumerate(lengths):
        pair = bert.build(word * n, word * n_pair, max_length)
        assert pair == (pairs["input_ids"][i], pairs["token_type_ids"][i]), (n, n_pair)
        assert bert.build(word * n, max_length=max_length) == (singles["input_ids"][i], singles["token_type_ids"][i])


@pytest.mark.parametrize("lengths", [(9, 9, 0), (9, 9, 7), (3, 9, 8), (9, 3, 8), (0, 9, 5), (4, 4, 8), (4, 4, 9)])
def test_longest_first(lengths):
    n, n_pair, room = lengths
    kept = longest_first(n, n_pair, room)
    assert sum(kept) == min(n + n_pair, room)
    assert kept[0] <= n
    assert kept[1] <= n_pair


def test_a_length_without_room_for_the_special_tokens(bert):
    assert bert.build([7], [8], 3) == ([101, 102, 102], [0, 0, 1])
    with pytest.raises(UserError, match="a length of 2 is too short: the special tokens alone take 3"):
        bert.build([7], [8], 2)


def test_build_leaves_its_arguments_alone(bert):
    ids, pair = [1, 2, 3], [4, 5, 6]
    bert.build(ids, pair, 5)
    assert (ids, pair) == ([1, 2, 3], [4, 5, 6])


# A vocabulary of our own


@pytest.mark.parametrize("lower_case", [True, False])
def test_a_learned_vocabulary_reads_back_and_transformers_reads_it_alike(tmp_path, lower_case):
    directory = tmp_path / "new" / "vocabulary"
    tokens = learn_vocabulary(SENTENCES, 1000, lower_case)
    save_vocabulary(tokens, directory, lower_case)
    ours = load_tokenizer(directory)
    assert ours.vocab_size == len(tokens)
    assert [ours.pad_id, ours.unknown_id, *ours.start, *ours.end, ours.mask_id] == [0, 1, 2, 3, 4]
    assert len(ours.encode("The quick newest")) == 3
    assert not differences(ours, theirs_from(directory), SENTENCES + ODD_TEXTS)
    assert sorted(path.name for path in directory.iterdir()) == ["tokenizer_config.json", "vocab.txt"]


# Broken files


@pytest.fixture
def folder(tmp_path) -> Path:
    save_vocabulary(learn_vocabulary(SENTENCES, 100), tmp_path)
    return tmp_path


def refused(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_tokenizer(directory, "wordpiece")
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert str(directory) in line
    return line


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_missing_special_token(folder, token):
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    (folder / "vocab.txt").write_text("\n".join(line for line in lines if line != token), encoding="utf-8")
    if token == "[MASK]":
        assert load_tokenizer(folder).mask_id is None  # only masked language modelling needs it
    else:
        assert token in refused(folder)


def test_a_repeated_line(folder):
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("[CLS]\n")
    assert "'[CLS]' stands in line 3 and again in line" in refused(folder)


def test_windows_line_ends_and_an_empty_line(folder):
    expected = load_tokenizer(folder).encode("the newest")
    content = (folder / "vocab.txt").read_bytes() + b"\n\n"
    (folder / "vocab.txt").write_bytes(content.replace(b"\n", b"\r\n"))
    assert load_tokenizer(folder).encode("the newest") == expected


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n", b"\xff\xfe", b"the\nof\n"])
def test_a_broken_vocabulary(folder, content):
    (folder / "vocab.txt").write_bytes(content)
    refused(folder)


def test_no_files(tmp_path):
    assert "vocab.txt" in refused(tmp_path)


VOCAB = {token: i for i, token in enumerate(SPECIAL_TOKENS)}


@pytest.mark.parametrize(
    "model",
    [
        None,
        {},
        {"type": "BPE", "vocab": VOCAB},
        {"type": "WordPiece", "vocab": {}},
        {"type": "WordPiece", "vocab": []},
        {"type": "WordPiece", "vocab": {"a": 0}},
        {"type": "WordPiece", "vocab": VOCAB | {"a": 0}},
        {"type": "WordPiece", "vocab": VOCAB | {"a": "5"}},
        {"type": "WordPiece", "vocab": VOCAB | {"a": -1}},
        {"type": "WordPiece", "vocab": VOCAB, "continuing_subword_prefix": "@@"},
        {"type": "WordPiece", "vocab": VOCAB, "max_input_chars_per_word": 50},
    ],
)
def test_a_broken_tokenizer_json(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "normalizer": None}))
    refused(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"do_lower_case": "yes"}', '{"strip_accents": 1}'])
def test_broken_settings(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    assert "tokenizer_config.json" in refused(folder)


def test_another_normalizer(tmp_path):
    content = {"model": {"type": "WordPiece", "vocab": VOCAB}, "normalizer": {"type": "Precompiled"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "'Precompiled'" in refused(tmp_path)
