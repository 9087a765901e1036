"""All tasks by their names, as --dataset takes them."""

from collections.abc import Sequence

from config import Run
from data import chat, domains, glue, own_task, preferences, spam
from data.tables import SUFFIXES
from data.task import Task
from utils.errors import UserError

KINDS = (spam, glue, domains, chat, preferences)
TASKS: dict[str, Task] = {task.name: task for kind in KINDS for task in kind.TASKS}


def get_task(name: str, run: Run | None = None, labels: Sequence[str] | None = None) -> Task:
    """Return a task by its name, or that of a user's own data. Raises UserError.

    run      says which columns of own data are read
    labels   those of an earlier run on own data, which needn't be there any longer
    """
    if name in TASKS:
        return TASKS[name]
    if run and run.objective == preferences.DPO and (own_task.is_path(name) or own_task.is_repository(name)):
        return preferences.task_of_pairs(name)
    if labels:
        return own_task.trained_task(name, run or Run(), tuple(labels))
    task = own_task.find_task(name, run or Run())
    if task is None:
        raise UserError(
            f"unknown dataset {name!r}: choose {', '.join(TASKS)}, the path of a file ({', '.join(SUFFIXES)}) or of a "
            "directory with such files, or owner/name on the hub"
        )
    return task


def is_path(name: str) -> bool:
    """Return whether --dataset NAME is the path of a file or of a directory."""
    return name not in TASKS and own_task.is_path(name)
