"""Files with tables: each format is read as it is meant, and what is wrong with one is an error of one line."""

import csv
import io
import json
import tracemalloc

import pytest

from data import tables
from data.tables import read_table
from utils.errors import UserError


def rows_of(tmp_path, name: str, content: str | bytes) -> list[dict]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row.cells for row in read_table(path).rows]


def refused(tmp_path, name: str, content: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(tmp_path, name, content)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(tmp_path / name))


HARD = [
    'He said "no", twice',
    "two\nlines",
    "<b>bold</b> & co",
    "=cmd|'/C calc'!A0",
    "tab\there",
    "naïve 海 🎬",
    "a;b",
    "'",
]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.CSV", ","), ("a.tsv", "\t"), ("a.csv", ";")])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_module_csv_writes_is_read(tmp_path, name, delimiter, bom, end):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL if end == "\n" else 0)
    writer.writerows([["label", "text"], *(["x", text] for text in HARD)])
    found = rows_of(tmp_path, name, bom + buffer.getvalue().encode())
    assert found == [{"label": "x", "text": text} for text in HARD]


def test_another_delimiter_of_a_csv_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("label;text\nx;a, b\n")
    assert read_table(tmp_path / "a.csv").note == "cells are separated by semicolons"
    (tmp_path / "a.csv").write_text("label,text;more\nx,a\n")
    assert read_table(tmp_path / "a.csv").note == ""


def test_the_space_before_a_cell_is_none_of_it_where_the_first_line_has_one_too(tmp_path):
    (tmp_path / "a.csv").write_text('label, text\npos, "A film, indeed"\n')
    table = read_table(tmp_path / "a.csv")
    assert [row.cells for row in table.rows] == [{"label": "pos", "text": "A film, indeed"}]
    assert table.note == "the space before a cell is no part of it, as in the first line"
    (tmp_path / "a.csv").write_text("label,text\npos, a film\n")
    assert [row.cells["text"] for row in read_table(tmp_path / "a.csv").rows] == [" a film"]


RECORDS = [{"text": text, "label": i % 2} for i, text in enumerate(HARD)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.JSONL"])
@pytest.mark.parametrize("kind", ["list", "lines", "indented list"])
def test_json_is_a_list_or_has_an_object_on_each_line(tmp_path, name, kind):
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in RECORDS)
    text = lines if kind == "lines" else json.dumps(RECORDS, indent=None if kind == "list" else 2)
    assert rows_of(tmp_path, name, b"\xef\xbb\xbf" + text.encode()) == RECORDS
    assert tables.first_objects(tmp_path / name, 3) == RECORDS[:3]


def test_blank_lines_are_no_rows_and_the_place_counts_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n\n"two\nlines",1\n\nb,2\n')
    assert [(row.place, len(row.lines)) for row in read_table(path).rows] == [
        (f"{path}, line 3", 2),
        (f"{path}, line 6", 0),
    ]


def test_a_long_cell_is_a_cell(tmp_path):
    assert len(rows_of(tmp_path, "a.csv", f"text,label\n{'x' * 300_000},1\n")[0]["text"]) == 300_000
    assert csv.field_size_limit() == 131_072  # of everyone else


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n3\n", ", line 3: expected 2 cells (a, b), got 1: ['3']"),
        ("a,b\n1,2,\n", ", line 2: expected 2 cells (a, b), got 3: ['1', '2', '']"),
        ("a,b, a\n1,2,3\n", ", line 1: two columns are called 'a'; rename one of them"),
        ('a,b\n"open,1\nmore,2\n', ", line 2: unexpected end of data; is a quote in this row not closed, or not doubled?"),
        ("a,b\rx,1\ry,2\r", ", line 1: a carriage return stands outside of quotes; lines end with a newline, or with both"),
        ('a,b\n"one" two,1\n', ", line 2: ',' expected after '\"'; is a quote in this row not closed, or not doubled?"),
        (b"a,b\n1,2\n\xe9,2\n", ", line 3: expected UTF-8, got the byte 0xe9; save the file as UTF-8"),
        (b"a,b\n1\0,2\n", ", line 2: it holds a NUL byte; save the file as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), ", line 1: it is in UTF-16; save the file as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), ", line 1: it holds a NUL byte; save the file as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path, content, said):
    assert refused(tmp_path, "a.csv", content).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": \n', ", line 2: no JSON: Expecting value"),
        ('{"a": 1}\n[1]\n', ", line 2: expected an object such as"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', ", line 2: no JSON: the key a has two values"),
        ('[{"a": 1}, 5]', ", record 2: expected an object such as"),
        ('[{"a": 1},\n {"a"]', ", line 2: no JSON: Expecting ':' delimiter"),
        ('[{"a": 1}]\n[{"a": 1}]', ", line 2: no JSON: Extra data"),
        ("[" * 100_000, ": no JSON: "),
        ('{"a":' * 100_000, ", line 1: no JSON: "),
        (f'{{"a": {"1" * 5000}}}', ", line 1: no JSON: "),
        ('{"data": [{"text": "a"}]}\n\0', ", line 2: it holds a NUL byte"),
    ],
)
def test_what_is_wrong_with_a_json_is_said(tmp_path, content, said):
    assert refused(tmp_path, "a.json", content).startswith(said)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_of_two_gigabytes_is_refused_before_it_is_in_memory(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"text,label\nabc,1\n" if name != "a.jsonl" else b'{"text": "abc", "label": 1}\n')
        lines = file.tell()
        file.seek(2 << 30)  # a hole, which takes no room on the disk
        file.write(b"x\n")
    assert path.stat().st_size > 2 << 30 and lines < 100
    tracemalloc.start()
    number = 2 if name == "a.jsonl" else 3
    with pytest.raises(UserError, match=f"line {number}: it has more than 16,777,216 bytes"):
        list(read_table(path).rows)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_first_line_without_end_is_refused_too(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.seek(2 << 30)
        file.write(b"x\n")
    with pytest.raises(UserError, match="line 1: it has more than 16,777,216 bytes"):
        tables.first_objects(path)


def test_a_quote_that_never_closes_is_refused_before_the_file_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST", 1000)
    said = refused(tmp_path, "a.csv", 'text,label\n"open,1\n' + "a line of it,1\n" * 1000)
    assert said.startswith(", line 2: field larger than field limit (1000)")


def test_a_list_that_is_too_large_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LARGEST_LIST", 100)
    assert "at most 100 are read: write one object a line" in refused(tmp_path, "a.json", json.dumps(RECORDS))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet"])
def test_a_file_that_is_not_there(tmp_path, name):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="can't be read"):
        list(read_table(tmp_path / name).rows)


def test_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the reader of parquet files")
    from pyarrow import parquet

    table = pyarrow.table({"text": HARD, "label": [i % 3 - 1 for i in range(len(HARD))]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.cells for row in read_table(tmp_path / "a.parquet").rows] == table.to_pylist()
    about = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    found = [row.cells["label"] for row in read_table(tmp_path / "a.parquet").rows]
    assert found[:4] == [-1, "no", "yes", -1]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="can't be read as parquet"):
        list(read_table(tmp_path / "a.parquet").rows)


def test_without_a_reader_of_parquet_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert refused(tmp_path, "a.parquet", b"PAR1") == " is a parquet file, which needs pyarrow: pip install pyarrow"
