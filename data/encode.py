"""Texts -> token ids -> the batches of every split."""

from collections.abc import Sequence

import numpy as np

from config import Run
from data.batching import Batches, Example, Order, bucketed_order, by_length, published_order, seeded_order
from data.files import TextExample
from model.tokenizers.base import Tokenizer
from utils.errors import UserError


def padded_length(run: Run, longest: int, limit: int) -> int:
    """--context_length as a number of tokens; every text is cut to it.

    longest: the longest training example; without padding that of all splits, which no length has to exceed.
    """
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
    length = min(length, longest) if run.no_padding else length
    if length > limit:
        raise UserError(f"{what}, the model's context {limit}; choose --context_length {limit} or less")
    return length


def draw_training(task, examples: list, run: Run) -> list:
    """What the run trains on: a few-shot task's draw, of that `--train_samples` (all for 0), both from the run's seed."""
    examples = task.sample_training(examples, run.seed)
    if not run.train_samples:
        return examples
    if run.train_samples > len(examples):
        raise UserError(f"--train_samples is {run.train_samples}; {run.dataset} has {len(examples)} training examples")
    chosen = np.random.default_rng(run.seed).choice(len(examples), run.train_samples, replace=False)
    return [examples[i] for i in sorted(chosen)]


def unread_tail(run: Run, causal: bool) -> str:
    """What of a text can be left out without changing anything ("": nothing; else "padding" or "all but the first token").

    A position of a causal model sees none behind it, so neither does a classifier that reads a single position.
    """
    if run.trim == "no" or not causal or run.average_embeddings:
        return ""
    return {"first": "all but the first token", "flexible": "padding"}.get(run.trainable_token_pos, "")


def make_batches(task, run: Run, texts: dict[str, list[TextExample]], tokenizer: Tokenizer, config) -> dict[str, Batches]:
    """The splits as batches: "train" in its training order, "train_in_order" and what else there is for evaluation.

    config   the model's, for its `context_length` and whether it is `causal`
    """
    texts = texts | {"train": draw_training(task, texts["train"], run)}
    words = {
        name: [(tokenizer.encode(one.text), None if one.pair is None else tokenizer.encode(one.pair)) for one in examples]
        for name, examples in texts.items()
    }
    measured = [one for name in words if name == "train" or run.no_padding for one in words[name]]
    length = padded_length(run, max(len(tokenizer.build(*one)[0]) for one in measured), config.context_length)
    unread = unread_tail(run, config.causal)
    length = 1 if unread and run.trainable_token_pos == "first" else length
    splits = {
        name: [
            Example(ids, one.label, types)
            for one, pair in zip(examples, words[name], strict=True)
            for ids, types in [tokenizer.build(*pair, length)]
        ]
        for name, examples in texts.items()
    }
    return batches_of(run, splits, tokenizer.pad_id, None if run.no_padding or unread else length)


def batches_of(run: Run, splits: dict[str, list[Example]], pad_id: int, pad_to: int | None) -> dict[str, Batches]:
    """Of every split for evaluation, "train" under the name "train_in_order"; and "train" in its training order."""
    batches = {}
    for name, examples in splits.items():
        order = None if pad_to else by_length([len(one.ids) for one in examples])
        batches[name] = Batches(examples, run.eval_batch_size, pad_id, pad_to, order)
    train = Batches(splits["train"], run.batch_size, pad_id, pad_to, training_order(run, splits["train"]))
    return batches | {"train_in_order": batches["train"], "train": train}


def training_order(run: Run, examples: Sequence[Example]) -> Order:
    """What --data_order means for these examples."""
    if run.data_order == "published":
        return published_order(len(examples), run.seed, run.batch_size)
    if run.data_order == "bucketed":
        return bucketed_order([len(one.ids) for one in examples], run.seed, run.batch_size)
    return seeded_order(len(examples), run.seed)
