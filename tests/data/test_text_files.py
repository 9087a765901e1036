"""Texts that are to be predicted: streamed in their order, from the columns and by the rules of training."""

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from data.own import Columns, find_columns, find_texts
from data.text_files import read_stream, read_texts
from tests.helpers.own import own
from utils.errors import UserError


def read(folder: Path, name: str, content: str | bytes, **columns: str) -> list[tuple[str, str | None]]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row[1:] for row in read_texts(file, Columns(**columns))[0]]


FILES = {
    "lines": ("a.txt", "one\r\n\n two \u2028x", [("one", None), ("", None), (" two \u2028x", None)]),
    "a mark in front": ("a.txt", b"\xef\xbb\xbfone", [("one", None)]),
    "quotes": ("a.csv", 'id,Review\n1,"a ""b"",\nc"\n\n2,=cmd\n', [('a "b",\nc', None), ("=cmd", None)]),
    "semicolons": ("a.csv", "id;text\n1;a, b\n2;\n", [("a, b", None), ("", None)]),
    "one column": ("a.csv", "text\none\n\ntwo\n", [("one", None), ("", None), ("two", None)]),
    "one column without a usual name": ("a.csv", "what\none\n", [("one", None)]),
    "spaces in the header": ("a.csv", "label, SENTENCE \nx, one\n", [("one", None)]),
    "a quote in TSV": ("a.tsv", 'content\tlabel\n"one\tx\n', [('"one', None)]),
    "quotes in TSV": ("a.tsv", 'content\tlabel\n"one\ttwo"\tx\n', [("one\ttwo", None)]),
    "a pair in any order": ("a.tsv", "Hypothesis\tpremise\nb\ta\n", [("a", "b")]),
    "JSONL": ("a.jsonl", '{"text_b": "b", "n": 1, "text_a": "a"}\n\n', [("a", "b")]),
    "null": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": null}\n', [("a", None), ("", None)]),
    "JSON": ("a.json", b'\xef\xbb\xbf [{"text": "a]"},\n {"text": "\\u00e9", "x": [1]}]\n', [("a]", None), ("é", None)]),
    "a long text": ("a.csv", f"text\n{'a' * 200_000}\n", [("a" * 200_000, None)]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(name, tmp_path):
    file, content, expected = FILES[name]
    assert read(tmp_path, file, content) == expected


def test_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the reader of parquet files")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a", None]}), tmp_path / "a.parquet")
    rows, said = read_texts(tmp_path / "a.parquet", Columns())
    assert [row[1:] for row in rows] == [("a", None), ("", None)] and said == "text 'text'; not read: id"


def test_lines_of_a_stream():
    assert [*read_stream(io.BytesIO(b"one\ntwo\r\n"), "standard input")] == [
        ("standard input, line 1", "one", None),
        ("standard input, line 2", "two", None),
    ]
    with pytest.raises(UserError, match="standard input holds no texts"):
        next(read_stream(io.BytesIO(b""), "standard input"))


def test_the_place_of_a_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text\n"one\ntwo"\nthree\n')
    assert [row.place for row in read_texts(file, Columns())[0]] == [f"{file}, line 2", f"{file}, line 4"]


# --- as in training

HEADERS = (
    *(
        "text,label",
        "Sentence,CLASS,id",
        "v1,text",
        "label,v2",
        "question,label",
        "v2,label,split",
        "title,text,kind,label",
    ),
    *("gold_label,sentence1,sentence2,pairID", "Hypothesis,label,Premise", "question,sentence,label", "text,stars"),
)


@pytest.mark.parametrize("header", HEADERS)
def test_the_columns_are_those_of_training(header):
    names = header.split(",")
    trained = find_columns("a.csv", names, Columns(), with_splits=True)
    assert find_texts("a.csv", names, Columns()) == (trained.text, trained.pair, None, None)
    without = [name for name in names if name != trained.label]
    assert find_texts("a.csv", without, Columns())[:2] == trained[:2]


