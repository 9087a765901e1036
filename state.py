"""What a fit keeps of its past: the best weights so far, for early stopping, and the file from which --resume goes on."""

import json
import math
from pathlib import Path

import torch
from torch import nn

import distributed
from data.batching import Batches
from errors import UserError
from model.weights import read_safetensors, write_safetensors


class Best:
    """Early stopping: what has the lowest validation loss so far, and for how many evaluations nothing was better."""

    def __init__(self, patience: int, trained: dict[str, nn.Parameter], validation: Batches | None):
        if patience and validation is None:
            raise UserError(f"--early_stopping_patience is {patience}, but the data set has no validation part")
        self.patience, self.trained = patience, trained
        self.step, self.loss, self.waited = 0, math.inf, 0
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def is_over(self) -> bool:
        return bool(self.patience) and self.waited >= self.patience

    def see(self, step: int, loss: float) -> None:
        if not self.patience:
            return
        self.waited += 1
        if loss < self.loss:
            self.step, self.loss, self.waited = step, loss, 0
            self.tensors = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def restore(self) -> None:
        for name, tensor in self.tensors.items():
            self.trained[name].copy_(tensor)


def save_state(path: Path, trained: dict, optimizer: torch.optim.Optimizer, scaler, best: Best, step: int) -> None:
    """The trained tensors and the best ones, the optimizer's moments, the generators and the loss scale. Of several
    processes each has to call; the first one writes."""
    tensors = distributed.generators()
    tensors |= {f"trained.{name}": distributed.whole(parameter).cpu() for name, parameter in trained.items()}
    tensors |= {f"best.{name}": distributed.whole(tensor).cpu() for name, tensor in best.tensors.items()}
    for name, parameter in trained.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = distributed.whole(value).cpu()
    if distributed.rank():
        return
    seen = {"step": best.step, "loss": best.loss, "waited": best.waited}
    metadata = {"step": str(step), "scaler": json.dumps(scaler.state_dict()), "best": json.dumps(seen)}
    write_safetensors(tensors, path, metadata)


@torch.no_grad()
def load_state(path: Path, trained: dict, optimizer: torch.optim.Optimizer, scaler, best: Best) -> int:
    """Puts everything of `save_state` back. Returns the number of optimizer steps done."""
    tensors, metadata = read_safetensors(path)
    try:
        step, scale = int(metadata["step"]), json.loads(metadata["scaler"])
        moments = [  # none before step 1
            {"step": tensors[f"step.{name}"]}
            | {key: distributed.part_of(tensors[f"{key}.{name}"], parameter) for key in ("exp_avg", "exp_avg_sq")}
            for name, parameter in trained.items()
            if step
        ]
        vars(best).update(json.loads(metadata["best"]))
        for name, parameter in trained.items():
            parameter.copy_(distributed.part_of(tensors[f"trained.{name}"], parameter))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} lacks {error}; train anew without --resume") from None
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
    scaler.load_state_dict(scale)
    found = {name: tensors[f"best.{name}"] for name in trained if f"best.{name}" in tensors}
    best.tensors = {
        name: distributed.part_of(tensor.to(trained[name].device), trained[name]) for name, tensor in found.items()
    }
    distributed.set_generators(tensors)
    return step
