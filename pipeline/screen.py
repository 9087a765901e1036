"""What a run prints: before the training what was chosen and why, after it what came out and what to type next.

A plain run takes at most twelve lines. The rest is in `result.json`; `--verbose` prints every setting.
"""

import shlex
from dataclasses import asdict
from pathlib import Path

from torch import nn

from config import DEFAULTS, FREEZING, LIKE_LORA, METHODS, SETTINGS, Run
from data.batching import Batches
from data.chat import ChatTask
from data.preferences import DPO
from model.transformer import Transformer
from peft import LoRA, method_of
from pipeline.answers import SCORES
from pipeline.job import Job
from pipeline.resolve import recipe_of
from pipeline.result import count_parameters, drawn_parts
from training import distributed

LONGEST = 360  # characters of a line, unless --verbose
PURPOSES = {"train": "train", "validation": "validate", "test": "test", "general": "test what is kept"}
# Settings that lines of their own show, or that change nothing but what is shown.
NOT_COMPARED = (
    *("model", "checkpoint", "dataset", "data_dir", "objective", "device", "amp"),
    *("output_dir", "resume", "verbose"),
)
# Methods whose result a published model can hold: they train its own layers, or are folded into them.
EXPORTED = {*FREEZING, *LIKE_LORA, "ia3"}


def print_header(job: Job, model: Transformer, stages: list[Run], batches: dict[str, Batches], notes: list[str]) -> None:
    """Print everything that was decided, before anything is trained.

    model    with the method of the first stage attached
    """
    lines = [model_line(job, model), dataset_line(job, batches), *job.task.said]
    lines += [method_line(stages, model), training_line(job.run)]
    if changes := changed_settings(job):
        lines.append(f"changed  {', '.join(changes)}")
    if distributed.size() > 1:
        lines.append(processes_line(job.run))
    if notes:
        lines.append(f"note     {'; '.join(notes)}")
    if job.run.verbose:
        settings = {name: value for name, value in asdict(job.run).items() if value is not None}
        lines.append("settings " + " ".join(f"{name}={value}" for name, value in settings.items()))
    for line in lines:
        print(line if job.run.verbose else shortened(line), flush=True)


def shortened(line: str) -> str:
    """Return a line cut to LONGEST characters."""
    more = " ... (--verbose)"
    return line if len(line) <= LONGEST else line[: LONGEST - len(more)] + more


def model_line(job: Job, model: Transformer) -> str:
    """Return which model it is, why, and what no file has of it. The tokenizer is named where it isn't the model's own."""
    run, folder = job.run, job.inputs.tokenizer_folder
    borrowed = run.tokenizer or (run.checkpoint and folder != Path(run.checkpoint))
    tokenizer = f"; tokenizer from {folder}" if borrowed or run.verbose else ""
    drawn = drawn_parts(model, run.weights) if run.weights == "pretrained" else []
    lacks = f"; in no file, so drawn: {', '.join(drawn)}" if drawn else ""
    return f"model    {run.source}, {run.weights} weights ({job.model_reason}){lacks}{tokenizer}"


def dataset_line(job: Job, batches: dict[str, Batches]) -> str:
    """Return which data they are, how many texts, how long, and why these."""
    pad_to = batches["train"].pad_to
    width = f"{pad_to} tokens each" if pad_to else "no padding"
    sizes = {split: str(len(batches[split].examples)) for split in job.task.evaluated if split in batches}
    what = "pairs" if job.run.objective == DPO else "texts"
    texts = f"{' / '.join(sizes.values())} {what} to {' / '.join(PURPOSES[split] for split in sizes)}"
    return f"dataset  {job.run.dataset}, {texts}, {width} ({job.data_reason})"


def method_line(stages: list[Run], model: nn.Module) -> str:
    """Return the method, how much of the model trains, and the settings that the method reads."""
    run, method = stages[0], method_of(stages[0])
    trainable, total = count_parameters(model)
    name = run.trainable_layers if set(run.trainable_layers.split("+")) <= set(METHODS) else str(method)
    counts = f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%})"
    if len(stages) > 1:
        return f"method   {len(stages)} stages, the first {name}: {counts}"
    settings = [f"{one} {value:g}" if isinstance(value, float) else f"{one} {value}" for one, value in method_settings(run)]
    scales = {part.scale for part in getattr(method, "methods", [method]) if isinstance(part, LoRA)}
    settings += [f"the LoRA product is multiplied by {scale:g}" for scale in scales]
    return "; ".join([f"method   {name}: {counts}", *([", ".join(settings)] if settings else [])])


