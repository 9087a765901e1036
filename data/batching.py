"""Token ids -> batches of tensors: padding, masks, and the order of the examples."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of positions without a target (PyTorch's default ignore_index)


@dataclass(frozen=True)
class CachedStates:
    """Hidden states of frozen blocks, which needn't be computed again: of one text, or of the B texts of a batch."""

    states: torch.Tensor  # [T, D] that enters block `start`, or [1 + taps, D] that the head reads; of a batch [B, ...]
    start: int | None  # None: no block has to run


@dataclass(frozen=True)
class Example:
    """One row of a batch, T tokens without padding."""

    ids: Sequence[int]
    label: int | Sequence[int]  # a class, or for language modelling the target at each position (IGNORED for none)
    types: Sequence[int] | None = None  # of a pair of texts: 0 in the first, 1 in the second
    text_lengths: Sequence[int] | None = None  # where the row holds several texts, of which none may see another
    cached: CachedStates | None = None
    is_cut: bool = False  # whether the text had more tokens
    references: tuple[float, float] | None = None  # of a pair of answers, see model/preference_loss.py
    beta: float = 0.0  # of that loss


@dataclass(frozen=True)
class Batch:
    """B examples padded to T tokens, as `collate` makes them."""

    input_ids: torch.Tensor  # [B, T]
    labels: torch.Tensor  # [B], or [B, T] for language modelling
    lengths: torch.Tensor  # [B], real tokens
    attention_mask: torch.Tensor | None  # [B, T], or None where the model is to see every position
    token_type_ids: torch.Tensor | None = None  # [B, T], or None where the tokenizer has no types
    class_weights: torch.Tensor | None = None  # [C], of a classifier's loss; None: each class weighs 1
    documents: torch.Tensor | None = None  # [B, T], which text of its row a token is of: 1, 2, ..., and 0 for padding
    positions: torch.Tensor | None = None  # [B, T], the place of each token in its text; both None for one text per row
    cached: CachedStates | None = None
    references: torch.Tensor | None = None  # [B, 2], of pairs of answers: `Example.references`
    beta: float = 0.0
    targets: torch.Tensor | None = None  # [N], for language modelling the places in the flat labels [B * T] that have one

    def visible(self) -> torch.Tensor | None:
        """Return the mask of attention: [B, T], or, with several texts in a row, [B, T, T], which keeps them apart."""
        if self.documents is None:
            return self.attention_mask
        return self.documents[:, :, None] == self.documents[:, None, :]  # padding sees padding, and no text sees it

    def weight(self, ignore_index: int) -> float:
        """Return what the class weights of the labels that the loss doesn't leave out add up to."""
        assert self.class_weights is not None
        return self.class_weights[self.labels[self.labels != ignore_index]].sum().item()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on the device, with `targets`: found before the move, so that no device is waited for."""
        batch = self
        if self.labels.ndim == 2 and self.targets is None:
            batch = replace(self, targets=(self.labels.flatten() != IGNORED).nonzero().squeeze(1))
        values = {one.name: getattr(batch, one.name) for one in fields(batch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        if batch.cached is not None:
            moved["cached"] = replace(batch.cached, states=batch.cached.states.to(device, non_blocking=True))
        return replace(batch, **moved)


def collate(examples: Sequence[Example], pad_id: int, pad_to: int | None) -> Batch:
    """Return the examples as one batch.

    pad_to    a number: every text is padded to that length, and the padding is *seen*, as in the published spam rows;
              None: padded to the longest of the batch and masked, so that padding can't influence anything

    Where an example holds several texts, none of them sees padding in either case.
    """
    lengths = torch.tensor([len(example.ids) for example in examples])  # [B]
    width = pad_to or int(lengths.max())
    labels = [example.label for example in examples]
    types = [example.types for example in examples]
    packed = any(example.text_lengths is not None for example in examples)
    masked = not packed and pad_to is None and bool((lengths < width).any())
    batch = Batch(
        input_ids=pad([example.ids for example in examples], width, pad_id),
        labels=torch.tensor(labels) if isinstance(labels[0], int) else pad(labels, width, IGNORED),
        lengths=lengths,
        attention_mask=(torch.arange(width) < lengths[:, None]).long() if masked else None,  # [B, T]
        token_type_ids=None if types[0] is None else pad(types, width, 0),
    )
    if packed:
        rows = [example.text_lengths or (len(example.ids),) for example in examples]
        documents = [[number for number, n in enumerate(row, start=1) for _ in range(n)] for row in rows]
        positions = [[position for n in row for position in range(n)] for row in rows]
        batch = replace(batch, documents=pad(documents, width, 0), positions=pad(positions, width, 0))
    if examples[0].references is not None:
        references = torch.tensor([example.references for example in examples])  # [B, 2]
        batch = replace(batch, references=references, beta=examples[0].beta)
    if examples[0].cached is not None:
        states = pad_sequence([example.cached.states for example in examples], batch_first=True)  # [B, T, D]
        batch = replace(batch, cached=CachedStates(states, examples[0].cached.start))
    return batch


def pad(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    """Return B rows of at most T = `width` numbers as one tensor [B, T], filled up on the right."""
    tensor = torch.full((len(rows), width), filler)  # [B, T]
    for padded, row in zip(tensor, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return tensor


# --- the order of examples

Order = Callable[[int], Sequence[int]]  # number of the epoch -> the order of the examples in it


def seeded_order(n: int, seed: int) -> Order:
    """Return a shuffle that depends on the seed and the epoch alone: nothing that happens in between can change it."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n).tolist()


