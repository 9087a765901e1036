"""Measures two programs in turns, each time in a process of its own, and writes down the medians."""

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.result import read_json, versions, write_json
from training.device import pick_amp
from utils.errors import UserError
from utils.files import write_text

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Side:
    """A program, and how to read from its output what it measured: `seconds` and `peak_bytes` at least."""

    command: list[str]
    cwd: Path
    read: Callable[[str], dict]


def written(command: list[str], shown: dict[str, str]) -> str:
    """Return a command as it can be typed from the root of any checkout.

    shown    paths of this machine -> what is written for them
    """
    words = ["python" if word == sys.executable else word for word in command]
    for path, name in [*shown.items(), (f"{ROOT}/", "")]:
        words = [word.replace(path, name) for word in words]
    return shlex.join(words)


@dataclass(frozen=True)
class Comparison:
    """One line of a suite.

    ours, theirs   the programs; theirs None: nothing is run beside ours; ours None: nothing is run, and `note` says why
    check          both sides once more, off the clock, for the loss that they begin with
    extra          what goes into the record as it is
    """

    row: int
    work: str
    peer: str
    precision: str
    ours: Side | None
    theirs: Side | None = None
    check: tuple[Side, Side] | None = None
    extra: dict = field(default_factory=dict)
    note: str = ""


def last_line(output: str) -> dict:
    """Return what the last line of a program's output holds in JSON."""
    return json.loads(output.strip().splitlines()[-1])


def run_side(side: Side) -> dict:
    """Run the program in a process of its own. Raises UserError with its last line if it fails."""
    # Neither side is to find a package by a search path of the shell's, or write what the other one would read.
    hidden = {"PYTHONPATH": None, "TIKTOKEN_CACHE_DIR": "", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in (os.environ | hidden).items() if value is not None}
    done = subprocess.run(side.command, cwd=side.cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"{shlex.join(side.command)} ended with exit status {done.returncode} and said: {said}")
    try:
        return side.read(done.stdout)
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"{shlex.join(side.command)} left no measurement that can be read: {error!r}") from None


def alternate(ours: Side, theirs: Side | None, repeats: int, run: Callable[[Side], dict] = run_side):
    """Run ours, theirs, ours, theirs, ...: so whatever slows the machine down for a while meets both."""
    found: tuple[list[dict], list[dict]] = ([], [])
    for _ in range(repeats):
        found[0].append(run(ours))
        if theirs:
            found[1].append(run(theirs))
    return found


def median(found: list[dict], name: str) -> float | None:
    """Return the median of the values of that name, or None where there is none."""
    values = [one[name] for one in found if one.get(name) is not None]
    return statistics.median(values) if values else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return the ratio, or None where one of both isn't known."""
    return round(above / below, 4) if above is not None and below else None


def record_of(comparison: Comparison, ours: list[dict], theirs: list[dict], shown: dict[str, str]) -> dict:
    """Return what the JSON holds of a comparison: medians of times and memory, else the first repeat's value."""
    seconds, peak = median(ours, "seconds"), median(ours, "peak_bytes")
    # Where no other program is run, ours may say itself how long its work would take at the limit.
    peer_seconds = median(theirs, "seconds") if theirs else median(ours, "limit_seconds")
    peer_peak = median(theirs, "peak_bytes")
    record = {
        "row": comparison.row,
        "work": comparison.work,
        "peer": comparison.peer,
        "precision": comparison.precision,
        "ours_seconds": seconds,
        "peer_seconds": peer_seconds,
        "time_ratio": ratio(peer_seconds, seconds),
        "memory_ratio": ratio(peak, peer_peak),
        "ours_peak_bytes": peak,
        "peer_peak_bytes": peer_peak,
        "repeats": len(ours),
        **comparison.extra,
        **({"note": comparison.note} if comparison.note else {}),
    }
    timed = ("seconds", "limit_seconds", "peak_bytes")
    for side, found, program in (("ours", ours, comparison.ours), ("peer", theirs, comparison.theirs)):
        record |= {f"{side}_{name}": value for name, value in (found[0] if found else {}).items() if name not in timed}
        record |= {f"{side}_all_seconds": [one["seconds"] for one in found]} if found else {}
        record |= {f"{side}_command": written(program.command, shown)} if program else {}
    return record


def measure(comparison: Comparison, repeats: int, shown: dict[str, str], run: Callable[[Side], dict] = run_side) -> dict:
    """Run both sides `repeats` times, and once what there is to check. Return what the JSON holds of it."""
    if comparison.ours is None:
        return record_of(comparison, [], [], shown)
    ours, theirs = alternate(comparison.ours, comparison.theirs, repeats, run)
    record = record_of(comparison, ours, theirs, shown)
    for side, program in zip(("ours", "peer"), comparison.check or (), strict=False):
        record |= {f"{side}_{name}": value for name, value in run(program).items() if name == "start_loss"}
    return record


def key_of(record: dict) -> tuple:
    """Return what a measurement is of. A newer one of the same takes its place."""
    return record["row"], record["work"], record["peer"], record["precision"]


