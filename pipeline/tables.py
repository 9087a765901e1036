"""Running the rows of a published table and setting what was measured beside what was published."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from config import Run, explicit
from pipeline import plots
from pipeline.answers import why_no_scores, with_answers
from pipeline.execute import execute
from pipeline.flags import command, parse_command
from pipeline.job import Job, finished, prepare, why_not_resumable
from pipeline.marks import mark_of
from pipeline.result import read_json, write_json, write_text
from pipeline.stand_ins import choose, with_flags
from pipeline.table_text import digits_of, groups_of, key_of, markdown, scale_of
from pipeline.unused import refuse_unused_in_rows
from published.table import Row, Table
from training import distributed
from training.metrics_log import read_records
from utils.errors import UserError


def run_table(table: Table, rows: list[Row], overrides: Run, n_seeds: int, shard: tuple[int, int] = (1, 1)) -> int:
    """Run each row with each seed unless that run is finished. Return the exit status.

    The table is written as table-NAME.md and .json after every row. Rows measured earlier with the same flags stay in it,
    so that it can be filled in pieces. Shard (i, n) runs the i-th of each n rows, on a machine beside others that share
    the folder. Raises UserError.
    """
    if n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}; it must be at least 1")
    refuse_unused_in_rows(overrides, [with_flags(row, overrides) for row in rows])
    folder = Path(overrides.output_dir or "runs")
    overrides = replace(overrides, output_dir=None)
    lines = earlier_lines(table, overrides, folder)
    rows = [table.base, *rows] if table.base else rows
    for row in rows:
        choose(table, row, overrides)  # what no row can be run with is refused before the first one has trained
    mine = in_shard(table, rows, overrides, *shard)
    others = [row for row in rows if row not in mine]
    for row in mine:
        print(f"row {row.number}: {row.title}", flush=True)
        line = measure(table, row, overrides, n_seeds, folder)
        if line is None:
            print("interrupted; the same command goes on from here")
            return 130
        lines[row.number] = line
        write_table(table, lines, folder, partial(finished_lines, table, others, overrides, n_seeds, folder))
    if distributed.rank() == 0:
        if not mine:
            print(f"shard {'/'.join(map(str, shard))} has none of {len(rows)} rows")
            return 0
        print((folder / f"table-{table.name}.md").read_text(encoding="utf-8"))
        print(f"saved {folder}/table-{table.name}.md and .json")
        if table.columns:
            print(draw(table, list(lines.values()), folder))
    return 0


def in_shard(table: Table, rows: list[Row], overrides: Run, place: int, n_shards: int) -> list[Row]:
    """Return every n-th row. Rows for which the same run stands in go together, so that no two machines do it."""
    if n_shards == 1:
        return rows
    runs = [choose(table, row, overrides).run for row in rows]
    different = list(dict.fromkeys(runs))
    return [row for row, run in zip(rows, runs, strict=True) if different.index(run) % n_shards == place - 1]


# --- measuring a row


def measure(
    table: Table, row: Row, overrides: Run, n_seeds: int, folder: Path, done: Callable[[Job], dict] | None = None
) -> dict | None:
    """Return one line of the table, or None after Ctrl-C.

    done    a job's result; `result_of` unless something else is given
    """
    choice = choose(table, row, overrides)
    line = {
        "row": row.number,
        "title": row.title,
        "published": row.published,
        "measured": None,
        "std": None,
        "seeds": [],
        "seconds": None,
        "command": command_of(choice.run),
        "note": "; ".join(filter(None, (*choice.notes, row.note))),
    }
    line |= {"published_std": row.published_std} if row.published_std else {}
    if not choice.is_run:
        return line
    seeds, results, line["runs"] = seeds_of(table, choice.run, n_seeds), [], []
    for seed in seeds:
        job = prepare(replace(choice.run, seed=seed))
        job = replace(job, run=replace(job.run, output_dir=str(folder / job.directory.name)))
        result = (done or result_of)(job)
        if result["interrupted"]:
            return None
        results.append(result)
        line["runs"].append(job.directory.name)
        if row.series and seed == seeds[0]:
            line["series"] = {"published": list(row.series), "measured": evaluations(job)}
    return line | summary_of(table, results)


def summary_of(table: Table, results: list[dict]) -> dict:
    """Return means and standard deviations over the seeds, as a line of the table has them."""
    # Another data set, or --eval_train no, may leave some of the table's metrics unmeasured.
    found = {name: [result.get(key_of(name)) for result in results] for name in table.metrics}
    values = {name: [scale_of(name) * one for one in each] for name, each in found.items() if None not in each}
    return {
        "measured": {name: round(statistics.mean(each), digits_of(name)) for name, each in values.items()},
        "std": {name: std_of(name, each) for name, each in values.items()},
        "seeds": [result["seed"] for result in results],
        "seconds": round(statistics.mean(result["total_seconds"] for result in results), 1),
        "model": results[0]["model"],
        "dataset": results[0]["dataset"],
    }


def std_of(metric: str, values: list[float]) -> float | None:
    """Return the sample standard deviation, or None of a single value."""
    return round(statistics.stdev(values), digits_of(metric)) if len(values) > 1 else None


def result_of(job: Job) -> dict:
    """Return the result of a run, which is done now unless it has been. Answers are scored where that can be done."""
    unscored = job.run.eval_generate and why_no_scores(job.inputs.model_config)
    run = replace(job.run, eval_generate=0) if unscored else job.run
    result = distributed.first(lambda: finished(job))
    if result is None:
        resume = distributed.first(lambda: not why_not_resumable(job))
        result = execute(replace(job, run=replace(run, resume=resume)))
    return with_answers(result, run, job.directory)


def seeds_of(table: Table, run: Run, n_seeds: int) -> list[int]:
    """Return the log's first `n_seeds`, or those from `--seed` on. Raises UserError where the log has fewer."""
    if not table.seeds or run.seed is not None:
        first = prepare(run).run.seed
        return list(range(first, first + n_seeds))
    if n_seeds > len(table.seeds):
        raise UserError(f"--seeds is {n_seeds}; the log has {len(table.seeds)}: for others say --seed, the first of them")
    return list(table.seeds[:n_seeds])


