"""Looking at a server again and again while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def looking(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """*look*, on a thread, every so many seconds until the end of the block."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
