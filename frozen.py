"""Frozen blocks once: below the lowest block that trains nothing changes, so each text's hidden states are computed once.

Exact up to rounding, and on unless `--reuse_frozen no` is said. Every epoch and every evaluation starts from what is kept.
"""

import os
from dataclasses import replace

import torch
from torch import nn

from data.batching import Batches, Example, by_length
from train import autocast

PART_OF_MEMORY = 0.5  # of what is free: more than this is never kept


def frozen_blocks(model: nn.Module) -> int:
    """How many blocks from the bottom give the same output every time.

    0 if an embedding trains or the model has dropout, which draws new numbers in every pass. A block whose output the
    head taps counts as the first that has to run.
    """
    n_blocks, lowest = len(model.blocks), len(model.blocks)
    if model.config.dropout:
        return 0
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad] + list(model.head.taps)
    for name in names:
        first, *rest = name.split(".")
        if first == "blocks":
            lowest = min(lowest, int(rest[0]))
        elif first not in ("head", "final_norm"):
            return 0
    return min(lowest, n_blocks)


def bytes_needed(batches: dict[str, Batches], dim: int) -> int:
    """For float32 hidden states of every position of every text."""
    splits = {id(one.examples): one for one in batches.values()}.values()
    positions = sum(one.pad_to or len(example.ids) for one in splits for example in one.examples)
    return 4 * dim * positions


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that doesn't say
        return 4 << 30


@torch.no_grad()
def with_hidden(model: nn.Module, batches: Batches, n_blocks: int, amp: str) -> list[Example]:
    """The examples with what enters block `n_blocks`, [T, D]: all positions, or the real tokens where padding is masked."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    order = by_length([len(one.ids) for one in batches.examples])
    found: list[Example] = list(batches.examples)
    numbers = iter(order(0))
    for batch in Batches(batches.examples, batches.batch_size, batches.pad_id, batches.pad_to, order).epoch():
        batch = batch.to(device)
        with autocast(amp, device):
            hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
            hidden = model.run_blocks(hidden, batch.visible(), 0, n_blocks)
        for states, length in zip(hidden, batch.lengths.tolist(), strict=True):
            number, width = next(numbers), batches.pad_to or length
            found[number] = replace(found[number], hidden=states[:width].clone(), start=n_blocks)  # a view keeps the batch
    model.train(was_training)
    return found


def reuse(model: nn.Module, batches: dict[str, Batches], amp: str) -> dict[str, Batches]:
    """The same batches, which bring the hidden states that enter the lowest block that has to run; where there is one, and
    where they take no more than PART_OF_MEMORY."""
    n_blocks = frozen_blocks(model)
    if not n_blocks:
        return batches
    needed, free = bytes_needed(batches, model.config.dim), free_bytes(next(model.parameters()).device)
    what = f"what {n_blocks} of {len(model.blocks)} blocks make of each text"
    if needed > PART_OF_MEMORY * free:
        print(
            f"frozen   {what} would take {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} free: it is computed anew", flush=True
        )
        return batches
    print(f"frozen   {what} is computed once and kept ({needed / 1e6:,.0f} MB)", flush=True)
    kept: dict[int, list[Example]] = {}  # training and its evaluation share one list of examples
    for one in (batches[name] for name in batches if name != "train"):
        kept[id(one.examples)] = with_hidden(model, one, n_blocks, amp)
    return {name: one.with_examples(kept[id(one.examples)]) for name, one in batches.items()}
