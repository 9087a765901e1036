"""The one exception for whatever the user can mend, and how a program ends with it."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Wrong input rather than a bug. The message is one line: the value, the limit, the choices."""


def run_program(main: Callable[[], int]) -> NoReturn:
    """Exits with what `main` returns; with 2 and one line `error: ...` for a UserError or an error of the file system,
    with 130 after Ctrl-C."""
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
