"""Several processes, one model: what `torchrun --nproc_per_node=N experiments.py ...` adds to the loop.

Each global batch of N × --batch_size examples is the one that a single process of that batch size would see; the processes
share it out. Gradients meet in PyTorch's DistributedDataParallel or, where one device can't hold the model (`--fsdp`), in
`fully_shard`. Alone, every function here returns at once what it was given.
"""

import contextlib
import datetime
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import distributed as dist
from torch import nn

from config import Run
from data.batching import IGNORED, Batches, Example, Order
from model import fast_path
from utils.errors import UserError

LONGEST_WAIT = datetime.timedelta(days=1)  # one process may evaluate, load or write while the others wait


# --- the group


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started while the context lasts; only the first of them prints.

    Small things are agreed upon through the CPU, so that no GPU is waited for.
    """
    if dist.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()) if rank() else contextlib.nullcontext():  # the first one prints
            yield
    except RuntimeError as error:
        if not ("gloo" in str(error) or isinstance(error, dist.DistError)):
            raise
        raise UserError(f"process {rank()} of {size()} lost another one, which says why it ended") from error
    finally:
        dist.destroy_process_group()


def launched() -> bool:
    """Return whether torchrun started this process, be it alone. It passes on the signals that it gets."""
    return dist.is_initialized()


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0. The first one writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def check(run: Run) -> None:
    """Raise UserError for what several processes can't do; `run` is resolved."""
    n_here = int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    if size() > 1 and run.device == "cuda" and n_here > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"{n_here} processes were started for {found} GPU{'s' * (found > 1)}; start {found}, or say --device cpu"
        )
    if size() > 1 and run.device == "mps":
        raise UserError("--device mps knows one process; start one, or say --device cpu")
    if not run.fsdp:
        return
    if not dist.is_initialized():
        raise UserError("--fsdp spreads a model over processes: torchrun --nproc_per_node=2 experiments.py --fsdp ...")
    unfit = {"--stages": run.stages, "--eval_generate": run.eval_generate, "--prefix_projection": run.prefix_projection}
    unfit |= {"--compile": run.compile, "--amp fp16": run.amp == "fp16"}
    for flag in (flag for flag, said in unfit.items() if said):
        raise UserError(f"{flag} doesn't go with --fsdp; leave one of them out")


def total(*numbers: float) -> list:
    """Return each number summed over the processes; int stays int. Every process has to call."""
    if size() == 1:
        return [*numbers]
    summed = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(summed)
    return [type(one)(value) for one, value in zip(numbers, summed.tolist(), strict=True)]


def gather(value) -> list:
    """Return what each process has, in their order. Tensors in it are to be on the CPU."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def first(make: Callable):
    """Return what `make` returns in the first process, which alone calls it."""
    if size() == 1:
        return make()
    values = [make() if rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


# --- the data


def whole_batches(run: Run) -> Run:
    """Return the run of one process that sees what all of these see together."""
    return replace(run, batch_size=run.batch_size * size(), eval_batch_size=run.eval_batch_size * size())


def share(batches: dict[str, Batches], ignore_index: int) -> dict[str, Batches]:
    """Return this process's part of batches that were made for `whole_batches`."""
    return {name: share_of(each, ignore_index) for name, each in batches.items()} if size() > 1 else batches


def share_of(of: Batches, ignore_index: int) -> Batches:
    """Return as many batches in every process, for they wait for each other.

    A process that gets nothing of the last, smaller batch gets one token without a target, which adds nothing to any sum.
    """
    if not of.examples:
        return of
    return Batches(
        [*of.examples, blank(of.examples[0], ignore_index)],
        of.batch_size // size(),
        of.pad_id,
        of.pad_to,
        share_of_order(of.order, of.batch_size, len(of.examples)),
        of.class_weights,
    )


def blank(like: Example, ignore_index: int) -> Example:
    """Return one token like the example's first, without a target."""
    return replace(
        like,
        ids=like.ids[:1],
        label=ignore_index if isinstance(like.label, int) else [IGNORED],
        types=like.types and like.types[:1],
        text_lengths=like.text_lengths and (1,),
    )


def share_of_order(order: Order, batch_size: int, blank_index: int) -> Order:
    """Return an order that has an equal part of each batch.

    As far as that allows, an example always comes to the same process, which may have kept its hidden states.
    """
    number, n = rank(), size()

    def own(epoch: int) -> list[int]:
        whole, mine = order(epoch), []
        for start in range(0, len(whole), batch_size):
            batch = sorted(whole[start : start + batch_size], key=lambda i: i % n)
            mine += batch[len(batch) * number // n : len(batch) * (number + 1) // n] or [blank_index]
        return mine

    return own


# --- the model


class LossModule(nn.Module):
    """A module whose forward pass is the loss of a batch: what DistributedDataParallel and `fully_shard` hook into."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch, ignore_index: int):
        return fast_path.loss(self.model, batch, ignore_index)


def ddp_wrap(model: nn.Module) -> Callable:
    """Return the loss of a batch as a function (batch, ignore_index) -> `fast_path.loss`, with gradients averaged over the
    processes."""
    return partial(fast_path.loss, model) if size() == 1 else in_ddp(model)


def in_ddp(model: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Return the same in DistributedDataParallel, be there one process in the group or several."""
    # find_unused_parameters: what a step doesn't use has no gradient that could be waited for.
    # broadcast_buffers: the buffers are frozen weights in fewer bits, which are the same everywhere.
    options = {"find_unused_parameters": True, "broadcast_buffers": False, "gradient_as_bucket_view": True}
    return nn.parallel.DistributedDataParallel(LossModule(model), **options)


@contextlib.contextmanager
def no_sync(compute_loss: Callable, last: bool) -> Iterator[None]:
    """Run one batch of a window: the processes average their gradients once, at the last."""
    if isinstance(compute_loss, nn.parallel.DistributedDataParallel) and not last:
        with compute_loss.no_sync():
            yield
        return
    if isinstance(compute_loss, LossModule):
        compute_loss.set_requires_gradient_sync(last)
    yield


def shard_model(model: nn.Module, device: torch.device) -> LossModule:
    """Leave this process a part of each tensor, in place, and return the module that computes a batch's loss.

    A block is whole only while it computes. The model may come on the CPU: its parts go to the device block by block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (size(),))
    loss_module = LossModule(model)
    for part in (*model.blocks, loss_module):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return loss_module


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor that may be spread over the processes, detached. Every process has to call."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor, spread as `like` is: the inverse of `whole`."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# --- the generators


def seed_of(seed: int) -> int:
    """Return this process's seed: each draws its own dropout."""
    return (seed + rank() * 0x9E3779B97F4A7C15) % 2**63


def generators() -> dict[str, torch.Tensor]:
    """Return the states of torch's generators in every process.

    generator.cpu and generator.cuda are those of the first; generator.cpu.1 that of the second, and so on.
    """
    own = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["generator.cuda"] = torch.cuda.get_rng_state()
    return {f"{name}.{i}" if i else name: state for i, each in enumerate(gather(own)) for name, state in each.items()}


def set_generators(tensors: dict[str, torch.Tensor]) -> None:
    """Put this process's part of `generators` back."""
    suffix = f".{rank()}" if rank() else ""
    torch.set_rng_state(tensors[f"generator.cpu{suffix}"])
    if f"generator.cuda{suffix}" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"generator.cuda{suffix}"])
