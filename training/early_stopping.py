"""Early stopping: the weights with the lowest validation loss, and when to give up."""

import math

import torch
from torch import nn

from data.batching import Batches
from utils.errors import UserError


class EarlyStopping:
    """Keeps what is trained at the lowest validation loss, and counts the evaluations since.

    With a patience of 0 it does nothing. Raises UserError where there is no validation part to look at.
    """

    def __init__(self, patience: int, trained: dict[str, nn.Parameter], validation: Batches | None):
        if patience and validation is None:
            raise UserError(f"--early_stopping_patience is {patience}, but the data set has no validation part")
        self.patience, self.trained = patience, trained
        self.step, self.loss, self.waited = 0, math.inf, 0
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Return whether `patience` evaluations in a row were no better than the best."""
        return bool(self.patience) and self.waited >= self.patience

    def update(self, step: int, loss: float) -> None:
        """Take note of an evaluation. Copies what is trained if this loss is the lowest so far."""
        if not self.patience:
            return
        self.waited += 1
        if loss < self.loss:
            self.step, self.loss, self.waited = step, loss, 0
            self.tensors = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the values of the best evaluation back into what is trained."""
        for name, tensor in self.tensors.items():
            self.trained[name].copy_(tensor)