@pytest.mark.parametrize(
    ("header", "named", "text", "pair"),
    [
        ("text,other,Third", {"text": "other"}, "other", None),
        ("text,other,Third", {"text": "third", "pair": "text"}, "Third", "text"),
        ("text,other,Third", {"pair": "Other"}, "text", "other"),
        ("text,premise,hypothesis", {"text": "text"}, "text", None),
        ("v2,kind", {"label": "kind"}, "v2", None),  # the only one left
        ("v2", {"label": "kind"}, "v2", None),  # labels needn't be there
        ("topic,kind", {"label": "kind"}, "topic", None),
    ],
)
def test_named_columns(header, named, text, pair):
    names = header.split(",")
    assert find_texts("a.csv", names, Columns(**named)) == (text, pair, None, None)
    if named.get("label") in names:
        assert find_columns("a.csv", names, Columns(**named), with_splits=True)[:2] == (text, pair)


ROWS = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(20))
TSV = {
    "quotes around cells": 'text\tlabel\n"one ""two""\n\tthree"\ta\n' + ROWS,
    "a quote that opens nothing": f'text\tlabel\n"Never" again\ta\n"open\tb\n{ROWS}',
    "a quote in the last row": f'text\tlabel\n"enclosed"\ta\n{ROWS}"open\ta\n',
    "quotes that swallow rows": f'text\tlabel\n"an inch\ta\n{ROWS}that was 2"\tb\n',
    "quotes within": f'text\tlabel\nsay "no"\ta\n{ROWS}',
}


@pytest.mark.parametrize("name", TSV)
def test_quotes_in_a_tsv_are_read_as_in_training(name, tmp_path):
    texts = [text for text, _ in read(tmp_path, "a.tsv", TSV[name])]
    found = own(tmp_path / "a.tsv")
    assert sorted(texts) == sorted(one.text for some in found.splits.values() for one in some)
    said = read_texts(tmp_path / "a.tsv", Columns())[1]
    assert ("quotes are read as text" in said) == ("quotes are read as text" in found.said[0])
    assert len(texts) == TSV[name].count("\n") - 1 - ("\n\t" in TSV[name])


def test_a_first_line_that_may_be_a_text_is_said(tmp_path, capsys):
    assert read(tmp_path, "a.csv", "A warm film\nDull\n") == [("Dull", None)]
    assert "a.csv: the first line, 'A warm film', is taken for the name of its column" in capsys.readouterr().err
    for content, columns in (("Text\na\n", {}), ("what\na\n", {"text": "what"}), ("what,label\na,b\n", {})):
        assert read(tmp_path, "a.csv", content, **columns) == [("a", None)]
    assert read(tmp_path, "a.jsonl", '{"what": "a"}') == [("a", None)]
    assert capsys.readouterr().err == ""


def test_what_a_csv_may_swallow_is_said_once(tmp_path, capsys):
    swallowed = 'id,text\n1,"an inch\n2,nothing\n3,that was 2"\n4,"a\n5,b"\n'
    assert [text for text, _ in read(tmp_path, "a.csv", swallowed)] == ["an inch\n2,nothing\n3,that was 2", "a\n5,b"]
    said = capsys.readouterr().err
    assert said.count("note") == 1 and "a.csv, line 2: quotes enclose 3 lines, each of which may be a row" in said
    read(tmp_path, "a.csv", 'id,text\n1,"an inch\nand more"\n')
    assert capsys.readouterr().err == ""


# --- what is refused

