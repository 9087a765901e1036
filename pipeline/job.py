"""Which run is meant, with nothing left open, and whether it has been done before. `execute.py` does it."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from config import Run
from data import preferences
from data.registry import get_task
from data.task import Task
from model import canonical_name, config_of, hub
from model.registry import ARCHITECTURES, architecture_of
from pipeline.inputs import Inputs
from pipeline.resolve import identity, normalized, resolve_run, run_name, with_adapter
from pipeline.result import read_result
from pipeline.stored import what_is_fixed
from training import distributed
from training.checkpoints import STATES, state_files
from training.device import pick_amp, pick_device
from utils.errors import UserError
from utils.files import remove_temporary_files


@dataclass(frozen=True)
class Job:
    """A complete run, what goes into it, and why its model and data are what they are."""

    run: Run
    task: Task
    inputs: Inputs
    model_reason: str
    data_reason: str
    fixed: dict = field(default_factory=dict)  # settings that come from a stored classifier, which no flag gave
    notes: tuple[str, ...] = ()  # what there is to say about it

    @property
    def directory(self) -> Path:
        """Return where the results go."""
        return Path(self.run.output_dir)


# --- from flags to a job


def prepare(run: Run) -> Job:
    """Choose what wasn't named, fill in the recipe, and name the run after its configuration. Raises UserError."""
    run = normalized(run)
    check_model_is_named_once(run)
    check_adapter_is_named(run)
    check_data_dir(run)
    run = with_adapter(run)
    task = get_task(run.dataset, run) if run.dataset else None
    model_config = config_of(run.source) if run.source else None
    default_task = task or get_task(default_dataset(model_config, run.objective))
    run, model_reason = choose_model(run, default_task)
    run, data_reason = choose_dataset(run, default_task)
    task = task or get_task(run.dataset)
    model_config = model_config or config_of(run.source)
    fixed, notes = what_is_fixed(run, task, model_config)
    run = resolve_run(run, task, model_config, fixed)
    device = pick_device(run.device)
    run = replace(run, device=device.type, amp=pick_amp(run.amp, device))
    task.check(run)
    distributed.check(run)
    notes += doubtful_data(run, task)
    if run.output_dir is None:
        run = replace(run, output_dir=str(Path("runs") / run_name(run, distributed.size())))
    return Job(run, task, Inputs(run, task, model_config), model_reason, data_reason, fixed, tuple(notes))


def check_model_is_named_once(run: Run) -> None:
    """Raise UserError where two models are named, or --checkpoint isn't there."""
    if run.checkpoint and run.model:
        raise UserError(f"--model {run.model!r} and --checkpoint {run.checkpoint!r} both name a model; give one of them")
    if run.checkpoint and not Path(run.checkpoint).is_dir():
        raise UserError(f"--checkpoint {run.checkpoint!r} is no directory")


def check_adapter_is_named(run: Run) -> None:
    """Raise UserError where an adapter lies in the model's directory, and no flag names one: the library would load it."""
    folder = hub.local(run.source) if run.source else None
    if folder and not run.adapter and (folder / hub.ADAPTER_FILES[0]).is_file():
        raise UserError(
            f"{folder} holds {hub.ADAPTER_FILES[0]}, so the library would load that adapter on its base model: name both, "
            f"the base with --checkpoint or --model and --adapter {folder}, or move that file away"
        )


def check_data_dir(run: Run) -> None:
    """Raise UserError where --data_dir isn't there."""
    if run.data_dir and not Path(run.data_dir).is_dir():
        raise UserError(f"--data_dir {run.data_dir} isn't there; name a directory with data sets")


def doubtful_data(run: Run, task: Task) -> list[str]:
    """Return what a flag quietly takes from what is trained or measured."""
    notes = []
    if 0 <= run.ignore_index < len(task.labels):
        notes = [f"--ignore_index {run.ignore_index}: no text of {task.labels[run.ignore_index]!r} is trained or measured"]
    for name in ("auxiliary_dataset", "general_dataset"):
        if getattr(run, name) and getattr(run, name) == run.dataset:
            notes.append(f"--{name} {run.dataset} is also what the run trains on (--dataset)")
    return notes


