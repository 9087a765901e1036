"""The flags: words of a command line -> a `Run` and the options that choose what is done. Imports no torch."""

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Iterable

from config import SETTINGS, Run, explicit
from published import TABLES, get_table
from published.table import Row
from utils.errors import UserError

EXAMPLES = """python experiments.py                                          the reference run
python experiments.py --trainable_layers lora --lora_rank 16   the same with LoRA
python experiments.py --row 7                                  row 7 of the published spam table
python experiments.py --predict "Free entry!" --run_dir DIR    label a text, or a file of texts, by a trained model
python experiments.py --help all                               every flag"""
MORE_EXAMPLES = """python experiments.py --table spam --seeds 3                   the whole table, three seeds a row
torchrun --nproc_per_node=2 experiments.py                     on two GPUs or processes; --batch_size is that of each
python experiments.py --table spam --shard 2/8                 on eight machines, the second's part of a table
python experiments.py --list                                   the rows and their commands
python experiments.py --report runs                            a page about all runs: runs/report.html
python experiments.py --download gpt2-small spam               fetch models and data sets, to work offline afterwards
python experiments.py --generate "Who are you?" --run_dir DIR  ask the model that a run has trained
python experiments.py --chat runs/NAME                         talk to a trained model
python experiments.py --score runs/NAME                        let it answer the held-out dialogues: BLEU and ROUGE
python experiments.py --export_peft DIR --run_dir runs/NAME    what it trained, for the Hugging Face library peft"""

PROGRAM = ("python", "experiments.py")
METHODS_TABLE = "methods"  # of --table: no published rows, every method (pipeline/comparison)
ANSWERED = 100  # dialogues, by --score: the number of the published plan

# The flags that choose what is done, by the section of --help. Those of one run are in config.py.
ROWS = {
    "row": {"metavar": "N", "help": "run this published row (of another table: TABLE:N)"},
    "table": {
        "metavar": "NAME",
        "help": f"run the rows of a table and write it down; {', '.join((*TABLES, METHODS_TABLE))}",
    },
    "rows": {"metavar": "LIST", "help": "of the table, only these: 1,3-5"},
    "seeds": {
        "metavar": "K",
        "type": int,
        "help": "runs per row, with seeds from --seed on (default 1; of methods 5)",
    },
    "shard": {"metavar": "I/N", "help": "of the table, only the I-th row of each N: one of N machines"},
    "list": {"action": "store_true", "help": "print every row with its command"},
    "download": {
        **{"metavar": "NAME", "nargs": "+", "action": "extend", "type": os.path.expanduser},
        "help": "only fetch these models and data sets into the caches; then HF_HUB_OFFLINE=1 works",
    },
}
DIRECTORY = {"metavar": "DIR", "type": os.path.expanduser}  # ~ is the home directory
TRAINED = {
    "predict": {
        **{"metavar": "TEXT", "nargs": "+"},
        "help": "label a text or a pair, a file's texts, or - for standard input's; by --run_dir, or by the classifier of "
        "a --checkpoint or --model; a file is .txt (a text a line), .csv, .tsv, .jsonl, .json or .parquet",
    },
    "generate": {"metavar": "QUESTION", "help": "answer once (of a language model; --model, --template, ... go with it)"},
    "chat": DIRECTORY | {"help": "talk to the model that the run with this directory trained"},
    "run_dir": DIRECTORY | {"help": "the directory of the run whose model --predict, --generate and --export_* take"},
    "report": {
        **DIRECTORY,
        **{"nargs": "+", "action": "extend"},
        "help": "write a page about all runs below these directories: table, curves, plots, comparison",
    },
    "out": {
        **{"metavar": "FILE", "type": os.path.expanduser},
        "help": "the file that --predict writes, a new .csv or .jsonl (default: CSV on standard output), or --report "
        "(default: DIR/report.html)",
    },
    "score": DIRECTORY | {"help": f"let this run's model answer {ANSWERED} dialogues, or --eval_generate, and score them"},
    "export_model": DIRECTORY | {"help": "write the whole model as a checkpoint for transformers"},
    "export_peft": DIRECTORY | {"help": "write what the run trained as an adapter of the library peft"},
}
# Fields of `Sampling` (model/generation.py), which has their limits and defaults; a kind of model may have others.
SAMPLING = {
    "max_new_tokens": {"type": int, "help": "the longest answer, in tokens (default 100; ChatGLM: 2048)"},
    "temperature": {
        "type": float,
        "help": "divides the scores of the next token (default 0: always the likeliest; ChatGLM: 0.95)",
    },
    "top_k": {"type": int, "help": "choose among the K likeliest tokens (default 0: all)"},
    "top_p": {
        "type": float,
        "help": "choose among the likeliest tokens with this probability together (default 1: all; ChatGLM: 0.7)",
    },
    "repetition_penalty": {"type": float, "help": "makes tokens that are there already less likely (default 1: not)"},
}
OPTIONS = {
    "published rows": ROWS,
    "a trained model": TRAINED,
    "how it answers": SAMPLING,
}
METAVARS = {int: "N", float: "X", str: "NAME"}
EVERYDAY = ("row", "table", "list", "predict", "report", "generate", "chat", "run_dir", "export_model")


