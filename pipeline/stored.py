"""What a classifier that comes with a checkpoint or an adapter fixes of a run: what it reads, and the order of its labels.

The library's classifiers read the last real token of a GPT-2, the first token of an encoder, and no padding. What was
trained here may read otherwise: then an export has a file beside it that says so.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import SETTINGS, Run
from data.task import Task
from model import PUBLISHED, canonical_name, hub
from model.config_file import default_labels, read_labels
from model.labels import match_labels
from model.registry import architecture_of
from model.weights import Checkpoint, classifier_size
from peft.huggingface.classifier import number_of_classes
from peft.huggingface.read import adapter_folder, read_adapter
from pipeline.resolve import recipe_of
from utils.errors import UserError
from utils.files import read_json, write_text

READING = ("trainable_token_pos", "no_padding", "average_embeddings")  # the settings that say what a classifier reads


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier with weights from a file."""

    owner: str  # "checkpoint" or "adapter"
    n_labels: int
    names: tuple[str, ...] | None  # of its labels, in their order; None: it names none, or not as many
    reading: dict  # of READING, how it was trained
    notes: tuple[str, ...] = ()
    padded_to: int | None = None  # tokens to which its texts were padded, where it saw the padding and that is known


# --- which classifier a run begins with


def stored_classifier(run: Run, model_config: Any) -> StoredClassifier | None:
    """Return the classifier that the run's adapter brings, else that of its checkpoint, else None. Raises UserError."""
    architecture = architecture_of(model_config)
    reading = {"trainable_token_pos": "first" if architecture.position == "first" else "flexible"}
    reading |= {"no_padding": True, "average_embeddings": False}
    if run.adapter and (n := number_of_classes(read_adapter(run.adapter).tensors, architecture)):
        return described("adapter", adapter_folder(run.adapter), n, reading, named_by=config_folder(run))
    if run.weights == "random" or canonical_name(run.source or "") in PUBLISHED:  # these have none
        return None
    folder = hub.locate(canonical_name(run.source or ""))
    n = classifier_size(Checkpoint(folder), architecture)
    return described("checkpoint", folder, n, reading, named_by=folder) if n else None


def config_folder(run: Run) -> Path | None:
    """Return where the model's config.json lies; None for a published model, which needs no file."""
    name = canonical_name(run.source or "")
    return None if name in PUBLISHED else hub.locate(name, files=hub.CONFIG_FILES)


def described(owner: str, folder: Path, n: int, reading: dict, named_by: Path | None) -> StoredClassifier:
    """Return a classifier for n labels with what the files beside it say: our own, else config.json."""
    own = read_own(folder / hub.CLASSIFIER_FILE)
    names, contradicted, padded_to = (own.pop("labels", None), False, own.pop("padded_to", None))
    if names is None and named_by is not None:
        names, contradicted = read_labels(named_by)
    notes = []
    if names and len(names) != n:
        if tuple(names) != default_labels(len(names)):
            notes.append(f"the {owner} names {len(names)} labels, its classifier has {n}: taken in the task's order")
        names = None
    if names and contradicted:
        notes.append(f"the {owner}'s label2id contradicts its id2label, which counts")
    return StoredClassifier(owner, n, names and tuple(names), reading | own, tuple(notes), padded_to)


# --- what it fixes


def what_is_fixed(run: Run, task: Task, model_config: Any) -> tuple[dict, list[str]]:
    """Return the settings that a stored classifier fixes, and what there is to say about it. Raises UserError.

    An explicit flag goes before each of them; what it overrides is said.
    """
    stored = stored_classifier(run, model_config) if task.labels else None
    if stored is None:
        if run.head_labels and task.labels:
            raise UserError(f"--head_labels chooses among labels of a classifier, and {run.source} has none with weights")
        return {}, []
    order, said = label_order(stored, task, run.head_labels)
    fixed = {"head_labels": written(order, stored.names or ())} if order else {}
    return stored.reading | fixed, [*stored.notes, *reading_notes(stored, run, recipe_of(task, model_config)), *said]


def reading_notes(stored: StoredClassifier, run: Run, recipe: dict) -> list[str]:
    """Return a note where a classifier isn't read as the recipe has it, or not as it was trained."""
    given = {name: getattr(run, name) for name in stored.reading if getattr(run, name) is not None}
    overrides = [flag_of(name, value) for name, value in given.items() if value != stored.reading[name]]
    was_trained = f"the {stored.owner}'s classifier was trained to read {in_words(stored.reading)}"
    if overrides:
        hidden = run.trainable_token_pos == "last" and run.no_padding is None and stored.reading["no_padding"]
        more = " (padding stays hidden: --no-no_padding shows it)" if hidden else ""
        return [f"{was_trained}; overridden by {' '.join(overrides)}{more}"]
    as_in_recipe = all(value == recipe.get(name, SETTINGS[name]["default"]) for name, value in stored.reading.items())
    return [] if as_in_recipe else [f"{was_trained}, and does so here"]


