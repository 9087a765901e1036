"""Records on disk, and the learning rate that they choose."""

import json

import pytest

from pipeline.comparison.records import NEEDED, chosen_rate, finished, read_record, slug, write_record


def search(*losses: float | None) -> list[dict]:
    return [{"rate": 10.0**i, "validation_loss": loss} for i, loss in enumerate(losses, start=-4)]


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ((0.5, 0.3, 0.4, 0.6), (1e-3, "")),
        ((0.2, 0.3, 0.4, 0.6), (1e-4, "lowest")),
        ((0.5, 0.3, 0.2, 0.1), (1e-1, "highest")),
        ((0.5, None, None, None), (1e-4, "lowest")),
        ((0.3, 0.3, 0.3, 0.3), (1e-4, "lowest")),  # the smaller of two that are as good
        ((0.3,), (1e-4, "")),  # nothing was chosen
    ],
)
def test_the_lowest_validation_loss_chooses(losses, chosen):
    assert chosen_rate(search(*losses)) == chosen
    assert chosen_rate(search(*losses)[::-1]) == chosen


def test_a_record_comes_back_as_it_was(tmp_path):
    record = dict.fromkeys(NEEDED, 1) | {"test": [0, 1, 1], "config": {"a": (1, 2)}, "hashes": {"b": "c"}}
    path = tmp_path / "folder" / "one.json"
    write_record(path, record)
    assert read_record(path) == json.loads(json.dumps(record))
    assert len(path.read_text().splitlines()) == len(record) + 2  # a line for each value, lists too
    assert finished(path, {"a": (1, 2)}, {"b": "c"})
    assert finished(path, {"a": (1, 3)}, {"b": "c"}) is None and finished(path, {"a": (1, 2)}, {"b": "d"}) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"title": "a"}'])
def test_what_is_no_record_is_none(tmp_path, text):
    (tmp_path / "one.json").write_text(text)
    assert read_record(tmp_path / "one.json") is None and read_record(tmp_path / "none.json") is None


def test_names_of_files_are_plain():
    assert slug("LoRA+, r = 16") == "lora+-r-16" and slug("adapter, Houlsby") == "adapter-houlsby"
