"""Digests of files, which are read once for as long as they stay as they are.

A file counts as it was while its inode, size, and times of change are the same, to the nanosecond. One that has been
changed in the last `_SETTLED_S` is read again none the less: two changes within one tick of the file system's clock
leave the same times (git knows this as a racy index).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final, TypeAlias

_SETTLED_S: Final = 2.0
_MOST: Final = 4096

_State: TypeAlias = tuple[int, int, int, int, int]

_known: OrderedDict[str, tuple[_State, str]] = OrderedDict()  # by path; what was wanted last at the end
_lock = threading.Lock()


def sha256_of(file: Path) -> str:
    """The SHA-256 of *file*, in hexadecimal; from any thread.

    Read piece by piece: a model's weights may be larger than the memory that is left.

    Raises:
        OSError: it cannot be read.
    """
    key = str(file.absolute())
    state = _state(file.stat())
    with _lock:
        if (known := _known.get(key)) is not None and known[0] == state:
            _known.move_to_end(key)
            return known[1]
    with file.open("rb") as content:
        before = os.fstat(content.fileno())
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        after = os.fstat(content.fileno())
    if _state(before) == _state(after) and time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED_S:
        with _lock:
            _known[key] = _state(after), digest
            while len(_known) > _MOST:
                _known.popitem(last=False)
    return digest


def _state(found: os.stat_result) -> _State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
