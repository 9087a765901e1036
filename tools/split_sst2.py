"""Writes two data directories with different sentences of SST-2: some to make a first classifier, others to train it on.

    python -m tools.split_sst2 DATA_DIR FIRST_DIR SECOND_DIR --sizes 5000 20000

Each has a train.tsv of its own and the same dev.tsv. So a log that starts from a trained sentiment classifier can be
repeated from a model that is none, and what is measured doesn't rest on sentences that were seen before.
"""

import argparse
from pathlib import Path

import numpy as np

from data.glue import FILES, SST2_FOLDER
from utils.errors import UserError, run_program
from utils.files import user_path, write_text

SEED = 2022  # of the one permutation of which each directory gets a part


def split(data_dir: Path, directories: list[Path], sizes: list[int]) -> None:
    """Write train.tsv and dev.tsv below each directory.

    Raises UserError where there are too few sentences, or where one directory would take the place of another.
    """
    if len({folder.resolve() for folder in (data_dir, *directories)}) <= len(directories):
        raise UserError(f"{', '.join(map(str, (data_dir, *directories)))}: each has to be a directory of its own")
    source = data_dir / SST2_FOLDER
    try:
        with (source / FILES["train"]).open(encoding="utf-8") as file:
            header, *lines = file  # only a newline ends a line: texts may hold other characters that splitlines() splits at
        dev = (source / FILES["validation"]).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{source} can't be read: {error}") from None
    if min(sizes) < 1 or sum(sizes) > len(lines):
        raise UserError(f"--sizes is {' '.join(map(str, sizes))}; {source} has {len(lines)} sentences to share out")
    order = np.random.default_rng(SEED).permutation(len(lines))
    for directory, part in zip(directories, np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1]), strict=True):
        (directory / SST2_FOLDER).mkdir(parents=True, exist_ok=True)
        write_text(directory / SST2_FOLDER / FILES["train"], header + "".join(lines[i] for i in sorted(part)))
        write_text(directory / SST2_FOLDER / FILES["validation"], dev)


def main() -> int:
    """Write what the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=user_path, help="the directory that holds glue_sst2")
    parser.add_argument("first", type=user_path, help="a data directory to write")
    parser.add_argument("second", type=user_path, help="another")
    parser.add_argument(
        "--sizes", type=int, nargs=2, default=[5000, 20000], help="how many sentences each gets to train on"
    )
    args = parser.parse_args()
    split(args.data_dir, [args.first, args.second], args.sizes)
    return 0


if __name__ == "__main__":
    run_program(main)
