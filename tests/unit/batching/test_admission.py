import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, Deadline
from batching.admission import outlook
from batching.lanes import Lanes
from batching.latency import Forecast, Kinds, LatencyCurve

NOW = 100.0
TAKES_S = 0.010  # a batch of any size
MAX_BATCH = 4


@dataclass(eq=False)
class Entry:
    deadline: Deadline = NO_DEADLINE
    tenant: str = ""
    size: int = 1
    key: str = ""
    nbytes: int = 8
    arrived_s: float = NOW
    level: int = 0
    turn: float = 0.0


def known() -> LatencyCurve:
    latency = LatencyCurve()
    for size in (1, MAX_BATCH) * 8:
        latency.observe(size, TAKES_S, NOW)
    return latency


def due(left_s: float, count: int, tenant: str = "") -> list[Entry]:
    return [Entry(Deadline(NOW + left_s), tenant) for _ in range(count)]


def expected(*waiting: Entry, frees_s: tuple[float, ...] = (0.005,), left_s: float = 1.0, tenant: str = "") -> Forecast:
    """What one has to expect whose slots are free so many seconds from now."""
    lanes: Lanes[Entry] = Lanes(Kinds(has_buckets=False))
    for entry in waiting:
        lanes.add(entry)
    free_at_s = [NOW + free_s for free_s in frees_s]
    return outlook(lanes, known(), free_at_s, MAX_BATCH, NOW + left_s, tenant, NOW)


def test_before_a_slot_that_is_free_nobody_waits() -> None:
    assert expected(frees_s=(-math.inf,)) == pytest.approx((0.0, TAKES_S), rel=0.01)
    assert expected(frees_s=(0.005, -1.0, 0.009)).wait_s == 0.0


def test_a_batch_that_takes_longer_than_it_should_makes_no_wait_negative() -> None:
    assert expected(frees_s=(-0.1,)).wait_s == 0.0


def test_who_shares_the_next_batch_waits_for_the_first_slot() -> None:
    assert expected(*due(0.5, MAX_BATCH - 1), frees_s=(0.009, 0.005)).wait_s == pytest.approx(0.005)


def test_behind_each_full_batch_that_is_due_before_it_one_waits_a_batch_longer() -> None:
    assert expected(*due(0.5, MAX_BATCH)).wait_s == pytest.approx(0.005 + TAKES_S, rel=0.01)
    assert expected(*due(0.5, 3 * MAX_BATCH)).wait_s == pytest.approx(0.005 + 3 * TAKES_S, rel=0.01)


def test_batches_before_it_are_shared_out_to_the_slots() -> None:
    waiting = due(0.5, 3 * MAX_BATCH)

    assert expected(*waiting, frees_s=(0.009, 0.005)).wait_s == pytest.approx(0.009 + TAKES_S, rel=0.01)


def test_who_is_due_later_goes_later() -> None:
    assert expected(*due(2.0, 10 * MAX_BATCH)).wait_s == pytest.approx(0.005)


def test_who_has_no_chance_any_more_when_a_slot_is_free_is_in_nobodys_way() -> None:
    assert expected(*due(0.014, 10 * MAX_BATCH)).wait_s == pytest.approx(0.005)


def test_who_would_make_the_batch_smaller_is_in_nobodys_way() -> None:
    """A batch of two takes 20 ms, one of four 40 ms; when a slot is free in 5 ms, the first have 25 ms left."""
    latency = LatencyCurve()
    for size in (1, 2, MAX_BATCH) * 8:
        latency.observe(size, size * TAKES_S, NOW)
    lanes: Lanes[Entry] = Lanes(Kinds(has_buckets=False))
    for entry in due(0.030, 10 * MAX_BATCH):
        lanes.add(entry)

    found = [outlook(lanes, latency, [NOW + 0.005], MAX_BATCH, NOW + left_s, "", NOW).wait_s for left_s in (0.1, 0.031)]

    assert found[0] == pytest.approx(0.005)
    assert found[1] == pytest.approx(0.005 + 20 * 2 * TAKES_S, rel=0.05)


def test_a_tenant_below_its_share_does_not_stand_behind_the_flood_of_another() -> None:
    flood = due(0.5, 10 * MAX_BATCH, "greedy")

    assert expected(*flood, tenant="modest").wait_s == pytest.approx(0.005)
    assert expected(*flood, tenant="greedy").wait_s == pytest.approx(0.005 + 10 * TAKES_S, rel=0.01)


def test_where_nothing_is_known_of_the_model_no_batch_counts() -> None:
    lanes: Lanes[Entry] = Lanes(Kinds(has_buckets=False))
    for entry in due(0.5, 10 * MAX_BATCH):
        lanes.add(entry)

    assert outlook(lanes, LatencyCurve(), [NOW], MAX_BATCH, NOW + 1, "", NOW) == (0.0, 0.0)


waiting_entries = st.lists(
    st.builds(
        lambda left_s, tenant: Entry(Deadline(NOW + left_s), tenant),
        st.sampled_from([0.001, 0.012, 0.05, 0.5, math.inf]),
        st.sampled_from("ab"),
    ),
    max_size=40,
)


@given(
    waiting_entries,
    st.lists(st.floats(-1.0, TAKES_S), min_size=1, max_size=4),
    st.sampled_from([0.001, 0.02, 0.2, math.inf]),
)
def test_nobody_waits_longer_than_for_everything_that_waits_nor_shorter_than_for_a_slot(
    waiting: list[Entry], frees_s: list[float], left_s: float
) -> None:
    found = expected(*waiting, frees_s=tuple(frees_s), left_s=left_s, tenant="c")

    rounds = len(waiting) // MAX_BATCH
    assert found.latency_s == pytest.approx(TAKES_S, rel=0.01)
    assert found.wait_s >= max(0.0, min(frees_s)) - 1e-9
    assert found.wait_s <= max(0.0, *frees_s) + rounds * TAKES_S * 1.01 + 1e-9


@given(waiting_entries, st.integers(1, 10))
def test_more_that_is_due_earlier_never_shortens_the_wait(waiting: list[Entry], more: int) -> None:
    before = expected(*waiting)

    assert expected(*waiting, *due(0.3, more)).wait_s >= before.wait_s
