"""What a run's settings come to: a Run, a Task and facts about the model in, a complete Run out. No file is read."""

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from config import DATASETS, DEFAULTS, PATHS, Run, resolve
from data.chat import task_of_file
from data.registry import is_path
from data.task import Task
from model import hub
from model.registry import architecture_of
from utils.errors import UserError

# What two runs may differ in and still be the same: where the results go, what is shown of them, how often they are saved,
# and what a trained model can be asked later too.
NO_PART_OF_IDENTITY = (
    *("output_dir", "resume", "verbose", "memory_report", "plot_loss", "log", "save_steps", "save_total_limit"),
    "eval_generate",
)


def normalized(run: Run) -> Run:
    """Return the run with its paths in one spelling: DIR for DIR/, FILE for ./FILE."""
    return replace(run, **{name: os.path.normpath(path) for name, path in paths_of(asdict(run)).items()})


def paths_of(config: dict) -> dict[str, str]:
    """Return the inputs among the fields of a Run that are paths. A repository on the hub, owner/name, may be among them:
    it reads like a path in its shortest spelling."""
    given = {name: value for name, value in config.items() if name in PATHS and value and isinstance(value, str)}
    names = {name for name in DATASETS if name in given and not (task_of_file(given[name]) or is_path(given[name]))}
    return {name: path for name, path in given.items() if name not in (*names, "model", "output_dir")}


def from_here(path: str) -> str:
    """Return a path as seen from the current directory, however it was spelled: DIR for ./DIR/, ~/work/DIR or /work/DIR."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return os.path.abspath(path)


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
    same = identity(asdict(run), processes)
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]
    dataset = Path(run.dataset).stem  # of a file
    model = Path(os.path.abspath(run.checkpoint)).name if run.checkpoint else same["model"]
    return f"{dataset}-{model.replace('/', '--')}-{run.trainable_layers}-seed{run.seed}-{digest}"


def identity(config: dict, processes: int) -> dict:
    """Return what makes two runs the same, from the fields of a complete Run.

    A field at its default is left out, so that a new field leaves the names of earlier runs as they were.
    """
    config = config | {name: from_here(path) for name, path in paths_of(config).items()}
    if isinstance(model := config.get("model"), str) and from_here(model) not in (*hub.REPOSITORIES, *hub.pocket_names()):
        config["model"] = from_here(model)  # a directory, named with --model
    chosen = {
        name: value for name, value in config.items() if name not in NO_PART_OF_IDENTITY and value != DEFAULTS.get(name)
    }
    return chosen if processes == 1 else chosen | {"processes": processes}
