"""Is there a network? Shared by the downloads of weights and of data."""

import os
import threading
from collections.abc import Callable


def offline() -> bool:
    """HF_HUB_OFFLINE=1 means no network for anything here, data sets included."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def in_time(call: Callable[[], object], seconds: float) -> bool:
    """True if the call came back without an error in time.

    In a thread, because looking up a host's name has no time limit of its own; a late call ends in the background.
    """
    done: list[bool] = []

    def attempt() -> None:
        try:
            call()
        except Exception:  # whatever goes wrong on the way there, the answer is "no"
            return
        done.append(True)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(done)
