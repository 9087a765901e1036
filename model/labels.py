"""The names that a checkpoint gives to its classes, matched to those of a task."""

import re
import unicodedata
from collections.abc import Sequence

NUMBER = re.compile(r"(?:(?:label|class)[\s_-]*)?(\d+)(?:\.0)?", re.IGNORECASE)  # LABEL_1, class 1, 1, 1.0
SHORTEST = 3  # letters that can stand for a longer name
NOT = {"not", "no", "non"}


def match_labels(names: Sequence[str], wanted: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """Return for each wanted label the number of the class that is it, and what had to be assumed ("": nothing).

    Case, spaces and punctuation don't count, three letters or more may stand for a longer name (neg, POS), and a name may
    have more words (1: positive). LABEL_1 and 1 are the second wanted label, or the first where they count from 1. A single
    name that isn't known is the label that is left. Other names say nothing: they are taken in their order.
    """
    found = _by_number(names) or _by_name(names, wanted)
    known = [one for one in found if one is not None]
    if len(set(known)) == len(known) == len(wanted):
        return tuple(found.index(number) for number in range(len(wanted))), ""
    if len(set(known)) == len(known) == len(wanted) - 1 > 0:
        (left,) = set(range(len(wanted))) - set(known)
        unknown = found.index(None)
        found[unknown] = left
        order = tuple(found.index(number) for number in range(len(wanted)))
        return order, f"label {names[unknown]!r} is taken to be {wanted[left]!r}, the only one that is left"
    said = f"the labels {', '.join(names)} aren't those of the task ({', '.join(wanted)})"
    return tuple(range(len(wanted))), f"{said} and are taken in its order (--head_labels: in another)"


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())


def _by_number(names: Sequence[str]) -> list[int | None]:
    """Return the numbers that all of the names are, counted from 0; [] where some aren't, or don't count up."""
    found = [NUMBER.fullmatch(name.strip()) for name in names]
    numbers = [int(one[1]) for one in found if one]
    if sorted(numbers) == [*range(len(names))]:
        return [*numbers]
    return [number - 1 for number in numbers] if sorted(numbers) == [*range(1, len(names) + 1)] else []


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return which of the wanted labels each name is, None for one that is none of them."""
    words = [plain(one) for one in wanted]
    whole = [_place_of(plain(name), words) for name in names]
    if None not in whole:
        return whole
    return [_place_among(name, words, whole) if place is None else place for name, place in zip(names, whole, strict=True)]


def _place_of(name: str, words: list[str]) -> int | None:
    """Return which of the words a name is, else which it alone shortens (neg, pos), else None."""
    if name in words:
        return words.index(name)
    longer = [number for number, word in enumerate(words) if word.startswith(name)]
    return longer[0] if len(name) >= SHORTEST and len(longer) == 1 else None


def _place_among(name: str, words: list[str], taken: Sequence[int | None]) -> int | None:
    """Return which label, that isn't taken, is the only one among the words of a name (0 NEGATIVE), else None."""
    said = {plain(word) for word in re.split(r"[\W_]+", name)}
    found = [number for number, word in enumerate(words) if word in said]
    return found[0] if len(found) == 1 and found[0] not in taken and not said & NOT else None
