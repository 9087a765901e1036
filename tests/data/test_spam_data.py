"""The spam task: the published split to the last byte, the quality of the shipped set, and what broken files are told."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from data.registry import TASKS, get_task
from data.spam import FILE, LABELS, read_collection, read_pocket, read_spam
from model.tokenizers.bpe import GPT2Tokenizer
from tests.helpers.paths import ROOT
from utils.errors import UserError

POCKET = ROOT / "data" / "pocket" / FILE
GOOD = [f"ham\thello number {i}" for i in range(6)] + [f"spam\tprize number {i}" for i in range(5)]


def normalised(text: str) -> str:
    """Two messages that differ only in case, spaces or punctuation are the same message."""
    return re.sub(r"[\W_]", "", text.lower())


# The published split of the real messages


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_the_split_is_the_published_one(shared: Path, name: str):
    golden = json.loads((shared / "golden" / "spam_split.json").read_text())[name]
    examples = read_spam(shared / "data")[name]
    assert len(examples) == golden["rows"]
    assert sum(example.label for example in examples) == golden["spam"]
    lines = "".join(f"{example.label}\t{example.text}\n" for example in examples)
    assert hashlib.sha256(lines.encode()).hexdigest() == golden["sha256_of_label_tab_text_newline"]

    tokenizer = GPT2Tokenizer.from_directory(shared / "tokenizers" / "gpt2")
    lengths = [len(tokenizer.encode(example.text)) for example in examples]
    assert max(lengths) == golden["gpt2_tokens_max"]
    assert sum(lengths) / len(lengths) == pytest.approx(golden["gpt2_tokens_mean"], abs=5e-5)  # published with 4 digits


def test_the_real_file_has_the_rows_that_csv_sees(shared: Path):
    examples = read_collection(shared / "data" / FILE)
    assert len(examples) == 5572  # of 5,574 lines: csv lets quoted texts run over two line ends
    assert sum(example.label for example in examples) == 747
    assert TASKS["spam"].labels == LABELS and LABELS[1] == "spam"  # the golden hashes count spam as 1


# The shipped, synthetic messages


def test_the_shipped_messages_are_many_and_distinct():
    messages = [normalised(example.text) for example in read_collection(POCKET)]
    assert "" not in messages
    assert len(set(messages)) == len(messages)
    assert len(messages) >= 1400


def test_the_shipped_split_is_balanced_and_shares_nothing():
    splits = read_pocket(None)
    messages = [example for examples in splits.values() for example in examples]
    assert len(messages) >= 1400
    assert 2 * sum(example.label for example in messages) == len(messages)
    n = len(messages)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [
        int(n * 0.7),
        int(n * 0.1),
        n - int(n * 0.7) - int(n * 0.1),
    ]
    for name, examples in splits.items():
        assert 0.4 < sum(example.label for example in examples) / len(examples) < 0.6, name
    assert len({normalised(example.text) for example in messages}) == n


def test_the_shipped_messages_hold_none_of_the_real_ones(shared: Path):
    real = {normalised(example.text) for example in read_collection(shared / "data" / FILE)}
    ours = {normalised(example.text) for example in read_collection(POCKET)}
    assert not real & ours


def test_the_shipped_set_needs_more_than_single_words():
    """If counting words solved it, the set couldn't tell good fine-tuning from bad; nor may it be beyond learning."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.linear_model import LogisticRegression

    splits = read_pocket(None)
    words, classifier = text.CountVectorizer(), LogisticRegression(max_iter=2000)
    train, test = splits["train"], splits["test"]
    classifier.fit(words.fit_transform([one.text for one in train]), [one.label for one in train])
    accuracy = classifier.score(words.transform([one.text for one in test]), [one.label for one in test])
    assert 0.85 < accuracy <= 0.97


def test_the_shipped_set_is_read_whatever_the_data_directory(tmp_path: Path):
    assert read_pocket(tmp_path) == read_pocket(None)


# Broken files


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / FILE
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def with_line_3(line: bytes) -> bytes:
    lines = [one.encode() for one in GOOD]
    return b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n"


def complaint(tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_spam(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message
    assert str(tmp_path) in message
    return message


def test_a_small_good_file_is_read(tmp_path: Path):
    """The other tests break this file in one place, so it must be fine as it is."""
    write(tmp_path, "\n".join(GOOD).encode())
    splits = read_spam(tmp_path)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [7, 1, 2]
    assert sum(example.label for examples in splits.values() for example in examples) == 5


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"ham without a tab", "ham without a tab"),
        (b"eggs\thello", "eggs"),
        (b"Ham\thello", "Ham"),
        (b"ham\t", "ham"),
        (b"ham\t   ", "ham"),
        (b"ham\tone\ttwo", "two"),
        (b"", "[]"),
        (b"\x00\x01\x02\x03\x7f", "x01"),
        (b"no tab, but an escape \x1b[31m and a return \r", "no tab"),
    ],
    ids=["no tab", "unknown label", "capital label", "no text", "blank text", "two tabs", "empty line", "binary", "escape"],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, shown: str):
    path = write(tmp_path, with_line_3(line))
    message = complaint(tmp_path)
    assert f"{path}, line 3:" in message
    assert "expected ham or spam, a tab and a text" in message
    assert shown in message
    assert message.isprintable()  # what stands in the file can't control the terminal


