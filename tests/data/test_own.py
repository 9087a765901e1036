"""A user's own texts: which columns are read, which labels there are, what is held out, and what is refused by name."""

import json

import pytest

from config import Run
from data.own import Columns, find_texts
from data.own_task import has_dialogues
from data.registry import get_task
from tests.helpers.own import own, refused, texts, write
from utils.errors import UserError

# --- columns


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (["text", "label"], "text 'text', label 'label'"),
        ([" Review ", "SENTIMENT"], "text 'Review', label 'SENTIMENT'"),
        (
            ["id", "title", "content", "Category", ""],
            "text 'content', label 'Category'; not read: id, title, one without a name",
        ),
        (
            ["gold_label", "sentence1", "sentence2", "pairID"],
            "pair 'sentence1' and 'sentence2', label 'gold_label'; not read: pairID",
        ),
        (["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], "pair '#1 String' and '#2 String', label 'Quality'"),
        (["premise", "hypothesis", "label"], "pair 'premise' and 'hypothesis', label 'label'"),
        (["question1", "question2", "is_duplicate"], "pair 'question1' and 'question2', label 'is_duplicate'"),
        (["v1", "text"], "text 'text', label 'v1'"),  # no other is left
        (["label", "v2"], "text 'v2', label 'label'"),
    ],
)
def test_usual_names_are_found_in_any_case(tmp_path, header, columns):
    rows = [
        [
            f"{i % 2}"
            if name.strip().lower() in ("label", "sentiment", "category", "gold_label", "quality", "is_duplicate", "v1")
            else f"{name} {i}"
            for name in header
        ]
        for i in range(30)
    ]
    found = own(write(tmp_path / "a.csv", [header, *rows]))
    assert found.said[0].removeprefix("columns  ").startswith(columns) and found.labels == ("0", "1")
    is_pair = columns.startswith("pair")
    assert all((one.pair is not None) == is_pair for examples in found.splits.values() for one in examples)


def test_flags_go_before_usual_names(tmp_path):
    path = write(
        tmp_path / "a.csv",
        [["text", "other", "label", "kind"], *([f"t{i}", f"o{i}", i % 2, "xyz"[i % 3]] for i in range(30))],
    )
    found = own(path, text="Other", label="kind")
    assert found.labels == ("x", "y", "z") and found.splits["train"][0].text[0] == "o"
    assert own(path, pair="other").splits["train"][0].pair[0] == "o"


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        (["a", "b", "c"], {}, "FILE: no column has a usual name for the text (text, sentence,"),
        (["text", "b", "c"], {}, "for the label (label, labels,"),
        (
            ["text", "review", "label"],
            {},
            "'text' and 'review' may each be the text: say --text_column NAME (and --pair_column",
        ),
        (["text", "label", "stars"], {}, "'label' and 'stars' may each be the label: say --label_column NAME"),
        (["text", "label", "c"], {"label": "Labl"}, "--label_column is 'Labl'; FILE has the columns 'text', 'label', 'c'"),
        (["text", "label", "c"], {"text": "label", "label": "label"}, "text, pair and label are"),
        (["text", "label", "c"], {"pair": "text", "text": "text"}, "each needs a column of its own"),
        (
            ["Text", "TEXT", "label"],
            {"text": "text"},
            "--text_column is 'text'; FILE has the columns 'Text', 'TEXT', 'label'",
        ),
        (["text", "label", "text"], {}, "FILE, line 1: two columns are called 'text'"),
        (
            ["A fine film.", "1", "x"],
            {},
            "the columns, which the first line has to name, are 'A fine film.', '1', 'x': say --text",
        ),
    ],
)
def test_columns_that_cannot_be_told_are_refused(tmp_path, header, columns, said):
    path = write(tmp_path / "a.csv", [header, *([f"t{i}", i % 2, f"u{i}"] for i in range(30))])
    assert said in refused(path, **columns)


# --- labels


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        (["1.0", "0.0", "2"], ("0", "1", "2")),
        (["01", "1", "011"], ("01", "011", "1")),  # codes, which are names
        (["01.10", "01.1"], ("01.1", "01.10")),
        (["b", "C", "a"], ("a", "b", "C")),
        (["<b>yes</b>", "=no", "a, b"], ("<b>yes</b>", "=no", "a, b")),
        (["1 star", "10", "2"], ("1 star", "10", "2")),  # not all are numbers
        (["None", "null", "na"], ("na", "None", "null")),  # words
    ],
)
def test_labels_are_sorted_numbers_by_value(tmp_path, given, labels):
    assert own(write(tmp_path / "a.csv", [["text", "label"], *texts(60, *given)])).labels == labels


