"""Token ids -> batches of tensors: padding, masks, order."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of positions without a target (PyTorch's default ignore_index)


@dataclass(frozen=True)
class Example:
    """One row of a batch, T tokens without padding."""

    ids: Sequence[int]
    label: int | Sequence[int]  # a class, or for language modelling the target at each position (IGNORED for none)
    types: Sequence[int] | None = None  # of a pair: 0 in the first text, 1 in the second
    parts: Sequence[int] | None = None  # where it holds several texts, the length of each: none is to see another
    kept: "Kept | None" = None  # what frozen blocks make of it


@dataclass(frozen=True)
class Kept:
    """What needn't be computed again of a text (see frozen.py), or of the B texts of a batch."""

    states: torch.Tensor  # [T, D], what enters block `start`; or [1 + taps, D], all that the head reads; a batch's [B, ...]
    start: int | None  # None: no block has to run


@dataclass(frozen=True)
class Batch:
    """B examples padded to T tokens, as `collate` makes them."""

    input_ids: torch.Tensor  # [B, T]
    labels: torch.Tensor  # [B], or [B, T] for language modelling
    lengths: torch.Tensor  # [B], real tokens
    attention_mask: torch.Tensor | None  # [B, T], or None where the model is to see every position
    token_type_ids: torch.Tensor | None = None  # [B, T], or None where the tokenizer has no types
    documents: torch.Tensor | None = None  # [B, T], which text of its row each token is of: 1, 2, ..., and 0 for padding
    positions: torch.Tensor | None = None  # [B, T], the place of each token in its text; both None for one text per row
    kept: Kept | None = None  # of frozen blocks
    targets: torch.Tensor | None = None  # [N], of language modelling the places in the flat labels [B * T] that have one

    def visible(self) -> torch.Tensor | None:
        """What attention may look at: the attention mask [B, T], or with several texts in a row [B, T, T], within each."""
        if self.documents is None:
            return self.attention_mask
        return self.documents[:, :, None] == self.documents[:, None, :]  # padding sees padding, and no text sees it

    def to(self, device: torch.device) -> "Batch":
        """The same on the device, with `targets`: found before the move, so that no device is waited for."""
        if self.labels.ndim == 2 and self.targets is None:
            return replace(self, targets=(self.labels.flatten() != IGNORED).nonzero().squeeze(1)).to(device)
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        if self.kept is not None:
            moved["kept"] = replace(self.kept, states=self.kept.states.to(device, non_blocking=True))
        return replace(self, **moved)


def collate(examples: Sequence[Example], pad_id: int, pad_to: int | None) -> Batch:
    """pad_to a number: every text has that length and the padding is *seen*, as in the published spam rows.
    pad_to None: padded to the longest of the batch and masked, so that padding can't influence anything.
    Where an example holds several texts, padding is seen by none of them in either case."""
    lengths = torch.tensor([len(example.ids) for example in examples])  # [B]
    width = pad_to or int(lengths.max())

    def padded(rows: list[Sequence[int]], filler: int) -> torch.Tensor:
        tensor = torch.full((len(rows), width), filler)  # [B, T]
        for to, row in zip(tensor, rows, strict=True):
            to[: len(row)] = torch.tensor(row)
        return tensor

    one_class = isinstance(examples[0].label, int)
    labels = [example.label for example in examples]
    types = [example.types for example in examples]
    kept = [example.kept for example in examples]
    packed = any(example.parts is not None for example in examples)
    parts = [example.parts or (len(example.ids),) for example in examples]
    masked = not packed and pad_to is None and bool((lengths < width).any())
    return Batch(
        input_ids=padded([example.ids for example in examples], pad_id),
        labels=torch.tensor(labels) if one_class else padded(labels, IGNORED),
        lengths=lengths,
        attention_mask=(torch.arange(width) < lengths[:, None]).long() if masked else None,  # [B, T]
        token_type_ids=None if types[0] is None else padded(types, 0),
        documents=padded([[i for i, n in enumerate(row, start=1) for _ in range(n)] for row in parts], 0)
        if packed
        else None,
        positions=padded([[i for n in row for i in range(n)] for row in parts], 0) if packed else None,
        kept=None
        if kept[0] is None
        else Kept(pad_sequence([one.states for one in kept], batch_first=True), kept[0].start),  # [B, T, D]
    )


Order = Callable[[int], Sequence[int]]  # number of the epoch -> the order of the examples in it


def seeded_order(n: int, seed: int) -> Order:
    """A shuffle that depends on the seed and the epoch alone: nothing that happens in between can change it."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n).tolist()


def bucketed_order(lengths: Sequence[int], seed: int, batch_size: int, pool: int = 50) -> Order:
    """A shuffle whose batches hold texts of similar length, so that little is padded.

    Pools of `pool` batches are cut from a random order and sorted by length; then the batches are shuffled, the short
    last one excepted. Depends on the seed and the epoch alone.
    """

    def order(epoch: int) -> Sequence[int]:
        draw = np.random.default_rng([seed, epoch])
        shuffled = draw.permutation(len(lengths)).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), pool * batch_size):
            near = sorted(shuffled[start : start + pool * batch_size], key=lengths.__getitem__)
            batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        short = batches.pop() if len(batches[-1]) < batch_size else []
        return [i for batch in draw.permutation(len(batches)) for i in batches[batch]] + short

    return order


def by_length(lengths: Sequence[int]) -> Order:
    """The order of an evaluation that pads little; every epoch has the same."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return lambda epoch: order


def published_order(n: int, seed: int, batch_size: int, eval_every: int = 50) -> Order:
    """The order in which the published spam script saw its training examples.

    There, shuffling and evaluation draw from one generator: starting a pass over a DataLoader draws a seed for its
    workers, and a shuffled one draws the seed of its permutation. It evaluates on training and validation data at steps
    0, 50, 100, ... and after each epoch, and drops each epoch's last, short batch. Here those draws are repeated.
    """

    def order(epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> int:
            return int(torch.empty((), dtype=torch.int64).random_(generator=generator))

        step, steps_per_epoch = 0, n // batch_size
        for past in range(epoch + 1):
            draw()  # the training loader's workers
            shuffle_seed = draw()
            if past == epoch:
                break
            evaluations = sum((step + i) % eval_every == 0 for i in range(steps_per_epoch)) + 1
            step += steps_per_epoch
            for _ in range(3 * evaluations):  # shuffled training loader: two draws; validation loader: one
                draw()
        permutation = torch.randperm(n, generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
        return permutation[: steps_per_epoch * batch_size]

    return order


class Batches:
    """The examples of a split as batches, in their order or, for training, in each epoch's own."""

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        pad_to: int | None = None,
        order: Order | None = None,
    ):
        self.examples, self.batch_size, self.pad_id, self.pad_to = examples, batch_size, pad_id, pad_to
        self.order = order or (lambda epoch: range(len(examples)))

    def n_examples(self) -> int:
        """How many examples an epoch shows."""
        return len(self.order(0))

    def __len__(self) -> int:
        """How many batches an epoch has; the last may be short."""
        return math.ceil(self.n_examples() / self.batch_size)

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """The batches of one pass, in the order that belongs to its number."""
        order = self.order(number)
        for start in range(0, len(order), self.batch_size):
            chosen = [self.examples[i] for i in order[start : start + self.batch_size]]
            yield collate(chosen, self.pad_id, self.pad_to)
