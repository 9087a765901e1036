"""Reading dialogues: both kinds of record, what is malformed, what is held out."""

import json

import pytest

from config import Run, resolve
from data.dialogues import Dialogue, Records, Turn, read_records, split
from data.registry import get_task
from utils.errors import UserError

USER, ASSISTANT = "user", "assistant"


def messages(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def write(path, records):
    if path.suffix == ".jsonl":
        lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


USABLE = (
    ({"instruction": "a", "output": "b"}, Dialogue((Turn("a", "", "b"),))),
    ({"instruction": "a", "input": " x ", "output": "b", "history": None}, Dialogue((Turn("a", "x", "b"),))),
    (
        {"instruction": "三", "input": "", "output": "四", "history": [["一", "二"], ["e", "f"]]},
        Dialogue((Turn("一", "", "二"), Turn("e", "", "f"), Turn("三", "", "四"))),
    ),
    (messages((USER, "a"), (ASSISTANT, "b")), Dialogue((Turn("a", "", "b"),))),
    (
        messages(("system", "s"), (USER, "a"), (ASSISTANT, "b"), (USER, "c"), (ASSISTANT, "d")),
        Dialogue((Turn("a", "", "b"), Turn("c", "", "d")), "s"),
    ),
)


@pytest.mark.parametrize("name", ["some.json", "some.jsonl", "some.txt"])
def test_every_kind_of_record(tmp_path, name):
    records = [record for record, _ in USABLE]
    found = read_records(write(tmp_path / name, records))
    assert [dialogue for dialogue, _ in found.dialogues] == [dialogue for _, dialogue in USABLE]
    assert found.problems == [] and found.report() == ""


def test_lines_end_with_newlines_alone_and_may_be_empty(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('\ufeff{"instruction": "a\u2028b", "output": "c"}\r\n\n{"instruction": "d", "output": "e"}\n', "utf-8")
    assert [one.turns[0].question for one, _ in read_records(path).dialogues] == ["a\u2028b", "d"]


GOOD = {"instruction": "a", "output": "b"}
MALFORMED = (
    ({"instruction": "a"}, "expected a text under output, got None"),
    ({"instruction": " ", "output": "b"}, "expected a text under instruction, got ' '"),
    ({"instruction": "a", "output": 3}, "expected a text under output, got 3"),
    ({"instruction": "a", "output": "b", "input": ["c"]}, r"expected a text under input, got \['c'\]"),
    ({"instruction": "a", "output": "b", "history": ["q", "a"]}, r"expected a list of \[question, answer\] under history"),
    ({"instruction": "a", "output": "b", "history": [["q", ""]]}, "expected a text under an answer in history, got ''"),
    (
        {"instruction": "a", "output": "b", "split": "dev"},
        "the split is 'dev'; it must be one of train, validation, test, held_out",
    ),
    ({"instruction": "a", "output": "b", "split": [1]}, r"the split is \[1\]; it must be one of"),
    ({"instruction": "a", "output": "\ud83d"}, "the text under output isn't valid Unicode"),
    (["a", "b"], r"expected an object with instruction and output, or messages, got \['a', 'b'\]"),
    ("words", "expected an object with instruction and output, or messages, got 'words'"),
    ({"messages": "hello"}, "expected a list of objects with role and content under messages, got 'hello'"),
    (messages(), r"the roles must be user and assistant by turns, the assistant last, got \[\]"),
    (messages((USER, "a")), "the roles must be user and assistant by turns"),
    (
        messages((USER, "a"), (ASSISTANT, "b"), (USER, "c")),
        "the roles must be user and assistant by turns, the assistant last",
    ),
    (messages((ASSISTANT, "b"), (USER, "a")), "the roles must be"),
    (messages((USER, "a"), ("system", "s"), (ASSISTANT, "b")), "the roles must be"),
    (messages((USER, "a"), (ASSISTANT, None)), "expected a text under content of message 2, got None"),
)


@pytest.mark.parametrize("record, what", MALFORMED)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_malformed_records_are_skipped_and_reported(tmp_path, record, what, suffix):
    place = "record" if suffix == ".json" else "line"
    line = json.dumps(record) if suffix == ".jsonl" else record  # escapes what UTF-8 has no bytes for
    path = tmp_path / f"some{suffix}"
    path.write_text("\n".join([json.dumps(GOOD), line]) if suffix == ".jsonl" else json.dumps([GOOD, record]))
    found = read_records(path)
    assert len(found.dialogues) == 1 and len(found.problems) == 1
    with pytest.raises(AssertionError, match=f"{place} 2: {what}"):
        raise AssertionError(found.report())
    assert found.report().startswith(f"{path}: 1 of 2 records skipped: {place} 2: ")


def test_a_line_that_is_no_json_costs_that_line_alone(tmp_path):
    found = read_records(write(tmp_path / "some.jsonl", ['{"instruction": "a", "out', GOOD, "[" * 100_000]))
    assert len(found.dialogues) == 1 and [one.split(":")[0] for one in found.problems] == ["line 1", "line 3"]
    assert "no JSON: Unterminated string" in found.problems[0]


def test_a_report_stays_short(tmp_path):
    report = read_records(write(tmp_path / "some.json", [*[{}] * 9, GOOD])).report()
    assert "9 of 10 records skipped: record 1: " in report and "record 3: " in report and "record 4" not in report
    assert report.endswith("; and 6 more")


@pytest.mark.parametrize(
    "text, what",
    [
        ("", ": no records"),
        ("[]", ": no records"),
        ('[{"instruction": "a"}]', ": none of 1 records can be used: record 1: expected a text under output, got None"),
        ('[\n{"instruction": ', ", line 2: no JSON: "),
        ("a,b\nc,d\n", ": none of 2 records can be used: line 1: no JSON: "),
    ],
)
def test_nothing_usable(tmp_path, text, what):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_records(path)
    assert str(error.value).startswith(f"{path}{what}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.json can't be read"):
        read_records(tmp_path / "none.json")
    (tmp_path / "latin.jsonl").write_bytes(b'{"instruction": "a"}\n\xe9')
    with pytest.raises(UserError, match=r"latin\.jsonl, line 2: expected UTF-8, got the byte 0xe9"):
        read_records(tmp_path / "latin.jsonl")


def numbered(n, where=lambda i: None):
    return Records(None, [(Dialogue((Turn(str(i), "", "x"),)), where(i)) for i in range(n)], [])


def numbers(dialogues):
    return [int(one.turns[0].question) for one in dialogues]


def test_a_part_is_held_out_where_the_file_names_none():
    parts = {name: numbers(some) for name, some in split(numbered(50), 0.1).items()}
    assert {name: len(some) for name, some in parts.items()} == {"train": 40, "validation": 5, "test": 5}
    assert sorted(i for some in parts.values() for i in some) == list(range(50)) and parts["test"] != list(range(5))
    assert parts == {name: numbers(some) for name, some in split(numbered(50), 0.1).items()}
    assert {name: len(some) for name, some in split(numbered(5000), 0.1).items()}["test"] == 100
    assert split(numbered(50), 0.0).keys() == {"train"} and split(numbered(4), 0.1).keys() == {"train"}


def test_what_the_file_names_stays_where_it_is():
    tested = split(numbered(50, lambda i: "test" if i < 10 else None), 0.1)
    assert numbers(tested["test"]) == list(range(10)) and len(tested["validation"]) == 4
    assert not set(numbers(tested["validation"])) & set(numbers(tested["train"]) + numbers(tested["test"]))
    names = ("train", "validation", "test")
    named = split(numbered(30, lambda i: names[i % 3]), 0.1)
    assert [numbers(named[name]) for name in names] == [list(range(i, 30, 3)) for i in range(3)]
    assert "train" not in split(numbered(3, lambda i: "test"), 0.1)


@pytest.mark.parametrize(
    "name, n, n_turns",
    [
        ("alpaca_en_demo.json", 999, 999),
        ("alpaca_zh_demo.json", 1000, 1000),
        ("belle_dev1K.jsonl", 1000, 1000),
        ("examples.json", 2, 6),
        ("identity.json", 91, 91),
        ("instruction-data.json", 1100, 1100),
        ("oaast_sft_zh.json", 689, 1138),
        ("self_cognition.json", 80, 80),
    ],
)
def test_public_files(shared, name, n, n_turns):
    found = read_records(shared / "data" / "chat_sft" / name)
    assert found.problems == [] and len(found.dialogues) == n
    assert sum(len(dialogue.turns) for dialogue, _ in found.dialogues) == n_turns


@pytest.mark.parametrize("name, sizes", [("persona", (292, 32, 76)), ("general", (137, 15, 38))])
def test_shipped_files(name, sizes):
    parts = get_task(name).splits(resolve(Run(general_dataset="none"), {}))
    assert tuple(len(parts[split]) for split in ("train", "validation", "test")) == sizes