def test_labels_of_json_are_names_or_numbers(tmp_path):
    for values, labels in (([0, 1.0], ("0", "1")), ([True, False], ("False", "True")), (["x", 1], ("1", "x"))):
        lines = [json.dumps({"text": f"t{i}", "label": values[i % 2]}) for i in range(30)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        assert own(tmp_path / "a.jsonl").labels == labels


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["good", ""]], "FILE, line 32: expected a label under label, got ''"),
        ([["good", " \t"]], "FILE, line 32: expected a label under label"),
        ([["  ", "1"]], "FILE, line 32: expected a text under text, got '  '"),
        ([["good", "NaN"]], "FILE, line 32: the label is NaN, which is no label"),
        ([["good", "-inf"]], "FILE, line 32: the label is -inf, which is no label"),
        (
            [["good", "0.37"]],
            "FILE, line 32: the label is 0.37, so the labels are a scale and no classes; a regression isn't supported",
        ),
    ],
)
def test_a_label_or_a_text_that_is_none_is_refused_with_its_line(tmp_path, rows, said):
    assert refused(write(tmp_path / "a.csv", [["text", "label"], *texts(30, 0, 1), *rows])).startswith(said)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "a", "label": ["x", "y"]}, "line 31: the label is ['x', 'y']; a text has one label here"),
        ({"text": "a", "label": None}, "line 31: expected a label under label, got None"),
        ({"text": "a"}, "line 31: expected a label under label, got None"),
        ({"text": 5, "label": 1}, "line 31: expected a text under text, got 5"),
        ({"label": 1}, "line 31: expected a text under text, got None"),
        ({"text": "a\0b", "label": 1}, "line 31: the text under text holds a character that is none"),
        ({"text": "a\ud800b", "label": 1}, "line 31: the text under text holds a character that is none"),
        ({"text": "a", "label": float("nan")}, "line 31: the label is nan, which is no label"),
        (
            {"text": "a", "label": 1, "split": "test"},
            "line 31: it says its split, and the first object of the file doesn't",
        ),
    ],
)
def test_an_object_without_text_or_label_is_refused_with_its_line(tmp_path, record, said):
    lines = [json.dumps({"text": f"t{i}", "label": i % 2}) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps(record)]))
    assert said in refused(tmp_path / "a.jsonl")


def test_labels_that_are_no_classes_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    assert "every label is 'x'; a classifier needs two" in refused(write(path, [["text", "label"], *texts(30, "x")]))
    many = [[f"t{i}", i] for i in range(50)]
    assert "50 different labels of 50 texts, such as '0', are no classes: name another --label_column" in refused(
        write(path, [["text", "label"], *many])
    )
    said = refused(write(path, [["text", "label"], *texts(30, "Yes", "yes", "no")]))
    assert said == "FILE: the labels 'Yes' and 'yes' differ in case alone: spell them alike"
    assert refused(write(path, [["text", "label"]])) == "FILE holds no texts"
    path.write_text("\n \n")
    assert refused(path) == "FILE holds no texts"


def test_what_looks_like_a_formula_or_html_is_text(tmp_path):
    strange = ["=cmd|'/C calc'!A0", "<script>alert(1)</script>", "@SUM(1+1)", "-1", "nan", "inf", "NULL", "{{x}}"]
    rows = [[text, i % 2] for i, text in enumerate(strange)] + texts(30, 0, 1)
    found = own(write(tmp_path / "a.csv", [["text", "label"], *rows]))
    assert {one.text for examples in found.splits.values() for one in examples} >= {*strange}


# --- quotes


def test_a_quote_that_swallows_rows_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f"{'ab'[i % 2]},text {i}\n" for i in range(20))
    path.write_text(f'label,text\n{rows}a,"an inch is 1\nb,nothing\na,that was 2"\nb,end\n')
    assert refused(path) == "FILE, line 22: a quote opens that swallows 2 rows behind it; close or double it"
    path.write_text(f'label,text\n{rows}a,"an inch\nis, well,\nb, nothing"\n')
    assert sum(map(len, own(path).splits.values())) == 21


