"""Draws the curves of a run, or prints its metrics as CSV:

python -m pipeline.plots runs/NAME          draws runs/NAME/curves.png (needs matplotlib)
python -m pipeline.plots runs/NAME --csv    prints runs/NAME/metrics.jsonl as CSV
"""

import argparse
import csv
import sys
from pathlib import Path

from pipeline.marks import UNTRAINED, Mark, colours_of, shapes_of
from training.metrics_log import read_records
from training.steps import StepsInAll
from utils.errors import UserError, run_program
from utils.files import user_path

# How matplotlib draws the shapes and colours of marks.py.
MARKERS = {"square": "s", "diamond": "D", "circle": "o", "triangle": "^", "cross": "P", "hexagon": "h", "wedge": "v"}
MARKERS |= {"pentagon": "p"}
PALETTE = {"blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "purple": "#cc79a7", "sky": "#56b4e9"}
PALETTE |= {"yellow": "#e69f00"}
CURVES = "curves.png"  # in a run's directory


def read_metrics(directory: Path) -> list[dict]:
    """Return the records of a run's log. Raises UserError."""
    if not (directory / "metrics.jsonl").exists():
        raise UserError(f"{directory} is no directory of a run: it has no metrics.jsonl")
    return read_records(directory / "metrics.jsonl")


def write_csv(records: list[dict], file) -> None:
    """Write one line per record; a record without a value leaves its cell empty."""
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def need_matplotlib():
    """Return matplotlib's pyplot, for use without a display. Raises UserError where it isn't installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(directory: Path) -> Path:
    """Draw loss and accuracy over the optimizer steps, training and validation. Return the picture's path.

    The stages of a plan follow one another. Raises UserError.
    """
    pyplot = need_matplotlib()
    records = read_metrics(directory)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for split, style in (("train", "-"), ("validation", "o-")):
        shown = list(placed(records, split))
        for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
            axis.plot([step for step, _ in shown], [record[name] for _, record in shown], style, markersize=3, label=split)
            axis.set(xlabel="optimizer steps", ylabel=name)
    axes[0].legend()
    figure.suptitle(directory.name)
    figure.tight_layout()
    path = directory / CURVES
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)
    return path


def draw_trade_off(lines: list[dict], marks: list[Mark], axes: dict[str, str], path: Path) -> None:
    """Draw a table's lines as points, each with its row's number. A legend says what their marks mean.

    marks  of each line
    axes   heading -> name of the measured value, for both axes
    """
    pyplot = need_matplotlib()
    figure, axis = pyplot.subplots(figsize=(9, 6))
    shapes, colours = shapes_of(marks), colours_of(marks)
    for line, mark in zip(lines, marks, strict=True):
        x, y = (line["measured"][name] for name in axes.values())
        axis.plot(x, y, **style_of(mark, shapes, colours))
        axis.annotate(str(line["row"]), (x, y), textcoords="offset points", xytext=(6, 5), fontsize=7, color="dimgray")
    xlabel, ylabel = (f"{heading}: {name.replace('_', ' ')}" for heading, name in axes.items())
    axis.set(xlabel=xlabel, ylabel=ylabel)
    add_legend(axis, shapes, colours)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def style_of(mark: Mark, shapes: dict[str, str], colours: dict[str, str]) -> dict:
    """Return what matplotlib draws for a mark."""
    if mark.method == UNTRAINED:
        return {"marker": "*", "color": "black", "markersize": 13, "linestyle": ""}
    colour = PALETTE[colours[mark.layers]]
    filled = {"markeredgecolor": colour, "markerfacecolor": colour if mark.auxiliary else "none"}
    return {"marker": MARKERS[shapes[mark.method]], "markersize": 8, "markeredgewidth": 1.6, "linestyle": "", **filled}


def add_legend(axis, shapes: dict[str, str], colours: dict[str, str]) -> None:
    """Say beside the plot what shape, colour and filling mean."""
    from matplotlib.lines import Line2D

    gray = {"color": "dimgray", "linestyle": "", "markersize": 8, "markeredgewidth": 1.6}
    parts = [
        Line2D([], [], marker=MARKERS[shape], markerfacecolor="none", label=name, **gray) for name, shape in shapes.items()
    ]
    parts += [
        Line2D([], [], marker="s", linestyle="", markersize=8, color=PALETTE[colour], label=f"layers: {name}")
        for name, colour in colours.items()
    ]
    parts.append(Line2D([], [], marker="o", label="filled: with auxiliary data", **gray))
    parts.append(Line2D([], [], marker="o", markerfacecolor="none", label="hollow: without", **gray))
    parts.append(Line2D([], [], marker="*", color="black", linestyle="", markersize=12, label=UNTRAINED))
    axis.legend(handles=parts, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def placed(records: list[dict], split: str):
    """Yield (steps since the start of the first stage, record) for each record of a split."""
    steps = StepsInAll()
    for record in records:
        step = steps.at(record["step"], record.get("stage"))
        if record["split"] == split:
            yield step, record


def main() -> int:
    """Draw a run's curves, or print its metrics. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=user_path)
    parser.add_argument("--csv", action="store_true", help="print the metrics as CSV instead of drawing them")
    args = parser.parse_args()
    if args.csv:
        write_csv(read_metrics(args.directory), sys.stdout)
    else:
        print(f"saved {draw(args.directory)}")
    return 0


if __name__ == "__main__":
    run_program(main)