class Parser(argparse.ArgumentParser):
    """argparse, except that an error is a UserError: one line, no usage text around it."""

    def error(self, message: str):
        raise UserError(f"{message} (see python experiments.py --help)")


class ShowHelp(argparse.Action):
    """`--help` shows the everyday flags, `--help all` every flag."""

    def __call__(self, parser, namespace, value, option_string=None):
        if value not in (None, "all"):
            parser.error(f"--help {value}: say --help, or --help all")
        text = build_parser(everyday=value is None).format_help()
        if value is None:  # without blank lines between its sections, it fits on a screen
            text = re.sub(r"\n\n(?=\S.*:\n  )", "\n", text)
        print(text, end="")
        parser.exit()


def build_parser(everyday: bool = False) -> Parser:
    """Return the parser: a flag per setting of `Run`, and OPTIONS. With `everyday`, its help is the short one."""
    parser = Parser(
        usage=argparse.SUPPRESS,
        description=EXAMPLES if everyday else f"{EXAMPLES}\n{MORE_EXAMPLES}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=118),
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,  # what half a name means would change with each new flag
    )
    section = parser
    for name, about in SETTINGS.items():
        if about["section"]:
            section = parser.add_argument_group(about["section"])
        add_setting(section, name, about, everyday)
    for title, options in OPTIONS.items():
        section = parser.add_argument_group(title)
        for name, about in options.items():
            shown = about["help"] if not everyday else summary(about["help"]) if name in EVERYDAY else argparse.SUPPRESS
            section.add_argument(f"--{name}", **(about | {"help": shown}))
    section.add_argument("--help", "-h", nargs="?", action=ShowHelp, help=argparse.SUPPRESS)
    return parser


def add_setting(section, name: str, about: dict, everyday: bool) -> None:
    """Add the flag of one setting. A switch has two: --packing and --no-packing."""
    names = [f"--{name}"] if everyday else [f"--{one}" for one in (name, *about["aliases"])]
    has_default = about["default"] not in (None, False) and not about["help"].endswith(")")
    shown = f"{about['help']} (default {about['default']})" if has_default else about["help"]
    if everyday:
        shown = summary(about["help"]) if about["everyday"] else argparse.SUPPRESS
    if about["kind"] is bool:
        action = "store_true" if everyday else argparse.BooleanOptionalAction
        section.add_argument(*names, dest=name, action=action, help=shown)
        return
    metavar = "{" + ",".join(about["choices"]) + "}" if about["choices"] else METAVARS[about["kind"]]
    section.add_argument(*names, dest=name, type=about["kind"], metavar=metavar, help=shown)


def summary(text: str) -> str:
    """Return the first part of a flag's description: what stands before a semicolon or a bracket."""
    return re.split(r"; | \(", text)[0]


