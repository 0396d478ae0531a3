"""Memory for tensors beside Python's heap: lent, given back by itself, and lent again.

A fresh mapping of 10 MB costs more in page faults than filling it does (8.4 ms against 0.9 ms where this was measured),
and the heap keeps what it once grew to. So mappings are kept and lent again.

**Nobody gives a buffer back.** It comes back when the last array, view or `memoryview` on it is gone, whoever holds
that: the pipeline, a batch, a thread that outlived its cancelled call. Giving back by hand, at the end of a request,
would be one forgotten view away from showing one caller's tensor to another. It works because every view keeps the
array that was lent alive: NumPy follows the bases of a view down to the last array, and no further.

**Threads.** Buffers are lent on one thread. They come back on any, in the midst of anything, since that is when Python
frees objects; so what comes back is only put into a queue, which needs no lock, and sorted at the next loan.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

from backends.contract import HostArray
from backends.errors import TooLarge, Unavailable

_RETRY_AFTER_S = 0.1


class Buffers:
    """Lends page-aligned memory, up to a limit."""

    def __init__(self, limit_bytes: int, kept_bytes: int = 128 * 1024 * 1024) -> None:
        """Args:
        limit_bytes: most that is lent at a time.
        kept_bytes: most that is kept to be lent again.
        """
        self.limit_bytes = limit_bytes
        self._kept_bytes = kept_bytes
        self._returned: deque[mmap.mmap] = deque()
        self._idle: dict[int, list[mmap.mmap]] = {}
        self._lent = 0
        self._kept = 0

    def __repr__(self) -> str:
        return f"Buffers({self.lent_bytes} bytes lent, {self._kept} kept)"

    @property
    def lent_bytes(self) -> int:
        """What is lent now."""
        self._sort_returned()
        return self._lent

    def lend(self, size: int) -> HostArray:
        """A buffer of *size* bytes, 1 or more, whose content is anything: (size,), uint8.

        Raises:
            TooLarge: it is more than may ever be lent.
            Unavailable: it is more than may be lent beside what is lent now.
        """
        self._sort_returned()
        rounded = _rounded(size)
        if rounded > self.limit_bytes:
            raise TooLarge(
                f"{size} bytes exceed the {self.limit_bytes} that may be in use at a time; send less at once"
            )
        if self._lent + rounded > self.limit_bytes:
            raise Unavailable(
                f"{size} bytes do not fit beside the {self._lent} of {self.limit_bytes} in use; try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        buffer = self._take(rounded)
        self._lent += rounded
        array: HostArray = np.frombuffer(buffer, np.uint8, size)
        weakref.finalize(array, self._returned.append, buffer).atexit = False
        return array

    def _take(self, rounded: int) -> mmap.mmap:
        idle = self._idle.get(rounded)
        if not idle:
            return mmap.mmap(-1, rounded)
        self._kept -= rounded
        return idle.pop()

    def _sort_returned(self) -> None:
        while self._returned:
            buffer = self._returned.popleft()
            size = len(buffer)
            self._lent -= size
            if self._kept + size <= self._kept_bytes:
                self._idle.setdefault(size, []).append(buffer)
                self._kept += size


def _rounded(size: int) -> int:
    """*size*, rounded up by a quarter at most, so that sizes that differ a little share buffers."""
    step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step
