"""One `Job` from beginning to end: model -> attach -> fit -> evaluate -> result.json."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

import model as models
import peft
from config import Run, to_flags
from data.batching import Batches
from pipeline import answers, memory, plots
from pipeline.job import Job, find_tokenizer, fingerprint, prepare_directory
from pipeline.result import (
    count_parameters,
    device_name,
    git_state,
    peak_memory_bytes,
    read_result,
    reset_peak_memory,
    versions,
    write_json,
)
from pipeline.stages import train_stages
from published.plans import stages_of
from train import evaluate
from training import distributed
from training.checkpoints import TRAINED, Point, newest, remove_states
from training.metrics_log import Metrics
from utils.errors import UserError

TO = {"train": "train", "validation": "validate", "test": "test", "general": "test what is kept"}


def build_model(run: Run, n_labels: int) -> nn.Module:
    """The model with its classifier, or for no labels with its language-model head, drawn from the run's seed in the
    published script's order: body, head (from a fresh generator); what a method adds is drawn next."""
    model = models.from_pretrained(
        run.source,
        head="classifier" if n_labels else "lm",
        num_labels=None if run.head_labels else n_labels or None,
        random_weights=run.weights == "random",
        position=run.trainable_token_pos,
        average=run.average_embeddings,
        seed=run.seed,
        dropout=run.dropout,
        **({"causal": False} if run.disable_causal_mask else {}),
    )
    if run.head_labels:
        keep_labels(model.head, run.head_labels.split(","), n_labels)
    if run.depth > len(model.blocks):
        raise UserError(f"--depth is {run.depth}; the model has {len(model.blocks)} blocks")
    model.blocks = model.blocks[: run.depth or None]
    return model


@torch.no_grad()
def keep_labels(head: nn.Module, wanted: list[str], n_labels: int) -> None:
    """Cuts a classifier down to some of its labels, by their names or numbers, in this order. In place."""
    names = head.labels or ()
    numbers = [names.index(one) if one in names else int(one) if one.isdecimal() else -1 for one in map(str.strip, wanted)]
    n_own = head.classifier.out_features
    if len({*numbers}) != len(numbers) or len(numbers) != n_labels or not all(0 <= number < n_own for number in numbers):
        raise UserError(
            f"--head_labels is {','.join(wanted)!r}; name {n_labels} different ones of the checkpoint's labels: "
            f"{', '.join(names) or f'0 to {n_own - 1}'}"
        )
    head.classifier.weight = nn.Parameter(head.classifier.weight[numbers].clone())  # [C, D]
    head.classifier.bias = nn.Parameter(head.classifier.bias[numbers].clone())
    head.classifier.out_features, head.labels = n_labels, None


