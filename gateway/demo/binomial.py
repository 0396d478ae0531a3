"""Exact binomial probabilities: what k wrong answers of n say about an error rate.

Written out over log-factorials, so that nothing here needs SciPy: n is a few thousand at most, and both questions are
asked some hundred times.
"""

from __future__ import annotations

import math


def at_most(k: int, n: int, rate: float) -> float:
    """P(X <= k) of a binomial with *n* trials of probability *rate*, in [0, 1]."""
    if k >= n or rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    terms = (_log_choose(n, i) + i * log_rate + (n - i) * log_rest for i in range(k + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))


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
    for _ in range(40):
        middle = (low + high) / 2.0
        if at_most(wrong, n, middle) > 1.0 - level:
            low = middle
        else:
            high = middle
    return high


def is_rejected(wrong: int, n: int, max_error: float, significance: float = 0.01) -> bool:
    """Whether *wrong* of *n* are so many that an error rate of at most *max_error* is rejected."""
    return 1.0 - at_most(wrong - 1, n, max_error) < significance if wrong else False
