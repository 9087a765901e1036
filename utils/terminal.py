"""Lets no character that the terminal can't show end a program."""

import os
import sys


def tolerate_any_character() -> None:
    """Let the standard streams take every character, and be there.

    What the terminal's encoding lacks is printed as an escape such as \\u4f60. Bytes on the input that aren't in its
    encoding stay recognizable (`surrogateescape`). What goes to a stream that was closed is lost.
    """
    for name, mode in (("stdout", "w"), ("stderr", "w"), ("stdin", "r")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif hasattr(stream, "reconfigure"):  # a notebook's has not, and takes every character
            stream.reconfigure(errors="surrogateescape" if mode == "r" else "backslashreplace")
