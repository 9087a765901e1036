"""Draw texts, and generate from them the slow way."""

import torch

from model.generation import generate, left_padded
from tests.helpers.parity import CONTEXT, VOCAB


def texts(*lengths: int) -> list[list[int]]:
    """Draw token ids, one text of each length."""
    draw = torch.Generator().manual_seed(7)
    return [torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in lengths]


@torch.no_grad()
def plainly(model, text: list[int], n: int, eos_id: int | None = None) -> list[int]:
    """Generate greedily. Run the whole text through the model for every token."""
    answer = []
    while len(answer) < n and len(text) + len(answer) < model.config.context_length:
        token = int(model(torch.tensor([text + answer]))[0, -1].argmax())
        if token == eos_id:
            break
        answer.append(token)
    return answer


@torch.no_grad()
def assert_cached_as_plain(model, bare) -> None:
    """Assert that a batch with a cache gives what each text does token by token, and `bare`, the model without, doesn't."""
    batch = texts(9, 1, 20, CONTEXT - 6)  # the last fills the context, of which a prefix or a prompt takes nothing
    expected = [plainly(model, text, 12) for text in batch]
    assert generate(model, *left_padded(batch), max_new_tokens=12) == expected
    assert expected != generate(bare, *left_padded(batch), max_new_tokens=12)
