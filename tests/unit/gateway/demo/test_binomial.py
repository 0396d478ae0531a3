"""Exact binomial probabilities agree with SciPy's, and bounds with their definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.binomial import at_most, is_rejected, upper_bound


@pytest.mark.parametrize(
    ("k", "n", "rate", "probability"),
    [(0, 299, 0.01, 0.0495), (0, 10, 0.0, 1.0), (3, 10, 1.0, 0.0), (10, 10, 0.5, 1.0), (5, 10, 0.5, 0.623046875)],
)
def test_at_most(k: int, n: int, rate: float, probability: float) -> None:
    assert at_most(k, n, rate) == pytest.approx(probability, abs=5e-5)


@given(n=st.integers(1, 400), share=st.floats(0, 1), rate=st.floats(0.001, 0.999))
def test_the_tails_of_both_sides_add_up(n: int, share: float, rate: float) -> None:
    k = int(share * n)

    # P(X <= k) + P(X >= k + 1) = 1, the second seen from the other side.
    others = at_most(n - k - 1, n, 1 - rate) if k < n else 0.0
    assert at_most(k, n, rate) + others == pytest.approx(1.0, abs=1e-9)


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
