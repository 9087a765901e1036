"""Writes the table and the Pareto page of `--table methods` from the records of its runs, and trains nothing:

python -m pipeline.comparison.pages results/methods     each job's table.md, table.json, pareto.md and pareto.png
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison.methods import REFERENCE
from pipeline.comparison.statistics import LEVEL
from pipeline.comparison.summary import KEPT, Results, Summary, pareto, summarize
from pipeline.plots import need_matplotlib
from pipeline.result import write_text
from utils.errors import UserError, run_program
from utils.files import user_path

KEPT_NAMES = {"general": "general set", "wikitext2": "WikiText-2"}
HEADINGS = ("row", "method", "trained", "file", "to best", "memory", "rate")


def write_pages(folder: Path) -> list[str]:
    """Write a job's table and Pareto page. Return what to say about them; nothing where no method has been measured."""
    results = summarize(folder)
    if not results.rows:
        return []
    write_text(folder / "table.json", json.dumps(results.as_json(), indent=2) + "\n")
    write_text(folder / "table.md", table_text(results))
    write_text(folder / "pareto.md", pareto_text(results))
    said = [f"saved {folder}/table.md, table.json and pareto.md"]
    try:
        draw(results, folder / "pareto.png")
    except UserError as error:
        return [*said, f"no plot: {error}"]
    return [*said, f"plot  {folder}/pareto.png"]


# --- the table


def table_text(results: Results) -> str:
    """Return the table with what there is to know about it."""
    kept = [name for name in KEPT if name in results.before]
    head = [*HEADINGS, score_name(results), f"less {REFERENCE.title}", "p", "verdict"]
    head += [f"forgetting: {KEPT_NAMES[name]}" for name in kept]
    lines = [f"# {results.job}", "", *explanations(results), "", in_cells(head), in_cells(["---"] * len(head))]
    return "\n".join([*lines, *(in_cells(cells_of(row, results, kept)) for row in results.rows), *notes(results), ""])


def explanations(results: Results) -> list[str]:
    """Return what the columns are, a line each."""
    lines = [
        f"- {score_name(results)}: mean over the seeds, with its 95% interval (Student's t over the seeds).",
        f"- less {REFERENCE.title}: the difference from it on the same seeds and test examples, with its 95% interval "
        "(a bootstrap over the examples, Student's t over the seeds). p is corrected for all methods of the table "
        "(Holm); where it isn't "
        f"below {LEVEL:g}, the verdict is a tie.",
        "- rate: the learning rate with the lowest loss on validation data; * marks an edge of the grid, beyond which "
        "a better one may lie.",
        "- to best: seconds of training, evaluations included, up to the lowest validation loss. memory: the peak of "
        "the run's process beyond what it began with, the libraries' own buffers included. Both are means over the seeds.",
    ]
    if results.before:
        before = ", ".join(f"{KEPT_NAMES.get(name, name)} {value:.3f}" for name, value in results.before.items())
        lines.append(
            f"- forgetting: how much the loss on another set grew in training, and whether that is more or less than with "
            f"{REFERENCE.title} (tested like the score, each set's p corrected by itself). Before training: {before}."
        )
    if "wikitext2" in results.before:
        perplexity = math.exp(results.before["wikitext2"])
        lines.append(f"- In brackets: the perplexity of WikiText-2 after training. Before it: {perplexity:.1f}.")
    return lines


def cells_of(row: Summary, results: Results, kept: list[str]) -> list[str]:
    """Return the cells of a method."""
    cells = [
        str(row.row or "-"),
        row.title,
        f"{row.trained_parameters:,}",
        f"{row.file_bytes / 1e6:,.2f} MB",
        f"{row.seconds_to_best:g} s",
        f"{row.peak_bytes / 1e6:,.0f} MB",
        f"{row.learning_rate:g}" + ("*" if row.edge else ""),
        shown(row.score, row.half, results),
    ]
    if row.difference is None:
        cells += ["-"] * 3
    else:
        p = "-" if row.p_corrected is None else f"{row.p_corrected:.3f}" if row.p_corrected >= 0.001 else "<0.001"
        cells += [shown(row.difference, row.difference_half, results, sign="+"), p, row.verdict or "one seed"]
    for name in kept:
        cells.append(forgetting(row, name, results.before))
    return cells


def forgetting(row: Summary, name: str, before: dict[str, float]) -> str:
    """Return how much a method's loss on another set grew, where that was measured, and whether that is more than the
    reference's; of WikiText-2 with the perplexity.
    """
    if name not in row.kept:
        return "-"
    mean, half = row.kept[name]
    spread = "" if half is None else f" ± {half:.3f}"
    perplexity = f" ({math.exp(before[name] + mean):.1f})" if name == "wikitext2" else ""
    verdict = f", {row.forgot[name]}" if name in row.forgot else ""
    return f"{mean:+.3f}{spread}{perplexity}{verdict}"


