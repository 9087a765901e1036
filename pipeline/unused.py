"""Flags that a run makes no use of. Each is an error that names the flag and what would use it.

Which methods and which kind of task read a setting stands beside the setting (config.py). A method of a user's own may read
any of them.
"""

from collections.abc import Sequence
from dataclasses import replace

from config import CLASSIFICATION, DIALOGUES, FREEZING, METHODS, SETTINGS, Run, explicit, override, resolve
from data.chat import ChatTask
from data.preferences import DPO
from data.registry import get_task
from data.task import Task
from model import config_of
from pipeline.job import default_dataset
from pipeline.resolve import with_adapter
from published.plans import PLANS
from utils.errors import UserError

ADDED = {*METHODS} - {*FREEZING, "peft"}  # methods beside which a language model's head stays as it is


def refuse_unused(overrides: Run, run: Run, task: Task) -> None:
    """Raise UserError for the first flag of which the complete run makes no use."""
    for name in explicit(overrides):
        if reason := why_unused(name, run, task):
            raise UserError(reason)


def refuse_unused_in_rows(overrides: Run, runs: Sequence[Run]) -> None:
    """Raise UserError for the first flag of which none of a table's runs makes use."""
    complete = [completed(run) for run in runs]
    for name in explicit(overrides):
        reasons = [why_unused(name, *one) for one in complete]
        if reasons and all(reasons):
            others = "; no other row that was asked for uses it" if len(reasons) > 1 else ""
            raise UserError(reasons[0] + others)


def without_unused(run: Run, overrides: Run) -> Run:
    """Return the run without those of the overrides of which it makes no use."""
    complete, task = completed(run)
    unused = [name for name in explicit(overrides) if why_unused(name, complete, task)]
    return replace(run, **dict.fromkeys(unused))


def completed(run: Run) -> tuple[Run, Task]:
    """Return the run with its method filled in, and its task. What depends on the machine stays open."""
    run = with_adapter(run)
    task = get_task(run.dataset or default_dataset(config_of(run.source) if run.source else None, run.objective), run)
    return resolve(run, task.recipe), task


def why_unused(name: str, run: Run, task: Task) -> str:
    """Return why the run makes no use of a setting, or "" where it does."""
    about, kind = SETTINGS[name], DIALOGUES if isinstance(task, ChatTask) else CLASSIFICATION
    if about["task"] not in ("", kind):
        lacks = "has no classes" if kind == DIALOGUES else "has none"
        return f"--{name} is about {about['task']}, and {task.name} {lacks}"
    if name == "train_head" and kind == DIALOGUES and ADDED.issuperset(run.trainable_layers.split("+")):
        return f"--train_head is about classification; on dialogues {run.trainable_layers} leaves the head as it is"
    if reason := why_cancelled(name, run):
        return reason
    if name == "depth" or (run.stages and run.stages not in PLANS):  # the model is cut to it before any stage
        return ""
    stages = PLANS[run.stages](2) if run.stages else [Run()]
    if not (kept := stages_that_keep(name, run, stages)):
        return f"--{name} is not used by --stages {run.stages}, which sets it for each stage"
    if any(reads(override(run, stage).trainable_layers, name) for stage in kept):
        return ""
    user = f"--stages {run.stages}" if run.stages else f"--trainable_layers {run.trainable_layers}"
    return f"--{name} is not used by {user}; it belongs to {', '.join(about['methods'])}"


def why_cancelled(name: str, run: Run) -> str:
    """Return which other setting, or which model, leaves a setting nothing to do, or ""."""
    if name == "dpo_beta" and run.objective != DPO:
        return f"--dpo_beta is not used by --objective {run.objective}; it belongs to {DPO}"
    if name == "lora_alpha" and run.lora_alpha == 0:
        return "--lora_alpha is 0, which multiplies all that LoRA learns by 0; choose another value"
    if name == "disable_causal_mask" and run.source and not config_of(run.source).causal:
        return f"--disable_causal_mask is not used by {run.source}, an encoder, which has no causal mask"
    return ""


def stages_that_keep(name: str, run: Run, stages: list[Run]) -> list[Run]:
    """Return the stages of a plan that leave a setting of the run as it is, or set it to the same value.

    stages    what each sets on top of the run, for a model of any number of blocks
    """
    values = [getattr(stage, name) for stage in stages]
    given = getattr(run, name)
    if name != "trainable_layers" and len({*values} - {None}) > 1:  # such as the block that is each stage's own
        given = None
    return [stage for stage, value in zip(stages, values, strict=True) if value in (None, given)]


def reads(methods: str, name: str) -> bool:
    """Return whether one of the methods, joined as for --trainable_layers, reads the setting."""
    readers = SETTINGS[name]["methods"]
    return not readers or any(method in readers or method not in METHODS for method in methods.split("+"))
