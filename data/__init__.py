"""The tasks: where their texts come from, how they are split, and the recipe that was published for each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from errors import UserError


class TextExample(NamedTuple):
    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification task.

    read     (data_dir or None) -> {"train": [...], "validation": [...], "test": [...]}; None means our cache, filled from
             the official address if need be
    recipe   fields of `Run` as published; `model_recipes` holds what differs for a model (a small one wants larger steps)
    shipped  the name of the task that stands in where this one can't be had and wasn't asked for by name
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[Path | None], dict[str, list[TextExample]]]
    recipe: dict
    model_recipes: dict[str, dict] = field(default_factory=dict)
    shipped: str | None = None

    def recipe_for(self, model: str) -> dict:
        return self.recipe | self.model_recipes.get(model, {})


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"unknown dataset {name!r}: choose {', '.join(TASKS)}")
    return TASKS[name]


from data import spam  # noqa: E402  (a task's file needs the classes above)

TASKS: dict[str, Task] = {task.name: task for task in (spam.SPAM, spam.SPAM_POCKET)}
