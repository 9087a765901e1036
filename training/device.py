"""Where a run computes and in which precision, and how much memory there is."""

import contextlib
import ctypes
import sys
from pathlib import Path

import torch

from utils.errors import UserError

CGROUPS = (  # (limit, use, statistics) of a container's memory: version 2, then version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
M_MMAP_THRESHOLD = -3  # of malloc.h
UNKNOWN = 4 << 30  # bytes, on a system that doesn't say


def pick_device(wanted: str) -> torch.device:
    """Return the device of that name. "auto" is CUDA, else Apple's MPS, else the CPU. Raises UserError."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        choices = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"--device {wanted} isn't available here; choose auto, {choices}")
    return torch.device(wanted)


def pick_amp(wanted: str, device: torch.device) -> str:
    """Return the precision of the forward pass: bf16, fp16 or off. Raises UserError.

    "auto" is bf16 where the hardware computes it natively, fp16 on older NVIDIA GPUs, else off. A processor without bf16
    instructions would emulate them, several times slower than fp32.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; on the CPU choose auto, off or bf16")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "off"


def autocast(amp: str, device: torch.device):
    """Return the context in which the forward pass runs. The tensors that train stay float32 in any case."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


def return_freed_memory() -> None:
    """Let the process give blocks of 4 MB or more back to the system as soon as they are freed, where glibc can.

    Else it keeps what batches of ever other shapes leave in pieces: a quarter more than the process needs. A step of LoRA
    over 1.7 billion weights in 4 bits takes 4.4 GB so, and 6.4 GB without.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 4 << 20)


def available_bytes(device: torch.device) -> int:
    """Return the memory that a process may still take: of the GPU, else of the machine or the container's limit.

    Memory that the system uses only to cache files counts as available.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [available_on_machine(), *(available_in_container(*files) for files in CGROUPS)]
    known = [number for number in found if number is not None]
    return min(known) if known else UNKNOWN


def available_on_machine(file: str = "/proc/meminfo") -> int | None:
    """Return what Linux estimates new processes can take without swapping, or None where it doesn't say."""
    try:
        lines = Path(file).read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def available_in_container(limit: str, used: str, statistics: str) -> int | None:
    """Return what a control group's limit leaves, or None where there is no limit."""
    try:
        most, now = int(Path(limit).read_text()), int(Path(used).read_text())  # "max" is no number: no limit
        lines = (line.split() for line in Path(statistics).read_text().splitlines())
        file_cache = next((int(number) for name, number in lines if name in ("inactive_file", "total_inactive_file")), 0)
    except (OSError, ValueError):
        return None
    return max(0, most - now + file_cache)
