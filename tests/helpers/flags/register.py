"""Register the checks of flags."""

from collections.abc import Callable

import torch

CHECKS: dict[str, Callable] = {}  # by the name of the field of `Run`
LORA = ("--trainable_layers", "lora", "--lora_rank", 4)


def check(*names):
    """Register a check of these flags. It takes the fixtures `experiment` and `fixtures` of test_flags.py."""

    def register(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


def differ(one, other):
    """Return whether any tensor differs."""
    return any(not torch.equal(one[name], other[name]) for name in one)
