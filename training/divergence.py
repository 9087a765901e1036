"""What happens when a training comes to nan or inf: it ends with the step, and nothing broken is saved."""

from collections.abc import Mapping

import torch

from training import distributed
from utils.errors import UserError

ADVICE = "try a smaller --learning_rate, --max_grad_norm 1 or --amp off"


class Diverged(UserError):
    """The training has come to what is no number."""


def check_finite(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise Diverged if a tensor holds nan or inf. Every process has to call; of tensors that are spread over them, each
    looks at its own part."""

    def is_bad(tensor: torch.Tensor) -> bool:
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        return tensor.is_floating_point() and not tensor.isfinite().all()

    bad = next((name for name, tensor in tensors.items() if is_bad(tensor)), None)
    for name in filter(None, distributed.gather(bad)):
        raise Diverged(f"{name} holds nan or inf after step {step}")
