"""Fill the measured tables of README.md and docs/ from the logs in results/ and benchmarks/results/.

python -m tools.render_tables            write the pages whose tables differ from their logs
python -m tools.render_tables --check    write nothing; exit with 1 if a page differs

A page holds `<!-- table: NAME -->` and `<!-- end -->`. What stands between is replaced by the table of that name, so no
measured number is typed by hand. Tests run the command over the pages and expect no change.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks import growth, measure, memory
from data.registry import get_task
from pipeline.comparison.pages import table_text
from pipeline.comparison.summary import summarize
from pipeline.table_text import key_of, scale_of, values_of
from published import get_table
from published.table import Row
from tools.chat_questions import LARGER, LOGGED, questions_table
from tools.logs import ROOT, logs_of, results_in
from tools.memory_report import chatglm_rows
from tools.published_tables import (
    F1,
    PUBLISHED,
    SPLITS,
    markdown,
    measured_cell,
    own_table,
    published_table,
    read_table,
)
from utils.errors import UserError, run_program

MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str) -> str:
    """Return the page with every marked table made anew."""

    def table(found: re.Match) -> str:
        begin, name, old, end = found.groups()
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}; choose {', '.join(TABLES)}")
        return begin + "\n".join(TABLES[name](text[: found.start()], old)) + "\n" + end

    return MARKED.sub(table, text)


# --- Tables of variants: one command, and the flags that each line adds to it ---


def variants_table(folder: str, before: str, old: str) -> list[str]:
    """Return the table with trained parameters and accuracies filled in from the logs.

    The first and the last cell of a line, its label and its flags, are kept as they stand in the page: a new line is
    added by writing these two. `before` ends with the command that the flags are added to.
    """
    base = re.findall(r"python experiments\.py[^\n]*", before)[-1]
    rows = []
    for label, flags in label_and_flags(old):
        logs = logs_of(folder, f"{base} {flags}")
        metrics = metrics_of(logs[0])
        rows.append([label, f"{logs[0]['trainable_parameters']:,}", mean_and_std(logs, metrics), f"`{flags}`"])
    return markdown(["what trains", "trained parameters", "accuracy", "flags"], rows)


def metrics_of(log: dict) -> tuple[str, ...]:
    """Return what is shown of such a run: what was published for its task, on test data where it has labels."""
    if log["test_accuracy"] is None:
        return ("validation",)
    return F1 if "macro_f1" in get_task(log["dataset"]).metrics else ("test",)


def label_and_flags(lines: str) -> list[tuple[str, str]]:
    """Return the first and the last cell of each line that ends with flags."""
    return re.findall(r"^\| ([^|]+) \|.*\| `(--[^|]+)` \|$", lines, re.MULTILINE)


def mean_and_std(logs: list[dict], metrics: tuple[str, ...]) -> str:
    """Return the metrics over the logs' seeds."""
    values = {name: [scale_of(name) * log[key_of(name)] for log in logs] for name in metrics}
    mean = {name: statistics.mean(each) for name, each in values.items()}
    std = {name: statistics.stdev(each) for name, each in values.items()} if len(logs) > 1 else None
    return values_of(mean, std, metrics)


# --- Row 10 of the spam table, seed by seed ---


def row_10() -> list[dict]:
    """Return the results of row 10 at GPT-2 small's size, ordered by seed."""
    return sorted(results_in("spam-row10"), key=lambda log: log["seed"])


def row_10_table() -> list[str]:
    """Return the published accuracies, ours with each seed, and their mean."""
    row, logs = get_table("spam").row(10), row_10()
    rows = [["published (A100)", values_of(row.published, None, SPLITS)]]
    rows += [[str(log["seed"]), mean_and_std([log], SPLITS)] for log in logs]
    return markdown(["seed", "train / validation / test"], [*rows, ["mean ± std", mean_and_std(logs, SPLITS)]])


# --- The README's table: the rows that matter most ---

REAL = "SmolLM2-135M, real messages, 3 seeds"
MINILM = "MiniLM, 20,000 sentences"
TIBBIN = "SmolLM2-135M, shipped persona"
SPAM, ENCODERS, PERSONA = (f"docs/results/{name}.md" for name in ("spam", "encoders", "persona"))


