"""Running the rows of a table and setting what was measured beside what was published."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from config import Run, command
from data.registry import get_task
from model import canonical_name, hub
from pipeline import plots
from pipeline.answers import why_no_scores
from pipeline.execute import execute
from pipeline.job import Job, finished, prepare, why_no_data, why_not_resumable
from pipeline.reload import evaluate_answers
from pipeline.result import read_json, write_json, write_text
from published.table import Row, Table
from training import distributed
from training.metrics_log import read_records
from utils.errors import UserError


def run_table(table: Table, rows: list[Row], said: Run, n_seeds: int, shard: tuple[int, int] = (1, 1)) -> int:
    """Runs each row with each seed unless that run is finished, and writes table-NAME.md and .json after every row.

    Rows measured earlier with the same flags stay in the table, so that it can be filled in pieces. Shard (i, n) runs the
    i-th of each n rows, on a machine beside others that share the folder.
    """
    if n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}; it must be at least 1")
    folder = Path(said.output_dir or "runs")
    said = replace(said, output_dir=None)
    lines, asked = earlier_lines(table, said, folder), with_base(table, rows)
    mine = in_shard(table, asked, said, *shard)
    others = [row for row in asked if row not in mine]
    for row in mine:
        print(f"row {row.number}: {row.title}", flush=True)
        line = measure(table, row, said, n_seeds, folder)
        if line is None:
            print("interrupted; the same command goes on from here")
            return 130
        lines[row.number] = line
        write_table(table, lines, folder, partial(lines_of, table, others, said, n_seeds, folder))
    if distributed.rank() == 0:
        if not mine:
            print(f"shard {'/'.join(map(str, shard))} has none of {len(asked)} rows")
            return 0
        print((folder / f"table-{table.name}.md").read_text(encoding="utf-8"))
        print(f"saved {folder}/table-{table.name}.md and .json")
        if table.columns:
            print(draw(table, list(lines.values()), folder))
    return 0


def in_shard(table: Table, rows: list[Row], said: Run, place: int, n_shards: int) -> list[Row]:
    """Every n-th row. Rows for which the same run stands in go together, so that no two machines do it."""
    if n_shards == 1:
        return rows
    runs = [choose(table, row, said)[0] for row in rows]
    different = list(dict.fromkeys(runs))
    return [row for row, run in zip(rows, runs, strict=True) if different.index(run) % n_shards == place - 1]


def lines_of(table: Table, rows: list[Row], said: Run, n_seeds: int, folder: Path) -> dict[int, dict]:
    """What other machines have measured of their rows by now, by row number."""
    found = {row.number: measure(table, row, said, n_seeds, folder, finished_or_not) for row in rows}
    return {number: line for number, line in found.items() if line}


def finished_or_not(job: Job) -> dict:
    """The result of a job that is complete, without running it."""
    return finished(job) or {"interrupted": True}


def with_base(table: Table, rows: list[Row]) -> list[Row]:
    """The rows, behind the one that they are compared with."""
    return [table.base, *rows] if table.base else rows


def draw(table: Table, lines: list[dict], folder: Path) -> str:
    """One column's first metric against the other's, or what that lacks."""
    axes = {heading: group[0] for heading, group in list(groups_of(table).items())[:2]}
    path = folder / f"table-{table.name}.png"
    shown = [line for line in lines if line["measured"] and all(name in line["measured"] for name in axes.values())]
    try:
        plots.draw_trade_off(shown, axes, path)
    except UserError as error:
        return f"no plot: {error}"
    return f"plot  {path}"


def earlier_lines(table: Table, said: Run, folder: Path) -> dict[int, dict]:
    """What an earlier call with the same flags measured, by row number."""
    lines = read_json(folder / f"table-{table.name}.json")
    lines = [line for line in lines if is_line(line)] if isinstance(lines, list) else []
    commands = {row.number: command(choose(table, row, said)[0]) for row in with_base(table, table.rows)}
    return {line["row"]: line for line in lines if commands.get(line["row"]) == line["command"]}


def is_line(line: object) -> bool:
    """Whether `measure` can have made it, as far as it is read again."""
    kinds = {"row": int, "title": str, "published": dict, "seeds": list, "command": str, "note": str}
    if not isinstance(line, dict) or not all(isinstance(line.get(name), kind) for name, kind in kinds.items()):
        return False
    if line.get("measured") is None:
        return True
    known = isinstance(line.get("std"), dict) and {"model", "dataset"} <= line.keys()
    values = [*line["measured"].values(), line.get("seconds")] if isinstance(line["measured"], dict) else [None]
    return known and all(isinstance(value, int | float) for value in values)


def choose(table: Table, row: Row, said: Run) -> tuple[Run, str, bool]:
    """What is run for a row, what there is to say about it, and whether it is run at all."""
    if table.choose:
        run, notes = table.choose(row.run, said)
        return run, "; ".join(notes), True
    if not table.stand_in:
        left_out = why_left_out(row, said)
        return (row.run if left_out else row.with_flags(said)), left_out, not left_out
    run, notes = row.with_flags(said), []
    if not (said.checkpoint or said.model) and (reason := why_no_model(run.model)):
        run = replace(run, model=get_task(run.dataset).models[1], head_labels=None)
        notes.append(f"{run.model} stands in, {reason}")
    if not said.dataset and (reason := why_no_data(get_task(run.dataset), run.data_dir)):
        run = replace(run, dataset=get_task(run.dataset).shipped)
        notes.append(f"{run.dataset} stands in, {reason}")
    return run, "; ".join(notes), True


def why_left_out(row: Row, said: Run) -> str:
    """A row about the size of the model says nothing on another one, so it isn't run on a stand-in."""
    if row.run.model is None:
        return ""
    if said.checkpoint or canonical_name(said.model or row.run.model) != row.run.model:
        return f"left out: it is about {row.run.model}, and this table was asked for with another model"
    reason = "" if said.model else why_no_model(row.run.model)  # what was named is run, or an error
    return f"left out: {reason}" if reason else ""


