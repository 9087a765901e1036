"""Run the examples of docs/extending.md in a copy of the checkout: write the files, change the lines, type the commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

CODE = ("model", "peft", "data", "training", "pipeline", "published", "utils")
TEXT = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# (\S+)\n(.*)", re.DOTALL)


def copy_checkout(to: Path) -> Path:
    """Copy the source to a folder, and link to the shipped files."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, to)
    for name in CODE:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("pocket", "__pycache__"))
    for name in ("model", "data"):
        (to / name / "pocket").symlink_to(ROOT / name / "pocket")
    return to


def apply(kind: str, block: str, folder: Path) -> None:
    """Write a block that names its file, or change the lines of a diff in it."""
    name, content = NAMED.fullmatch(block).groups()
    path = folder / name
    if kind != "diff":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    for old, added in re.findall(r"^-(.*)\n((?:\+.*\n)+)", content, re.MULTILINE):
        assert text.count(old) == 1, f"{name} has {text.count(old)} lines with {old}"
        text = text.replace(old, "\n".join(line[1:] for line in added.splitlines()))
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_runs(section, tmp_path):
    folder = copy_checkout(tmp_path)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    commands = 0
    for kind, block in BLOCK.findall(SECTIONS[section]):
        if kind != "bash":
            apply(kind, block, folder)
            continue
        for line in block.splitlines():
            words = line.replace("python ", f"{sys.executable} ", 1)
            done = subprocess.run(words, shell=True, env=environment, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            commands += 1
    assert commands
    tables = [json.loads(path.read_text())["rows"] for path in folder.glob("runs/methods/*/table.json")]
    compared = [["LoRA, r = 16", "shift"]] if section == "A method" else []
    assert [[row["title"] for row in rows] for rows in tables] == compared
    results = list(folder.glob("runs/**/result.json"))
    assert results and all(path.stat().st_size for path in results)


def test_a_method_of_ones_own_starts_as_the_model_and_can_be_merged(tmp_path):
    folder = copy_checkout(tmp_path)
    kind, block = BLOCK.findall(SECTIONS["A method"])[0]
    apply(kind, block, folder)
    code = """
import torch
from model import from_pretrained
from peft import attach, export, merge
from peft.shift import Shift

model = from_pretrained("gpt2-pocket", head="classifier", num_labels=2).eval()
ids = torch.tensor([[10, 20, 30]])
before = model(ids)
attach(model, Shift())
assert torch.equal(model(ids), before)
for parameter in model.parameters():
    parameter.data += 0.01 * parameter.requires_grad
after = model(ids)
assert not torch.allclose(after, before) and all("shift" in name or "head" in name for name in export(model))
assert torch.allclose(merge(model)(ids), after, atol=1e-5)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
