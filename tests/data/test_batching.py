"""Padding, masks and the order of examples."""

import pytest
import torch
from torch.utils.data import DataLoader

from data.batching import IGNORED, Batches, Example, bucketed_order, by_length, collate, published_order, seeded_order

PAD = 99
THREE = [Example([1, 2], 0), Example([3, 4, 5, 6], 1), Example([7], 1)]


def same(found: torch.Tensor, expected: list) -> bool:
    return found.dtype == torch.int64 and found.tolist() == expected


# One batch


def test_a_fixed_width_has_no_mask():
    """The published rows pad every text alike and let the model see the padding."""
    batch = collate(THREE, PAD, 6)
    assert same(batch.input_ids, [[1, 2, 99, 99, 99, 99], [3, 4, 5, 6, 99, 99], [7, 99, 99, 99, 99, 99]])
    assert batch.attention_mask is None
    assert same(batch.labels, [0, 1, 1])
    assert same(batch.lengths, [2, 4, 1])


def test_without_a_width_the_longest_rules_and_padding_is_masked():
    batch = collate(THREE, PAD, None)
    assert same(batch.input_ids, [[1, 2, 99, 99], [3, 4, 5, 6], [7, 99, 99, 99]])
    assert same(batch.attention_mask, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert same(batch.lengths, [2, 4, 1])


@pytest.mark.parametrize("examples", [[THREE[0]], [Example([1, 2, 3], 0), Example([4, 5, 6], 1)]])
def test_equal_lengths_need_no_mask(examples: list[Example]):
    batch = collate(examples, PAD, None)
    assert batch.attention_mask is None
    assert same(batch.input_ids, [list(example.ids) for example in examples])


def test_a_text_may_hold_the_padding_token():
    """Lengths and masks come from what was given, not from comparing with the padding id."""
    batch = collate([Example([1, PAD, PAD], 0), Example([PAD], 1), Example([5, 6, 7, 8], 1)], PAD, None)
    assert same(batch.lengths, [3, 1, 4])
    assert same(batch.attention_mask, [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("pad_to", [None, 5])
def test_labels_per_position_are_padded_with_ignored(pad_to: int | None):
    examples = [Example([1, 2], [2, IGNORED]), Example([3, 4, 5], [4, 5, 6])]
    batch = collate(examples, PAD, pad_to)
    extra = [IGNORED] * (0 if pad_to is None else 2)
    assert same(batch.labels, [[2, IGNORED, IGNORED, *extra], [4, 5, 6, *extra]])
    assert batch.labels.shape == batch.input_ids.shape
    unweighted = torch.nn.functional.cross_entropy(
        torch.zeros(batch.labels.numel(), 7), batch.labels.flatten(), reduction="sum"
    )
    assert unweighted.item() == pytest.approx(4 * torch.tensor(7.0).log().item())  # 4 targets, the rest is left out


def test_a_batch_moves_whole():
    meta = torch.device("meta")
    moved = collate(THREE, PAD, None).to(meta)
    assert {moved.input_ids.device, moved.labels.device, moved.lengths.device, moved.attention_mask.device} == {meta}
    assert collate(THREE, PAD, 6).to(meta).attention_mask is None


# The order


def test_a_seeded_order_shuffles_everything_and_differs():
    orders = {(seed, epoch): seeded_order(50, seed)(epoch) for seed in (0, 1, 123) for epoch in range(3)}
    for order in orders.values():
        assert sorted(order) == list(range(50))
        assert order != list(range(50))
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_a_seeded_order_depends_on_seed_and_epoch_alone():
    first = seeded_order(50, 7)
    expected = [first(epoch) for epoch in range(3)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = seeded_order(50, 7)
    assert [again(epoch) for epoch in (2, 0, 1, 2)] == [expected[2], *expected]  # in any sequence, as often as you like
    assert torch.equal(torch.get_rng_state(), state)  # and it draws from nobody else's generator


def published_loop(n_train: int, n_validation: int, batch_size: int, n_epochs: int) -> list[list[int]]:
    """The order of training in the published script, whose loops and loaders this repeats; the model draws nothing."""
    torch.manual_seed(123)
    train = DataLoader(range(n_train), batch_size=batch_size, shuffle=True, num_workers=0, drop_last=True)
    validation = DataLoader(range(n_validation), batch_size=batch_size, num_workers=0, drop_last=False)

    def look_at(loader: DataLoader, n_batches: int):
        n_batches = min(n_batches, len(loader))
        for i, _ in enumerate(loader):
            if i >= n_batches:
                break

    seen, step = [], -1
    for _ in range(n_epochs):
        seen.append([])
        for batch in train:
            seen[-1] += batch.tolist()
            step += 1
            if step % 50 == 0:
                look_at(train, 5)
                look_at(validation, 5)
        look_at(train, 5)
        look_at(validation, 5)
    return seen


@pytest.mark.parametrize(
    ("n_train", "batch_size"),
    [(1045, 8), (1045, 1), (203, 4), (200, 4), (35, 8), (8, 8)],
    ids=["published", "no padding", "a step 50 too", "ends at step 50", "short epochs", "one batch"],
)
def test_the_published_order_is_that_of_the_published_loop(n_train: int, batch_size: int):
    loop = published_loop(n_train, 149, batch_size, n_epochs=3)
    order = published_order(n_train, seed=123, batch_size=batch_size)
    assert [order(epoch) for epoch in range(3)] == loop
    assert len(loop[0]) == n_train // batch_size * batch_size  # the short last batch is dropped
    assert loop[0] != loop[1]


def test_the_published_order_is_stateless_and_follows_the_seed():
    order = published_order(100, 123, 8)
    state = torch.get_rng_state()
    assert order(1) == order(1) == published_order(100, 123, 8)(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert order(0) != published_order(100, 124, 8)(0)


# The batches of a split


def ten() -> list[Example]:
    return [Example([i] * (i + 1), i % 2) for i in range(10)]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (64, [10])])
def test_batches_show_every_example_once_and_in_order(batch_size: int, sizes: list[int]):
    batches = Batches(ten(), batch_size, PAD)
    shown = list(batches.epoch())
    assert [len(batch.input_ids) for batch in shown] == sizes
    assert len(batches) == len(sizes)
    assert batches.n_examples() == 10
    assert torch.cat([batch.lengths for batch in shown]).tolist() == list(range(1, 11))
    assert torch.cat([batch.labels for batch in shown]).tolist() == [i % 2 for i in range(10)]


def test_batches_follow_their_order_in_each_epoch():
    batches = Batches(ten(), 4, PAD, order=seeded_order(10, 3))
    epochs = [torch.cat([batch.input_ids[:, 0] for batch in batches.epoch(number)]).tolist() for number in (0, 1)]
    assert epochs == [seeded_order(10, 3)(0), seeded_order(10, 3)(1)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)


def test_batches_count_what_their_order_shows():
    """The published order leaves the short last batch out, so the counts must follow the order, not the split."""
    batches = Batches(ten(), 4, PAD, order=published_order(10, 123, 4))
    assert batches.n_examples() == 8 and len(batches) == 2
    assert [len(batch.lengths) for batch in batches.epoch(0)] == [4, 4]
    assert len(batches.examples) == 10


def test_batches_pad_to_what_they_are_told():
    fixed = list(Batches(ten(), 4, PAD, pad_to=12).epoch())
    assert [tuple(batch.input_ids.shape) for batch in fixed] == [(4, 12), (4, 12), (2, 12)]
    assert all(batch.attention_mask is None for batch in fixed)
    longest = list(Batches(ten(), 4, PAD).epoch())
    assert [batch.input_ids.shape[1] for batch in longest] == [4, 8, 10]
    assert all(int(batch.attention_mask.sum()) == int(batch.lengths.sum()) for batch in longest)


def test_token_types_are_padded_with_the_first():
    examples = [Example([1, 2, 3], 0, types=[0, 0, 1]), Example([4], 1, types=[0])]
    batch = collate(examples, PAD, None)
    assert same(batch.token_type_ids, [[0, 0, 1], [0, 0, 0]])
    assert collate(THREE, PAD, None).token_type_ids is None


def test_bucketed_batches_hold_similar_lengths_and_each_text_once():
    lengths = torch.randint(1, 60, (203,)).tolist()
    order = bucketed_order(lengths, seed=1, batch_size=8, pool=5)
    epochs = [order(epoch) for epoch in range(3)]
    for found in epochs:
        assert sorted(found) == list(range(203))
    assert epochs[0] != epochs[1] != epochs[2] and bucketed_order(lengths, 1, 8, 5)(1) == epochs[1]
    assert bucketed_order(lengths, 2, 8, 5)(0) != epochs[0]

    def padding(found):
        batches = [[lengths[i] for i in found[start : start + 8]] for start in range(0, 203, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(epochs[0]) < padding(seeded_order(203, 1)(0)) / 3
    firsts = [lengths[found[0]] for found in (order(epoch) for epoch in range(20))]
    assert len(set(firsts)) > 5  # the batches come in no order of length
    assert len(epochs[0][200:]) == 3  # the short batch is the last one


def test_an_evaluation_by_length_pads_least():
    assert by_length([3, 1, 2, 1])(0) == [1, 3, 2, 0]


def test_an_order_is_asked_once_for_the_number_of_batches():
    """An order may sort the whole split, and the loop asks for the number of batches at each step."""
    asked = []

    def order(epoch: int) -> list[int]:
        asked.append(epoch)
        return list(range(8))

    batches = Batches(ten(), 4, PAD, order=order)
    assert [len(batches) for _ in range(5)] == [2] * 5 and batches.n_examples() == 8
    assert asked == [0]