def test_quotes_in_a_tsv_are_text_where_they_enclose_nothing(tmp_path):
    path, rows = tmp_path / "a.tsv", "".join(f"text {i}\t{i % 2}\n" for i in range(20))
    path.write_text(f'text\tlabel\n"Never" again\t0\n"open\t1\n{rows}')
    found = own(path)
    assert "quotes are read as text" in found.said[0]
    assert {'"Never" again', '"open'} <= {one.text for examples in found.splits.values() for one in examples}
    write(path, [["text", "label"], ['say "no"\n\ttwice', "0"], *texts(20, 0, 1)], "\t")
    found = own(path)
    assert "quotes" not in found.said[0] and 'say "no"\n\ttwice' in {one.text for s in found.splits.values() for one in s}
    path.write_text(f'text\tlabel\n"Never" again\t0\n{rows}short\n')
    assert "line 23: expected 2 cells (text, label), got 1" in refused(path) or "line 2: " in refused(path)


# --- texts or dialogues


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        ([{"instruction": "a", "output": "b"}], "dialogues"),
        ([{"messages": []}], "dialogues"),
        ([{"instruction": "a", "input": "", "output": "b", "text": "all"}], "dialogues"),
        ([{"instruction": "a", "output": "b", "category": "x"}], "dialogues"),
        ([{"text": "a", "label": 1}], "texts with labels"),
        ([{"premise": "a", "hypothesis": "b", "label": 1}], "texts with labels"),
        ([5, {"conversations": []}], "dialogues"),
        ([{"input": "a"}], "dialogues"),
        ([{"input": "a", "label": 1}], "texts with labels"),
        ([{"instruction": "a", "input": "b", "Category": "x"}], "texts with labels"),
    ],
)
def test_the_fields_tell_texts_from_dialogues(tmp_path, records, kind):
    for text in (json.dumps(records), "\n".join(map(json.dumps, records))):
        (tmp_path / "a.json").write_text(text)
        assert has_dialogues(tmp_path / "a.json", Columns()) == (kind == "dialogues")


def test_fields_of_both_kinds_are_refused_and_flags_decide(tmp_path):
    records = [{"instruction": f"a{i}", "output": "b", "text": f"c{i}", "label": i % 2} for i in range(30)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match="has the fields of dialogues and those of texts with labels") as caught:
        get_task(str(path))
    assert "instruction, label, output, text" in str(caught.value)
    task = get_task(str(path), Run(text_column="instruction", label_column="label"))
    assert task.kind == "texts with labels" and task.labels == ("0", "1")


def test_fields_of_neither_kind_are_refused_with_their_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": 1, "c": 2}\n')
    with pytest.raises(UserError, match=r"no column has a usual name for the text .* are 'a', 'b', 'c': say --text_column"):
        get_task(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("x" * 201, "line 32: the label has 201 characters, at most 200 are a label"),
        ("9" * 5000, "line 32: the label has 5,000 characters, at most 200"),
    ],
)
def test_a_label_that_is_a_text_is_refused(tmp_path, label, said):
    assert said in refused(write(tmp_path / "a.csv", [["text", "label"], *texts(30, 0, 1), ["x", label]]))


def test_what_cannot_be_printed_is_escaped_in_the_header(tmp_path):
    found = own(
        write(
            tmp_path / "a.csv",
            [["text", "label", "\x1b[31m"], *([f"t{i}", "a\nb" if i % 2 else "\x1bc", 0] for i in range(30))],
        )
    )
    assert found.labels == ("\x1bc", "a\nb") and all(line.isprintable() for line in found.said)


def test_every_field_of_a_json_that_is_not_read_is_said(tmp_path):
    lines = [json.dumps({"text": f"t{i}", "label": i % 2} | ({"id": i} if i == 9 else {})) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert "not read: id" in own(tmp_path / "a.jsonl").said[0]


def test_a_long_cell_over_many_lines_is_read(tmp_path):
    path = write(
        tmp_path / "a.csv",
        [["label", "text"], *(row[::-1] for row in texts(20, "a", "b")), ["a", "x\r" + "long\n" * 50_000]],
    )
    assert max(len(one.text) for some in own(path).splits.values() for one in some) == 250_002


@pytest.mark.parametrize(
    "names, named, expected",
    [
        (["reply", "note", "text"], Columns(), ("note", "reply")),  # whatever has a usual name
        (["Reply", "NOTE", "text"], Columns(), ("NOTE", "Reply")),  # in any case
        (["note", "text"], Columns(), ("text", None)),  # a half is none
        (["reply", "note", "text"], Columns(text="text"), ("text", "reply")),  # a flag goes before
        (["reply", "note", "text"], Columns(pair="text"), ("note", "text")),
    ],
)
def test_a_prediction_reads_the_columns_of_the_training(names, named, expected):
    assert find_texts("a.csv", names, named, Columns("note", "reply"))[:2] == expected
