"""`UserError`, for whatever the user can mend, and how a program ends with it."""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

from utils.terminal import tolerate_any_character

LONGEST = 2000  # characters of a message


class UserError(ValueError):
    """Wrong input rather than a bug. The message is one line: the value, the limit, the choices.

    What it quotes from a file may be anything: line breaks become spaces, other unprintable characters are escaped, and
    what is too long is cut.
    """

    def __init__(self, message: str):
        line = one_line(message)
        line = line[:LONGEST] + "..." if len(line) > LONGEST else line
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


def one_line(text: str) -> str:
    """Return the lines of a text, joined by spaces."""
    return " ".join(part.strip() for part in text.splitlines())


def note(text: str) -> None:
    """Print on standard error, in one line, what went wrong without ending the run."""
    print("note    ", one_line(text), file=sys.stderr, flush=True)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, and exit with what it returns.

    The exit status is 2, after one line `error: ...`, for a UserError or an error of the file system; 130 after Ctrl-C or
    SIGTERM; 141 where nobody reads the output any longer (`| head`); 1, after one line, for whatever else ends it: a bug,
    or a panic of a library below, which is no Exception. The line says where the traceback is.
    """
    tolerate_any_character()
    stopped = []

    def stop(number: int, frame) -> NoReturn:
        stopped.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except SystemExit:
        raise
    except BaseException as error:
        if stopped or isinstance(error, KeyboardInterrupt):  # of which a library's C code may have made another error
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
            sys.exit(141)
        if isinstance(error, UserError | OSError):
            print("error:", one_line(str(error)), file=sys.stderr)
            sys.exit(2)
        print("error:", unexpected(error), file=sys.stderr)
        sys.exit(1)


def unexpected(error: BaseException) -> str:
    """Return one line about an error that nobody expected. Its traceback goes to a file."""
    what = str(UserError(f"{type(error).__name__}: {error}"))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="traceback-", suffix=".txt", delete=False, encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        return f"{what} (a bug here, in your own code or in a library; the traceback is in {file.name})"
    except (OSError, ValueError):
        return what
