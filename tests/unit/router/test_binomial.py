"""Exact binomial probabilities agree with sums of exact terms, and what is built on them with its definition."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.binomial import at_most, critical_counts, is_rejected, least_trials, two_sided, upper_bound

RATES = st.floats(0.001, 0.999)


def exactly_at_most(k: int, n: int, rate: float) -> float:
    """P(X <= k), every term and their sum in rational numbers."""
    p = Fraction(rate)
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@given(n=st.integers(1, 60), share=st.floats(0, 1), rate=RATES)
def test_at_most_is_the_sum_of_its_terms(n: int, share: float, rate: float) -> None:
    k = int(share * n)

    assert at_most(k, n, rate) == pytest.approx(exactly_at_most(k, n, rate), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("k", "n", "rate", "probability"),
    [
        (0, 299, 0.01, 0.0495),
        (0, 10, 0.0, 1.0),
        (3, 10, 1.0, 0.0),
        (10, 10, 0.5, 1.0),
        (-1, 10, 0.5, 0.0),
        (4, 6, 1e-200, 1.0),
    ],
)
def test_at_most_at_its_ends(k: int, n: int, rate: float, probability: float) -> None:
    assert at_most(k, n, rate) == pytest.approx(probability, abs=5e-5)


@given(n=st.integers(1, 50_000), share=st.floats(0, 1), rate=RATES)
def test_the_tails_of_both_sides_add_up(n: int, share: float, rate: float) -> None:
    k = int(share * n)

    # P(X <= k) + P(X >= k + 1) = 1, the second seen from the other side.
    others = at_most(n - k - 1, n, 1 - rate)
    assert at_most(k, n, rate) + others == pytest.approx(1.0, abs=1e-9)


def test_a_tail_of_many_trials_is_the_normal_one() -> None:
    n, rate = 1_000_000, 0.01
    deviation = math.sqrt(n * rate * (1 - rate))

    assert at_most(int(n * rate - 2 * deviation), n, rate) == pytest.approx(0.02275, rel=0.03)


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_at_the_upper_bound_so_few_errors_are_as_unlikely_as_stated(n: int, share: float) -> None:
    wrong = int(share * n)
    bound = upper_bound(wrong, n, 0.95)

    assert wrong / n <= bound <= 1.0
    if wrong < n:
        assert at_most(wrong, n, bound) == pytest.approx(0.05, abs=1e-6)


def test_nothing_seen_bounds_nothing() -> None:
    assert upper_bound(0, 0, 0.95) == 1.0


def test_no_errors_in_299_are_needed_to_promise_one_percent() -> None:
    assert upper_bound(0, 298, 0.95) > 0.01 >= upper_bound(0, 299, 0.95)


@pytest.mark.parametrize(("wrong", "n", "rejected"), [(0, 0, False), (0, 100, False), (2, 100, False), (9, 100, True)])
def test_a_promise_is_rejected_only_by_what_is_unlikely_under_it(wrong: int, n: int, rejected: bool) -> None:
    assert is_rejected(wrong, n, 0.02) is rejected


@given(rate=RATES, level=st.floats(0.001, 0.5), n=st.integers(0, 1_000))
def test_a_critical_count_is_the_largest_that_is_still_unlikely(rate: float, level: float, n: int) -> None:
    critical = int(critical_counts(1_000, rate, level)[n])

    assert critical == -1 or at_most(critical, n, rate) <= level + 1e-9
    assert at_most(critical + 1, n, rate) > level - 1e-9


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2, 0.5])
def test_critical_counts_do_not_drift_over_many_trials(rate: float) -> None:
    counts = critical_counts(50_000, rate, 0.05 / 3)

    for n in range(49_950, 50_001):
        assert at_most(int(counts[n]), n, rate) <= 0.05 / 3 < at_most(int(counts[n]) + 1, n, rate)


@given(k=st.integers(0, 30), rate=st.floats(0.01, 0.9), level=st.floats(0.001, 0.5))
def test_the_least_trials_are_where_a_count_becomes_critical(k: int, rate: float, level: float) -> None:
    n = least_trials(k, rate, level)

    assert at_most(k, n, rate) <= level < at_most(k, n - 1, rate)


def test_cached_counts_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        critical_counts(10, 0.1, 0.05)[0] = np.int64(3)


@given(n=st.integers(0, 200), share=st.floats(0, 1))
def test_both_ends_of_an_interval_are_one_sided_bounds(n: int, share: float) -> None:
    k = int(share * n)
    low, high = two_sided(k, n, 0.95)
    assert 0.0 <= low <= (k / n if n else 0.5) <= high <= 1.0
    assert high == upper_bound(k, n, 0.975)
    if 0 < k <= n:
        # At the lower end, as many or more are seen with the other half of what is allowed.
        assert 1.0 - at_most(k - 1, n, low) == pytest.approx(0.025, abs=1e-6)
