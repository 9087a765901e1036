"""What a tokenizer's JSON files say is done as in transformers, or refused by its name."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from model.tokenizers.load import load_tokenizer
from model.tokenizers.settings import CONFIG
from tests.helpers.paths import ROOT
from tests.helpers.texts import ODD_TEXTS
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # tokenizers, beside the library's

POCKET = {"gpt2": ROOT / "model/pocket/gpt2-pocket", "distilbert": ROOT / "model/pocket/distilbert-pocket"}
WORDS = ("glorbitan", "[MENTION]", "ABC", "naïve ", "Ⅷ", "the")
TEXTS = [
    *ODD_TEXTS,
    "The River ran 2024 miles.",
    "Ⅱ ﬁne Ａ ½ x2y33",
    "Call 07700 900123 NOW",
    "we gave glorbitan to[MENTION]  today, glorbitan's preglorbitan abc ABC aABC ABC_ the theATRE THE",
    "naïve  naïve café Ⅷ  <|user|>  <|bot|> end\n<|user|>",
    "   leading, trailing   ",
]
whole = {"tokenizer_class": "PreTrainedTokenizerFast"}


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Path]:
    """The shipped tokenizers as the library saves them: one tokenizer.json."""
    folders = {}
    for kind, pocket in POCKET.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        transformers.AutoTokenizer.from_pretrained(pocket).save_pretrained(folders[kind])
        shutil.copy(pocket / "config.json", folders[kind])
    return folders


@pytest.fixture
def variant(plain, tmp_path):
    """Make a copy with changes to tokenizer.json and tokenizer_config.json."""

    def make(kind: str, change=lambda content: None, config=None) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(plain[kind], folder)
        edit(folder / "tokenizer.json", change)
        edit(folder / "tokenizer_config.json", lambda content: content.update(config or {}))
        return folder

    return make


def differences(folder: Path) -> list:
    """The texts of which our ids aren't theirs. Special tokens that a text names are text here."""
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [(text, ours.encode(text), theirs.encode(text, add_special_tokens=False)) for text in TEXTS]
    return [(text, mine, other) for text, mine, other in pairs if mine != other]


def section(name: str, value):
    return lambda content: content.update({name: value})


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BPE = {
    "lower case": section("normalizer", {"type": "Lowercase"}),
    **{form: section("normalizer", {"type": form}) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "no accents": section("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}),
    "stripped": section("normalizer", {"type": "Strip", "strip_left": True, "strip_right": False}),
    "in front": section("normalizer", {"type": "Prepend", "prepend": "▁"}),
    "replaced": section("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
    "a space in front": section("pre_tokenizer", BYTES | {"add_prefix_space": True}),
    "no pattern": section("pre_tokenizer", BYTES | {"use_regex": False}),
    **{
        f"digits {individual} {prefix}": section(
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": individual},
                    BYTES | {"add_prefix_space": prefix},
                ],
            },
        )
        for individual in (True, False)
        for prefix in (True, False)
    },
}


@pytest.mark.parametrize("name", BPE)
def test_the_steps_of_a_byte_level_tokenizer(variant, name):
    folder = variant("gpt2", BPE[name], whole)
    assert not differences(folder)
    as_it_was = load_tokenizer(POCKET["gpt2"])
    assert any(load_tokenizer(folder).encode(text) != as_it_was.encode(text) for text in TEXTS)


WORDPIECE = {
    "cased": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False},
    "accents": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": False, "strip_accents": False},
    "two steps": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "BertNormalizer", "clean_text": True}]},
    "lower case alone": {"type": "Lowercase"},
}


