"""Write a checkpoint of pickled pytorch_model*.bin files as safetensors.

    python tools/bin_to_safetensors.py DIR_OR_NAME OUT_DIR

This is the only place of the project that touches a pickle. A pickle is a program, so the plain unpickler runs what a
stranger wrote. torch's `weights_only` unpickler doesn't: it knows no instruction but to build tensors and plain containers
from a fixed list, and refuses a file that names anything else. Names and shapes are checked against the model's before a
number is read. The files are mapped into memory, one shard at a time, so it takes little more than the largest tensor.
"""

import argparse
import json
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from model import hub
from model.config_file import read_config
from model.registry import architecture_of
from model.tokenizers.files import TOKENIZER_FILES, copy_tokenizer, has_tokenizer_files
from model.weights import FLOATS, match, shards_beside, write_safetensors
from utils.errors import UserError, run_program
from utils.files import check_holds_only, read_json, user_path, write_text

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
OUT_INDEX = "model.safetensors.index.json"
PICKLES = [SINGLE, INDEX, "pytorch_model-*.bin"]


class PickledCheckpoint:
    """The tensors of a directory's pickles: their names and shapes, and each shard's tensors when they are asked for."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.shards = shard_files(directory)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.names: dict[Path, list[str]] = {}
        for shard in self.shards:
            tensors = read_shard(shard)
            self.names[shard] = [*tensors]
            self.shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shard_files(directory: Path) -> list[Path]:
    """Return the pickles that make the checkpoint. Raises UserError where one isn't there."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    try:
        names = sorted({*read_json(directory / INDEX)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{directory} has neither {SINGLE} nor a readable {INDEX}") from None
    return shards_beside(directory / INDEX, names)


def read_shard(shard: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of one pickle, mapped into memory. Raises UserError for a file that holds anything else."""
    try:
        content = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        what = "holds more than tensors, so it isn't read" if isinstance(error, pickle.UnpicklingError) else "can't be read"
        raise UserError(f"{shard} {what}: {reason}") from None
    if not isinstance(content, Mapping) or not all(isinstance(one, torch.Tensor) for one in content.values()):
        raise UserError(f"{shard} isn't a table of tensors by name")
    if other := [name for name, tensor in content.items() if tensor.dtype not in FLOATS]:
        raise UserError(f"{shard} holds {other[0]} as {content[other[0]].dtype}; weights are {', '.join(map(str, FLOATS))}")
    return content


def convert(directory: Path, out: Path) -> None:
    """Write what a directory of pickles holds as safetensors, with config.json and the tokenizer. Raises UserError."""
    config, _ = read_config(directory)
    architecture = architecture_of(config)
    checkpoint = PickledCheckpoint(directory)
    with torch.device("meta"):
        match(architecture.model(config), checkpoint)
    numbers = range(1, len(checkpoint.shards) + 1)
    files = [f"model-{number:05}-of-{len(numbers):05}.safetensors" for number in numbers]
    files = files if len(files) > 1 else ["model.safetensors"]
    written = [*zip(checkpoint.shards, files, strict=True)]
    about = [name for name in (*hub.CONFIG_FILES, *TOKENIZER_FILES) if (directory / name).is_file()]
    check_holds_only(out, [*files, *about, OUT_INDEX], "OUT_DIR")
    out.mkdir(parents=True, exist_ok=True)
    for shard, file in written:
        tensors = {name: tensor.contiguous() for name, tensor in read_shard(shard).items()}
        write_safetensors(own_memory(tensors), out / file, {"format": "pt"})
        print(f"saved    {out / file}", flush=True)
    if len(files) > 1:
        weight_map = {name: file for shard, file in written for name in checkpoint.names[shard]}
        write_text(out / OUT_INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))
    for name in hub.CONFIG_FILES:
        if (directory / name).is_file():
            write_text(out / name, (directory / name).read_text(encoding="utf-8"))
    if has_tokenizer_files(directory):
        copy_tokenizer(directory, out)


def own_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors, with a copy in the place of one that shares memory with one before, as safetensors needs it."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate


def main() -> int:
    """Write what the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=os.path.expanduser, help="a directory, or a name on the hub")
    parser.add_argument("out", type=user_path, help="the directory to write")
    args = parser.parse_args()
    directory = hub.local(args.source) or hub.download(args.source, [*hub.CONFIG_FILES, *PICKLES, *TOKENIZER_FILES])
    convert(directory, args.out)
    return 0


if __name__ == "__main__":
    run_program(main)
