"""Measures time and memory of ours and of others, side by side in one go; see benchmarks/README.md.

python benchmarks/run.py --suite spam --data_dir DIR                 rows of the spam table, against the published loop
python benchmarks/run.py --suite encoders --data_dir DIR             DistilBERT, against transformers and peft
python benchmarks/run.py --suite growth --data_dir DIR               how ours grows with length, batch, model and texts
python benchmarks/run.py --suite steps                               training steps, against transformers and peft
python benchmarks/run.py --suite memory                              what a step takes, against what was computed
python benchmarks/run.py --suite gpu --data_dir DIR                  the spam table and training steps on a GPU
python benchmarks/run.py --suite generation --checkpoint DIR         greedy generation, against transformers; chat
python benchmarks/run.py --suite spam --rows 1,11 --fraction 0.1     two rows on a tenth of the texts
"""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # the files of this folder are no modules of the top level: there `run` is another
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from experiments import parse_rows
from utils.errors import UserError, run_program
from utils.files import user_path

SUITES = ("spam", "encoders", "growth", "steps", "memory", "generation", "gpu")
RESULTS = Path(__file__).parent / "results"


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that an error is a UserError: one line, no usage text around it."""

    def error(self, message: str):
        raise UserError(f"{message} (see python benchmarks/run.py --help)")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the flags. Raises UserError for a value outside its limits."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--rows", help="of the suite, only these: 1,3-5; FILE keeps its others")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the texts (default 1); epochs stay")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="default: benchmarks/results/SUITE.json")
    parser.add_argument(
        "--repeats", type=int, metavar="K", help="measurements of each side (default: 3, or what a suite needs)"
    )
    parser.add_argument("--amp", choices=("auto", "off", "bf16"), default="auto", help="of ours, as in experiments.py")
    parser.add_argument("--data_dir", type=os.path.expanduser, help="as in experiments.py (default: our cache)")
    parser.add_argument("--checkpoint", type=user_path, help="of generation: the language model, SmolLM2-135M-Instruct say")
    parser.add_argument("--output_dir", type=user_path, help="keeps weights, texts and runs here (default: thrown away)")
    args = parser.parse_args(argv)
    if not 0 < args.fraction <= 1:
        raise UserError(f"--fraction is {args.fraction}; it must be above 0 and at most 1")
    if args.repeats is not None and args.repeats < 1:
        raise UserError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.json and args.json.suffix != ".json":
        raise UserError(f"--json is {args.json}; it must end in .json (the table goes beside it, in .md)")
    return args


def chosen_rows(text: str | None, suite) -> list[int]:
    """Return the numbers of the text 1,3-5, or of all rows for None. Raises UserError for a row that isn't there."""
    if text is None:
        return list(suite.ROWS)
    numbers = parse_rows(text)
    for number in numbers:
        if number not in suite.ROWS:
            raise UserError(f"--rows: no row {number} in this suite; choose among {', '.join(map(str, suite.ROWS))}")
    return numbers


def check_flags(args: argparse.Namespace, suite) -> None:
    """Raise UserError for a flag that changes nothing in this suite."""
    default = {"fraction": 1.0, "data_dir": None, "checkpoint": None}
    useless = getattr(suite, "USELESS", ("checkpoint",))
    if given := [name for name in useless if getattr(args, name) != default[name]]:
        raise UserError(f"--{given[0]} {getattr(args, given[0])} changes nothing in --suite {args.suite}; leave it out")


@contextlib.contextmanager
def work_folder(wanted: Path | None) -> Iterator[Path]:
    """Yield a folder for inputs and runs: the one that was named, else one that is thrown away.

    It lies outside the checkout, where the local package peft would hide the library of that name.
    """
    if wanted:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield Path(folder)


def main(argv: list[str]) -> int:
    """Measure comparison after comparison, and write both files after each."""
    args = parse(argv)
    suite = importlib.import_module(f"benchmarks.{args.suite}")
    check_flags(args, suite)
    rows, repeats = chosen_rows(args.rows, suite), args.repeats or suite.REPEATS
    packages = suite.needed(rows) if hasattr(suite, "needed") else suite.PACKAGES
    measure.need_packages(packages)
    file = args.json or RESULTS / f"{args.suite}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    records = measure.read_records(file)
    device, disagree = getattr(suite, "DEVICE", measure.CPU), []
    about = {"machine": measure.machine(device), "versions": measure.all_versions(packages)}
    with work_folder(args.output_dir) as folder:
        shown = {str(folder): "INPUTS"} | ({str(Path(args.data_dir).resolve()): args.data_dir} if args.data_dir else {})
        shown |= {str(args.checkpoint.resolve()): "CHECKPOINT"} if args.checkpoint else {}
        for comparison in suite.comparisons(rows, args, folder):
            print(f"{comparison.work}, {comparison.precision} ...", flush=True)
            record = measure.measure(comparison, repeats, shown) | about
            records = with_derived(measure.merged(records, record), suite)
            measure.write_records(records, file, suite.TITLE)  # after each, so that what is measured stays
            record = next(one for one in records if measure.key_of(one) == measure.key_of(record))
            print(summary(record), flush=True)
            disagree += [f"row {record['row']}"] if record.get("agree") is False else []
    print(f"saved    {file} and {file.with_suffix('.md')}")
    if disagree:
        what = getattr(suite, "COMPARED", "losses")
        print(f"error: the {what} of both sides don't agree:", ", ".join(disagree), file=sys.stderr)
    return 1 if disagree else 0


def with_derived(records: list[dict], suite) -> list[dict]:
    """Return the records with what the suite makes of them, where it does; what it added earlier, `derived`, is dropped."""
    records = [one for one in records if not one.get("derived")]
    for one in suite.derived(records) if hasattr(suite, "derived") else ():
        records = measure.merged(records, one)
    return records


def summary(record: dict) -> str:
    """Return a measurement in one line."""
    shown = {name: measure.number(record[name], 1e6 if name.endswith("bytes") else 1) for name in measure.COLUMNS}
    if record["ours_seconds"] is None:
        return f"  {record['note']}"
    line = (
        f"  {shown['ours_seconds']} s against {shown['peer_seconds']} s: {shown['time_ratio']}; "
        f"{shown['ours_peak_bytes']} MB against {shown['peer_peak_bytes']} MB: {shown['memory_ratio']}"
    )
    return f"{line}; {record['note']}" if record.get("note") else line


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
