"""Folders for the sockets of running gateways, and the end of those whose gateway was killed.

A folder is locked (`flock`, on the folder itself) by every process that uses it, for as long as it lives: the kernel
lets go when a process ends, however that ends, so that what nobody has locked is left over. A new folder gets its last
name only when it is locked, and only such names are looked at: whoever removes leftovers never meets one that is just
being made, nor a gateway's of a time before this one.

Rejected: the number of the process in the name, which another process gets in time, and which means nothing in another
container that shares the folder for temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OURS = re.compile(r"pointsman-[a-z]+-[a-z0-9_]{8}\.held")


@contextlib.contextmanager
def private_folder(purpose: str, longest: int) -> Iterator[Path]:
    """A folder that only this user can open, for Unix sockets; removed at the end. Removes left over ones too.

    Args:
        purpose: a word for its name.
        longest: characters that its name may have, so that the names of sockets in it are not too long.

    Raises:
        OSError: there is none, or its name is longer.
    """
    remove_left_over()
    fresh = Path(tempfile.mkdtemp(prefix=f"pointsman-{purpose}-"))
    folder = fresh.with_name(fresh.name + ".held")
    with contextlib.ExitStack() as stack:
        for each in (fresh, folder):
            stack.callback(shutil.rmtree, each, ignore_errors=True)
        if len(str(folder)) > longest:
            raise OSError(f"the folder for temporary files, {tempfile.gettempdir()}, has too long a name; set TMPDIR")
        stack.enter_context(used(fresh))
        fresh.rename(folder)
        yield folder


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """Keeps *folder*, which may be another process's, from being taken for left over."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # of a file system without locks: there nobody removes anything either
            fcntl.flock(opened, fcntl.LOCK_SH)
        yield
    finally:
        os.close(opened)


def remove_left_over() -> None:
    """Remove the folders of this user's gateways that have ended and could not do it."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left_over(entry.path)


def _remove_if_left_over(path: str) -> None:
    """Remove the folder at *path*, if it is this user's.

    Raises:
        OSError: somebody uses it, it is no folder, or it is gone.
    """
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(opened).st_uid != os.geteuid():
            return
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(opened), os.lstat(path)):  # or another has removed it, and it is not this one
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(opened)