def bucketed_order(lengths: Sequence[int], seed: int, batch_size: int, pool: int = 50) -> Order:
    """Return a shuffle whose batches hold texts of similar length, so that little is padded.

    Pools of `pool` batches are cut from a random order and sorted by length. Then the batches are shuffled, except for the
    short one, which stays last. Depends on the seed and the epoch alone.
    """

    def order(epoch: int) -> Sequence[int]:
        generator = np.random.default_rng([seed, epoch])
        shuffled = generator.permutation(len(lengths)).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), pool * batch_size):
            similar = sorted(shuffled[start : start + pool * batch_size], key=lengths.__getitem__)
            batches += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
        short = batches.pop() if len(batches[-1]) < batch_size else []
        return [i for number in generator.permutation(len(batches)) for i in batches[number]] + short

    return order


def by_length(lengths: Sequence[int]) -> Order:
    """Return the order of an evaluation, the shortest text first, so that little is padded. Every epoch has the same."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return lambda epoch: order


def published_order(n: int, seed: int, batch_size: int, eval_every: int = 50) -> Order:
    """Return the order in which the published spam script saw its training examples.

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
    """The examples of a split as batches: in the order of the split or, for training, in an order for each epoch."""

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        pad_to: int | None = None,
        order: Order | None = None,
        class_weights: torch.Tensor | None = None,
    ):
        self.examples, self.batch_size, self.pad_id, self.pad_to = examples, batch_size, pad_id, pad_to
        self.order = order or (lambda epoch: range(len(examples)))
        self.class_weights = class_weights  # [C], of the loss in training
        self._n_examples: int | None = None

    def n_examples(self) -> int:
        """Return how many examples an epoch shows: as many in each, and not always all of the split."""
        if self._n_examples is None:  # an order may sort the whole split
            self._n_examples = len(self.order(0))
        return self._n_examples

    def __len__(self) -> int:
        """Return how many batches an epoch has; the last may be short."""
        return math.ceil(self.n_examples() / self.batch_size)

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield the batches of one pass, in the order that belongs to its number."""
        order = self.order(number)
        for start in range(0, len(order), self.batch_size):
            chosen = [self.examples[i] for i in order[start : start + self.batch_size]]
            yield replace(collate(chosen, self.pad_id, self.pad_to), class_weights=self.class_weights)
