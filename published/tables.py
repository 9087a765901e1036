"""Running the rows of a table and setting what was measured beside what was published."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

from data import get_task
from errors import UserError
from execute import execute
from job import Job, finished, prepare, why_no_data, why_not_resumable
from model import canonical_name, hub
from published import Row, Table
from record import read_json, write_json, write_text
from run import Run, command


def run_table(table: Table, rows: list[Row], said: Run, n_seeds: int) -> int:
    """Runs each row with each seed unless that run is finished, and writes table-NAME.md and .json after every row.

    Rows measured earlier with the same flags stay in the table, so that it can be filled in pieces.
    """
    if n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}; it must be at least 1")
    folder = Path(said.output_dir or "runs")
    said = replace(said, output_dir=None)
    lines = earlier_lines(table, said, folder)
    for row in rows:
        print(f"row {row.number}: {row.title}", flush=True)
        line = measure(table, row, said, n_seeds, folder)
        if line is None:
            print("interrupted; the same command goes on from here")
            return 130
        lines[row.number] = line
        write_table(table, [lines[number] for number in sorted(lines)], folder)
    print((folder / f"table-{table.name}.md").read_text(encoding="utf-8"))
    print(f"saved {folder}/table-{table.name}.md and .json")
    return 0


def earlier_lines(table: Table, said: Run, folder: Path) -> dict[int, dict]:
    """What an earlier call with the same flags measured, by row number."""
    lines = read_json(folder / f"table-{table.name}.json")
    commands = {row.number: command(choose(table, row, said)[0]) for row in table.rows}
    return {line["row"]: line for line in lines or [] if commands.get(line["row"]) == line["command"]}


def choose(table: Table, row: Row, said: Run) -> tuple[Run, str, bool]:
    """What is run for a row, what there is to say about it, and whether it is run at all."""
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
    if hub.local(name) or hub.cached(name) or not (unreachable := hub.why_no_hub()):
        return ""
    return f"{name} isn't in the cache and {unreachable}"


def measure(table: Table, row: Row, said: Run, n_seeds: int, folder: Path) -> dict | None:
    """One line of the table, or None after Ctrl-C."""
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
        result = finished(job) or execute(replace(job, run=replace(job.run, resume=not why_not_resumable(job))))
        if result["interrupted"]:
            return None
        results.append(result)
        if row.series and seed == seeds[0]:
            line["series"] = {"published": list(row.series), "measured": evaluations(job)}
    # Another data set, or --eval_train no, may leave some of the table's metrics unmeasured.
    found = {name: [result.get(key_of(name)) for result in results] for name in table.metrics}
    values = {name: [100 * one for one in each] for name, each in found.items() if None not in each}
    return line | {
        "measured": {name: round(statistics.mean(each), 2) for name, each in values.items()},
        "std": {name: round(statistics.stdev(each), 2) if n_seeds > 1 else None for name, each in values.items()},
        "seeds": [result["seed"] for result in results],
        "seconds": round(statistics.mean(result["total_seconds"] for result in results), 1),
        "model": results[0]["model"],
        "dataset": results[0]["dataset"],
    }


def seeds_of(table: Table, run: Run, n_seeds: int) -> list[int]:
    if not table.seeds or run.seed is not None:
        first = prepare(run).run.seed
        return list(range(first, first + n_seeds))
    if n_seeds > len(table.seeds):
        raise UserError(f"--seeds is {n_seeds}; the log has {len(table.seeds)}: for others say --seed, the first of them")
    return list(table.seeds[:n_seeds])


def key_of(metric: str) -> str:
    """The name in result.json."""
    return f"{metric}_accuracy" if metric in ("train", "validation", "test") else metric


def evaluations(job: Job) -> list[float]:
    """Validation accuracies of a finished run in per cent, in their order."""
    lines = (job.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [round(100 * record["accuracy"], 2) for record in records if record["split"] == "validation"]


def write_table(table: Table, lines: list[dict], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # not there where every row so far was left out
    write_json(folder / f"table-{table.name}.json", lines)
    write_text(folder / f"table-{table.name}.md", markdown(table, lines) + "\n")


def markdown(table: Table, lines: list[dict]) -> str:
    """Values are per cent; the difference is that of `table.compared`."""
    head = ("row", "what", "published", "measured", "difference", "seconds", "command")
    names = " / ".join(key_of(name).replace("_", " ") for name in table.metrics)
    text = [f"Table {table.name}: {table.source}. In per cent: {names}.", ""]
    text += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        cells = [str(line["row"]), line["title"], values_of(line["published"], line.get("published_std"), table.metrics)]
        if line["measured"]:
            both = (line["measured"].get(table.compared), line["published"].get(table.compared))
            difference = "-" if None in both else f"{both[0] - both[1]:+.2f}"
            cells += [values_of(line["measured"], line["std"], table.metrics), difference, f"{line['seconds']:g}"]
        else:
            cells += ["-", "-", "-"]
        text.append("| " + " | ".join([*cells, f"`{line['command']}`"]) + " |")
    notes = [f"Row {line['row']}: {line['note']}." for line in lines if line["note"]]
    for line in lines:
        if "series" in line:
            series = {which: ", ".join(f"{value:.2f}" for value in line["series"][which]) for which in line["series"]}
            notes.append(
                f"Row {line['row']}, each evaluation: published {series['published']}; measured {series['measured']}."
            )
    measured = [line for line in lines if line["measured"]]
    if measured:
        sources = sorted({f"{line['model']} on {line['dataset']}" for line in measured})
        seeds = sorted({seed for line in measured for seed in line["seeds"]})
        what = f"Measured with {', '.join(sources)}; seeds {', '.join(map(str, seeds))}"
        notes.insert(0, f"{what}; mean ± standard deviation.")
    return "\n".join([*text, "", *notes])


def values_of(mean: dict, std: dict | None, metrics: tuple[str, ...]) -> str:
    spread = {name: f" ± {std[name]:.2f}" if std and std.get(name) is not None else "" for name in metrics}
    return " / ".join(f"{mean[name]:.2f}{spread[name]}" if name in mean else "-" for name in metrics)
