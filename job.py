"""One `Run` from beginning to end: texts -> token ids -> batches -> model -> attach -> fit -> evaluate -> result.json."""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

import model as models
import peft
from data import Task, TextExample, get_task
from data.batching import Batches, Example, published_order, seeded_order
from errors import UserError
from model import hub
from model.tokenizer import GPT2Tokenizer, has_tokenizer_files
from model.weights import read_safetensors, write_safetensors
from record import (
    count_parameters,
    data_sha256,
    device_name,
    git_state,
    peak_memory_bytes,
    read_result,
    reset_peak_memory,
    versions,
    weights_sha256,
    write_json,
)
from run import Run, resolve, to_flags
from train import Fitted, Metrics, evaluate, fit, pick_amp, pick_device

DEFAULT_MODEL, SHIPPED_MODEL = "gpt2-small", "gpt2-pocket"
DEFAULT_DATASET = "spam"


@dataclass(frozen=True)
class Job:
    """A run with nothing left open, and why its model and data are what they are."""

    run: Run
    task: Task
    model_reason: str
    data_reason: str

    @property
    def model_source(self) -> str:
        return self.run.checkpoint or self.run.model

    @property
    def directory(self) -> Path:
        return Path(self.run.output_dir)

    def read(self) -> dict[str, list[TextExample]]:
        return self.task.read(Path(self.run.data_dir) if self.run.data_dir else None)


def prepare(run: Run) -> Job:
    """Chooses what wasn't named, fills in the recipe, and names the run after its configuration."""
    paths = {name: os.path.normpath(path) for name in ("checkpoint", "data_dir") if (path := getattr(run, name))}
    run, model_reason = choose_model(replace(run, **paths))  # DIR and DIR/ are one
    run, data_reason = choose_dataset(run)
    task = get_task(run.dataset)
    resolved = resolve(run, task.recipe_for(run.model or ""))
    device = pick_device(resolved.device)
    resolved = replace(resolved, device=device.type, amp=pick_amp(resolved.amp, device))
    if resolved.output_dir is None:
        resolved = replace(resolved, output_dir=str(Path("runs") / run_name(resolved)))
    return Job(resolved, task, model_reason, data_reason)


def choose_model(run: Run) -> tuple[Run, str]:
    """A named model is never replaced. Without a name: the published default where it can be had, else the shipped one."""
    if run.checkpoint and run.model:
        raise UserError(f"--model {run.model!r} and --checkpoint {run.checkpoint!r} both name a model; give one of them")
    if run.checkpoint:
        if not Path(run.checkpoint).is_dir():
            raise UserError(f"--checkpoint {run.checkpoint!r} is no directory")
        return run, "named with --checkpoint"
    if run.model:
        return replace(run, model=models.canonical_name(run.model)), "named"
    if hub.cached(DEFAULT_MODEL) and hub.cached(DEFAULT_MODEL, hub.TOKENIZER_FILES):
        return replace(run, model=DEFAULT_MODEL), "the published default, from the Hugging Face cache"
    unreachable = hub.why_no_hub()
    if unreachable is None:
        return replace(run, model=DEFAULT_MODEL), "the published default, from the hub"
    return replace(run, model=SHIPPED_MODEL), f"shipped; {DEFAULT_MODEL} isn't in the cache and {unreachable}"


def choose_dataset(run: Run) -> tuple[Run, str]:
    if run.dataset:
        return run, "named"
    run, default = replace(run, dataset=DEFAULT_DATASET), get_task(DEFAULT_DATASET)
    if run.data_dir:
        return run, f"the published data, from {run.data_dir}"
    try:
        default.read(None)
    except UserError as error:
        return replace(run, dataset=default.shipped), f"shipped; {error}"
    return run, "the published data, from the cache"


def run_name(run: Run) -> str:
    """Runs of the same configuration share a directory, whichever row or flags they came from; others never do."""
    digest = hashlib.sha256(json.dumps(identity(run), sort_keys=True).encode()).hexdigest()[:8]
    model = run.model or Path(run.checkpoint).name
    return f"{run.dataset}-{model.replace('/', '--')}-{run.trainable_layers}-seed{run.seed}-{digest}"


def identity(run: Run) -> dict:
    """What makes two runs the same: everything but where the results go and whether it started anew."""
    return {name: value for name, value in asdict(run).items() if name not in ("output_dir", "resume")}


