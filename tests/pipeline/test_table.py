"""Running published rows as a table: what is run, what is skipped, and what is written."""

import json

import pytest

import experiments
from config import Run
from pipeline import job, tables
from pipeline.flags import command
from pipeline.table_text import in_ranges
from pipeline.tables import run_table
from published import get_table
from tests.helpers.interrupt import interrupt_run
from utils.errors import UserError

KEYS = {"row", "published", "measured", "std", "seeds", "seconds", "command", "note"}


@pytest.fixture
def table(alone, small_checkpoint, small_data, capsys):
    """table("--rows", ...): the spam table on the small model and data. Returns the exit code, the lines, the Markdown."""

    def run(*flags, max_steps=2, checkpoint=small_checkpoint):
        base = {"checkpoint": checkpoint, "data_dir": small_data, "max_steps": max_steps, "amp": "off"}
        base |= {"device": "cpu", "output_dir": alone / "table"}
        argv = [str(word) for name, value in base.items() if value for word in (f"--{name}", value)]
        code = experiments.main(["--table", "spam", *flags, *argv])
        folder = alone / "table"
        return code, json.loads((folder / "table-spam.json").read_text()), (folder / "table-spam.md").read_text()

    return run


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_rows_are_run_once_and_written_down(table, alone):
    code, lines, text = table("--rows", "1,3", "--seeds", "2")
    assert code == 0 and [line["row"] for line in lines] == [1, 3]
    for line, layers in zip(lines, ("last_block", "last_layer"), strict=True):
        assert line.keys() >= KEYS
        assert line["published"] == get_table("spam").row(line["row"]).published
        results = [json.loads(path.read_text()) for path in (alone / "table").rglob("result.json")]
        results = sorted((r for r in results if r["method"] == layers), key=lambda result: result["seed"])
        assert line["seeds"] == [r["seed"] for r in results] == [123, 124]
        for split in ("train", "validation", "test"):
            one, other = (100 * r[f"{split}_accuracy"] for r in results)
            assert line["measured"][split] == pytest.approx((one + other) / 2, abs=0.006)
            assert line["std"][split] == pytest.approx(abs(one - other) / 2**0.5, abs=0.006)
        assert line["seconds"] == pytest.approx(sum(r["total_seconds"] for r in results) / 2, abs=0.06)
        again = experiments.parse(line["command"].split()[2:])[0]
        assert (again.trainable_layers or "last_block", again.max_steps) == (layers, 2)
        assert f"`{line['command']}`" in text
    before = stamps(alone / "table")
    assert len(before) == 4
    assert table("--rows", "1,3", "--seeds", "2")[1] == lines and stamps(alone / "table") == before
    # One seed more, another length: only what is new is run.
    assert [line["seeds"] for line in table("--rows", "3", "--seeds", "3")[1]] == [[123, 124], [123, 124, 125]]
    assert before.items() < stamps(alone / "table").items() and len(stamps(alone / "table")) == 5
    table("--rows", "1", max_steps=3)
    assert len(stamps(alone / "table")) == 6


def test_mean_deviation_and_the_text(alone, monkeypatch, capsys):
    # Row 1's runs as if they had these accuracies: the numbers can be worked out by hand.
    made_up = {5: (1.0, 0.75, 0.5, 10.0), 6: (0.5, 0.75, 0.75, 11.0), 7: (0.75, 0.75, 1.0, 15.0)}

    def execute(job):
        keys = ("train_accuracy", "validation_accuracy", "test_accuracy", "total_seconds")
        values = dict(zip(keys, made_up[job.run.seed], strict=True))
        return {"seed": job.run.seed, "model": "m", "dataset": "d", "interrupted": False, **values}

    monkeypatch.setattr(tables, "execute", execute)
    spam = get_table("spam")
    overrides = Run(seed=5, output_dir=str(alone / "new" / "folder"), dataset="spam-pocket", model="gpt2-pocket")
    assert run_table(spam, [spam.row(1), spam.row(6)], overrides, 3) == 0
    measured, left_out = json.loads((alone / "new" / "folder" / "table-spam.json").read_text())
    assert measured["measured"] == {"train": 75.0, "validation": 75.0, "test": 75.0}
    assert measured["std"] == {"train": 25.0, "validation": 0.0, "test": 25.0}  # of a sample: n - 1
    assert (measured["seeds"], measured["seconds"]) == ([5, 6, 7], 12.0)
    assert left_out["measured"] is left_out["std"] is left_out["seconds"] is None and left_out["seeds"] == []
    text = (alone / "new" / "folder" / "table-spam.md").read_text()
    assert text.strip() in capsys.readouterr().out
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if line.startswith("| 1 |")).split("|")[1:-1]]
    assert cells[2:4] == ["96.63 / 99.33 / 95.00", "75.00 ± 25.00 / 75.00 ± 0.00 / 75.00 ± 25.00"]
    assert cells[4:6] == ["-20.00", "12"] and cells[6].startswith("`python experiments.py ")
    assert "Measured with m on d; seeds 5, 6, 7; mean ± standard deviation." in text
    assert run_table(spam, [spam.row(1)], overrides, 1) == 0
    single, kept = json.loads((alone / "new" / "folder" / "table-spam.json").read_text())
    assert kept == left_out  # a table can be filled in pieces
    assert single["std"] == dict.fromkeys(("train", "validation", "test")) and single["measured"]["test"] == 50.0


