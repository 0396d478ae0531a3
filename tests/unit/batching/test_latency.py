import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.latency import Arrivals, Kinds, LatencyCurve, Line

NOW = 100.0
GPU = Line(0.010, 0.0005)
CPU = Line(0.003, 0.007)


def shown(*latencies_s: float, at_s: float = NOW) -> LatencyCurve:
    """An estimate that has seen batches of one which took *latencies_s*."""
    latency = LatencyCurve()
    for infer_s in latencies_s:
        latency.observe(1, infer_s, at_s)
    return latency


def taught(line: Line, sizes: list[int], noise: float = 0.0, *, at_s: float = NOW) -> LatencyCurve:
    """An estimate that has seen batches of *sizes*, that took what *line* says, give or take *noise*."""
    latency, rng = LatencyCurve(), random.Random(1)
    for size in sizes:
        latency.observe(size, line.at(size) * (1 + noise * rng.uniform(-1, 1)), at_s)
    return latency


def test_nothing_is_predicted_before_the_first_batch() -> None:
    latency = LatencyCurve()

    assert (latency.typical_s(8, NOW), latency.cautious_s(8, NOW)) == (0.0, 0.0)
    assert latency.line(NOW) is None
    assert latency.largest_within(1e-9, 8, NOW) == 8


def test_one_batch_proves_nothing_it_may_have_been_a_cold_start() -> None:
    latency = shown(5.0)
    assert latency.typical_s(1, NOW) == 0.0

    latency.observe(1, 0.010, NOW)

    assert latency.typical_s(1, NOW) == pytest.approx(0.010)


def test_caution_looks_past_one_slow_batch_in_twenty_and_not_past_two() -> None:
    latency = shown(*[0.010] * 19, 1.0)
    assert latency.cautious_s(1, NOW) == pytest.approx(0.010, rel=0.01)

    latency.observe(1, 1.0, NOW)

    assert latency.cautious_s(1, NOW) == pytest.approx(1.0, rel=0.01)


def test_a_cold_start_is_forgotten_as_soon_as_the_next_batch_shows_it() -> None:
    latency = shown(5.0, 0.010)

    assert latency.typical_s(1, NOW) == latency.cautious_s(1, NOW) == pytest.approx(0.010)


def test_a_start_that_is_cold_again_after_a_pause_is_forgotten_too() -> None:
    latency = taught(GPU, [1, 8, 64] * 8)
    for infer_s in (5.0, GPU.at(1)):
        latency.observe(1, infer_s, NOW + 3600)

    assert latency.cautious_s(64, NOW + 3600) == pytest.approx(GPU.at(64), rel=0.05)


def test_a_first_batch_that_was_larger_is_no_cold_start() -> None:
    latency = taught(CPU, [64, 1])

    assert latency.typical_s(64, NOW) == pytest.approx(CPU.at(64), rel=0.05)


def test_what_a_cold_start_was_dropped_for_is_forgotten_after_ten_seconds_as_well() -> None:
    latency = shown(5.0, 0.010)
    assert latency.typical_s(1, NOW + 10.1) == 0.0

    latency.observe(1, 5.0, NOW + 11)

    assert latency.typical_s(1, NOW + 11) == 0.0, "the first after a pause may be cold too"


def test_batches_of_one_size_show_no_shape() -> None:
    assert not LatencyCurve().has_shape
    assert not taught(GPU, [2, 2]).has_shape
    assert taught(GPU, [2, 1]).has_shape


def test_only_so_many_batches_are_remembered() -> None:
    latency = shown(*[0.012] * 64)
    for i in range(1, 65):
        latency.observe(1, 0.010, NOW + 0.01 * i)

    assert latency.cautious_s(1, NOW + 1) == pytest.approx(0.010, rel=0.01)


def test_a_batch_is_remembered_for_ten_seconds() -> None:
    latency = shown(1.0, 1.0)

    assert (latency.typical_s(1, NOW + 10.0), latency.cautious_s(1, NOW + 10.0)) == pytest.approx((1.0, 1.0))
    assert (latency.typical_s(1, NOW + 10.1), latency.cautious_s(1, NOW + 10.1)) == (0.0, 0.0)


@pytest.mark.parametrize("line", [GPU, CPU], ids=["gpu", "cpu"])
def test_a_line_is_learnt_from_batches_of_several_sizes(line: Line) -> None:
    latency = taught(line, [1, 2, 5, 9, 17, 33, 40, 64] * 3, noise=0.05)

    for size in (1, 8, 32, 64):
        assert latency.typical_s(size, NOW) == pytest.approx(line.at(size), rel=0.05)
        assert line.at(size) <= latency.cautious_s(size, NOW) <= 1.12 * line.at(size)


def test_the_shape_outlives_hours_of_batches_of_one_size() -> None:
    latency = taught(GPU, [1, 8, 64] * 8)
    for i in range(1000):
        latency.observe(1, GPU.at(1), NOW + i)

    assert latency.typical_s(64, NOW + 1000) == pytest.approx(GPU.at(64), rel=0.05)