def label_order(stored: StoredClassifier, task: Task, given: str | None) -> tuple[tuple[int, ...] | None, list[str]]:
    """Return the numbers of the classes in the task's order, None where they are in it, and what there is to say.

    given   --head_labels, which goes before what the names say

    Of a classifier with more labels than the task, those with the task's names are kept. Raises UserError where there are
    none, or where it has fewer.
    """
    n, wanted = stored.n_labels, task.labels
    order, assumed = None, "it names no labels"
    if stored.names and n >= len(wanted):
        order, assumed = match_labels(stored.names, wanted)
    if n != len(wanted) and assumed and not given:
        choice = "; choose among them with --head_labels" if n > len(wanted) else ""
        raise UserError(
            f"the {stored.owner} has a classifier for {n} labels ({', '.join(stored.names or map(str, range(n)))}), the "
            f"task has {len(wanted)} ({', '.join(wanted)}){choice}"
        )
    if order is None or not stored.names:
        return None, []
    if given:
        chosen = tuple(number_of(label.strip(), stored.names) for label in given.split(","))
        names = ", ".join(stored.names)
        overridden = f"the {stored.owner} has its labels in the order {names}; overridden by --head_labels {given}"
        return None, [overridden] if chosen != order and not assumed else []
    said = [f"of the {stored.owner}: {assumed}"] if assumed else []
    if n != len(wanted):
        return order, [f"of the {stored.owner}'s labels {', '.join(stored.names)} those of the task are kept"]
    if order == tuple(range(len(order))):
        return None, said
    return order, [*said, f"the {stored.owner} has its labels in the order {', '.join(stored.names)}, which is followed"]


def written(order: tuple[int, ...], names: tuple[str, ...]) -> str:
    """Return classes as --head_labels takes them: by their numbers, unless names are numbers themselves."""
    by_name = any(name.isdecimal() for name in names)
    return ",".join(names[number] if by_name else str(number) for number in order)


def number_of(label: str, names: tuple[str, ...]) -> int:
    """Return the number of a label, given by its name or number, or -1 for one that isn't there."""
    if label in names:
        return names.index(label)
    return int(label) if label.isdecimal() else -1


def flag_of(name: str, value: object) -> str:
    """Return a setting as it is typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def in_words(reading: dict) -> str:
    """Return what a classifier reads."""
    padding = "padding hidden" if reading["no_padding"] else "padding seen"
    where = {"first": "the first token", "last": "the last position", "flexible": "the last real token"}
    return f"{where[reading['trainable_token_pos']]}, {padding}"


# --- the file beside an export


def write_own(folder: Path, run: Run, causal: bool, labels: tuple[str, ...] | None, padded_to: int | None = None) -> None:
    """Write beside an export what its own files can't say: labels, and a reading that isn't the library's.

    labels      those of an adapter, for which its own format has no place
    padded_to   as in `StoredClassifier`
    """
    says = {} if labels is None else {"labels": list(labels)}
    hidden = run.no_padding or (causal and run.trainable_token_pos == "flexible")
    if not hidden:
        says |= {"trainable_token_pos": run.trainable_token_pos, "no_padding": False}
        says |= {"padded_to": padded_to} if padded_to else {}
    file = folder / hub.CLASSIFIER_FILE
    if says:
        write_text(file, json.dumps(says, indent=2, ensure_ascii=False) + "\n")
    else:
        file.unlink(missing_ok=True)


def read_own(file: Path) -> dict:
    """Return what `write_own` wrote; {} without such a file. Raises UserError."""
    if not file.is_file():
        return {}
    try:
        own = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error}") from None
    fits = {
        "labels": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "trainable_token_pos": lambda value: value in SETTINGS["trainable_token_pos"]["choices"],
        "no_padding": lambda value: isinstance(value, bool),
        "padded_to": lambda value: type(value) is int and value > 0,
    }
    for name, value in own.items() if isinstance(own, dict) else [("content", own)]:
        if name not in fits or not fits[name](value):
            raise UserError(f"{file} has {name} = {value!r}; what is read: {', '.join(fits)}")
    return own
