"""The two jobs on which `--table methods` compares methods, and which data each of their runs may see.

A search for the learning rate gets no test data: they aren't among its inputs. Its validation data come from the training
split wherever the task has no test split of its own, as the development set is then the test.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from config import SETTINGS, Run, explicit, override
from data.batching import Example
from data.files import read_text
from data.registry import get_task
from data.task import DISTILBERT_POCKET, GPT2_POCKET, size_of
from model import config_of
from pipeline.comparison.methods import REFERENCE, Entry
from pipeline.inputs import Inputs
from pipeline.job import Job, prepare
from pipeline.unused import without_unused
from utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """A job for every method.

    run          what all its runs share, without the method, the rate and the seed
    n_rates      how many of a method's rates are tried
    n_seeds      how many seeds are measured on test data
    num_epochs   what --num_epochs says, for rows too that have a number of their own
    """

    name: str
    run: Run
    n_rates: int
    n_seeds: int
    num_epochs: int | None = None

    @property
    def folder(self) -> str:
        """Return the name of the folder with its results."""
        source = self.run.checkpoint or self.run.model
        seed = f"-seed{self.run.seed}" if self.run.seed != ALL_RUNS.seed else ""  # whose tests have the search's seed here
        return f"{self.name}-{Path(source).name}-{Path(self.run.dataset).stem}{seed}"

    @property
    def search_seed(self) -> int:
        """Return the seed with which rates are tried."""
        return self.run.seed

    def test_seeds(self, n_seeds: int | None) -> list[int]:
        """Return the seeds with which the chosen rate is measured: others than the search's."""
        return list(range(self.run.seed + 1, self.run.seed + 1 + (n_seeds or self.n_seeds)))


# The lowest validation loss decides which weights are kept, and no run is cut short.
ALL_RUNS = Run(lr_scheduler_type="linear", warmup_ratio=0.1, weight_decay=0.0, max_grad_norm=1.0, eval_train="no", seed=0)
ALL_RUNS = replace(ALL_RUNS, early_stopping_patience=1000, logging_steps=1000, reuse_frozen="no")
CLASSIFICATION = Comparison("classification", replace(ALL_RUNS, num_epochs=3, batch_size=32, eval_steps=21), 4, 5)
DIALOGUE = Comparison("dialogue", replace(ALL_RUNS, num_epochs=2, batch_size=8, eval_steps=18), 3, 5)
SHIPPED = {"classification": ("distilbert-pocket", "sentiment-pocket"), "dialogue": ("gpt2-pocket", "persona")}
EXTRA_RATES = 3  # at most, where the best rate of a grid is its edge
TRAINING, VALIDATION = 2000, 500  # sentences at most
RATE_FACTORS = {DISTILBERT_POCKET: 10.0, GPT2_POCKET: 10.0}  # models this small want larger steps
WINDOWS, WINDOW = 32, 128  # of WikiText-2: how many, and how many tokens each
WIKITEXT = Path("text_corpus") / "wikitext2_test.txt"  # in --data_dir

SAID_BY_ROWS = ("trainable_layers", "learning_rate", "train_head")
NOT_HERE = ("stages", "fsdp", "compile", "deterministic", "eval_generate", "memory_report", "plot_loss", "log", "verbose")
NOT_HERE += ("save_steps", "save_total_limit", "early_stopping_patience", "eval_train")


def comparisons_of(overrides: Run) -> list[Comparison]:
    """Return the jobs that the flags ask for: by the data set, else by the kind of the model. Raises UserError."""
    for name in explicit(overrides):
        if name in SAID_BY_ROWS or SETTINGS[name]["methods"]:
            raise UserError(f"--{name} doesn't go with --table methods, whose rows say it (pipeline/comparison/methods.py)")
        if name in NOT_HERE:
            raise UserError(f"--{name} doesn't go with --table methods")
    if overrides.num_epochs == 0:
        raise UserError("--num_epochs 0 doesn't go with --table methods, which trains: choose 1 or more")
    if overrides.dataset:
        kinds = [DIALOGUE if get_task(overrides.dataset, overrides).has_dialogues else CLASSIFICATION]
    elif overrides.source:
        kinds = [DIALOGUE if config_of(overrides.source).causal else CLASSIFICATION]
    else:
        kinds = [CLASSIFICATION, DIALOGUE]
    return [with_flags(kind, overrides) for kind in kinds]


