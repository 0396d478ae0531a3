"""Estimates jump to peaks and come down slowly; quantiles are those of the last answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.replicas.latency import DECAY_S, PeakEwma, RecentAnswers


def test_a_slow_answer_is_the_estimate_at_once() -> None:
    latency = PeakEwma()
    latency.answered(0.01, 100.0)

    latency.answered(0.2, 100.0)

    assert latency.at(100.0) == 0.2


def test_quick_answers_bring_the_estimate_down_as_time_passes() -> None:
    latency = PeakEwma()
    latency.answered(0.2, 100.0)

    latency.answered(0.01, 100.0 + DECAY_S)

    assert latency.at(100.0 + DECAY_S) == pytest.approx(0.2 / math.e + 0.01 * (1 - 1 / math.e))


def test_a_failure_within_a_moment_is_no_quick_answer() -> None:
    latency = PeakEwma()
    latency.answered(0.2, 100.0)

    latency.not_answered(0.001, 100.0)

    assert latency.at(100.0) == 0.2


def test_an_attempt_that_was_cut_off_takes_as_long_at_least() -> None:
    latency = PeakEwma()
    latency.answered(0.2, 100.0)

    latency.not_answered(3.0, 100.0)

    assert latency.at(100.0) == 3.0


def test_an_estimate_that_nothing_confirms_is_none_in_the_end() -> None:
    latency = PeakEwma()
    assert latency.at(100.0) is None
    latency.answered(0.2, 100.0)

    assert latency.at(140.0) is not None
    assert latency.at(151.0) is None


@given(
    st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 10.0)), min_size=1, max_size=400),
    st.sampled_from([0.5, 0.95, 0.99]),
)
def test_a_quantile_is_that_of_the_last_256_answers_of_a_minute(
    samples: list[tuple[float, float]], share: float
) -> None:
    recent = RecentAnswers()
    now = 0.0
    past: list[tuple[float, float]] = []
    for gap_s, took_s in samples:
        now += gap_s
        recent.add(took_s, now)
        past.append((now, took_s))

    kept = sorted(took_s for time, took_s in past[-256:] if time >= now - 60.0)

    assert recent.quantile(share, now, fewest=1) == kept[math.ceil(share * len(kept)) - 1]
    assert recent.quantile(share, now, fewest=len(kept) + 1) is None