def notes(results: Results) -> list[str]:
    """Return what there is to say below the table."""
    lines = ["", f"- Seeds: {seeds_text(results.rows)}."]
    for row in results.rows:
        if row.edge:
            lines.append(f"- {row.title}: the rate {row.learning_rate:g} is the {row.edge} that was tried.")
        if row.diverged:
            rates = ", ".join(f"{rate:g}" for rate in row.diverged)
            lines.append(f"- {row.title}: the training came to nan or inf at {rates}.")
        if row.diverged_seeds:
            failed = ", ".join(map(str, row.diverged_seeds))
            lines.append(f"- {row.title}: with seed {failed} the training came to nan or inf, which is in no mean.")
        if row.unlike:
            lines.append(
                f"- {row.title}: {', '.join(row.unlike)} {'was' if len(row.unlike) == 1 else 'were'} not as for "
                f"{REFERENCE.title}, so there is no difference; its own command measures it anew."
            )
        if row.own_data:
            lines.append(
                f"- {row.title}: trained on {row.own_data}, not on what the others were, so there is no verdict. On "
                f"held-out ones its accuracy is {row.own_accuracy:.1%}."
            )
    return lines + [f"- {title}: left out: {reason}." for title, reason in results.left_out.items()]


def seeds_text(rows: Sequence[Summary]) -> str:
    """Return the seeds of the rows, and whose they are where not all rows have the same. Most rows come first, unnamed."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(row.seeds), []).append(str(row.row or row.title))
    first, *others = sorted(groups, key=lambda seeds: len(groups[seeds]), reverse=True)
    named = [f"; {', '.join(map(str, seeds))} of row {', '.join(groups[seeds])}" for seeds in others]
    return ", ".join(map(str, first)) + "".join(named)


def score_name(results: Results) -> str:
    """Return the heading of the score."""
    return "test accuracy" if results.higher_is_better else "test loss"


def shown(value: float, half: float | None, results: Results, sign: str = "") -> str:
    """Return a score or a difference: accuracies in per cent, losses as they are."""
    scale, digits = (100, 2) if results.higher_is_better else (1, 3)
    spread = "" if half is None else f" ± {scale * half:.{digits}f}"
    return f"{scale * value:{sign}.{digits}f}{spread}"


def in_cells(cells: list[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


# --- few parameters and a good score


def pareto_text(results: Results) -> str:
    """Return the page of the methods that no other beats in score and in trained parameters at once."""
    rows = pareto(results.rows, results.higher_is_better)
    lines = [f"# {results.job}: few parameters and a good score", ""]
    lines += ["No other method is as good with as few trained parameters, and better in one of the two."]
    lines += ["A verdict of tie says that the order of two neighbours may be chance.", ""]
    lines += [
        in_cells(["method", "trained", score_name(results), f"verdict against {REFERENCE.title}"]),
        "| --- " * 4 + "|",
    ]
    for row in rows:
        score = shown(row.score, row.half, results)
        lines.append(in_cells([row.title, f"{row.trained_parameters:,}", score, row.verdict or "-"]))
    return "\n".join([*lines, ""])


def draw(results: Results, path: Path) -> None:
    """Draw the score over the trained parameters, with intervals and numbers of rows; a line joins those of the page. What
    was trained on data of its own is left out: it lies far from all others.
    """
    rows = [row for row in results.rows if not row.own_data]
    pyplot = need_matplotlib()
    figure, axis = pyplot.subplots(figsize=(9, 6))
    scale = 100 if results.higher_is_better else 1
    best, places = pareto(results.rows, results.higher_is_better), side_by_side(rows)
    for row in rows:
        colour = "#0072b2" if row in best else "#999999"
        x, y = places[row.title], scale * row.score
        axis.errorbar(x, y, yerr=scale * (row.half or 0), fmt="o", color=colour, capsize=3)
        axis.annotate(str(row.row), (x, y), textcoords="offset points", xytext=(6, 4), fontsize=7)
        axis.plot([], [], " ", label=f"{row.row}  {row.title}")  # what a number stands for
    axis.plot([places[row.title] for row in best], [scale * row.score for row in best], color="#0072b2", linewidth=1)
    unit = ", per cent" if results.higher_is_better else ""
    axis.set(
        xscale="log",
        xlabel="trained parameters; near ones stand side by side",
        ylabel=f"{score_name(results)}{unit}",
        title=results.job,
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8, handlelength=0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def side_by_side(rows: Sequence[Summary]) -> dict[str, float]:
    """Return where each row stands on the axis of trained parameters, apart from those with about as many."""
    places, last = {}, 0.0
    for row in sorted(rows, key=lambda row: row.trained_parameters):
        places[row.title] = last = max(row.trained_parameters, 1.05 * last)
    return places


def main() -> int:
    """Write the pages of each folder that the command line names, or of those in it. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=user_path, help="a folder with jobs, such as results/methods, or of one job")
    directory = parser.parse_args().directory
    folders = sorted({path.parent for path in directory.rglob("*-seed*.json")})
    said = [line for folder in folders for line in write_pages(folder)]
    if not said:
        raise UserError(f"{directory} holds no results of --table methods")
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    run_program(main)