def with_flags(kind: Comparison, overrides: Run) -> Comparison:
    """Return a job with the flags, and with the shipped model and data where they name none."""
    model, dataset = SHIPPED[kind.name]
    if kind is CLASSIFICATION and overrides.data_dir:
        dataset = "sst2"
    stand_ins = Run(model=None if overrides.source else model, dataset=dataset)
    run = override(override(kind.run, stand_ins), overrides)
    return replace(kind, run=without_unused(run, overrides), num_epochs=overrides.num_epochs)


def prepare_one(comparison: Comparison, entry: Entry, rate: float, seed: int, with_test: bool) -> Job:
    """Return the job of one run.

    rate        as in the list of methods: a small model's is a multiple of it
    with_test   whether it sees test data

    Raises UserError.
    """
    run = replace(override(comparison.run, entry.run), seed=seed, output_dir=None)
    if comparison.num_epochs and run.num_epochs:  # the untrained model's stay 0
        run = replace(run, num_epochs=comparison.num_epochs)
    model_config = config_of(run.source)
    factor = RATE_FACTORS.get(size_of(model_config), 1.0)
    job = prepare(replace(run, learning_rate=float(f"{rate * factor:.6g}")))
    inputs = Parts(job, with_test)
    if not job.task.has_dialogues and comparison.run.train_samples is None:
        job = replace(job, run=replace(job.run, train_samples=min(TRAINING, len(inputs.splits["train"]))))
    return replace(job, inputs=inputs)


def scored_job(comparison: Comparison, entry: Entry, job: Job) -> Job | None:
    """Return the job whose test data measure a run that trains on data of its own; None of one that doesn't."""
    if not entry.run.dataset:
        return None
    return prepare_one(comparison, REFERENCE, 1.0, job.run.seed, job.inputs.with_test)


class Parts(Inputs):
    """The inputs of a run: what it trains on, what it is validated on and, where it may see them, test data."""

    def __init__(self, job: Job, with_test: bool):
        super().__init__(job.run, job.task, job.inputs.model_config)
        self.with_test = with_test

    @cached_property
    def splits(self) -> dict[str, list]:
        """Return the examples by split."""
        splits = hold_out(self.task.splits(self.run))
        seen = ("train", "validation", "auxiliary", *(("test", "general") if self.with_test else ()))
        return {name: examples for name, examples in splits.items() if name in seen}


def hold_out(splits: dict[str, list]) -> dict[str, list]:
    """Return the splits of a task with a test part.

    Without test labels the validation split becomes the test, and a part of the training split takes its place: a fifth, at
    most VALIDATION examples, the same whatever the run's seed. Raises UserError where there is nothing to test on.
    """
    if splits.get("test") and splits.get("validation"):
        return splits
    test = splits.get("test") or splits.get("validation")
    if not test:
        raise UserError("--table methods needs a data set with labels to test on: a validation or a test split")
    size = min(VALIDATION, len(splits["train"]) // 5)
    held_out = set(np.random.default_rng(VALIDATION).permutation(len(splits["train"]))[:size].tolist())
    parts = {name: [] for name in ("train", "validation")}
    for i, example in enumerate(splits["train"]):
        parts["validation" if i in held_out else "train"].append(example)
    return splits | parts | {"test": test}


def wikitext(job: Job) -> list[Example]:
    """Return windows of WikiText-2's test set, spread over it; none where --data_dir has no such file."""
    file = Path(job.run.data_dir or "") / WIKITEXT
    if not job.run.data_dir or not file.is_file():
        return []
    text, characters = read_text(file), 8 * WINDOW  # more than enough for a window
    starts = np.linspace(0, max(0, len(text) - characters), WINDOWS).astype(int).tolist()
    windows = [job.inputs.tokenizer.encode(text[start : start + characters])[: WINDOW + 1] for start in starts]
    return [Example(ids[:-1], ids[1:]) for ids in windows]
