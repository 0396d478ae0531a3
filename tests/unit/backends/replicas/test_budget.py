"""Retries and hedges never exceed their budgets, however calls come and fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.replicas.budget import FEWEST_RETRIES, Budget
from backends.replicas.window import SLOT_S, WINDOW_S

# Seconds since the step before, how many calls came, how many ask for a retry, how many retries ended.
steps = st.lists(
    st.tuples(st.floats(0.0, 4.0), st.integers(0, 60), st.integers(0, 30), st.integers(0, 30)), max_size=30
)


def within(times: list[float], seconds: float, now: float) -> int:
    return sum(now - time <= seconds for time in times)


@given(steps, st.integers(1, 100))
def test_retries_stay_within_both_limits(steps: list[tuple[float, int, int, int]], in_flight: int) -> None:
    budget = Budget()
    now, active = 1000.0, 0
    calls: list[float] = []
    retries: list[float] = []

    for gap_s, came, wanted, ended in steps:
        now += gap_s
        for _ in range(came):
            budget.call_came(now)
            calls.append(now)
        for _ in range(min(ended, active)):
            budget.end_retry()
            active -= 1
        for _ in range(wanted):
            if budget.grant_retry(now):
                retries.append(now)
                paid_for = within(calls, WINDOW_S + SLOT_S, now)
                assert within(retries, WINDOW_S, now) <= max(FEWEST_RETRIES, 0.1 * paid_for)
            if budget.begin_retry(in_flight):
                active += 1
                assert active <= max(3, 0.2 * in_flight)


@given(steps)
def test_hedges_are_at_most_one_call_in_twenty(steps: list[tuple[float, int, int, int]]) -> None:
    budget = Budget()
    now = 1000.0
    calls: list[float] = []
    hedges: list[float] = []

    for gap_s, came, wanted, _ in steps:
        now += gap_s
        for _ in range(came):
            budget.call_came(now)
            calls.append(now)
        for _ in range(wanted):
            if budget.begin_hedge(now):
                hedges.append(now)
                assert within(hedges, WINDOW_S, now) <= 0.05 * within(calls, WINDOW_S + SLOT_S, now)


def test_three_retries_may_run_though_few_calls_are_in_flight_and_the_next_when_one_ends() -> None:
    budget = Budget()

    assert [budget.begin_retry(1) for _ in range(4)] == [True, True, True, False]
    budget.end_retry()
    assert budget.begin_retry(1)


def test_a_fifth_of_many_calls_in_flight_may_be_retries() -> None:
    budget = Budget()

    assert sum(budget.begin_retry(100) for _ in range(100)) == 20


def test_a_tenth_of_the_calls_of_ten_seconds_may_be_retried_and_as_many_again_later() -> None:
    budget = Budget()

    def spend(now: float) -> int:
        for _ in range(200):
            budget.call_came(now)
        return sum(budget.grant_retry(now) for _ in range(50))

    assert [spend(0.0), spend(1.0), spend(12.0)] == [20, 20, 20]
    assert budget.retries_refused == 90


def test_ten_retries_in_ten_seconds_are_granted_though_few_calls_come() -> None:
    budget = Budget()

    assert sum(budget.grant_retry(0.1 * i) for i in range(50)) == 10
