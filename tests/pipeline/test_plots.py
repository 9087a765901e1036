"""Curves, and metrics as CSV."""

import builtins
import csv
import json
import subprocess
import sys

import pytest

from pipeline import plots
from tests.helpers.paths import ROOT
from utils.errors import UserError

RECORDS = [
    {
        "step": 1,
        "epoch": 0,
        "split": "train",
        "loss": 0.7,
        "accuracy": 0.5,
        "learning_rate": 0.1,
        "seconds": 1.0,
        "stage": 1,
    },
    {"step": 2, "epoch": 0, "split": "validation", "loss": 0.6, "accuracy": 0.75, "targets": 4, "seconds": 2.0, "stage": 1},
    {
        "step": 1,
        "epoch": 0,
        "split": "train",
        "loss": 0.5,
        "accuracy": 1.0,
        "learning_rate": 0.1,
        "seconds": 1.0,
        "stage": 2,
    },
]


@pytest.fixture
def run_directory(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


def test_the_documented_command_prints_csv(run_directory):
    command = [sys.executable, "-m", "pipeline.plots", run_directory, "--csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["step"], row["split"], row["loss"], row["targets"]) for row in rows] == [
        ("1", "train", "0.7", ""), ("2", "validation", "0.6", "4"), ("1", "train", "0.5", ""),
    ]  # fmt: skip


def test_stages_follow_one_another():
    assert [step for step, _ in plots.placed(RECORDS, "train")] == [1, 3]
    assert [step for step, _ in plots.placed(RECORDS, "validation")] == [2]


def test_curves_are_drawn(run_directory):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert plots.draw(run_directory) == run_directory / "curves.png"
    assert (run_directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_says_how_to_install_it(run_directory, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="plots need matplotlib: pip install matplotlib"):
        plots.draw(run_directory)


def test_a_directory_of_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        plots.read_metrics(tmp_path)


@pytest.mark.parametrize("line", ["{", "7", '{"step": 1}', json.dumps(RECORDS[0] | {"loss": "low"}), "[" * 100_000])
def test_what_no_run_writes(tmp_path, line):
    whole = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "metrics.jsonl").write_text(f"{whole}{line}\n{whole}")
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line {len(RECORDS) + 1}: no record of a run"):
        plots.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(whole + line)  # cut off, as in a run that was killed
    assert plots.read_metrics(tmp_path) == RECORDS
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="can't be read"):
        plots.read_metrics(tmp_path)
