"""What a worker process writes to its standard output and error: lines in the gateway's log, and never too many.

Both arrive through one pipe. Of each second, the first `_LINES` lines are logged and the others counted; more than
`_BYTES` are not even read until it is over, so that a function that writes without end waits, and not the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque

log = logging.getLogger("pointsman.backends.process")

_LINES = 50
_BYTES = 4 << 20
_LONGEST = 2000
_TAIL = 30
_READ = 1 << 16


class Output:
    """The reading end of one worker's pipe; belongs to one event loop."""

    def __init__(self, descriptor: int, who: str) -> None:
        """Args:
        descriptor: the pipe's, to be closed here.
        who: the lines are from, as the log has it.
        """
        self._descriptor = descriptor
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._unended = b""
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._lines_left, self._bytes_left, self._dropped = _LINES, _BYTES, 0
        self._next_second: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._on_readable)

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._tail)

    def close(self) -> None:
        """Read what is left, and be done."""
        self._loop.remove_reader(self._descriptor)
        for _ in range(_BYTES // _READ):  # a process that the worker has left behind may go on writing
            if self._read() <= 0:
                break
        if self._unended:
            self._line(self._unended)
        self._tell_dropped()
        if self._next_second is not None:
            self._next_second.cancel()
        os.close(self._descriptor)

    def _on_readable(self) -> None:
        if self._next_second is None:
            self._next_second = self._loop.call_later(1.0, self._refill)
        if self._read() == 0 or self._bytes_left <= 0:
            self._loop.remove_reader(self._descriptor)  # it ended, or has to wait

    def _read(self) -> int:
        """Take what is there; its bytes, 0 at the end, -1 for nothing."""
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return -1
        self._bytes_left -= len(data)
        *lines, unended = (self._unended + data).split(b"\n")
        for line in lines:
            self._line(line)
        self._unended = unended[:_LONGEST]
        return len(data)

    def _line(self, line: bytes) -> None:
        text = line[:_LONGEST].decode("utf-8", "backslashreplace").rstrip()
        self._tail.append(text)
        if self._lines_left > 0:
            self._lines_left -= 1
            log.info("%s wrote: %s", self._who, text)
        else:
            self._dropped += 1

    def _refill(self) -> None:
        self._next_second = None
        self._tell_dropped()
        if self._bytes_left <= 0:
            self._loop.add_reader(self._descriptor, self._on_readable)
        self._lines_left, self._bytes_left = _LINES, _BYTES

    def _tell_dropped(self) -> None:
        if self._dropped:
            log.warning("%s wrote %d lines more within a second", self._who, self._dropped)
            self._dropped = 0
