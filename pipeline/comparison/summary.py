"""The records of a job's runs -> a row for each method. Reads no more than the folder."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from config import SETTINGS, explicit
from pipeline.comparison.jobs import SAID_BY_ROWS
from pipeline.comparison.methods import ENTRIES, REFERENCE
from pipeline.comparison.records import SEARCH, TEST, UNTRAINED, chosen_rate, read_record
from pipeline.comparison.statistics import LEVEL, Difference, holm, interval, paired_difference
from pipeline.result import read_json

SAME_FOR_ALL = ("weights", "tokenizer", "code")  # of a method's runs; a search sees fewer data than a test
KEPT = ("general", "wikitext2")  # sets of which a loss says how much other knowledge is left
# Settings in which two rows may differ: what a method is, and where it was computed.
OF_ROWS = {*SAID_BY_ROWS, "seed", "device", "amp", *(name for name, about in SETTINGS.items() if about["methods"])}


@dataclass
class Summary:
    """What is known of one method on one job."""

    row: int  # its number in the list of methods; 0: not in it
    title: str
    trained_parameters: int
    file_bytes: int
    seconds_to_best: float  # means over the seeds, as all below
    peak_bytes: float
    learning_rate: float
    edge: str  # "lowest" or "highest": the chosen rate is the grid's edge; else ""
    diverged: list[float]  # rates at which the training came to nan or inf
    seeds: list[int]
    diverged_seeds: list[int]  # of runs at the chosen rate that came to nan or inf, and are in no mean
    score: float
    half: float | None  # of the score's 95% interval over the seeds; None of one seed
    kept: dict[str, list]  # set -> how much its loss has grown, and half of the interval; without what wasn't measured
    difference: float | None = None  # from the reference, on the seeds of both; None for itself
    difference_half: float | None = None
    p: float | None = None  # None: too few seeds to tell
    p_corrected: float | None = None  # for all methods of the table
    verdict: str = ""  # better, worse or tie
    own_data: str = ""  # what it was trained on, where that isn't what the others were
    own_accuracy: float | None = None  # on the validation part of that
    forgot: dict[str, str] = field(default_factory=dict)  # set -> more, less or tie, beside the reference
    unlike: tuple[str, ...] = ()  # settings and inputs that were others for the reference, so that nothing is compared


@dataclass(frozen=True)
class Results:
    """A job's table."""

    job: str  # the folder's name
    higher_is_better: bool  # whether the score is an accuracy; else it is a loss
    before: dict[str, float]  # what the untrained model scores on the test set and those of KEPT, where it was measured
    rows: list[Summary]
    left_out: dict[str, str]  # title -> why

    def as_json(self) -> dict:
        """Return the results as they are written down."""
        about = {"job": self.job, "higher_is_better": self.higher_is_better, "reference": REFERENCE.title}
        return about | {"before": self.before, "left_out": self.left_out, "rows": [asdict(row) for row in self.rows]}


def summarize(folder: Path) -> Results:
    """Return what the records in a folder come to."""
    contents = [(path, read_json(path)) for path in sorted(folder.glob("*-left-out.json"))]
    left_out = {one["title"]: one["reason"] for _, one in contents if isinstance(one, dict)}
    records = [record for path in sorted(folder.glob("*-seed*.json")) if (record := read_record(path))]
    untrained = next((record for record in records if record["stage"] == UNTRAINED), {})
    before = {name: rounded(mean(untrained[name])) for name in ("test", *KEPT) if untrained.get(name)}
    measured = {title: tests_of(records, title) for title in titles_of(records)}
    left_out |= {title: why_untested(records, title) for title, tests in measured.items() if not tests}
    rows = [row_of(title, records, tests, untrained) for title, tests in measured.items() if tests]
    higher = all(is_label_score(one["test"]) for tests in measured.values() for one in tests)
    compare(rows, measured, higher)
    return Results(folder.name, higher, before, rows, left_out)


