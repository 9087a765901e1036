"""Tasks with pairs of answers, for `--objective dpo`: a prompt, a chosen answer, and a rejected one.

A pair is one row of a batch in which two texts share the place, as in data/packing.py: the prompt with the chosen answer,
and the prompt with the rejected one.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from config import DEFAULTS, Run
from data.batching import Batches, Example
from data.chat import MODEL_RECIPES, POCKET, RECIPE, ChatTask
from data.chatglm_encoder import make_encoder
from data.dialogue_encoder import DialogueEncoder, EncodedTurn
from data.dialogue_records import SPLIT_OF, Malformed, Turn, text_of, text_or_blank
from data.dialogues import Records, split
from data.encode import batches_of, draw_training, padded_length
from data.files import shown
from data.own_files import find_files
from data.packing import join
from data.tables import Row, read_table
from data.task import GPT2_POCKET
from model.gpt2 import GPT2Config
from model.llama import LlamaConfig
from model.registry import architecture_of
from model.tokenizers.base import Tokenizer
from utils.errors import UserError

DPO = "dpo"
TEXTS = ("prompt", "chosen", "rejected")  # the columns that have to be there
COLUMNS = (*TEXTS, "system", "split")


class Pair(NamedTuple):
    """A prompt with two answers. What reads one answer, such as --eval_generate, takes it for that with the chosen one."""

    place: str  # in its file
    system: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Return the prompt with the chosen answer."""
        return (Turn(self.prompt, "", self.chosen),)

    def content(self) -> list:
        """Return what a hash of the data depends on."""
        return [self.system, self.prompt, self.chosen, self.rejected]


@dataclass(frozen=True)
class PreferenceTask(ChatTask):
    """Preferring: the model learns to find chosen answers likelier than rejected ones, compared with what it was."""

    measures: tuple[str, ...] = ("loss", "accuracy", "margin", "gap", "gap_before")
    metrics: tuple[str, ...] = ("loss", "accuracy", "margin", "gap_before", "gap")
    evaluated: tuple[str, ...] = ("train", "validation", "test")

    def splits(self, run: Run) -> dict[str, list[Pair]]:
        """Return the pairs by split. Raises UserError."""
        splits = split(load_pairs(str(self.path)), run.test_share)
        if "train" not in splits:
            raise UserError(f"{self.path} holds no training pairs; choose a --test_share below {run.test_share}")
        return splits

    def check(self, run: Run) -> None:
        """Raise UserError where a complete run sets what pairs make no use of."""
        if run.objective != DPO:
            raise UserError(f"--dataset {self.name} holds pairs of answers, for --objective dpo; say that too")
        super().check(replace(run, objective=DEFAULTS["objective"]))
        if not run.dpo_beta:
            raise UserError("--dpo_beta is 0; it must be above 0, or nothing is learned")
        for name in ("packing", "auxiliary_dataset", "auxiliary_samples", "general_dataset", "stages", "fsdp"):
            if getattr(run, name) not in (None, "none", 0, False):
                raise UserError(f"--{name} doesn't go with --objective dpo; leave one of them out")
        drawn = {"prefix", "prompt"} & {*run.trainable_layers.split("+")}
        if run.adapter and drawn:
            raise UserError(
                f"--objective dpo compares with the model of --adapter, and what {drawn.pop()} draws in front of a text "
                "would be a part of it; leave one of them out"
            )

    def make_batches(
        self, run: Run, splits: dict[str, list[Pair]], tokenizer: Tokenizer, config
    ) -> tuple[dict[str, Batches], list[str]]:
        """Return the batches of each split, and notes on what was read and cut. Raises UserError."""
        if not isinstance(config, GPT2Config | LlamaConfig):
            kind = architecture_of(config).model_type
            raise UserError(f"--objective dpo trains models of the kinds GPT-2 and Llama, and {run.source} is a {kind}")
        length = padded_length(run, config.context_length, config.context_length)
        encoder = PairEncoder(make_encoder(tokenizer, run, length))
        chosen = splits | {"train": draw_training(self, splits["train"], run)}
        examples = {name: [encoder.encode(pair) for pair in pairs] for name, pairs in chosen.items()}
        records = load_pairs(str(self.path))
        notes = [f"{self.name}: {records.counts}; {encoder.n_cut} answers cut"]
        notes += [encoder.texts.note] if encoder.texts.note else []
        return batches_of(run, examples, tokenizer.pad_id, None), notes


