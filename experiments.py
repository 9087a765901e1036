"""Fine-tune a language model with one command; every published row is one too.

python experiments.py                                          the reference run
python experiments.py --trainable_layers lora --lora_rank 16   the same with LoRA
python experiments.py --row 7                                  row 7 of the spam table
python experiments.py --table spam --seeds 3                   the whole table, three seeds a row
torchrun --nproc_per_node=2 experiments.py                     on two GPUs or processes; --batch_size is that of each
python experiments.py --table spam --shard 2/8                 on eight machines, the second's part of a table
python experiments.py --list                                   the rows and their commands
python experiments.py --download gpt2-small spam               fetch models and data sets, to work offline afterwards
python experiments.py --generate "Who are you?"                one answer; of a trained model with --run_dir runs/NAME
python experiments.py --chat runs/NAME                         talk to a trained model
python experiments.py --score runs/NAME                        let it answer the held-out dialogues: BLEU and ROUGE
python experiments.py --export_peft DIR --run_dir runs/NAME    what it trained, for the Hugging Face library peft
"""

import argparse
import difflib
import os
import re
import sys
from pathlib import Path

from config import SETTINGS, Run, command, explicit
from published import TABLES, get_table
from published.table import Row
from utils.errors import UserError, run_program

# Fields of `Sampling` (model/generate.py), which has their defaults and limits.
SAMPLING = {
    "max_new_tokens": (int, "longest answer, in tokens (default 100)"),
    "temperature": (float, "divides the scores of the next token (default 0: always the likeliest)"),
    "top_k": (int, "choose among the K likeliest tokens (default 0: all)"),
    "top_p": (float, "choose among the likeliest tokens that have this probability together (default 1: all)"),
    "repetition_penalty": (float, "makes tokens that are there already less likely (default 1: not)"),
}

ANSWERED = 100  # dialogues, by --score: the number of the published plan


class Parser(argparse.ArgumentParser):
    """argparse, except that an error is a UserError: one line, no usage text around it."""

    def error(self, message: str):
        raise UserError(f"{message} (see python experiments.py --help)")


def build_parser() -> Parser:
    """One flag per field of `Run`, under its name and aliases, and the few that choose among published rows."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,  # half a name may mean another flag tomorrow
    )
    rows = parser.add_argument_group("published rows")
    rows.add_argument("--row", metavar="N", help="run this published row (of another table: TABLE:N)")
    rows.add_argument("--table", metavar="NAME", help=f"run a table's rows and write it down: {', '.join(TABLES)}")
    rows.add_argument("--rows", metavar="LIST", help="of the table, only these: 1,3-5")
    rows.add_argument("--seeds", metavar="K", type=int, help="runs per row, with seeds from --seed on (default 1)")
    rows.add_argument("--shard", metavar="I/N", help="of the table, only the I-th row of each N: one of N machines")
    rows.add_argument("--list", action="store_true", help="print every row with its command")
    rows.add_argument(
        "--download",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="only fetch these models and data sets (as of --model and --dataset) into the caches, for HF_HUB_OFFLINE=1",
    )
    answers = parser.add_argument_group(
        "answers (of a language model; also --model, --checkpoint, --template, --seed, ...)"
    )
    answers.add_argument("--generate", metavar="QUESTION", help="answer once")
    answers.add_argument(
        "--run_dir", metavar="DIR", help="with --generate and --export_*: the directory of the run that trained the model"
    )
    answers.add_argument("--chat", metavar="DIR", help="talk to the model that the run with this directory trained")
    answers.add_argument(
        "--score",
        metavar="DIR",
        help=f"let the model of the run with this directory answer what it was measured on (as --eval_generate "
        f"{ANSWERED}, the default here)",
    )
    exports = parser.add_argument_group("for the Hugging Face libraries (with --run_dir)")
    exports.add_argument(
        "--export_peft", metavar="DIR", help="write what the run trained as an adapter of the library peft"
    )
    exports.add_argument("--export_model", metavar="DIR", help="write the whole model as a checkpoint for transformers")
    for name, (kind, meaning) in SAMPLING.items():
        answers.add_argument(f"--{name}", type=kind, metavar=name.upper(), help=meaning)
    flags = parser.add_argument_group("one run (what isn't said comes from the row, else from the task's recipe)")
    for name, about in SETTINGS.items():
        names = [f"--{one}" for one in (name, *about["aliases"])]
        if about["kind"] is bool:  # --packing and --no-packing
            flags.add_argument(*names, dest=name, action=argparse.BooleanOptionalAction, help=about["help"])
            continue
        choices = about["choices"]
        flags.add_argument(
            *names,
            dest=name,
            type=about["kind"],
            metavar="{" + ",".join(choices) + "}" if choices else name.upper(),
            help=about["help"],
        )
    return parser


def mend_misprints(argv: list[str]) -> list[str]:
    """Two of the published commands are misprinted, and are accepted as they stand: row 9 lacks a space between a model's
    name and the next flag, row 19 says `--average embeddings` for `--average_embeddings`."""
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


def nearest_flag(parser: Parser, words: list[str]) -> str:
    """Return a hint at the flag that the first unknown one resembles, or "" where none does."""
    unknown = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
    nearest = difflib.get_close_matches(unknown, parser._option_string_actions, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def parse(argv: list[str]) -> tuple[Run, dict]:
    """argv -> what it says about a run, and the options that choose rows."""
    parser = build_parser()
    found, unknown = parser.parse_known_args(mend_misprints(argv))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{nearest_flag(parser, unknown)}")
    values = found.__dict__
    options = {name: value for name, value in values.items() if name not in SETTINGS}
    return Run(**{name: value for name, value in values.items() if name in SETTINGS}), options


def parse_rows(text: str) -> list[int]:
    """The text 1,3-5 -> [1, 3, 4, 5]."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--rows is {text!r}; write numbers and ranges such as 1,3-5")
        first, last = int(found[1]), int(found[2] or found[1])
        numbers += range(first, last + 1)
    return numbers


