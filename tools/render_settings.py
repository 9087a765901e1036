"""Write the lists of docs/what_is_read.md from the lists in the code.

python -m tools.render_settings            write the page
python -m tools.render_settings --check    write nothing; exit with 1 if the page differs

The page holds `<!-- settings: NAME -->` and `<!-- end -->`. What stands between is replaced by the lists of that name.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.dialogue_records import (
    INSTRUCTION_KEYS,
    MESSAGES,
    MESSAGES_KEYS,
    PART_KEYS,
    ROLES,
    SPLIT_OF,
    WEIGHT,
    WHO_AND_WHAT,
)
from data.own import LABELS, PAIRS, TEXTS
from data.own_splits import SPLIT
from data.own_splits import SPLIT_OF as OWN_SPLIT_OF
from model.config_settings import ALIASES, EVERYWHERE, LIBRARY_DEFAULTS, own_settings
from model.registry import ARCHITECTURES
from model.tokenizers import settings as tokenizers
from model.tokenizers.steps import NORMALIZERS, PRE_TOKENIZERS
from model.tokenizers.unigram_file import MODEL_TYPES, NORMALIZER, REQUIRED, TRAINER, UNIGRAM
from peft.huggingface.settings import ADAPTER, CHANGES_THE_BASE
from utils.errors import UserError, run_program
from utils.settings import KnownSettings

PAGE = Path(__file__).resolve().parent.parent / "docs/what_is_read.md"
MARKED = re.compile(r"(<!-- settings: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def names(values: Any) -> str:
    """Return names in code, in their order."""
    return ", ".join(f"`{value}`" for value in values)


def lists(known: KnownSettings) -> list[str]:
    """Return the three lists of a kind of file as rows of a table."""
    rows = [("used", "", names(known.used))]
    rows += [("harmless", why, names(keys.split())) for keys, why in known.harmless.items()]
    for name, allowed in known.refused.items():
        values = " or ".join(f"`{json.dumps(value)}`" for value in allowed if value is not None) or "null"
        rows.append(("refused", f"unless it is {values}", f"`{name}`"))
    return ["| list | why | keys |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]


def of_config(kind: str) -> list[str]:
    """Return the lists of config.json for an architecture, its aliases and the library's defaults."""
    entry = ARCHITECTURES[kind]
    lines = lists(own_settings(entry, entry.config()))
    if kind in ALIASES:
        pairs = ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES[kind].items())
        lines += ["", f"Second names: {pairs}."]
    if kind in LIBRARY_DEFAULTS:
        pairs = ", ".join(f"`{name}` = {value}" for name, value in LIBRARY_DEFAULTS[kind].items())
        lines += ["", f"Where the file lacks them, the library's values count: {pairs}."]
    return lines


def of_steps() -> list[str]:
    """Return the steps of a normalizer and a pre_tokenizer with their options."""
    lines = ["| section | step | options |", "| --- | --- | --- |"]
    for section, steps in (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS)):
        lines += [f"| {section} | `{step}` | {names(options)} |" for step, options in steps.items()]
    return lines


def of_classes() -> list[str]:
    """Return the classes of tokenizers that are known."""
    lines = ["| `tokenizer_class` | normalizer and pre_tokenizer |", "| --- | --- |"]
    for kind, classes in tokenizers.CLASSES.items():
        steps = "those of tokenizer.json, else built by the class" if kind == "decoder" else "built by the class"
        name = " of a newer decoder" if kind == "decoder" else ""
        lines.append(f"| {names(classes)}{name} | {steps} |")
    return [*lines, f"| {names(tokenizers.WHOLE_CLASSES)} | those of tokenizer.json |"]


def of_unigram_file() -> list[str]:
    """Return what is read of a SentencePiece file, and what is refused."""
    lines = ["| part | list | fields |", "| --- | --- | --- |"]
    lines.append("| `pieces` | used | `piece`, `score`, `type` |")
    lines.append(f"| `trainer_spec` | refused | `model_type` unless it is `{MODEL_TYPES[UNIGRAM]}` |")
    for part, name in ((TRAINER, "trainer_spec"), (NORMALIZER, "normalizer_spec")):
        for field, _, needed in REQUIRED[part].values():
            value = f"`{needed.decode()!r}`" if isinstance(needed, bytes) else f"`{json.dumps(bool(needed))}`"
            lines.append(f"| `{name}` | refused | `{field}` unless it is {value} |")
    lines.append("| `trainer_spec` | harmless: how the pieces were learned | any other |")
    lines.append("| `normalizer_spec` | used | `precompiled_charsmap` |")
    lines.append("| `normalizer_spec` | harmless: where its map comes from | `name`, `normalization_rule_tsv` |")
    lines.append("| `denormalizer_spec` | refused | `precompiled_charsmap` unless it is empty |")
    return [*lines, "| `self_test_data` | harmless: texts to test with | all |"]


