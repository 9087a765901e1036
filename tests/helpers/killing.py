"""Kill a run again and again, resume it each time until it is complete, and compare it with an undisturbed one.

python -m tests.helpers.killing moments 30 SEED FOLDER FLAGS...    send 30 signals at random moments
python -m tests.helpers.killing writes 30 SEED FOLDER FLAGS...     send SIGKILL just before or after a file is written,
                                                                   moved or removed, 30 times (0: at each of them)

A process that has imported everything forks for each attempt, so that an attempt costs no start of Python.
"""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer step brings it: that takes longer than all of a small run

import experiments
from pipeline import execute  # noqa: F401 (brings all that a run needs)
from training import metrics_log
from utils.errors import run_program

STOPPING = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, *STOPPING)
VOLATILE = {"seconds", "step_seconds", "train_seconds", "total_seconds", "tokens_per_second", "peak_memory_bytes", "argv"}
VOLATILE |= {"output_dir", "resume", "git"}


def steady(value):
    """Leave out what differs between any two runs."""
    if isinstance(value, dict):
        return {name: steady(one) for name, one in value.items() if name not in VOLATILE}
    return [steady(one) for one in value] if isinstance(value, list) else value


def outcome(directory: Path) -> dict:
    """Return all that has to be equal, the list of files included."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return {
        "trained": hashlib.sha256((directory / "trained.safetensors").read_bytes()).hexdigest(),
        "result": steady(json.loads((directory / "result.json").read_text())),
        "metrics": [steady(json.loads(line)) for line in lines],
        "files": sorted(path.name for path in directory.rglob("*")),
    }


def die_at(event: int, count: Path | None) -> None:
    """Send SIGKILL just before the n-th thing that is done to a file. `count` is a file that counts them."""
    events = [0]

    def happens() -> None:
        events[0] += 1
        if count:
            count.write_text(str(events[0]))
        if events[0] == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function):
        def call(*given, **named):
            happens()
            result = function(*given, **named)
            happens()
            return result

        return call

    write = metrics_log.Metrics._flush

    def half(self) -> None:
        events[0] += 1
        if events[0] == event:
            self._file.write(self._unwritten[:-5])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self)

    metrics_log.Metrics._flush = half
    os.replace, Path.unlink, os.fsync = watched(os.replace), watched(Path.unlink), watched(os.fsync)


def start(argv: list[str], log: Path, event: int = 0, count: Path | None = None) -> int:
    """Start the command line in a process of its own and return the number of the process."""
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return process
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 70

    def attempt() -> int:  # signals wait until there is someone to take them, and again at the end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        try:
            return experiments.main(argv)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    try:
        if event or count:
            die_at(event, count)
        run_program(attempt)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ends(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ends_within(process: int, seconds: float) -> int | None:
    """Wait for a process. Return its exit code, or None if it is still running."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def next_argv(flags: list[str], directory: Path) -> list[str]:
    """Add --resume as soon as there is something to resume."""
    return [*flags, "--output_dir", str(directory), *(["--resume"] if (directory / "result.json").exists() else [])]


def is_complete(directory: Path) -> bool:
    file = directory / "result.json"
    return file.exists() and not json.loads(file.read_text())["interrupted"]


def at_moments(kills: int, draw: random.Random, flags: list[str], folder: Path, seconds: float) -> tuple[list, list]:
    """Return the outcome of each disturbed run, and how each disturbed attempt ended."""
    found, attempts, disturbed = [], [], False
    while len(attempts) < kills or disturbed:
        directory = folder / f"killed-{len(found)}"
        began, delay = time.perf_counter(), draw.uniform(0, seconds)
        process = start(next_argv(flags, directory), folder / "log")
        code = ends_within(process, delay if len(attempts) < kills else math.inf)
        if code is None:
            number = draw.choice(SIGNALS)
            os.kill(process, number)
            code = ends(process)
            attempts.append((number.name, round(delay, 3), code))
            disturbed = True
            if code in (-number, 0, 130):
                continue
        if code:
            raise SystemExit(f"an attempt ended with {code}: {(folder / 'log').read_text()[-2000:]}")
        seconds = min(seconds, time.perf_counter() - began)  # the first run of a process takes longer
        if disturbed:
            found.append(outcome(directory))
        shutil.rmtree(directory)
        disturbed = False
    return found, attempts


def at_writes(kills: int, draw: random.Random, flags: list[str], folder: Path) -> tuple[list, list]:
    assert ends(start(next_argv(flags, folder / "counted"), folder / "log", 0, folder / "count")) == 0
    events = range(1, int((folder / "count").read_text()) + 1)
    chosen = sorted(draw.sample(events, min(kills or len(events), len(events))))
    found, attempts = [], []
    for event in chosen:
        directory = folder / f"killed-{event}"
        attempts.append((event, len(events), ends(start(next_argv(flags, directory), folder / "log", event))))
        if not is_complete(directory) and (code := ends(start(next_argv(flags, directory), folder / "log"))):
            raise SystemExit(f"after event {event} an attempt ended with {code}: {(folder / 'log').read_text()[-2000:]}")
        found.append(outcome(directory))
        shutil.rmtree(directory)
    return found, attempts


def main(how: str, kills: str, seed: str, folder: str, *flags: str) -> None:
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    assert ends(start(next_argv([*flags], folder / "whole"), folder / "log")) == 0, (folder / "log").read_text()[-2000:]
    seconds, draw = time.perf_counter() - started, random.Random(int(seed))
    expected = outcome(folder / "whole")
    if how == "moments":
        found, attempts = at_moments(int(kills), draw, [*flags], folder, seconds)
    else:
        found, attempts = at_writes(int(kills), draw, [*flags], folder)
    different = [[key for key in expected if one[key] != expected[key]] for one in found]
    ended = {str(code): sum(one[-1] == code for one in attempts) for code in sorted({one[-1] for one in attempts})}
    report = {"seed": int(seed), "signals": len(attempts), "ended": ended, "runs": len(found), "different": different}
    print(json.dumps(report | {"seconds": round(time.perf_counter() - started, 1), "one run": round(seconds, 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
