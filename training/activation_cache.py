"""Frozen blocks run once per text: nothing changes below the lowest block that trains, so hidden states are kept.

Exact up to rounding, and on unless `--reuse_frozen no` is said. Every epoch and every evaluation starts from what is kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from data.batching import Batch, Batches, CachedStates, Example, collate
from model import fast_path
from model.transformer import evaluating
from training import distributed
from training.device import autocast, available_bytes

PART_OF_MEMORY = 0.5  # of what is available: more than this is never kept
FEWEST_TOKENS, MOST_TOKENS = 256, 4096  # that are computed at once
FARTHEST = 512  # texts that are looked ahead


def n_frozen_blocks(model: nn.Module) -> int:
    """Return how many blocks from the bottom train nothing, and have nothing below them that does.

    A block whose output the head taps counts as the first that has to run, unless nothing in any block trains.
    """
    n_blocks = len(model.blocks)
    lowest = lowest_block(model, (name for name, parameter in model.named_parameters() if parameter.requires_grad))
    return lowest if lowest == n_blocks else min(lowest, lowest_block(model, model.head.taps))


def lowest_block(model: nn.Module, paths: Iterable[str]) -> int:
    """Return the lowest block that a path leads into: 0 for what lies below the blocks, their number for the head."""
    lowest = len(model.blocks)
    for first, *rest in (path.split(".") for path in paths):
        if first not in ("head", "final_norm"):
            lowest = min(lowest, int(rest[0]) if first == "blocks" else 0)
    return lowest


def text_of(example: Example) -> tuple:
    """Return what frozen blocks look at: texts that are equal in it need to be computed once only."""
    return tuple(tuple(one) if one is not None else None for one in (example.ids, example.types, example.text_lengths))


def cut(lengths: list[int]) -> Iterator[slice]:
    """Cut texts whose (padded) lengths rise into batches of at most MOST_TOKENS, or of one text.

    Little of a batch is padding, unless it were of fewer than FEWEST_TOKENS, for which a product is slow.
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        n = stop - start
        if stop < len(lengths):
            too_many = (n + 1) * lengths[stop] > MOST_TOKENS
            too_long = lengths[stop] > 1.2 * lengths[start] and n * lengths[stop - 1] >= FEWEST_TOKENS
        if stop == len(lengths) or too_many or too_long:
            yield slice(start, stop)
            start = stop


class ActivationCache:
    """The hidden states that frozen blocks make of texts. Each is computed when it is first needed, equal texts once.

    n_blocks    how many blocks are frozen, from the bottom
    head_only   no block has to run: what the head reads is kept, [1 + taps, D] a text, instead of all positions [T, D]
    """

    def __init__(self, model: nn.Module, n_blocks: int, head_only: bool, like: Batches, amp: str):
        self.model, self.n_blocks, self.head_only, self.amp = model, n_blocks, head_only, amp
        self.pad_id, self.pad_to = like.pad_id, like.pad_to
        self.kept: dict[tuple, CachedStates] = {}

    def lookup(self, examples: list[Example]) -> list[Example]:
        """Return the examples with their hidden states."""
        texts = [text_of(one) for one in examples]
        new = {text: one for text, one in zip(texts, examples, strict=True) if text not in self.kept}
        if new:
            self.compute(new)
        return [replace(one, cached=self.kept[text]) for text, one in zip(texts, examples, strict=True)]

    @torch.no_grad()
    def compute(self, new: dict[tuple, Example]) -> None:
        """Run the frozen blocks over texts that are new, the short ones together. `new`: text -> an example with it."""
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            in_order = sorted(new, key=lambda text: len(new[text].ids))
            for part in cut([self.pad_to or len(new[text].ids) for text in in_order]):
                batch = collate([new[text] for text in in_order[part]], self.pad_id, self.pad_to).to(device)
                with autocast(self.amp, device):
                    states = self.frozen_states(batch).float()  # in half precision a run would no longer be the same
                for text, one in zip(in_order[part], states, strict=True):
                    width = len(one) if self.head_only else self.pad_to or len(new[text].ids)
                    # A clone, as a view would keep the whole batch in memory.
                    self.kept[text] = CachedStates(one[:width].clone(), None if self.head_only else self.n_blocks)

    def frozen_states(self, batch: Batch) -> torch.Tensor:
        """Return what enters the lowest block that has to run, [B, T, D]; or all that the head reads, [B, 1 + taps, D]."""
        hidden = self.model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
        mask, positions = self.model.layout(batch.input_ids, batch.visible(), batch.positions)
        if self.head_only:
            return fast_path.states_read(self.model, hidden, mask, batch.lengths, positions=positions)
        return self.model.run_blocks(hidden, mask, 0, self.n_blocks, positions)


