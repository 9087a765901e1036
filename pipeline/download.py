"""`--download`: puts models and data sets into the usual caches, after which all works with HF_HUB_OFFLINE=1."""

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import model as models
from data.download import cache_dir
from data.registry import TASKS
from data.task import Task
from model import hub
from utils.errors import UserError


def download(names: list[str]) -> None:
    """Fetch each, and print where it lies and how large it is. A misprint is a UserError before anything is fetched."""
    for name, fetch in {name: how_to_fetch(models.canonical_name(name)) for name in names}.items():
        files = fetch()
        if not files:
            print(f"{name}: here already, nothing needs to be fetched")
            continue
        print(f"{name}: {megabytes(files)} in {files[0].parent}")
        for file in files:
            print(f"  {megabytes([file]):>12}  {file.name}")


def how_to_fetch(name: str) -> Callable[[], list[Path]]:
    """Return a function that fetches what has this name and returns its files: none of what is shipped or the user's own.

    Raises UserError for an unknown name.
    """
    if name in TASKS:
        return partial(fetch_data, TASKS[name])
    if hub.local(name) or Path(name).is_file():
        return list
    if name in hub.REPOSITORIES or hub.REPOSITORY.fullmatch(name.partition("@")[0]):
        return partial(fetch_model, name)
    if hub.OLD_NAME.fullmatch(name.partition("@")[0]) and is_model(name):
        return partial(fetch_model, name)
    raise UserError(
        f"--download {name!r} is neither a model nor a data set; choose "
        f"{', '.join([*hub.REPOSITORIES, *hub.pocket_names()])}, owner/name on the hub, {', '.join(TASKS)}"
    )


def is_model(name: str) -> bool:
    """Return whether a name without an owner is a repository with a model that can be read. Fetches its config.json."""
    try:
        models.architecture(name)
    except UserError:
        return False
    return True


def fetch_data(task: Task) -> list[Path]:
    """Fetch a data set, if it isn't shipped. Return its files in the cache."""
    if task.folder is None:
        return []
    task.read(None)
    return sorted(file for file in (cache_dir() / task.folder).iterdir() if not file.name.startswith("."))


def fetch_model(name: str) -> list[Path]:
    """Fetch weights, configuration and tokenizer. Return their files in the cache."""
    models.architecture(name)  # before its weights: can it be read?
    folders = [hub.locate(name), hub.locate(name, files=hub.TOKENIZER_FILES)]  # other libraries may have cached one alone
    wanted = [*hub.CHECKPOINT_FILES, *hub.TOKENIZER_FILES]
    files = {file.name: file for folder in folders for file in sorted(folder.iterdir())}
    return [file for name, file in files.items() if any(fnmatch(name, pattern) for pattern in wanted)]


def megabytes(files: list[Path]) -> str:
    """Return their size in words."""
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
