"""Run every command of docs/own_data.md on the files that the page shows, in empty directories."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TEXT = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```text\n# (\S+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS = [block.splitlines() for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)]
COMMANDS = [command for block in BLOCKS for command in block]


def run(command: str, folder: Path) -> str:
    """Run a command where the page's files lie. Return what it printed."""
    for name, content in FILES:
        (folder / name).write_text(content, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    words = command.replace("python experiments.py", f"{sys.executable} {ROOT / 'experiments.py'}", 1)
    done = subprocess.run(words, shell=True, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [one for block in BLOCKS if len(block) < 2 or "--dataset" in block[1] for one in block])
def test_a_training_of_the_page_runs(command, tmp_path):
    out = run(command, tmp_path)
    assert "\ncolumns  " in out and "\nclasses  " in out
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json"))
    assert {"validation_accuracy", "validation_macro_f1", "validation_per_class", "validation_confusion"} <= result.keys()
    assert len(result["labels"]) == 2 and result["steps"] >= 20


def test_what_follows_a_training_runs(tmp_path):
    predict, named, report = (block for block in BLOCKS if len(block) > 1 and "--dataset" not in block[1])
    out = [run(command, tmp_path) for command in (*predict, *named, *report)]
    assert re.fullmatch(r"(positive|negative)  \(negative 0\.\d{4}, positive 0\.\d{4}\)\n", out[1])
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["1", "2"]
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert len(again) == 6 and all([*row["probabilities"]] == ["negative", "positive"] for row in again)
    rows = [*csv.DictReader(out[5].splitlines())]
    assert len(rows) == 6 and {row["label"] for row in rows} <= {"bill", "chat"}
    page = (tmp_path / "runs/report.html").read_text(encoding="utf-8")
    assert all(f"runs/{name}" in page for name in ("reviews", "notes", "questions"))


def test_the_page_shows_each_file_that_it_uses():
    used = {word for command in COMMANDS for word in re.findall(r"--(?:dataset|predict) (\w+\.\w+)", command)}
    assert used == {name for name, _ in FILES} and len(COMMANDS) >= 12
