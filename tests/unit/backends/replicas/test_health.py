"""When a replica is ejected, for how long, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.replicas.health import (
    SPARED_SHARE,
    Change,
    Ejected,
    Health,
    Readmitted,
    Reason,
    Service,
    has_room,
    is_slow,
)
from backends.replicas.options import ReplicaOptions

OPTIONS = ReplicaOptions()


def fail(health: Health, now: float, times: int = 1, *, room: bool = True) -> Change:
    change: Change = None
    for _ in range(times):
        change = health.failed(health.begin(now), now, room=room)
    return change


def answer(health: Health, now: float, times: int = 1, *, slow: bool = False, room: bool = True) -> Change:
    change: Change = None
    for _ in range(times):
        change = health.answered(health.begin(now), now, slow=slow, room=room)
    return change


def ejected(now: float = 0.0) -> Health:
    health = Health(OPTIONS)
    assert fail(health, now, 5) == Ejected(Reason.FAILURES_IN_A_ROW, 30.0)
    return health


def test_five_failures_in_a_row_eject() -> None:
    health = Health(OPTIONS)

    assert fail(health, 0.0, 4) is None
    assert health.service(0.0) is Service.HEALTHY
    assert fail(health, 0.0) == Ejected(Reason.FAILURES_IN_A_ROW, 30.0)
    assert health.service(0.0) is Service.EJECTED
    assert not health.takes_calls(0.0)


def test_an_answer_ends_a_row_of_failures() -> None:
    health = Health(OPTIONS)
    fail(health, 0.0, 4)

    answer(health, 0.0)

    assert fail(health, 0.0, 4) is None


def test_what_says_nothing_of_the_replica_ends_no_row() -> None:
    health = Health(OPTIONS)
    fail(health, 0.0, 4)

    health.ended_otherwise(health.begin(0.0))

    assert fail(health, 0.0) is not None


def test_half_of_twenty_calls_within_ten_seconds_eject() -> None:
    health = Health(OPTIONS)

    for _ in range(9):
        assert fail(health, 0.0) is None
        answer(health, 5.0)
    answer(health, 9.0)

    assert fail(health, 9.0) == Ejected(Reason.FAILURE_RATE, 30.0)


def test_failures_spread_over_longer_than_ten_seconds_do_not_eject() -> None:
    health = Health(OPTIONS)

    for i in range(60):
        assert fail(health, 2.0 * i) is None
        answer(health, 2.0 * i + 1.0)


def test_failing_probes_eject_though_calls_are_answered() -> None:
    health = Health(OPTIONS)

    for _ in range(4):
        assert health.probe_failed(0.0, room=True) is None
        answer(health, 0.0)

    assert health.probe_failed(0.0, room=True) == Ejected(Reason.FAILURES_IN_A_ROW, 30.0)


def test_passing_probes_do_not_hide_that_calls_fail() -> None:
    health = Health(OPTIONS)

    for _ in range(4):
        assert fail(health, 0.0) is None
        health.probe_passed(0.0)

    assert fail(health, 0.0) is not None


def test_failed_calls_and_failed_probes_add_up() -> None:
    health = Health(OPTIONS)
    fail(health, 0.0, 3)
    health.probe_failed(0.0, room=True)

    assert health.probe_failed(0.0, room=True) is not None


def test_five_slow_answers_in_a_row_eject() -> None:
    health = Health(OPTIONS)
    answer(health, 0.0, 4, slow=True)
    answer(health, 0.0)

    assert answer(health, 0.0, 4, slow=True) is None
    assert answer(health, 0.0, slow=True) == Ejected(Reason.SLOW, 30.0)


@pytest.mark.parametrize(
    ("took_s", "expected"),
    [(0.049, False), (0.051, True)],
)
def test_slow_is_five_times_the_usual(took_s: float, expected: bool) -> None:
    assert is_slow(took_s, 0.010, 0.012, 5.0) is expected


def test_nobody_is_slow_within_what_the_others_take_at_times_or_by_some_milliseconds() -> None:
    assert not is_slow(0.09, 0.010, 0.100, 5.0)
    assert not is_slow(0.004, 0.0001, 0.0001, 5.0)


def test_where_there_is_no_room_a_failing_replica_stays_in_until_there_is() -> None:
    health = Health(OPTIONS)

    assert fail(health, 0.0, 50, room=False) is None
    assert health.takes_calls(0.0)
    assert health.share(0.0) == SPARED_SHARE
    assert fail(health, 1.0) is not None


def test_a_model_that_fails_on_a_trial_and_not_elsewhere_ends_the_trial() -> None:
    health = ejected()
    ticket = health.begin(30.0)
    health.ended_otherwise(ticket)

    assert health.was_wrong(30.1, room=True) == Ejected(Reason.TRIAL_FAILED, 60.0)
    assert health.service(30.2) is Service.EJECTED


def test_a_replica_that_was_spared_has_its_full_share_back_with_its_first_answer() -> None:
    health = Health(OPTIONS)
    fail(health, 0.0, 50, room=False)

    health.answered(health.begin(1.0), 1.0, slow=False, room=False)

    assert health.share(1.0) == 1.0


def test_after_its_time_one_call_at_a_time_is_let_through() -> None:
    health = ejected()
    assert health.service(29.9) is Service.EJECTED

    assert health.service(30.0) is Service.HALF_OPEN
    ticket = health.begin(30.0)
    assert not health.takes_calls(30.0)
    health.answered(ticket, 30.1, slow=False, room=True)
    assert health.takes_calls(30.1)


def test_three_successes_readmit_with_a_share_that_grows() -> None:
    health = ejected()

    assert answer(health, 30.0, 2) is None
    assert answer(health, 30.0) == Readmitted()

    assert health.service(30.0) is Service.RAMPING
    assert [health.share(30.0 + s) for s in (0.0, 15.0, 29.0, 30.0)] == pytest.approx([0.1, 0.5, 29 / 30, 1.0])
    assert health.service(60.0) is Service.HEALTHY


def test_a_failed_trial_ejects_for_longer_up_to_five_minutes() -> None:
    health = ejected()
    now, lasted = 30.0, [30.0]

    for _ in range(11):
        change = fail(health, now)
        assert isinstance(change, Ejected)
        assert change.reason is Reason.TRIAL_FAILED
        lasted.append(change.for_s)
        now += change.for_s

    assert lasted == [30.0 * n for n in range(1, 11)] + [300.0, 300.0]


def test_a_trial_that_says_nothing_lets_the_next_one_through() -> None:
    health = ejected()
    ticket = health.begin(30.0)

    health.ended_otherwise(ticket)

    assert health.service(30.0) is Service.HALF_OPEN
    assert health.takes_calls(30.0)


def test_calls_from_before_the_ejection_decide_no_trial() -> None:
    health = Health(OPTIONS)
    old = health.begin(0.0)
    fail(health, 0.0, 5)

    for _ in range(3):
        assert health.answered(old, 31.0, slow=False, room=True) is None
    assert health.failed(old, 31.0, room=True) is None

    assert health.service(31.0) is Service.HALF_OPEN


def test_a_trial_of_an_earlier_half_open_time_frees_no_later_one() -> None:
    health = ejected()
    first = health.begin(30.0)
    health.probe_failed(30.0, room=True)
    health.probe_passed(31.0)
    second = health.begin(31.0)

    health.ended_otherwise(first)

    assert not health.takes_calls(31.0)
    health.ended_otherwise(second)
    assert health.takes_calls(31.0)


def test_an_ejection_is_forgotten_after_five_minutes_in_service() -> None:
    health = ejected()
    answer(health, 30.0, 3)

    soon = Health(OPTIONS)
    fail(soon, 0.0, 5)
    answer(soon, 30.0, 3)

    assert fail(soon, 329.0, 5) == Ejected(Reason.FAILURES_IN_A_ROW, 60.0)
    assert fail(health, 331.0, 5) == Ejected(Reason.FAILURES_IN_A_ROW, 30.0)


def test_a_probe_that_failed_and_passes_ends_an_ejection_early() -> None:
    health = ejected()
    health.probe_failed(0.1, room=True)

    health.probe_passed(5.0)

    assert health.service(5.0) is Service.HALF_OPEN


def test_probes_that_were_green_all_along_end_no_ejection() -> None:
    health = ejected()

    health.probe_passed(0.1)
    health.probe_passed(5.0)

    assert health.service(5.0) is Service.EJECTED


def test_a_probe_that_saw_the_last_fault_and_not_this_one_ends_no_ejection() -> None:
    health = ejected()
    health.probe_failed(0.1, room=True)
    health.probe_passed(5.0)
    assert isinstance(fail(health, 5.1), Ejected)

    health.probe_passed(10.0)

    assert health.service(10.0) is Service.EJECTED


def test_an_ejection_does_not_end_while_probes_fail() -> None:
    health = ejected()
    health.probe_failed(29.0, room=True)

    assert health.service(31.0) is Service.EJECTED
    assert health.out_for_s(31.0) == OPTIONS.probe_every_s
    health.probe_passed(34.0)
    assert health.service(34.0) is Service.HALF_OPEN


def test_a_slow_replica_is_back_only_when_it_is_quick() -> None:
    health = Health(OPTIONS)
    answer(health, 0.0, 5, slow=True)
    health.probe_failed(1.0, room=True)
    health.probe_passed(2.0)
    assert health.service(2.0) is Service.EJECTED

    assert answer(health, 30.0, slow=True) == Ejected(Reason.SLOW, 60.0)
    assert answer(health, 90.0, 3) == Readmitted()


def test_a_replica_that_was_opened_anew_is_on_trial_if_it_was_ejected_and_ramps_otherwise() -> None:
    was_ejected, was_healthy = ejected(), Health(OPTIONS)

    was_ejected.opened_anew(1.0)
    was_healthy.opened_anew(1.0)

    assert was_ejected.service(1.0) is Service.HALF_OPEN
    assert was_healthy.service(1.0) is Service.RAMPING


@pytest.mark.parametrize(
    ("out", "replicas", "expected"),
    [(0, 1, True), (0, 2, True), (1, 2, False), (0, 3, True), (1, 3, False), (1, 4, True), (2, 4, False)],
)
def test_room_is_half_of_a_pool(out: int, replicas: int, expected: bool) -> None:
    assert has_room(out, replicas) is expected


EVENTS: list[Callable[[Health, float, bool], object]] = [
    lambda health, now, room: fail(health, now, room=room) if health.takes_calls(now) else None,
    lambda health, now, room: answer(health, now, room=room) if health.takes_calls(now) else None,
    lambda health, now, room: answer(health, now, slow=True, room=room) if health.takes_calls(now) else None,
    lambda health, now, room: health.probe_failed(now, room=room),
    lambda health, now, room: health.probe_passed(now),
    lambda health, now, room: health.opened_anew(now),
]


@given(
    st.integers(1, 7),
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 5.0, 30.0]),
            st.integers(0, 6),
            st.sampled_from([0, 0, 0, 1, 2, 2, 3, 3, 4, 5]),
            st.integers(1, 6),
        ),
        max_size=80,
    ),
)
def test_at_most_half_of_a_pool_is_ever_out(replicas: int, events: list[tuple[float, int, int, int]]) -> None:
    pool = [Health(OPTIONS) for _ in range(replicas)]
    now = 0.0

    for gap_s, who, what, times in events:
        now += gap_s
        for _ in range(times):
            room = has_room(sum(health.is_out(now) for health in pool), replicas)
            EVENTS[what](pool[who % replicas], now, room)

        out = sum(health.is_out(now) for health in pool)
        assert out <= max(replicas // 2, replicas == 1)
