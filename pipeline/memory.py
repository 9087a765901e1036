"""What a run needs in memory, worked out before it starts: weights, gradients, optimizer state, activations."""

from dataclasses import dataclass

import torch
from torch import nn

import peft
from pipeline.result import count_parameters
from train import checkpointed

BYTES = 4  # of a float32; trained tensors and their moments are float32 under AMP too


@dataclass(frozen=True)
class Budget:
    """Bytes. Adam keeps two moments for each trained parameter, a frozen one costs its weight alone."""

    parameters: int
    trained: int
    activations: int = 0

    @property
    def weights(self) -> int:
        return BYTES * self.parameters

    @property
    def gradients(self) -> int:
        return BYTES * self.trained

    @property
    def optimizer(self) -> int:
        return 2 * BYTES * self.trained

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def saved_activations(model: nn.Module, batch_size: int, length: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, for [batch_size, length] tokens.

    Counted by autograd itself on a model on the meta device, so nothing is computed. A fused attention kernel, which
    keeps no attention weights, needs less; autocast needs less or more, by what it casts.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    input_ids = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(input_ids)  # kept alive: a freed storage's address would be counted for another
    del output
    return sum(kept.values())


def budget(model: nn.Module, batch_size: int, length: int) -> Budget:
    """Of a model on the meta device with its method attached."""
    trained, parameters = count_parameters(model)
    return Budget(parameters, trained, saved_activations(model.train(), batch_size, length))


def report(build, method, batch_size: int, length: int, checkpointing: bool = False) -> str:
    """Full fine-tuning and the method side by side. `build()` makes the model; it is called on the meta device.

    With gradient checkpointing, the backward pass needs the activations of one block at a time besides.
    """
    budgets = []
    for one in (peft.Freeze("all"), method):
        with torch.device("meta"):
            model = peft.attach(build(), one)
        with torch.device("meta"), checkpointed(model, checkpointing):
            budgets.append(budget(model, batch_size, length))
    lines = [f"memory   for {batch_size} x {length} tokens, in MB{'all layers':>18}{'this method':>14}"]
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        full, chosen = (getattr(one, name) / 1e6 for one in budgets)
        lines.append(f"         {name:<34}{full:>14,.1f}{chosen:>14,.1f}")
    return "\n".join(lines)