def why_no_model(name: str) -> str:
    """Empty where the model is on this machine or can be fetched."""
    if hub.local(name) or hub.cached(name) or not (unreachable := hub.why_no_hub()):
        return ""
    return f"{name} isn't in the cache and {unreachable}"


def measure(
    table: Table, row: Row, said: Run, n_seeds: int, folder: Path, done: Callable[[Job], dict] | None = None
) -> dict | None:
    """One line of the table, or None after Ctrl-C.

    done    a job's result; `result_of` unless something else is said
    """
    run, note, is_run = choose(table, row, said)
    line = {"row": row.number, "title": row.title, "published": row.published, "measured": None, "std": None}
    line |= {"seeds": [], "seconds": None, "command": command(run), "note": "; ".join(filter(None, (note, row.note)))}
    line |= {"published_std": row.published_std} if row.published_std else {}
    if not is_run:
        return line
    results = []
    seeds = seeds_of(table, run, n_seeds)
    for seed in seeds:
        job = prepare(replace(run, seed=seed))
        job = replace(job, run=replace(job.run, output_dir=str(folder / job.directory.name)))
        result = (done or result_of)(job)
        if result["interrupted"]:
            return None
        results.append(result)
        if row.series and seed == seeds[0]:
            line["series"] = {"published": list(row.series), "measured": evaluations(job)}
    # Another data set, or --eval_train no, may leave some of the table's metrics unmeasured.
    found = {name: [result.get(key_of(name)) for result in results] for name in table.metrics}
    values = {name: [scale_of(name) * one for one in each] for name, each in found.items() if None not in each}
    return line | {
        "measured": {name: round(statistics.mean(each), digits(name)) for name, each in values.items()},
        "std": {name: spread_of(name, each) for name, each in values.items()},
        "seeds": [result["seed"] for result in results],
        "seconds": round(statistics.mean(result["total_seconds"] for result in results), 1),
        "model": results[0]["model"],
        "dataset": results[0]["dataset"],
    }


def result_of(job: Job) -> dict:
    """Of this run, which is done now unless it has been. Answers are written and scored where that can be done."""
    run = replace(job.run, eval_generate=0) if job.run.eval_generate and why_no_scores() else job.run
    result = distributed.first(lambda: finished(job))
    if result is None:
        resume = distributed.first(lambda: not why_not_resumable(job))
        result = execute(replace(job, run=replace(run, resume=resume)))
    asked, scored = run.eval_generate, result.get("config", {}).get("eval_generate", 0)
    if asked and asked != scored and not result["interrupted"]:
        return evaluate_answers(job.directory, asked, run.device)
    return result


def seeds_of(table: Table, run: Run, n_seeds: int) -> list[int]:
    """The log's first `n_seeds`, or from `--seed` on. Raises UserError where the log has fewer."""
    if not table.seeds or run.seed is not None:
        first = prepare(run).run.seed
        return list(range(first, first + n_seeds))
    if n_seeds > len(table.seeds):
        raise UserError(f"--seeds is {n_seeds}; the log has {len(table.seeds)}: for others say --seed, the first of them")
    return list(table.seeds[:n_seeds])


def key_of(metric: str) -> str:
    """The name in result.json."""
    return f"{metric}_accuracy" if metric in ("train", "validation", "test") else metric


