"""The command line: a search on validation data, seeds on test data, what is done again and what isn't."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count

import pytest
import torch

import experiments
from pipeline.comparison import runs, table
from pipeline.comparison.jobs import DIALOGUE
from pipeline.comparison.methods import ENTRIES, REFERENCE
from pipeline.comparison.runs import measure
from tests.helpers.paths import ROOT
from tests.helpers.small import make_encoder, write_dialogues
from utils.errors import UserError

NUMBERS = {entry.title: str(number) for number, entry in enumerate(ENTRIES, start=1)}
SEARCHED, SEEDS = 4, 2


@pytest.fixture(scope="module")
def bert(tmp_path_factory, encoder_data):
    """Return the checkpoint of a small BERT. Tests only read it."""
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert", encoder_data)


@pytest.fixture
def data(tmp_path, encoder_data):
    """Return a --data_dir that a test may change."""
    return shutil.copytree(encoder_data, tmp_path / "data")


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (1e-3, "0.0003 0.001 0.003", 1e-3),
        (1e-4, "0.0003 0.001 0.003 0.0001 3e-05", 1e-4),
        (1e-9, "0.0003 0.001 0.003 0.0001 3e-05 1e-05", 1e-5),  # still the edge, after three more
        (3.0, "0.0003 0.001 0.003 0.01 0.03 0.1", 0.1),
        (None, "0.0003 0.001 0.003 0.0001 3e-05 1e-05", 1e-5),  # all diverged
    ],
)
def test_a_search_goes_on_beyond_the_edge_of_its_grid(best, tried, chosen, monkeypatch, tmp_path):
    found = []

    def run(_comparison, _entry, rate, _seed, stage, _folder):
        found.append(f"{rate:g}")
        assert stage == "search"
        return {"rate": rate, "validation_loss": best and abs(math.log(rate / best))}

    monkeypatch.setattr(table, "run_once", run)
    assert table.search_rate(DIALOGUE, replace(REFERENCE, rates=(3e-4, 1e-3, 3e-3, 1e-2)), tmp_path) == chosen
    assert " ".join(found) == tried


@pytest.fixture
def command(alone, bert, data, monkeypatch):
    """Return a function that runs --table methods on the small BERT, and returns the names of what was trained for it."""
    trained = []

    def spy(job, tests=None):
        trained.append(f"{job.run.trainable_layers} {job.run.learning_rate:g} {job.run.seed}")
        return measure(job, tests)

    monkeypatch.setattr(table, "measure", spy)
    monkeypatch.setattr(table, "measure_apart", table.measure_one)  # in this process, where the spy is
    monkeypatch.setattr(table, "EXTRA_RATES", 0)
    # Where runs share a process, one this small may fit into what an earlier one freed: its real peak is seen below.
    peaks = count(1)
    monkeypatch.setattr(runs, "peak_memory_bytes", lambda device: next(peaks))

    def run(*words, rows: str, out: str = "out", status: int = 0) -> list[str]:
        trained.clear()
        flags = ["--table", "methods", "--checkpoint", bert, "--data_dir", data, "--device", "cpu", "--max_steps", 3]
        flags += ["--seeds", SEEDS, "--rows", rows, "--output_dir", out, "--batch_size", 16, *words]
        assert experiments.main([*map(str, flags)]) == status
        return [*trained]

    return run


def records(folder) -> dict[str, dict]:
    """Return the records of the one job in a folder, by the names of their files."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("methods/*/*-seed*.json")}


def read_table(folder) -> dict:
    (file,) = folder.glob("methods/*/table.json")
    return json.loads(file.read_text())


def test_a_table_is_searched_measured_and_written(command, capsys):
    trained = command(rows=NUMBERS["head alone"])
    assert len(trained) == len(set(trained)) == 2 * (SEARCHED + SEEDS)  # LoRA of rank 16 along with it
    here = table.Path("out")
    found = records(here)
    assert len(found) == len(trained)
    stages = [one["stage"] for one in found.values()]
    assert (stages.count("search"), stages.count("test")) == (2 * SEARCHED, 2 * SEEDS)
    for one in found.values():
        assert ("test" in one) == (one["stage"] == "test") and "general" not in one
        assert len(one.get("test", [0] * 20)) == 20  # the development set
        assert one["file_bytes"] > 4 * one["trained_parameters"] and one["peak_bytes"] > 0
        assert (one["seed"] == 0) == (one["stage"] == "search") and one["best_step"] in (1, 2, 3)
    results = read_table(here)
    assert [row["title"] for row in results["rows"]] == ["head alone", REFERENCE.title]
    best = min((one["validation_loss"], one["learning_rate"]) for one in found.values() if is_search(one, "head alone"))
    assert results["rows"][0]["learning_rate"] == best[1]
    assert "| 3 | head alone |" in capsys.readouterr().out


def is_search(record: dict, title: str) -> bool:
    return record["stage"] == "search" and record["title"] == title


