"""Tables of published rows for the pages: what was published beside what `--table` measured, from the logs in results/."""

import json
from dataclasses import dataclass

from pipeline.flags import command
from pipeline.table_text import values_of
from published import get_table
from tools.logs import ROOT

NOT_MEASURED = "–"


@dataclass(frozen=True)
class Column:
    """One measured column: its heading, the folders of `results/` with its tables, and the metrics shown.

    Of a row that several folders have, the first one's is shown.
    """

    heading: str
    folders: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """A table of a page: the log whose rows it has, its measured columns, the heading of the published numbers."""

    log: str
    columns: tuple[Column, ...]
    published: str = "published"


SPLITS, F1 = ("train", "validation", "test"), ("test", "test_macro_f1")
LEARNED = ("test_loss", "test_bleu4", "test_rougel")
KEPT = ("general_loss", "general_bleu4", "general_rougel")
A100 = "published (A100): train / validation / test"
SHIPPED = "shipped model and data"
LARGER_RATES = ("chat-smollm2-larger-rates", "chat-smollm2-prefix")
PUBLISHED: dict[str, Shown] = {
    "spam": Shown(
        "spam", (Column("SmolLM2-135M: train / validation / test", ("spam-smollm2", "spam-smollm2-1024"), SPLITS),), A100
    ),
    "spam-pocket": Shown(
        "spam",
        (
            Column("shipped messages: test", ("spam-shipped",), ("test",)),
            Column("real messages: test", ("spam-real",), ("test",)),
        ),
        A100,
    ),
    "distilbert-sst2": Shown("distilbert-sst2", (Column("MiniLM", ("distilbert-sst2-minilm",), ("validation",)),)),
    "distilbert-sst2-pocket": Shown("distilbert-sst2", (Column(SHIPPED, ("distilbert-sst2-shipped",), ("validation",)),)),
    "roberta-glue": Shown("roberta-glue", (Column("MiniLM", ("roberta-glue-minilm",), ("validation",)),)),
    "roberta-glue-pocket": Shown("roberta-glue", (Column(SHIPPED, ("roberta-glue-shipped",), ("validation",)),)),
    "encoders-adapter": Shown(
        "encoders-adapter",
        (
            Column("MiniLM, learning rate 2e-4", ("encoders-adapter-minilm-2e-4",), F1),
            Column("MiniLM, 2e-5 as logged", ("encoders-adapter-minilm",), F1),
        ),
    ),
    "encoders-adapter-pocket": Shown("encoders-adapter", (Column(SHIPPED, ("encoders-adapter-shipped",), F1),)),
    "encoders-fewshot": Shown(
        "encoders-fewshot",
        (
            Column(SHIPPED, ("encoders-fewshot-shipped",), F1),
            Column("MiniLM, real texts", ("encoders-fewshot-minilm",), F1),
        ),
    ),
    "chat": Shown(
        "chat",
        (
            Column("logged rates: learned", ("chat-smollm2",), LEARNED),
            Column("kept", ("chat-smollm2",), KEPT),
            Column("larger rates: learned", LARGER_RATES, LEARNED),
            Column("kept", LARGER_RATES, KEPT),
        ),
    ),
    "chat-pocket": Shown(
        "chat",
        (
            Column("new style learned", ("chat-shipped",), LEARNED),
            Column("old knowledge kept", ("chat-shipped",), KEPT),
            Column("seconds", ("chat-shipped",), ("seconds",)),
        ),
    ),
}


def markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def read_table(folder: str, log: str) -> dict[int, dict]:
    """Return what `--table LOG` wrote in that folder of results/, by row number."""
    lines = json.loads((ROOT / "results" / folder / f"table-{log}.json").read_text(encoding="utf-8"))
    return {line["row"]: line for line in lines}


def read_column(column: Column, log: str) -> dict[int, dict]:
    """Return the measured lines of a column, by row number."""
    lines: dict[int, dict] = {}
    for folder in reversed(column.folders):
        lines |= {number: line for number, line in read_table(folder, log).items() if line["measured"]}
    return lines


def published_table(name: str) -> list[str]:
    """Return a table of published rows: number, what it changes, published, measured columns, command."""
    shown = PUBLISHED[name]
    table = get_table(shown.log)
    measured = [read_column(column, shown.log) for column in shown.columns]
    rows = []
    for row in table.all_rows:
        cells = [str(row.number), row.title, values_of(row.published, row.published_std, table.printed or table.metrics)]
        cells += [
            measured_cell(lines.get(row.number), column.metrics)
            for lines, column in zip(measured, shown.columns, strict=True)
        ]
        in_full = shown.log == "spam" or row is table.base
        typed = command(row.run) if in_full else f"python experiments.py --row {shown.log}:{row.number}"
        rows.append([*cells, f"`{typed}`"])
    headings = [column.heading for column in shown.columns]
    return markdown(["row", "what it changes", shown.published, *headings, "command of the published setting"], rows)


def own_table(name: str) -> list[str]:
    """Return a table's rows with the command of each on the log's own model."""
    table = get_table(name)
    rows = [[str(row.number), row.title, f"`{command(table.on_own_model(row))}`"] for row in table.all_rows]
    return markdown(["row", "what it changes", "command"], rows)


def measured_cell(line: dict | None, metrics: tuple[str, ...]) -> str:
    """Return one row's numbers, or a dash where it wasn't run."""
    if line is None or not line["measured"]:
        return NOT_MEASURED
    return f"{line['seconds']:.0f}" if metrics == ("seconds",) else values_of(line["measured"], line["std"], metrics)
