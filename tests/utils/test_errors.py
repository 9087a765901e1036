"""How a program ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

# What `main` does, the exit status, and what the last line on standard error says.
ENDS = {
    "it returns": ("return 7", 7, ""),
    "the user can mend it": (
        "raise errors.UserError('rank is 0;\\n it must be at least 1')",
        2,
        "error: rank is 0; it must",
    ),
    "a file": ("open('/nowhere/at/all')", 2, "error: [Errno 2] No such file or directory: '/nowhere/at/all'"),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", 130, "interrupted"),
    "SIGTERM": ("signal.raise_signal(signal.SIGTERM)", 130, "interrupted"),
    "Ctrl-C of which a library made another error": ("in_c_code()", 130, "interrupted"),
    "a bug": ("return 1 / 0", 1, "error: ZeroDivisionError: division by zero (a bug here"),
    "a panic below": ("raise Panic('called `unwrap()` on an `Err`\\n value')", 1, "error: Panic: called `unwrap()` on an"),
    "out of memory": ("raise MemoryError", 1, "error: MemoryError: "),
}
PROGRAM = """
import signal
from utils import errors

class Panic(BaseException):  # as a library in Rust raises it
    pass

def in_c_code():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape of an object") from None

def main():
    {}

errors.run_program(main)
"""


def run(done: str, temporary: Path) -> subprocess.CompletedProcess:
    """Run the program that does this; tracebacks go to a directory of the test."""
    environment = os.environ | {"TMPDIR": str(temporary)}
    words = [sys.executable, "-c", PROGRAM.format(done)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("done, code, said", ENDS.values(), ids=ENDS)
def test_exit_status_and_last_line(tmp_path, done, code, said):
    found = run(done, tmp_path)
    lines = found.stderr.splitlines() or [""]
    assert found.returncode == code and lines[-1].startswith(said) and len(lines) == 1


def test_the_traceback_of_a_bug_is_in_a_file(tmp_path):
    found = run("return 1 / 0", tmp_path)
    file = Path(re.search(r"the traceback is in (\S+)\)", found.stderr)[1])
    assert "in main" in file.read_text() and "ZeroDivisionError" in file.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix shell")
@pytest.mark.parametrize("lines", [10, 10**6])  # the buffer holds them until the end, or doesn't
def test_a_reader_that_has_enough(lines):
    program = PROGRAM.format(f"[print(number) for number in range({lines})]")
    words = ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, program]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("141\n", "")