def default_dataset(model_config: Any | None, objective: str | None = None) -> str:
    """Return the data set for the objective and the kind of model that was named, for GPT-2 where none was."""
    if objective == preferences.DPO:
        return preferences.SHIPPED.name
    architecture = architecture_of(model_config) if model_config else ARCHITECTURES["gpt2"]
    return architecture.default_dataset


def choose_model(run: Run, task: Task) -> tuple[Run, str]:
    """Return the run with its model named, and why that one.

    A named model is never replaced. Without a name: the task's published one if it can be had, else the shipped one.
    """
    if run.checkpoint:
        return run, "named with --checkpoint"
    if run.model:
        return replace(run, model=canonical_name(run.model)), "named"
    published, shipped = task.models
    if hub.cached(published) and hub.cached(published, hub.TOKENIZER_FILES):
        return replace(run, model=published), "the published default, from the Hugging Face cache"
    unreachable = hub.why_no_hub()
    if unreachable is None:
        return replace(run, model=published), "the published default, from the hub"
    return replace(run, model=shipped), f"shipped; {published} isn't in the cache and {unreachable}"


def choose_dataset(run: Run, default: Task) -> tuple[Run, str]:
    """Return the run with its data set named, and why that one."""
    if run.dataset:
        return run, f"named; {default.kind}" if default.kind else "named"
    run = replace(run, dataset=default.name)
    if default is preferences.SHIPPED:
        return run, "shipped, as --objective dpo needs pairs of answers"
    if run.data_dir:
        return run, f"the published data, from {run.data_dir}"
    reason = why_no_data(default)
    if reason:
        return replace(run, dataset=default.shipped), f"shipped; {reason}"
    return run, "the published data, from the cache"


def why_no_data(task: Task, data_dir: str | None = None) -> str:
    """Return why the task's data can't be had, or "" where they can."""
    try:
        task.read(Path(data_dir) if data_dir else None)
    except UserError as error:
        return str(error)
    return ""


# --- the run's directory, and what an earlier run left there


def prepare_directory(job: Job) -> None:
    """Make sure, before any time is spent, that results can be written and that a resumed run is the same run. Raises
    UserError. Clears away what killed writers left."""
    if job.run.resume and (reason := why_not_resumable(job)):
        raise UserError(f"--resume: {job.directory} {reason}; train anew without --resume")
    if distributed.rank():  # the first of several processes looks after the directory
        return
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        probe = job.directory / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        for folder in (job.directory, job.directory / STATES):
            remove_temporary_files(folder)
    except OSError as error:
        raise UserError(f"--output_dir {job.directory} can't be written: {error.strerror}") from None


def why_not_resumable(job: Job) -> str:
    """Return why --resume can't go on, or "" where the directory holds this very run, interrupted."""
    earlier = read_result(job.directory)
    if earlier is None:
        return "holds no interrupted run"
    if changed := changes_since(job, earlier):
        return f"holds a run with other values of {', '.join(changed)}"
    return "" if earlier.get("interrupted") else "holds this run, complete"


def what_is_replaced(job: Job) -> str:
    """Return what is lost when a run begins anew in a directory that holds one of other settings, or an interrupted one."""
    earlier = read_result(job.directory)
    if earlier is None:
        return ""
    changed = changed_settings(job, earlier)
    if earlier.get("interrupted"):
        goes_on = not changed and state_files(job.directory) and not why_not_resumable(job)
        advice = ", which --resume would have gone on with" if goes_on else ""
        return f"{job.directory} held an interrupted run{advice}; it is replaced"
    return f"{job.directory} held a run with other values of {', '.join(changed)}; it is replaced" if changed else ""


def finished(job: Job) -> dict | None:
    """Return the result of an earlier, complete run of exactly this configuration on exactly these inputs, or None."""
    result = read_result(job.directory)
    complete = result is not None and not result.get("interrupted", True)
    return result if complete and not changes_since(job, result) else None


def changes_since(job: Job, earlier: dict) -> list[str]:
    """Return the names of the settings and inputs that differ from those of an earlier result."""
    hashes = job.inputs.hashes
    return changed_settings(job, earlier) + [name for name in hashes if name in earlier and hashes[name] != earlier[name]]


def changed_settings(job: Job, earlier: dict) -> list[str]:
    """Return the names of the settings that differ from those of an earlier result."""
    now = identity(asdict(job.run), distributed.size())
    before = identity(earlier["config"], earlier.get("processes", 1))
    return [name for name in now | before if now.get(name) != before.get(name)]
