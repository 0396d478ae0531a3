"""What holds for whatever waits: who goes, who is passed over, who waits for company, and that all of them end."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Deadline
from batching.lanes import Lanes
from batching.latency import Kinds, Line
from batching.policy import ByDeadline
from batching.simulation.services import Curve, Noisy
from batching.simulation.simulator import Request, simulate
from tests.unit.batching.test_policy import NOW, Entry, Lane, lane_of, plan

MAX_BATCH = 4
MODEL = Line(0.010, 0.001)


@dataclass(eq=False)
class Waiter:
    """An entry that waits in real lanes, which give it its turn."""

    tenant: str
    deadline: Deadline
    size: int = 1
    key: str = ""
    nbytes: int = 8
    arrived_s: float = NOW
    level: int = 0
    turn: float = 0.0


lefts = st.lists(st.sampled_from([0.0112, 0.0125, 0.0145, 0.02, 0.03, 0.05, 0.1]), min_size=1, max_size=16)


def lane_due(lefts_s: list[float]) -> Lane:
    return lane_of(*(Entry(deadline=Deadline(NOW + left_s)) for left_s in lefts_s), line=MODEL)


@given(lefts)
def test_nobody_is_refused_that_would_not_have_kept_the_batch_smaller(lefts_s: list[float]) -> None:
    decided = plan(lane_due(lefts_s), max_batch=MAX_BATCH)

    ((*batch,),) = decided.batches
    for entry in decided.shed:
        assert math.floor((entry.deadline - NOW - MODEL.intercept_s) / MODEL.slope_s + 1e-6) < len(batch)


@given(lefts)
def test_nobody_is_refused_where_some_cut_into_batches_answers_all_in_the_largest_batches(lefts_s: list[float]) -> None:
    """The largest that each head allows: what the policy looks for, here found one batch at a time."""
    waiting, starts_s = sorted(lefts_s), 0.0
    while waiting:
        room = min(MAX_BATCH, math.floor((waiting[0] - starts_s - MODEL.intercept_s) / MODEL.slope_s + 1e-6))
        if room < 1:
            return
        batch, waiting = waiting[:room], waiting[room:]
        starts_s += MODEL.at(len(batch)) + 1e-6

    assert plan(lane_due(lefts_s), max_batch=MAX_BATCH).shed == ()


@given(lefts)
def test_who_goes_first_is_whoever_is_due_first_of_those_that_are_not_refused(lefts_s: list[float]) -> None:
    lane = lane_due(lefts_s)

    decided = plan(lane, max_batch=MAX_BATCH)

    ((*batch,),) = decided.batches
    left = [entry.deadline for entry in lane if entry not in {*decided.shed, *decided.late}]
    assert [entry.deadline for entry in batch] == left[: len(batch)]


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0.011, 0.2)), min_size=1, max_size=16))
def test_one_of_the_highest_level_that_can_be_answered_is_in_every_batch(waiting: list[tuple[int, float]]) -> None:
    entries = [Entry(deadline=Deadline(NOW + left_s), level=level) for level, left_s in waiting]

    decided = plan(lane_of(*entries, line=MODEL), max_batch=MAX_BATCH)

    ((*batch,),) = decided.batches
    assert min(entry.level for entry in batch) == min(entry.level for entry in entries)


@given(
    lefts_s=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=3),
    waited_s=st.floats(0.0, 0.01),
    per_s=st.sampled_from([0.0, 50.0, 500.0, 1e4]),
    max_delay_s=st.sampled_from([None, 0.0, 0.002, 0.05]),
    slots=st.integers(1, 3),
)
def test_a_batch_waits_only_with_several_slots_and_never_past_a_deadline_or_the_delay(
    lefts_s: list[float], waited_s: float, per_s: float, max_delay_s: float | None, slots: int
) -> None:
    entries = [Entry(deadline=Deadline(NOW + left_s), arrived_s=NOW - waited_s) for left_s in lefts_s]
    lane = lane_of(*entries, line=MODEL, per_s=per_s)

    decided = plan(lane, max_batch=MAX_BATCH, slots=slots, free_slots=slots, max_delay_s=max_delay_s)

    if decided.batches or decided.shed:
        return
    assert slots > 1
    assert NOW < decided.wake_at_s <= min(NOW + left_s for left_s in lefts_s) - MODEL.at(len(entries) + 1)
    assert max_delay_s is None or decided.wake_at_s <= NOW - waited_s + max_delay_s
    assert per_s > 0.0, "waits though nothing comes"


@pytest.mark.no_cover
@given(st.integers(1, 3), st.sampled_from([0.3, 1.0, 3.0]), st.integers(0, 9))
def test_whoever_comes_ends_however_much_of_a_higher_level_there_is(slots: int, load: float, seed: int) -> None:
    """A stream of the highest level, and one of the lowest that has a second: it is not still waiting at its end."""
    curve = Curve.line(MODEL.intercept_s, MODEL.slope_s)
    gap_s = curve.at(MAX_BATCH) / (MAX_BATCH * slots * load)
    flood = [Request(i * gap_s, 0.1, level=1) for i in range(round(2.0 / gap_s))]
    starved = Request(0.001, 1.0, level=9, tenant="starved")
    kinds = Kinds(has_buckets=False)
    for size in (1, MAX_BATCH) * 8:
        kinds.latency.observe(size, curve.at(size), 0.0)
    requests = sorted([*flood, starved], key=lambda request: request.at_s)

    result = simulate(
        requests, ByDeadline(MAX_BATCH, slots), Noisy(curve, 0.02, seed), slots=slots, max_batch=MAX_BATCH, kinds=kinds
    )

    assert result.in_time + result.late + result.refused == result.offered
    assert result.in_time_of["starved"] == 1


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=60), st.sampled_from([0.014, 0.03, 1.0, math.inf]))
def test_of_tenants_that_both_wait_with_the_same_deadline_neither_gets_ahead_by_more_than_a_batch(
    tenants: list[str], left_s: float
) -> None:
    kinds = Kinds(has_buckets=False)
    for size in (1, MAX_BATCH) * 8:
        kinds.latency.observe(size, MODEL.at(size), NOW)
    lanes: Lanes[Waiter] = Lanes(kinds)
    for tenant in tenants:
        lanes.add(Waiter(tenant, Deadline(NOW + left_s)))
    served = {"a": 0, "b": 0}

    while len({entry.tenant for entry in lanes.entries()}) == 2:
        ((*batch,),) = ByDeadline(MAX_BATCH).plan(lanes, 1, NOW).batches
        for entry in batch:
            lanes.take(entry)
            served[entry.tenant] += 1

        assert abs(served["a"] - served["b"]) <= MAX_BATCH
