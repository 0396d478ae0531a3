"""How many replicas there should be, by what replicas have summed up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ray_serve.scaling import BUSY, CALLS, DELAY, MISSES, Load, QueueDelay, wanted_replicas

TARGET_S = 0.02


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wanted(replicas: int, **signals: float) -> float:
    usual = {"delay_s": 0.0, "missed": 0.0, "busy": 0.6, "calls": 10.0}
    return wanted_replicas(replicas, target_s=TARGET_S, **{**usual, **signals})


def test_a_load_tells_means_and_sums_since_it_was_last_asked() -> None:
    clock = Clock()
    load = Load(slots=2, clock=clock)
    load.began(0.1, misses=1)
    load.began(0.3, misses=2)
    clock.now += 1.0
    load.ended()
    clock.now += 1.0

    assert load.told() == pytest.approx({DELAY: 0.2, MISSES: 3.0, BUSY: 0.75, CALLS: 3.0})
    clock.now += 1.0
    assert load.told() == pytest.approx({DELAY: 0.0, MISSES: 0.0, BUSY: 0.5, CALLS: 1.0})


def test_calls_that_only_queue_in_a_replica_are_not_its_work() -> None:
    clock = Clock()
    load = Load(slots=1, clock=clock)
    load.began(0.0, 0)
    load.began(0.0, 0)
    clock.now += 2.0

    assert load.told()[BUSY] == 1.0


def test_a_delay_above_its_target_asks_for_as_many_more_and_twice_as_many_at_most() -> None:
    assert wanted(4, delay_s=1.5 * TARGET_S) == pytest.approx(6.0)
    assert wanted(4, delay_s=9.0 * TARGET_S) == 8.0
    assert wanted(1, delay_s=1.1 * TARGET_S) == 2.0


def test_missed_deadlines_ask_for_one_more_however_short_the_delay_is() -> None:
    assert wanted(3, missed=0.02) == 4.0


def test_a_miss_among_hundreds_of_calls_asks_for_nothing() -> None:
    assert wanted(3, missed=0.005, busy=0.9) == 3.0


@pytest.mark.parametrize("signals", [{"missed": 1.0}, {"delay_s": 50 * TARGET_S}], ids=str)
def test_replicas_that_are_idle_are_never_multiplied(signals: dict[str, float]) -> None:
    """Whatever batches wait for, or deadlines are too short for, it is not them."""
    assert wanted(1, busy=0.1, **signals) == 1.0
    assert wanted(4, busy=0.5, **signals) == 4.0
    assert wanted(8, busy=0.1, **signals) == 4.0


def test_where_something_is_amiss_fewer_replicas_are_not_so_busy_that_more_would_be_asked_for_again() -> None:
    assert wanted(6, busy=0.3, missed=0.1) == pytest.approx(4.5)
    assert wanted(6, busy=0.3, delay_s=2 * TARGET_S) == pytest.approx(4.5)
    assert wanted(6, busy=0.45, delay_s=2 * TARGET_S) == 6.0


def test_without_calls_no_replica_is_wanted_one_day() -> None:
    assert wanted(8, calls=0.0) == 4.0
    assert wanted(2, calls=0.0) == 1.0
    assert wanted(1, calls=0.0) == 0.0


def test_with_a_short_delay_there_are_as_many_as_have_work_and_never_less_than_half_at_once() -> None:
    assert wanted(4, busy=0.525) == pytest.approx(3.0)
    assert wanted(4, busy=0.01) == 2.0
    assert wanted(1, busy=0.01) == 1.0
    assert wanted(4, busy=1.0) == 4.0


def test_between_half_of_the_target_and_all_of_it_nothing_changes_where_they_are_busy() -> None:
    assert wanted(4, delay_s=0.7 * TARGET_S, busy=0.51) == 4.0


@given(
    replicas=st.integers(1, 64), delay=st.floats(0, 10), missed=st.floats(0, 1), busy=st.floats(0, 1),
    calls=st.integers(0, 9),
)  # fmt: skip
def test_a_worse_delay_never_asks_for_fewer(
    replicas: int, delay: float, missed: float, busy: float, calls: int
) -> None:
    signals = {"missed": missed, "busy": busy, "calls": float(calls)}
    less, more = (wanted(replicas, delay_s=d * TARGET_S, **signals) for d in (delay, delay + 0.5))

    assert replicas // 2 <= less <= more <= 2 * replicas


def context(replicas: int, metrics: dict[str, dict[str, float]] | None, ongoing: float = 0.0) -> Any:
    return SimpleNamespace(
        aggregated_metrics=metrics, current_num_replicas=replicas, target_num_replicas=3, total_num_requests=ongoing
    )


def test_the_policy_goes_by_all_replicas_that_have_been_heard_of() -> None:
    same = {"a": 1.0, "b": 1.0}
    metrics = {DELAY: {"a": 0.0, "b": 0.06}, MISSES: {"a": 0.0, "b": 0.0}, BUSY: same, CALLS: same}

    wanted_by_all, _ = QueueDelay(TARGET_S)(context(2, metrics))

    assert wanted_by_all == pytest.approx(3.0)


def test_the_policy_counts_misses_as_a_share_of_calls() -> None:
    """One of a caller's, however few the looks are that it falls into."""
    same = {"a": 1.0, "b": 1.0}
    few = {DELAY: {"a": 0.0}, MISSES: {"a": 0.5, "b": 0.5}, BUSY: same, CALLS: {"a": 100.0, "b": 100.0}}
    many = {**few, CALLS: {"a": 10.0, "b": 10.0}}

    assert QueueDelay(TARGET_S)(context(2, few))[0] == 2.0
    assert QueueDelay(TARGET_S)(context(2, many))[0] == 3.0


def test_the_policy_changes_nothing_before_a_replica_has_told() -> None:
    assert QueueDelay(TARGET_S)(context(2, None)) == (3.0, {})
    assert QueueDelay(TARGET_S)(context(0, {})) == (3.0, {})


def test_a_call_that_waits_keeps_the_policy_from_wanting_none() -> None:
    idle = {DELAY: {"a": 0.0}, MISSES: {"a": 0.0}, BUSY: {"a": 0.0}, CALLS: {"a": 0.0}}

    assert QueueDelay(TARGET_S)(context(1, idle))[0] == 0.0
    assert QueueDelay(TARGET_S)(context(1, idle, ongoing=1.0))[0] == 1.0