@pytest.mark.parametrize("name", WORDPIECE)
def test_the_steps_of_a_wordpiece_tokenizer(variant, name):
    def change(content):
        steps = WORDPIECE[name].get("normalizers", [WORDPIECE[name]])
        defaults = {"handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
        full = [defaults | step if step["type"] == "BertNormalizer" else step for step in steps]
        content["normalizer"] = {"type": "Sequence", "normalizers": full} if len(full) > 1 else full[0]

    assert not differences(variant("distilbert", change, whole))


@pytest.mark.parametrize("said", [{"add_prefix_space": True}, {"add_prefix_space": False}, {}])
def test_a_prefix_space_is_that_of_the_configuration(variant, said):
    folder = variant("gpt2", BPE["a space in front"])
    edit(folder / "tokenizer_config.json", lambda content: content.pop("add_prefix_space"))
    edit(folder / "tokenizer_config.json", lambda content: content.update(said))
    assert not differences(folder)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("saved", [True, False])
def test_a_prefix_space_of_roberta(shared, tmp_path, prefix, saved):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "tokenizers/roberta-base" / name, tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda content: content.update(add_prefix_space=prefix))
    edit(tmp_path / "config.json", lambda content: content.update(model_type="roberta"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if saved:
        theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.build(ours.encode("world peace"))[0] == [0, 232 if prefix else 8331, 1987, 2]
    assert not [text for text in TEXTS if ours.build(ours.encode(text))[0] != theirs(text)["input_ids"]]


# Added tokens

FLAGS = {
    "plain": {},
    "as written": {"normalized": False},
    "special": {"special": True, "normalized": False},
    "special and normalized": {"special": True, "normalized": True},
    "left": {"lstrip": True},
    "right": {"rstrip": True, "normalized": False},
    "both sides": {"lstrip": True, "rstrip": True},
    "single word": {"single_word": True},
    "all": {"single_word": True, "lstrip": True, "rstrip": True, "normalized": False},
}


def save_with_tokens(kind: str, folder: Path, words=WORDS, **flags) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET[kind])
    tokenizer.add_tokens([transformers.AddedToken(word, **flags) for word in words])
    tokenizer.save_pretrained(folder)
    shutil.copy(POCKET[kind] / "config.json", folder)
    return folder


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", POCKET)
def test_added_tokens_with_their_flags(tmp_path, kind, flags):
    folder = save_with_tokens(kind, tmp_path, **FLAGS[flags])
    assert not differences(folder)
    ours = load_tokenizer(folder)
    assert ours.vocab_size == load_tokenizer(POCKET[kind]).vocab_size + 5  # "the" was a token before
    assert ours.decode([ours.vocab_size - 1]) == "Ⅷ"
    special = {ours.encode(word)[0] for word in WORDS} if "special" in flags else set()
    assert special <= ours.special_ids


@pytest.mark.parametrize("kind", POCKET)
def test_added_tokens_of_older_files(tmp_path, kind):
    folder = tmp_path / "older"
    shutil.copytree(POCKET[kind], folder)
    size = load_tokenizer(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"glorbitan": size, "<|user|>": size + 1}))
    assert not differences(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|user|>", "<|bot|>"]}))
    assert not differences(folder)
    ours = load_tokenizer(folder)
    assert ours.encode("<|user|><|bot|>") == [size + 1, size + 2]
    assert {size + 1, size + 2} <= ours.special_ids and size not in ours.special_ids


@pytest.mark.parametrize("kind", POCKET)
def test_added_tokens_of_the_configuration(tmp_path, kind):
    folder = tmp_path / "config"
    shutil.copytree(POCKET[kind], folder)
    size = load_tokenizer(folder).vocab_size
    token = {"content": "glorbitan", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    changes = {"added_tokens_decoder": {str(size): token | {"special": False}}, "additional_special_tokens": ["<|bot|>"]}
    edit(folder / "tokenizer_config.json", lambda content: content.update(changes))
    assert not differences(folder)
    assert load_tokenizer(folder).encode(" glorbitan<|bot|>") == [size, size + 1]


A, B, C, P, Q = "<a>", "<b>", "<c>", "<p>", "<q>"


@pytest.mark.parametrize(
    "config, special",
    [
        ({"additional_special_tokens": [A, "good"]}, {"additional_special_tokens": [B]}),
        ({"extra_special_tokens": [A]}, {"additional_special_tokens": [B]}),
        ({"additional_special_tokens": [A]}, {"extra_special_tokens": [B]}),
        ({"additional_special_tokens": [A], "extra_special_tokens": [C]}, {}),
        ({"additional_special_tokens": [A]}, {"pad_token": P}),
        ({"pad_token": Q}, {"pad_token": P}),
        ({"eos_token": Q, "pad_token": P, "unk_token": C}, {}),
    ],
)
def test_special_tokens_of_two_files(tmp_path, config, special):
    folder = tmp_path / "two"
    shutil.copytree(POCKET["gpt2"], folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(config))
    edit(folder / "special_tokens_map.json", lambda content: content.update(special))
    text, theirs = f"x{A} {B}good {C}{P}{Q}", transformers.AutoTokenizer.from_pretrained(folder)
    assert load_tokenizer(folder).encode(text) == theirs.encode(text)


def test_an_id_that_the_library_would_not_give_is_refused(tmp_path):
    shutil.copytree(POCKET["gpt2"], tmp_path / "x")
    (tmp_path / "x/added_tokens.json").write_text(json.dumps({"glorbitan": 5000}))
    with pytest.raises(UserError, match="gives the token 'glorbitan' the id 5000; the library gives it 3057"):
        load_tokenizer(tmp_path / "x")


# Refused by name

REFUSED = [
    ("gpt2", section("normalizer", {"type": "Lowercase"}), {}, "normalizer .*'Lowercase'.* doesn't use"),
    ("gpt2", BPE["digits True False"], {}, "pre_tokenizer .* doesn't use; if it is meant, set tokenizer_class"),
    ("gpt2", section("normalizer", {"type": "Nmt"}), whole, "its normalizer is 'Nmt', which isn't supported"),
    ("gpt2", section("pre_tokenizer", {"type": "Whitespace"}), whole, "its pre_tokenizer is 'Whitespace'"),
    ("gpt2", section("pre_tokenizer", None), whole, "its pre_tokenizer is None; it must be ByteLevel"),
    ("gpt2", lambda content: content["model"].update(dropout=0.1), whole, "its model sets dropout to 0.1"),
    ("gpt2", lambda content: content["model"].update(ignore_merges=True), whole, "sets ignore_merges to True"),
    ("gpt2", section("rules", [1]), {}, r"tokenizer.json sets rules to \[1\], and what that means isn't known"),
    ("gpt2", lambda content: content["added_tokens"][0].update(fuzzy=1), {}, "sets fuzzy to 1"),
    ("gpt2", None, {"tokenizer_class": "LlamaTokenizer"}, "sets tokenizer_class to 'LlamaTokenizer'"),
    ("gpt2", None, {"truncation_side": "left"}, "sets truncation_side to 'left', .*; it must be 'right'"),
    ("gpt2", None, {"split_special_tokens": True}, "split_special_tokens"),
    ("gpt2", None, {"add_prefix_spaces": True}, "sets add_prefix_spaces to True, and what that means isn't known"),
    ("gpt2", None, {"add_prefix_space": "yes"}, "add_prefix_space is 'yes'; choose true or false"),
    ("distilbert", None, {"cls_token": "[SEP]"}, r"sets cls_token to '\[SEP\]', .*; it must be '\[CLS\]'"),
    ("distilbert", None, {"never_split": ["x"]}, "never_split"),
    ("distilbert", section("normalizer", {"type": "Lowercase"}), {}, "normalizer .*'Lowercase'.* doesn't use"),
    ("distilbert", section("pre_tokenizer", None), whole, "its pre_tokenizer is None; it must be BertPreTokenizer"),
    ("distilbert", section("post_processor", None), whole, r"must put \[CLS\] A \[SEP\] around a text"),
    ("distilbert", lambda content: content["model"].update(max_input_chars_per_word=50), {}, "max_input_chars_per_word"),
]


@pytest.mark.parametrize("kind, change, config, said", REFUSED, ids=[case[3][:40] for case in REFUSED])
def test_what_means_something_else_is_refused_by_name(variant, kind, change, config, said):
    with pytest.raises(UserError, match=said) as found:
        load_tokenizer(variant(kind, change or (lambda content: None), config))
    assert len(str(found.value).splitlines()) == 1


def test_case_that_only_tokenizer_json_knows_of_is_refused(variant):
    folder = variant("distilbert", lambda content: content["normalizer"].update(lowercase=False), {"do_lower_case": None})
    with pytest.raises(UserError, match="sets lowercase to False, but the library takes do_lower_case from"):
        load_tokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(do_lower_case=False))
    assert not differences(folder)


@pytest.mark.parametrize("kind, name", [("gpt2", "gpt2"), ("wordpiece", "distilbert")])
def test_every_harmless_key_of_the_configuration_changes_no_id(variant, kind, name):
    keys = dict.fromkeys(CONFIG[kind].names_of_harmless() - {"chat_template", "max_length", "stride", "truncation"}, "x")
    ours, before = load_tokenizer(variant(name, config=keys)), load_tokenizer(POCKET[name])
    assert [ours.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]


def test_tokenizer_json_comes_before_older_files_as_in_the_library(variant):
    folder = variant("gpt2", BPE["lower case"], whole)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(POCKET["gpt2"] / name, folder)
    assert not differences(folder)


# A vocabulary that the library has learned

LEARNED = ["low lower lowest newer newest wider", "banana bandana 2024", "naïve café"] * 40


@pytest.mark.parametrize("special", [[], ["<pad>", "<|user|>"]])
def test_a_new_byte_level_vocabulary_of_the_library(tmp_path, special):
    old = transformers.AutoTokenizer.from_pretrained(POCKET["gpt2"])
    new = old.train_new_from_iterator(LEARNED, 330, new_special_tokens=special)
    new.save_pretrained(tmp_path)
    shutil.copy(POCKET["gpt2"] / "config.json", tmp_path)
    assert new.get_vocab()["<|endoftext|>"] == 0
    ours = load_tokenizer(tmp_path)
    assert ours.end_of_text == 0 and ours.vocab_size == len(new) > 290
    assert not [text for text in TEXTS if ours.encode(text) != new.encode(text, add_special_tokens=False)]
    (tmp_path / "tokenizer.json").unlink()  # the same in two files
    new.backend_tokenizer.model.save(str(tmp_path))
    if not special:
        assert [load_tokenizer(tmp_path).encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_a_new_wordpiece_vocabulary_of_the_library(tmp_path):
    new = transformers.AutoTokenizer.from_pretrained(POCKET["distilbert"]).train_new_from_iterator(LEARNED, 90)
    new.save_pretrained(tmp_path)
    shutil.copy(POCKET["distilbert"] / "config.json", tmp_path)
    assert not differences(tmp_path)


# Long runs, on which tiktoken's pattern fails


@pytest.mark.parametrize("run", [" ", "\n", "\u3000", " \n\t", "a", "é", "7", "!"], ids=repr)
def test_long_runs_have_the_ids_of_shorter_ones_and_of_the_library(run):
    ours = load_tokenizer(POCKET["gpt2"])
    theirs = transformers.AutoTokenizer.from_pretrained(POCKET["gpt2"])
    for text in (run * 12_345, f"x{run * 12_345}y", f"{run * 12_345} y {run * 12_345}x  ", f"'{run * 20_001}'s"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("run", [" ", "\n", "\u3000", "a"], ids=repr)
def test_a_million_characters_of_one_kind(run):
    ours, text = load_tokenizer(POCKET["gpt2"]), f"x{run * 10**6}y"
    assert ours.decode(ours.encode(text)) == text
