"""One `Run` from beginning to end: texts -> token ids -> batches -> model -> attach -> fit -> evaluate -> result.json."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import model as models
import peft
from data import Task, get_task
from data.batching import Batches, Example, published_order, seeded_order
from errors import UserError
from model import hub
from model.tokenizer import GPT2Tokenizer, has_tokenizer_files
from model.weights import read_safetensors, write_safetensors
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


def prepare(run: Run) -> Job:
    """Chooses what wasn't named, fills in the recipe, and names the run after its configuration."""
    run, model_reason = choose_model(run)
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
    if hub.cached(DEFAULT_MODEL):
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


def find_tokenizer(run: Run) -> GPT2Tokenizer:
    """--tokenizer, else the checkpoint's own files, else those of a `tokenizers/gpt2` in or beside the data directory,
    else the hub's."""
    if run.tokenizer:
        return GPT2Tokenizer.from_directory(run.tokenizer)
    candidates = [Path(run.checkpoint)] if run.checkpoint else [hub.POCKET_DIR / run.model]
    if run.data_dir:
        candidates += [Path(folder) / "tokenizers" / "gpt2" for folder in (run.data_dir, Path(run.data_dir).parent)]
    for candidate in candidates:
        if has_tokenizer_files(candidate):
            return GPT2Tokenizer.from_directory(candidate)
    try:
        return GPT2Tokenizer.from_directory(hub.locate(run.model or DEFAULT_MODEL, files=hub.TOKENIZER_FILES))
    except UserError as error:
        looked = ", ".join(map(str, candidates))
        raise UserError(f"no tokenizer files in {looked}: pass --tokenizer DIR ({error})") from None


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
        causal=not run.disable_causal_mask,
        dropout=run.dropout,
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


def make_batches(run: Run, task: Task, tokenizer: GPT2Tokenizer, limit: int) -> dict[str, Batches]:
    """The splits as batches: "train" in its training order, "train_in_order", "validation" and "test" for evaluation."""
    texts = task.read(Path(run.data_dir) if run.data_dir else None)
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
    run, device = job.run, torch.device(job.run.device)
    started = time.perf_counter()
    reset_peak_memory(device)
    model = build_model(run, len(job.task.labels))
    tokenizer = find_tokenizer(run)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: not a pair")
    batches = make_batches(run, job.task, tokenizer, model.config.context_length)
    trainable, total = count_parameters(model)
    print_header(job, trainable, total, batches)
    prepare_directory(job)
    trained_file, state_file = job.directory / "trained.safetensors", job.directory / "training_state.safetensors"
    if run.resume:
        peft.restore(model, read_safetensors(trained_file)[0])
    model.to(device)
    metrics = Metrics(job.directory / "metrics.jsonl", append=run.resume)
    fitted = fit(model, batches["train"], run, metrics, batches["validation"], state_file)
    write_safetensors(peft.export(model), trained_file, {"method": json.dumps(asdict(peft.method_of(run)))})
    if not fitted.interrupted:
        state_file.unlink(missing_ok=True)
    accuracies = {} if fitted.interrupted else final_accuracies(peft.merge(model), batches, run, metrics, fitted)
    metrics.close()
    result = {
        "model": job.model_source,
        "model_reason": job.model_reason,
        "weights": run.weights,
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
        "versions": versions(),
        "git": git_state(),
    }
    write_json(job.directory / "result.json", result)
    return result


def final_accuracies(model: nn.Module, batches: dict[str, Batches], run: Run, metrics: Metrics, fitted: Fitted) -> dict:
    accuracies = {}
    for split, name in (("train", "train_in_order"), ("validation", "validation"), ("test", "test")):
        measured = evaluate(model, batches[name], run.amp, run.ignore_index)
        metrics.write(step=fitted.steps, epoch=run.num_epochs, split=f"final {split}", **measured)
        accuracies[split] = measured["accuracy"]
    return accuracies


def print_header(job: Job, trainable: int, total: int, batches: dict[str, Batches]) -> None:
    """Everything that was decided, before anything is trained."""
    run, method = job.run, peft.method_of(job.run)
    train = batches["train"]
    width = f"{train.pad_to} tokens each" if train.pad_to else "no padding"
    sizes = " / ".join(str(len(batches[name].examples)) for name in ("train", "validation", "test"))
    print(f"model    {job.model_source}, {run.weights} weights ({job.model_reason})")
    print(f"dataset  {run.dataset}, {sizes} texts to train / validate / test, {width} ({job.data_reason})")
    print(f"method   {method}: {trainable:,} of {total:,} parameters train")
    if hasattr(method, "scale"):
        print(f"         the LoRA product is multiplied by {method.scale:g}")
    print(f"run      {' '.join(to_flags(replace(run, model=None, checkpoint=None, dataset=None)))}", flush=True)


def prepare_directory(job: Job) -> None:
    """Makes sure that results can be written, before any time is spent on them, and that a resumed run is the same run."""
    directory, result = job.directory, job.directory / "result.json"
    if job.run.resume:
        check_resumable(job)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        result.unlink(missing_ok=True)  # of an earlier run: from here on it would tell of other tensors
    except OSError as error:
        raise UserError(f"--output_dir {directory} can't be written: {error.strerror}") from None


def check_resumable(job: Job) -> None:
    earlier = read_result(job.directory)
    if earlier is None or not (job.directory / "training_state.safetensors").is_file():
        raise UserError(f"--resume: {job.directory} holds no interrupted run; train anew without --resume")
    changed = [name for name, value in identity(job.run).items() if earlier["config"].get(name) != value]
    if changed:
        raise UserError(f"--resume: the run in {job.directory} had other values of {', '.join(changed)}")


def read_result(directory: Path) -> dict | None:
    """An earlier run's result.json, or None where there is none to be read."""
    try:
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and isinstance(result.get("config"), dict) else None


def write_json(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all); a tied tensor counts once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it isn't allowed, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")  # resets the resident set's high-water mark


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU's memory; on the CPU of the process's resident set, the interpreter and libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    packages = ("torch", "tiktoken", "numpy", "safetensors", "huggingface_hub")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def git_state() -> str | None:
    """The commit, with "-dirty" where tracked files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
