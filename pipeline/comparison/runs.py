"""One run of `--table methods`: train, keep the weights with the lowest validation loss, measure example by example."""

import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from config import PATHS, Run
from data.batching import Batches, Example
from model import fast_path
from model.transformer import Transformer, evaluating
from pipeline.comparison.code_hash import code_sha256
from pipeline.comparison.jobs import wikitext
from pipeline.execute import set_up
from pipeline.job import Job
from pipeline.resolve import identity
from pipeline.result import count_parameters, device_name, git_state, peak_memory_bytes, reset_peak_memory, versions
from pipeline.stages import StagedTraining
from train import count_targets
from training.checkpoints import TRAINED
from training.device import autocast
from training.divergence import ADVICE
from training.metrics_log import Metrics
from utils.errors import UserError


def config_of_run(run: Run) -> dict:
    """Return the settings that make a run what it is. Where its inputs lie is none: their hashes say what they are."""
    return {name: value for name, value in identity(asdict(run), 1).items() if name not in PATHS}


def hashes_of(job: Job, tests: Job | None) -> dict:
    """Return the hashes of a run's inputs and code. `tests` as in `measure`."""
    others = {"test_data_sha256": tests.inputs.hashes["data_sha256"]} if tests else {}
    if windows := watched_windows(tests or job):
        others["wikitext2_sha256"] = hashlib.sha256(json.dumps([one.ids for one in windows]).encode()).hexdigest()
    return job.inputs.hashes | others | {"code_sha256": code_sha256(job)}


def watched_windows(job: Job) -> list[Example]:
    """Return the windows of WikiText-2 that a run is scored on: none where it sees no test data or has no dialogues."""
    return wikitext(job) if job.task.has_dialogues and "test" in job.inputs.splits else []


def measure(job: Job, tests: Job | None = None) -> dict | None:
    """Train one run. Return what was measured on the data that it sees, or None after Ctrl-C. Raises UserError.

    tests   another job, whose test data are scored in place of this one's
    """
    run, metrics, device = job.run, Metrics(), torch.device(job.run.device)
    reset_peak_memory(device)
    before = peak_memory_bytes(device) if sys.platform == "linux" else 0  # elsewhere nothing resets it
    setup = set_up(job)
    model = setup.model.to(device)
    trained, _ = count_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        training = StagedTraining(model, setup.stages, setup.batches, metrics, Path(folder), [])
        try:
            training.run()
        except UserError as error:
            if ADVICE not in str(error):
                raise
            return about(run) | {"validation_loss": None, "diverged": str(error), "trained_parameters": trained}
        record = training.records[-1]
        if record["interrupted"]:
            return None
        peak = peak_memory_bytes(device) - before
        best = best_evaluation(metrics)
        return {
            **about(run),
            "validation_loss": best and round(best["loss"], 5),
            "validation_accuracy": best and round(best["accuracy"], 5),
            "validation": [[one["step"], round(one["loss"], 5)] for one in evaluations(metrics)],
            "steps": record["steps"],
            "best_step": record["best_step"],
            "seconds_to_best": best and best["seconds"],
            "train_seconds": record["seconds"],
            "peak_bytes": peak,
            "trained_parameters": trained,
            "file_bytes": (Path(folder) / TRAINED).stat().st_size,
            **({"trained_on": run.dataset} if tests else {}),
            **scores(model, batches_of_job(tests, model) if tests else setup.batches, tests or job),
        }


def about(run: Run) -> dict:
    """Return what a record says of the machine and the program."""
    device = device_name(torch.device(run.device))
    return {"learning_rate": run.learning_rate, "device": device, "versions": versions(), "git": git_state()}


def evaluations(metrics: Metrics) -> list[dict]:
    """Return the records of the evaluations on validation data."""
    return [record for record in metrics.records if record["split"] == "validation"]


def best_evaluation(metrics: Metrics) -> dict | None:
    """Return the first evaluation with the lowest validation loss, whose weights were kept; None of a run without steps."""
    return min(evaluations(metrics), key=lambda record: record["loss"], default=None)


# --- example by example


def batches_of_job(job: Job, model: Transformer) -> dict[str, Batches]:
    """Return the batches of a job's data for a model that was trained on others."""
    return job.task.make_batches(job.run, job.inputs.splits, job.inputs.tokenizer, model.config)[0]


def scores(model: Transformer, batches: dict[str, Batches], job: Job) -> dict[str, list[float]]:
    """Return, for each set that isn't for training or validation, what each of its examples scores."""
    sets = {name: batches[name] for name in ("test", "general") if name in batches}
    if sets and job.task.has_dialogues:
        pad_id, windows = batches["test"].pad_id, watched_windows(job)
        examples = {name: each.examples for name, each in sets.items()} | ({"wikitext2": windows} if windows else {})
        sets = {name: Batches(each, 1, pad_id) for name, each in examples.items()}  # a dialogue's own loss
    return {name: score(model, each, job.run) for name, each in sets.items()}


@torch.no_grad()
def score(model: Transformer, batches: Batches, run: Run) -> list[float]:
    """Return what each example scores: 1 or 0 for a label, right or wrong; else the mean loss of its targets.

    batches   of one example each, unless it has a label
    """
    device, order, found = next(model.parameters()).device, iter(batches.order(0)), {}
    with evaluating(model):
        for batch in batches.epoch():
            with autocast(run.amp, device):
                loss, predictions, labels = fast_path.loss(model, batch.to(device), run.ignore_index)
            if batch.labels.ndim == 1:
                values = (predictions == labels).int().tolist()
            else:
                values = [round(loss.item() / max(1, count_targets(batch, run.ignore_index)), 4)]
            found |= {next(order): value for value in values}
    return [found[i] for i in range(len(found))]
