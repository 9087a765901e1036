"""Finds out whether there is a network. The downloads of weights and of data share it."""

import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set, which means no network for anything here, data sets included."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def any_answers(urls: Sequence[str], seconds: float) -> bool:
    """Return True as soon as one of the addresses answers, False after `seconds` at the latest.

    All are asked at once, each in its own thread, because looking up a host's name has no time limit of its own. A late
    answer comes to nothing in the background. Proxies are those of the environment.
    """
    answers: queue.Queue[bool] = queue.Queue()

    def ask(url: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answers.put(True)
        except urllib.error.HTTPError:  # an answer too: somebody is there
            answers.put(True)
        except Exception:  # whatever else goes wrong on the way there, the answer is "no"
            answers.put(False)

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + seconds
    try:
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    except queue.Empty:
        return False
