"""What the README says can be typed, can be typed."""

import json
import re
import shlex
import statistics
from dataclasses import asdict, replace

import pytest

import experiments
from benchmarks import growth, measure
from config import Run, command
from pipeline import job
from pipeline.tables import key_of, scale_of, values_of
from published import get_table
from tests.helpers.paths import ROOT

RESULTS = ROOT / "results"
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


# Each table of the README: its measured columns, as folders of results and what is shown of them.
SCORES = ("loss", "bleu4", "rougel")
TABLES = {
    "spam": [("spam-shipped", ("test",)), ("spam-real", ("test",))],
    "distilbert-sst2": [("distilbert-sst2-shipped", ("validation",))],
    "roberta-glue": [("roberta-glue-shipped", ("validation",))],
    "encoders-adapter": [("encoders-adapter-shipped", ("test", "test_macro_f1"))],
    "encoders-fewshot": [
        ("encoders-fewshot-shipped", ("test", "test_macro_f1")),
        ("encoders-fewshot-minilm", ("test", "test_macro_f1")),
    ],
    "chat": [
        ("chat-shipped", tuple(f"test_{name}" for name in SCORES)),
        ("chat-shipped", tuple(f"general_{name}" for name in SCORES)),
        ("chat-shipped", ("seconds",)),
    ],
}


def readme_lines(name: str) -> list[str]:
    """The rows as the README must have them: made anew from the published table and the JSON of what was measured."""
    table, lines = get_table(name), []
    measured = {folder: {line["row"]: line for line in read_table(folder, name)} for folder, _ in TABLES[name]}
    for row in [table.base, *table.rows] if table.base else table.rows:
        cells = [str(row.number), row.title, values_of(row.published, row.published_std, table.printed or table.metrics)]
        for folder, metrics in TABLES[name]:
            found = measured[folder].get(row.number) or {"measured": None}
            if metrics == ("seconds",):
                cells.append(f"{found['seconds']:.0f}")
            else:
                cells.append(values_of(found["measured"], found["std"], metrics) if found["measured"] else "–")
        whole = name == "spam" or row is table.base
        cells.append(f"`{command(row.run) if whole else f'python experiments.py --row {name}:{row.number}'}`")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def read_table(folder: str, name: str) -> list[dict]:
    return json.loads((RESULTS / folder / f"table-{name}.json").read_text())


@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_what_was_measured(name):
    missing = [line for line in readme_lines(name) if line not in README.splitlines()]
    assert not missing, "\n".join(missing)


def settings_of(run: Run) -> dict:
    """What a run resolves to, but for what is of the machine or varies within a row."""
    if run.checkpoint:  # which needn't be here: any encoder resolves alike where the learning rate is said
        assert run.learning_rate
        run = replace(run, checkpoint=None, model="distilbert-pocket")
    apart = {"model", "checkpoint", "data_dir", "output_dir", "seed", "device", "amp"}
    return {key: value for key, value in asdict(job.prepare(run).run).items() if key not in apart}


@pytest.mark.parametrize("name, folder", sorted({(name, folder) for name in TABLES for folder, _ in TABLES[name]}))
def test_what_was_measured_is_what_the_logs_say(name, folder):
    logs = [json.loads(path.read_text()) for path in (RESULTS / folder).glob("*/result.json")]
    measured = [line for line in read_table(folder, name) if line["measured"]]
    assert measured
    for line in measured:
        run = experiments.parse(shlex.split(line["command"])[2:])[0]
        wanted = settings_of(run)
        # A log may be older than a flag; whatever the flag's default, it says what runs did before there was one.
        of_row = [log for log in logs if all(log["config"].get(key, value) == value for key, value in wanted.items())]
        of_row = [log for log in of_row if log["seed"] in line["seeds"]]
        assert sorted(log["seed"] for log in of_row) == sorted(line["seeds"])
        for metric, mean in line["measured"].items():
            assert statistics.mean(scale_of(metric) * log[key_of(metric)] for log in of_row) == pytest.approx(
                mean, abs=0.005
            )


