"""Draw texts, and generate from them the slow way."""

import torch

from tests.helpers.parity import VOCAB


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