@pytest.mark.parametrize("titles", [("bypass", "bypass"), ("Shift", "shift!"), ("сдвиг",)])
def test_methods_whose_files_have_one_name_are_refused(monkeypatch, titles):
    own = tuple(replace(REFERENCE, title=title) for title in titles)
    monkeypatch.setattr(table, "ENTRIES", (REFERENCE, *own))
    with pytest.raises(UserError, match=f"the files of '{titles[0]}'.*give each method a title"):
        table.chosen_entries([1])


def test_finished_runs_are_not_done_again(command):
    command(rows=NUMBERS["head alone"])
    assert command(rows=NUMBERS["head alone"]) == []
    assert len(command("--seeds", SEEDS + 1, rows=NUMBERS["head alone"])) == 2  # one more seed of two methods
    assert len(command(rows=NUMBERS["norms"])) == SEARCHED + SEEDS


def test_only_what_is_stale_is_done_again(command, data):
    command(rows=NUMBERS["head alone"])
    (search, *_) = sorted(path for path in table.Path("out").rglob("head-alone*seed0.json"))
    record = json.loads(search.read_text())
    record["hashes"]["code_sha256"] = "of other code"
    search.write_text(json.dumps(record))
    assert len(command(rows=NUMBERS["head alone"])) == 1
    search.write_text("half a fi")
    assert len(command(rows=NUMBERS["head alone"])) == 1
    test = data / "glue_sst2" / "dev.tsv"
    test.write_text(test.read_text().replace("\t1\n", "\t0\n", 1))
    assert len(command(rows=NUMBERS["head alone"])) == 2 * SEEDS  # what never saw test data isn't stale
    train = data / "glue_sst2" / "train.tsv"
    train.write_text(train.read_text().replace("\t1\n", "\t0\n", 1))
    assert len(command(rows=NUMBERS["head alone"])) >= 2 * (SEARCHED + SEEDS)


def test_rows_of_other_code_are_named(command, capsys):
    command("--seeds", 1, rows=NUMBERS["head alone"])
    assert "other code" not in capsys.readouterr().out
    for search in table.Path("out").rglob("head-alone*seed0.json"):
        search.write_text(re.sub('"code_sha256": "[^"]*"', '"code_sha256": "of other code"', search.read_text()))
    command("--seeds", 1, rows=NUMBERS[REFERENCE.title])
    assert "measured with other code than now: rows 3; --rows 3 measures them anew" in capsys.readouterr().out


def shuffle_test_labels(data) -> None:
    """Deal out the labels of the development set anew."""
    file = data / "glue_sst2" / "dev.tsv"
    head, *lines = file.read_text().splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    mixed = random.Random(5).sample(labels, len(labels))
    assert mixed != [*labels]
    file.write_text("\n".join([head, *map("\t".join, zip(texts, mixed, strict=True))]) + "\n")


MEASURED_ANEW = {"total_seconds", "train_seconds", "seconds_to_best", "peak_bytes"}


def test_the_search_never_sees_test_data(command, data):
    rows = ",".join(NUMBERS[title] for title in ("full", "head alone"))
    command(rows=rows, out="one")
    shuffle_test_labels(data)
    command(rows=rows, out="two")
    one, two = records(table.Path("one")), records(table.Path("two"))
    assert one.keys() == two.keys()  # the same rates were chosen
    for name, record in one.items():
        same = {key for key in record if key not in MEASURED_ANEW and record[key] == two[name][key]}
        assert record.keys() - same - MEASURED_ANEW == (set() if record["stage"] == "search" else {"test", "hashes"})


def test_shards_share_the_work_out(command):
    rows = ",".join(NUMBERS[title] for title in ("norms", "head alone"))
    parts = [command("--shard", f"{i}/2", rows=rows, out="shards") for i in (1, 2)]
    assert [len(part) for part in parts] == [2 * (SEARCHED + SEEDS), SEARCHED + SEEDS]
    assert command(rows=rows, out="shards") == []
    assert [row["title"] for row in read_table(table.Path("shards"))["rows"]] == ["head alone", REFERENCE.title, "norms"]


def test_an_interrupted_table_goes_on(command, monkeypatch, capsys):
    counted = []

    def interrupted(job, tests=None):
        counted.append(job)
        return None if len(counted) == 3 else measure(job)

    with monkeypatch.context() as patched:
        patched.setattr(table, "measure", interrupted)
        command("--seeds", 1, rows=NUMBERS[REFERENCE.title], status=130)
    assert "the same command goes on" in capsys.readouterr().out
    assert len(records(table.Path("out"))) == 2
    assert len(command("--seeds", 1, rows=NUMBERS[REFERENCE.title])) == SEARCHED + 1 - 2


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all runs are in one process")
PROGRAM = [sys.executable, "experiments.py", "--table", "methods", "--dataset", "persona", "--rows", "5", "--seeds", "1"]


