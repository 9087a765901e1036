"""`--table methods`: every method on two jobs. A search for each method's learning rate, then several seeds on test data.

A run that was done before with the same settings, code and inputs isn't done again.
"""

import ctypes
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path

from config import Run, override
from data.registry import get_task
from pipeline.build import trained_names
from pipeline.comparison.code_hash import code_sha256
from pipeline.comparison.jobs import DIALOGUE, EXTRA_RATES, SHIPPED, Comparison, comparisons_of, prepare_one, scored_job
from pipeline.comparison.methods import ENTRIES, REFERENCE, UNTRAINED, Entry
from pipeline.comparison.pages import write_pages
from pipeline.comparison.records import (
    SEARCH,
    TEST,
    beyond,
    chosen_rate,
    finished,
    path_of,
    read_record,
    slug,
    write_record,
)
from pipeline.comparison.records import UNTRAINED as BEFORE
from pipeline.comparison.runs import config_of_run, hashes_of, measure
from pipeline.execute import advice_when_out_of_memory
from pipeline.unused import refuse_unused_in_rows
from training import distributed
from utils.errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent dies


def run_methods(overrides: Run, rows: list[int] | None, n_seeds: int | None, shard: tuple[int, int] = (1, 1)) -> int:
    """Measure the methods with these numbers, counted from 1, and the one that they are compared with. Return the exit
    status. Raises UserError.

    rows      None: all
    n_seeds   None: as many as a job has
    shard     (i, n): only the i-th of each n methods, beside other processes that share the folder
    """
    if distributed.size() > 1:
        raise UserError("--table methods needs one process; others can take a part of its rows with --shard I/N")
    if n_seeds is not None and n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}; it must be at least 1")
    entries, folder = chosen_entries(rows), Path(overrides.output_dir or "runs") / "methods"
    overrides = replace(overrides, output_dir=None)
    comparisons = comparisons_of(overrides)
    refuse_unused_in_rows(overrides, [override(job.run, entry.run) for job in comparisons for entry in entries])
    for comparison in comparisons:
        print(f"{comparison.name}: {comparison.run.source} on {comparison.run.dataset}", flush=True)
        (folder / comparison.folder).mkdir(parents=True, exist_ok=True)  # or the first run would train for nothing
        said: list[str] = []
        for entry in in_shard(comparison, entries, *shard):
            if not measure_entry(comparison, entry, n_seeds, folder / comparison.folder):
                print("interrupted; the same command goes on from here")
                return 130
            said = write_pages(folder / comparison.folder)
        said += stale_rows(comparison, [entry for entry in ENTRIES if entry not in entries], folder / comparison.folder)
        if (table := folder / comparison.folder / "table.md").is_file():
            print("\n" + table.read_text(encoding="utf-8"))
            print("\n".join(said), flush=True)
    return 0


def chosen_entries(rows: list[int] | None) -> list[Entry]:
    """Return the methods with these numbers. Raises UserError for one that isn't there, and where two share their files."""
    for entry in (*ENTRIES, UNTRAINED):
        names = [other.title for other in (*ENTRIES, UNTRAINED) if slug(other.title) == slug(entry.title)]
        if len(names) > 1 or not slug(entry.title):
            raise UserError(
                f"pipeline/comparison/methods.py: the files of {' and '.join(map(repr, names))} would have the name "
                f"{slug(entry.title)!r}; give each method a title with letters a-z or digits of its own"
            )
    for number in rows or ():
        if not 1 <= number <= len(ENTRIES):
            raise UserError(f"the table methods has no row {number}; it has 1-{len(ENTRIES)}")
    return [ENTRIES[number - 1] for number in rows] if rows else [*ENTRIES]


def in_shard(comparison: Comparison, entries: list[Entry], place: int, n_shards: int) -> list[Entry]:
    """Return every n-th of what is measured: first what others are compared with."""
    before = [UNTRAINED] if is_dialogue(comparison) else []
    return [*dict.fromkeys([*before, REFERENCE, *entries])][place - 1 :: n_shards]


def is_dialogue(comparison: Comparison) -> bool:
    """Return whether the job is about dialogues."""
    return get_task(comparison.run.dataset, comparison.run).has_dialogues


def measure_entry(comparison: Comparison, entry: Entry, n_seeds: int | None, folder: Path) -> bool:
    """Measure one method, unless that has been done. Return False after Ctrl-C."""
    left_out = folder / f"{slug(entry.title)}-left-out.json"
    if reason := why_left_out(comparison, entry):
        write_record(left_out, {"title": entry.title, "reason": reason})
        print(f"  {entry.title}: left out: {reason}", flush=True)
        return True
    left_out.unlink(missing_ok=True)
    if entry is UNTRAINED:
        return bool(run_once(comparison, entry, 0.0, comparison.search_seed, BEFORE, folder))
    if (rate := search_rate(comparison, entry, folder)) is None:
        return False
    seeds = comparison.test_seeds(n_seeds)
    return all(run_once(comparison, entry, rate, seed, TEST, folder) is not None for seed in seeds)


