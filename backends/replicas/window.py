"""How many events there were in the last seconds, in a fixed amount of memory however many they are.

Time is cut into slots; a count covers the window and what its first slot has more, so it may be too high by what
happened in half a second, and is never too low. Rejected: one time stamp an event, which at thousands of calls a
second is megabytes.
"""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 10.0
"""The window of every rate in this package."""

SLOT_S: Final = 0.5
_SLOTS: Final = int(WINDOW_S / SLOT_S) + 1


class SlidingCount:
    """Events in the last `WINDOW_S` seconds."""

    __slots__ = ("_counts", "_slot", "_total")

    def __init__(self) -> None:
        self._counts = [0] * _SLOTS
        self._slot = 0  # the latest that was looked at
        self._total = 0

    def add(self, now: float) -> None:
        """An event at *now*, which never goes back."""
        self._advance(now)
        self._counts[self._slot % _SLOTS] += 1
        self._total += 1

    def count(self, now: float) -> int:
        """Events in the window that ends at *now*."""
        self._advance(now)
        return self._total

    def clear(self) -> None:
        """Forget them all."""
        self._counts = [0] * _SLOTS
        self._total = 0

    def _advance(self, now: float) -> None:
        slot = int(now // SLOT_S)
        if slot - self._slot >= _SLOTS:
            self.clear()
        else:
            for passed in range(self._slot + 1, slot + 1):
                self._total -= self._counts[passed % _SLOTS]
                self._counts[passed % _SLOTS] = 0
        self._slot = max(self._slot, slot)
