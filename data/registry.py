"""All tasks by their names, as --dataset takes them."""

from data import chat, domains, glue, spam
from data.task import Task
from utils.errors import UserError

TASKS: dict[str, Task] = {task.name: task for task in (*spam.TASKS, *glue.TASKS, *domains.TASKS, *chat.TASKS)}


def get_task(name: str) -> Task:
    """Return a task by its name, or by the path of a file with dialogues. Raises UserError."""
    task = TASKS.get(name) or chat.task_of_file(name)
    if task is None:
        raise UserError(f"unknown dataset {name!r}: choose {', '.join(TASKS)} or the path of a .json or .jsonl file")
    return task
