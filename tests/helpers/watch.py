"""Watch what reading a hostile file does: what it opens and writes, and how much time, memory and disk it takes."""

import contextlib
import faulthandler
import mimetypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import model.weights

SECONDS = 10  # of computing, for one case
PATIENCE = 120  # by the clock
MEMORY, DISK = 400 << 20, 200 << 20  # bytes that a case may take: address space beside what is there; one file
PEAK = "/proc/self/clear_refs"  # a run writes there that its peak of memory begins anew


class Failure(BaseException):
    """Say what must not happen. Not an Exception: nothing that is tested may catch it."""


class Watch:
    """Notice what is opened, made and removed, from Python's audit events and from safetensors' own opening."""

    changing = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link")

    def __init__(self, readable: list[str]):
        """`readable` are the beginnings of paths that a case may read outside its own folder."""
        self.folder: Path | None = None  # of the case; None: nothing is watched
        self.readable = [*readable, sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/null"]
        mimetypes.init()  # urllib reads the machine's list of them
        sys.addaudithook(self.hook)
        opened = model.weights.safe_open

        def safe_open(path, **how):  # its own opening is no audit event
            sys.audit("open", str(path), "rb", 0)
            return opened(path, **how)

        model.weights.safe_open = safe_open

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Watch while a case reads `folder`, and limit its time."""
        self.folder = folder
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)  # for what doesn't let Python's signals through
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            self.folder = None

    def hook(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event == "pickle.find_class":
            raise Failure(f"unpickles {args}")
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            writes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(c in (args[1] or "") for c in "wax+")
            self.check(args[0], bool(writes))
        elif event in self.changing:
            fds = [fd for fd in args[1:] if type(fd) is int][-1:]  # relative to what; rmtree goes that way
            self.check(args[0], True, f"/proc/self/fd/{fds[0]}" if fds and fds[0] >= 0 else "")

    def check(self, path, writes: bool, base: str = "") -> None:
        real = os.path.abspath(os.path.join(os.path.realpath(base), os.fsdecode(path)))
        inside = real == str(self.folder) or real.startswith(f"{self.folder}/")
        if not inside and real != PEAK and (writes or not real.startswith(tuple(self.readable))):
            raise Failure(f"{'writes' if writes else 'reads'} {real}, outside {self.folder}")


def fail(what: str, *_) -> None:
    raise Failure(what)


def limit_resources() -> None:
    """Limit this process, for good. What is too much becomes an error, or a Failure."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, resource.RLIM_INFINITY))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGXFSZ, partial(fail, f"writes a file of more than {DISK} bytes"))
    signal.signal(signal.SIGPROF, partial(fail, f"takes more than {SECONDS} s of computing"))
    signal.signal(signal.SIGALRM, partial(fail, f"takes more than {PATIENCE} s by the clock"))
