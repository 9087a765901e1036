"""Tasks with dialogues: supervised fine-tuning of a causal language model on their answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from config import DEFAULTS, Run
from data.batching import Batches, Example
from data.chatglm_encoder import make_encoder
from data.dialogues import Dialogue, read_records, split
from data.encode import batches_of, draw_training, padded_length
from data.packing import pack
from data.task import GPT2_POCKET, Task
from data.templates import find_template
from model.tokenizers.base import Tokenizer
from utils.errors import UserError

POCKET = Path(__file__).parent / "pocket"


@dataclass(frozen=True)
class ChatTask(Task):
    """Answering: the language-model head learns every answer of a dialogue, and that it ends there.

    Two more sets can be read: `--auxiliary_dataset` is mixed into the training data, and of `--general_dataset` the test
    part is measured as the split "general", to see how much other knowledge remains.
    """

    measures: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    metrics: tuple[str, ...] = ("loss", "perplexity")
    evaluated: tuple[str, ...] = ("train", "validation", "test", "general")
    path: Path | None = None
    has_dialogues: ClassVar[bool] = True

    def splits(self, run: Run) -> dict[str, list[Dialogue]]:
        """Return all that a run reads: its own splits, "auxiliary" and "general". Raises UserError."""
        splits = split(read_records(self.path), run.test_share)
        if "train" not in splits:
            raise UserError(f"{self.path} holds no training dialogues; choose a --test_share below {run.test_share}")
        if run.auxiliary_dataset:
            splits["auxiliary"] = draw_auxiliary(run)
        if general := general_dataset(run):
            general_splits = split(read_records(dialogues_of("general_dataset", general).path), run.test_share)
            if "test" not in general_splits:
                raise UserError(f"--general_dataset {general} has no test dialogues; choose a larger --test_share, or none")
            splits["general"] = general_splits["test"]
        return splits

    def check(self, run: Run) -> None:
        """Raise UserError where a complete run sets what dialogues make no use of."""
        self.check_columns(run)
        if run.objective != DEFAULTS["objective"]:
            raise UserError(
                f"--objective {run.objective} needs pairs of answers, and {self.name} has none; choose --dataset "
                "preferences, or a file with the columns prompt, chosen and rejected"
            )
        find_template(run.template)
        if run.auxiliary_samples and not run.auxiliary_dataset:
            raise UserError(f"--auxiliary_samples is {run.auxiliary_samples}, but no --auxiliary_dataset is named")
        if run.disable_causal_mask:
            raise UserError("--disable_causal_mask would show each token the one that it has to predict")
        for name in ("ignore_index", "class_weights", "average_embeddings", "head_labels"):
            if getattr(run, name) != DEFAULTS.get(name):
                raise UserError(f"--{name} is about classification, and {self.name} has no classes")

    def make_batches(
        self, run: Run, splits: dict[str, list[Dialogue]], tokenizer: Tokenizer, config
    ) -> tuple[dict[str, Batches], list[str]]:
        """Return the batches of each split, and notes on what was cut, mixed and packed. Raises UserError."""
        if not hasattr(tokenizer, "end_of_text"):
            raise UserError(f"{self.name} needs a model that writes, such as GPT-2; the tokenizer has no end-of-text token")
        length = padded_length(run, config.context_length, config.context_length)
        encoder = make_encoder(tokenizer, run, length)
        chosen = splits | {"train": draw_training(self, splits["train"], run)}
        examples = {name: [encoder.encode(one) for one in dialogues] for name, dialogues in chosen.items()}
        files = {name: read_records(path) for path, name in self.files(run).items()}
        counts = [f"{name}: {file.counts}" for name, file in files.items()]
        reports = [report for file in files.values() if (report := file.report())]
        notes = ["; ".join([*counts, f"{encoder.n_cut} texts cut", *reports])]
        notes += [encoder.note] if encoder.note else []
        notes += [f"too long: {n} dialogues lost {what}" for what, n in encoder.counts.items() if n]
        if "auxiliary" in examples:
            auxiliary = examples.pop("auxiliary")
            examples["train"] = examples["train"] + auxiliary
            notes.append(f"{len(auxiliary)} auxiliary dialogues are mixed in")
        if run.packing:
            dialogues = examples["train"]
            examples["train"] = pack(dialogues, length)
            notes.append(describe_packing(dialogues, len(examples["train"]), length))
        return batches_of(run, examples, tokenizer.pad_id, None), notes

    def files(self, run: Run) -> dict[Path, str]:
        """Return every file that a run reads, once, with the name of its set."""
        others = {"auxiliary_dataset": run.auxiliary_dataset, "general_dataset": general_dataset(run)}
        tasks = [self, *(dialogues_of(flag, name) for flag, name in others.items() if name)]
        return {task.path: task.name for task in tasks}


def describe_packing(dialogues: list[Example], n_rows: int, length: int) -> str:
    """Return how full the rows are into which dialogues were packed, in words."""
    full = sum(len(one.ids) for one in dialogues) / (n_rows * length)
    return f"{len(dialogues)} dialogues share {n_rows} rows of {length} tokens, {full:.0%} full"


def general_dataset(run: Run) -> str | None:
    """Return the name of the set that `--general_dataset` measures, or None."""
    return None if run.general_dataset == "none" else run.general_dataset


def draw_auxiliary(run: Run) -> list[Dialogue]:
    """Return `--auxiliary_samples` training dialogues of `--auxiliary_dataset`, drawn by the run's seed; all for 0."""
    pool = training_dialogues("auxiliary_dataset", run.auxiliary_dataset, run.test_share)
    if run.auxiliary_samples > len(pool):
        path = dialogues_of("auxiliary_dataset", run.auxiliary_dataset).path
        raise UserError(f"--auxiliary_samples is {run.auxiliary_samples}; {path} has {len(pool)} training dialogues")
    if not run.auxiliary_samples:
        return pool
    chosen = np.random.default_rng([run.seed, len(pool)]).choice(len(pool), run.auxiliary_samples, replace=False)
    return [pool[i] for i in sorted(chosen)]


