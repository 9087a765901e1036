"""A table spread over machines: each runs its part, and none undoes what another wrote."""

import json
import random

import pytest

import experiments
from config import Run
from pipeline import tables
from pipeline.tables import in_shard, write_table
from published import get_table
from utils.errors import UserError


@pytest.fixture
def shard(alone, small_checkpoint, small_data):
    """shard("2/3", ...): that part of rows 1, 3, 4, 5 of the spam table. Returns the lines of the table afterwards."""

    def run(text, *flags, folder="together"):
        base = {"checkpoint": small_checkpoint, "data_dir": small_data, "max_steps": 2, "amp": "off", "device": "cpu"}
        base |= {"output_dir": alone / folder, "rows": "1,3,4,5", "eval_train": "no"} | ({"shard": text} if text else {})
        words = [str(word) for name, value in base.items() for word in (f"--{name}", value)]
        assert experiments.main(["--table", "spam", *words, *flags]) == 0
        file = alone / folder / "table-spam.json"
        return json.loads(file.read_text()) if file.is_file() else []

    return run


def without_seconds(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_shards_run_their_rows_and_together_make_the_table(shard, alone):
    assert [line["row"] for line in shard("2/3")] == [3]
    assert len([*(alone / "together").glob("*/result.json")]) == 1
    assert [line["row"] for line in shard("1/3")] == [1, 3, 5]
    (alone / "together" / "table-spam.json").unlink()  # it is made of what is there, not of what it was
    assert [line["row"] for line in shard("3/3")] == [1, 3, 4, 5]
    before = {path: path.stat().st_mtime_ns for path in (alone / "together").glob("*/result.json")}
    together = shard("2/3")  # that was done
    assert before == {path: path.stat().st_mtime_ns for path in (alone / "together").glob("*/result.json")}
    assert without_seconds(together) == without_seconds(shard(None, folder="one"))


def test_rows_with_the_same_run_share_a_shard(alone):
    # Offline one stand-in takes the place of nine rows' models and data, and another that of three.
    table = get_table("encoders-adapter")
    shards = [[row.number for row in in_shard(table, table.rows, Run(), place, 3)] for place in (1, 2, 3)]
    assert shards == [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 12], []]


def test_a_shard_without_a_row(shard, capsys):
    assert shard("5/5") == []
    assert "shard 5/5 has none of 4 rows" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/8", "9/8", "x", "2", "1/0", "-1/2", "1/2/3", "", " 1/2"])
def test_a_shard_that_isnt_there(text):
    with pytest.raises(UserError, match=r"--shard is .*; write I/N with I from 1 to N, such as 2/8"):
        experiments.main(["--table", "spam", f"--shard={text}"])


def test_a_shard_is_one_of_a_table():
    with pytest.raises(UserError, match="--shard goes with --table"):
        experiments.main(["--shard", "1/2"])


@pytest.mark.parametrize("seed", range(20))
def test_two_writers_lose_nothing(seed, tmp_path, monkeypatch):
    """Two machines end a row each at about the same time: whichever way their reading and writing falls, both are there."""
    table, draw, done = get_table("spam"), random.Random(seed), {}
    write_json = tables.write_json

    def line(number):
        row = {"row": number, "title": "", "published": {}, "measured": None, "std": None, "command": "", "note": ""}
        return {number: row}

    def others():
        return dict(done)

    pending = [lambda: done.update(line(6)), lambda: (done.update(line(7)), write_table(table, line(7), tmp_path, others))]

    def meanwhile(path, content):
        if draw.random() < 0.5 and pending:
            pending.pop(0)()
        write_json(path, content)
        if draw.random() < 0.5 and pending:
            pending.pop(0)()

    monkeypatch.setattr(tables, "write_json", meanwhile)
    done |= line(1)
    write_table(table, line(1), tmp_path, others)
    written = {one["row"] for one in json.loads((tmp_path / "table-spam.json").read_text())}
    assert written == done.keys()