def execute(job: Job, argv: list[str] | None = None) -> dict:
    """Trains, evaluates, and fills the run's directory. Returns what `result.json` holds."""
    run, device, directory = job.run, torch.device(job.run.device), job.directory
    started = time.perf_counter()
    prepare_directory(job)
    reset_peak_memory(device)
    splits = job.splits
    hashes = ThreadPoolExecutor(1).submit(fingerprint, job)  # of large weights they take seconds, beside all else
    model = build_model(run, len(job.task.labels))
    plan = stages_of(run, len(model.blocks))
    peft.attach(model, peft.method_of(plan[0]))  # before texts are cut: the prefix of an adapter shortens the context
    tokenizer, tokenizer_folder = find_tokenizer(run, model.config.vocab_size)
    batches, notes = job.task.make_batches(distributed.whole_batches(run), splits, tokenizer, model.config)
    print_header(job, tokenizer_folder, batches, notes, plan, *count_parameters(model))
    if run.plot_loss:  # these two before any time is spent
        plots.need_matplotlib()
    if run.eval_generate:
        answers.need_scorers()
    batches = distributed.share(batches, run.ignore_index)
    point, finished, earlier = resumed(directory, run, len(plan)) if run.resume else forget(directory, run)
    started -= earlier
    metrics = Metrics(None if distributed.rank() else directory / "metrics.jsonl", append=point is not None)

    def record_unfinished(done: list[dict]) -> None:
        seconds = {"total_seconds": round(time.perf_counter() - started, 3)}
        write_json(directory / "result.json", unfinished(run, done, seconds | hashes.result()))

    with advice_when_out_of_memory(run), deterministic(run.deterministic):
        model = model if run.fsdp else model.to(device)  # which shards it block by block
        for block in model.blocks if run.compile else ():
            block.compile()  # in place, so that no name changes
        stages, used = train_stages(model, plan, batches, metrics, directory, finished, point, record_unfinished)
        interrupted = stages[-1]["interrupted"]
        measured = {} if interrupted else final_measures(model if run.fsdp else peft.merge(model), used, job, metrics)
        asked = run.eval_generate and not interrupted
        scores = answers.answer_and_score(model, run, splits, tokenizer, directory) if asked else {}
    metrics.close()
    result = {
        **about(job, argv),
        "tokenizer": str(tokenizer_folder),
        "notes": notes,
        **{
            f"{split}_{name}": measured.get(split, {}).get(name)
            for name in job.task.measures
            for split in job.task.evaluated
        },
        **scores,
        **totals(stages),
        "total_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(device),
        **hashes.result(),
    }
    if not interrupted and distributed.rank() == 0:
        remove_states(directory)  # before the run counts as complete, so that none is ever left over
    write_json(directory / "result.json", result)
    if run.memory_report:
        print(f"memory   at most {result['peak_memory_bytes'] / 1e6:,.1f} MB were in use")
    if run.plot_loss and distributed.rank() == 0:
        print(f"plot     {plots.draw(directory)}")
    return result


def about(job: Job, argv: list[str] | None) -> dict:
    """What of a result doesn't depend on how the run went: what was asked for, of which machine and code."""
    run = job.run
    return {
        "model": run.source,
        "model_reason": job.model_reason,
        "weights": run.weights,
        "dataset": run.dataset,
        "data_reason": job.data_reason,
        "method": run.trainable_layers,
        "seed": run.seed,
        "amp": run.amp,
        "argv": argv if argv is not None else to_flags(run),
        "config": asdict(run),
        "processes": distributed.size(),
        "device": device_name(torch.device(run.device)),
        "versions": versions(),
        "git": git_state(),
    }


def unfinished(run: Run, finished: list[dict], more: dict) -> dict:
    """What `result.json` says while a run can be resumed that nobody interrupted yet."""
    return {"interrupted": True, "stages": finished, "config": asdict(run), "processes": distributed.size(), **more}


def totals(stages: list[dict]) -> dict:
    """What a run's stages come to."""
    return {
        "steps": sum(stage["steps"] for stage in stages),
        "interrupted": stages[-1]["interrupted"],
        "train_seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "tokens_per_second": rate_of(stages),
        "trainable_parameters": max(stage["trainable_parameters"] for stage in stages),
        "total_parameters": max(stage["total_parameters"] for stage in stages),
        "stages": stages,
    }


def rate_of(stages: list[dict]) -> float | None:
    """Tokens that the optimizer's steps took in per second, without padding and without the time for evaluations."""
    tokens, seconds = (sum(stage[name] for stage in stages) for name in ("tokens", "step_seconds"))
    return round(tokens / seconds, 1) if seconds else None


def resumed(directory: Path, run: Run, n_stages: int) -> tuple[Point | None, list[dict], float]:
    """Where an interrupted run goes on, what it says of the stages that it has finished by then, and its seconds so far."""
    earlier = read_result(directory)
    point = newest(directory) if "data_sha256" in earlier else None  # its first record has no hashes: nothing is saved
    if point is None:
        print("resume   nothing had been saved yet: the run starts anew")
        return forget(directory, run)
    under_way = point.stages + (point.step is not None)
    if point.stages > len(earlier["stages"]) or not 0 < under_way <= n_stages:
        raise UserError(
            f"--resume: {point.file} is of stage {under_way} of {n_stages}, and {directory}/result.json knows "
            f"{len(earlier['stages'])}; train anew without --resume"
        )
    stage = f"stage {under_way}" if n_stages > 1 else "training"
    where = f"the end of {stage}" if point.step is None else f"step {point.step} of {stage}"
    print(f"resume   from {where}, {point.file}")
    return point, earlier["stages"][: point.stages], earlier.get("total_seconds", 0.0)