REFUSED = {
    "an empty file": ("a.csv", "", "a.csv holds no texts"),
    "an empty list": ("a.json", "[]", "a.json holds no texts"),
    "a header alone": ("a.csv", "text,label\n", "a.csv holds no texts"),
    "no column": ("a.csv", "id,n,label\n1,2,x\n", "a.csv: no column has a usual name for the text (text, sentence, review"),
    "two columns": ("a.csv", "text,review,label\na,b,c\n", "'text' and 'review' may each be the text: say --text"),
    "half a pair": ("a.csv", "sentence1,x,label\na,b,c\n", "are 'sentence1', 'x', 'label': say --text_column NAME"),
    "one column twice": ("a.tsv", "text\ttext\na\tb\n", "line 1: two columns are called 'text'"),
    "a short row": ("a.csv", "label,text\n1,a\n2\n", "line 3: expected 2 cells (label, text), got 1: ['2']"),
    "a long row": ("a.tsv", "label\ttext\n1\ta\tb\n", "line 2: expected 2 cells (label, text), got 3"),
    "a short row of TSV with quotes": ("a.tsv", 'label\ttext\n1\t"a\tb"\n2\n', "line 3: expected 2 cells"),
    "an open quote": ("a.csv", 'label,text\n1,"a\n2,b\n', "line 2: unexpected end of data; is a quote in this row not"),
    "text behind a quote": ("a.csv", 'text,label\n"a" b,1\n', "line 2: ',' expected after '\"'"),
    "NUL": ("a.csv", b"text,label\na,1\nb\0c,1\n", "line 3: it holds a NUL byte; save the file as UTF-8"),
    "NUL in JSON": ("a.jsonl", '{"text": "a\\u0000", "label": 1}\n', "line 1: the text under text holds"),
    "half a character": ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: the text under text holds"),
    "UTF-16": ("a.csv", "text,label\na,1\n".encode("utf-16"), "line 1: it is in UTF-16"),
    "Latin-1": ("a.csv", b"text,label\na,1\n\xe9,1\n", "line 3: expected UTF-8, got the byte 0xe9"),
    "a number": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 1}\n', "line 2: expected a text under text"),
    "no key": ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', "line 2: expected a text under text, got None"),
    "no object": ("a.jsonl", "[1]\n", "record 1: expected an object such as"),
    "no JSON": ("a.jsonl", '{"text": "a", "label": 1}\n{\n', "line 2: no JSON"),
    "half a list": ("a.json", '[{"text": "a", "label": 1}, {"text"', "no JSON"),
    "brackets in brackets": ("a.json", "[" * 100_000, "no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_is_refused_in_the_same_words(name, tmp_path):
    file, content, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, file, content)
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path / file))
    with pytest.raises(UserError) as trained:
        own(tmp_path / file)
    assert str(trained.value) == str(caught.value)


def test_what_is_refused_of_predictions_alone(tmp_path):
    with pytest.raises(
        UserError, match=r"is a file of an unknown kind; what is read: .txt, .csv, .tsv, .jsonl, .json, .par"
    ):
        read(tmp_path, "a.xlsx", "x")
    with pytest.raises(UserError, match=r"--text_column is 'x'; .*a.csv has the columns 'text', 'b'"):
        read(tmp_path, "a.csv", "text,b\n1,2\n", text="x")
    with pytest.raises(UserError, match=r"--text_column is 'TEXT'; .*a.csv has the columns 'text', 'Text'"):
        read(tmp_path, "a.csv", "text,Text\n1,2\n", text="TEXT")
    with pytest.raises(UserError, match="each needs a column of its own"):
        read(tmp_path, "a.csv", "text,b\n1,2\n", text="b", pair="b")
    with pytest.raises(UserError, match=r"a.txt holds no texts"):
        read(tmp_path, "a.txt", "")
    for name in ("nowhere.csv", "nowhere.txt"):
        with pytest.raises(UserError, match=r"nowhere.* can't be read: No such file"):
            next(read_texts(tmp_path / name, Columns())[0])


# --- what is held


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_a_long_file_is_streamed(name, tmp_path):
    with (tmp_path / name).open("w", newline="") as file:
        for number in range(20_000):
            text = f"{number} " + "word " * 200
            if name.endswith("sv"):
                csv.writer(file, delimiter="," if name == "a.csv" else "\t").writerow(
                    [text, "x"] if number else ["text", "label"]
                )
            else:
                file.write((json.dumps({"text": text}) if name == "a.jsonl" else text) + "\n")
    tracemalloc.start()
    n = sum(1 for _ in read_texts(tmp_path / name, Columns())[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 20_000 - name.endswith("sv") and peak < 1 << 20 < (tmp_path / name).stat().st_size / 10


def test_a_line_of_two_gigabytes_is_refused_before_it_is_held(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:  # sparse: it takes no room on the disk
        file.write(b"one\n")
        file.truncate(2 << 30)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a.txt, line 2: it has more than 16,777,216 bytes"):
        list(read_texts(tmp_path / "a.txt", Columns())[0])
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
