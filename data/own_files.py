"""Finds the files of a user's own data: one file, a directory with a file for each split, or a repository on the hub."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, logging

from data.own_splits import SPLIT_NAMES, SPLIT_OF, printable
from data.tables import SUFFIXES
from model import hub
from utils.errors import UserError

SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")  # train-00000-of-00002.parquet


class Found(NamedTuple):
    """The files of each split, in their order, and which others there are. None stands for a file that has all splits."""

    files: dict[str | None, list[str]]
    others: list[str]

    @property
    def read(self) -> list[str]:
        """Return the files of all splits."""
        return [name for names in self.files.values() for name in names]

    def note(self) -> str:
        """Return which files are read, in words."""
        read, others = (", ".join(map(printable, names)) for names in (self.read, self.others))
        return f"read: {read}" + (f"; not read: {others}" if others else "")


def find_files(name: str) -> tuple[dict[str | None, list[Path]], list[str]]:
    """Return the files behind --dataset by split, and notes on how they were found. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        names = [
            file.relative_to(path).as_posix() for file in sorted([*path.glob("*"), *path.glob("*/*")]) if file.is_file()
        ]
        return in_folder(path, choose(name, names))
    if is_file_name(name):
        return {None: [path]}, []
    return find_in_repository(name)


def is_file_name(name: str) -> bool:
    """Return whether a name is that of a file with a table."""
    return name.lower().endswith(SUFFIXES)


def in_folder(folder: Path, found: Found) -> tuple[dict[str | None, list[Path]], list[str]]:
    """Return files with their whole paths, and what is said of them."""
    return {split: [folder / name for name in names] for split, names in found.files.items()}, [found.note()]


# --- which file is of which split


def choose(place: str, names: Iterable[str]) -> Found:
    """Return which of the files in a folder are of which split. Their names say it. Raises UserError.

    names   paths below the folder, with / between their parts; of those without a table none is taken
    """
    tables = [
        name for name in names if is_file_name(name) and not any(p.startswith(".") for p in PurePosixPath(name).parts)
    ]
    if not tables:
        raise UserError(f"{place} holds no file that ends in {', '.join(SUFFIXES)}")
    by_folder: dict[str, list[str]] = {}
    for name in tables:
        by_folder.setdefault(str(PurePosixPath(name).parent), []).append(name)
    with_training = [folder for folder, some in by_folder.items() if any(split_of(place, name) == "train" for name in some)]
    folder = next((one for one in (".", "data") if one in with_training), None)
    if folder is None and len(with_training) > 1:
        folders = ", ".join(with_training)
        raise UserError(f"{place} has files for training in several folders ({folders}); name one, downloaded if need be")
    if not with_training:
        if len(tables) == 1 and split_of(place, tables[0]) is None:
            return Found({None: tables}, [])
        raise UserError(
            f"{place} holds {', '.join(tables)}; the name of one has to say that it is for training, such as "
            "train.csv (others: validation or dev, and test)"
        )
    folder = folder or with_training[0]
    files: dict[str | None, list[str]] = {}
    for split in SPLIT_NAMES:
        if some := [name for name in by_folder[folder] if split_of(place, name) == split]:
            files[split] = one_or_all_shards(place, split, some)
    found = Found(files, [])
    return found._replace(others=[name for name in tables if name not in found.read])


def split_of(place: str, name: str) -> str | None:
    """Return the split that a file's name says, or None. Raises UserError where it says two."""
    words = re.split(r"[^a-z]+", PurePosixPath(name).stem.lower())
    said = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    if len(said) > 1:
        raise UserError(f"{place}: the name of {name} says {' and '.join(sorted(said))}; rename it")
    return next(iter(said), None)


def one_or_all_shards(place: str, split: str, names: list[str]) -> list[str]:
    """Return the only file of a split, or all parts of it in their order. Raises UserError."""
    shards = [found for name in sorted(names) if (found := SHARD.fullmatch(name))]
    if len(shards) == len(names) and len({(one[1], one[3], one[4]) for one in shards}) == 1:
        if [int(one[2]) for one in shards] != [*range(int(shards[0][3]))]:
            raise UserError(f"{place} has {len(names)} of the {int(shards[0][3])} parts of {split}: {', '.join(names)}")
        return sorted(names)
    if len(names) > 1:
        raise UserError(f"{place} has several files for {split}: {', '.join(names)}; leave one")
    return names


# --- the hub


def find_in_repository(name: str) -> tuple[dict[str | None, list[Path]], list[str]]:
    """Return the files of a data set on the hub, owner/name or owner/name@revision. Raises UserError.

    They are downloaded once, into the Hugging Face cache.
    """
    repository, _, revision = name.partition("@")
    if found := find_in_cache(repository, revision or None):
        return found
    if unreachable := hub.why_no_hub():
        raise UserError(
            f"{name} is no file or directory, and isn't in the Hugging Face cache ({constants.HF_HUB_CACHE}) as a data "
            f"set, and {unreachable}: run once with a network, or name a file"
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # what goes wrong becomes an error of one line
    try:
        about = HfApi().dataset_info(repository, revision=revision or None, files_metadata=True).siblings or []
        found = choose(name, sorted(one.rfilename for one in about))
        folder = Path(
            snapshot_download(repository, repo_type="dataset", revision=revision or None, allow_patterns=found.read)
        )
        for one in about:
            if one.lfs and one.rfilename in found.read:
                hub.check_hash(folder / one.rfilename, one.lfs.sha256)
    except UserError:
        raise
    except Exception as error:  # of the file system, of the HTTP library, or of the one behind large files
        reason = hub.reason_of(error, f"datasets/{repository}")
        raise UserError(f"the data set {name} can't be downloaded from {constants.ENDPOINT}: {reason}") from None
    return in_folder(folder, found)


def find_in_cache(repository: str, revision: str | None) -> tuple[dict[str | None, list[Path]], list[str]] | None:
    """Return the files of a data set, and what is said of them, or None where the cache lacks one of them."""
    how = {"repo_type": "dataset", "revision": revision}
    try:
        found = choose(repository, sorted(one.path for one in get_cached_repo_tree(repository, **how)))
        folder = Path(snapshot_download(repository, **how, allow_patterns=found.read, local_files_only=True))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError):
        return None
    return in_folder(folder, found)
