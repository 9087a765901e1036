"""Frozen blocks once: below the lowest block that trains nothing changes, so each text's hidden states are computed once.

Exact up to rounding, and on unless `--reuse_frozen no` is said. Every epoch and every evaluation starts from what is kept.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from data.batching import Batch, Batches, Example, Kept, collate
from train import autocast
from training import distributed

PART_OF_MEMORY = 0.5  # of what is free: more than this is never kept
FEWEST_TOKENS, MOST_TOKENS = 256, 4096  # that are computed at once
FARTHEST = 512  # texts that are looked ahead


def frozen_blocks(model: nn.Module) -> int:
    """How many blocks from the bottom train nothing, and have nothing below them that does.

    A block whose output the head taps counts as the first that has to run, unless nothing in any block trains.
    """
    n_blocks = len(model.blocks)
    lowest = lowest_of(model, (name for name, parameter in model.named_parameters() if parameter.requires_grad))
    return lowest if lowest == n_blocks else min(lowest, lowest_of(model, model.head.taps))


def lowest_of(model: nn.Module, paths) -> int:
    """The lowest block that a path leads into: 0 for what lies below the blocks, all of them for the head."""
    lowest = len(model.blocks)
    for first, *rest in (path.split(".") for path in paths):
        if first not in ("head", "final_norm"):
            lowest = min(lowest, int(rest[0]) if first == "blocks" else 0)
    return lowest


def text_of(example: Example) -> tuple:
    """What frozen blocks look at: texts that are equal in it need to be computed once only."""
    return tuple(tuple(one) if one is not None else None for one in (example.ids, example.types, example.parts))


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // distributed.size()  # as if all were here
    except (ValueError, OSError):  # a system that doesn't say
        return 4 << 30


def cut(lengths: list[int]) -> Iterator[slice]:
    """Texts whose (padded) lengths rise, as batches of at most MOST_TOKENS, or of one text; in which little is padding,
    unless they were of fewer than FEWEST_TOKENS, for which a product is slow."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        n = stop - start
        if stop < len(lengths):
            too_many = (n + 1) * lengths[stop] > MOST_TOKENS
            too_long = lengths[stop] > 1.2 * lengths[start] and n * lengths[stop - 1] >= FEWEST_TOKENS
        if stop == len(lengths) or too_many or too_long:
            yield slice(start, stop)
            start = stop


class Memory:
    """What frozen blocks make of texts: each is computed when it is first needed, texts that are equal once."""

    def __init__(self, model: nn.Module, n_blocks: int, all_read: bool, like: Batches, amp: str):
        self.model, self.n_blocks, self.all_read, self.amp = model, n_blocks, all_read, amp
        self.pad_id, self.pad_to = like.pad_id, like.pad_to
        self.kept: dict[tuple, Kept] = {}

    def recall(self, examples: list[Example]) -> list[Example]:
        """The examples with what is kept of them."""
        texts = [text_of(one) for one in examples]
        new = {text: one for text, one in zip(texts, examples, strict=True) if text not in self.kept}
        if new:
            self.learn(new)
        return [replace(one, kept=self.kept[text]) for text, one in zip(texts, examples, strict=True)]

    @torch.no_grad()
    def learn(self, new: dict[tuple, Example]) -> None:
        """Runs the frozen part over texts that are new, the short ones together. `new`: text -> an example with it."""
        model, device = self.model, next(self.model.parameters()).device
        was_training = model.training
        model.eval()
        in_order = sorted(new, key=lambda text: len(new[text].ids))
        for part in cut([self.pad_to or len(new[text].ids) for text in in_order]):
            batch = collate([new[text] for text in in_order[part]], self.pad_id, self.pad_to).to(device)
            with autocast(self.amp, device):
                states = self.compute(batch).float()  # in half of that, a run would no more be the same
            for text, one in zip(in_order[part], states, strict=True):
                width = len(one) if self.all_read else self.pad_to or len(new[text].ids)
                self.kept[text] = Kept(one[:width].clone(), None if self.all_read else self.n_blocks)  # no view of them all
        model.train(was_training)

    def compute(self, batch: Batch) -> torch.Tensor:
        """What enters the lowest block that has to run [B, T, D]; or, `all_read`, what the head reads [B, 1 + taps, D]."""
        hidden = self.model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
        if self.all_read:
            return self.model.read(hidden, batch.visible(), batch.lengths).stacked(self.model.head.taps)
        return self.model.run_blocks(hidden, batch.visible(), 0, self.n_blocks)


class Remembered(Batches):
    """The same batches, with what is kept of their texts."""

    def __init__(self, of: Batches, memory: Memory):
        super().__init__(of.examples, of.batch_size, of.pad_id, of.pad_to, of.order)
        self.memory = memory

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Looks some batches ahead, so that texts of similar length can be computed together; at first not far, so that
        training begins at once."""
        order, start, ahead = self.order(number), 0, 1
        while start < len(order):
            stop, ahead = start + ahead * self.batch_size, min(2 * ahead, max(1, FARTHEST // self.batch_size))
            known = self.memory.recall([self.examples[i] for i in order[start:stop]])
            yield from Batches(known, self.batch_size, self.pad_id, self.pad_to).epoch()
            start = stop


def reuse(model: nn.Module, batches: dict[str, Batches], amp: str) -> dict[str, Batches]:
    """The same batches, which bring what frozen blocks make of their texts; where there are such, where nothing in them is
    random, and where it takes no more than PART_OF_MEMORY."""
    n_blocks = frozen_blocks(model)
    if not n_blocks:
        return batches
    what = f"what {n_blocks} of {len(model.blocks)} blocks make of each text"
    if model.config.dropout:
        print(f"frozen   {what} is computed anew each time: --dropout {model.config.dropout:g} draws anew", flush=True)
        return batches
    one = batches["train_in_order"]
    reads_one_position = model.head.rows(torch.empty(1, 1, 0)) is not None
    all_read = n_blocks == len(model.blocks) and reads_one_position
    # Which texts are computed together decides the rounding: evaluations mustn't have a say in what training sees.
    memory_of = {name: "train" if name.startswith("train") else name for name in batches}
    lengths = {
        (memory_of[name], text_of(example)): len(example.ids) for name, each in batches.items() for example in each.examples
    }.values()
    n_states = sum(1 + len(model.head.taps) if all_read else one.pad_to or length for length in lengths)
    needed = 4 * model.config.dim * n_states
    free = free_bytes(next(model.parameters()).device)
    if needed > PART_OF_MEMORY * free:
        print(
            f"frozen   {what} would take {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} free: it is computed anew", flush=True
        )
        return batches
    print(f"frozen   {what} is computed once and kept ({needed / 1e6:,.0f} MB)", flush=True)
    memories = {name: Memory(model, n_blocks, all_read, one, amp) for name in memory_of.values()}
    return {name: Remembered(each, memories[memory_of[name]]) for name, each in batches.items()}
