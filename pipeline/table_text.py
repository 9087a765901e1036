"""A table as Markdown: what was measured beside what was published."""

from urllib.parse import quote

from model import config_of
from pipeline.answers import why_no_scores
from published.table import Table


def markdown(table: Table, lines: list[dict]) -> str:
    """Return the whole text: a heading, a line per row, notes. The difference is that of `table.compared`."""
    groups = groups_of(table)
    head = ("row", "what", "published", *groups, "difference", "seconds", "command")
    text = [heading_of(table), "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        cells = [str(line["row"]), line["title"]]
        cells.append(values_of(line["published"], line.get("published_std"), table.printed or table.metrics))
        if line["measured"]:
            measured, published = (line[which].get(table.compared) for which in ("measured", "published"))
            cells += [values_of(line["measured"], line["std"], group) for group in groups.values()]
            cells.append("-" if measured is None or published is None else f"{measured - published:+.2f}")
            cells.append(f"{line['seconds']:g}")
        else:
            cells += ["-"] * (len(groups) + 2)
        text.append("| " + " | ".join([*cells, f"`{line['command']}`"]) + " |")
    return "\n".join([*text, "", *(f"- {note}." for note in notes_of(table, lines))])


def heading_of(table: Table) -> str:
    """Return what the table is, and what its columns are."""
    names = {heading: " / ".join(map(plain, group)) for heading, group in groups_of(table).items()}
    meaning = "; ".join(f"{heading}: {text}" for heading, text in names.items()) if table.columns else names["measured"]
    if table.printed:
        meaning = f"published: {' / '.join(table.printed).replace('_', ' ')}; {meaning}"
    raw = any(scale_of(name) == 1 for name in table.metrics)
    unit = "In per cent, but for losses and perplexities" if raw else "In per cent"
    return f"Table {table.name}: {table.source}. {unit}: {meaning}."


def notes_of(table: Table, lines: list[dict]) -> list[str]:
    """Return what there is to say under a table."""
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
            published, measured_here = (
                ", ".join(f"{one:.2f}" for one in line["series"][which]) for which in ("published", "measured")
            )
            notes.append(f"Row {line['row']}, each evaluation: published {published}; measured {measured_here}")
    for line in measured:
        logs = ", ".join(
            f"[{seed}]({quote(name)})" for seed, name in zip(line["seeds"], line.get("runs", ()), strict=False)
        )
        notes += [f"Logs of row {line['row']}, by seed: {logs}"] if logs else []
    scores = [name for name in table.metrics if name.endswith("bleu4")]
    unscored = {line["model"] for line in measured if not line["measured"].keys() >= {*scores}}
    reasons = sorted({why_no_scores(config_of(model)) for model in unscored if scores} - {""})
    return notes + [f"{reason}; the same command then adds the scores, and trains nothing again" for reason in reasons]


def groups_of(table: Table) -> dict[str, tuple[str, ...]]:
    """Return the headings of the measured columns, and the metrics of each."""
    groups = {}
    for heading, begin in table.columns.items():
        groups[heading] = tuple(name for name in table.metrics if name.startswith(begin))
    return groups or {"measured": table.metrics}


def key_of(metric: str) -> str:
    """Return a metric's name in result.json."""
    return f"{metric}_accuracy" if metric in ("train", "validation", "test") else metric


def plain(metric: str) -> str:
    """Return a metric's name as text."""
    return key_of(metric).replace("_", " ")


def scale_of(metric: str) -> int:
    """Return the factor on a metric where it is shown: nats and perplexities as they are, all else in per cent."""
    return 1 if metric.endswith(("loss", "perplexity", "margin", "gap", "gap_before")) else 100


def digits_of(metric: str) -> int:
    """Return how many digits behind the point are recorded."""
    return 4 if metric.endswith("loss") else 2


def shown_digits(metric: str) -> int:
    """Return how many digits behind the point are shown."""
    return 3 if metric.endswith("loss") else 2


def values_of(mean: dict, std: dict | None, metrics: tuple[str, ...]) -> str:
    """Return the numbers of some metrics as text, each with its deviation where there is one."""
    cells = []
    for name in metrics:
        digits, deviation = shown_digits(name), (std or {}).get(name)
        spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
        cells.append(f"{mean[name]:.{digits}f}{spread}" if name in mean else "-")
    return " / ".join(cells)


def in_ranges(numbers: list[int]) -> str:
    """Return rising numbers as text: 1, 3, 4, 5 -> 1, 3-5."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in ranges)
