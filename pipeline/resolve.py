"""What a run's settings come to. Pure: a Run, a Task and facts about the model in, a complete Run out; nothing is read."""

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from config import DEFAULTS, Run, resolve
from data.chat import task_of_file
from data.task import Task
from model.registry import architecture_of
from utils.errors import UserError

# What two runs may differ in and still be the same: where the results go, what is shown of them, how often they are saved,
# and what a trained model can be asked later too.
NO_PART_OF_IDENTITY = (
    *("output_dir", "resume", "verbose", "memory_report", "plot_loss", "save_steps", "save_total_limit", "eval_generate"),
)


def normalized(run: Run) -> Run:
    """Return the run with its paths in one spelling: DIR for DIR/, FILE for ./FILE."""
    paths = {name: getattr(run, name) for name in ("checkpoint", "data_dir", "adapter")}
    datasets = {name: getattr(run, name) for name in ("dataset", "auxiliary_dataset", "general_dataset")}
    paths |= {name: path for name, path in datasets.items() if path and task_of_file(path)}  # others are no paths but names
    return replace(run, **{name: os.path.normpath(path) for name, path in paths.items() if path})


def with_adapter(run: Run) -> Run:
    """Return the run with the method "peft" where it names an adapter. Raises UserError where it names another method."""
    if not run.adapter:
        return run
    if run.trainable_layers is None:
        return replace(run, trainable_layers="peft")
    if "peft" not in run.trainable_layers.split("+"):
        raise UserError(
            f"--adapter trains itself, --trainable_layers {run.trainable_layers} something else: leave that out, or say "
            f"peft+{run.trainable_layers}"
        )
    return run


def resolve_run(run: Run, task: Task, model_config: Any, fixed: dict | None = None) -> Run:
    """Return the run with every setting filled in: by the run itself, else by what its classifier was trained to read, else
    the task's recipe, else the defaults.

    model_config    the configuration of the run's model: what it is, whichever name or path it was given by
    fixed           what a stored classifier fixes (`pipeline/stored.py`)
    """
    return resolve(run, recipe_of(task, model_config) | (fixed or {}))


def recipe_of(task: Task, model_config: Any) -> dict:
    """Return the task's recipe for this model; a classifier of a kind reads where that kind does."""
    return {"trainable_token_pos": architecture_of(model_config).position} | task.recipe_for(model_config)


def run_name(run: Run, processes: int) -> str:
    """Return the name of the run's directory. The same configuration has the same name, whichever flags it came from."""
    digest = hashlib.sha256(json.dumps(identity(asdict(run), processes), sort_keys=True).encode()).hexdigest()[:8]
    model = run.model or Path(run.checkpoint).name
    dataset = Path(run.dataset).stem  # of a file
    return f"{dataset}-{model.replace('/', '--')}-{run.trainable_layers}-seed{run.seed}-{digest}"


def identity(config: dict, processes: int) -> dict:
    """Return what makes two runs the same, from the fields of a complete Run.

    A field at its default is left out, so that a new field leaves the names of earlier runs as they were.
    """
    chosen = {
        name: value for name, value in config.items() if name not in NO_PART_OF_IDENTITY and value != DEFAULTS.get(name)
    }
    return chosen if processes == 1 else chosen | {"processes": processes}
