"""How many batches at once are good for a backend whose own limit is a guess: Netflix's Gradient2, counting batches.

The limit grows while batches take what they always took, and shrinks when they take longer: then they queue inside the
backend, where nothing can be reordered or refused any more. What a batch takes depends on its size above all, so every
sample is brought to the size of one by the shape of the latency curve; time in the batcher's own queue is no part of
it, since a deliberate delay is no congestion.

    gradient = clamp(1.5 * long / short, 0.5, 1),   limit <- 0.8 * limit + 0.2 * (gradient * limit + 4)

*short* is the mean over a window of a second and at least 10 samples, *long* an exponential mean over 600 windows,
pulled down while it is more than twice *short*, so that a slow past is forgotten. A limit of which less than half is
in use says nothing and stays. A batch that the backend refuses or does not answer in time costs a tenth of the limit.

Source: Netflix concurrency-limits 0.5, `Gradient2Limit`; there the samples are requests as they are.
"""

from __future__ import annotations

import math
from typing import Final

from batching.latency import Line

_WINDOW_S: Final = 1.0
_FEWEST: Final = 10
_LONG_WINDOWS: Final = 600
_TOLERANCE: Final = 1.5
_ROOM: Final = 4.0  # batches that may queue inside the backend
_SMOOTHING: Final = 0.2
_BACKOFF: Final = 0.9
_INITIAL: Final = 8.0
MOST = 200


class Gradient2:
    """The limit of one backend.

    Args:
        most: batches that it takes at once at the very most.
    """

    __slots__ = ("_ends_s", "_limit", "_long_s", "_most", "_peak", "_samples", "_sum_s")

    _peak: int

    def __init__(self, most: int) -> None:
        self._most = float(min(most, MOST))
        self._limit = min(_INITIAL, self._most)
        self._long_s = 0.0
        self._start(-math.inf)

    @property
    def limit(self) -> int:
        """Batches that may run at once now."""
        return int(self._limit)

    def answered(self, size: int, took_s: float, line: Line | None, in_flight: int, now: float) -> None:
        """A batch of *size* items took *took_s* seconds, by *line* or, where that is None, as any other.

        Args:
            in_flight: batches that ran when it ended, itself included.
        """
        if self._ends_s == -math.inf:
            self._start(now)
        self._sum_s += took_s * line.at(1) / line.at(size) if line is not None else took_s
        self._samples += 1
        self._peak = max(self._peak, in_flight)
        if now >= self._ends_s and self._samples >= _FEWEST:
            self._update()
            self._start(now)

    def refused(self) -> None:
        """The backend did not take a batch, or did not answer it in time."""
        self._limit = max(1.0, self._limit * _BACKOFF)

    def _start(self, now: float) -> None:
        self._ends_s = now + _WINDOW_S
        self._samples = 0
        self._sum_s = 0.0
        self._peak = 0

    def _update(self) -> None:
        short_s = self._sum_s / self._samples
        if self._long_s == 0.0:
            self._long_s = short_s
        self._long_s += (short_s - self._long_s) * 2.0 / (_LONG_WINDOWS + 1)
        if self._long_s > 2.0 * short_s:
            self._long_s *= 0.95
        if self._peak < self._limit / 2.0:
            return
        gradient = max(0.5, min(1.0, _TOLERANCE * self._long_s / short_s)) if short_s > 0.0 else 1.0
        wanted = gradient * self._limit + _ROOM
        limit = self._limit * (1.0 - _SMOOTHING) + wanted * _SMOOTHING
        self._limit = max(1.0, min(self._most, limit))