# Sections whose tables have a line for each set of flags that was added to the command above them, and their logs.
MEASURED = {"### Real weights on real sentences": "minilm-sst2", "### Small tasks": "minilm-tasks"}
LINE = re.compile(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| `(--[^|]+)` \|$", re.MULTILINE)


def measured_line(section: str, label: str, flags: str) -> str:
    """The line as the README must have it, from the logs of these flags: one, or one for each seed."""
    run = experiments.parse(shlex.split(f"{base_command(section)} {flags}")[2:])[0]
    wanted = settings_of(run)
    logs = [json.loads(path.read_text()) for path in sorted((RESULTS / MEASURED[section]).glob("*/result.json"))]
    logs = [log for log in logs if all(log["config"].get(key, value) == value for key, value in wanted.items())]
    assert logs, flags
    metrics = ("validation",) if logs[0]["test_accuracy"] is None else ("test", "test_macro_f1")
    values = {name: [scale_of(name) * log[key_of(name)] for log in logs] for name in metrics}
    mean = {name: statistics.mean(each) for name, each in values.items()}
    std = {name: statistics.stdev(each) for name, each in values.items()} if len(logs) > 1 else None
    return f"| {label} | {logs[0]['trainable_parameters']:,} | {values_of(mean, std, metrics)} | `{flags}` |"


def base_command(section: str) -> str:
    return re.search(r"python experiments\.py[^\n]*", text_of(section))[0]


def text_of(section: str) -> str:
    return re.split(r"\n##+ ", README.split(f"{section}\n")[1])[0]


@pytest.mark.parametrize("section", MEASURED)
def test_lines_are_those_of_their_logs(section):
    lines = LINE.finditer(text_of(section))
    wrong = [line[0] for line in lines if line[0] != measured_line(section, line[1], line[2])]
    assert not wrong, "\n".join(wrong)
    logs = list((RESULTS / MEASURED[section]).glob("*/result.json"))
    assert logs and len(LINE.findall(text_of(section))) > 2


def test_row_10_is_that_of_its_logs():
    table = README.split("### Row 10, to the digit")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, flags=re.MULTILINE))
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("spam-row10/*/result.json"))]
    for result in results:
        config = result["config"]
        assert (config["model"], config["weights"], config["trainable_layers"]) == ("gpt2-small", "random", "all")
        assert (config["data_order"], config["amp"], result["dataset"]) == ("published", "off", "spam")
    columns = [[100 * result[f"{split}_accuracy"] for result in results] for split in SPLITS]
    for result, values in zip(results, zip(*columns, strict=True), strict=True):
        assert rows[str(result["seed"])] == " / ".join(f"{value:.2f}" for value in values)
    spread = " / ".join(f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}" for column in columns)
    assert rows["mean ± std"] == spread and len(results) == 3


@pytest.mark.parametrize("suite", ["spam", "encoders", "growth"])
def test_speed_is_what_the_benchmarks_measured(suite):
    records = measure.read_records(ROOT / "benchmarks" / "results" / f"{suite}.json")
    others = [one for one in records if "method" not in one]
    lines = [line for line in measure.markdown(others, "").splitlines() if re.match(r"\| \d", line)]
    lines += growth_lines(records) if suite == "growth" else []
    assert lines and not [line for line in lines if line not in README.splitlines()]


def growth_lines(records: list[dict]) -> list[str]:
    """A line for each shape: seconds, share of the limit and MB of all layers, and of LoRA."""
    steps = {(one["method"], one["model"], one["batch_size"], one["length"]): one for one in records if "method" in one}
    lines = []
    for model, batch, length in dict.fromkeys(growth.SHAPES):
        cells = [model, f"{batch} x {length}"]
        for one in (steps[method, model, batch, length] for method in growth.METHODS):
            share = "-" if one["time_ratio"] is None else f"{one['time_ratio']:.0%}"
            cells += [measure.number(one["ours_seconds"]), share, measure.number(one["ours_peak_bytes"], 1e6)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
