"""Windows and worth follow from idle times."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.warm.histogram import LEAST_SAMPLES, IdleTimes, KeepAlive

RULE = KeepAlive()


def seen(*idle_s: float) -> IdleTimes:
    times = IdleTimes()
    for one in idle_s:
        times.observe(one)
    return times


def test_a_model_of_which_little_is_known_is_kept_for_the_fallback_and_never_loaded_ahead() -> None:
    window = seen(*[3600.0] * (LEAST_SAMPLES - 1)).window(RULE)

    assert (window.linger_s, window.end_s) == (RULE.fallback_s, RULE.fallback_s)


def test_a_model_that_comes_on_the_hour_is_away_in_between_and_there_before() -> None:
    window = seen(*[3600.0] * 20).window(RULE)

    assert window.linger_s == RULE.linger_s
    assert 0.8 * 3600 < window.start_s < 0.95 * 3600
    assert 3600 < window.end_s < 1.2 * 3600


def test_the_short_pauses_within_a_visit_do_not_keep_a_model_that_comes_on_the_hour() -> None:
    window = seen(*[2.0, 2.0, 2.0, 2.0, 3600.0] * 20).window(RULE)

    assert window.start_s > 0.8 * 3600


def test_a_model_whose_next_use_may_come_soon_is_not_unloaded_in_between() -> None:
    rng = random.Random(0)

    window = seen(*[rng.expovariate(1 / 300) for _ in range(500)]).window(RULE)

    assert window.start_s == 0.0
    assert 1000 < window.end_s < 2500  # -ln(0.01) x 300 s is 1380


def test_idle_times_mostly_beyond_the_histogram_say_nothing() -> None:
    beyond = 72 * 3600.0

    assert seen(*[beyond] * 20).window(RULE).end_s == RULE.fallback_s
    assert seen(*[beyond] * 20, *[3600.0] * 30).window(RULE).start_s > RULE.fallback_s


def test_a_habit_that_has_changed_is_forgotten() -> None:
    times = seen(*[7200.0] * 3000)

    for _ in range(20_000):
        times.observe(1800.0)

    assert times.window(RULE).end_s < 2500


@given(
    st.lists(st.floats(0.0, 1e6), max_size=60),
    st.floats(0.0, 0.4),
    st.floats(0.6, 1.0),
)
def test_a_window_is_never_inside_out(idle_s: list[float], head: float, tail: float) -> None:
    window = seen(*idle_s).window(KeepAlive(head=head, tail=tail))

    assert 0.0 <= window.start_s < window.end_s
    assert math.isfinite(window.end_s)
    assert window.start_s == 0.0 or window.start_s > window.linger_s


@given(st.lists(st.floats(1.0, 1e6), min_size=LEAST_SAMPLES, max_size=40), st.floats(0.0, 1e6))
def test_worth_is_a_positive_number_whatever_was_seen(idle_s: list[float], now_s: float) -> None:
    worth = seen(*idle_s).uses_per_s(now_s)

    assert 0.0 < worth < math.inf


def test_the_worth_of_a_model_that_comes_on_the_hour_grows_towards_the_hour_and_falls_behind_it() -> None:
    times = seen(*[3600.0] * 50)

    worths = [times.uses_per_s(idle_s) for idle_s in (10.0, 1800.0, 3300.0, 3500.0)]

    assert worths == sorted(worths)
    assert times.uses_per_s(5000.0) < worths[0]


def test_for_memoryless_arrivals_worth_is_their_rate_at_any_time() -> None:
    rng = random.Random(1)
    times = seen(*[rng.expovariate(1 / 600) for _ in range(2000)])

    for idle_s in (0.0, 300.0, 900.0):
        assert times.uses_per_s(idle_s) == pytest.approx(1 / 600, rel=0.35)


def test_what_is_not_known_is_worth_the_less_the_longer_it_was_not_used() -> None:
    times = seen(60.0)

    assert times.uses_per_s(10.0) > times.uses_per_s(100.0) > times.uses_per_s(1000.0)
