"""What the README says can be typed, can be typed."""

import json
import re
import shlex
import statistics
from dataclasses import asdict

import pytest
from conftest import ROOT

import experiments
from data import get_task
from published.tables import values_of
from run import resolve

RESULTS = ROOT / "published" / "results" / "spam-shipped"
SPLITS = ("train", "validation", "test")
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


def test_measured_numbers_of_the_table_are_those_of_the_logs():
    """Each measured cell equals the table's JSON, and that the results of its runs."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|", README, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 20))
    lines = {line["row"]: line for line in json.loads((RESULTS / "table-spam.json").read_text())}
    logs = [json.loads(path.read_text()) for path in RESULTS.glob("*/result.json")]
    for number, published, measured in rows:
        line = lines[int(number)]
        assert published.strip() == values_of(line["published"], None, SPLITS)
        assert measured.strip() == (values_of(line["measured"], line["std"], SPLITS) if line["measured"] else "–")
        if line["measured"]:
            run = experiments.parse(shlex.split(line["command"])[2:])[0]
            config = resolve(run, get_task(run.dataset).recipe_for(run.model))
            apart = {"seed", "device", "amp", "output_dir"}  # resolved on the machine, or varied within the row
            wanted = {name: value for name, value in asdict(config).items() if name not in apart}
            # A log may be older than a flag; whatever the flag's default, it says what runs did before there was one.
            logs_of_row = [
                log
                for log in logs
                if all(log["config"].get(name, value) == value for name, value in wanted.items())
                and log["seed"] in line["seeds"]
            ]
            assert sorted(log["seed"] for log in logs_of_row) == line["seeds"]
            mean = statistics.mean(100 * log["test_accuracy"] for log in logs_of_row)
            assert mean == pytest.approx(line["measured"]["test"], abs=0.005)


def test_row_10_is_that_of_its_logs():
    table = README.split("### Row 10, to the digit")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, flags=re.MULTILINE))
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.parent.glob("spam-row10/*/result.json"))]
    for result in results:
        config = result["config"]
        assert (config["model"], config["weights"], config["trainable_layers"]) == ("gpt2-small", "random", "all")
        assert (config["data_order"], config["amp"], result["dataset"]) == ("published", "off", "spam")
    columns = [[100 * result[f"{split}_accuracy"] for result in results] for split in SPLITS]
    for result, values in zip(results, zip(*columns, strict=True), strict=True):
        assert rows[str(result["seed"])] == " / ".join(f"{value:.2f}" for value in values)
    spread = " / ".join(f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}" for column in columns)
    assert rows["mean ± std"] == spread and len(results) == 3
