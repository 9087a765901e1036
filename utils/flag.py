"""`flag`: what a field of `Run` (config.py) says of its setting and of its flag."""

from dataclasses import field
from typing import Any


def flag(
    help: str,
    default=None,
    *,
    section: str = "",
    everyday: bool = False,
    methods: tuple[str, ...] = (),
    task: str = "",
    choices: tuple[str, ...] = (),
    least: float | None = None,
    below: float | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Describe a setting of `Run` and its flag. The field itself starts as None, which means: not given.

    help      what the flag does. `--help` shows it up to the first semicolon or bracket, `--help all` shows all of it
    default   the value where no flag, row or recipe gives one; None: a recipe always does, or the setting may stay open
    section   the heading of `--help` that begins with this flag
    everyday  whether `--help` shows the flag
    methods   the methods that read the setting; empty: every run reads it
    task      the kind of task that reads the setting; empty: both kinds do
    choices, least, below   the accepted values: one of the choices; at least `least`; below `below`
    """
    shown = {"help": help, "section": section, "everyday": everyday, "aliases": aliases}
    used = {"default": default, "methods": methods, "task": task, "choices": choices, "least": least, "below": below}
    return field(default=None, metadata=shown | used)
