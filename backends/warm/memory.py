"""How much memory a model takes, and how it is given back.

**How much.** What the operator says wins (`warm: {memory: 300MiB}`). Otherwise it is what this process grew by while
the model was loaded, if nothing else was loaded meanwhile, and `FACTOR` times its files at least. The growth alone
would not do: requests are answered beside the load, and memory that an earlier model has left is taken again without
any growth at all. The largest figure seen so far counts, as a later load may find such memory.

Of a model that is loaded on another server, what that server says counts. Most say nothing; then the operator must, if
the pool has a limit.

**Giving back.** glibc keeps what is freed in the arenas of the threads that took it. `malloc_trim` gives whole pages
back to the system; without it the memory of an unloaded model stays with the process until something like it is
loaded again, and a budget that counts it as free would be wrong. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

FACTOR: Final = 1.5
"""Memory by size of files: weights are read, and the session keeps its own copy of those that it lays out anew."""

_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Memory of this process that is resident now; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def files_bytes(files: Iterable[Path]) -> int:
    """What *files* let expect; folders are not looked into, nor files that cannot be read."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return int(FACTOR * total)


def give_back() -> None:
    """Give freed memory back to the system; takes milliseconds, and belongs off the event loop."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:  # a function of the C library, or None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
