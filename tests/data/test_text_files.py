"""Texts of a user's own file: found by columns, streamed in their order, refused with the place."""

import json

import pytest

from data import text_files
from data.text_files import find_columns, read_texts
from utils.errors import UserError


def read(folder, name: str, content: str | bytes, **columns) -> list[tuple[str, str | None]]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row[1:] for row in read_texts(file, **columns)]


FILES = {
    "lines": ("a.txt", "one\r\n\n two \u2028x", [("one", None), ("", None), (" two \u2028x", None)]),
    "a mark in front": ("a.txt", b"\xef\xbb\xbfone", [("one", None)]),
    "quotes": ("a.csv", 'id,Review\n1,"a ""b"",\nc"\n\n2,=cmd\n', [('a "b",\nc', None), ("=cmd", None)]),
    "one column": ("a.csv", "text\none\n\ntwo\n", [("one", None), ("", None), ("two", None)]),
    "spaces in the header": ("a.csv", "label, SENTENCE \nx, one\n", [(" one", None)]),
    "quotes in TSV": ("a.tsv", 'content\tlabel\n"one\tx\n', [('"one', None)]),
    "a pair in any order": ("a.tsv", "Hypothesis\tpremise\nb\ta\n", [("a", "b")]),
    "JSONL": ("a.jsonl", '{"text_b": "b", "n": 1, "text_a": "a"}\n\n', [("a", "b")]),
    "JSON": ("a.json", b'\xef\xbb\xbf [{"text": "a]"},\n {"text": "\\u00e9", "x": [1]}]\n', [("a]", None), ("é", None)]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(name, tmp_path):
    file, content, expected = FILES[name]
    assert read(tmp_path, file, content) == expected


def test_named_columns(tmp_path):
    rows = "text,other,Third\na,b,c\n"
    assert read(tmp_path, "a.csv", rows, text_column="other") == [("b", None)]
    assert read(tmp_path, "a.csv", rows, text_column="third", pair_column="text") == [("c", "a")]
    assert read(tmp_path, "a.csv", rows, pair_column="Other") == [("a", "b")]
    assert find_columns("a.csv", ["Text", "text"], None, None) == ("text",)


def test_the_place_of_a_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text\n"one\ntwo"\nthree\n')
    assert [row.place for row in read_texts(file)] == [f"{file}, line 2", f"{file}, line 4"]


BAD = {
    "an empty file": ("a.txt", "", "a.txt is empty"),
    "an empty list": ("a.json", "[]", "a.json holds no texts"),
    "nothing in JSON": ("a.json", " \n", "a.json is empty"),
    "a header alone": ("a.csv", "text\n", "a.csv holds no texts"),
    "no column": ("a.csv", "id,label\n1,x\n", "no column text (or sentence, review, content; of pairs sentence1"),
    "no column, which are there": ("a.csv", "id,label\n1,x\n", "its columns: 'id', 'label'; choose one with --text_column"),
    "two columns": ("a.csv", "text,review\na,b\n", "more than one column that may be the text ('text', 'review')"),
    "a text and a pair": ("a.csv", "text,premise,hypothesis\na,b,c\n", "more than one column that may be the text"),
    "half a pair": ("a.csv", "sentence1,x\na,b\n", "no column text"),
    "the same column twice": ("a.tsv", "text\ttext\na\tb\n", "line 1: two columns are named 'text'"),
    "a short row": ("a.csv", "id,text\n1,a\n2\n", "line 3: expected 2 columns ('id', 'text'), got 1: ['2']"),
    "a long row": ("a.tsv", "id\ttext\n1\ta\tb\n", "line 2: expected 2 columns"),
    "an open quote": ("a.csv", 'id,text\n1,"a\n2,b\n', "line 2: a quote opens that never closes"),
    "an open quote and much behind": ("a.csv", 'text\n"' + "a\n" * 99_999, "line 2: a quote opens that never closes, or"),
    "text behind a quote": ("a.csv", 'text\n"a" b\n', "line 2: ',' expected after '\"'"),
    "NUL": ("a.txt", b"a\nb\0c\n", "line 2: expected text in UTF-8, got the byte 0x0"),
    "UTF-16": ("a.csv", "text\na\n".encode("utf-16"), "line 1: expected text in UTF-8, got the byte 0x0"),
    "Latin-1": ("a.csv", b"text\na\n\xe9\n", "line 3: expected text in UTF-8, got the byte 0xe9"),
    "Latin-1 in JSON": ("a.json", b'[{"text":\n"\xe9"}]', "line 2: expected text in UTF-8, got the byte 0xe9"),
    "no text": ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2: expected a text under text, got None"),
    "a key that is missing": ("a.jsonl", '{"text": "a"}\n{"x": "a"}\n', "line 2: expected a text under text, got None"),
    "no object": ("a.jsonl", "[1]\n", "line 1: expected an object with texts by their columns, got [1]"),
    "no JSON": ("a.jsonl", '{"text": "a"}\n{\n', "line 2: no JSON"),
    "lines in JSON": (
        "a.json",
        '{"text": "a"}\n',
        "expected a list of objects; a file with an object per line is a .jsonl",
    ),
    "no list": ("a.json", '"a"', "expected a list of objects"),
    "no comma": ("a.json", '[{"text": "a"} {"text": "b"}]', "record 1: expected a comma or the end of the list behind it"),
    "a comma too many": ("a.json", '[{"text": "a"},]', "record 2: no JSON"),
    "half a list": ("a.json", '[{"text": "a"}, {"text"', "record 2: no JSON"),
    "something behind": ("a.json", '[{"text": "a"}] x', "expected nothing behind the end of its list, got 'x'"),
    "brackets in brackets": ("a.json", "[" * 100_000, "record 1: no JSON"),
    "another kind": ("a.xlsx", "x", "is a file of an unknown kind; what is read: .txt, .csv, .tsv, .jsonl, .json"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_is_one_line_with_the_place(name, tmp_path):
    file, content, said = BAD[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, file, content)
    assert said in str(caught.value) and file in str(caught.value)


def test_columns_that_are_named_and_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no column 'x'; its columns: 'text', 'b'"):
        read(tmp_path, "a.csv", "text,b\n1,2\n", text_column="x")
    with pytest.raises(UserError, match=r"more than one column 'TEXT'; its columns: 'text', 'Text'"):
        read(tmp_path, "a.csv", "text,Text\n1,2\n", text_column="TEXT")
    with pytest.raises(UserError, match="--text_column and --pair_column are both 'b'"):
        read(tmp_path, "a.csv", "text,b\n1,2\n", text_column="b", pair_column="b")
    with pytest.raises(UserError, match=r"a.txt has no columns, so none is named x"):
        read(tmp_path, "a.txt", "one\n", text_column="x")
    with pytest.raises(UserError, match=r"nowhere.csv can't be read: No such file"):
        next(read_texts(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    "name, start", [("a.txt", b""), ("a.csv", b"text\n"), ("a.jsonl", b""), ("a.json", b'[{"text": "')]
)
def test_a_line_of_two_gigabytes_is_refused_before_it_is_held(name, start, tmp_path, monkeypatch):
    with (tmp_path / name).open("wb") as file:  # sparse: it takes no room on the disk
        file.write(start + b" " * 100)
        file.truncate(2**31)
    sizes = []
    stream = (tmp_path / name).open("rb")
    counted = Counted(stream, sizes)
    with pytest.raises(UserError, match=r"line [12]: longer than 16,777,216 bytes|record 1: no JSON, or longer than"):
        next(text_files.texts_of(counted, name, f".{name[2:]}"))
    assert sum(sizes) < 2**26


class Counted:
    """A stream that writes down how much was read."""

    def __init__(self, stream, sizes: list[int]):
        self.stream, self.sizes = stream, sizes

    def read(self, size: int) -> bytes:
        self.sizes.append(len(data := self.stream.read(size)))
        return data

    def readline(self, size: int) -> bytes:
        self.sizes.append(len(data := self.stream.readline(size)))
        return data


@pytest.mark.parametrize("block", [1, 7, 2**16])
def test_a_json_file_is_read_in_blocks(block, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", block)
    records = [{"n": -1.5e3 * i, "text": f'{i} é, "海" ]}}' * (i % 5), "x": [None, {"y": []}]} for i in range(40)]
    for indent in (None, 2):
        content = json.dumps(records, ensure_ascii=False, indent=indent)
        assert read(tmp_path, "a.json", content) == [(one["text"], None) for one in records]