def mend_misprints(argv: list[str]) -> list[str]:
    """Return the words with the misprints of two published commands mended, which are accepted as they stand.

    Row 9 lacks a space between a model's name and the next flag; row 19 says `--average embeddings` for
    `--average_embeddings`.
    """
    words: list[str] = []
    for word in argv:
        glued = re.fullmatch(r"(gpt2-\w+ \(\d+M\))(--\w+)", word)
        if glued:
            words += glued.groups()
        elif word == "embeddings" and words[-1:] == ["--average"]:
            words[-1] = "--average_embeddings"
        else:
            words.append(word)
    return words


def parse(argv: list[str]) -> tuple[Run, dict]:
    """Return the settings that the words give, and the options among OPTIONS. Raises UserError."""
    parser = build_parser()
    found, unknown = parser.parse_known_args(mend_misprints(argv))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{nearest_flag(unknown)}")
    for name in ("generate", "source_prefix"):
        if name in found:
            setattr(found, name, typed(getattr(found, name), f"--{name}"))
    if "base_precision" in found:  # --quantization_bit counts bits
        found.base_precision = {"8": "int8", "4": "int4"}.get(found.base_precision, found.base_precision)
    options = {name: value for name, value in vars(found).items() if name not in SETTINGS}
    return Run(**{name: value for name, value in vars(found).items() if name in SETTINGS}), options


def typed(text: str, what: str) -> str:
    """Return a text that a user typed. Raises UserError where it isn't one in UTF-8.

    Python keeps bytes that the terminal's encoding doesn't have as surrogates; a model would read them as other characters.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{what} is {text!r}, which is no text in UTF-8") from None


def nearest_flag(words: list[str]) -> str:
    """Return a hint at the flag that the first unknown one is like, or "" where none is."""
    unknown = next((word.partition("=")[0] for word in words if word.startswith("--")), "--")
    flags = [f"--{name}" for options in OPTIONS.values() for name in options]
    for name, about in SETTINGS.items():
        flags += [f"--{one}" for one in (name, *about["aliases"])]
        flags += [f"--no-{name}"] if about["kind"] is bool else []
    longer = [name for name in flags if name.startswith(unknown) and unknown != "--"]
    nearest = longer[:1] or difflib.get_close_matches(unknown, flags, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def parse_rows(text: str) -> list[int]:
    """Return the numbers in a text: 1,3-5 -> [1, 3, 4, 5]. Raises UserError."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--rows is {text!r}; write numbers and ranges such as 1,3-5")
        first, last = int(found[1]), int(found[2] or found[1])
        numbers += range(first, last + 1)
    return numbers


def parse_shard(text: str) -> tuple[int, int]:
    """Return the numbers in a text: 2/8 -> (2, 8). Raises UserError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is {text!r}; write I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def find_row(text: str) -> Row:
    """Return the row that a text names: 5 (of the spam table) or TABLE:5. Raises UserError."""
    table, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise UserError(f"--row is {text!r}; write a number, or TABLE:NUMBER with a table of {', '.join(TABLES)}")
    return get_table(table or "spam").row(int(number))


# --- and back


def to_flags(run: Run) -> list[str]:
    """Return the flags that make this run: parsing them gives an equal Run."""
    words = []
    for name, value in explicit(run).items():
        text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif text.startswith("-"):  # a word of its own would be taken for a flag
            words.append(f"--{name}={text}")
        else:
            words += [f"--{name}", text]
    return words


def command(run: Run) -> str:
    """Return the command line that makes this run; `parse_command` is the way back."""
    return command_of_words(to_flags(run))


def command_of_words(words: Iterable[str]) -> str:
    """Return the command line with these words behind the program's name."""
    return shlex.join([*PROGRAM, *words])


def parse_command(line: str) -> Run:
    """Return the settings that a command line gives. Raises UserError."""
    return parse(shlex.split(line)[len(PROGRAM) :])[0]
