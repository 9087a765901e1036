"""Fine-tune a language model with one command; every published row is one too.

python experiments.py                                          the reference run
python experiments.py --trainable_layers lora --lora_rank 16   the same with LoRA
python experiments.py --row 7                                  row 7 of the published spam table
python experiments.py --help                                   the everyday flags; --help all shows every one

The flags are made in pipeline/flags.py from config.py. Here stands what is done with them, one function per action.
"""

import os
import sys
from pathlib import Path

from config import Run, explicit
from pipeline.flags import ANSWERED, METHODS_TABLE, SAMPLING, command, find_row, parse, parse_rows, parse_shard
from published import TABLES, get_table
from utils.errors import UserError, run_program

# Each action returns the exit status. What brings torch is imported in it: --help and --list have no use for that.


def print_rows() -> int:
    """Print every row with its command (`--list`)."""
    for table in TABLES.values():
        print(f"{table.name}: {table.source}")
        for row in table.rows:
            print(f"  {row.number:>2}  {row.title:<34} {command(row.run)}")
            if table.own_model:
                print(f"      {'on ' + table.own_model:<34} {command(table.on_own_model(row))}")
    return 0


def run_one(run: Run, overrides: Run, argv: list[str]) -> int:
    """Train one configuration, or show that its run is complete. `overrides` are the settings that flags gave."""
    from pipeline import screen
    from pipeline.execute import add_to_complete, execute
    from pipeline.job import finished, prepare
    from pipeline.unused import refuse_unused

    job = prepare(run)
    refuse_unused(overrides, job.run, job.task)
    result = finished(job) if job.run.resume else None
    if result:
        print("resume   the run is complete: nothing is left to be trained")
        result = add_to_complete(job, result)
    else:
        result = execute(job, argv)
    screen.print_result(job, result)
    return 130 if result["interrupted"] else 0


def run_row(overrides: Run, options: dict, argv: list[str]) -> int:
    """Train one published row (`--row`)."""
    from pipeline.stand_ins import choose_dialogues, choose_flags

    row, table = find_row(options["row"]), get_table(options["row"].rpartition(":")[0] or "spam")
    choice = choose_dialogues(table, row, overrides) if table.dialogues_file else choose_flags(row, overrides)
    for note in choice.notes:
        print(f"note     {note}")
    return run_one(choice.run, overrides, argv)


def run_rows(overrides: Run, options: dict) -> int:
    """Run the rows of a table and write it down (`--table`)."""
    if overrides.resume:
        raise UserError("--resume goes with one run; a table goes on by itself where it stopped")
    if "row" in options:
        raise UserError("--row runs one row and --table several; with --table use --rows")
    if options["table"] == METHODS_TABLE:
        from pipeline.comparison.table import run_methods

        numbers = parse_rows(options["rows"]) if "rows" in options else None
        return run_methods(overrides, numbers, options.get("seeds"), parse_shard(options.get("shard", "1/1")))
    if options["table"] not in TABLES:
        raise UserError(f"unknown table {options['table']!r}; choose {', '.join((*TABLES, METHODS_TABLE))}")
    from pipeline.tables import run_table

    table = TABLES[options["table"]]
    numbers = parse_rows(options["rows"]) if "rows" in options else [row.number for row in table.rows]
    rows, shard = [table.row(number) for number in numbers], parse_shard(options.get("shard", "1/1"))
    return run_table(table, rows, overrides, options.get("seeds", 1), shard)


def refuse_others(action: str, given: list[str], possible: tuple[str, ...], say_which: bool = True) -> None:
    """Raise UserError for the first given flag that doesn't go with an action such as --score."""
    for name in given:
        if name not in (action, *possible):
            which = f"; what does: --{', --'.join(possible)}" if say_which and possible else ""
            raise UserError(f"--{name} doesn't go with --{action}{which}")


def fetch(overrides: Run, options: dict) -> int:
    """Fetch models and data sets into the caches (`--download`)."""
    refuse_others("download", [*options, *explicit(overrides)], ())
    from pipeline.download import download

    download(options["download"])
    return 0