def method_settings(run: Run) -> list[tuple[str, object]]:
    """Return the settings that the run's methods read, as far as they say anything: neither 0 nor the default."""
    methods = set(run.trainable_layers.split("+"))
    values = {name: getattr(run, name) for name, about in SETTINGS.items() if methods & {*about["methods"]}}
    return [(name, value) for name, value in values.items() if value and value != DEFAULTS.get(name)]


def training_line(run: Run) -> str:
    """Return how long and how fast the run trains, and where."""
    if run.num_epochs == 0:
        return f"training none (--num_epochs 0); seed {run.seed}, on {run.device}, amp {run.amp}"
    steps = f", at most {run.max_steps} steps" if run.max_steps else ""
    objective = f", DPO with beta {run.dpo_beta:g}" if run.objective == DPO else ""
    accumulated = f" x {run.accumulation_steps}" if run.accumulation_steps > 1 else ""
    return (
        f"training {run.num_epochs} epoch{'s' * (run.num_epochs > 1)}{steps}, batch size {run.batch_size}{accumulated}, "
        f"learning rate {run.learning_rate:g} ({run.lr_scheduler_type}), weight decay {run.weight_decay:g}, "
        f"seed {run.seed}, on {run.device}, amp {run.amp}{objective}"
    )


def changed_settings(job: Job) -> list[str]:
    """Return the settings that differ from the task's recipe for this model, each with the recipe's value."""
    recipe = DEFAULTS | recipe_of(job.task, job.inputs.model_config) | job.fixed
    values = {name: value for name, value in asdict(job.run).items() if name not in NOT_COMPARED}
    return [
        f"{name} {shown(value)}" + (f" (recipe: {shown(recipe[name])})" if name in recipe else "")
        for name, value in values.items()
        if value != recipe.get(name)
    ]


def shown(value: object) -> str:
    """Return a setting's value as text; a switch is on or off."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def processes_line(run: Run) -> str:
    """Return how several processes share the work."""
    n_processes = distributed.size()
    kind = "each has a part of the model" if run.fsdp else "each has the model"
    batch = f"--batch_size {run.batch_size} each, so {n_processes * run.batch_size} in all"
    return f"in {n_processes:>2} processes with {batch}; {kind}"


def print_result(job: Job, result: dict) -> None:
    """Print what came of a run, where it lies, and what to type next."""
    if result["interrupted"]:
        print(f"saved    {job.directory}/")
        print(f"interrupted after {result['steps']} steps; what was trained is saved, --resume goes on from there")
        return
    print_measures(result, (*job.task.metrics, *SCORES), job.task.evaluated)
    for warning in result.get("warnings", ()):
        print(f"warning  {warning}")
    rate = f" ({result['tokens_per_second']:,.0f} tokens/s)" if result.get("tokens_per_second") else ""
    print(f"time     {result['train_seconds']:.0f} s training{rate}, {result['total_seconds']:.0f} s in all")
    print(f"saved    {job.directory}/")
    print(f"next     {next_command(job)}")


def print_measures(result: dict, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    """Print a line per measure that the result has of any split."""
    for name in names:
        values = {split: result.get(f"{split}_{name}") for split in splits}
        if any(value is not None for value in values.values()):
            form = ".4g" if name in ("loss", "perplexity", "margin", "gap", "gap_before") else ".2%"
            text = ", ".join(f"{split} {value:{form}}" for split, value in values.items() if value is not None)
            print(f"{name:<10} {text}" if form == ".4g" else f"{name:<8} {text}")


def next_command(job: Job) -> str:
    """Return a command that does something with the trained model: ask it, hand it on, or look at its training."""
    directory = shlex.quote(str(job.directory))
    if isinstance(job.task, ChatTask):
        return f'python experiments.py --generate "Who are you?" --run_dir {directory}'
    if job.task.reads_columns:
        texts = '"A text"' if job.inputs.splits["train"][0].pair is None else '"A text" "and its pair"'
        return f"python experiments.py --predict {texts} --run_dir {directory}"
    if can_be_exported(job):
        return f"python experiments.py --export_model exported --run_dir {directory}"
    return f"python -m pipeline.plots {directory} --csv"


def can_be_exported(job: Job) -> bool:
    """Return whether a published classifier can hold what the run trains, and reads the same position."""
    run, causal = job.run, job.inputs.model_config.causal
    same_position = not run.average_embeddings and (run.trainable_token_pos != "first") == causal
    whole = not run.depth and not run.disable_causal_mask
    return whole and same_position and set(run.trainable_layers.split("+")) <= EXPORTED
