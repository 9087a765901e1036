"""Fetches data sets: a download is resumed where it broke off, checked, and never half there.

The standard library does it, and tqdm, which comes with huggingface_hub, shows how far it is.
"""

import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.errors import UserError
from utils.files import user_path
from utils.network import any_answers, offline

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 2.5  # seconds to the first answer of any address, before the network counts as absent
LARGEST = 100 << 20  # bytes; no file that is fetched or unpacked here has a tenth of it
STALL = 30.0  # seconds without a byte before a connection counts as lost
TRIES = 3  # connections in a row that bring nothing new, before an address is given up
PAUSE = 1.0  # seconds before the second of them, doubled before each further one

# What is wrong with a file that arrived: it isn't the archive, or not the right one (UserError is a ValueError).
# RuntimeError and EOFError are zipfile's, for an encrypted and for a cut member.
WRONG_CONTENT = (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError, ValueError)
CONNECTION = (OSError, http.client.HTTPException, ValueError)  # ValueError: a redirect to what is no address
LOST = (TimeoutError, ConnectionResetError, ConnectionAbortedError, http.client.IncompleteRead)  # worth another try


class BadAnswer(Exception):
    """What an address did wrong. `again`: it may do better if it is asked again."""

    def __init__(self, reason: str, again: bool = False):
        super().__init__(reason)
        self.again = again


def cache_dir() -> Path:
    """Return our one cache directory: $PEFT_FROM_SCRATCH_CACHE, else peft-from-scratch in the user's cache directory."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "peft-from-scratch"
    return user_path(os.environ.get("PEFT_FROM_SCRATCH_CACHE", str(fallback)))


def find(data_dir: Path | None, file: Path, download: Callable[[Path], Path]) -> Path:
    """Return a file of a data set, by its path in a data directory: there, or else in our cache, downloaded once.

    Raises UserError.
    """
    if data_dir is None:
        return download(cache_dir() / file)
    if not os.path.isfile(data_dir / file):  # Path's own raises for a name that is too long
        raise UserError(f"the data directory {data_dir} has no {file}")
    return data_dir / file


Check = Callable[[Path], None]  # raises UserError where a file that arrived isn't the right one


def has_sha256(expected: str) -> Check:
    """Return a check that a file's content has this hash."""

    def check(path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise UserError(f"sha256 is {found}, expected {expected}")

    return check


def download_file(urls: tuple[str, ...], check: Check, destination: Path) -> Path:
    """Put the file behind one of the addresses at `destination`, trying each in turn. Raises UserError."""
    return _download(urls, destination, partial(_store_file, check, destination))


def download_from_zip(urls: tuple[str, ...], members: dict[str, Check], destination: Path) -> Path:
    """Do the same for a file of a zip archive.

    All `members` come to lie beside it, each under the last part of its path. Nothing else of the archive is read, so that
    no path in it can lead anywhere else.
    """
    return _download(urls, destination, partial(_store_members, members, destination.parent))


def _download(urls: tuple[str, ...], destination: Path, store: Callable[[Path], None]) -> Path:
    """Return the destination, where the file appears once it has passed its check.

    store   (what was fetched) -> None: checks it and moves it to where it belongs

    Raises UserError with the reason of each address.
    """
    if destination.is_file():
        return destination
    absent = f"{destination.name} isn't in {destination.parent}"
    what_to_do = "run once with a network, or pass --data_dir DIR"
    if offline():
        raise UserError(f"{absent} and HF_HUB_OFFLINE is set: {what_to_do}")
    if not any_answers(urls, PATIENCE):
        raise UserError(f"{absent} and none of {', '.join(urls)} can be reached: {what_to_do}")
    reasons = []
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(destination) as part:
            for url in urls:
                if destination.is_file():  # this process waited for another that has downloaded it
                    return destination
                try:
                    _fetch_and_store(url, part, store)
                    return destination
                except BadAnswer as error:
                    reasons.append(f"{url}: {error}")
    except OSError as error:
        raise UserError(
            f"can't store {destination}: {error.strerror or error}; make room, or set PEFT_FROM_SCRATCH_CACHE to a "
            "directory elsewhere"
        ) from None
    raise UserError(f"{destination.name} can't be downloaded ({'; '.join(reasons)})")


@contextmanager
def _part_of(destination: Path) -> Iterator[Path]:
    """Yield the file in which a download grows. An interrupted one leaves it to the next; one process has it at a time."""
    part = destination.with_name(f".{destination.name}.part")
    lock = _lock(part) if fcntl else None
    if lock is None:  # then no process may touch the part of another, and none can go on from it
        part = part.with_name(f"{part.name}.{os.getpid()}")
        part.touch()
    try:
        yield part
    except OSError:  # no room, most likely, and the part takes some of it
        part.unlink(missing_ok=True)
        raise
    finally:
        if part.is_file() and (lock is None or part.stat().st_size == 0):
            part.unlink()
        if lock:
            lock.close()


def _lock(part: Path):
    """Wait until no other process has `part`. Return a file whose end, or that of the process, frees it again.

    Returns None on a file system without locks.
    """
    while True:
        file = part.open("ab")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process, which downloads {part}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            file.close()
            if part.is_file() and part.stat().st_size == 0:
                part.unlink()
            return None
        if part.is_file() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
            return file
        file.close()  # the other process has moved or removed it meanwhile


def _fetch_and_store(url: str, part: Path, store: Callable[[Path], None]) -> None:
    """Fetch one address, and once more from the beginning where what an earlier download left doesn't fit to the rest."""
    begun = part.stat().st_size
    _fetch(url, part)
    try:
        store(part)
    except WRONG_CONTENT as error:
        with part.open("rb") as file:
            is_page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        os.truncate(part, 0)
        if begun:  # what was there already may have been of another version
            return _fetch_and_store(url, part, store)
        reason = "sent a web page instead of the file (does this network want a login?)" if is_page else str(error)
        raise BadAnswer(f"{reason}; removed") from None


def _store_file(check: Check, destination: Path, part: Path) -> None:
    check(part)
    os.replace(part, destination)


def _store_members(members: dict[str, Check], folder: Path, part: Path) -> None:
    unpacked = {member: part.with_name(f"{part.name}.{PurePosixPath(member).name}") for member in members}
    try:
        with zipfile.ZipFile(part) as bundle:
            for member, check in members.items():
                if member not in bundle.namelist():
                    raise UserError(f"the archive holds no {member}")
                info = bundle.getinfo(member)
                if info.file_size > LARGEST:  # no more than it says is unpacked, whatever there is
                    raise UserError(f"{member} would unpack to {info.file_size:,} bytes; at most {LARGEST:,} are expected")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"{member} is packed by method {info.compress_type}; only stored and deflated are read")
                with bundle.open(member) as source, unpacked[member].open("wb") as target:
                    shutil.copyfileobj(source, target)
                check(unpacked[member])
        for member, path in unpacked.items():
            os.replace(path, folder / PurePosixPath(member).name)
        part.unlink()
    finally:
        for path in unpacked.values():
            path.unlink(missing_ok=True)


