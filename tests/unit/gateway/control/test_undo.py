"""How long a decision can be taken back."""

from __future__ import annotations

from gateway.control.undo import Decided, LastDecision, LastDecisions
from tests.unit.gateway.control.conftest import Clock


def test_a_decision_is_offered_for_a_second_less_than_the_store_takes_it_back() -> None:
    clock = Clock()
    made = LastDecisions(clock)
    made.remember("s1", [Decided("r1", 3), Decided("r2", 1)], "refund", 10.0)

    assert made.of("s1") == LastDecision((Decided("r1", 3), Decided("r2", 1)), "refund", 9.0)
    assert made.of("s2") is None
    clock.now += 8.5
    assert made.of("s1") == LastDecision((Decided("r1", 3), Decided("r2", 1)), "refund", 0.5)
    clock.now += 0.5
    assert made.of("s1") is None


def test_only_the_last_one_is_and_each_session_has_its_own() -> None:
    made = LastDecisions(Clock())
    made.remember("s1", [Decided("r1", 1)], "a", 10.0)
    made.remember("s2", [Decided("r2", 1)], "b", 10.0)
    made.remember("s1", [Decided("r3", 1)], "c", 10.0)

    found, other = made.of("s1"), made.of("s2")
    made.forget("s1")

    assert found is not None
    assert found.reviews == (Decided("r3", 1),)
    assert other is not None
    assert made.of("s1") is None


def test_where_the_store_never_takes_one_back_nothing_is_offered() -> None:
    made = LastDecisions(Clock())
    made.remember("s1", [Decided("r1", 1)], "a", 0.0)

    assert made.of("s1") is None