class CachedBatches(Batches):
    """The same batches, with the hidden states of their texts."""

    def __init__(self, of: Batches, cache: ActivationCache):
        super().__init__(of.examples, of.batch_size, of.pad_id, of.pad_to, of.order, of.class_weights)
        self.cache = cache

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Looks some of them ahead, so that texts of similar length are computed together; at first not far, so that training
        begins at once.
        """
        order, start, ahead = self.order(number), 0, 1
        while start < len(order):
            stop, ahead = start + ahead * self.batch_size, min(2 * ahead, max(1, FARTHEST // self.batch_size))
            known = self.cache.lookup([self.examples[i] for i in order[start:stop]])
            yield from Batches(known, self.batch_size, self.pad_id, self.pad_to, None, self.class_weights).epoch()
            start = stop


@dataclass(frozen=True)
class Decision:
    """Whether hidden states are kept. `result.json` records it, as it can change the rounding."""

    kept: bool
    frozen_blocks: int
    reason: str
    bytes: int = 0  # that the states of all texts take


def decide(model: nn.Module, batches: dict[str, Batches], head_only: bool) -> Decision:
    """Return whether the states of all texts are kept: where blocks are frozen, nothing in them is random, and the memory
    lasts."""
    n_blocks = n_frozen_blocks(model)
    if not n_blocks:
        return Decision(False, 0, "no block is frozen")
    if model.config.dropout:
        return Decision(False, n_blocks, f"--dropout {model.config.dropout:g} draws anew each time")
    pad_to = batches["train_in_order"].pad_to
    lengths = {
        (cache_of(name), text_of(example)): len(example.ids) for name, each in batches.items() for example in each.examples
    }.values()
    n_states = sum(1 + len(model.head.taps) if head_only else pad_to or length for length in lengths)
    needed = 4 * model.config.dim * n_states
    available = available_bytes(next(model.parameters()).device) // distributed.size()  # as if all processes were here
    if needed > PART_OF_MEMORY * available:
        return Decision(False, n_blocks, f"they take {needed / 1e6:,.0f} MB of {available / 1e6:,.0f} MB available", needed)
    return Decision(True, n_blocks, f"they take {needed / 1e6:,.0f} MB", needed)


def cache_of(split: str) -> str:
    """Return which cache a split uses. Texts that are computed together share their rounding, so no evaluation may have a
    say in what training sees."""
    return "train" if split.startswith("train") else split


def cached(model: nn.Module, batches: dict[str, Batches], amp: str) -> tuple[dict[str, Batches], Decision]:
    """Return batches that bring the hidden states of their texts, or the same batches where `decide` says no."""
    reads_one_position = model.head.rows(torch.empty(1, 1, 0)) is not None
    head_only = n_frozen_blocks(model) == len(model.blocks) and reads_one_position
    decision = decide(model, batches, head_only)
    if not decision.kept:
        return batches, decision
    like = batches["train_in_order"]
    caches = {
        name: ActivationCache(model, decision.frozen_blocks, head_only, like, amp) for name in {*map(cache_of, batches)}
    }
    return {name: CachedBatches(each, caches[cache_of(name)]) for name, each in batches.items()}, decision


def announce(decision: Decision, n_blocks: int) -> None:
    """Print whether hidden states are kept, where there is anything to keep."""
    if decision.frozen_blocks:
        how = "run once per text" if decision.kept else "run each time"
        print(f"frozen   {decision.frozen_blocks} of {n_blocks} blocks {how}: {decision.reason}", flush=True)
