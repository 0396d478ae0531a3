"""A count over the last ten seconds is never too low, and too high by no more than half a second's events."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from backends.replicas.window import SLOT_S, WINDOW_S, SlidingCount

gaps = st.lists(st.floats(0.0, 8.0) | st.just(0.0) | st.just(30.0), max_size=60)


@given(st.floats(0.0, 1e6), gaps)
def test_a_count_lies_between_the_window_s_and_one_slot_more(start: float, gaps: list[float]) -> None:
    count = SlidingCount()
    times = list(accumulate(gaps, initial=start))

    for i, now in enumerate(times):
        count.add(now)

        past = times[: i + 1]
        at_least = sum(now - time <= WINDOW_S - 1e-6 for time in past)
        at_most = sum(now - time <= WINDOW_S + SLOT_S + 1e-6 for time in past)
        assert at_least <= count.count(now) <= at_most


def test_what_is_cleared_is_forgotten() -> None:
    count = SlidingCount()
    count.add(5.0)

    count.clear()

    assert count.count(5.0) == 0
