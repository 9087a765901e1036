"""How Ctrl-C and SIGTERM end a training: after the step under way."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from training import distributed


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """While it lasts, the first Ctrl-C or SIGTERM only sets the flag, so that no step is cut in half.

    The second one stops at once, unless torchrun passed it on, which gives its processes 30 seconds.
    """
    flag = threading.Event()

    def on_interrupt(signal_number, frame) -> None:
        if flag.is_set() and not distributed.launched():
            raise KeyboardInterrupt
        flag.set()

    if threading.current_thread() is not threading.main_thread():  # signals can only be handled there
        yield flag
        return
    previous = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
