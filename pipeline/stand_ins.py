"""What is run for a published row: its own model and data, or what a flag names, or what stands in for them here."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config import DEFAULTS, SETTINGS, Run, override
from data.chat import training_dialogues
from data.registry import get_task
from data.task import Task, size_of
from model import architecture, canonical_name, config_of, hub
from pipeline.job import default_dataset, prepare, why_no_data
from pipeline.unused import completed, reads, without_unused
from published.table import Row, Table

PADDING = ("no_padding", "context_length")


@dataclass(frozen=True)
class Choice:
    """What is run for a row, what there is to say about it, and whether it is run at all."""

    run: Run
    notes: tuple[str, ...] = ()
    is_run: bool = True

    @property
    def note(self) -> str:
        """Return the notes as one line."""
        return "; ".join(self.notes)


def choose(table: Table, row: Row, overrides: Run) -> Choice:
    """Return what is run for a row of a table with these flags. A flag that the row has no use for is left out."""
    if table.dialogues_file:
        choice = choose_dialogues(table, row, overrides)
    elif table.stand_in:
        choice = choose_stand_ins(row, overrides)
    elif reason := why_left_out(row, overrides):
        return Choice(row.run, (reason,), is_run=False)
    else:
        choice = choose_flags(row, overrides)
    return replace(choice, run=without_unused(choice.run, overrides))


def choose_flags(row: Row, overrides: Run) -> Choice:
    """Return the row's run with the flags, and that it can't be compared with the log where they name other data."""
    run = with_flags(row, overrides)
    dataset = other_data(row, run)
    note = f"{dataset} isn't the log's data, so the published number says nothing about it"
    return Choice(run, (note,) if dataset else ())


def with_flags(row: Row, overrides: Run) -> Run:
    """Return the row's run with the flags. A model they name reads the token that the log's did, unless more is said."""
    run = row.with_flags(overrides)
    has_other_data = bool(other_data(row, run))
    run = with_published_method(row, run) if has_other_data else run
    if not row.position or run.trainable_token_pos or run.average_embeddings:
        return run
    reads_other = run.source and architecture(run.source).position != row.position
    return replace(run, trainable_token_pos=row.position) if has_other_data or reads_other else run


def other_data(row: Row, run: Run) -> str:
    """Return the name of the run's data set, or "" where the row's log had it, or it is shipped in its place."""
    log = log_of(row)
    dataset = run.dataset or default_dataset(config_of(run.source) if run.source else None, run.objective)
    return "" if dataset in (log.name, log.shipped) else dataset


def log_of(row: Row) -> Task:
    """Return the task of the log that a row is of."""
    return get_task(row.run.dataset or default_dataset(None))


def with_published_method(row: Row, run: Run) -> Run:
    """Return a row's run with the method of the log's task, whose recipe other data don't bring.

    How long and how fast is trained goes with the data. Which layers train, and how, makes the row; where it is about the
    position that the head reads, so does padding.
    """
    recipe = DEFAULTS | log_of(row).recipe
    run = run if run.adapter else override(Run(trainable_layers=recipe.get("trainable_layers")), run)
    methods = run.trainable_layers or "peft"
    names = [name for name, about in SETTINGS.items() if about["methods"] and name in recipe and reads(methods, name)]
    names += PADDING if row.position else ()
    return override(Run(**{name: recipe[name] for name in names}), run)


def choose_stand_ins(row: Row, overrides: Run) -> Choice:
    """Return the row's run, with the shipped model and data in the place of those that can't be had."""
    choice = choose_flags(row, overrides)
    run, notes = choice.run, []
    if not (overrides.checkpoint or overrides.model) and (reason := why_no_model(run.model)):
        run = replace(run, model=get_task(run.dataset, run).models[1], head_labels=None)
        notes.append(f"{run.model} stands in, {reason}")
    if not overrides.dataset and (reason := why_no_data(get_task(run.dataset), run.data_dir)):
        run = replace(run, dataset=get_task(run.dataset, run).shipped)
        notes.append(f"{run.dataset} stands in, {reason}")
    return Choice(run, (*notes, *choice.notes))


def why_left_out(row: Row, overrides: Run) -> str:
    """Return why a row isn't run, or "" where it is: a row about a model's size says nothing on another model."""
    if row.run.model is None:
        return ""
    if overrides.checkpoint or canonical_name(overrides.model or row.run.model) != row.run.model:
        return f"left out: it is about {row.run.model}, and this table was asked for with another model"
    reason = "" if overrides.model else why_no_model(row.run.model)  # what was named is run, or an error
    return f"left out: {reason}" if reason else ""


def why_no_model(name: str) -> str:
    """Return why a model can't be had, or "" where it is on this machine or can be fetched."""
    if hub.local(name) or hub.cached(name) or not (unreachable := hub.why_no_hub()):
        return ""
    return f"{name} isn't in the cache and {unreachable}"


def choose_dialogues(table: Table, row: Row, overrides: Run) -> Choice:
    """Return the row's run, with the auxiliary and general dialogues there are here, and a learning rate for the model.

    Flags about auxiliary dialogues concern only the rows that have some. A row that trains nothing trains nothing whatever
    the flags are.
    """
    auxiliary = Run(auxiliary_dataset=overrides.auxiliary_dataset, auxiliary_samples=overrides.auxiliary_samples)
    overrides = replace(overrides, auxiliary_dataset=None, auxiliary_samples=None)
    if overrides.data_dir and (file := Path(overrides.data_dir) / table.dialogues_file).is_file():
        auxiliary = override(Run(auxiliary_dataset=str(file)), auxiliary)
        overrides = override(Run(general_dataset=str(file)), overrides)
    run, notes = override(row.run, overrides), []
    if is_own(table, run) and not overrides.dataset:
        notes.append(f"{run.dataset} stands in for the log's data, which isn't public (--dataset FILE)")
    run = as_on_its_kind(table, row, run, overrides)
    if row.run.auxiliary_dataset:
        run, more = limit_auxiliary(override(run, auxiliary))
        notes += more
    if row.run.num_epochs == 0:
        run = replace(run, num_epochs=0)
    if row.run.learning_rate and overrides.learning_rate is None:
        factor = rate_factor(table, prepare(run).inputs.model_config)
        run = replace(run, learning_rate=float(f"{factor * row.run.learning_rate:.6g}"))
    return Choice(run, tuple(notes))


def as_on_its_kind(table: Table, row: Row, run: Run, overrides: Run) -> Run:
    """Return a row's run: as it is or, on a model of the kind of the log's own, as it is there."""
    return override(override(run, row.own), overrides) if is_own(table, run) else run


def is_own(table: Table, run: Run) -> bool:
    """Return whether the run's model is of the kind of the log's own."""
    return bool(run.source and table.own_model) and architecture(run.source) is architecture(table.own_model)


def rate_factor(table: Table, model_config: Any) -> float:
    """Return the table's factor on learning rates for models of this size, by whichever name or path one was given."""
    sizes = {size_of(config_of(name)): factor for name, factor in table.rate_factors.items()}
    return sizes.get(size_of(model_config), 1)


def limit_auxiliary(run: Run) -> tuple[Run, list[str]]:
    """Return the run with all auxiliary dialogues where it wants more than there are, and a note that says so."""
    complete, _ = completed(run)
    n_there = len(training_dialogues("auxiliary_dataset", run.auxiliary_dataset, complete.test_share))
    if run.auxiliary_samples <= n_there:
        return run, []
    note = f"all {n_there} auxiliary dialogues there are, for the {run.auxiliary_samples:,} of the plan"
    return replace(run, auxiliary_samples=0), [note]