def parse_shard(text: str) -> tuple[int, int]:
    """The text 2/8 -> (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is {text!r}; write I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def find_row(text: str) -> Row:
    """The text 5 or TABLE:5 -> the row. Raises UserError."""
    table, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise UserError(f"--row is {text!r}; write a number, or TABLE:NUMBER with a table of {', '.join(TABLES)}")
    return get_table(table or "spam").row(int(number))


def of_row(text: str, said: Run) -> Run:
    """The row with what was said; notes of its table are printed."""
    row, table = find_row(text), get_table(text.rpartition(":")[0] or "spam")
    if not table.choose:
        return row.with_flags(said)
    run, notes = table.choose(row.run, said)
    for note in notes:
        print(f"note     {note}")
    return run


def print_rows() -> None:
    """What `--list` shows: each row's command."""
    for table in TABLES.values():
        print(f"{table.name}: {table.source}")
        for row in table.rows:
            print(f"  {row.number:>2}  {row.title:<34} {command(row.run)}")


def run_one(run: Run, argv: list[str]) -> int:
    """Trains one configuration, or says that its run is complete. Returns the exit status."""
    from pipeline.answers import SCORES
    from pipeline.execute import execute  # brings torch, which --help and --list have no use for
    from pipeline.job import finished, prepare

    prepared = prepare(run)
    result = finished(prepared) if run.resume else None
    if result:
        print("resume   the run is complete: nothing is left to be done")
    else:
        result = execute(prepared, argv)
    print(f"saved    {prepared.directory}/")
    if result["interrupted"]:
        print(f"interrupted after {result['steps']} steps; what was trained is saved, --resume goes on from there")
        return 130
    print_measures(result, (*prepared.task.metrics, *SCORES), prepared.task.evaluated)
    rate = f" ({result['tokens_per_second']:,.0f} tokens/s)" if result.get("tokens_per_second") else ""
    print(f"time     {result['train_seconds']:.0f} s training{rate}, {result['total_seconds']:.0f} s in all")
    return 0


