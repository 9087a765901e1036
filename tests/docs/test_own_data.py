"""Run every command of docs/own_data.md on the files that the page shows, in an empty directory."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

TEXT = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```text\n# (\S+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, tmp_path):
    for name, content in FILES:
        (tmp_path / name).write_text(content, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    words = command.replace("python experiments.py", f"{sys.executable} {ROOT / 'experiments.py'}", 1)
    done = subprocess.run(words, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\ncolumns  " in done.stdout and "\nclasses  " in done.stdout
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json"))
    assert {"validation_accuracy", "validation_macro_f1", "validation_per_class", "validation_confusion"} <= result.keys()
    assert len(result["labels"]) == 2 and result["steps"] >= 20


def test_the_page_shows_each_file_that_it_uses():
    used = {word for command in COMMANDS for word in command.split() if "." in word} - {"experiments.py"}
    assert used == {name for name, _ in FILES} and len(COMMANDS) >= 5
