"""What `result.json` says of the machine and of what went in, and how it is written and read."""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from data.batching import Batches
from data.dialogues import Dialogue
from data.encode import longest_text
from data.files import TextExample
from model.base_precision import weights_of
from model.registry import entries_of
from model.transformer import Transformer
from training import distributed
from utils import files
from utils.errors import UserError


def write_json(path: Path, content: object) -> None:
    """Write a JSON file. Of several processes, the first one writes."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, so that `path` never holds half of it. Of several processes, the first one writes."""
    if distributed.rank() == 0:
        files.write_text(path, text)


def read_json(path: Path) -> object:
    """Return the content of a file that an earlier run wrote, or None where there is none that can be read."""
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return None


def read_result(directory: Path) -> dict | None:
    """Return the result of a run, or None where there is none that can be read."""
    result = read_json(directory / "result.json")
    return result if is_result(result) else None


# What is read again of an earlier result, and must be a number there.
NUMBER_ENDINGS = {  # the last words of names, as in test_accuracy, total_seconds, tokens_per_second
    *("accuracy", "loss", "perplexity", "f1", "bleu4", "rouge1", "rouge2", "rougel"),
    *("margin", "gap", "before"),
    *("seconds", "second", "steps", "seed"),
}
COMPLETE_RUN_HAS = {"seed", "steps", "train_seconds", "total_seconds"}
STAGE_HAS = {"steps", "seconds", "tokens", "step_seconds", "trainable_parameters", "total_parameters"}


def is_result(value: object) -> bool:
    """Return whether a run can have written this, as far as it is read again."""
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
        return False
    numbers = [one for name, one in value.items() if name.rpartition("_")[2] in NUMBER_ENDINGS and one is not None]
    if value.get("interrupted") is False:
        return value.keys() >= COMPLETE_RUN_HAS and all_numbers(numbers)
    stages = value.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) and stage.keys() >= STAGE_HAS for stage in stages):
        return False
    return all_numbers([*numbers, *(stage[name] for stage in stages for name in STAGE_HAS)])


def all_numbers(values: list) -> bool:
    """Return whether each of the values is a number."""
    return all(isinstance(value, int | float) for value in values)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters; a tied tensor counts once."""
    parameters = list(weights_of(model).values())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def drawn_parts(model: Transformer, weights: str) -> list[str]:
    """Return which parts of a model have no weights from a file, by their published names.

    weights    --weights of the run
    """
    if weights == "random":
        return ["the whole model"]
    tensors = {entry.hf_name for entry in entries_of(model)}
    whole = {module_of(name) for name in model.drawn} - {module_of(name) for name in tensors - {*model.drawn, "score.bias"}}
    parts = [module_of(name) if module_of(name) in whole else name for name in model.drawn]
    return list(dict.fromkeys(parts))


def module_of(name: str) -> str:
    """Return the module that a tensor belongs to."""
    return name.rpartition(".")[0]


def warnings_of(drawn: list[str], steps: int) -> list[str]:
    """Return what makes the measures of a run mean little, a sentence each.

    drawn    what `drawn_parts` returned
    steps    how many steps were trained
    """
    if steps or not drawn:
        return []
    return [f"nothing was trained, and no file has weights of {', '.join(drawn)}: what is measured is a draw of the seed"]


def about_texts(splits: dict[str, list[TextExample]], batches: dict[str, Batches]) -> dict:
    """Return what a prediction has to know of the texts that a classifier was trained on.

    {"longest": its tokens, to which --context_length longest_training_example cuts others, "pairs": whether they are pairs}
    """
    return {"longest": longest_text(batches), "pairs": splits["train"][0].pair is not None}


def is_about_texts(value: object) -> bool:
    """Return whether `about_texts` can have returned this."""
    types = {"longest": int, "pairs": bool}
    return isinstance(value, dict) and {name: type(one) for name, one in value.items()} == types and value["longest"] > 0


def files_sha256(files: Iterable[Path]) -> str:
    """Return a hash of the bytes of those of the files that are there, in the order of their names.

    Raises UserError where none is there: the hash of nothing would never change.
    """
    there = sorted(file for file in files if file.is_file())
    if not there:
        raise UserError("there is no file to take a hash of; were files removed while they were read?")
    return _sha256_of_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in there))


@cache  # a table asks once per run; size and time are there to notice a change
def _sha256_of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def data_sha256(splits: dict[str, Iterable[TextExample | Dialogue]]) -> str:
    """Return a hash of the texts and labels themselves, whatever file they came in."""
    rows = {name: [one.content() for one in examples] for name, examples in splits.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak of memory be counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it isn't allowed, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")  # resets the resident set's high-water mark


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the GPU's memory; on the CPU that of the process, the interpreter and libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def device_name(device: torch.device) -> str:
    """Return a device in words, such as "cpu (x86_64, 2 threads)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run needs."""
    packages = ("torch", "tiktoken", "numpy", "safetensors", "huggingface_hub")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def git_state() -> str | None:
    """Return the commit, with "-dirty" where tracked files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def totals(stages: list[dict]) -> dict:
    """Return what the records of a run's stages come to."""
    return {
        "steps": sum(stage["steps"] for stage in stages),
        "interrupted": stages[-1]["interrupted"],
        "train_seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "tokens_per_second": tokens_per_second(stages),
        "trainable_parameters": max(stage["trainable_parameters"] for stage in stages),
        "total_parameters": max(stage["total_parameters"] for stage in stages),
        "stages": stages,
    }


def tokens_per_second(stages: list[dict]) -> float | None:
    """Return how many tokens the optimizer's steps took in, padding not counted, by the seconds spent on steps alone."""
    tokens, seconds = (sum(stage[name] for stage in stages) for name in ("tokens", "step_seconds"))
    return round(tokens / seconds, 1) if seconds else None
