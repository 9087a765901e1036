"""The task of a user's own texts: what --dataset takes, and what a run on them does where no flag says otherwise."""

import math
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from config import Run
from data.chat import task_of_file
from data.files import TextExample
from data.glue import MODEL_RECIPES, POCKET_MODEL, TRAINER
from data.own import LABELS, PAIRS, TEXTS, Columns, Own, read_own
from data.own_files import find_files, is_file_name
from data.tables import SUFFIXES, first_objects
from data.task import GPT2_POCKET, Task
from model import hub
from utils.errors import UserError

LONGEST = 512  # tokens of a text, where the model could read more
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 400, 3, 20  # a small file needs more epochs to make enough steps
# The Hugging Face Trainer's defaults, as for GLUE, in batches of 16. A decoder reads a text's last token.
RECIPE = TRAINER | {"batch_size": 16, "trainable_token_pos": "flexible", "context_length": "model_context_length"}
OWN_MODEL_RECIPES = MODEL_RECIPES | {GPT2_POCKET: {"learning_rate": 1e-3}}
MESSAGES, INSTRUCTION = {"messages", "conversations"}, {"instruction", "input", "output"}  # keys of dialogues


@dataclass(frozen=True)
class OwnTask(Task):
    """Classification of a user's own texts."""

    reads_columns: ClassVar[bool] = True
    columns: Columns | None = None  # in which the texts stand, where that is known

    def recipe_for(self, model_config: Any) -> dict:
        """Return the recipe for a model: an encoder reads the first token; texts are cut where it or LONGEST ends."""
        recipe = super().recipe_for(model_config)
        recipe |= {} if model_config.causal else {"trainable_token_pos": "first"}
        return recipe | ({"context_length": str(LONGEST)} if model_config.context_length > LONGEST else {})


def is_path(name: str) -> bool:
    """Return whether --dataset NAME names a file, or a directory that is there, unless it is a task's name."""
    return is_file_name(name) or os.path.isdir(name)


def is_repository(name: str) -> bool:
    """Return whether --dataset NAME can be that of a data set on the hub, owner/name or owner/name@revision."""
    return bool(hub.REPOSITORY.fullmatch(name.partition("@")[0]))


def find_task(name: str, run: Run) -> Task | None:
    """Return the task of a file, of a directory or of a data set on the hub, or None where it can be none of them.

    run   its --text_column, --pair_column and --label_column say which columns are read

    Raises UserError.
    """
    columns = Columns(run.text_column, run.pair_column, run.label_column)
    if task_of_file(name) and has_dialogues(Path(name), columns):
        return task_of_file(name)
    if not is_path(name):
        if os.path.isfile(name):
            raise UserError(f"--dataset {name} is a file of an unknown kind; what is read: {', '.join(SUFFIXES)}")
        if not is_repository(name):
            return None
    own = load(name, columns)
    epochs = math.ceil(STEPS * RECIPE["batch_size"] / len(own.splits["train"]))
    recipe = RECIPE | {"num_epochs": min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)}
    return replace(make_task(name, columns, own.labels, recipe, own.said), columns=own.columns)


def trained_task(name: str, run: Run, labels: tuple[str, ...]) -> Task:
    """Return the task that an earlier run had. Its files are read where its texts are asked for; they may be gone."""
    return make_task(name, Columns(run.text_column, run.pair_column, run.label_column), labels, RECIPE)


def make_task(name: str, columns: Columns, labels: tuple[str, ...], recipe: dict, said: tuple[str, ...] = ()) -> OwnTask:
    """Return the task of own texts with these labels."""

    def read(data_dir: Path | None) -> dict[str, list[TextExample]]:
        return load(name, columns).splits

    models = ("distilbert-base-uncased", POCKET_MODEL)
    metrics = ("accuracy", "macro_f1")
    return OwnTask(
        name, labels, read, recipe, OWN_MODEL_RECIPES, models=models, metrics=metrics, said=said, kind="texts with labels"
    )


def load(name: str, columns: Columns) -> Own:
    """Return what --dataset names, read once as long as no file changes. Raises UserError."""
    files, notes = find_files(name)
    try:
        states = tuple((split, tuple((path, path.stat().st_mtime_ns) for path in paths)) for split, paths in files.items())
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from None
    return _load(states, columns, tuple(notes))


@lru_cache(maxsize=4)  # a run asks several times
def _load(states: tuple[tuple[str | None, tuple[tuple[Path, int], ...]], ...], columns: Columns, notes: tuple) -> Own:
    return read_own({split: [path for path, _ in paths] for split, paths in states}, columns, notes)


def has_dialogues(path: Path, columns: Columns) -> bool:
    """Return whether the fields of a .json or .jsonl are those of dialogues rather than of texts with labels.

    A file whose fields say nothing of the kind is taken for dialogues if none can be read, or for texts. Raises UserError
    where they say both.
    """
    if any(columns):
        return False
    fields = {key for record in first_objects(path) for key in record}
    names = {key.casefold() for key in fields}
    if {"chosen", "rejected"} <= fields:
        raise UserError(f"{path} holds pairs of answers, chosen and rejected; say --objective dpo too")
    dialogues = bool(fields & MESSAGES or {"instruction", "output"} <= fields or {"input", "output"} <= fields)
    texts = bool(names & {*LABELS} and (names & {*TEXTS} or any({*pair} <= names for pair in PAIRS)))
    if dialogues and texts:
        raise UserError(
            f"{path} has the fields of dialogues and those of texts with labels ({', '.join(sorted(fields))}): say "
            "--text_column and --label_column, or remove one kind"
        )
    half = bool(fields & INSTRUCTION) and not names & {*LABELS}  # a question or an answer, and no label either
    return not texts and (dialogues or not fields or half)
