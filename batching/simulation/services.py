"""What batches take: latency curves, with noise of their own."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence

from batching.simulation.simulator import Service


class Curve:
    """A curve through measured points, or of two points a line; in seconds.

    Between two points it is straight, beyond them it goes on as between the nearest two.

    Args:
        points: (size, seconds), at least two, ascending.

    Raises:
        ValueError: too few points, or not in order.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        sizes = [size for size, _ in points]
        if len(points) < 2 or sizes != sorted(set(sizes)):
            raise ValueError(f"a curve needs two sizes at least, ascending; got {sizes}")
        self._sizes = sizes
        self._seconds = [seconds for _, seconds in points]

    @classmethod
    def line(cls, intercept_s: float, slope_s: float) -> Curve:
        """*intercept_s* and *slope_s* for each item."""
        return cls([(0, intercept_s), (1, intercept_s + slope_s)])

    def at(self, size: int) -> float:
        """Seconds for *size* items."""
        right = min(max(bisect_left(self._sizes, size), 1), len(self._sizes) - 1)
        (x0, x1), (y0, y1) = self._sizes[right - 1 : right + 1], self._seconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)

    def capacity_per_s(self, max_batch: int) -> float:
        """Most items a second of one slot, by the batches that pay best."""
        return max(size / self.at(size) for size in range(1, max_batch + 1))


class Noisy:
    """Takes what *curve* says, times a factor that is even between 1 - *noise* and 1 + *noise*."""

    def __init__(self, curve: Curve, noise: float, seed: int) -> None:
        self._curve = curve
        self._noise = noise
        self._rng = random.Random(seed)

    def takes_s(self, kind: Hashable, size: int, now: float) -> float:
        """Seconds; *kind* and *now* make no difference."""
        return self._curve.at(size) * (1.0 + self._noise * self._rng.uniform(-1.0, 1.0))


class Slowed:
    """Takes *factor* times as long from *at_s* on."""

    def __init__(self, service: Service, factor: float, at_s: float) -> None:
        self._service = service
        self._factor = factor
        self._at_s = at_s

    def takes_s(self, kind: Hashable, size: int, now: float) -> float:
        """Seconds for a batch that starts at *now*."""
        return self._service.takes_s(kind, size, now) * (self._factor if now >= self._at_s else 1.0)


class ByKind:
    """Takes what the service of its kind takes."""

    def __init__(self, services: Mapping[Hashable, Service]) -> None:
        self._services = services

    def takes_s(self, kind: Hashable, size: int, now: float) -> float:
        """Seconds for a batch of *kind*."""
        return self._services[kind].takes_s(kind, size, now)