def training_dialogues(flag: str, name: str, test_share: float) -> list[Dialogue]:
    """Return the training part of the set that a flag names. Raises UserError."""
    return split(read_records(dialogues_of(flag, name).path), test_share).get("train", [])


def dialogues_of(flag: str, name: str) -> "ChatTask":
    """Return the task of the set that a flag names. Raises UserError where it has no dialogues."""
    task = next((one for one in TASKS if one.name == name), None) or task_of_file(name)
    if task is None:
        names = ", ".join(one.name for one in TASKS)
        raise UserError(
            f"--{flag} is {name!r}, which has no dialogues; choose {names} or the path of a .json or .jsonl file"
        )
    return task


# The log's settings where it names them, its program's defaults for LoRA elsewhere.
RECIPE = {
    "learning_rate": 5e-5,
    "weight_decay": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.0,
    "num_epochs": 5,
    "batch_size": 8,
    "eval_batch_size": 8,
    "trainable_layers": "lora",
    "context_length": "model_context_length",
    "lora_rank": 8,
    "lora_alpha": 32.0,
    "lora_scaling": "alpha/r",
    "lora_init": "kaiming",
    "lora_target": "attn.q,attn.k,attn.v",
    "lora_dropout": 0.1,
    "seed": 123,
}
# Chosen on the persona's validation part for this LoRA: a model this small wants larger steps.
MODEL_RECIPES = {GPT2_POCKET: {"learning_rate": 5e-3}}


def make_task(name: str, path: Path, recipe: dict | None = None, kind: str = "") -> ChatTask:
    """Return the task of one file of dialogues; `recipe` goes before RECIPE."""

    def read(data_dir: Path | None) -> dict[str, list[Dialogue]]:
        return split(read_records(path), DEFAULTS["test_share"])

    return ChatTask(name, (), read, RECIPE | (recipe or {}), MODEL_RECIPES, path=path, kind=kind)


def task_of_file(name: str) -> ChatTask | None:
    """Return the task of a user's own file, or None where the name can't be that of one."""
    return make_task(name, Path(name), kind="dialogues") if name.lower().endswith((".json", ".jsonl")) else None


TASKS = (
    make_task("persona", POCKET / "persona" / "dialogues.jsonl", {"general_dataset": "general"}),
    make_task("general", POCKET / "general" / "dialogues.jsonl"),
)
