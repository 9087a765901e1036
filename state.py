"""What a fit keeps of its past: the best weights so far, for early stopping, and the file from which --resume goes on."""

import json
import math
from pathlib import Path

import torch
from torch import nn

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
    """The trained tensors and the best ones, the optimizer's moments, the generators and the loss scale."""
    tensors = {"generator.cpu": torch.get_rng_state()}
    tensors |= {f"trained.{name}": parameter.detach().cpu() for name, parameter in trained.items()}
    tensors |= {f"best.{name}": tensor.cpu() for name, tensor in best.tensors.items()}
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in trained.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value.cpu()
    seen = {"step": best.step, "loss": best.loss, "waited": best.waited}
    metadata = {"step": str(step), "scaler": json.dumps(scaler.state_dict()), "best": json.dumps(seen)}
    write_safetensors(tensors, path, metadata)


@torch.no_grad()
def load_state(path: Path, trained: dict, optimizer: torch.optim.Optimizer, scaler, best: Best) -> int:
    """Puts everything of `save_state` back. Returns the number of optimizer steps done."""
    tensors, metadata = read_safetensors(path)
    keys = ("step", "exp_avg", "exp_avg_sq")
    name_of = {parameter: name for name, parameter in trained.items()}
    ordered = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    try:
        step, scale = int(metadata["step"]), json.loads(metadata["scaler"])
        moments = [{key: tensors[f"{key}.{name}"] for key in keys} for name in ordered if step]  # none before step 1
        vars(best).update(json.loads(metadata["best"]))
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"trained.{name}"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} lacks {error}; train anew without --resume") from None
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
    scaler.load_state_dict(scale)
    best.tensors = {name: tensors[f"best.{name}"].to(trained[name].device) for name in trained if f"best.{name}" in tensors}
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["generator.cuda"])
    return step
