"""The one exception for whatever the user can mend; the command line prints it as `error: ...` and exits with 2."""


class UserError(ValueError):
    """Wrong input rather than a bug. The message is one line: the value, the limit, the choices."""
