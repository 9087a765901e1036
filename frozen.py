"""Frozen blocks once: below the lowest block that trains nothing changes, so each text's hidden states are computed once.

Exact up to rounding, and on unless `--reuse_frozen no` is said. Every epoch and every evaluation starts from what is kept.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from data.batching import Batches, Example, Kept, by_length
from train import autocast

PART_OF_MEMORY = 0.5  # of what is free: more than this is never kept


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


def different_texts(batches: dict[str, Batches]) -> dict[tuple, Example]:
    return {text_of(example): example for one in batches.values() for example in one.examples}


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that doesn't say
        return 4 << 30


@torch.no_grad()
def compute(model: nn.Module, batches: Batches, n_blocks: int, all_read: bool, amp: str) -> Iterator[Kept]:
    """What is kept of each example: every position, without padding that is masked; or, `all_read`, what the head reads."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for batch in batches.epoch():
        batch = batch.to(device)
        with autocast(amp, device):
            hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
            if all_read:
                states = model.read(hidden, batch.visible(), batch.lengths).stacked(model.head.taps)  # [B, 1 + taps, D]
            else:
                states = model.run_blocks(hidden, batch.visible(), 0, n_blocks)  # [B, T, D]
        states = states.float()  # as the blocks hand it on under AMP too: in half of that, a run would no more be the same
        for one, length in zip(states, batch.lengths.tolist(), strict=True):
            width = len(one) if all_read else batches.pad_to or length
            yield Kept(one[:width].clone(), None if all_read else n_blocks)  # a view would keep the batch
    model.train(was_training)


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
    one, texts = batches["train_in_order"], different_texts(batches)
    reads_one_position = model.head.rows(torch.empty(1, 1, 0)) is not None
    all_read = n_blocks == len(model.blocks) and reads_one_position
    n_states = sum(1 + len(model.head.taps) if all_read else one.pad_to or len(text.ids) for text in texts.values())
    needed = 4 * model.config.dim * n_states
    free = free_bytes(next(model.parameters()).device)
    if needed > PART_OF_MEMORY * free:
        print(
            f"frozen   {what} would take {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} free: it is computed anew", flush=True
        )
        return batches
    print(f"frozen   {what} is computed once and kept ({needed / 1e6:,.0f} MB)", flush=True)
    order = by_length([len(text.ids) for text in texts.values()])
    in_order = Batches(list(texts.values()), one.batch_size, one.pad_id, one.pad_to, order)
    names = list(texts)
    found = compute(model, in_order, n_blocks, all_read, amp)
    kept = {names[number]: states for number, states in zip(order(0), found, strict=True)}
    return {
        name: one.with_examples([replace(example, kept=kept[text_of(example)]) for example in one.examples])
        for name, one in batches.items()
    }
