"""What a step of the load is, and when it counts as over."""

from __future__ import annotations

import pytest

from loadtests.ray_steps import _BEFORE_S, _PER_S, moments, settled_s


def test_the_load_steps_from_what_a_replica_answers_easily_to_more_than_two_could() -> None:
    came = moments(20.0, seed=1)

    before = sum(at_s < _BEFORE_S for at_s in came)
    after = len(came) - before
    assert list(came) == sorted(came)
    assert came[-1] < _BEFORE_S + 20.0
    assert before / _BEFORE_S == pytest.approx(0.4 * _PER_S, rel=0.2)
    assert after / 20.0 == pytest.approx(2.5 * _PER_S, rel=0.1)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1.0, 0.2, 0.3, 0.97, 1.0, 0.96], 2),
        ([1.0, 1.0, 1.0, 1.0], 0),
        ([1.0, 0.2, 1.0, 1.0, 0.2], None),
    ],
)
def test_it_is_over_when_enough_are_in_time_for_a_while(shares: list[float], expected: int | None) -> None:
    assert settled_s(shares, 1) == expected
