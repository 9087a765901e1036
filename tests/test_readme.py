"""What the README says can be typed, can be typed."""

import re
import shlex
from dataclasses import asdict

import pytest
from conftest import ROOT

import experiments

README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python experiments\.py[^\n`|&]*", README)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command):
    words = shlex.split(command, comments=True)[2:]
    run, options = experiments.parse(words)
    assert words == [] or options or any(value is not None for value in asdict(run).values())
    if "row" in options:
        experiments.find_row(options["row"])
    if "rows" in options:
        experiments.parse_rows(options["rows"])


def test_ci_runs_the_readme_test_command():
    command = next(line for line in README.splitlines() if "python -m pytest" in line)
    assert command in (ROOT / ".ci/run").read_text()


def test_files_of_the_tree_exist_and_no_link_is_dead():
    tree = README.split("## The house")[1].split("```")[1]
    named = [line.split()[0].rstrip(",") for line in tree.splitlines() if line.strip()]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    missing = [name for name in named + links if not (ROOT / name).exists()]
    assert not missing


def test_run_time_dependencies_are_the_five_and_pinned():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in lines} == {"torch", "tiktoken", "numpy", "safetensors", "huggingface_hub"}
    assert all("==" in line for line in lines) and "torch==2.13.0" in lines
