"""Files that are read again when they change, in a gateway that serves meanwhile: TLS certificates, API keys.

They are looked at every few seconds, and their bytes are compared: times and sizes do not always tell (a restored
backup, a file system without fine times), and the files are small. Rejected: inotify, which many network and
container file systems do not pass on, and a signal, which the tools that renew certificates would have to know of.

Files that belong together (a certificate and its key) do not change at once. What is read in between does not fit, is
told in the log, and changes nothing; the second change is another reason to read.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

_Seen: TypeAlias = tuple[bytes | str, ...]
"""Of each file a digest, or why there is none."""

log = logging.getLogger("pointsman.files")


class Rereading(Generic[T]):
    """What is read from files, and read again when they change; a change that cannot be used leaves what was there.

    Args:
        what: it is, for the log.
        files: that it is read from; none: it never changes.
        read: reads it, on another thread.
        use: takes what was read, on the event loop.
        errors: of *read*, beside OSError and ValueError, that say what is wrong with the files.
    """

    def __init__(
        self,
        what: str,
        files: Sequence[Path],
        read: Callable[[], T],
        use: Callable[[T], None],
        errors: tuple[type[Exception], ...] = (),
    ) -> None:
        self._what = what
        self._files = tuple(files)
        self._read = read
        self._use = use
        self._errors: tuple[type[Exception], ...] = (OSError, ValueError, *errors)
        self._seen: _Seen | None = None

    def __repr__(self) -> str:
        return f"<Rereading of {self._what} from {', '.join(map(str, self._files)) or 'no file'}>"

    async def look(self) -> None:
        """Read the files if they are not as they were; the first look reads them in any case."""
        if not self._files:
            return
        seen = await asyncio.to_thread(_seen_in, self._files)
        if seen == self._seen:
            return
        is_first, self._seen = self._seen is None, seen
        try:
            found = await asyncio.to_thread(self._read)
            self._use(found)
        except self._errors as error:
            log.error("%s cannot be used as it is in %s: %s; what was read before stays in use", *self._told(), error)
        else:
            if not is_first:
                log.info("%s was read again from %s", *self._told())

    def _told(self) -> tuple[str, str]:
        return self._what, " and ".join(map(str, self._files))


def _seen_in(files: Sequence[Path]) -> _Seen:
    return tuple(_digest(file) for file in files)


def _digest(file: Path) -> bytes | str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        return str(error)
