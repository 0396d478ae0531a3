"""An attempt gets time enough for an answer, and leaves some for another where it can."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.replicas.pacing import attempt_s, backoff_s, was_enough


def test_the_last_attempt_gets_all_that_is_left() -> None:
    assert attempt_s(0.25, 1, 0.001, 30.0) == 0.25


def test_a_deadline_is_divided_over_the_attempts() -> None:
    assert attempt_s(0.3, 3, 0.005, 30.0) == pytest.approx(0.1)
    assert attempt_s(0.2, 2, 0.005, 30.0) == pytest.approx(0.1)


def test_a_deadline_that_allows_one_good_attempt_is_not_cut_into_hopeless_ones() -> None:
    assert attempt_s(0.25, 3, 0.1, 30.0) == pytest.approx(0.2)
    assert attempt_s(0.25, 3, 0.2, 30.0) == 0.25


def test_a_long_deadline_does_not_make_patient_with_a_quick_replica() -> None:
    assert attempt_s(60.0, 3, 0.005, 30.0) == 1.0
    assert attempt_s(60.0, 3, 0.5, 30.0) == 5.0


def test_half_of_the_time_goes_to_a_replica_of_which_nothing_is_known() -> None:
    assert attempt_s(2.0, 3, None, 30.0) == 1.0


def test_without_a_deadline_the_timeout_counts() -> None:
    assert attempt_s(math.inf, 3, 0.005, 30.0) == 30.0


@given(st.floats(0.001, 1e4), st.integers(1, 5), st.none() | st.floats(1e-6, 1e3))
def test_attempts_never_outlast_the_deadline(left_s: float, attempts: int, p99_s: float | None) -> None:
    deadline_s = left_s
    for attempts_left in range(attempts, 0, -1):
        limit_s = attempt_s(left_s, attempts_left, p99_s, 30.0)
        assert 0.0 <= limit_s <= left_s
        left_s -= limit_s
    assert left_s == pytest.approx(0.0, abs=1e-9 * deadline_s)


def test_who_got_less_than_a_replica_needs_cannot_blame_it() -> None:
    assert not was_enough(0.15, 0.1)
    assert was_enough(0.2, 0.1)
    assert not was_enough(0.9, None)
    assert was_enough(1.0, None)


@given(st.integers(0, 5000), st.integers())
def test_backoff_is_random_below_a_bound_that_doubles_up_to_a_second(retry: int, seed: int) -> None:
    assert 0.0 <= backoff_s(retry, random.Random(seed)) <= min(1.0, 0.05 * 2 ** min(retry, 10))
