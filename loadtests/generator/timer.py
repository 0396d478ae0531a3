"""A timer as fine as the kernel's: those of uvloop and asyncio count whole milliseconds, which is a request's time."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class Timer:
    """Calls back at a moment of `time.monotonic`; a timerfd (Linux), which Python has by itself only from 3.13 on."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._call = call
        asyncio.get_running_loop().add_reader(self._fd, self._on_expired)

    def set(self, at_s: float) -> None:
        """Call at *at_s*, at once if that has passed; replaces the moment set before."""
        ns = max(1, int(at_s * 1e9))
        spec = (ctypes.c_long * 4)(0, 0, *divmod(ns, 1_000_000_000))
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None)

    def close(self) -> None:
        """Call no more."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _on_expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew in between
            return
        self._call()
