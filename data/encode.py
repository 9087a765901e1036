"""Texts -> token ids -> the batches of every split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from config import Run
from data.batching import Batches, Example, Order, bucketed_order, by_length, published_order, seeded_order
from data.files import TextExample
from model.tokenizers.base import Tokenizer
from utils.errors import UserError


def padded_length(run: Run, longest: int, limit: int) -> int:
    """Return --context_length as a number of tokens; every text is cut to it. Raises UserError.

    longest   tokens of the longest training example; without padding of the longest in all splits
    limit     the context of the model
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
    """Return what the run trains on: `--train_samples` of the task's training examples (all for 0), drawn by its seed."""
    examples = task.sample_training(examples, run.seed)
    if not run.train_samples:
        return examples
    if run.train_samples > len(examples):
        raise UserError(f"--train_samples is {run.train_samples}; {run.dataset} has {len(examples)} training examples")
    chosen = np.random.default_rng(run.seed).choice(len(examples), run.train_samples, replace=False)
    return [examples[i] for i in sorted(chosen)]


def unread_tail(run: Run, causal: bool) -> str:
    """Return what of a text can be left out without changing the result: "", "padding" or "all but the first token".

    No position of a causal model sees what stands behind it, so neither does a classifier that reads one position.
    """
    if run.trim == "no" or not causal or run.average_embeddings:
        return ""
    return {"first": "all but the first token", "flexible": "padding"}.get(run.trainable_token_pos, "")


@dataclass(frozen=True)
class TextEncoder:
    """How texts become the examples of a run: in training, in evaluation and in prediction (`pipeline/predict.py`).

    length      tokens to which a text is cut
    only_first  whether nothing but the first token is read, so that what is cut off isn't lost
    pad_to      as for `collate`
    """

    tokenizer: Tokenizer
    length: int
    only_first: bool
    pad_to: int | None

    def example(self, ids: list[int], pair_ids: list[int] | None, label: int) -> Example:
        """Return the example of a text, or of a pair of texts, from what the tokenizer makes of each."""
        whole, types = self.tokenizer.build(ids, pair_ids)
        limit = 1 if self.only_first else self.length
        kept, types = self.tokenizer.build(ids, pair_ids, limit) if len(whole) > limit else (whole, types)
        return Example(kept, label, types, is_cut=len(whole) > self.length and not self.only_first)


def make_text_encoder(run: Run, tokenizer: Tokenizer, config, longest: int) -> TextEncoder:
    """Return the encoder of a complete run. Raises UserError as `padded_length` does, which says what `longest` is."""
    length = padded_length(run, longest, config.context_length)
    unread = unread_tail(run, config.causal)
    only_first = bool(unread) and run.trainable_token_pos == "first"
    return TextEncoder(tokenizer, length, only_first, None if run.no_padding or unread else length)


def make_batches(task, run: Run, texts: dict[str, list[TextExample]], tokenizer: Tokenizer, config) -> dict[str, Batches]:
    """Return the splits as batches: "train" in its training order, "train_in_order" and the others for evaluation.

    config   the model's, for its `context_length` and whether it is `causal`
    """
    texts = texts | {"train": draw_training(task, texts["train"], run)}
    encoded = {
        name: [(tokenizer.encode(one.text), None if one.pair is None else tokenizer.encode(one.pair)) for one in examples]
        for name, examples in texts.items()
    }
    measured = [pair for name, pairs in encoded.items() if name == "train" or run.no_padding for pair in pairs]
    encoder = make_text_encoder(run, tokenizer, config, max(len(tokenizer.build(*pair)[0]) for pair in measured))
    splits = {
        name: [encoder.example(*pair, one.label) for one, pair in zip(examples, encoded[name], strict=True)]
        for name, examples in texts.items()
    }
    batches = batches_of(run, splits, tokenizer.pad_id, encoder.pad_to)
    if run.class_weights == "balanced":
        labels = [one.label for one in splits["train"] if one.label != run.ignore_index]
        batches["train"].class_weights = balanced_weights(labels, len(task.labels))
    return batches


def balanced_weights(labels: list[int], n_classes: int) -> torch.Tensor:
    """Return a weight per class [C], so that each class weighs as much as any other in N labels: N / (classes * count).

    Classes without a label count as none, and weigh 0.
    """
    counts = torch.bincount(torch.tensor(labels, dtype=torch.long), minlength=n_classes)  # [C]
    return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


def longest_text(batches: dict[str, Batches]) -> int:
    """Return the tokens of the longest text, as the model reads it.

    Where --context_length is longest_training_example, other texts are cut to it.
    """
    return max(len(example.ids) for some in batches.values() for example in some.examples)


def describe_cuts(batches: dict[str, Batches]) -> str:
    """Return how many texts of each split were cut, and to how many tokens, or "" where none was."""
    cut = {name: [one for one in batches[name].examples if one.is_cut] for name in batches if name != "train_in_order"}
    counts = [f"{len(some)} of {len(batches[name].examples)} {name} texts" for name, some in cut.items() if some]
    length = max((len(one.ids) for some in cut.values() for one in some), default=0)
    return f"cut to {length} tokens: {', '.join(counts)}" if counts else ""


def batches_of(run: Run, splits: dict[str, list[Example]], pad_id: int, pad_to: int | None) -> dict[str, Batches]:
    """Return "train" in its training order, and every split for evaluation, "train" under the name "train_in_order"."""
    batches = {}
    for name, examples in splits.items():
        order = None if pad_to else by_length([len(one.ids) for one in examples])
        batches[name] = Batches(examples, run.eval_batch_size, pad_id, pad_to, order)
    train = Batches(splits["train"], run.batch_size, pad_id, pad_to, training_order(run, splits["train"]))
    return batches | {"train_in_order": batches["train"], "train": train}


def training_order(run: Run, examples: Sequence[Example]) -> Order:
    """Return the order that --data_order names, for these examples."""
    if run.data_order == "published":
        return published_order(len(examples), run.seed, run.batch_size)
    if run.data_order == "bucketed":
        return bucketed_order([len(one.ids) for one in examples], run.seed, run.batch_size)
    return seeded_order(len(examples), run.seed)