@pytest.mark.parametrize("filler", [0, 2000], ids=["at the start", "beyond a read buffer"])
def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path: Path, filler: int):
    first = [f"ham\tfiller number {i}\n".encode() for i in range(filler)]
    path = write(tmp_path, b"".join(first) + with_line_3(b"ham\tcaf\xe9 at ten"))
    message = complaint(tmp_path)
    assert f"{path}, line {filler + 3}:" in message
    assert "0xe9" in message


def test_a_long_broken_line_is_cut(tmp_path: Path):
    write(tmp_path, with_line_3(b"x" * 5000))
    assert len(complaint(tmp_path)) < 300 + len(str(tmp_path))


def test_a_field_beyond_the_limit_of_csv(tmp_path: Path):
    """A quote that is never closed swallows the rest of the file; csv stops at 131,072 characters."""
    path = write(tmp_path, with_line_3(b'ham\t"' + b"never closed\n" * 12_000))
    assert str(path) in complaint(tmp_path)


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([], "0 ham and 0 spam"),
        (GOOD[:6], "6 ham and 0 spam"),
        (GOOD[:-1], "6 ham and 4 spam"),
        (GOOD[2:], "4 ham and 5 spam"),
    ],
    ids=["empty", "no spam", "too few spam", "more spam than ham"],
)
def test_too_few_messages(tmp_path: Path, lines: list[str], counts: str):
    path = write(tmp_path, "\n".join(lines).encode())
    message = complaint(tmp_path)
    assert str(path) in message
    assert counts in message and "at least 5 spam" in message


def test_a_directory_without_the_file(tmp_path: Path):
    message = complaint(tmp_path)
    assert str(FILE) in message


def test_a_directory_in_place_of_the_file(tmp_path: Path):
    (tmp_path / FILE).mkdir(parents=True)
    assert str(FILE) in complaint(tmp_path)


def test_an_unknown_data_set_lists_the_choices():
    with pytest.raises(UserError, match=r"'spma': choose spam, spam-pocket") as caught:
        get_task("spma")
    assert "\n" not in str(caught.value)


# Quotes: a text between them may run over several lines, and one that isn't closed swallows what comes next


def counted(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


MANY = [f"ham\thello number {i}" for i in range(30)] + [f"spam\tprize number {i}" for i in range(20)]
SWALLOWING = {
    "up to the next quote": ({3: 'ham\t"hi', 9: 'ham\t"ho"'}, 3, "that swallows lines up to line 9"),
    "one line": ({3: 'ham\t"hi', 4: 'spam\tfree"'}, 3, "that swallows lines up to line 4"),
    "the first line": ({1: 'spam\t"hi', 40: 'ham\tbye"'}, 1, "that swallows lines up to line 40"),
    "up to the end": ({30: 'ham\t"hi'}, 30, "that swallows lines up to line 50"),
    "the last line": ({50: 'spam\t"hi'}, 50, "that never closes"),
    "a quote in a quote": ({3: 'ham\t"he said ""hi', 8: 'ham\t""ho"'}, 3, "that swallows lines up to line 8"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("lines, opened, said", SWALLOWING.values(), ids=SWALLOWING)
def test_a_quote_that_swallows_lines_is_named_by_the_line_where_it_opens(tmp_path: Path, lines, opened, said, end):
    path = write(tmp_path, end.join([lines.get(n, line) for n, line in enumerate(MANY, start=1)] + [""]).encode())
    assert complaint(tmp_path).startswith(f"{path}, line {opened}: a quote opens {said}")


def test_a_quote_that_opens_before_the_tab(tmp_path: Path):
    path = write(tmp_path, counted([*MANY[:2], '"ham\thi', *MANY[2:], 'ham\tho"']))
    assert f"{path}, line 3: a quote opens that swallows lines up to line 52" in complaint(tmp_path)


@pytest.mark.parametrize(
    "text, read",
    [
        ('"hello"', "hello"),
        ('"hello" she said', "hello she said"),
        ('she said "hello', 'she said "hello'),
        ('"a ""b"" c"', 'a "b" c'),
        ('"one\ntwo lines"', "one\ntwo lines"),
        ('"one\nham and eggs\n"', "one\nham and eggs\n"),
    ],
)
def test_quotes_that_swallow_nothing_are_read_as_csv_reads_them(tmp_path: Path, text: str, read: str):
    path = write(tmp_path, counted([*MANY, f"ham\t{text}"]))
    examples = read_collection(path)
    assert len(examples) == 51 and examples[-1].text == read


def test_the_collection_is_read_as_published_with_other_lines_around_it(tmp_path: Path, shared: Path):
    content = (shared / "data" / FILE).read_bytes()
    path = write(tmp_path, b"ham\tone more\n" + content)
    assert len(read_collection(path)) == 5573
    lines = content.split(b"\n")
    path.write_bytes(b"\n".join([*lines[:5081], b'ham\t"hello', *lines[5081:]]))
    with pytest.raises(UserError, match=r"line 5082: a quote opens that swallows lines up to line 5083"):
        read_collection(path)
