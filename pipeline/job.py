"""Which run is meant, with nothing left open, and whether it has been done before. `execute.py` does it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import model as models
from config import DEFAULTS, Run, resolve
from data.chat import task_of_file
from data.registry import get_task
from data.task import Task
from model import hub
from model.tokenizers.base import Tokenizer
from model.tokenizers.bpe import KIND_OF_MODEL, has_tokenizer_files, load_tokenizer
from peft.huggingface.read import adapter_folder
from pipeline.result import data_sha256, files_sha256, read_result, weights_sha256
from train import pick_amp, pick_device
from training import distributed
from training.checkpoints import STATES
from utils.errors import UserError
from utils.files import sweep

DEFAULT_DATASET = {"gpt2": "spam", "distilbert": "sst2", "bert": "sst2", "roberta": "sst2"}  # by the kind of model
# By the kind of model: whose vocabulary a checkpoint without one gets, and its folder in `tokenizers/`, see find_tokenizer.
VOCABULARIES = {
    "gpt2": ("gpt2-small", "gpt2"),
    "distilbert": ("distilbert-base-uncased", "bert-base-uncased"),
    "bert": ("bert-base-uncased", "bert-base-uncased"),
    "roberta": ("roberta-base", "roberta-base"),
}


@dataclass(frozen=True)
class Job:
    """A run with nothing left open, and why its model and data are what they are."""

    run: Run
    task: Task
    model_reason: str
    data_reason: str

    @property
    def directory(self) -> Path:
        return Path(self.run.output_dir)

    @cached_property
    def splits(self) -> dict[str, list]:
        """All texts of the run by split, read once. Raises UserError."""
        return self.task.splits(self.run)


def prepare(run: Run) -> Job:
    """Chooses what wasn't named, fills in the recipe, and names the run after its configuration."""
    run = normalized(run)
    check_model_is_named_once(run)
    run = with_adapter(run)
    dataset = run.dataset or default_dataset(run)
    run, model_reason = choose_model(run, get_task(dataset))
    run, data_reason = choose_dataset(run, get_task(dataset))
    task = get_task(run.dataset)
    position = {"trainable_token_pos": models.architecture(run.source).position}
    resolved = resolve(run, position | task.recipe_for(run.model or ""))
    device = pick_device(resolved.device)
    resolved = replace(resolved, device=device.type, amp=pick_amp(resolved.amp, device))
    task.check(resolved)
    distributed.check(resolved)
    if resolved.output_dir is None:
        resolved = replace(resolved, output_dir=str(Path("runs") / run_name(resolved)))
    return Job(resolved, task, model_reason, data_reason)


def normalized(run: Run) -> Run:
    """DIR and DIR/ are one, and so are FILE and ./FILE."""
    paths = {name: os.path.normpath(path) for name in ("checkpoint", "data_dir", "adapter") if (path := getattr(run, name))}
    for name in ("dataset", "auxiliary_dataset", "general_dataset"):
        path = getattr(run, name)
        paths |= {name: os.path.normpath(path)} if path and task_of_file(path) else {}
    return replace(run, **paths)


def check_model_is_named_once(run: Run) -> None:
    """Raises UserError where two are named, or the one isn't there."""
    if run.checkpoint and run.model:
        raise UserError(f"--model {run.model!r} and --checkpoint {run.checkpoint!r} both name a model; give one of them")
    if run.checkpoint and not Path(run.checkpoint).is_dir():
        raise UserError(f"--checkpoint {run.checkpoint!r} is no directory")


def with_adapter(run: Run) -> Run:
    """An adapter that was named is what trains, unless something is said to train beside it."""
    if run.adapter and "peft" not in (run.trainable_layers or "peft").split("+"):
        said = f"--trainable_layers {run.trainable_layers}"
        raise UserError(
            f"--adapter trains itself, {said} something else: leave that out, or say peft+{run.trainable_layers}"
        )
    return replace(run, trainable_layers=run.trainable_layers or "peft") if run.adapter else run


def default_dataset(run: Run) -> str:
    """The task of the kind of model that was named; GPT-2's where none was."""
    return DEFAULT_DATASET[models.architecture(run.source).model_type if run.source else "gpt2"]


def choose_model(run: Run, task: Task) -> tuple[Run, str]:
    """A named model is never replaced. Without a name: the task's published one if it can be had, else the shipped one."""
    if run.checkpoint:
        return run, "named with --checkpoint"
    if run.model:
        return replace(run, model=models.canonical_name(run.model)), "named"
    published, shipped = task.models
    if hub.cached(published) and hub.cached(published, hub.TOKENIZER_FILES):
        return replace(run, model=published), "the published default, from the Hugging Face cache"
    unreachable = hub.why_no_hub()
    if unreachable is None:
        return replace(run, model=published), "the published default, from the hub"
    return replace(run, model=shipped), f"shipped; {published} isn't in the cache and {unreachable}"


def choose_dataset(run: Run, default: Task) -> tuple[Run, str]:
    """The run with its data set named, and why that one."""
    if run.dataset:
        return run, "named"
    run = replace(run, dataset=default.name)
    if run.data_dir:
        return run, f"the published data, from {run.data_dir}"
    reason = why_no_data(default)
    if reason:
        return replace(run, dataset=default.shipped), f"shipped; {reason}"
    return run, "the published data, from the cache"


def why_no_data(task: Task, data_dir: str | None = None) -> str:
    """Empty where the task's data can be had."""
    try:
        task.read(Path(data_dir) if data_dir else None)
    except UserError as error:
        return str(error)
    return ""


