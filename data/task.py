"""What a task is: where its texts come from, how they are split, and the recipe that was published for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from config import COLUMNS, DEFAULTS, DIALOGUES_ONLY, Run
from data.encode import describe_cuts, make_batches, unread_tail
from data.files import TextExample
from model.registry import architecture_of
from utils.errors import UserError

Size = tuple[str, int, int]  # (model_type, number of blocks, width)
GPT2_POCKET: Size = ("gpt2", 4, 192)
DISTILBERT_POCKET: Size = ("distilbert", 6, 128)


def size_of(model_config: Any) -> Size:
    """Return what a recipe can depend on of a model: what it is, whichever name or path it was given by."""
    return architecture_of(model_config).model_type, model_config.n_layers, model_config.dim


@dataclass(frozen=True)
class Task:
    """A classification task, and what every other kind of task has too (`data/chat.py`: answering).

    read     (data_dir or None) -> {"train": [...], "validation": [...], "test": [...]}; None means our cache, filled from
             the official address if need be. Validation or test is missing where its labels were never published
    recipe   fields of `Run` as published
    model_recipes   what differs for models of a size (a small model needs larger steps)
    folder   where its files lie, within a data directory and our cache; None: it is shipped, or the user's own
    shipped  the name of the task that stands in where this one can't be had and wasn't asked for by name
    models   the published default, and the shipped one that stands in where that can't be had and none was named
    metrics  what was published for it: "accuracy", "macro_f1"
    few_shot train on a small draw from the training split, see `few_shot_sample`
    measures what `result.json` has of each split of `evaluated`
    said     what the header of a run says of the data, a line each
    kind     what a user's own file turned out to hold
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[Path | None], dict[str, list[TextExample]]]
    recipe: dict
    model_recipes: dict[Size, dict] = field(default_factory=dict)
    folder: str | None = None
    shipped: str | None = None
    models: tuple[str, str] = ("gpt2-small", "gpt2-pocket")
    metrics: tuple[str, ...] = ("accuracy",)
    few_shot: bool = False
    measures: tuple[str, ...] = ("accuracy", "macro_f1", "per_class", "confusion")
    evaluated: tuple[str, ...] = ("train", "validation", "test")
    said: tuple[str, ...] = ()
    kind: str = ""
    has_dialogues: ClassVar[bool] = False
    reads_columns: ClassVar[bool] = False  # --text_column and so on

    def splits(self, run: Run) -> dict[str, list]:
        """Return all that a run reads, by split. Raises UserError."""
        return self.read(Path(run.data_dir) if run.data_dir else None)

    def check(self, run: Run) -> None:
        """Raise UserError where a complete run sets what this kind of task makes no use of."""
        for name in DIALOGUES_ONLY:
            if getattr(run, name) != DEFAULTS.get(name):
                raise UserError(f"--{name} is about dialogues, and {self.name} has none")
        self.check_columns(run)

    def check_columns(self, run: Run) -> None:
        """Raise UserError where a run names columns and the data have none to choose."""
        for name in COLUMNS:
            if getattr(run, name) is not None and not self.reads_columns:
                raise UserError(f"--{name} is about a file of your own, and --dataset {self.name} is none")

    def make_batches(self, run: Run, splits: dict[str, list], tokenizer, config):
        """Return the batches of each split ("train" in its training order, "train_in_order" for evaluation), and notes.

        config   the model's
        """
        batches, unread = make_batches(self, run, splits, tokenizer, config), unread_tail(run, config.causal)
        left_out = f"{unread} is left out, which no position that is read can see (--trim no: computed all the same)"
        return batches, [note for note in (describe_cuts(batches), left_out if unread else "") if note]

    def recipe_for(self, model_config: Any) -> dict:
        """Return the published recipe with what goes with this kind of model, and what was chosen for this size."""
        own = architecture_of(model_config).recipe
        own = own if self.has_dialogues else {name: value for name, value in own.items() if name not in DIALOGUES_ONLY}
        return self.recipe | own | self.model_recipes.get(size_of(model_config), {})

    def sample_training(self, examples: list[TextExample], seed: int) -> list[TextExample]:
        """Return what a run with this seed trains on: the whole split, or of a few-shot task a small draw from it."""
        return few_shot_sample(examples, len(self.labels), seed) if self.few_shot else examples


FEW, FEW_PER_CLASS = 32, 8


def few_shot_sample(examples: list[TextExample], n_labels: int, seed: int) -> list[TextExample]:
    """Return 32 random examples, or 8 of each class where there are more than 4 classes. They stay in their order."""
    rng = np.random.default_rng(seed)
    if n_labels > 4:
        pools = [[i for i, example in enumerate(examples) if example.label == label] for label in range(n_labels)]
        size = FEW_PER_CLASS
    else:
        pools, size = [list(range(len(examples)))], FEW
    if (fewest := min(map(len, pools))) < size:
        of = "a class" if n_labels > 4 else "the training split"
        raise UserError(f"few-shot training draws {size} examples of {of}, which has only {fewest}; choose the full task")
    chosen = [i for pool in pools for i in rng.choice(pool, size, replace=False).tolist()]
    return [examples[i] for i in sorted(chosen)]
