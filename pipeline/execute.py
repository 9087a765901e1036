"""One `Job` from beginning to end: model -> attach -> fit -> evaluate -> result.json."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

import model as models
import peft
from config import Run
from data.batching import Batches
from data.own_task import OwnTask
from data.preferences import DPO
from model.transformer import Transformer
from pipeline import answers, memory, plots, screen
from pipeline.build import build_model
from pipeline.flags import to_flags
from pipeline.job import Job, prepare_directory, what_is_replaced
from pipeline.result import (
    about_texts,
    device_name,
    drawn_parts,
    git_state,
    peak_memory_bytes,
    read_result,
    reset_peak_memory,
    totals,
    versions,
    warnings_of,
    write_json,
)
from pipeline.stages import StagedTraining, stages_of
from pipeline.unused import without_unused
from train import count_steps, evaluate
from training import distributed
from training.checkpoints import TRAINED, ResumePoint, newest, remove_states
from training.metrics_log import Metrics
from training.references import with_references
from training.scores import by_class
from training.tensorboard import EventFiles, need_tensorboard, remove_event_files
from utils.errors import UserError, note


@dataclass(frozen=True)
class Setup:
    """What is trained, and on what."""

    model: Transformer  # with the method of the first stage attached
    stages: list[Run]  # one, unless --stages names a plan
    batches: dict[str, Batches]  # by split, as one process would see them
    notes: list[str]  # what there is to say about a stored classifier and the data


@dataclass(frozen=True)
class Start:
    """Where a run begins: at its beginning, unless it goes on from where an interrupted one was saved."""

    point: ResumePoint | None = None
    finished: list[dict] = field(default_factory=list)  # the records of the stages that had ended by then
    seconds: float = 0.0  # that the run had taken by then


def execute(job: Job, argv: list[str] | None = None) -> dict:
    """Train, evaluate, and fill the run's directory. Return what `result.json` holds. Raises UserError.

    argv    the words of the command line, for the record
    """
    run, directory, began = job.run, job.directory, time.perf_counter()
    prepare_directory(job)
    reset_peak_memory(torch.device(run.device))
    setup = set_up(job)
    screen.print_header(job, setup.model, setup.stages, setup.batches, setup.notes)
    if run.memory_report:
        print_memory_report(job, setup)
    need_what_was_asked_for(job)  # before any time is spent
    if not run.resume and distributed.rank() == 0 and (lost := what_is_replaced(job)):
        note(lost)
    start = resumed(directory, run, len(setup.stages)) if run.resume else started_anew(directory, run)
    began -= start.seconds
    metrics = start_log(run, directory, start)
    # Large weights take seconds to hash, beside all else. They have been located by now, so nothing is fetched twice.
    with ThreadPoolExecutor(1, thread_name_prefix="hashes") as background:
        hashes = background.submit(lambda: job.inputs.hashes)

        def record_unfinished(finished: list[dict]) -> None:
            so_far = {"total_seconds": round(time.perf_counter() - began, 3)}
            write_json(directory / "result.json", unfinished(run, finished, so_far | hashes.result()))

        with advice_when_out_of_memory(run), deterministic(run.deterministic):
            stages, measures = train_and_measure(job, setup, start, metrics, record_unfinished)
        metrics.close()
        drawn = drawn_parts(setup.model, run.weights)
        result = {
            **about(job, argv),
            "tokenizer": str(job.inputs.tokenizer_folder),
            "notes": setup.notes,
            **({"texts": about_texts(job.inputs.splits, setup.batches)} if job.task.labels else {}),
            "drawn": drawn,
            "warnings": warnings_of(drawn, sum(stage["steps"] for stage in stages)),
            **measures,
            **totals(stages),
            "total_seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": peak_memory_bytes(torch.device(run.device)),
            **hashes.result(),
        }
    finish_directory(job, result)
    return result


def need_what_was_asked_for(job: Job) -> None:
    """Raise UserError where a package or the texts that a flag needs at the end aren't there."""
    if job.run.plot_loss:
        plots.need_matplotlib()
    if job.run.log == "tensorboard":
        need_tensorboard()
    if job.run.eval_generate:
        answers.need_scorers(job.inputs.model_config)
        answers.need_dialogues(job.inputs.splits)