def spread_of(metric: str, values: list[float]) -> float | None:
    return round(statistics.stdev(values), digits(metric)) if len(values) > 1 else None


def scale_of(metric: str) -> int:
    """Losses and perplexities are shown as they are, everything else in per cent."""
    return 1 if metric.endswith(("loss", "perplexity")) else 100


def digits(metric: str) -> int:
    return 4 if metric.endswith("loss") else 2


def groups_of(table: Table) -> dict[str, tuple[str, ...]]:
    """The headings of the measured columns, and the metrics of each."""
    groups = {}
    for heading, begin in table.columns.items():
        groups[heading] = tuple(name for name in table.metrics if name.startswith(begin))
    return groups or {"measured": table.metrics}


def evaluations(job: Job) -> list[float]:
    """Validation accuracies of a finished run in per cent, in their order."""
    records = read_records(job.directory / "metrics.jsonl")
    return [round(100 * record["accuracy"], 2) for record in records if record["split"] == "validation"]


def write_table(table: Table, lines: dict[int, dict], folder: Path, others: Callable[[], dict] = dict) -> None:
    """Of several machines each writes what all have measured, until nothing is new: none undoes what another wrote. In
    place, `lines` by row number gets what `others` have."""
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


def markdown(table: Table, lines: list[dict]) -> str:
    """The difference is that of `table.compared`."""
    groups = groups_of(table)
    head = ("row", "what", "published", *groups, "difference", "seconds", "command")
    names = {heading: " / ".join(key_of(name).replace("_", " ") for name in group) for heading, group in groups.items()}
    meaning = "; ".join(f"{heading}: {text}" for heading, text in names.items()) if table.columns else names["measured"]
    if table.printed:
        meaning = f"published: {' / '.join(table.printed).replace('_', ' ')}; {meaning}"
    raw = any(scale_of(name) == 1 for name in table.metrics)
    unit = "In per cent, but for losses and perplexities" if raw else "In per cent"
    text = [f"Table {table.name}: {table.source}. {unit}: {meaning}.", ""]
    text += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        printed = values_of(line["published"], line.get("published_std"), table.printed or table.metrics)
        cells = [str(line["row"]), line["title"], printed]
        if line["measured"]:
            both = (line["measured"].get(table.compared), line["published"].get(table.compared))
            cells += [values_of(line["measured"], line["std"], group) for group in groups.values()]
            cells += ["-" if None in both else f"{both[0] - both[1]:+.2f}", f"{line['seconds']:g}"]
        else:
            cells += ["-"] * (len(groups) + 2)
        text.append("| " + " | ".join([*cells, f"`{line['command']}`"]) + " |")
    return "\n".join([*text, "", *(f"- {note}." for note in notes_of(table, lines))])


def notes_of(table: Table, lines: list[dict]) -> list[str]:
    """What there is to say under a table."""
    notes, measured = [], [line for line in lines if line["measured"]]
    if measured:
        sources = sorted({f"{line['model']} on {line['dataset']}" for line in measured})
        seeds = sorted({seed for line in measured for seed in line["seeds"]})
        notes.append(f"Measured with {', '.join(sources)}; seeds {', '.join(map(str, seeds))}; mean ± standard deviation")
    rows_of: dict[str, list[int]] = {}
    for line in lines:
        for part in filter(None, line["note"].split("; ")):
            rows_of.setdefault(part, []).append(line["row"])
    notes += [f"Row{'s' * (len(rows) > 1)} {in_ranges(rows)}: {part}" for part, rows in rows_of.items()]
    for line in lines:
        if "series" in line:
            series = {which: ", ".join(f"{value:.2f}" for value in line["series"][which]) for which in line["series"]}
            notes.append(
                f"Row {line['row']}, each evaluation: published {series['published']}; measured {series['measured']}"
            )
    unscored = any(name.endswith("bleu4") and name not in line["measured"] for name in table.metrics for line in measured)
    if unscored and (reason := why_no_scores()):
        notes.append(f"{reason}; the same command then adds the scores, and trains nothing again")
    return notes


def in_ranges(numbers: list[int]) -> str:
    """The rising numbers 1, 3, 4, 5 -> 1, 3-5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def values_of(mean: dict, std: dict | None, metrics: tuple[str, ...]) -> str:
    """Numbers, each with its deviation where there is one."""
    spread = {name: f" ± {std[name]:.{shown(name)}f}" if std and std.get(name) is not None else "" for name in metrics}
    return " / ".join(f"{mean[name]:.{shown(name)}f}{spread[name]}" if name in mean else "-" for name in metrics)


def shown(metric: str) -> int:
    """Digits behind the point."""
    return 3 if metric.endswith("loss") else 2
