"""The results of `--table methods`: a file of JSON for each run, read and written, and the rate that they speak for."""

import json
import math
import re
from pathlib import Path

from pipeline.comparison.methods import Entry
from pipeline.result import read_json, write_text

SEARCH, TEST, UNTRAINED = "search", "test", "untrained"  # what a run was for
RATES = tuple(float(f"{digit}e{exponent}") for exponent in range(-12, 6) for digit in (1, 3))  # which grids go up in
NEEDED = {"title", "stage", "seed", "rate", "config", "hashes", "validation_loss", "trained_parameters"}


def path_of(folder: Path, entry: Entry, rate: float, seed: int) -> Path:
    """Return where the record of a run lies."""
    return folder / f"{slug(entry.title)}-rate{rate:g}-seed{seed}.json"


def slug(title: str) -> str:
    """Return a title as a part of a file's name."""
    return re.sub(r"[^a-z0-9+]+", "-", title.lower()).strip("-")


def write_record(path: Path, record: dict) -> None:
    """Write a record, a line for each of its values: lists of a value per example stay short."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: Path) -> dict | None:
    """Return the record in a file, or None where it holds none."""
    record = read_json(path)
    return record if isinstance(record, dict) and record.keys() >= NEEDED else None


def finished(path: Path, config: dict, hashes: dict) -> dict | None:
    """Return the record of a run with these settings, code and inputs, or None where there is none or it is stale."""
    record = read_record(path)
    config = json.loads(json.dumps(config))
    return record if record and record["config"] == config and record["hashes"] == hashes else None


def chosen_rate(search: list[dict]) -> tuple[float, str]:
    """Return the learning rate with the lowest validation loss, and "lowest" or "highest" where it is the grid's edge.

    A run that diverged has no loss. Only what was measured on validation data is read.
    """
    rates = sorted(record["rate"] for record in search)
    losses = {record["rate"]: record["validation_loss"] for record in search}
    best = min(rates, key=lambda rate: math.inf if losses[rate] is None else losses[rate])
    edge = {rates[-1]: "highest", rates[0]: "lowest"} if len(rates) > 1 else {}
    return best, edge.get(best, "")


def beyond(rate: float, edge: str) -> float:
    """Return the next learning rate outside a grid whose "lowest" or "highest" one this is."""
    return min(one for one in RATES if one > rate) if edge == "highest" else max(one for one in RATES if one < rate)
