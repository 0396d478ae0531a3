from hypothesis import given
from hypothesis import strategies as st

from batching.concurrency import MOST, Gradient2
from batching.latency import Line

LINE = Line(0.010, 0.001)


def windows(limit: Gradient2, count: int, took_s: float, *, start_s: float = 0.0, in_flight: int = MOST) -> float:
    """*count* windows of batches of one that each took *took_s*; when the last of them ended."""
    now = start_s
    for _ in range(count):
        for _ in range(11):
            now += 0.1
            limit.answered(1, took_s, None, in_flight, now)
    return now


def test_the_limit_grows_while_batches_take_what_they_always_took() -> None:
    limit = Gradient2(100)
    assert limit.limit == 8

    windows(limit, 200, 0.010)

    assert limit.limit == 100


def test_the_limit_shrinks_when_batches_take_much_longer() -> None:
    limit = Gradient2(100)
    now = windows(limit, 200, 0.010)

    windows(limit, 20, 0.100, start_s=now)

    assert limit.limit < 20


def test_a_larger_batch_that_takes_longer_is_no_congestion() -> None:
    limit = Gradient2(100)
    now = 0.0
    for size in [1] * 2000 + [64] * 2000:
        now += 0.1
        limit.answered(size, LINE.at(size), LINE, MOST, now)

    assert limit.limit == 100


def test_a_limit_that_is_hardly_used_stays() -> None:
    limit = Gradient2(100)

    windows(limit, 50, 0.010, in_flight=3)

    assert limit.limit == 8


def test_a_refusal_costs_a_tenth_and_never_the_last_slot() -> None:
    limit = Gradient2(100)

    limit.refused()
    assert limit.limit == 7

    for _ in range(100):
        limit.refused()
    assert limit.limit == 1


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0.0, 10.0), st.booleans(), st.integers(1, 64), st.integers(0, 300)), max_size=200),
)
def test_the_limit_is_between_one_and_the_backends(most: int, batches: list[tuple[float, bool, int, int]]) -> None:
    limit, now = Gradient2(most), 0.0
    for took_s, is_refused, size, in_flight in batches:
        now += 0.2
        if is_refused:
            limit.refused()
        else:
            limit.answered(size, took_s, LINE, in_flight, now)

        assert 1 <= limit.limit <= min(most, MOST)
