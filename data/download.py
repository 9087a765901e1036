"""Fetching a data set: standard library only, checked, and never half there."""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from errors import UserError
from network import any_answers, offline

PATIENCE = 2.5  # seconds to the first answer of any address, before the network counts as absent
LARGEST = 100 << 20  # bytes; no file that is fetched or unpacked here has a tenth of it
STALL = 30.0  # seconds without a byte before a download counts as broken off

# What an address can do wrong: no answer, not HTTP, not an archive, not the right one (UserError is a ValueError).
# RuntimeError and EOFError are zipfile's, for an encrypted and for a cut member.
BAD_ANSWERS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
)


def cache_dir() -> Path:
    """Our one cache directory: $PEFT_FROM_SCRATCH_CACHE, else peft-from-scratch in the user's cache directory."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "peft-from-scratch"
    return Path(os.environ.get("PEFT_FROM_SCRATCH_CACHE", fallback))


def find(data_dir: Path | None, file: Path, download: Callable[[Path], Path]) -> Path:
    """A file of a data set, by its path in a data directory: there, or without one in our cache, downloaded once."""
    if data_dir is None:
        return download(cache_dir() / file)
    if not os.path.isfile(data_dir / file):  # Path's own raises for a name that is too long
        raise UserError(f"the data directory {data_dir} has no {file}")
    return data_dir / file


Check = Callable[[Path], None]  # raises UserError where a file that arrived isn't the right one


def has_sha256(expected: str) -> Check:
    def check(path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise UserError(f"sha256 is {found}, expected {expected}")

    return check


def download_file(urls: tuple[str, ...], check: Check, destination: Path) -> Path:
    """Puts the file behind one of the addresses at `destination`, trying each in turn."""
    return _download(urls, check, destination, unpack=lambda fetched, _: fetched)


def download_from_zip(urls: tuple[str, ...], member: str, check: Check, destination: Path) -> Path:
    """The same for one file of a zip archive. Only that member's bytes are read, so that no path in the archive can lead
    anywhere else."""
    return _download(urls, check, destination, unpack=partial(_unpack, member))


def _download(urls: tuple[str, ...], check: Check, destination: Path, unpack: Callable[[Path, Path], Path]) -> Path:
    """The file appears under its name once it has passed its check. Raises UserError with each address's own reason."""
    if destination.is_file():
        return destination
    if offline():
        raise UserError(f"{destination.name} isn't in {destination.parent} and HF_HUB_OFFLINE is set")
    if not any_answers(urls, PATIENCE):
        raise UserError(f"{destination.name} isn't in {destination.parent} and none of {', '.join(urls)} can be reached")
    reasons = []
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as folder:
            for url in urls:
                try:
                    unpacked = unpack(_fetch(url, Path(folder) / "fetched"), Path(folder) / "unpacked")
                    check(unpacked)
                    os.replace(unpacked, destination)
                    return destination
                except BAD_ANSWERS as error:
                    reasons.append(f"{url}: {' '.join(str(error).split())}")
    except OSError as error:
        raise UserError(f"can't store {destination}: {error}") from None
    raise UserError(f"{destination.name} can't be downloaded ({'; '.join(reasons)})")


def _fetch(url: str, path: Path) -> Path:
    with urllib.request.urlopen(url, timeout=STALL) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"download {url.rsplit('/', 1)[-1]}", disable=None)
        with bar, path.open("wb") as file:
            while chunk := answer.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > LARGEST:
                    raise UserError(f"sends more than {LARGEST:,} bytes")
    if total is not None and path.stat().st_size != total:
        raise UserError(f"broke off after {path.stat().st_size} of {total} bytes")
    return path


def _unpack(member: str, archive: Path, path: Path) -> Path:
    with zipfile.ZipFile(archive) as bundle:
        if member not in bundle.namelist():
            raise UserError(f"the archive holds no {member}")
        info = bundle.getinfo(member)
        if info.file_size > LARGEST:  # no more than it says is unpacked, whatever there is
            raise UserError(f"{member} would unpack to {info.file_size:,} bytes; at most {LARGEST:,} are expected")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{member} is packed by method {info.compress_type}; only stored and deflated are read")
        with bundle.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path
