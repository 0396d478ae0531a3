"""How long a model's batches take: what policies plan with, and what routing sees as `latency_s`.

`RecentLatency` is the first estimate: quantiles over the batches of the last seconds, whatever their size. Whoever
routes asks for the median, what one more item should expect; a policy asks for a high quantile, since one that plans
with the middle misses every deadline that the tail decides. A mean was rejected: it serves neither.

**It forgets.** A request that the estimate says cannot make it is not sent, so an estimate that only a new batch can
correct would, after one slow batch (a cold start, a pause), keep every later one away and never recover. Hence what is
older than some seconds does not count, and where nothing counts, nothing stands in the way of asking again. A model
that is slower than this memory is long pays with an attempt now and then that cannot make it.

No clock here: the time is passed in, always by the same clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final, NamedTuple, Protocol

_WINDOW: Final = 64  # batches
_MEMORY_S: Final = 10.0
_TYPICAL: Final = 0.5
_CAUTIOUS: Final = 0.95


class Latency(Protocol):
    """An estimate that learns from the batches it is shown."""

    def observe(self, size: int, infer_s: float, now: float) -> None:
        """Learn that a batch of *size* items, answered at *now*, took *infer_s* seconds."""
        ...

    def typical_s(self, size: int, now: float) -> float:
        """Seconds that a batch of *size* items is expected to take; 0.0 where nothing is known."""
        ...

    def cautious_s(self, size: int, now: float) -> float:
        """Seconds that hardly any batch of *size* items exceeds; 0.0 where nothing is known."""
        ...


class Forecast(NamedTuple):
    """What a new item has to expect.

    Attributes:
        wait_s: seconds that it would queue.
        latency_s: seconds that its batch should take then (the median of recent ones); 0.0 where none is recent.
    """

    wait_s: float
    latency_s: float


class RecentLatency:
    """The median and the 95th percentile of the last 64 batches, as far as they are at most 10 seconds old."""

    __slots__ = ("_ordered_s", "_recent")

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque()  # (answered at, took), in seconds
        self._ordered_s: list[float] = []  # what they took, kept in order: it is asked for with every batch

    def observe(self, size: int, infer_s: float, now: float) -> None:
        """Learn that a batch, answered at *now*, took *infer_s* seconds; its *size* makes no difference."""
        self._recent.append((now, infer_s))
        insort(self._ordered_s, infer_s)
        if len(self._recent) > _WINDOW:
            self._forget_oldest()

    def typical_s(self, size: int, now: float) -> float:
        """The median for a batch of any *size*; 0.0 where nothing is known."""
        return self._quantile_s(_TYPICAL, now)

    def cautious_s(self, size: int, now: float) -> float:
        """The 95th percentile for a batch of any *size*; 0.0 where nothing is known."""
        return self._quantile_s(_CAUTIOUS, now)

    def _quantile_s(self, fraction: float, now: float) -> float:
        while self._recent and self._recent[0][0] < now - _MEMORY_S:
            self._forget_oldest()
        ordered_s = self._ordered_s
        return ordered_s[math.ceil(fraction * len(ordered_s)) - 1] if ordered_s else 0.0

    def _forget_oldest(self) -> None:
        _, infer_s = self._recent.popleft()
        del self._ordered_s[bisect_left(self._ordered_s, infer_s)]


def predicted_wait_s(
    *, queued_items: int, in_flight: int, slots: int, max_batch: int, max_delay_s: float, latency_s: float
) -> float:
    """Seconds a new item would queue: the rounds of batches before it, or the delay where a slot is free.

    Args:
        queued_items: items that wait already.
        in_flight: batches that run, or hold their slot to be run again.
        slots: batches that may run at once.
        max_batch: most items in a batch.
        max_delay_s: longest wait for company while a slot is free.
        latency_s: seconds that a full batch takes.
    """
    rounds = (in_flight + -(-queued_items // max_batch)) // slots  # rounded up
    return rounds * latency_s if rounds else max_delay_s
