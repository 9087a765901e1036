"""Which label and which split each of a user's own texts has, and which texts are held out where nothing says so."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from data.files import TextExample, shown
from utils.errors import UserError

SPLIT = "split"  # the column that says where a text belongs
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

SHARE = 0.1  # of each class, for validation and again for testing, where nothing says which texts those are
DRAW_SEED = 2023  # of the draw, whatever the seed of the run: all runs are measured on the same texts
FEWEST = 3  # different texts of a class, of which one can go to each split
MANY_LABELS = 20  # beyond that, a column with another value in every second row is none of classes
# What begins as 01 or 007 is no number but a code: a name, which isn't 1 or 7.
WHOLE = re.compile(r"[+-]?(?!0\d)\d{1,18}(\.0*)?")
NUMBER = re.compile(r"[+-]?(?!0\d)(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
UNTOLD = "-1"  # the label of a text whose label was never published, or that never got one
HOW_UNTOLD = f"{UNTOLD}, or - as a gold_label"


class Text(NamedTuple):
    """A text, or a pair of them, as a row has it."""

    place: str
    text: str
    pair: str | None
    label: str
    split: str | None
    key: tuple[str, str]  # what is alike in equal texts, see `key_of`


def key_of(text: str, pair: str | None) -> tuple[str, str]:
    """Return what is alike in equal texts: case and spaces don't count."""
    return " ".join(text.casefold().split()), " ".join((pair or "").casefold().split())


# --- labels


def with_numbers_alike(texts: list[Text]) -> list[Text]:
    """Return the texts with labels that are numbers in one spelling, 1 for 1.0. Raises UserError for what isn't whole."""
    if not all(NUMBER.fullmatch(label) for label in {one.label for one in texts}):
        return texts
    broken = next((one for one in texts if not WHOLE.fullmatch(one.label)), None)
    if broken:
        raise UserError(
            f"{broken.place}: the label is {broken.label}, so the labels are a scale and no classes; a regression isn't "
            "supported: round them or cut the scale into a few classes, or name another --label_column"
        )
    return [one._replace(label=str(int(one.label.partition(".")[0]))) for one in texts]


def with_labels_told(texts: list[Text]) -> tuple[list[Text], list[str]]:
    """Return the texts whose label was published, and notes on the others. UNTOLD is a label among whole numbers alone."""
    notes = []
    for name in ("validation", "test"):
        if {one.label for one in texts if one.split == name} == {UNTOLD}:
            texts = [one for one in texts if one.split != name]
            notes.append(f"no label of {name} is told ({HOW_UNTOLD}), so it isn't measured")
    told = [one for one in texts if one.label != UNTOLD]
    if told and len(told) < len(texts) and not any(WHOLE.fullmatch(label) for label in {one.label for one in told}):
        notes.append(f"left out: {len(texts) - len(told)} texts whose label isn't told ({HOW_UNTOLD})")
        texts = told
    return texts, notes


def check_labels(texts: list[Text], place: str) -> None:
    """Raise UserError where the labels of a file are no classes."""
    labels = {one.label for one in texts}
    if len(labels) < 2:
        raise UserError(f"{place}: every label is {shown(texts[0].label)}; a classifier needs two or more")
    if len(labels) > max(MANY_LABELS, len(texts) / 2):
        found = f"{len(labels)} different labels of {len(texts)} texts, such as {shown(texts[0].label)},"
        raise UserError(f"{place}: {found} are no classes: name another --label_column")
    alike, n = Counter(label.casefold() for label in labels).most_common(1)[0]
    if n > 1:
        names = sorted(label for label in labels if label.casefold() == alike)
        raise UserError(f"{place}: the labels {' and '.join(map(shown, names))} differ in case alone: spell them alike")


def find_labels(texts: list[Text]) -> tuple[str, ...]:
    """Return the labels of all splits in their order: numbers by value, names by the alphabet. Raises UserError."""
    labels = {one.label for one in texts if one.split == "train"}
    unknown = next((one for one in texts if one.label not in labels), None)
    if unknown:
        raise UserError(f"{unknown.place}: the label is {shown(unknown.label)}, which no training text has")
    if all(WHOLE.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels, key=lambda label: (label.casefold(), label)))


# --- splits


def divide(texts: list[Text], place: str, by_files: bool) -> tuple[list[Text], list[str]]:
    """Return the texts, each with its split, and what there is to say about that. Raises UserError.

    Where the data say nothing, validation and test are drawn; where they name a test alone, validation is.
    """
    notes = [] if {one.split for one in texts} == {None} else [f"splits by {'files' if by_files else 'the column split'}"]
    given = {one.split for one in texts} - {None}
    if given and "train" not in given:
        raise UserError(f"{place}: there are texts for {' and '.join(sorted(given))} and none for training")
    if "validation" in given:
        return texts, notes
    drawn = ("validation",) if "test" in given else ("test", "validation")
    free = (None, "train")
    held_out, rare = draw([one for one in texts if one.split in free], drawn)
    if not held_out:
        raise UserError(
            f"{place}: no class has {FEWEST} different texts, of which one could be held out; add texts, or a column "
            f"{SPLIT} that says train, validation or test"
        )
    notes.append(f"{' and '.join(reversed(drawn))} drawn, {SHARE:.0%} of each class each, equal texts never apart")
    notes += [f"too few texts to hold any out: {', '.join(rare)}"] if rare else []
    return [one._replace(split=held_out.get(one.key, "train")) if one.split in free else one for one in texts], notes


def draw(texts: list[Text], names: tuple[str, ...]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Return the texts that are held out, with their splits, and the classes of which none is.

    Equal texts are one. Each split gets SHARE of each class, and one text at least.
    """
    first = {one.key: one.label for one in reversed(texts)}  # with two labels, a text counts under its first
    held_out: dict[tuple[str, str], str] = {}
    rare = []
    rng = np.random.default_rng(DRAW_SEED)
    for label in sorted({*first.values()}):
        keys = sorted(key for key in first if first[key] == label)
        order = [keys[i] for i in rng.permutation(len(keys))]
        size = max(1, round(SHARE * len(keys)))
        if len(keys) < FEWEST:
            rare.append(label)
            continue
        for i, name in enumerate(names):
            held_out |= dict.fromkeys(order[i * size : (i + 1) * size], name)
    return held_out, rare


# --- what is said of them


def describe_equal(texts: list[Text]) -> list[str]:
    """Return notes on texts that are in training and held out, and on texts with two labels."""
    keys = {name: {one.key for one in texts if one.split == name} for name in SPLIT_NAMES}
    notes = []
    for name in ("validation", "test"):
        if both := len(keys["train"] & keys[name]):
            notes.append(f"{both} of {len(keys[name])} {name} texts are training texts too")
    labels = {(one.key, one.label) for one in texts}
    double = len(labels) - len({key for key, _ in labels})
    return [*notes, f"equal texts with another label: {double}"] if double else notes


def counts_of(splits: dict[str, list[TextExample]], labels: tuple[str, ...]) -> str:
    """Return how many texts each class has in each split, in words."""
    counts = [Counter(one.label for one in examples) for examples in splits.values()]
    classes = [
        f"{printable(label)} {' / '.join(str(each[number]) for each in counts)}" for number, label in enumerate(labels)
    ]
    return f"{', '.join(classes)} ({' / '.join(splits)})"


def printable(name: str) -> str:
    """Return a name out of a file as a line of the terminal can show it."""
    return name if name.isprintable() else repr(name)