def merged(records: list[dict], new: dict) -> list[dict]:
    """Return the records with a new one, in the order of the rows; those of a row stay in their order."""
    kept = [new if key_of(one) == key_of(new) else one for one in records]
    return sorted(kept if new in kept else [*kept, new], key=lambda one: one["row"])


def read_records(file: Path) -> list[dict]:
    """Return what earlier measurements left in the file: nothing, where it isn't there. Raises UserError."""
    if not file.exists():
        return []
    records = read_json(file)
    if not isinstance(records, list) or not all(isinstance(one, dict) and "row" in one for one in records):
        raise UserError(f"--json {file} is there and holds no measurements; name another file or remove it")
    return records


def write_records(records: list[dict], file: Path, title: str) -> None:
    """Write FILE and FILE with .md, each replaced in one go."""
    write_json(file, records)
    write_text(file.with_suffix(".md"), markdown(records, title))


def number(value: float | None, unit: float = 1) -> str:
    """Return a number with three digits, or with all before the point."""
    return "-" if value is None else f"{value / unit:.3g}" if value / unit < 100 else f"{value / unit:,.0f}"


HEADINGS = (
    "row",
    "work",
    "peer",
    "precision",
    "ours s",
    "peer s",
    "peer / ours",
    "ours MB",
    "peer MB",
    "ours / peer",
    "texts",
    "machine",
)
COLUMNS = ("ours_seconds", "peer_seconds", "time_ratio", "ours_peak_bytes", "peer_peak_bytes", "memory_ratio")


def markdown(records: list[dict], title: str) -> str:
    """Return the table, the machines and versions, and the commands as Markdown."""
    lines = [f"# {title}", "", "| " + " | ".join(HEADINGS) + " |", "| --- " * len(HEADINGS) + "|"]
    for one in records:
        cells = [str(one[name]) for name in ("row", "work", "peer", "precision")]
        cells[1] += f" ({one['note']})" if one.get("note") else ""
        cells += [number(one[name], 1e6 if name.endswith("bytes") else 1) for name in COLUMNS]
        cells += ["-" if one.get("fraction") is None else f"{one['fraction']:g}", machine_name(one)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Medians. Seconds of the whole job, or of one step where the work is a step; MB at most in use by the process.",
        "",
    ]
    machines = {json.dumps([one.get("machine"), one.get("versions")]): one for one in records}
    for one in machines.values():
        machine, known = one.get("machine") or {}, one.get("versions") or {}
        lines.append("- " + ", ".join(f"{name}: {value}" for name, value in machine.items()))
        lines.append("- " + ", ".join(f"{name} {value}" for name, value in known.items()))
    lines += ["", "```bash"]
    for one in records:
        about = f"{one['repeats']} times, fraction {one.get('fraction', 1)}" if one["repeats"] else "not run"
        lines.append(f"# row {one['row']}, {one['work']}, {one['precision']}: {about}")
        lines += [one[name] for name in ("ours_command", "peer_command") if one.get(name)]
    return "\n".join([*lines, "```", ""])


def machine_name(record: dict) -> str:
    """Return what a reader needs to know of the machine of a measurement, in short."""
    machine = record.get("machine") or {}
    if "gpu" in machine:
        return machine["gpu"]
    name = re.sub(r"\(R\)|Processor|@", "", machine.get("cpu", "?"))
    bf16 = "bf16" if machine.get("native_bf16") else "no bf16"
    return f"{' '.join(name.split())}, {machine.get('cores', '?')} cores, {bf16}"


def machine(device: torch.device = CPU) -> dict:
    """Return what a time on that device depends on of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native_bf16": native_bf16(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None,
        **(gpu(device) if device.type == "cuda" else {}),
    }


def gpu(device: torch.device) -> dict:
    """Return the same of a GPU."""
    about = torch.cuda.get_device_properties(device)
    return {"gpu": about.name, "gpu_memory_bytes": about.total_memory, "cuda": torch.version.cuda}


def native_bf16() -> bool:
    """Return whether the processor has instructions for bf16, so that --amp auto takes it."""
    return precision_of("auto") == "bf16"


def precision_of(amp: str, device: torch.device = CPU) -> str:
    """Return what --amp means on that device of this machine: bf16, fp16 or fp32. Raises UserError."""
    return pick_amp(amp, device).replace("off", "fp32")


def all_versions(packages: dict[str, str]) -> dict:
    """Return the versions of what a run needs, and of the peers."""
    return versions() | {name: version(name) for name in packages}


def need_packages(packages: dict[str, str]) -> None:
    """Raise UserError where a peer library isn't installed.

    packages   each library and the version that the suite was written for. The local package `peft` is no distribution, so
               it isn't taken for the library of that name.
    """
    for name, wanted in packages.items():
        try:
            version(name)
        except PackageNotFoundError:
            pinned = f"{name}=={wanted}"
            command = f"python -m pip install --no-deps {pinned}" if name == "llms-from-scratch" else ""
            command = command or "python -m pip install -r benchmarks/requirements.txt"
            raise UserError(f"the peer library {name} isn't installed: {command} (see benchmarks/README.md)") from None