def start_log(run: Run, directory: Path, start: Start) -> Metrics:
    """Return what the records of a run are written to. Of several processes, the first one writes. Raises UserError."""
    if distributed.rank():
        return Metrics()
    events = EventFiles(directory) if run.log == "tensorboard" else None
    return Metrics(directory / "metrics.jsonl", append=start.point is not None, events=events)


def set_up(job: Job) -> Setup:
    """Read the data, build the model, attach the method, and make the batches. Raises UserError."""
    run, task = job.run, job.task
    splits = job.inputs.splits  # first: a fault in the data shows before a model is read
    model = build_model(run, len(task.labels))
    stages = stages_of(run, len(model.blocks))
    method, refers = peft.method_of(stages[0]), run.objective == DPO
    if not refers or run.adapter:
        peft.attach(model, method)  # before texts are cut: an adapter's prefix shortens the context
    batches, notes = task.make_batches(distributed.whole_batches(run), splits, job.inputs.tokenizer, model.config)
    if refers:  # to the model as it is without a method, for a prefix changes it from the first step on
        batches = with_references(model.to(run.device), batches, run.amp, run.dpo_beta)
        model.to("cpu")
    if refers and not run.adapter:
        peft.attach(model, method)
    return Setup(model, stages, batches, [*job.notes, *notes, *job.inputs.trained_too])


def train_and_measure(
    job: Job, setup: Setup, start: Start, metrics: Metrics, record_unfinished: Callable[[list[dict]], None]
) -> tuple[list[dict], dict]:
    """Return the record of each stage, and what `result.json` has of each split: loss, accuracy, ..., scores of answers.

    Of an interrupted run nothing is measured.
    """
    run, task, model = job.run, job.task, setup.model
    batches = distributed.share(setup.batches, run.ignore_index)
    model = model if run.fsdp else model.to(run.device)  # which moves it block by block
    for block in model.blocks if run.compile else ():
        block.compile()  # in place, so that no name changes
    training = StagedTraining(
        model, setup.stages, batches, metrics, job.directory, [*start.finished], start.point, record_unfinished
    )
    batches, stages = training.run(), training.records
    interrupted = stages[-1]["interrupted"]
    plain = not run.fsdp and run.base_precision == "fp32"  # else the whole weights would be more than there is room for
    model = peft.merge(model) if plain else model
    by_split = {} if interrupted else final_measures(model, batches, job, metrics, stages[-1], training.compute_loss)
    measures = {f"{split}_{name}": by_split.get(split, {}).get(name) for name in task.measures for split in task.evaluated}
    if run.eval_generate and not interrupted:
        inputs = job.inputs
        measures |= answers.answer_and_score(model, run, inputs.splits, inputs.tokenizer, job.directory)
    return stages, measures


def finish_directory(job: Job, result: dict) -> None:
    """Write the result, remove what an interrupted run would go on from, and draw what was asked for."""
    if not result["interrupted"] and distributed.rank() == 0:
        remove_states(job.directory)  # before the run counts as complete, so that none is ever left over
    write_json(job.directory / "result.json", result)
    show_what_was_asked_for(job, result)


def show_what_was_asked_for(job: Job, result: dict) -> None:
    """Print the peak of memory and draw the curves, for --memory_report and --plot_loss."""
    if job.run.memory_report:
        print(f"memory   at most {result['peak_memory_bytes'] / 1e6:,.1f} MB were in use")
    if job.run.plot_loss and distributed.rank() == 0:
        print(f"plot     {plots.draw(job.directory)}")


def add_to_complete(job: Job, result: dict) -> dict:
    """Do what the flags of a run that is complete ask for beside its training. Return its result. Raises UserError."""
    run = job.run
    if run.log == "tensorboard" and distributed.rank() == 0:
        events = EventFiles(job.directory)
        events.restart(plots.read_metrics(job.directory))
        events.close()
    result = answers.with_answers(result, run, job.directory)
    show_what_was_asked_for(job, result)
    return result


def about(job: Job, argv: list[str] | None) -> dict:
    """Return what of a result doesn't depend on how the run went: what was asked for, of which machine and code."""
    run, columns = job.run, job.task.columns if isinstance(job.task, OwnTask) else None
    return {
        "model": run.source,
        "model_reason": job.model_reason,
        "weights": run.weights,
        "dataset": run.dataset,
        "data_reason": job.data_reason,
        "labels": list(job.task.labels) or None,
        "data": [*job.task.said],
        **({"columns": {"text": columns.text, "pair": columns.pair}} if columns else {}),
        "method": run.trainable_layers,
        "seed": run.seed,
        "amp": run.amp,
        "argv": argv if argv is not None else to_flags(without_unused(run, run)),
        "config": asdict(run),
        "processes": distributed.size(),
        "device": device_name(torch.device(run.device)),
        "versions": versions(),
        "git": git_state(),
    }