class PairEncoder:
    """Turns pairs into examples of two texts. Of each the answer alone is a target, with the token that ends it.

    An answer that is too long loses its tail, and then doesn't end there. A prompt is never cut: both answers have to
    follow the same one.
    """

    def __init__(self, texts: DialogueEncoder):
        self.texts = texts
        self.n_cut = 0

    def encode(self, pair: Pair) -> Example:
        """Return the row of a pair: the text with the chosen answer, then that with the rejected one. Raises UserError."""
        opening = self.texts.opening(pair.system)
        whole = [self.texts.encode_turn(Turn(pair.prompt, "", answer)) for answer in (pair.chosen, pair.rejected)]
        n_prompt, n_end = len(opening) + len(whole[0].prompt()), len(whole[0].end)
        room = min(self.texts.max_target, self.texts.length + 1 - n_prompt - n_end)  # the last token is only predicted
        if room < 1:
            raise UserError(
                f"{pair.place}: the prompt has {n_prompt} tokens and leaves no room for an answer, as a text may have "
                f"{self.texts.length}; shorten it, or choose a longer --context_length"
            )
        if n_prompt > self.texts.max_source:
            limit = self.texts.max_source
            raise UserError(f"{pair.place}: the prompt has {n_prompt} tokens, and --max_source_length is {limit}")
        kept = [replace(turn, answer=turn.answer[:room]) for turn in whole]
        if kept[0].answer == kept[1].answer:
            raise UserError(f"{pair.place}: chosen and rejected are equal in the {room} tokens that there is room for")
        self.n_cut += sum(map(is_cut, kept, whole))
        return join([self.texts.example(opening, [turn], [uncut]) for turn, uncut in zip(kept, whole, strict=True)])


def is_cut(turn: EncodedTurn, uncut: EncodedTurn) -> bool:
    """Return whether an answer has lost its tail."""
    return len(turn.answer) < len(uncut.answer)


# --- files


def load_pairs(name: str) -> Records:
    """Return the pairs of a file, of a directory with files, or of a data set on the hub. Read once as long as no file
    changes. Raises UserError for a row that is no pair."""
    files, _ = find_files(name)
    try:
        states = tuple((where, path, path.stat().st_mtime_ns) for where, paths in files.items() for path in paths)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from None
    return _load(name, states)


@lru_cache(maxsize=4)  # a run asks several times
def _load(name: str, states: tuple[tuple[str | None, Path, int], ...]) -> Records:
    pairs, unread = [], Counter()
    for where, path, _ in states:
        for row in read_table(path).rows:
            pair, own = read_pair(row)
            pairs.append((pair, where or own))
            unread.update(key for key, value in row.cells.items() if key not in COLUMNS and value not in (None, ""))
    if not pairs:
        raise UserError(f"{name} holds no pairs")
    return Records(Path(name), pairs, [], unread, "rows")


def read_pair(row: Row) -> tuple[Pair, str | None]:
    """Return the pair of a row, and its split where it says one. Raises UserError."""
    if missing := [name for name in TEXTS if name not in row.cells]:
        has = ", ".join(map(str, row.cells)) or "none"
        raise UserError(
            f"{row.place}: the column {missing[0]} is missing; a pair has {', '.join(TEXTS)}, and here are {has}"
        )
    where = row.cells.get("split")
    if where not in (None, "") and (not isinstance(where, str) or where not in SPLIT_OF):
        raise UserError(f"{row.place}: the split is {shown(where)}; it must be one of {', '.join(SPLIT_OF)}")
    try:
        texts = [text_of(row.cells[name], name) for name in TEXTS]
        system = text_or_blank(row.cells.get("system"), "system")
    except Malformed as problem:
        raise UserError(f"{row.place}: {problem}") from None
    if texts[1].strip() == texts[2].strip():
        raise UserError(f"{row.place}: chosen and rejected are equal, so there is nothing to prefer: {shown(texts[1])}")
    return Pair(row.place, system, *texts), SPLIT_OF[where] if where else None


def task_of_pairs(name: str, kind: str = "pairs of answers") -> PreferenceTask:
    """Return the task of a user's own pairs, or of those that are shipped."""
    return make_task(name, Path(name), kind)


def make_task(name: str, path: Path, kind: str = "") -> PreferenceTask:
    """Return the task of one file or directory of pairs."""

    def read(data_dir: Path | None) -> dict[str, list[Pair]]:
        return split(load_pairs(str(path)), DEFAULTS["test_share"])

    return PreferenceTask(name, (), read, PREFERENCE_RECIPE, PREFERENCE_MODEL_RECIPES, path=path, kind=kind)


PREFERENCE_RECIPE = RECIPE | {"num_epochs": 3, "weight_decay": 0.0, "lora_dropout": 0.0}
PREFERENCE_MODEL_RECIPES = MODEL_RECIPES | {GPT2_POCKET: {"learning_rate": 1e-3}}
SHIPPED = make_task("preferences", POCKET / "preferences" / "pairs.jsonl")
TASKS = (SHIPPED,)
