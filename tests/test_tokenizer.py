"""GPT-2's tokenizer from its published files, and the learning of a vocabulary of our own."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from errors import UserError
from model.bpe import learn_merges, save_tokenizer
from model.tokenizer import END_OF_TEXT, FILE_SETS, GPT2_PATTERN, GPT2Tokenizer, byte_alphabet, has_tokenizer_files

ODD_TEXTS = [
    "",
    " ",
    "\n\n\t  \r\n x  \n",
    "don't we'll I'M they'Re",
    "naïve café ﬁ ﬂ",
    "汉字和假名ひらがな",
    "👩‍👩‍👧‍👦 🇨🇳 \U0001f600",
    "a\u0301\u0323 \u200b\u200d\ufeff\u00a0\u3000\u2028end",
    "١٢٣ ½ ² Ⅷ",
    "\x00\x01\x7f\x85",
    "x" * 300 + "!?" * 50,
    "עברית العربية हिन्दी",
]


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


# A vocabulary of our own

TEXTS = [
    "low lower lowest newer newest wider",
    "aaaa aaa aa aaaaaaa",
    "hello, hello! hello?",
    "banana bandana",
    "汉字汉字 😀😀",
]


def naive_merges(texts: list[str], n_merges: int) -> list[tuple[str, str]]:
    """Algorithm 1 as the paper prints it: count every pair anew in each round."""
    alphabet = byte_alphabet()
    words = Counter(
        tuple(alphabet[byte] for byte in word.encode()) for text in texts for word in regex.findall(GPT2_PATTERN, text)
    )
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        joined = Counter()
        for word, times in words.items():
            symbols, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                symbols.append("".join(word[i : i + step]))
                i += step
            joined[tuple(symbols)] += times
        words = joined
    return merges


@pytest.mark.parametrize("n_merges", [0, 1, 7, 25, 10_000])
def test_learned_merges_equal_the_naive_algorithm(n_merges):
    merges = learn_merges(TEXTS, n_merges)
    assert merges == naive_merges(TEXTS, n_merges)
    assert len(merges) == n_merges or n_merges == 10_000
    assert len({first + second for first, second in merges}) == len(merges)  # no token twice, so that ids are unique


def test_learned_merges_equal_the_naive_algorithm_on_messages(shared):
    texts = (shared / "data/sms_spam/SMSSpamCollection").read_text(encoding="utf-8").splitlines()[:150]
    assert learn_merges(texts, 120) == naive_merges(texts, 120)


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
    assert all(name in line for names in FILE_SETS for name in names)
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


def test_merges_that_are_no_text(learned):
    (learned / "merges.txt").write_bytes(b"\xff\xfe\x00")
    refused(learned)