def search_rate(comparison: Comparison, entry: Entry, folder: Path) -> float | None:
    """Return the learning rate with the lowest validation loss, or None after Ctrl-C.

    Where that is an edge of the method's grid, the next rate beyond it is tried too.
    """
    rates, records = [*entry.rates[: comparison.n_rates]], []
    limit = len(rates) + EXTRA_RATES
    for rate in rates:  # which grow
        record = run_once(comparison, entry, rate, comparison.search_seed, SEARCH, folder)
        if record is None:
            return None
        records.append(record)
        best, edge = chosen_rate(records)
        if edge and len(records) == len(rates) < limit:
            rates.append(beyond(best, edge))
    return best


def stale_rows(comparison: Comparison, others: list[Entry], folder: Path) -> list[str]:
    """Return what there is to say of methods that this command didn't measure, where their records are of other code."""
    stale = []
    for entry in others:
        record = read_record(path_of(folder, entry, entry.rates[0], comparison.search_seed))  # which every command measures
        if not record:
            continue
        with suppress(UserError):  # for a flag of which the row makes no use
            job = prepare_one(comparison, entry, entry.rates[0], comparison.search_seed, with_test=False)
            if record["hashes"].get("code_sha256") != code_sha256(job):
                stale.append(str(ENTRIES.index(entry) + 1))
    rows = ",".join(stale)
    return [f"measured with other code than now: rows {rows}; --rows {rows} measures them anew"] if rows else []


def why_left_out(comparison: Comparison, entry: Entry) -> str:
    """Return why the method can't be attached to the job's model, or "" where it can. No weights are read."""
    if entry.run.dataset and comparison.run.dataset != SHIPPED[DIALOGUE.name][1]:
        return f"it trains on {entry.run.dataset}, which go with the shipped dialogues alone"
    try:
        job = prepare_one(comparison, entry, 1.0, comparison.search_seed, with_test=False)
    except UserError as error:
        if not entry.run.dataset:  # what is wrong is wrong for every row
            raise
        return str(error)  # a flag about the job's data, which other data make no use of
    try:
        trained_names(job.run, len(job.task.labels))
    except UserError as error:
        return str(error)
    return ""


def run_once(comparison: Comparison, entry: Entry, rate: float, seed: int, stage: str, folder: Path) -> dict | None:
    """Return the record of one run, which is done now unless it has been. None after Ctrl-C."""
    job = prepare_one(comparison, entry, rate, seed, with_test=stage != SEARCH)
    path, config = path_of(folder, entry, rate, seed), config_of_run(job.run)
    hashes = hashes_of(job, scored_job(comparison, entry, job))
    if record := finished(path, config, hashes):
        return record
    began = time.perf_counter()
    # Apart, or the peak of memory would depend on what earlier runs left behind. A GPU counts its memory itself.
    measure_it = measure_apart if sys.platform == "linux" and job.run.device == "cpu" else measure_one
    measured = measure_it(comparison, entry, rate, seed, stage != SEARCH)
    if measured is None:
        return None
    seconds = round(time.perf_counter() - began, 1)
    record = {"title": entry.title, "stage": stage, "seed": seed, "rate": rate, "total_seconds": seconds, **measured}
    record |= {"config": config, "hashes": hashes}
    write_record(path, record)
    loss = "no step" if entry is UNTRAINED else measured.get("diverged") or f"validation loss {measured['validation_loss']}"
    print(f"  {entry.title}, learning rate {job.run.learning_rate:g}, seed {seed}: {loss}, {seconds:g} s", flush=True)
    return record


def measure_apart(comparison: Comparison, entry: Entry, rate: float, seed: int, with_test: bool) -> dict | None:
    """Return what `measure_one` does, from a process of its own."""
    fork = get_context("fork")  # which imports nothing again
    with ProcessPoolExecutor(1, mp_context=fork, initializer=end_with_parent) as pool:
        try:
            return pool.submit(measure_one, comparison, entry, rate, seed, with_test).result()
        except KeyboardInterrupt:
            for process in active_children():  # which a signal to this one alone didn't reach
                process.kill()  # the run begins anew in either case
            return None
        except BrokenProcessPool:
            raise UserError(
                f"the system ended the run of {entry.title}, learning rate {rate:g}, seed {seed}, perhaps for lack of "
                "memory: a smaller --batch_size needs less; the same command goes on from here"
            ) from None


def end_with_parent() -> None:
    """Let Linux kill this process with the one that began it: by itself it would train on, then wait for ever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def measure_one(comparison: Comparison, entry: Entry, rate: float, seed: int, with_test: bool) -> dict | None:
    """Return what `measure` does of a run that is given in parts, which another process can be told."""
    job = prepare_one(comparison, entry, rate, seed, with_test)
    with advice_when_out_of_memory(job.run):
        return measure(job, scored_job(comparison, entry, job))
