"""Computes what a run needs in memory before it starts: weights, gradients, optimizer state, activations."""

import weakref
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import peft
from config import Run
from model import fast_path
from model.quantized import HalfWeight, QuantizedWeight
from model.transformer import Transformer
from pipeline.build import build_model
from pipeline.result import count_parameters
from training.device import autocast

CPU = torch.device("cpu")
BYTES = 4  # of a float32; trained tensors and their moments are float32 under AMP too


@dataclass(frozen=True)
class Budget:
    """Memory in bytes. Adam keeps two moments for each trained parameter; a frozen one costs its weight alone."""

    weights: int  # of all weights, as they are kept
    trained: int  # how many parameters train
    activations: int = 0

    @property
    def gradients(self) -> int:
        """Return the bytes of the gradients."""
        return BYTES * self.trained

    @property
    def optimizer(self) -> int:
        """Return the bytes of Adam's two moments."""
        return 2 * BYTES * self.trained

    @property
    def total(self) -> int:
        """Return the bytes of everything together."""
        return self.weights + self.gradients + self.optimizer + self.activations


class Saved:
    """A tensor that autograd holds for the backward pass, for as long as it does."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def saved_activations(model: nn.Module, batch_size: int, length: int, amp: str = "off") -> int:
    """Return the bytes that the forward pass keeps for the backward pass, for [batch_size, length] tokens.

    Autograd itself counts them, on fake tensors: they have the CPU's kernels and autocast's casts, but no numbers. On a GPU
    dropout needs no attention weights either, so there it is less. The model, on the meta device, becomes one of fakes.
    """
    held: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor)
        held.add(saved)
        return saved

    for module in model.modules():  # whatever its form, of a quantized weight nothing is kept
        if isinstance(getattr(module, "weight", None), QuantizedWeight):
            with torch.device("meta"):
                module.weight = HalfWeight(module.weight.shape, torch.float16)  # which takes the fewest steps to turn back
    input_ids = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
    mask, positions = model.layout(input_ids, None, None)  # on the meta device, where a ChatGLM looks for no marks
    with FakeTensorMode(allow_non_fake_inputs=True), autocast(amp, CPU):
        model.to_empty(device=CPU)
        input_ids, mask, positions = (
            x if x is None else torch.empty_like(x, device=CPU) for x in (input_ids, mask, positions)
        )
        own = {one.untyped_storage()._cdata for one in [*model.parameters(), *model.buffers()]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            hidden = model.embed(input_ids)
            if model.head.kind == "lm":  # the loss holds no scores, but the gradient of what enters the head
                hidden = fast_path.run_blocks(model, hidden, 0, mask, positions)
                output = model.head.prepare(model.final_norm(hidden))  # [B, T, D]
                of_head = output.nbytes
            else:
                output = fast_path.logits(model, hidden, mask, positions=positions)
                of_head = 0
        storages = [saved.tensor.untyped_storage() for saved in held]
        sizes = {storage._cdata: storage.nbytes() for storage in storages}
        del output  # only now: autograd lets go of what it holds along with it
    return of_head + sum(size for place, size in sizes.items() if place not in own)


def budget(model: nn.Module, batch_size: int, length: int, amp: str = "off") -> Budget:
    """Return the memory that a model on the meta device, with its method attached, needs for such batches."""
    weights = sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
    return Budget(weights, count_parameters(model)[0], saved_activations(model.train(), batch_size, length, amp))


def budgets(build, method, batch_size: int, length: int, checkpointing: bool = False, amp: str = "off") -> list[Budget]:
    """Return what full fine-tuning needs, and what the method needs.

    build           makes the model that is to be trained in full (True), or by the method (False), on the meta device
    checkpointing   of gradients; the backward pass then needs the activations of one block at a time besides
    """
    found = []
    for in_full, one in ((True, peft.Freeze("all")), (False, method)):
        with torch.device("meta"):
            model = peft.attach(build(in_full), one)
        model.gradient_checkpointing = checkpointing
        found.append(budget(model, batch_size, length, amp))
    return found


def budgets_of(run: Run, n_labels: int, method, length: int) -> list[Budget]:
    """Return `budgets` of a complete run with texts of this length. Only shapes matter: no weights are read."""
    unread = replace(run, weights="random")

    def build(in_full: bool) -> Transformer:
        return build_model(replace(unread, base_precision="fp32") if in_full else unread, n_labels)

    return budgets(build, method, run.batch_size, length, run.gradient_checkpointing, run.amp)


def report(in_full: Budget, chosen: Budget, batch_size: int, length: int) -> str:
    """Return what full fine-tuning and a method need for batches of [batch_size, length] tokens, side by side."""
    lines = [f"memory   for {batch_size} x {length} tokens, in MB{'all layers':>18}{'this method':>14}"]
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        megabytes = [getattr(one, name) / 1e6 for one in (in_full, chosen)]
        lines.append(f"         {name:<34}{megabytes[0]:>14,.1f}{megabytes[1]:>14,.1f}")
    return "\n".join(lines)
