"""This program's folders, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """What can be made again: `$XDG_CACHE_HOME` (or `~/.cache`) `/pointsman`."""
    return _own("XDG_CACHE_HOME", ".cache")


def user_state() -> Path:
    """What outlives this process and is not to be lost: `$XDG_STATE_HOME` (or `~/.local/state`) `/pointsman`."""
    return _own("XDG_STATE_HOME", ".local/state")


def is_private(folder: Path) -> bool:
    """Whether nobody but this user can write to *folder*, so that what lies there may be trusted.

    Raises:
        OSError: there is no such folder.
    """
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _own(variable: str, default: str) -> Path:
    base = os.environ.get(variable) or ""
    return (Path(base) if Path(base).is_absolute() else Path.home() / default) / "pointsman"  # relative ones: unset
