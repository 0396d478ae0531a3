"""Times in logarithmic buckets: they add up over processes, and a quantile is off by one bucket's width at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LOWEST_S = 1e-6
"""Everything below counts as this."""

PER_OCTAVE = 64
"""Buckets while a time doubles: a quantile is too large by 1.1 % at most."""

GROWTH = 2.0 ** (1 / PER_OCTAVE)

_BUCKETS = 32 * PER_OCTAVE  # to 4,295 s


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(_BUCKETS, dtype=np.int64)


@dataclass(slots=True)
class Histogram:
    """How many times were how long, after HdrHistogram, with buckets of equal ratio instead of linear ones inside.

    Attributes:
        counts: bucket i has what is in (LOWEST_S · GROWTH^(i-1), LOWEST_S · GROWTH^i]; the last one all above, too.
        max_s: the longest, exactly.
    """

    counts: NDArray[np.int64] = field(default_factory=_no_counts)
    max_s: float = 0.0

    @classmethod
    def of(cls, times_s: Sequence[float] | NDArray[np.float64]) -> Histogram:
        """Of *times_s*, which are finite."""
        found = cls()
        if len(times_s):
            times = np.asarray(times_s, dtype=np.float64)
            places = np.ceil(np.log2(np.maximum(times, LOWEST_S) / LOWEST_S) * PER_OCTAVE)
            found.counts += np.bincount(places.astype(np.int64).clip(0, _BUCKETS - 1), minlength=_BUCKETS)
            found.max_s = float(times.max())
        return found

    def add(self, other: Histogram) -> None:
        """Count what *other* has as well."""
        self.counts += other.counts
        self.max_s = max(self.max_s, other.max_s)

    def quantile(self, q: float) -> float:
        """The shortest time that a share *q* does not exceed, to the upper edge of its bucket; NaN of nothing."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        rank = max(1, math.ceil(q * total))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(LOWEST_S * GROWTH**place), self.max_s)
