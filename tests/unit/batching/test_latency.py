import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.latency import RecentLatency, predicted_wait_s

NOW = 100.0


def shown(*latencies_s: float, at_s: float = NOW) -> RecentLatency:
    """An estimate that has seen batches which took *latencies_s*."""
    latency = RecentLatency()
    for infer_s in latencies_s:
        latency.observe(1, infer_s, at_s)
    return latency


def test_nothing_is_predicted_before_the_first_batch() -> None:
    latency = RecentLatency()

    assert (latency.typical_s(8, NOW), latency.cautious_s(8, NOW)) == (0.0, 0.0)


def test_caution_looks_past_one_slow_batch_in_twenty_and_not_past_two() -> None:
    latency = shown(*[0.010] * 19, 1.0)
    assert latency.cautious_s(1, NOW) == 0.010

    latency.observe(1, 1.0, NOW)

    assert latency.cautious_s(1, NOW) == 1.0


def test_what_is_typical_is_the_lower_median() -> None:
    latency = shown(5.0)
    assert latency.typical_s(1, NOW) == 5.0

    latency.observe(1, 0.010, NOW)
    assert latency.typical_s(1, NOW) == 0.010

    latency.observe(1, 0.020, NOW)
    assert latency.typical_s(1, NOW) == 0.020


def test_only_so_many_batches_are_remembered() -> None:
    latency = shown(*[1.0] * 64, *[0.010] * 64)

    assert latency.cautious_s(1, NOW) == 0.010


def test_a_batch_is_remembered_for_ten_seconds() -> None:
    latency = shown(1.0)

    assert (latency.typical_s(1, NOW + 10.0), latency.cautious_s(1, NOW + 10.0)) == (1.0, 1.0)
    assert (latency.typical_s(1, NOW + 10.1), latency.cautious_s(1, NOW + 10.1)) == (0.0, 0.0)


def test_old_batches_are_forgotten_one_by_one() -> None:
    latency = shown(1.0)
    latency.observe(1, 0.010, NOW + 6.0)

    assert latency.cautious_s(1, NOW + 9.0) == 1.0
    assert latency.cautious_s(1, NOW + 12.0) == 0.010
    assert latency.cautious_s(1, NOW + 17.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=200))
def test_a_prediction_is_one_of_the_recent_latencies(batches: list[tuple[float, float]]) -> None:
    latency, now = RecentLatency(), NOW
    seen: list[tuple[float, float]] = []
    for gap_s, infer_s in batches:
        now += gap_s
        latency.observe(1, infer_s, now)
        seen.append((now, infer_s))

        recent = [took_s for at_s, took_s in seen[-64:] if at_s >= now - 10.0]
        assert latency.typical_s(1, now) in recent
        assert latency.typical_s(1, now) <= latency.cautious_s(1, now) <= max(recent)


@pytest.mark.parametrize(
    ("queued_items", "in_flight", "slots", "expected_s"),
    [(0, 0, 1, 0.002), (7, 1, 2, 0.1), (0, 1, 1, 0.1), (8, 1, 1, 0.2), (9, 1, 1, 0.3), (16, 2, 2, 0.2)],
)
def test_the_wait_is_the_rounds_of_batches_ahead(
    queued_items: int, in_flight: int, slots: int, expected_s: float
) -> None:
    wait_s = predicted_wait_s(
        queued_items=queued_items, in_flight=in_flight, slots=slots, max_batch=8, max_delay_s=0.002, latency_s=0.1
    )

    assert wait_s == pytest.approx(expected_s)