def titles_of(records: list[dict]) -> list[str]:
    """Return the titles of the methods that have records: those of the list in its order, then others."""
    found = dict.fromkeys(record["title"] for record in records if record["stage"] != UNTRAINED)
    listed = [entry.title for entry in ENTRIES if entry.title in found]
    return [*dict.fromkeys([*listed, *found])]


def tests_of(records: list[dict], title: str) -> list[dict]:
    """Return the records of a method on test data at the rate that its search chose, by their seeds."""
    return [record for record in at_chosen_rate(records, title) if record.get("test")]


def at_chosen_rate(records: list[dict], title: str) -> list[dict]:
    """Return the records of a method with the seeds of the test, at the rate that its search chose.

    Those that another command left behind, with other settings, code or inputs than the search or than the first seed,
    which every command measures, don't count.
    """
    search = search_of(records, title)
    tests = [one for one in records if one["title"] == title and one["stage"] == TEST]
    rate = chosen_rate(search)[0] if search else None
    found = [one for one in tests if one["rate"] == rate and same_settings(one, search[0])]
    found = [one for one in found if not unlike_hashes(one, search[0], SAME_FOR_ALL)]
    found.sort(key=lambda one: one["seed"])
    return [one for one in found if one["hashes"] == found[0]["hashes"]]


def why_untested(records: list[dict], title: str) -> str:
    """Return why a method has no row."""
    if failed := [str(one["seed"]) for one in at_chosen_rate(records, title) if "diverged" in one]:
        return f"the training came to nan or inf with seed {', '.join(failed)}"
    return "not measured on test data yet at the learning rate that its search chose"


def search_of(records: list[dict], title: str) -> list[dict]:
    """Return the records of the search for a method's rate: those with the settings, code and inputs of the rates in its
    list, which every command measures.
    """
    search = [one for one in records if one["title"] == title and one["stage"] == SEARCH]
    listed = {rate for entry in ENTRIES if entry.title == title for rate in entry.rates}
    listed_one = next((one for one in search if one["rate"] in listed), search[0] if search else {})
    return [one for one in search if same_settings(one, listed_one) and one["hashes"] == listed_one["hashes"]]


def same_settings(one: dict, other: dict) -> bool:
    """Return whether the settings of two runs of a method differ in their rate and seed alone."""
    return {*differing(one, other)} <= {"learning_rate", "seed"}


def unlike_hashes(one: dict, other: dict, names: Sequence[str]) -> list[str]:
    """Return those of the names, such as "weights", for which two records have other hashes."""
    ours, theirs = one["hashes"], other["hashes"]
    return [name for name in names if ours.get(f"{name}_sha256") != theirs.get(f"{name}_sha256")]


def differing(one: dict, other: dict) -> list[str]:
    """Return the settings that two runs didn't share."""
    ours, theirs = one["config"], other["config"]
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def row_of(title: str, records: list[dict], tests: list[dict], untrained: dict) -> Summary:
    """Return a method's row, as far as it needs no other's."""
    search = search_of(records, title)
    numbers = {entry.title: number for number, entry in enumerate(ENTRIES, start=1)}
    score, half = rounded_interval([mean(one["test"]) for one in tests])
    own_data = tests[0].get("trained_on", "")
    watched = [name for name in KEPT if untrained.get(name) and all(name in one for one in tests)]
    if watched and unlike_hashes(tests[0], untrained, ("weights", "tokenizer")):
        watched = []
    grown = {name: [mean(one[name]) - mean(untrained[name]) for one in tests] for name in watched}
    return Summary(
        row=numbers.get(title, 0),
        title=title,
        trained_parameters=tests[0]["trained_parameters"],
        file_bytes=tests[0]["file_bytes"],
        seconds_to_best=round(mean(one["seconds_to_best"] for one in tests), 1),
        peak_bytes=mean(one["peak_bytes"] for one in tests),
        learning_rate=tests[0]["learning_rate"],
        edge=chosen_rate(search)[1],
        diverged=[one["learning_rate"] for one in search if one["validation_loss"] is None],
        seeds=[one["seed"] for one in tests],
        diverged_seeds=[one["seed"] for one in at_chosen_rate(records, title) if "diverged" in one],
        score=score,
        half=half,
        kept={name: rounded_interval(values) for name, values in grown.items()},
        own_data=own_data,
        own_accuracy=round(mean(one["validation_accuracy"] for one in tests), 4) if own_data else None,
    )


