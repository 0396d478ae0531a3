"""The better of two gets the call; who is on trial gets one, who comes back a growing share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from backends.replicas.balance import Candidate, choose, load


def chosen(candidates: Sequence[Candidate[str]], draws: int = 3000) -> Counter[str | None]:
    rng = random.Random(1)
    return Counter(choose(candidates, rng) for _ in range(draws))


def test_nobody_is_chosen_of_nobody() -> None:
    assert choose([], random.Random(0)) is None


def test_one_is_chosen_whatever_its_load() -> None:
    assert set(chosen([Candidate("a", 1e9)])) == {"a"}


def test_of_two_the_less_loaded_gets_every_call() -> None:
    assert set(chosen([Candidate("a", 0.2), Candidate("b", 0.1)])) == {"b"}


def test_equal_loads_share_calls_evenly() -> None:
    counts = chosen([Candidate("a", 0.1), Candidate("b", 0.1), Candidate("c", 0.1)])

    assert all(900 < counts[who] < 1100 for who in "abc")


def test_the_most_loaded_of_several_gets_nothing() -> None:
    assert chosen([Candidate("a", 0.1), Candidate("b", 0.1), Candidate("c", 0.3)])["c"] == 0


def test_a_ramping_replica_gets_its_share_even_in_quiet_times() -> None:
    counts = chosen([Candidate("a", 0.1), Candidate("b", 0.0, share=0.25)])

    assert 650 < counts["b"] < 850


def test_replicas_that_all_ramp_still_take_calls() -> None:
    assert chosen([Candidate("a", 0.1, share=0.1)])["a"] == 3000


def test_a_first_attempt_goes_to_the_one_on_trial() -> None:
    assert set(chosen([Candidate("a", 0.0), Candidate("b", 9.0, is_on_trial=True)])) == {"b"}


def test_a_call_that_failed_once_goes_on_no_trial_while_another_is_in_service() -> None:
    failed = Candidate("a", 0.0, was_tried=True)
    on_trial = Candidate("b", 0.0, is_on_trial=True)

    assert set(chosen([failed, on_trial, Candidate("c", 9.0)])) == {"c"}
    assert set(chosen([failed, on_trial])) == {"b"}


def test_a_replica_that_was_tried_is_tried_again_where_there_is_no_other() -> None:
    assert set(chosen([Candidate("a", 0.0, was_tried=True), Candidate("b", 9.0)])) == {"b"}
    assert set(chosen([Candidate("a", 0.0, was_tried=True)])) == {"a"}


@pytest.mark.parametrize(("latency_s", "in_flight", "expected"), [(0.1, 0, 0.1), (0.1, 4, 0.5), (None, 0, 0.0)])
def test_load_is_calls_times_latency(latency_s: float | None, in_flight: int, expected: float) -> None:
    assert load(latency_s, in_flight) == pytest.approx(expected)


def test_an_unknown_replica_with_a_call_is_the_last_to_get_another() -> None:
    assert load(None, 1) > load(100.0, 1000)
    assert load(None, 2) > load(None, 1)
