"""What a tokenizer.json does with a text before its words are looked up: its normalizers and its pre-tokenizers."""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from utils.errors import UserError
from utils.settings import check_value

Step = Callable[[str], str]

# White space as Unicode defines it. Python's own `isspace` has four control characters more.
WHITE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

# How byte-level tokenizers cut text into words before BPE: GPT-2 (openai/gpt-2, src/encoder.py), Qwen2 to Qwen3, Llama 3.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLIT_PATTERNS = {"GPT-2": GPT2_PATTERN, "Qwen": QWEN_PATTERN, "Llama 3": LLAMA3_PATTERN}

# Type of a step -> its options. Any other type, and any other option, is refused.
NORMALIZERS: dict[str, dict[str, Any]] = {
    "Lowercase": {},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "StripAccents": {},
    "Strip": {"strip_left": True, "strip_right": True},
    "Prepend": {"prepend": ""},
    "Replace": {"pattern": {"String": ""}, "content": ""},
    "BertNormalizer": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "ByteLevel": {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "Digits": {"individual_digits": False},
    "Split": {"pattern": {"Regex": ""}, "behavior": "", "invert": False},
    "BertPreTokenizer": {},
}


def steps_of(place: str, content: object, known: dict[str, dict], parts: str) -> list[dict[str, Any]]:
    """Return the steps of a section with all their options, those within a Sequence in their order. Raises UserError.

    parts   what a Sequence calls its list
    """
    found, todo = [], [] if content is None else [content]
    while todo:
        step = todo.pop(0)
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Sequence" and isinstance(step, dict) and isinstance(step.get(parts), list):
            todo = step[parts] + todo
            continue
        if not isinstance(step, dict) or not isinstance(kind, str) or kind not in known:
            raise UserError(f"{place} is {kind or step!r}, which isn't supported; known are {', '.join(known)}")
        options = {name: value for name, value in step.items() if name != "type"}
        for name, value in options.items():
            if name not in known[kind] or not has_type_of(value, known[kind][name]):
                raise UserError(f"{place} {kind} sets {name} to {value!r}, which isn't supported")
        found.append({"type": kind} | known[kind] | options)
    return found


def has_type_of(value: object, default: object) -> bool:
    """Return whether a value is of the type of the option's default. An option without one takes a bool or none."""
    if default is None:
        return value is None or isinstance(value, bool)
    if isinstance(default, dict):  # a pattern: either a text or a regular expression
        (kind,) = default
        return isinstance(value, dict) and list(value) == [kind] and isinstance(value[kind], str) and value[kind] != ""
    return type(value) is type(default)


def unchanged(text: str) -> str:
    """Return the text."""
    return text


def lowercase(text: str) -> str:
    """Return the text in lower case, letter by letter: Python alone would write a Σ at a word's end as ς."""
    return text.replace("Σ", "σ").lower()


def strip_accents(text: str) -> str:
    """Return the text without marks that stand alone, as in the NFD form."""
    return "".join(c for c in text if unicodedata.category(c)[0] != "M")


def make_normalizer(step: dict[str, Any]) -> Step:
    """Return the function of one step of NORMALIZERS, BertNormalizer aside: `BasicTokenizer` has that one."""
    kind = step["type"]
    if kind.startswith("NF"):
        return partial(unicodedata.normalize, kind)
    if kind == "Strip":
        left, right = (WHITE if step[name] else "" for name in ("strip_left", "strip_right"))
        return lambda text: text.lstrip(left).rstrip(right)
    if kind == "Prepend":
        return lambda text: step["prepend"] + text if text else text
    if kind == "Replace":
        return lambda text: text.replace(step["pattern"]["String"], step["content"])
    return {"Lowercase": lowercase, "StripAccents": strip_accents}[kind]


def in_sequence(steps: list[Step]) -> Step:
    """Return the function that does all steps, one after the other."""

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize if steps else unchanged


@dataclass(frozen=True)
class ByteLevel:
    """How a byte-level BPE cuts a text into words.

    digits      for each time that numbers are cut off before that: whether each digit is
    prefix      a space in front of what doesn't begin with one
    pattern     of a word; None: what is there so far is one
    """

    digits: tuple[bool, ...] = ()
    prefix: bool = False
    pattern: str | None = GPT2_PATTERN

    @classmethod
    def of(cls, place: str, steps: list[dict[str, Any]]) -> "ByteLevel":
        """Return what the steps of a pre-tokenizer do. Raises UserError."""
        kinds = [step["type"] for step in steps]
        if kinds == ["Split", "ByteLevel"]:
            return cls(pattern=pattern_of(place, *steps))
        if kinds[-1:] != ["ByteLevel"] or set(kinds[:-1]) - {"Digits"}:
            raise UserError(
                f"{place} is {', '.join(kinds) or None}; it must be ByteLevel, Digits and then ByteLevel, "
                "or Split and then ByteLevel"
            )
        digits = tuple(step["individual_digits"] for step in steps[:-1])
        return cls(digits, steps[-1]["add_prefix_space"], GPT2_PATTERN if steps[-1]["use_regex"] else None)

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the parts of a text that are cut further by the pattern, or are words."""
        parts = [text] if text else []
        for individual in self.digits:
            parts = [piece for part in parts for piece in cut_digits(part, individual)]
        for part in parts:
            yield f" {part}" if self.prefix and not part.startswith(" ") else part


def pattern_of(place: str, split: dict[str, Any], byte_level: dict[str, Any]) -> str:
    """Return the pattern of a Split whose words ByteLevel only turns into bytes. Raises UserError."""
    pattern = split["pattern"]["Regex"]
    if pattern not in SPLIT_PATTERNS.values():
        raise UserError(
            f"{place} Split has the pattern {pattern!r}, which isn't supported; known are those of "
            f"{', '.join(SPLIT_PATTERNS)}"
        )
    check_value(f"{place} Split", "behavior", split["behavior"], ("Isolated",))
    check_value(f"{place} Split", "invert", split["invert"], (False,))
    for name in ("add_prefix_space", "use_regex"):
        check_value(f"{place} ByteLevel behind a Split", name, byte_level[name], (False,))
    return pattern


def cut_digits(text: str, individual: bool) -> Iterator[str]:
    """Yield numbers and what stands between them; `individual`: each digit alone."""
    for is_number, characters in groupby(text, lambda c: unicodedata.category(c)[0] == "N"):
        if is_number and individual:
            yield from characters
        else:
            yield "".join(characters)