def _fetch(url: str, part: Path) -> None:
    """Let `part` grow to the whole file, from where it ends, over as many connections as it takes. Raises BadAnswer."""
    failures, most = 0, part.stat().st_size
    while True:
        try:
            return _receive(url, part)
        except BadAnswer as error:
            size = part.stat().st_size
            failures, most = (0, size) if size > most else (failures + 1, most)
            if not error.again or failures == TRIES:
                stays = size and part.suffix == ".part"
                kept = f"; the first {size} bytes are kept, the same command goes on from there" if stays else ""
                raise BadAnswer(f"{error}{kept}") from None
            time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def _receive(url: str, part: Path) -> None:
    """Ask once for what `part` lacks, and take the whole file where the server sends that. Raises BadAnswer."""
    begun = part.stat().st_size
    with _ask(url, begun, part) as answer:
        if answer.status != 206:
            begun = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            os.truncate(part, 0)
            raise BadAnswer("sent another range than was asked for", again=True)
        total = None if answer.length is None else begun + answer.length
        desc = f"download {url.rsplit('/', 1)[-1]}"
        bar = tqdm(total=total, initial=begun, unit="B", unit_scale=True, desc=desc, disable=None)
        with bar, part.open("ab" if begun else "wb") as file:
            while chunk := _read(answer):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > LARGEST:
                    file.truncate(0)
                    raise BadAnswer(f"sends more than {LARGEST:,} bytes")
    if total is not None and part.stat().st_size < total:
        raise BadAnswer(f"broke off after {part.stat().st_size} of {total} bytes", again=True)


def _ask(url: str, begun: int, part: Path) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        return urllib.request.urlopen(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # `part` is as long as the file, or longer
            os.truncate(part, 0)
            raise BadAnswer(str(error), again=begun > 0) from None
        if 300 <= error.code < 400:
            raise BadAnswer(f"redirects in a circle or to nowhere ({error})") from None
        raise BadAnswer(str(error), again=error.code in (408, 429) or error.code >= 500) from None
    except CONNECTION as error:
        raise _bad_answer(error) from None


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(1 << 16)
    except CONNECTION as error:
        raise _bad_answer(error) from None


def _bad_answer(error: Exception) -> BadAnswer:
    """Return what was wrong with a connection."""
    cause = getattr(error, "reason", error)  # of a URLError
    if isinstance(cause, TimeoutError):
        return BadAnswer(f"stalled: nothing came for {STALL:g} seconds", again=True)
    return BadAnswer(str(cause) or type(cause).__name__, again=isinstance(cause, LOST))
