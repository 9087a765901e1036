"""The one exception for whatever the user can mend, and how a program ends with it."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Wrong input rather than a bug. The message is one line: the value, the limit, the choices."""


def note(text: str) -> None:
    """What went wrong without ending the run, on one line of standard error."""
    print("note    ", " ".join(text.split()), file=sys.stderr, flush=True)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Exits with what `main` returns; with 2 and one line `error: ...` for a UserError or an error of the file system,
    with 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
