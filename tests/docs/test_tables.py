"""Hold the measured tables of the pages to their logs, and the logs to the commands that stand beside them."""

import json
import re
import shlex
import statistics
from dataclasses import asdict

import pytest

from pipeline.flags import find_row, parse
from pipeline.table_text import key_of, scale_of
from tools import render_tables
from tools.logs import MACHINE, ROOT, logs_of, result_files
from tools.published_tables import PUBLISHED, read_table
from utils.errors import UserError

MARKERS = {path: render_tables.MARKED.findall(path.read_text(encoding="utf-8")) for path in render_tables.pages()}


def test_every_table_stands_in_a_page():
    assert sorted(found[1] for page in MARKERS.values() for found in page) == sorted(render_tables.TABLES)


@pytest.mark.parametrize("page", [path for path in MARKERS if MARKERS[path]], ids=lambda path: path.name)
def test_pages_hold_what_was_measured(page):
    text = page.read_text(encoding="utf-8")
    assert render_tables.render(text) == text, "run: python -m tools.render_tables"


@pytest.mark.parametrize("page", [path for path in MARKERS if MARKERS[path]], ids=lambda path: path.name)
def test_a_number_that_was_changed_by_hand_is_made_anew(page):
    text = page.read_text(encoding="utf-8")
    for found in render_tables.MARKED.finditer(text):
        last = list(re.finditer(r"\| [-+]?\d+(?:\.\d+)?(?= )", found[3]))[-1]
        at = found.start(3) + last.end()
        assert render_tables.render(text[:at] + "7" + text[at:]) == text, found[2]


def test_a_table_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"no table 'spamm'; choose headline, spam-row10"):
        render_tables.render("<!-- table: spamm -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=r"results/minilm-sst2 has no run of: .*--lora_rank 7"):
        line = "| LoRA | | | `--trainable_layers lora --lora_rank 7 --learning_rate 1e-3` |\n"
        before = "python experiments.py --model distilbert-pocket --dataset sentiment-pocket\n"
        render_tables.variants_table("minilm-sst2", before, line)


FOLDERS = sorted({(one.log, f) for one in PUBLISHED.values() for column in one.columns for f in column.folders})


@pytest.mark.parametrize("name, folder", FOLDERS)
def test_tables_are_what_the_logs_of_their_commands_say(name, folder):
    measured = [line for line in read_table(folder, name).values() if line["measured"]]
    assert measured
    for line in measured:
        logs = [log for log in logs_of(folder, line["command"]) if log["seed"] in line["seeds"]]
        assert sorted(log["seed"] for log in logs) == sorted(line["seeds"])
        named = [json.loads((ROOT / "results" / folder / run / "result.json").read_text()) for run in line["runs"]]
        assert [log["seed"] for log in named] == line["seeds"] and all(log in logs for log in named)
        for metric, mean in line["measured"].items():
            values = [scale_of(metric) * log[key_of(metric)] for log in logs]
            assert statistics.mean(values) == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize(
    "page, folder", [("pocket", "spam-variants"), ("encoders", "minilm-sst2"), ("encoders", "minilm-tasks")]
)
def test_every_log_of_variants_has_its_line(page, folder):
    text = (ROOT / f"docs/results/{page}.md").read_text(encoding="utf-8")
    place = next(found for found in render_tables.MARKED.finditer(text) if found[2] == folder)
    base = re.findall(r"python experiments\.py[^\n]*", text[: place.start()])[-1]
    shown = []
    for _, flags in render_tables.label_and_flags(place[3]):
        shown += [json.dumps(log, sort_keys=True) for log in logs_of(folder, f"{base} {flags}")]
    logs = [json.dumps(json.loads(path.read_text()), sort_keys=True) for path in result_files(folder)]
    assert sorted(shown) == sorted(logs)


def test_row_10_is_the_published_row_at_its_size():
    logs = render_tables.row_10()
    assert [log["seed"] for log in logs] == [123, 124, 125]
    run = find_row("10").run
    for log in logs:
        config = log["config"]
        assert (config["weights"], config["trainable_layers"]) == (run.weights, run.trainable_layers)
        assert (config["model"], config["data_order"], config["amp"]) == ("gpt2-small", "published", "off")
        assert (log["dataset"], log["method"]) == ("spam", "all")


@pytest.mark.parametrize("folder", ["chat-prefix", "gpt2-small-alpaca", "spam-row10"])
def test_single_runs_are_those_of_a_command_in_the_pages(folder):
    """A page names each of these logs, and the command beside it makes what the log's config says."""
    page = next(path for path in MARKERS if f"results/{folder})" in path.read_text(encoding="utf-8"))
    paragraphs = re.split(r"\n(?=#|\d\. )", page.read_text(encoding="utf-8"))
    text = next(part for part in paragraphs if f"results/{folder})" in part)
    typed = re.search(r"python experiments\.py[^\n`]*", text)[0]
    words = shlex.split(typed)[2:]
    said, options = parse(words)
    run = find_row(options["row"]).with_flags(said)
    for path in result_files(folder):
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        given = {name: value for name, value in asdict(run).items() if value is not None}
        assert {name: config[name] for name in given if name not in MACHINE} == {
            name: value for name, value in given.items() if name not in MACHINE
        }