def run_name(run: Run) -> str:
    """Runs of the same configuration share a directory, whichever row or flags they came from; others never do."""
    digest = hashlib.sha256(json.dumps(identity(run), sort_keys=True).encode()).hexdigest()[:8]
    model = run.model or Path(run.checkpoint).name
    dataset = Path(run.dataset).stem  # of a file
    return f"{dataset}-{model.replace('/', '--')}-{run.trainable_layers}-seed{run.seed}-{digest}"


def identity(run: Run) -> dict:
    """What makes two runs the same: everything but where the results go, what is shown of them, and what the trained
    model can be asked later too.

    A field at its default is left out, so that a field that is new leaves the names of earlier runs as they were.
    """
    return _identity(asdict(run), distributed.size())


def _identity(config: dict, processes: int) -> dict:
    apart = ("output_dir", "resume", "memory_report", "plot_loss", "save_steps", "save_total_limit", "eval_generate")
    found = {name: value for name, value in config.items() if name not in apart and value != DEFAULTS.get(name)}
    return found if processes == 1 else found | {"processes": processes}


def find_tokenizer(run: Run, vocab_size: int) -> tuple[Tokenizer, Path]:
    """The tokenizer and where it came from."""
    folder = tokenizer_folder(run)
    tokenizer = load_tokenizer(folder, KIND_OF_MODEL[models.architecture(run.source).model_type])
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model only {vocab_size}")
    return tokenizer, folder


def tokenizer_folder(run: Run) -> Path:
    """--tokenizer, else the model's own files, else the hub.

    The published models' vocabularies are also taken from `tokenizers/` in or beside the data directory, as they are for
    a checkpoint that comes without any.
    """
    folders = [Path(run.tokenizer)] if run.tokenizer else list(filter(has_tokenizer_files, tokenizer_folders(run)))
    kind = models.architecture(run.source).model_type
    if not folders:
        try:
            folders = [hub.locate(run.model or VOCABULARIES[kind][0], files=hub.TOKENIZER_FILES)]
        except UserError as error:
            looked = ", ".join(map(str, tokenizer_folders(run))) or "the cache"
            raise UserError(f"no tokenizer files in {looked}: pass --tokenizer DIR ({error})") from None
    return folders[0]


def tokenizer_folders(run: Run) -> list[Path]:
    """Where the run's vocabulary may lie: beside the model, then beside the data."""
    own = Path(run.checkpoint) if run.checkpoint else hub.local(run.model) or hub.cached(run.model, hub.TOKENIZER_FILES)
    folders = [own] if own else []
    if run.data_dir and (run.checkpoint or run.model in hub.REPOSITORIES):
        name = VOCABULARIES[models.architecture(run.source).model_type][1]
        folders += [Path(folder) / "tokenizers" / name for folder in (run.data_dir, Path(run.data_dir).parent)]
    return folders


def prepare_directory(job: Job) -> None:
    """Makes sure that results can be written, before any time is spent on them, and that a resumed run is the same run;
    and clears away what writers that were killed left."""
    if job.run.resume:
        check_resumable(job)
    if distributed.rank():  # the first of several processes looks after the directory
        return
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        probe = job.directory / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        for folder in (job.directory, job.directory / STATES):
            sweep(folder)
    except OSError as error:
        raise UserError(f"--output_dir {job.directory} can't be written: {error.strerror}") from None


def check_resumable(job: Job) -> None:
    """Raises UserError unless `--resume` can go on from what the directory holds, with the same settings and inputs."""
    reason = why_not_resumable(job)
    if reason:
        raise UserError(f"--resume: {job.directory} {reason}; train anew without --resume")


def why_not_resumable(job: Job) -> str:
    """Empty where --resume would work: the directory holds this very run, interrupted."""
    earlier = read_result(job.directory)
    if earlier is None:
        return "holds no interrupted run"
    if changed := changes_since(job, earlier):
        return f"holds a run with other values of {', '.join(changed)}"
    return "" if earlier.get("interrupted") else "holds this run, complete"


def finished(job: Job) -> dict | None:
    """The result of an earlier, complete run of exactly this configuration on exactly these weights and data."""
    result = read_result(job.directory)
    complete = result is not None and not result.get("interrupted", True)
    return result if complete and not changes_since(job, result) else None


def changes_since(job: Job, earlier: dict) -> list[str]:
    """What an earlier result was made with other values of: settings; weights, data and tokenizer, if it names them."""
    inputs = {name: value for name, value in fingerprint(job).items() if name in earlier}
    now = identity(job.run) | inputs
    before = _identity(earlier["config"], earlier.get("processes", 1)) | {name: earlier[name] for name in inputs}
    return [name for name in now | before if now.get(name) != before.get(name)]


def fingerprint(job: Job) -> dict[str, str | None]:
    """Hashes of what goes in: an earlier result counts as this run's only if they are the same."""
    inputs = {
        "weights_sha256": weights_fingerprint(job.run),
        "data_sha256": data_sha256(job.splits),
        "tokenizer_sha256": files_sha256(map(tokenizer_folder(job.run).joinpath, hub.TOKENIZER_FILES)),
    }
    return inputs | ({"adapter_sha256": adapter_fingerprint(job.run)} if job.run.adapter else {})


def adapter_fingerprint(run: Run) -> str:
    """Of the files of --adapter."""
    return files_sha256(map(adapter_folder(run.adapter).joinpath, hub.ADAPTER_FILES))


def weights_fingerprint(run: Run) -> str | None:
    """Of the weights that the run begins with; None where it draws them."""
    return None if run.weights == "random" else weights_sha256(hub.locate(run.source))