def score(overrides: Run, options: dict) -> int:
    """Let a trained model answer dialogues, and score the answers (`--score`)."""
    refuse_others("score", [*options, *explicit(overrides)], ("eval_generate", "device"))
    if overrides.eval_generate == 0:
        raise UserError("--eval_generate is 0; with --score it must be at least 1")
    from pipeline.answers import FILE, SCORES, SPLITS, evaluate_answers
    from pipeline.screen import print_measures

    result = evaluate_answers(options["score"], overrides.eval_generate or ANSWERED, overrides.device)
    print_measures(result, SCORES, SPLITS)
    print(f"saved    {options['score']}/{FILE}")
    return 0


def report(overrides: Run, options: dict) -> int:
    """Write a page about earlier runs (`--report`)."""
    refuse_others("report", [*options, *explicit(overrides)], ("out",))
    from pipeline.report.page import write_report

    out = Path(options["out"]) if "out" in options else None
    path, runs = write_report([*map(Path, options["report"])], out)
    states = [run["state"] for run in runs]
    counts = [f"{states.count(state)} {state}" for state in ("unfinished", "broken") if state in states]
    print(f"report   {len(runs)} runs" + (f", {' and '.join(counts)}" if counts else ""))
    print(f"saved    {path}")
    return 0


def export(overrides: Run, options: dict) -> int:
    """Write a trained model for the Hugging Face libraries (`--export_peft`, `--export_model`)."""
    action = "export_peft" if "export_peft" in options else "export_model"
    refuse_others(action, [*options, *explicit(overrides)], ("run_dir",))
    if not options.get("run_dir") or not options[action]:
        raise UserError(f"--{action} needs the directory to write, and --run_dir with that of an earlier run")
    from pipeline.export import export_adapter, export_model

    write = export_adapter if action == "export_peft" else export_model
    print(f"load     {write(options['run_dir'], Path(options[action]))}")
    print(f"saved    {options[action]}/")
    return 0


def predict(overrides: Run, options: dict) -> int:
    """Label texts by a trained classifier (`--predict`)."""
    refuse_others("predict", [*options], ("run_dir", "out"), say_which=False)
    # Before torch is imported, which reads it then: texts of many lengths would each leave a compiled product behind.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    from pipeline import predictions

    return predictions.predict(options["predict"], overrides, options)


def answer(overrides: Run, options: dict) -> int:
    """Let a language model answer (`--generate`, `--chat`)."""
    action = "generate" if "generate" in options else "chat"
    possible = ("run_dir", *SAMPLING) if action == "generate" else (*SAMPLING,)
    refuse_others(action, [*options], possible, say_which=False)
    from pipeline import chat

    sampling = {name: value for name, value in options.items() if name in SAMPLING}
    if action == "chat":
        return chat.talk(overrides, options["chat"], sampling)
    return chat.generate_once(options["generate"], overrides, options.get("run_dir"), sampling)


ACTIONS = {
    "download": fetch,
    "score": score,
    "report": report,
    "export_peft": export,
    "export_model": export,
    "predict": predict,
    "generate": answer,
    "chat": answer,
}


def main(argv: list[str]) -> int:
    """Do what the words ask for, in the processes that torchrun started, if it did. Returns the exit status."""
    overrides, options = parse(argv)
    if options.get("list"):
        refuse_others("list", [*options, *explicit(overrides)], ())
        return print_rows()
    if not os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:  # torchrun sets these
        return act(overrides, options, argv)
    for name in ACTIONS:
        if name in options:
            raise UserError(f"--{name} needs one process: python experiments.py --{name} ...")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DistributedDataParallel would advise what isn't meant here
    from training.distributed import joined  # brings torch

    with joined():
        return act(overrides, options, argv)


def users_of(name: str) -> str:
    """Return the actions that an option belongs to."""
    if name in SAMPLING:
        return "--generate or --chat"
    return "--predict or --report" if name == "out" else "--predict, --generate, --export_model or --export_peft"


def act(overrides: Run, options: dict, argv: list[str]) -> int:
    """Do one of ACTIONS, or run a table, a row, or the configuration that the flags give. Returns the exit status."""
    for name, action in ACTIONS.items():
        if name in options:
            return action(overrides, options)
    for name in ("run_dir", "out", *SAMPLING):
        if name in options:
            raise UserError(f"--{name} goes with {users_of(name)}")
    if "table" in options:
        return run_rows(overrides, options)
    for name in ("rows", "seeds", "shard"):
        if name in options:
            raise UserError(f"--{name} goes with --table")
    return run_row(overrides, options, argv) if "row" in options else run_one(overrides, overrides, argv)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
