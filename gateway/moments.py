"""Moments and durations as programs and people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(unix_s: float) -> str:
    """*unix_s* (Unix time, seconds) in UTC, to the millisecond: `2026-11-26T10:00:00.000Z`."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))


def in_words(seconds: float) -> str:
    """*seconds* in the largest unit of which there are two or more: `90 min`, `3 h`, `45 s`."""
    for unit, size_s in _UNITS:
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
