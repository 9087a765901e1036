"""The curves of a run for the report: few points of metrics.jsonl, however long it is."""

import math
from collections.abc import Iterator
from pathlib import Path

from training.metrics_log import parse_record
from training.steps import StepsInAll

LONGEST_LINE = 2**16  # bytes of a record; a run writes a few hundred
MOST_POINTS = 200  # of each curve

Point = tuple[float, float | None, float | None]  # step, loss, accuracy; None where it isn't finite


def read_curves(file: Path, problems: list[str]) -> dict[str, dict]:
    """Return {"train" and "validation": {"points": [step, loss, accuracy] each, "of": how many records there are}}.

    The stages of a plan follow one another. Lines that no run writes are left out, and `problems` says how many.
    """
    curves = {split: {"points": [], "of": 0} for split in ("train", "validation")}
    broken, steps = 0, StepsInAll()
    if not file.is_file():
        return {}
    try:
        for line in whole_lines(file, LONGEST_LINE):
            record = parse_record(line.decode("utf-8", "replace"))
            if record is None:
                broken += 1
                continue
            step = steps.at(finite(record["step"]) or 0.0, record.get("stage"))
            if record["split"] in curves:
                add(curves[record["split"]], (step, finite(record["loss"]), finite(record["accuracy"])))
    except OSError as error:
        problems.append(f"{file.name} can't be read: {error}")
    if broken:
        problems.append(f"{file.name}: {broken:,} lines are no records of a run")
    shown = {split: curve | {"points": thinned(curve["points"])} for split, curve in curves.items() if curve["of"]}
    return {split: curve | {"points": [rounded(one) for one in curve["points"]]} for split, curve in shown.items()}


def whole_lines(file: Path, longest: int) -> Iterator[bytes]:
    """Yield each line of a file; of one with more than `longest` bytes, the first of them.

    What stands behind the last newline was cut off: the run is under way, or was killed.
    """
    with file.open("rb") as stream:
        inside = False  # a line of which some has been read
        while part := stream.readline(longest):
            ended = part.endswith(b"\n")
            if not inside and (ended or len(part) == longest):
                yield part
            inside = not ended


def add(curve: dict, point: Point) -> None:
    """Append a point. From time to time the curve is thinned, so that it needs little memory."""
    curve["of"] += 1
    curve["points"].append(point)
    if len(curve["points"]) >= 20 * MOST_POINTS:
        curve["points"] = thinned(curve["points"])


def thinned(points: list[Point]) -> list[Point]:
    """Return at most MOST_POINTS: the first, the last, and of each stretch between them its lowest and its highest loss."""
    if len(points) <= MOST_POINTS:
        return points
    inner, n = points[1:-1], MOST_POINTS // 2 - 1
    kept = [points[0]]
    for number in range(n):
        stretch = range(number * len(inner) // n, (number + 1) * len(inner) // n)
        lowest, highest = (pick(stretch, key=lambda i: loss_of(inner[i])) for pick in (min, max))
        kept += [inner[i] for i in sorted({lowest, highest})]
    return [*kept, points[-1]]


def loss_of(point: Point) -> float:
    """Return a point's loss; one that isn't finite is the highest of all."""
    return math.inf if point[1] is None else point[1]


def finite(value: float) -> float | None:
    """Return a number as a float, or None where it is none that can be drawn."""
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def rounded(point: Point) -> list[float | None]:
    """Return a point with as many digits as can be seen."""
    return [None if value is None else float(f"{value:.6g}") if value % 1 else int(value) for value in point]