def unfinished(run: Run, finished: list[dict], more: dict) -> dict:
    """Return what `result.json` says while a run is under way, so that it can be resumed if it is killed."""
    return {"interrupted": True, "stages": finished, "config": asdict(run), "processes": distributed.size(), **more}


def resumed(directory: Path, run: Run, n_stages: int) -> Start:
    """Return where an interrupted run goes on. Raises UserError where its files contradict each other."""
    earlier = read_result(directory)
    point = newest(directory) if "data_sha256" in earlier else None  # its first record has no hashes: nothing is saved
    if point is None:
        print("resume   nothing had been saved yet: the run starts anew")
        return started_anew(directory, run)
    under_way = point.stages + (point.step is not None)
    if point.stages > len(earlier["stages"]) or not 0 < under_way <= n_stages:
        raise UserError(
            f"--resume: {point.file} is of stage {under_way} of {n_stages}, and {directory}/result.json knows "
            f"{len(earlier['stages'])}; train anew without --resume"
        )
    stage = f"stage {under_way}" if n_stages > 1 else "training"
    where = f"the end of {stage}" if point.step is None else f"step {point.step} of {stage}"
    print(f"resume   from {where}, {point.file}")
    return Start(point, earlier["stages"][: point.stages], earlier.get("total_seconds", 0.0))


def started_anew(directory: Path, run: Run) -> Start:
    """Remove what an earlier run left, once it is written down that this one has begun. Raises UserError."""

    def remove() -> None:
        write_json(directory / "result.json", unfinished(run, [], {}))
        try:
            remove_states(directory)
            for name in (TRAINED, answers.FILE, plots.CURVES):
                (directory / name).unlink(missing_ok=True)
            remove_event_files(directory)
        except OSError as error:
            raise UserError(f"{error.filename}, of an earlier run, can't be removed: {error.strerror}") from None

    distributed.gather(None)  # every process has looked at what is there
    distributed.first(remove)
    return Start()


@contextlib.contextmanager
def deterministic(wanted: bool):
    """Compute, for --deterministic, the same numbers each time on a GPU too; an operation that can't is an error."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(True)  # imports torch's compiler, which takes two seconds
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def advice_when_out_of_memory(run: Run):
    """Turn an error of the allocator into one that says what to make smaller."""
    try:
        yield
    except RuntimeError as error:
        if not models.is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory on {run.device}: choose a --batch_size below {run.batch_size} with more "
            f"--accumulation_steps, an --eval_batch_size below {run.eval_batch_size}, or a smaller --model"
        ) from None


def final_measures(
    model: nn.Module,
    batches: dict[str, Batches],
    job: Job,
    metrics: Metrics,
    last_stage: dict,
    compute_loss: Callable | None,
) -> dict[str, dict]:
    """Return what `evaluate` measures on each split: loss, accuracy, ...

    The measures are logged as well, at the step that the weights are of: with early stopping the best one.
    """
    run, measures = job.run, {}
    step = last_stage["best_step"] or last_stage["steps"]
    epoch = math.ceil(step / count_steps(batches["train"], run)[0])
    for split in job.task.evaluated:
        name = "train_in_order" if split == "train" else split
        if name not in batches or (split == "train" and run.eval_train == "no"):
            continue
        found = evaluate(model, batches[name], run.amp, run.ignore_index, compute_loss)
        metrics.write(step=step, epoch=epoch, split=f"final {split}", **found)
        measures[split] = found | by_class(found["confusion"], job.task.labels) if "confusion" in found else found
    return measures


def print_memory_report(job: Job, setup: Setup) -> None:
    """Print what the run needs in memory, and what training all layers would need."""
    width = max(len(example.ids) for example in setup.batches["train"].examples)
    budgets = memory.budgets_of(job.run, len(job.task.labels), peft.method_of(setup.stages[0]), width)
    print(memory.report(*budgets, job.run.batch_size, width), flush=True)