def of_own_texts() -> list[str]:
    """Return the usual names of columns, and what a split may be called."""
    pairs = "; ".join(f"`{one}` and `{two}`" for one, two in PAIRS)
    rows = [
        ("column", "used, the only one of them", f"the text: {names(TEXTS)}"),
        ("column", "used, two of them", f"the pair: {pairs}"),
        ("column", "used, the only one of them", f"the label: {names(LABELS)}"),
        ("column", "used", f"`{SPLIT}`, in a file that isn't of a split already"),
        (
            "column",
            "harmless",
            "any other: it isn't read, and the header names it; for `--predict`, labels and `split` too",
        ),
        ("split", "refused, with the file", f"unless it is, in any case, {names(OWN_SPLIT_OF)}"),
    ]
    return ["| what | list | names |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]


def of_dialogues() -> list[str]:
    """Return what is read of a record and of a message."""
    return [
        "| what | list | keys |",
        "| --- | --- | --- |",
        f"| record with an instruction | used | {names(INSTRUCTION_KEYS)} |",
        f"| record with messages | used | {names(MESSAGES)}, one of them; {names(MESSAGES_KEYS)} |",
        f"| message | used | {' or '.join(names(pair) for pair in WHO_AND_WHAT)}; `{WEIGHT}` |",
        f"| part of a content | used | {names(PART_KEYS)} |",
        "| any of them | harmless | any other key: it isn't read, and the header names it with its count |",
        f"| role | refused, with the record | unless it is, in any case, {names(ROLES)} |",
        f"| `split` | refused, with the record | unless it is {names(SPLIT_OF)} |",
        f"| `{WEIGHT}` | refused, with the record | unless it is `0` or `1` |",
    ]


TOKENIZERS = ("gpt2", "decoder", "wordpiece")  # RoBERTa's lists are GPT-2's
LISTS: dict[str, Callable[[], list[str]]] = {
    "config": lambda: lists(EVERYWHERE),
    **{f"config-{kind}": lambda kind=kind: of_config(kind) for kind in ARCHITECTURES},
    "tokenizer-classes": of_classes,
    **{f"tokenizer-config-{kind}": lambda kind=kind: lists(tokenizers.CONFIG[kind]) for kind in TOKENIZERS},
    "tokenizer-config-chatglm": lambda: lists(tokenizers.CONFIG["chatglm"]),
    "unigram-file": of_unigram_file,
    "special-tokens-map": lambda: lists(tokenizers.SPECIAL_TOKENS_MAP),
    "added-token": lambda: lists(tokenizers.ADDED_TOKEN),
    "tokenizer-json": lambda: lists(tokenizers.SECTIONS),
    **{f"tokenizer-model-{kind}": lambda kind=kind: lists(tokenizers.MODEL[kind]) for kind in TOKENIZERS},
    "steps": of_steps,
    **{f"adapter-{kind}": lambda kind=kind: lists(ADAPTER[kind]) for kind in ADAPTER},
    "changes-the-base": lambda: [f"`init_lora_weights` is refused where it begins with {names(CHANGES_THE_BASE)}."],
    "own-texts": of_own_texts,
    "dialogues": of_dialogues,
}


def render(text: str) -> str:
    """Return the page with every list made anew."""

    def made(found: re.Match) -> str:
        if found[2] not in LISTS:
            raise UserError(f"there is no list {found[2]!r}; choose {', '.join(LISTS)}")
        return found[1] + "\n".join(LISTS[found[2]]()) + "\n" + found[4]

    return MARKED.sub(made, text)


def main() -> int:
    """Write the page, or say whether it differs. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if not args.check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{PAGE} differs; run: python -m tools.render_settings")
        return 1
    return 0


if __name__ == "__main__":
    run_program(main)