def test_the_shape_outlives_a_pause() -> None:
    latency = taught(GPU, [1, 8, 64] * 8)
    for _ in range(2):
        latency.observe(1, GPU.at(1), NOW + 3600)

    assert latency.typical_s(64, NOW + 3600) == pytest.approx(GPU.at(64), rel=0.05)


def test_what_one_size_cannot_teach_is_taken_to_grow_with_the_size() -> None:
    latency = shown(0.010, 0.010)

    assert latency.typical_s(4, NOW) == pytest.approx(0.040)


@given(st.sampled_from([GPU, CPU]), st.lists(st.integers(1, 64), min_size=1, max_size=8), st.sampled_from([2.0, 0.5]))
@settings(deadline=None)
def test_a_model_that_is_suddenly_slower_or_faster_is_known_again_within_50_batches(
    line: Line, sizes: list[int], factor: float
) -> None:
    latency, rng = taught(line, [1, 8, 64] * 3 + sizes * 10, noise=0.05), random.Random(2)
    changed = line.times(factor)
    for i in range(50):
        size = sizes[i % len(sizes)]
        latency.observe(size, changed.at(size) * (1 + 0.05 * rng.uniform(-1, 1)), NOW + i / 100)

    for size in sizes:
        assert latency.typical_s(size, NOW + 0.5) == pytest.approx(changed.at(size), rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 5)), max_size=100), st.floats(0, 10), st.integers(1, 64))
def test_the_largest_within_a_time_is_the_largest_whose_caution_fits(
    batches: list[tuple[int, float]], left_s: float, most: int
) -> None:
    latency = LatencyCurve()
    for size, infer_s in batches:
        latency.observe(size, infer_s, NOW)

    found = latency.largest_within(left_s, most, NOW)

    assert 0 <= found <= most
    if found:
        assert latency.cautious_s(found, NOW) <= left_s * (1 + 1e-9)
    if found < most:
        assert latency.cautious_s(found + 1, NOW) >= left_s * (1 - 1e-9)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 64), st.floats(0, 100)), min_size=2, max_size=200))
def test_an_estimate_is_finite_and_grows_with_size_and_caution(batches: list[tuple[float, int, float]]) -> None:
    latency, now = LatencyCurve(), NOW
    for gap_s, size, infer_s in batches:
        now += gap_s
        latency.observe(size, infer_s, now)

        curve = latency.curve((1, 8, 64), now)
        assert all(0.0 <= typical_s <= cautious_s < math.inf for _, typical_s, cautious_s in curve)
        assert [row[1] for row in curve] == sorted(row[1] for row in curve)


def test_of_a_model_faster_than_a_millisecond_not_every_batch_is_learnt() -> None:
    latency = shown(*[1e-4] * 64)

    latency.observe(1, 5.0, NOW + 0.0005)
    assert latency.typical_s(1, NOW) == latency.cautious_s(1, NOW) == pytest.approx(1e-4)

    for i in range(8):
        latency.observe(1, 5.0, NOW + 1 + i)
    assert latency.typical_s(1, NOW + 8) == pytest.approx(5.0)


def test_a_bucket_falls_back_on_all_of_them_while_it_knows_nothing() -> None:
    kinds = Kinds(has_buckets=True)
    short, long = kinds.of("short").latency, kinds.of("long").latency
    for _ in range(2):
        short.observe(1, 0.010, NOW)
    assert long.typical_s(1, NOW) == pytest.approx(0.010)

    for _ in range(2):
        long.observe(1, 1.0, NOW)

    assert long.typical_s(1, NOW) == pytest.approx(1.0)
    assert short.typical_s(1, NOW) == pytest.approx(0.010)


def test_without_buckets_there_is_one_curve() -> None:
    kinds = Kinds(has_buckets=False)

    assert kinds.of("a").latency is kinds.of("b").latency is kinds.latency
    assert kinds.of("a").arrivals is not kinds.of("b").arrivals


def test_only_the_kinds_that_were_wanted_last_are_remembered() -> None:
    kinds = Kinds(has_buckets=True)
    first, second = kinds.of("first"), kinds.of("second")
    for i in range(63):
        kinds.of(i)
        assert kinds.of("first") is first

    assert kinds.of("second") is not second


def test_the_rate_of_arrivals_is_that_of_the_last_sixteen() -> None:
    arrivals = Arrivals()
    for i in range(100):
        arrivals.observe(2, NOW + 0.01 * i)

    assert arrivals.per_s(NOW + 0.99) == pytest.approx(200.0)


def test_the_rate_falls_while_nothing_comes() -> None:
    arrivals = Arrivals()
    for i in range(11):
        arrivals.observe(1, NOW + 0.1 * i)

    assert arrivals.per_s(NOW + 1.0) == pytest.approx(10.0)
    assert arrivals.below_at_s(5.0) == pytest.approx(NOW + 2.0)
    assert arrivals.per_s(NOW + 2.0) == pytest.approx(5.0)


def test_one_arrival_is_no_rate() -> None:
    arrivals = Arrivals()
    arrivals.observe(1, NOW)

    assert (arrivals.per_s(NOW + 1), arrivals.below_at_s(1e-3)) == (0.0, -math.inf)