def find_tokenizer(run: Run, vocab_size: int) -> tuple[GPT2Tokenizer, Path]:
    """The tokenizer and where it came from: --tokenizer, else the model's own files, else the hub.

    The published models share one vocabulary, which is also taken from `tokenizers/gpt2` in or beside the data directory,
    as it is for a checkpoint that comes without any.
    """
    own = [Path(run.tokenizer)] if run.tokenizer else filter(has_tokenizer_files, tokenizer_folders(run))
    folder = next(iter(own), None)
    if folder is None:
        try:
            folder = hub.locate(run.model or DEFAULT_MODEL, files=hub.TOKENIZER_FILES)
        except UserError as error:
            looked = ", ".join(map(str, tokenizer_folders(run))) or "the cache"
            raise UserError(f"no tokenizer files in {looked}: pass --tokenizer DIR ({error})") from None
    tokenizer = GPT2Tokenizer.from_directory(folder)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model only {vocab_size}")
    return tokenizer, folder


def tokenizer_folders(run: Run) -> list[Path]:
    own = Path(run.checkpoint) if run.checkpoint else hub.local(run.model) or hub.cached(run.model, hub.TOKENIZER_FILES)
    folders = [own] if own else []
    if run.data_dir and (run.checkpoint or run.model in hub.REPOSITORIES):
        folders += [Path(folder) / "tokenizers" / "gpt2" for folder in (run.data_dir, Path(run.data_dir).parent)]
    return folders


def build_model(run: Run, n_labels: int) -> nn.Module:
    """The model with its classifier and the method attached, drawn from the run's seed in the published script's order:
    body, head (from a fresh generator), LoRA's matrices (from where the head left off)."""
    model = models.from_pretrained(
        run.checkpoint or run.model,
        head="classifier",
        num_labels=n_labels,
        random_weights=run.weights == "random",
        position=run.trainable_token_pos,
        average=run.average_embeddings,
        seed=run.seed,
        dropout=run.dropout,
        **({"causal": False} if run.disable_causal_mask else {}),  # encoders have no such mask
    )
    return peft.attach(model, peft.method_of(run))


def padded_length(run: Run, longest: int, limit: int) -> int:
    """--context_length as a number of tokens; every text is cut to it."""
    if run.context_length == "longest_training_example":
        length, what = longest, f"the longest training example has {longest} tokens"
    elif run.context_length == "model_context_length":
        length, what = limit, ""
    else:
        try:
            length = int(run.context_length)
        except ValueError:
            length = 0
        what = f"--context_length is {length}"
        if length < 1:
            raise UserError(
                f"--context_length is {run.context_length!r}; choose longest_training_example, model_context_length "
                f"or a number of tokens from 1 to {limit}"
            )
    if length > limit:
        raise UserError(f"{what}, the model's context {limit}; choose --context_length {limit} or less")
    return length


def make_batches(job: Job, tokenizer: GPT2Tokenizer, limit: int) -> dict[str, Batches]:
    """The splits as batches: "train" in its training order, "train_in_order", "validation" and "test" for evaluation."""
    run, texts = job.run, job.read()
    ids = {name: [tokenizer.encode(example.text) for example in examples] for name, examples in texts.items()}
    length = padded_length(run, max(map(len, ids["train"])), limit)
    splits = {
        name: [Example(one[:length], example.label) for one, example in zip(ids[name], texts[name], strict=True)]
        for name in texts
    }
    pad_to = None if run.no_padding else length
    n = len(splits["train"])
    published = run.data_order == "published"
    order = published_order(n, run.seed, run.batch_size) if published else seeded_order(n, run.seed)
    batches = {
        name: Batches(examples, run.eval_batch_size, tokenizer.end_of_text, pad_to) for name, examples in splits.items()
    }
    batches["train_in_order"] = batches["train"]
    batches["train"] = Batches(splits["train"], run.batch_size, tokenizer.end_of_text, pad_to, order)
    return batches


