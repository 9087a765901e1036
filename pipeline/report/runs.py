"""Find runs below directories, and read of each what the report shows.

A file that no run can have written, or that was cut off, ends nothing: the run stays in the report, which says what is
wrong with it.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from config import METHODS, SETTINGS
from pipeline.flags import command_of_words
from pipeline.marks import mark_of
from pipeline.report.curves import read_curves, whole_lines
from utils.errors import UserError, note
from utils.files import read_json

RESULT, METRICS, SAMPLES = "result.json", "metrics.jsonl", "samples.jsonl"
FILES = (RESULT, METRICS, SAMPLES, "trained.safetensors", "curves.png")  # that are linked to, where they are there
LARGEST_RESULT = 2**26  # bytes; a run writes a few thousand
LONGEST_TEXT = 2000  # characters
LONGEST_LINE = 2**20  # bytes of a sampled answer
MOST_KEYS = 500
MOST_SAMPLES = 20  # of each split
MOST_CLASSES = 100
# What doesn't change what is trained or measured: runs that differ in nothing else are seeds of one setting.
NOT_THE_SETTING = {"seed", "output_dir", "resume", "verbose", "memory_report", "plot_loss", "log"}


def check_directories(directories: list[Path]) -> None:
    """Raise UserError for the first of them that isn't there."""
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"--report {directory} is no directory; name one that holds runs, at any depth")


def read_runs(directories: list[Path], page: Path) -> list[dict]:
    """Return the runs below the directories, in the order of their names. Raises UserError where there are none.

    page    the file that will link to them
    """
    runs = []
    for directory in directories:
        found = [*find_results(directory)]
        if not found and len(directories) > 1:
            note(f"no {RESULT} lies below {directory}")
        for file in found:
            name = file.parent.relative_to(directory).as_posix()
            name = name if len(directories) == 1 else f"{directory.as_posix()}/{name}"
            runs.append(read_run(file.parent, directory.name if name == "." else name, page.parent))
    if not runs:
        raise UserError(f"no {RESULT} lies below {', '.join(map(str, directories))}: there is no run to report")
    unique = {run["files"]["folder"]: run for run in runs}  # a directory may be given twice, or lie in another one
    runs = sorted(unique.values(), key=lambda run: run["name"])
    number_groups(runs)
    return runs


def find_results(directory: Path) -> Iterator[Path]:
    """Yield each result.json below a directory, at any depth."""
    for folder, _, files in os.walk(directory):
        if RESULT in files:
            yield Path(folder) / RESULT


def read_run(directory: Path, name: str, page_folder: Path) -> dict:
    """Return what the page shows of one run. `problems` says in words what is broken."""
    problems: list[str] = []
    result = read_result(directory / RESULT, problems)
    config = result.get("config") if isinstance(result.get("config"), dict) else {}
    state = "broken" if problems else "complete" if result.get("interrupted") is False else "unfinished"
    run = {
        "name": name,
        "state": state,
        "problems": problems,
        "files": links(directory, page_folder),
        "command": command_of(result.get("argv")),
        "results": {key: plain(value) for key, value in scalars(result)},
        "settings": {key: plain(value) for key, value in scalars(used(config))},
        "notes": texts(result.get("notes")),
        "warnings": texts(result.get("warnings")),
        "stages": stages_of(result),
        "classes": classes_of(result),
        "curves": read_curves(directory / METRICS, problems),
        "samples": read_samples(directory / SAMPLES, problems),
    }
    for key in ("dataset", "seed"):  # which an unfinished run's result has only among its settings
        run["results"].setdefault(key, plain(config.get(key)))
    run["results"].setdefault("model", plain(config.get("checkpoint") or config.get("model")))
    run["results"].setdefault("method", plain(config.get("trainable_layers")))
    if all(isinstance(run["results"].get(key), int | float) for key in ("test_loss", "general_loss")):
        run["mark"] = asdict(mark_of({key: plain(value) for key, value in config.items()}))
    return run


def read_result(file: Path, problems: list[str]) -> dict:
    """Return the content of a result.json, or {} where that is no result of a run."""
    try:
        if (size := file.stat().st_size) > LARGEST_RESULT:
            raise ValueError(f"it has {size:,} bytes")
        result = read_json(file)
    except (OSError, ValueError) as error:
        problems.append(f"{RESULT} can't be read: {error}")
        return {}
    if not isinstance(result, dict):
        problems.append(f"{RESULT} is a {type(result).__name__}, which no run writes")
        return {}
    if not isinstance(result.get("config"), dict):
        problems.append(f"{RESULT} has no config, which every run writes")
    return result


# --- the parts of a result


def scalars(content: Mapping) -> Iterator[tuple[str, object]]:
    """Yield the names and values that are single numbers, texts, yes or no."""
    few = [(key, value) for key, value in content.items() if value is None or isinstance(value, str | int | float)]
    yield from few[:MOST_KEYS]


