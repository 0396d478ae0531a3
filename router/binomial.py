"""Exact binomial probabilities: what k wrong answers of n say about an error rate.

Written out, so that nothing here needs SciPy: a probability is summed from the term next to its limit outwards, which
takes some standard deviations of terms whatever n is, and `critical_counts` asks one question of every n in one pass.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 40


def at_most(k: int, n: int, rate: float) -> float:
    """P(X <= k) of a binomial with *n* trials of probability *rate*, in [0, 1]."""
    if k < 0:
        return 0.0
    if k >= n or rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    # The tail that does not hold the mean falls from its first term on, so that it can be cut off, and is summed.
    if k <= n * rate:
        return _tail(k, n, log_rate, log_rest)
    return 1.0 - _tail(n - k - 1, n, log_rest, log_rate)


def _tail(k: int, n: int, log_rate: float, log_rest: float) -> float:
    """P(X <= k) for k <= n rate, from the term of k downwards until what is left cannot change the sum.

    Logarithms, since of a rate next to 0 or 1 nothing is left in one minus it.
    """
    if k == 0:
        return math.exp(n * log_rest)
    odds = math.exp(log_rest - log_rate)
    term = total = math.exp(_log_choose(n, k) + k * log_rate + (n - k) * log_rest)
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term * i <= total * math.ulp(1.0):
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def upper_bound(wrong: int, n: int, level: float) -> float:
    """The highest error rate that *wrong* of *n* does not contradict, at confidence *level*; 1.0 where *n* is 0.

    Source:
        C. J. Clopper and E. S. Pearson, Biometrika 26, 1934: the one-sided exact bound.
    """
    low, high = 0.0, 1.0
    if n == 0:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if at_most(wrong, n, middle) > 1.0 - level:
            low = middle
        else:
            high = middle
    return high


def two_sided(k: int, n: int, level: float) -> tuple[float, float]:
    """The rates that *k* of *n* does not contradict, at confidence *level* for both ends together; (0, 1) where n is 0.

    Source:
        C. J. Clopper and E. S. Pearson, Biometrika 26, 1934: the exact interval.
    """
    one_end = (1.0 + level) / 2.0
    return 1.0 - upper_bound(n - k, n, one_end), upper_bound(k, n, one_end)


def at_any_time(k: int, n: int, level: float) -> tuple[float, float]:
    """Bounds on a rate of which *k* of *n* were seen, that hold at all n together: look as often as you like.

    With probability *level* at least, no look ever shows bounds that the true rate lies outside of; bounds for one n
    alone (`upper_bound`) would at some look. For that they are wider, by about the logarithm of n. (0, 1) where n is 0.

    The likelihood of what was seen, averaged over rates, is a martingale when divided by that of the true rate, and so
    exceeds 1 / (1 - level) some day with probability 1 - level at most. The average is by Jeffreys' prior, which
    heeds rates next to 0 and 1.

    Source:
        J. Ville, 1939; H. Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of
        Mathematical Statistics 41, 1970 (mixtures); S. R. Howard, A. Ramdas, J. McAuliffe and J. Sekhon,
        "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49, 2021.
    """
    if n == 0:
        return 0.0, 1.0
    least = _log_beta(k + 0.5, n - k + 0.5) - _log_beta(0.5, 0.5) + math.log1p(-level)

    def is_inside(rate: float) -> bool:
        hits = k * math.log(rate) if k else 0.0
        misses = (n - k) * math.log1p(-rate) if k < n else 0.0
        return hits + misses > least

    def bound(outside: float) -> float:
        inside = k / n  # the rate that is likeliest
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2.0
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return outside

    return (bound(0.0) if k else 0.0), (bound(1.0) if k < n else 1.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def is_rejected(wrong: int, n: int, max_error: float, significance: float = 0.01) -> bool:
    """Whether *wrong* of *n* are so many that an error rate of at most *max_error* is rejected."""
    return 1.0 - at_most(wrong - 1, n, max_error) < significance


def least_trials(k: int, rate: float, level: float) -> int:
    """The least n of which *k* wrong ones reject an error rate of *rate* or more, at *level*.

    Args:
        rate: in (0, 1).
        level: in (0, 1).
    """
    # Chernoff: P(X <= k) <= exp(-(m - k)^2 / 2m) for a mean m = n rate of k or more, which is *level* at this m.
    nats = -math.log(level)
    enough = math.ceil((k + nats + math.sqrt(nats * nats + 2.0 * k * nats)) / rate)
    return bisect_left(range(enough), True, lo=k + 1, key=lambda n: at_most(k, n, rate) <= level)


@lru_cache(maxsize=64)
def critical_counts(n_max: int, rate: float, level: float) -> NDArray[np.int64]:
    """For each n, the most wrong answers that still reject an error rate of *rate* or more, at *level*.

    One pass: with one more trial P(X <= k) falls by rate P(X = k), and the largest k with P(X <= k) <= level rises by
    one at most, since P(X <= k + 1) of n + 1 trials is no less than P(X <= k) of n.

    Args:
        rate: in (0, 1).
        level: in (0, 1).

    Returns:
        (n_max + 1,), the largest k with P(Binomial(n, rate) <= k) <= level, -1 where there is none; read-only.
    """
    counts = np.empty(n_max + 1, dtype=np.int64)
    odds = rate / (1.0 - rate)
    k = 0  # the least number that does not reject, with P(X <= k) and P(X = k) of n trials beside it
    at_most_k = exactly_k = 1.0
    for n in range(n_max + 1):
        if at_most_k <= level:
            exactly_k *= (n - k) / (k + 1) * odds
            at_most_k += exactly_k
            k += 1
        counts[n] = k - 1
        at_most_k -= rate * exactly_k
        exactly_k *= (n + 1) / (n + 1 - k) * (1.0 - rate)
    counts.setflags(write=False)
    return counts