def execute(job: Job, argv: list[str] | None = None) -> dict:
    """Trains, evaluates, and fills the run's directory. Returns what `result.json` holds."""
    run, device, directory = job.run, torch.device(job.run.device), job.directory
    started = time.perf_counter()
    prepare_directory(job)
    reset_peak_memory(device)
    inputs = fingerprint(job)
    model = build_model(run, len(job.task.labels))
    tokenizer, tokenizer_folder = find_tokenizer(run, model.config.vocab_size)
    batches = make_batches(job, tokenizer, model.config.context_length)
    trainable, total = count_parameters(model)
    print_header(job, tokenizer_folder, trainable, total, batches)
    trained_file, state_file = directory / "trained.safetensors", directory / "training_state.safetensors"
    if run.resume:
        peft.restore(model, read_safetensors(trained_file)[0])
    else:
        state_file.unlink(missing_ok=True)  # an earlier run's, as the next: they would tell of other tensors
        (directory / "result.json").unlink(missing_ok=True)
    metrics = Metrics(directory / "metrics.jsonl", append=run.resume)
    with advice_when_out_of_memory(run):
        fitted = fit(model.to(device), batches["train"], run, metrics, batches["validation"], state_file)
        write_safetensors(peft.export(model), trained_file, {"format": "pt"})
        if not fitted.interrupted:
            state_file.unlink(missing_ok=True)
        accuracies = {} if fitted.interrupted else final_accuracies(peft.merge(model), batches, run, metrics, fitted)
    metrics.close()
    result = {
        "model": job.model_source,
        "model_reason": job.model_reason,
        "weights": run.weights,
        "tokenizer": str(tokenizer_folder),
        "dataset": run.dataset,
        "data_reason": job.data_reason,
        "method": run.trainable_layers,
        "seed": run.seed,
        **{f"{split}_accuracy": accuracies.get(split) for split in ("train", "validation", "test")},
        "steps": fitted.steps,
        "interrupted": fitted.interrupted,
        "train_seconds": round(fitted.seconds, 3),
        "total_seconds": round(time.perf_counter() - started, 3),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": device_name(device),
        "amp": run.amp,
        "argv": argv if argv is not None else to_flags(run),
        "config": asdict(run),
        **inputs,
        "versions": versions(),
        "git": git_state(),
    }
    write_json(directory / "result.json", result)
    return result


def fingerprint(job: Job) -> dict[str, str | None]:
    """Hashes of what goes in: an earlier result counts as this run's only if they are the same."""
    weights = None if job.run.weights == "random" else weights_sha256(hub.locate(job.model_source))
    return {"weights_sha256": weights, "data_sha256": data_sha256(job.read())}


@contextlib.contextmanager
def advice_when_out_of_memory(run: Run):
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            f"out of memory on {run.device}: choose a --batch_size below {run.batch_size} with more "
            f"--accumulation_steps, an --eval_batch_size below {run.eval_batch_size}, or a smaller --model"
        ) from None


def final_accuracies(model: nn.Module, batches: dict[str, Batches], run: Run, metrics: Metrics, fitted: Fitted) -> dict:
    accuracies = {}
    for split, name in (("train", "train_in_order"), ("validation", "validation"), ("test", "test")):
        measured = evaluate(model, batches[name], run.amp, run.ignore_index)
        metrics.write(step=fitted.steps, epoch=run.num_epochs, split=f"final {split}", **measured)
        accuracies[split] = measured["accuracy"]
    return accuracies


def print_header(job: Job, tokenizer: Path, trainable: int, total: int, batches: dict[str, Batches]) -> None:
    """Everything that was decided, before anything is trained."""
    run, method = job.run, peft.method_of(job.run)
    width = f"{batches['train'].pad_to} tokens each" if batches["train"].pad_to else "no padding"
    sizes = " / ".join(str(len(batches[name].examples)) for name in ("train", "validation", "test"))
    print(f"model    {job.model_source}, {run.weights} weights ({job.model_reason}); tokenizer from {tokenizer}")
    print(f"dataset  {run.dataset}, {sizes} texts to train / validate / test, {width} ({job.data_reason})")
    print(f"method   {method}: {trainable:,} of {total:,} parameters train")
    if hasattr(method, "scale"):
        print(f"         the LoRA product is multiplied by {method.scale:g}")
    settings = " ".join(f"{name}={value}" for name, value in asdict(run).items() if value is not None)
    print(f"settings {settings}", flush=True)


def prepare_directory(job: Job) -> None:
    """Makes sure that results can be written, before any time is spent on them, and that a resumed run is the same run."""
    if job.run.resume:
        check_resumable(job)
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        probe = job.directory / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output_dir {job.directory} can't be written: {error.strerror}") from None


def check_resumable(job: Job) -> None:
    reason = why_not_resumable(job)
    if reason:
        raise UserError(f"--resume: {job.directory} {reason}; train anew without --resume")


def why_not_resumable(job: Job) -> str:
    """Empty where --resume would work: the directory holds this very run, interrupted."""
    earlier = read_result(job.directory)
    if earlier is None or not (job.directory / "training_state.safetensors").is_file():
        return "holds no interrupted run"
    changed = changes_since(job, earlier)
    return f"holds a run with other values of {', '.join(changed)}" if changed else ""


def finished(job: Job) -> dict | None:
    """The result of an earlier, complete run of exactly this configuration on exactly these weights and data."""
    result = read_result(job.directory)
    complete = result is not None and not result.get("interrupted", True)
    return result if complete and not changes_since(job, result) else None


def changes_since(job: Job, earlier: dict) -> list[str]:
    """What an earlier result was made with other values of: settings, weights, data."""
    now = identity(job.run) | fingerprint(job)
    return [name for name, value in now.items() if (earlier | earlier["config"]).get(name) != value]