def plain(value: object) -> object:
    """Return a value that JSON and JavaScript both have as it is. What isn't, such as NaN, becomes its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("nan", "NaN").replace("inf", "Infinity")
    rounded_by_javascript = isinstance(value, int) and abs(value) > 2**53
    if value is None or (isinstance(value, bool | int | float) and not rounded_by_javascript):
        return value
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def texts(value: object) -> list[str]:
    """Return a list of texts as one; anything else as none."""
    return [str(plain(one)) for one in value[:MOST_SAMPLES]] if isinstance(value, list) else []


def command_of(argv: object) -> str:
    """Return the command of a run, or "" where its result doesn't say."""
    if not isinstance(argv, list):
        return ""
    return str(plain(command_of_words(map(str, argv))))


def used(config: dict) -> dict:
    """Return the settings without those that the run's method never reads, such as --lora_rank of an adapter."""
    methods = str(config.get("trainable_layers")).split("+")
    if config.get("stages") or not {*methods} <= {*METHODS}:  # each stage has its own, a user's method may read any
        return config
    readers = {name: about["methods"] for name, about in SETTINGS.items()}
    return {name: value for name, value in config.items() if not readers.get(name) or {*readers[name]} & {*methods}}


def stages_of(result: dict) -> list[dict]:
    """Return what there is to say of each stage of a run with several."""
    stages = result.get("stages")
    if not isinstance(stages, list) or len(stages) < 2:
        return []
    shown = ("method", "steps", "seconds", "trainable_parameters")
    rows = [one for one in stages[:MOST_CLASSES] if isinstance(one, dict)]
    validations = [one.get("validation") if isinstance(one.get("validation"), dict) else {} for one in rows]
    return [
        {name: plain(one.get(name)) for name in shown}
        | {f"validation_{name}": plain(validation.get(name)) for name in ("loss", "accuracy")}
        for one, validation in zip(rows, validations, strict=True)
    ]


def classes_of(result: dict) -> list[dict]:
    """Return, for each split with scores by class, {"split", "rows", "confusion", "left_out"}.

    rows        {"label", "precision", "recall", "f1", "texts"} each
    confusion   rows of counts; a row is a true class, a column the predicted one. [] where there is none
    """
    found = []
    for key in sorted(key for key in result if str(key).endswith("_per_class")):
        split, table = key.removesuffix("_per_class"), result[key]
        if not isinstance(table, dict):
            continue
        rows = [(label, scores) for label, scores in table.items() if isinstance(scores, dict)]
        shown = [
            {"label": plain(label)} | {name: plain(scores.get(name)) for name in ("precision", "recall", "f1", "texts")}
            for label, scores in rows[:MOST_CLASSES]
        ]
        confusion = result.get(f"{split}_confusion")
        square = isinstance(confusion, list) and all(isinstance(row, list) and len(row) == len(rows) for row in confusion)
        fits = square and len(confusion) == len(rows) <= MOST_CLASSES
        matrix = [[plain(one) for one in row] for row in confusion] if fits else []
        found.append({"split": split, "rows": shown, "confusion": matrix, "left_out": len(rows) - len(shown)})
    return found


def read_samples(file: Path, problems: list[str]) -> dict[str, dict]:
    """Return {split: {"shown": the first answers, "of": how many there are}}."""
    found: dict[str, dict] = {}
    if not file.is_file():
        return found
    broken = 0
    try:
        for line in whole_lines(file, LONGEST_LINE):
            try:
                sample = json.loads(line)
                texts = {name: plain(sample[name]) for name in ("prompt", "reference", "answer")}
                split = found.setdefault(str(plain(sample.get("split", "test"))), {"shown": [], "of": 0})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                broken += 1
                continue
            split["of"] += 1
            if len(split["shown"]) < MOST_SAMPLES:
                split["shown"].append(texts)
    except OSError as error:
        problems.append(f"{SAMPLES} can't be read: {error}")
    if broken:
        problems.append(f"{SAMPLES}: {broken:,} lines are no samples")
    return found


# --- what leads to it, and what belongs together


def links(directory: Path, page_folder: Path) -> dict[str, str]:
    """Return the addresses of a run's files from where the page lies, by their names."""
    paths = {"folder": directory} | {name: directory / name for name in FILES if (directory / name).exists()}
    return {name: address(path, page_folder) for name, path in paths.items()}


def address(path: Path, page_folder: Path) -> str:
    """Return a link from the page's folder: relative, but for another drive of Windows."""
    try:
        relative = os.path.relpath(path.absolute(), page_folder.absolute())
    except ValueError:
        return path.absolute().as_uri()
    return "./" + quote(os.fsencode(Path(relative).as_posix()))  # "./": a name with a colon is no scheme


def number_groups(runs: list[dict]) -> None:
    """Give the runs of one setting, which differ only in their seeds, the same number as `group`.

    A seed that comes again is another measurement of the same, not another seed: it begins a group of its own.
    """
    numbers: dict[tuple, int] = {}
    times: dict[tuple, int] = {}
    for run in runs:
        kept = {name: value for name, value in run["settings"].items() if name not in NOT_THE_SETTING}
        which = run["name"] if not kept else run["results"].get("weights_sha256") if kept.get("checkpoint") else None
        setting = (json.dumps(kept, sort_keys=True), which)
        seed = (setting, str(run["results"].get("seed")))
        times[seed] = times.get(seed, 0) + 1
        run["group"] = numbers.setdefault((setting, times[seed]), len(numbers))
