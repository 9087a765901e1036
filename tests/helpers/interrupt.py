"""Interrupt training in a forward pass, counted from 1: of a model, or of whatever model a run trains."""

import signal
from collections.abc import Callable

import pytest
from torch import nn

from model import fast_path


def signal_in_call(number: int, sent: signal.Signals) -> Callable[..., None]:
    """Return a function that sends a signal in its call of this number, and does nothing in the others."""
    calls = []

    def look(*given) -> None:
        calls.append(0)
        if len(calls) == number:
            signal.raise_signal(sent)

    return look


def interrupt_model(model: nn.Module, forward: int, sent: signal.Signals = signal.SIGINT) -> None:
    """Send a signal, Ctrl-C's by default, as the model is about to run for the n-th time."""
    model.token_embedding.register_forward_pre_hook(signal_in_call(forward, sent))


def interrupt_run(patch: pytest.MonkeyPatch, forward: int) -> None:
    """Press Ctrl-C in the n-th forward pass of all runs to come, evaluations included."""
    loss, look = fast_path.loss, signal_in_call(forward, signal.SIGINT)

    def interrupted(*given):
        look()
        return loss(*given)

    patch.setattr(fast_path, "loss", interrupted)
