"""Compare our models with the reference library's: a small GPT-2 of that library, and the measure of a difference."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from model import weights

TOLERANCE = 1e-5  # times the largest absolute value of the reference
LAYERS, DIM, HEADS, VOCAB, CONTEXT = 3, 96, 4, 500, 64


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference divided by the reference's largest value. NaN passes no comparison with it."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def gradients_by_their_names(ours: nn.Module) -> dict[str, torch.Tensor]:
    """Return our gradients under the names that the library gives to the parameters."""
    gradients = copy.deepcopy(ours)  # a model that holds the gradients, so that the name table can translate them
    for into, parameter in zip(gradients.parameters(), ours.parameters(), strict=True):
        into.copy_(parameter.grad)
    return weights.to_hugging_face(gradients)


def reference(kind: str, **settings) -> nn.Module:
    """Make a small model of the library. Biases and norms are random too: a mix-up of zeros or ones wouldn't show."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=LAYERS,
        n_embd=DIM,
        n_head=HEADS,
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0) | settings,
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def padding_mask(side: str) -> torch.Tensor:
    """Return a mask [3, 20] of 20, 13 and 6 real tokens, with padding on the given side."""
    mask = (torch.arange(20) < torch.tensor([20, 13, 6])[:, None]).long()
    return mask.flip(1) if side == "left" else mask


def assert_same_on_real_tokens(
    ours: nn.Module, found: torch.Tensor, expected: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> int:
    """Assert that two ways to compute logits, and the gradients of what trains in `ours`, are equal.

    found, expected    logits [B, T, V], both computed from the parameters of `ours`

    Padding, where the mask [B, T] is 0, doesn't count. Returns the number of parameters that train.
    """
    real = mask.bool()
    assert distance(found[real], expected[real]) <= TOLERANCE
    gradients = []
    for logits in (found, expected):
        ours.zero_grad()
        F.cross_entropy(logits[real], ids[real]).backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters() if parameter.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert distance(one, other) <= 10 * TOLERANCE
    return len(gradients[0])
