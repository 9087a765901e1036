"""Run docs/predicting.md: its commands one after the other, and then its Python."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

TEXT = (ROOT / "docs/predicting.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"```bash\n(.*?)```", TEXT, re.DOTALL)[1].splitlines()
CODE = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]


@pytest.mark.not_quick
def test_the_page_runs_from_top_to_bottom(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out = []

    def run(words, **how):
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, **how)
        assert done.returncode == 0, done.stderr
        out.append(done.stdout)

    for line in COMMANDS:
        run(line.replace("python experiments.py", f"{sys.executable} {ROOT}/experiments.py"), shell=True)
    run([sys.executable, "-c", CODE])
    one, printed, exported = out[1], out[3], out[7]
    assert re.fullmatch(r"positive  \(negative 0\.\d{4}, positive 0\.\d{4}\)\n", one)
    header = next(line for line in TEXT.splitlines() if line.startswith("| row |"))
    assert printed.splitlines()[0].split(",") == header.strip("| ").split(" | ")
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["negative", "positive"] and exported.startswith("negative  (")
    assert [line.split()[0] for line in out[-1].splitlines()] == ["positive", "negative"]