def compare(rows: list[Summary], measured: dict[str, list[dict]], higher_is_better: bool) -> None:
    """Fill in what each row's difference from the reference comes to, in the score and in what was forgotten. In place."""
    theirs = {one["seed"]: one for one in measured.get(REFERENCE.title, [])}
    pairs_of: dict[str, list[tuple[dict, dict]]] = {}
    for row in rows:
        pairs = [(one, theirs[one["seed"]]) for one in measured[row.title] if one["seed"] in theirs]
        if row.title == REFERENCE.title or not pairs or row.own_data:
            continue
        said = {name for entry in ENTRIES if entry.title == row.title for name in explicit(entry.run)}
        row.unlike = tuple(name for name in differing(*pairs[0]) if name not in OF_ROWS | said)
        row.unlike += tuple(unlike_hashes(*pairs[0], ("weights", "tokenizer", "data")))
        if not row.unlike:
            pairs_of[row.title] = pairs
    by_title = {row.title: row for row in rows}
    for title, (difference, p) in differences(pairs_of, "test").items():
        row = by_title[title]
        row.difference = rounded(difference.mean)
        if not math.isnan(p):
            row.difference_half, row.p, row.p_corrected = rounded(difference.half), round(difference.p, 6), round(p, 6)
            better = (difference.mean > 0) == higher_is_better
            row.verdict = "tie" if p >= LEVEL else "better" if better else "worse"
    for name in KEPT:
        for title, (difference, p) in differences(pairs_of, name).items():
            if name in by_title[title].kept and not math.isnan(p):
                by_title[title].forgot[name] = "tie" if p >= LEVEL else "more" if difference.mean > 0 else "less"


def differences(pairs_of: dict[str, list[tuple[dict, dict]]], name: str) -> dict[str, tuple[Difference, float]]:
    """Return, by title, the difference of a set's scores and its p, which is corrected for all methods; nan of one seed.

    pairs_of   title -> the records of a method and of the reference, for each seed of both
    """
    found = {
        title: paired_difference(*(np.array([one[name] for one in side]) for side in zip(*pairs, strict=True)))
        for title, pairs in pairs_of.items()
        if all(name in one for pair in pairs for one in pair)
    }
    told = [title for title, difference in found.items() if not math.isnan(difference.p)]
    corrected = dict(zip(told, holm([found[title].p for title in told]), strict=True))
    return {title: (difference, corrected.get(title, math.nan)) for title, difference in found.items()}


def pareto(rows: Sequence[Summary], higher_is_better: bool) -> list[Summary]:
    """Return the rows that no other beats in score and in trained parameters at once, from few parameters to many. What was
    measured otherwise than the reference, or trained on data of its own, isn't among them.
    """
    sign, rows = 1 if higher_is_better else -1, [row for row in rows if not row.unlike and not row.own_data]

    def beats(one: Summary, other: Summary) -> bool:
        ours, theirs = ((sign * row.score, -row.trained_parameters) for row in (one, other))
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))

    kept = [row for row in rows if not any(beats(other, row) for other in rows)]
    return sorted(kept, key=lambda row: row.trained_parameters)


def is_label_score(values: list[float]) -> bool:
    """Return whether each value is 0 or 1: a label that is wrong or right. Losses are none of these."""
    return set(values) <= {0, 1}


def rounded(value: float) -> float:
    """Return a number with the digits that are written down."""
    return round(float(value), 6)


def rounded_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half of its 95% interval; None of one value."""
    center, half = interval(values)
    return rounded(center), None if math.isnan(half) else rounded(half)
