"""What an operator can say about the store, and the error that stops a start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.errors import Unavailable


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the embedded store is, and how much it may keep.

    Attributes:
        path: the SQLite file; its folder is made where it is missing. Local disks only: SQLite's locks do not work
            on network file systems.
        retention_s: seconds that an answer is kept after nothing about it can change any more.
        limit_bytes: what the store may take on disk (see `gateway.store.retention`).
        busy_timeout_s: seconds that a write waits for another process's.
    """

    path: Path
    retention_s: float = 30 * 86_400.0
    limit_bytes: int = 10 * 2**30
    busy_timeout_s: float = 5.0


class CannotOpenStore(Unavailable):
    """The store cannot be used; the message says why, and what to do."""