def forget(directory: Path, run: Run) -> tuple[None, list[dict], float]:
    """Removes what an earlier run left, once it is written down that this one has begun."""

    def remove() -> None:
        write_json(directory / "result.json", unfinished(run, [], {}))
        try:
            remove_states(directory)
            for name in (TRAINED, answers.FILE):
                (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{error.filename}, of an earlier run, can't be removed: {error.strerror}") from None

    distributed.gather(None)  # every process has looked at what is there
    distributed.first(remove)
    return None, [], 0.0


@contextlib.contextmanager
def deterministic(wanted: bool):
    """`--deterministic`: the same numbers each time on a GPU too; an operation that can't do that is an error."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(before or wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def advice_when_out_of_memory(run: Run):
    """Makes an error of the allocator one that says what to make smaller."""
    try:
        yield
    except RuntimeError as error:
        if not models.is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory on {run.device}: choose a --batch_size below {run.batch_size} with more "
            f"--accumulation_steps, an --eval_batch_size below {run.eval_batch_size}, or a smaller --model"
        ) from None


def final_measures(model: nn.Module, batches: dict[str, Batches], job: Job, metrics: Metrics) -> dict[str, dict]:
    """Loss, accuracy and what else `evaluate` gives, by split."""
    run, measured, step = job.run, {}, (metrics.last("train") or {"step": 0})["step"]
    for split in job.task.evaluated:
        name = "train_in_order" if split == "train" else split
        if name not in batches or (split == "train" and run.eval_train == "no"):
            continue
        measured[split] = evaluate(model, batches[name], run.amp, run.ignore_index)
        metrics.write(step=step, epoch=run.num_epochs, split=f"final {split}", **measured[split])
    return measured


def print_header(
    job: Job,
    tokenizer: Path,
    batches: dict[str, Batches],
    notes: list[str],
    plan: list[Run],
    trainable: int,
    total: int,
) -> None:
    """Everything that was decided, before anything is trained."""
    run, method = job.run, peft.method_of(plan[0])
    width = f"{batches['train'].pad_to} tokens each" if batches["train"].pad_to else "no padding"
    sizes = {split: str(len(batches[split].examples)) for split in job.task.evaluated if split in batches}
    texts = f"{' / '.join(sizes.values())} texts to {' / '.join(TO[split] for split in sizes)}"
    print(f"model    {run.source}, {run.weights} weights ({job.model_reason}); tokenizer from {tokenizer}")
    print(f"dataset  {run.dataset}, {texts}, {width} ({job.data_reason})")
    for note in notes:
        print(f"         {note}")
    if len(plan) == 1:
        print(f"method   {method}: {trainable:,} of {total:,} parameters train")
    else:
        print(f"method   {len(plan)} stages ({run.stages}), the first {method}")
    for one in getattr(method, "methods", [method]):
        if hasattr(one, "scale"):
            print(f"         the LoRA product is multiplied by {one.scale:g}")
    if (n := distributed.size()) > 1:
        kind = "each has a part of the model" if run.fsdp else "each has the model"
        print(f"in {n:>2} processes with --batch_size {run.batch_size} each, so {n * run.batch_size} in all; {kind}")
    settings = " ".join(f"{name}={value}" for name, value in asdict(run).items() if value is not None)
    print(f"settings {settings}", flush=True)
    if run.memory_report:
        width = max(len(one.ids) for one in batches["train"].examples)
        unread = replace(run, weights="random")  # shapes are all that matters: nothing is read from the checkpoint
        shape = (run.batch_size, width, run.gradient_checkpointing)
        print(memory.report(lambda: build_model(unread, len(job.task.labels)), method, *shape), flush=True)