def print_measures(result: dict, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    """A line per measure that the result has for any of the splits."""
    for name in names:
        values = {split: result.get(f"{split}_{name}") for split in splits}
        if any(value is not None for value in values.values()):
            form = ".4g" if name in ("loss", "perplexity") else ".2%"
            shown = ", ".join(f"{split} {value:{form}}" for split, value in values.items() if value is not None)
            print(f"{name:<10} {shown}" if form == ".4g" else f"{name:<8} {shown}")


def score(said: Run, options: dict) -> int:
    """`--score`."""
    if useless := [name for name in (*options, *explicit(said)) if name not in ("score", "eval_generate", "device")]:
        raise UserError(f"--{useless[0]} doesn't go with --score; what does: --eval_generate, --device")
    if said.eval_generate == 0:
        raise UserError("--eval_generate is 0; with --score it must be at least 1")
    from pipeline.answers import FILE, SCORES, SPLITS
    from pipeline.reload import evaluate_answers

    result = evaluate_answers(options["score"], said.eval_generate or ANSWERED, said.device)
    print_measures(result, SCORES, SPLITS)
    print(f"saved    {options['score']}/{FILE}")
    return 0


def fetch(said: Run, options: dict) -> int:
    """`--download`."""
    if useless := [name for name in (*options, *explicit(said)) if name != "download"]:
        raise UserError(f"--{useless[0]} doesn't go with --download")
    from pipeline.download import download  # brings torch

    download(options["download"])
    return 0


def export(said: Run, options: dict) -> int:
    """`--export_peft` or `--export_model`."""
    what = "export_peft" if "export_peft" in options else "export_model"
    if useless := [name for name in (*options, *explicit(said)) if name not in (what, "run_dir")]:
        raise UserError(f"--{useless[0]} doesn't go with --{what}; what does: --run_dir")
    if not options.get("run_dir") or not options[what]:
        raise UserError(f"--{what} needs the directory to write, and --run_dir with that of an earlier run")
    from pipeline.reload import export_adapter, export_model

    write = export_adapter if what == "export_peft" else export_model
    print(f"load     {write(options['run_dir'], Path(options[what]))}")
    print(f"saved    {options[what]}/")
    return 0


def answer(said: Run, options: dict) -> int:
    """`--generate` or `--chat`."""
    possible = {"generate", "run_dir", *SAMPLING} if "generate" in options else {"chat", *SAMPLING}
    if useless := [name for name in options if name not in possible]:
        raise UserError(f"--{useless[0]} doesn't go with --{'generate' if 'generate' in options else 'chat'}")
    from pipeline import chat  # brings torch

    how = {name: value for name, value in options.items() if name in SAMPLING}
    if "chat" in options:
        return chat.talk(said, options["chat"], how)
    return chat.generate_once(options["generate"], said, options.get("run_dir"), how)


def main(argv: list[str]) -> int:
    said, options = parse(argv)
    if options.get("list"):
        print_rows()
        return 0
    if not os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:  # what torchrun says
        return act(said, options, argv)
    for name in ("download", "score", "export_peft", "export_model", "generate", "chat"):
        if name in options:
            raise UserError(f"--{name} needs one process: python experiments.py --{name} ...")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DistributedDataParallel would advise what isn't meant here
    from training.distributed import joined  # brings torch

    with joined():
        return act(said, options, argv)


def act(said: Run, options: dict, argv: list[str]) -> int:
    """Whatever was asked for, but --list."""
    if "download" in options:
        return fetch(said, options)
    if "score" in options:
        return score(said, options)
    if "export_peft" in options or "export_model" in options:
        return export(said, options)
    if "generate" in options or "chat" in options:
        return answer(said, options)
    for name in ("run_dir", *SAMPLING):
        if name in options:
            raise UserError(f"--{name} goes with --generate" + (" or --chat" if name in SAMPLING else ""))
    if "table" in options:
        if said.resume:
            raise UserError("--resume goes with one run; a table goes on by itself where it stopped")
        if "row" in options:
            raise UserError("--row runs one row and --table several; with --table use --rows")
        from pipeline.tables import run_table

        table = get_table(options["table"])
        numbers = parse_rows(options["rows"]) if "rows" in options else [row.number for row in table.rows]
        rows, shard = [table.row(number) for number in numbers], parse_shard(options.get("shard", "1/1"))
        return run_table(table, rows, said, options.get("seeds", 1), shard)
    for name in ("rows", "seeds", "shard"):
        if name in options:
            raise UserError(f"--{name} goes with --table")
    if "row" in options:
        said = of_row(options["row"], said)
    return run_one(said, argv)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
