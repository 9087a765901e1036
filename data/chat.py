"""Supervised fine-tuning of a causal language model: dialogues -> texts -> token ids, with loss on the answers alone."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import DEFAULTS, Run
from data.batching import IGNORED, Batches, Example
from data.dialogues import Dialogue, Turn, read_records, split
from data.encode import batches_of, draw_training, padded_length
from data.packing import pack
from data.task import GPT2_POCKET, Task
from model.tokenizers.base import Tokenizer, longest_first
from utils.errors import UserError

POCKET = Path(__file__).parent / "pocket"


@dataclass(frozen=True)
class Template:
    """How a dialogue becomes text. The answer follows right after a turn, the end-of-text token right after the answer."""

    turn: str  # around {question}
    about: str = "{question}\n{input}"  # what stands for the question where there is an input too
    opening: str = "{prefix}\n"  # in front of the first turn, where there is a prefix
    prefix: str = ""  # the prefix where neither the dialogue nor --source_prefix has one

    def question(self, turn: Turn) -> str:
        """What a turn asks, its input included."""
        return self.about.format(question=turn.question, input=turn.input) if turn.input else turn.question


TEMPLATES = {
    # As gpt2-pocket saw instructions in its pretraining: line by line, then the end of the text.
    "default": Template(turn="{question}\n"),
    # Taori et al. (2023), "Stanford Alpaca", with its shorter preamble for both kinds of record.
    "alpaca": Template(
        turn="### Instruction:\n{question}\n\n### Response:\n",
        about="{question}\n\n### Input:\n{input}",
        opening="{prefix}\n\n",
        prefix="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    ),
}


def find_template(name: str) -> Template:
    """Raises UserError for a name that isn't in TEMPLATES."""
    if name not in TEMPLATES:
        raise UserError(f"--template is {name!r}; choose {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


@dataclass(frozen=True)
class Piece:
    """One turn in token ids. `before`, `after`: what the template has around the question."""

    before: list[int]
    question: list[int]
    after: list[int]
    answer: list[int]

    def prompt(self) -> list[int]:
        """All that stands before the answer."""
        return self.before + self.question + self.after

    def size(self) -> int:
        """Tokens of the turn, with the one that ends its answer."""
        return len(self.prompt()) + len(self.answer) + 1  # the end of the text


class DialogueEncoder:
    """Dialogues -> examples of at most `length` tokens.

    What is too long is cut by this rule (the end-of-text tokens don't count as part of an answer):
    1. an answer keeps its first `max_target_length` tokens;
    2. the oldest turns are dropped while what stands before the last answer has more than `max_source_length` tokens, or
       the whole more than `length`; the prefix stays;
    3. if the last turn alone is too long, its question loses its tail: first down to `max_source_length`, then, the
       longer of question and answer first, until the whole fits.
    An answer that lost its tail doesn't end there, so the end-of-text token behind it is no target. A limit of 0 is none.
    `counts` says how many dialogues were cut.
    """

    def __init__(self, tokenizer: Tokenizer, run: Run, length: int):
        self.tokenizer, self.length = tokenizer, length
        self.template, self.prefix = find_template(run.template), run.source_prefix or ""
        self.max_source, self.max_target = run.max_source_length or length, run.max_target_length or length
        before, after = self.template.turn.split("{question}")
        self.before, self.after = tokenizer.encode(before), tokenizer.encode(after)
        self.counts: Counter[str] = Counter()

    def opening(self, system: str) -> list[int]:
        """Of the dialogue's own, the run's and the template's prefix the first that isn't empty."""
        prefix = system or self.prefix or self.template.prefix
        return self.tokenizer.encode(self.template.opening.format(prefix=prefix)) if prefix else []

    def piece(self, turn: Turn) -> Piece:
        """A turn in token ids, nothing cut."""
        question, answer = self.template.question(turn), turn.answer
        return Piece(self.before, self.tokenizer.encode(question), self.after, self.tokenizer.encode(answer))

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """What a model is given to answer the last question; that turn's answer is left out, and nothing is cut."""
        *earlier, last = map(self.piece, dialogue.turns)
        ids = self.opening(dialogue.system)
        for one in earlier:
            ids += [*one.prompt(), *one.answer, self.tokenizer.end_of_text]
        return ids + last.prompt()

    def prompt_with_room(self, dialogue: Dialogue, room: int) -> list[int]:
        """The same, cut by the rules of the class as if the answer had `room` tokens."""
        opening, pieces = self.opening(dialogue.system), [self.piece(turn) for turn in dialogue.turns]
        pieces = [replace(one, answer=one.answer[: self.max_target]) for one in pieces]
        pieces[-1] = replace(pieces[-1], answer=[0] * room)
        *earlier, last = self.fit(len(opening), pieces)
        ids = list(opening)
        for one in earlier:
            ids += [*one.prompt(), *one.answer, self.tokenizer.end_of_text]
        return ids + last.prompt()

    def encode(self, dialogue: Dialogue) -> Example:
        """The example of a dialogue: ids [T], and targets [T] of which only the answers' count."""
        opening, whole = self.opening(dialogue.system), [self.piece(turn) for turn in dialogue.turns]
        pieces = self.fit(len(opening), [replace(one, answer=one.answer[: self.max_target]) for one in whole])
        self.count(whole, pieces)
        ids, is_target = list(opening), [False] * len(opening)
        for one, uncut in zip(pieces, whole[len(whole) - len(pieces) :], strict=True):
            ids += [*one.prompt(), *one.answer, self.tokenizer.end_of_text]
            is_target += [False] * len(one.prompt()) + [True] * len(one.answer) + [len(one.answer) == len(uncut.answer)]
        targets = [token if wanted else IGNORED for token, wanted in zip(ids, is_target, strict=True)]
        return Example(ids[:-1], targets[1:])  # each position predicts the next token

    def fit(self, opening: int, pieces: list[Piece]) -> list[Piece]:
        """Rules 2 and 3 of the class."""
        length = self.length + 1  # the last end of the text is only predicted
        last = pieces[-1]
        while len(pieces) > 1:
            total = opening + sum(one.size() for one in pieces)
            if total <= length and total - len(last.answer) - 1 <= self.max_source:
                return pieces
            pieces = pieces[1:]
        fixed = opening + len(last.before) + len(last.after)
        if min(self.max_source - fixed, length - fixed - 2) < 1:
            raise UserError(
                f"prefix and template take {fixed} tokens, and no question fits beside them into "
                f"{min(self.max_source, self.length - 1)}: choose a shorter --source_prefix, a longer --max_source_length "
                "or --context_length, or another --template"
            )
        question = last.question[: self.max_source - fixed]
        n_question, n_answer = longest_first(len(question), len(last.answer), length - fixed - 1)
        return [replace(last, question=question[:n_question], answer=last.answer[:n_answer])]

    def count(self, whole: list[Piece], pieces: list[Piece]) -> None:
        kept = whole[len(whole) - len(pieces) :]
        self.counts["earlier turns"] += len(pieces) < len(whole)
        for name in ("question", "answer"):
            shorter = [len(getattr(one, name)) < len(getattr(two, name)) for one, two in zip(pieces, kept, strict=True)]
            self.counts[f"the end of {'a question' if name == 'question' else 'an answer'}"] += any(shorter)


@dataclass(frozen=True)
class ChatTask(Task):
    """Answering. The language-model head is trained on every answer of a dialogue, and so is its end-of-text token.

    Beside its own splits it reads what is mixed into the training data, `--auxiliary_dataset`, and what is measured to see
    what is kept of other knowledge, `--general_dataset`: the test part of that set, as the split "general".
    """

    measures: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    metrics: tuple[str, ...] = ("loss", "perplexity")
    evaluated: tuple[str, ...] = ("train", "validation", "test", "general")
    path: Path | None = None

    def splits(self, run: Run) -> dict[str, list[Dialogue]]:
        splits = split(read_records(self.path), run.test_share)
        if "train" not in splits:
            raise UserError(f"{self.path} holds no training dialogues; choose a --test_share below {run.test_share}")
        if run.auxiliary_dataset:
            splits["auxiliary"] = draw_auxiliary(run)
        if general := general_dataset(run):
            found = split(read_records(dialogues_of("general_dataset", general).path), run.test_share)
            if "test" not in found:
                raise UserError(f"--general_dataset {general} has no test dialogues; choose a larger --test_share, or none")
            splits["general"] = found["test"]
        return splits

    def check(self, run: Run) -> None:
        find_template(run.template)
        if run.auxiliary_samples and not run.auxiliary_dataset:
            raise UserError(f"--auxiliary_samples is {run.auxiliary_samples}, but no --auxiliary_dataset is named")
        if run.disable_causal_mask:
            raise UserError("--disable_causal_mask would show each token the one that it has to predict")
        for name in ("ignore_index", "average_embeddings", "head_labels"):
            if getattr(run, name) != DEFAULTS.get(name):
                raise UserError(f"--{name} is about classification, and {self.name} has no classes")

    def make_batches(
        self, run: Run, splits: dict[str, list[Dialogue]], tokenizer: Tokenizer, config
    ) -> tuple[dict[str, Batches], list[str]]:
        if not hasattr(tokenizer, "end_of_text"):
            raise UserError(f"{self.name} needs a model that writes, such as GPT-2; the tokenizer has no end-of-text token")
        length = padded_length(run, config.context_length, config.context_length)
        encoder = DialogueEncoder(tokenizer, run, length)
        chosen = splits | {"train": draw_training(self, splits["train"], run)}
        examples = {name: [encoder.encode(one) for one in dialogues] for name, dialogues in chosen.items()}
        notes = [note for path in self.files(run) if (note := read_records(path).report())]
        notes += [f"too long: {n} dialogues lost {what}" for what, n in encoder.counts.items() if n]
        training = examples["train"] + examples.pop("auxiliary", [])
        notes += [f"{len(chosen['auxiliary'])} auxiliary dialogues are mixed in"] if "auxiliary" in chosen else []
        if run.packing:
            n_dialogues, n_tokens = len(training), sum(len(one.ids) for one in training)
            training = pack(training, length)
            full = n_tokens / (len(training) * length)
            notes.append(f"{n_dialogues} dialogues share {len(training)} rows of {length} tokens, {full:.0%} full")
        return batches_of(run, examples | {"train": training}, tokenizer.pad_id, None), notes

    def files(self, run: Run) -> list[Path]:
        """Every file that a run reads, once."""
        others = {"auxiliary_dataset": run.auxiliary_dataset, "general_dataset": general_dataset(run)}
        paths = [self.path, *(dialogues_of(flag, name).path for flag, name in others.items() if name)]
        return list(dict.fromkeys(paths))


def general_dataset(run: Run) -> str | None:
    """The name of the set that `--general_dataset` measures, or None."""
    return None if run.general_dataset == "none" else run.general_dataset


def draw_auxiliary(run: Run) -> list[Dialogue]:
    """`--auxiliary_samples` of the training dialogues of `--auxiliary_dataset`, drawn by the run's seed; 0 means all."""
    pool = training_dialogues("auxiliary_dataset", run.auxiliary_dataset, run.test_share)
    if run.auxiliary_samples > len(pool):
        path = dialogues_of("auxiliary_dataset", run.auxiliary_dataset).path
        raise UserError(f"--auxiliary_samples is {run.auxiliary_samples}; {path} has {len(pool)} training dialogues")
    if not run.auxiliary_samples:
        return pool
    chosen = np.random.default_rng([run.seed, len(pool)]).choice(len(pool), run.auxiliary_samples, replace=False)
    return [pool[i] for i in sorted(chosen)]


def training_dialogues(flag: str, name: str, test_share: float) -> list[Dialogue]:
    """The training part of the set that a flag names."""
    return split(read_records(dialogues_of(flag, name).path), test_share).get("train", [])


def dialogues_of(flag: str, name: str) -> "ChatTask":
    """The task of the set that a flag names. Raises UserError where it has no dialogues."""
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


def make_task(name: str, path: Path, recipe: dict | None = None) -> ChatTask:
    """The task of one file of dialogues, with RECIPE where `recipe` says nothing else."""

    def read(data_dir: Path | None) -> dict[str, list[Dialogue]]:
        return split(read_records(path), DEFAULTS["test_share"])

    return ChatTask(name, (), read, RECIPE | (recipe or {}), MODEL_RECIPES, path=path)


def task_of_file(name: str) -> ChatTask | None:
    """The task of a user's own file, or None where the name can't be that of one."""
    return make_task(name, Path(name)) if name.endswith((".json", ".jsonl")) else None


TASKS = (
    make_task("persona", POCKET / "persona" / "dialogues.jsonl", {"general_dataset": "general"}),
    make_task("general", POCKET / "general" / "dialogues.jsonl"),
)
