"""What a masked language model is shown and asked."""

from types import SimpleNamespace

import pytest
import torch

from data.batching import IGNORED
from data.masking import MaskedBatches

TOKENIZER = SimpleNamespace(pad_id=0, mask_id=4, special_ids={0, 1, 2, 3, 4}, vocab_size=1000)


def make(seed: int = 1, n: int = 400) -> MaskedBatches:
    ids = [[2, *torch.randint(5, 1000, (int(length),)).tolist(), 3] for length in torch.randint(5, 60, (n,))]
    return MaskedBatches(ids, 16, TOKENIZER, seed)


def test_what_is_hidden_is_asked_for_and_nothing_else():
    batches = make()
    asked = masked = kept = other = words = 0
    for batch, start in zip(batches.epoch(0), range(0, 400, 16), strict=True):
        for row, (shown, labels) in enumerate(zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)):
            ids = batches.examples[start + row].ids
            for i, (seen, label) in enumerate(zip(shown, labels, strict=True)):
                true = ids[i] if i < len(ids) else TOKENIZER.pad_id
                words += true > 4
                if label == IGNORED:
                    assert seen == true
                    continue
                assert label == true > 4  # never a special token, never padding
                asked += 1
                masked += seen == TOKENIZER.mask_id
                kept += seen == true
                other += seen not in (TOKENIZER.mask_id, true)
    assert asked / words == pytest.approx(0.15, abs=0.015)
    assert [masked / asked, other / asked, kept / asked] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_an_epoch_asks_the_same_again_and_another_something_else():
    batches = make()
    first, again, second = ([batch.labels for batch in batches.epoch(number)] for number in (0, 0, 1))
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, second))