def test_what_was_not_measured_is_a_dash(table):
    code, lines, text = table("--rows", "1", "--eval_train", "no")
    assert code == 0 and lines[0]["measured"].keys() == lines[0]["std"].keys() == {"validation", "test"}
    cells = next(line for line in text.splitlines() if line.startswith("| 1 |")).split(" | ")
    assert cells[3].startswith("- / ") and cells[4] == f"{lines[0]['measured']['test'] - 95:+.2f}"


def test_rows_about_other_sizes_are_left_out_with_a_note(table, alone):
    code, lines, text = table("--rows", "6,8")  # nothing is run: no other directory either
    assert code == 0 and stamps(alone / "table") == {}
    assert "left out: it is about gpt2-medium, and this table was asked for with another model" in text
    assert lines[1]["note"].startswith("left out: it is about gpt2-xl") and "impossible: 149 examples" in lines[1]["note"]
    assert lines[0]["command"].startswith(command(get_table("spam").row(6).run).split(" --model")[0])
    _, lines, _ = table("--rows", "6", checkpoint=None)
    assert lines[0]["note"] == "left out: gpt2-medium isn't in the cache and HF_HUB_OFFLINE is set"


def test_a_row_about_the_size_that_was_named_is_not_left_out(table, alone):
    for name in ("gpt2-medium", "gpt2-medium (355M)"):
        with pytest.raises(UserError, match="gpt2-medium isn't in the Hugging Face cache"):
            table("--rows", "6", "--model", name, checkpoint=None)


def test_an_interrupted_table_goes_on_where_it_stopped(table, alone, monkeypatch):
    interrupt_run(monkeypatch, 12)  # row 1 takes nine: four steps, five batches of evaluation
    code, lines, _ = table("--rows", "1,3", max_steps=4)
    first = stamps(alone / "table")
    assert code == 130
    code, lines, _ = table("--rows", "1,3", max_steps=4)
    assert code == 0 and [line["row"] for line in lines] == [1, 3]
    assert len(stamps(alone / "table")) == 2 and len(stamps(alone / "table").items() & first.items()) == 1
    assert all(job.read_result(path.parent)["interrupted"] is False for path in first)


def test_rows_with_the_same_note_share_it():
    assert [in_ranges(rows) for rows in ([7], [1, 2], [1, 3, 4, 5, 9])] == ["7", "1-2", "1, 3-5, 9"]


def test_what_no_table_can_have_left_is_no_line_of_it(table, alone):
    _, (one, three), text = table("--rows", "1,3")
    assert all(f"[{seed}]({name})" in text for seed, name in zip(one["seeds"], one["runs"], strict=True))
    file = alone / "table" / "table-spam.json"
    for content in (
        one | {"measured": 3},
        one | {"measured": {"test": "x"}},
        one | {"title": None},
        one | {"runs": 5},
        {"row": 1},
        7,
    ):
        file.write_text(json.dumps([content]))
        assert table("--rows", "3")[1] == [three]
    for content in ("[", '{"row": 1}'):
        file.write_text(content)
        assert table("--rows", "3")[1] == [three]
