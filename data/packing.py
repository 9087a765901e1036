"""Several short texts in one row, so that little of a batch is padding: each sees only itself, at positions of its own."""

from collections.abc import Sequence

import numpy as np

from data.batching import Example
from utils.errors import UserError


def pack(examples: Sequence[Example], length: int) -> list[Example]:
    """Return rows of at most `length` tokens, by first fit: the longest example first, each into the first row with room.

    The loss of a row is the sum of those of its examples. Which ones share a row depends on their lengths and order alone.
    Raises UserError for an example that is longer than a row.
    """
    sizes = [len(one.ids) for one in examples]
    if max(sizes, default=0) > length:
        raise UserError(f"an example of {max(sizes)} tokens doesn't fit into a row of {length}")
    rows: list[list[Example]] = []
    room = np.full(len(examples), length)  # tokens that fit into each row; rows beyond len(rows) are still empty
    for i in sorted(range(len(examples)), key=lambda i: -sizes[i]):  # equal lengths stay in their order
        row = int(np.argmax(room[: len(rows) + 1] >= sizes[i]))  # the first that is True
        if row == len(rows):
            rows.append([])
        rows[row].append(examples[i])
        room[row] -= sizes[i]
    return [join(row) for row in rows]


def join(examples: Sequence[Example]) -> Example:
    """Return examples of T1, T2, ... tokens as one of T1 + T2 + ... whose `text_lengths` keep them apart."""
    return Example(
        ids=[token_id for one in examples for token_id in one.ids],
        label=[target for one in examples for target in one.label],
        text_lengths=[len(one.ids) for one in examples],
    )