def evaluations(job: Job) -> list[float]:
    """Return the validation accuracies of a finished run in per cent, in their order."""
    records = read_records(job.directory / "metrics.jsonl")
    return [round(100 * record["accuracy"], 2) for record in records if record["split"] == "validation"]


def command_of(run: Run) -> str:
    """Return the command that makes a row's run. What only changes the screen is left out."""
    return command(replace(run, verbose=None))


# --- the table's files


def earlier_lines(table: Table, overrides: Run, folder: Path) -> dict[int, dict]:
    """Return what an earlier call with the same flags measured, by row number."""
    lines = read_json(folder / f"table-{table.name}.json")
    lines = [line for line in lines if is_line(line)] if isinstance(lines, list) else []
    if not lines:
        return {}
    commands = {row.number: command_of(choose(table, row, overrides).run) for row in table.all_rows}
    return {line["row"]: line for line in lines if commands.get(line["row"]) == line["command"]}


def is_line(line: object) -> bool:
    """Return whether `measure` can have made it, as far as it is read again."""
    kinds = {"row": int, "title": str, "published": dict, "seeds": list, "command": str, "note": str}
    if not isinstance(line, dict) or not all(isinstance(line.get(name), kind) for name, kind in kinds.items()):
        return False
    runs = line.get("runs", [])
    if not isinstance(runs, list) or not all(isinstance(name, str) for name in runs):
        return False
    if line.get("measured") is None:
        return True
    known = isinstance(line.get("std"), dict) and {"model", "dataset"} <= line.keys()
    values = [*line["measured"].values(), line.get("seconds")] if isinstance(line["measured"], dict) else [None]
    return known and all(isinstance(value, int | float) for value in values)


def finished_lines(table: Table, rows: list[Row], overrides: Run, n_seeds: int, folder: Path) -> dict[int, dict]:
    """Return what other machines have measured of their rows by now, by row number."""
    found = {row.number: measure(table, row, overrides, n_seeds, folder, finished_or_not) for row in rows}
    return {number: line for number, line in found.items() if line}


def finished_or_not(job: Job) -> dict:
    """Return the result of a job that is complete, without running it."""
    return finished(job) or {"interrupted": True}


def write_table(table: Table, lines: dict[int, dict], folder: Path, others: Callable[[], dict] = dict) -> None:
    """Write the table's files. In place, `lines` by row number gets what `others` have.

    Of several machines each writes what all have measured, until nothing is new: none undoes what another wrote.
    """
    if distributed.rank():
        return
    folder.mkdir(parents=True, exist_ok=True)  # not there where every row so far was left out
    while True:
        lines |= others()
        written = [lines[number] for number in sorted(lines)]
        write_json(folder / f"table-{table.name}.json", written)
        write_text(folder / f"table-{table.name}.md", markdown(table, written) + "\n")
        if others().items() <= lines.items():
            return


def draw(table: Table, lines: list[dict], folder: Path) -> str:
    """Plot one column's first metric against the other's. Return where the plot lies, or what it lacks."""
    axes = {heading: group[0] for heading, group in list(groups_of(table).items())[:2]}
    path = folder / f"table-{table.name}.png"
    drawn = [line for line in lines if line["measured"] and all(name in line["measured"] for name in axes.values())]
    runs = [parse_command(line["command"]) for line in drawn]
    try:
        plots.draw_trade_off(drawn, [mark_of(explicit(run)) for run in runs], axes, path)
    except UserError as error:
        return f"no plot: {error}"
    return f"plot  {path}"