def headline_table() -> list[str]:
    """Return one line for each row that matters: what was published, what we measured, and the page with the rest."""
    accuracy = ("validation",)
    of = {name: from_table(f"{name}-minilm", name, accuracy) for name in ("distilbert-sst2", "roberta-glue")}
    adapters = from_table("encoders-adapter-minilm-2e-4", "encoders-adapter", F1)
    spam, chat = from_table("spam-smollm2", "spam", ("test",)), from_table("chat-smollm2", "chat", ("test_loss",))
    lines = [
        ("spam", 10, SPLITS, mean_and_std(row_10()[:1], SPLITS), "gpt2-small, real messages, seed 123", SPAM),
        ("spam", 1, ("test",), spam(1), REAL, SPAM),
        ("spam", 4, ("test",), spam(4), REAL, SPAM),
        ("spam", 16, ("test",), spam(16), REAL, SPAM),
        ("distilbert-sst2", 10, accuracy, of["distilbert-sst2"](10), MINILM, ENCODERS),
        ("distilbert-sst2", 16, accuracy, of["distilbert-sst2"](16), MINILM, ENCODERS),
        ("distilbert-sst2", 9, accuracy, of["distilbert-sst2"](9), MINILM, ENCODERS),
        ("roberta-glue", 1, accuracy, of["roberta-glue"](1), MINILM, ENCODERS),
        ("encoders-adapter", 12, F1, adapters(12), "MiniLM, 5 seeds, learning rate 2e-4", ENCODERS),
        ("chat", 26, ("mean_train_loss",), chat(26), TIBBIN, PERSONA),
        ("chat", 28, ("mean_train_loss",), chat(28), TIBBIN, PERSONA),
    ]
    rows = []
    for name, number, metrics, ours, measured_with, page in lines:
        row = get_table(name).row(number)
        theirs = values_of(row.published, row.published_std, metrics)
        rows.append([f"[{name} {number}]({page})", title_of(row), theirs, ours, measured_with])
    return markdown(["log and row", "setting", "published", "ours", "ours was measured with"], rows)


def title_of(row: Row) -> str:
    """Return the row's title without the name of the model that the log took."""
    return re.sub(r"^(logged: |[\w-]+-base[\w-]*, )", "", row.title)


def from_table(folder: str, name: str, metrics: tuple[str, ...]) -> Callable[[int], str]:
    """Return the function from a row's number to what was measured of it."""
    lines = read_table(folder, name)
    return lambda number: measured_cell(lines[number], metrics)


# --- Preferences (--objective dpo) ---


def preferences_table() -> list[str]:
    """Return one line for each model: what held-out pairs come to after training, mean ± standard deviation over seeds."""
    of_model: dict[str, list[dict]] = {}
    for log in results_in("preferences"):
        of_model.setdefault(Path(log["model"]).name, []).append(log)  # of a checkpoint: its folder's name
    metrics = ("test_loss", "test", "test_gap_before", "test_gap")
    headings = ["model", "seeds", "loss", "accuracy, per cent", "gap before", "gap after"]
    rows = [[model, str(len(logs)), *(mean_and_std(logs, (one,)) for one in metrics)] for model, logs in of_model.items()]
    return markdown(headings, rows)


# --- Speed and memory ---


def benchmark_table(suite: str) -> list[str]:
    """Return a suite's comparisons; single steps are `growth_table`."""
    records = [one for one in read_benchmark(suite) if "method" not in one]
    return [line for line in measure.markdown(records, "").splitlines() if line.startswith("|")]


def read_benchmark(suite: str) -> list[dict]:
    """Return the records of a suite of benchmarks. Raises UserError."""
    return measure.read_records(ROOT / "benchmarks" / "results" / f"{suite}.json")


def growth_table() -> list[str]:
    """Return one line for each shape and machine: seconds, share of the limit and MB of all layers, and of LoRA."""
    steps: dict[tuple, dict[str, dict]] = {}
    for one in (one for one in read_benchmark("growth") if "method" in one):
        shape = one["model"], one["batch_size"], one["length"], one["precision"], measure.machine_name(one)
        steps.setdefault(shape, {})[one["method"]] = one
    rows = []
    for (model, batch, length, *measured_on), found in steps.items():
        cells = [model, f"{batch} x {length}", *measured_on]
        for one in (found[method] for method in growth.METHODS):
            share = "-" if one["time_ratio"] is None else f"{one['time_ratio']:.0%}"
            cells += [measure.number(one["ours_seconds"]), share, measure.number(one["ours_peak_bytes"], 1e6)]
        rows.append(cells)
    of_each = ("s", "of the limit", "MB")
    headings = [f"{label}: {what}" if what == "s" else what for label in growth.METHODS.values() for what in of_each]
    return markdown(["model", "batch x length", "precision", "machine", *headings], rows)