@LINUX
def test_the_memory_of_a_run_does_not_depend_on_those_before_it(tmp_path):
    words = ["--max_steps", "2", "--train_samples", "40", "--device", "cpu", "--output_dir", tmp_path]
    done = subprocess.run([*PROGRAM, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = [one["peak_bytes"] for one in records(tmp_path).values() if one["stage"] == "search"]
    assert len(peaks) == 3 and max(peaks) < 1.2 * min(peaks)


def end_the_other(process: subprocess.Popen) -> None:
    """Kill the process that trains for this one, as a system without memory does."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        os.kill(int(children.read().split()[0]), signal.SIGKILL)


GOES_ON = "the same command goes on from here"


@LINUX
@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (lambda process: os.killpg(process.pid, signal.SIGINT), 130, GOES_ON),
        (lambda process: process.terminate(), 130, GOES_ON),  # which the other process doesn't get
        (lambda process: process.kill(), -signal.SIGKILL, ""),  # the other holds the pipes, which are read to their end
        (end_the_other, 2, "the system ended the run of LoRA, r = 16, learning rate 0.0003, seed 0, perhaps for lack of"),
    ],
    ids=["Ctrl-C", "terminate", "kill", "kill the other"],
)
def test_neither_process_outlives_the_other(end, status, said, tmp_path):
    words = ["--device", "cpu", "--num_epochs", "500", "--output_dir", tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PROGRAM, *words], cwd=ROOT, start_new_session=True, **pipes) as process:
        line = process.stdout.readline()
        while "nothing trained" not in line:  # then LoRA trains
            line = process.stdout.readline()
        time.sleep(3)
        end(process)
        out, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert said in out + error and (GOES_ON in out + error) == bool(said)
    assert "Traceback" not in error


def test_out_of_memory_gets_advice(command, monkeypatch):
    def too_large(job, tests=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(table, "measure", too_large)
    with pytest.raises(UserError, match="out of memory on cpu: choose a --batch_size below 16"):
        command(rows=NUMBERS[REFERENCE.title])


def test_a_training_that_diverges_is_not_chosen(command, monkeypatch):
    def too_large(job, tests=None):
        rate = 1e38 if job.run.learning_rate > 5e-3 else job.run.learning_rate
        return measure(table.replace(job, run=table.replace(job.run, learning_rate=rate, max_grad_norm=0.0)))

    monkeypatch.setattr(table, "measure", too_large)
    command(rows=NUMBERS[REFERENCE.title])
    (row,) = read_table(table.Path("out"))["rows"]
    assert row["diverged"] and row["learning_rate"] <= 5e-3


def test_dialogues_are_measured_with_what_is_kept(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "measure_apart", table.measure_one)
    (tmp_path / "data" / "text_corpus").mkdir(parents=True)
    (tmp_path / "data" / "text_corpus" / "wikitext2_test.txt").write_text("The river runs to the sea. " * 4000)
    dialogues = write_dialogues(tmp_path / "dialogues.json")
    words = ["--table", "methods", "--dataset", dialogues, "--general_dataset", "general", "--data_dir", tmp_path / "data"]
    words += ["--max_steps", 2, "--rows", "3,5,20", "--seeds", 1, "--output_dir", "out"]
    assert experiments.main([*map(str, words)]) == 0
    found = records(table.Path("out"))
    assert [one["stage"] for one in found.values()].count("untrained") == 1
    tested = [one for one in found.values() if one["stage"] != "search"]
    assert len(tested) == 2 and all(len(one["wikitext2"]) == 32 and len(one["general"]) == 38 for one in tested)
    results = read_table(table.Path("out"))
    assert {*results["before"]} == {"test", "general", "wikitext2"}
    assert "needs a classifier" in results["left_out"]["bypass"] and "nothing to train" in results["left_out"]["head alone"]
    assert [row["title"] for row in results["rows"]] == [REFERENCE.title] and not results["higher_is_better"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "1e-3"], "--learning_rate doesn't go with --table methods, whose rows say it"),
        (["--lora_rank", "8"], "--lora_rank doesn't go with --table methods, whose rows say it"),
        (["--trainable_layers", "lora"], "--trainable_layers doesn't go with --table methods"),
        (["--stages", "6_rounds"], "--stages doesn't go with --table methods"),
        (["--num_epochs", "0"], "--num_epochs 0 doesn't go with --table methods"),
        (["--save_steps", "5"], "--save_steps doesn't go with --table methods"),
        (["--rows", "0"], "the table methods has no row 0; it has 1-"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--dataset", "persona", "--ignore_index", "1"], "--ignore_index is about classification"),
        (["--resume"], "--resume goes with one run"),
    ],
)
def test_what_makes_no_sense_is_refused(alone, words, said):
    with pytest.raises(UserError) as error:
        experiments.main(["--table", "methods", *words])
    assert said in str(error.value)
