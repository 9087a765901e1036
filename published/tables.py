"""Running the rows of a table and setting what was measured beside what was published."""

import statistics
from dataclasses import replace
from pathlib import Path

from errors import UserError
from job import execute, finished, prepare, why_not_resumable
from model import canonical_name, hub
from published import Row, Table
from record import read_json, write_json, write_text
from run import Run, command, override

SPLITS = ("train", "validation", "test")


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
        line = measure(row, said, n_seeds, folder)
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
    commands = {row.number: command_of(row, said) for row in table.rows}
    return {line["row"]: line for line in lines or [] if commands.get(line["row"]) == line["command"]}


def command_of(row: Row, said: Run) -> str:
    return command(row.run if why_left_out(row, said) else override(row.run, said))


def measure(row: Row, said: Run, n_seeds: int, folder: Path) -> dict | None:
    """One line of the table, or None after Ctrl-C."""
    line = {"row": row.number, "title": row.title, "published": row.published, "measured": None, "std": None}
    line |= {"seeds": [], "seconds": None, "command": command_of(row, said), "note": row.note}
    left_out = why_left_out(row, said)
    if left_out:
        return line | {"note": "; ".join(filter(None, (left_out, row.note)))}
    results = []
    first = prepare(override(row.run, said)).run.seed
    for seed in range(first, first + n_seeds):
        job = prepare(replace(override(row.run, said), seed=seed))
        job = replace(job, run=replace(job.run, output_dir=str(folder / job.directory.name)))
        result = finished(job) or execute(replace(job, run=replace(job.run, resume=not why_not_resumable(job))))
        if result["interrupted"]:
            return None
        results.append(result)
    values = {split: [100 * result[f"{split}_accuracy"] for result in results] for split in SPLITS}
    return line | {
        "measured": {split: round(statistics.mean(values[split]), 2) for split in SPLITS},
        "std": {split: round(statistics.stdev(values[split]), 2) if n_seeds > 1 else None for split in SPLITS},
        "seeds": [result["seed"] for result in results],
        "seconds": round(statistics.mean(result["total_seconds"] for result in results), 1),
        "model": results[0]["model"],
        "dataset": results[0]["dataset"],
    }


def why_left_out(row: Row, said: Run) -> str:
    """A row about the size of the model says nothing on another one, so it isn't run on a stand-in."""
    if row.run.model is None:
        return ""
    if said.checkpoint or canonical_name(said.model or row.run.model) != row.run.model:
        return f"left out: it is about {row.run.model}, and this table was asked for with another model"
    if said.model or hub.cached(row.run.model) or not (unreachable := hub.why_no_hub()):
        return ""  # what was named is run, or an error
    return f"left out: {row.run.model} isn't in the cache and {unreachable}"


def write_table(table: Table, lines: list[dict], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # not there where every row so far was left out
    write_json(folder / f"table-{table.name}.json", lines)
    write_text(folder / f"table-{table.name}.md", markdown(table, lines) + "\n")


def markdown(table: Table, lines: list[dict]) -> str:
    """Accuracies are per cent on training / validation / test data; the difference is that of the test accuracies."""
    head = ("row", "what", "published", "measured", "difference", "seconds", "command")
    text = [f"Table {table.name}: {table.source}. Accuracies in per cent: train / validation / test.", ""]
    text += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        cells = [str(line["row"]), line["title"], accuracies_of(line["published"])]
        if line["measured"]:
            difference = line["measured"]["test"] - line["published"]["test"]
            cells += [accuracies_of(line["measured"], line["std"]), f"{difference:+.2f}", f"{line['seconds']:g}"]
        else:
            cells += ["-", "-", "-"]
        text.append("| " + " | ".join([*cells, f"`{line['command']}`"]) + " |")
    notes = [f"Row {line['row']}: {line['note']}." for line in lines if line["note"]]
    measured = [line for line in lines if line["measured"]]
    if measured:
        sources = sorted({f"{line['model']} on {line['dataset']}" for line in measured})
        seeds = sorted({seed for line in measured for seed in line["seeds"]})
        what = f"Measured with {', '.join(sources)}; seeds {', '.join(map(str, seeds))}"
        notes.insert(0, f"{what}; mean ± standard deviation.")
    return "\n".join([*text, "", *notes])


def accuracies_of(mean: dict, std: dict | None = None) -> str:
    spread = {split: f" ± {std[split]:.2f}" if std and std[split] is not None else "" for split in SPLITS}
    return " / ".join(f"{mean[split]:.2f}{spread[split]}" for split in SPLITS)