def measured_memory_table() -> list[str]:
    """Return one line for each step of the memory suite: GB computed and measured, and seconds."""
    rows = []
    for one in read_benchmark("memory"):
        peak, computed = one["ours_peak_bytes"], one["computed_bytes"]
        in_gb = [f"{number / 1e9:.2f}" for number in (computed, peak)]
        on_load = [f"{one['ours_load_seconds']:.0f}", f"{one['ours_load_peak_bytes'] / 1e9:.2f}"]
        step = measure.number(one["ours_seconds"])
        rows.append([one["work"], *in_gb, f"{computed / peak - 1:+.0%}", step, *on_load, measure.machine_name(one)])
    return markdown(["work", "computed GB", "measured GB", "apart", "s", "s to load", "GB to load", "machine"], rows)


# --- Parity with transformers ---


def parity_table() -> list[str]:
    """Return the largest differences from transformers' models, as fractions of the scale."""
    measured = json.loads((ROOT / "results" / "parity.json").read_text(encoding="utf-8"))
    rows = []
    for name, one in measured.items():
        rows.append([name, *(f"{1e6 * one[part]:.1f}e-6" if one[part] else "0" for part in ("forward", "gradients"))])
    return markdown(["", "forward", "gradients"], rows)


# --- Every method on a job (--table methods) ---


def measured_jobs() -> list[str]:
    """Return the jobs on which methods have been compared, by the names of their folders."""
    return sorted(path.parent.name for path in (ROOT / "results" / "methods").glob("*/table.json"))


def methods_table(job: str) -> list[str]:
    """Return a job's table, made anew from the records of its runs, with the notes below it."""
    lines = table_text(summarize(ROOT / "results" / "methods" / job)).splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("|")) :]


@cache
def once(compute: Callable[[], list[list[str]]]) -> list[list[str]]:
    """Return what a function returns that takes many seconds; it is called once in a process."""
    return compute()


# Each takes the page's text in front of the table, and the lines that stand there now.
TABLES: dict[str, Callable[[str, str], list[str]]] = {
    "headline": lambda before, old: headline_table(),
    "spam-row10": lambda before, old: row_10_table(),
    "spam-variants": lambda before, old: variants_table("spam-variants", before, old),
    "minilm-sst2": lambda before, old: variants_table("minilm-sst2", before, old),
    "minilm-tasks": lambda before, old: variants_table("minilm-tasks", before, old),
    "preferences": lambda before, old: preferences_table(),
    "parity": lambda before, old: parity_table(),
    "speed-spam": lambda before, old: benchmark_table("spam"),
    "speed-encoders": lambda before, old: benchmark_table("encoders"),
    "speed-generation": lambda before, old: benchmark_table("generation"),
    "speed-step": lambda before, old: benchmark_table("steps"),
    "memory-fits": lambda before, old: markdown(["model", *memory.COLUMNS], once(memory.fitting_rows)),
    "memory-measured": lambda before, old: measured_memory_table(),
    "speed-growth": lambda before, old: benchmark_table("growth"),
    "speed-steps": lambda before, old: growth_table(),
    "chatglm": lambda before, old: own_table("chat"),
    "chat-questions": lambda before, old: questions_table(LOGGED),
    "chat-questions-larger-rates": lambda before, old: questions_table(LARGER),
    "chatglm-memory": lambda before, old: markdown(
        ["row", "frozen weights", "weights", "gradients, moments", "activations", "in all"], once(chatglm_rows)
    ),
    **{name: lambda before, old, name=name: published_table(name) for name in PUBLISHED},
    **{f"methods-{job}": lambda before, old, job=job: methods_table(job) for job in measured_jobs()},
}


def main() -> int:
    """Write the pages that differ from their logs, or only name them. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs from its logs")
    check, differs = parser.parse_args().check, False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := render(text)) == text:
            continue
        differs = True
        print(f"{page.relative_to(ROOT)} {'differs from its logs' if check else 'is written anew'}")
        if not check:
            page.write_text(new, encoding="utf-8")
    return int(check and differs)


if __name__ == "__main__":
    run_program(main)
