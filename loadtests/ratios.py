"""How figures over runs are summed up, and how those of two sides compare."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over runs."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float], digits: int = 1) -> Spread:
    """Median and quartiles of *values*, rounded to *digits*; of one value, that value."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return Spread(round(low, digits), round(statistics.median(values), digits), round(high, digits))


def ratio(own: Sequence[float], other: Sequence[float]) -> Spread:
    """The ratio of the medians, *own* over *other*, with a bootstrap interval of 95 %; the same for the same values."""
    rng = random.Random(0)
    ratios = sorted(
        statistics.median(rng.choices(own, k=len(own))) / statistics.median(rng.choices(other, k=len(other)))
        for _ in range(1000)
    )
    return Spread(
        round(ratios[25], 3), round(statistics.median(own) / statistics.median(other), 3), round(ratios[975], 3)
    )


def median_of(values: Sequence[float], digits: int = 3) -> Spread:
    """The median of *values*, with a bootstrap interval of 95 % over them; the same for the same values."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(1000))
    return Spread(round(medians[25], digits), round(statistics.median(values), digits), round(medians[975], digits))


def paired_ratio(own: Sequence[float], other: Sequence[float]) -> Spread:
    """The ratio of the sums over rounds that both sides had in common, with a bootstrap interval of 95 % over rounds.

    What differs between rounds, such as their traces, is in both sums, and not in the interval.
    """
    rng = random.Random(0)
    pairs = list(zip(own, other, strict=True))

    def of(chosen: Sequence[tuple[float, float]]) -> float:
        return sum([one for one, _ in chosen]) / sum([another for _, another in chosen])

    ratios = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(1000))
    return Spread(round(ratios[25], 3), round(of(pairs), 3), round(ratios[975], 3))
