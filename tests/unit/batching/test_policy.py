import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, Deadline
from batching.latency import Arrivals, LatencyCurve, Line
from batching.policy import PATIENCE_S, ByDeadline, Plan

NOW = 100.0
GPU = Line(0.010, 0.001)  # seconds: 11 ms for one, 14 ms for four
FLAT = Line(0.010, 0.0)


@dataclass(frozen=True, eq=False)
class Entry:
    size: int = 1
    deadline: Deadline = NO_DEADLINE
    arrived_s: float = NOW
    level: int = 0
    tenant: str = ""
    turn: float = 0.0


def due(left_s: float, **of: object) -> Entry:
    return Entry(deadline=Deadline(NOW + left_s), **of)  # type: ignore[arg-type]


@dataclass
class Lane:
    """As `batching.lanes.Lane`, of any entries."""

    entries: list[Entry]
    latency: LatencyCurve
    arrivals: Arrivals = field(default_factory=Arrivals)
    merges: bool = True

    def __post_init__(self) -> None:
        self.entries.sort(key=lambda entry: (entry.deadline, entry.turn))
        self.items = sum(entry.size for entry in self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Exact(LatencyCurve):
    """Knows its line for certain."""

    def __init__(self, line: Line | None) -> None:
        super().__init__()
        self._typical = self._cautious = line
        self._smallest, self._largest = 1, 64


def lane_of(*entries: Entry, line: Line | None = GPU, per_s: float = 0.0) -> Lane:
    """A lane to which items have come at *per_s* until now."""
    lane = Lane(list(entries), Exact(line))
    for i in range(16 if per_s else 0):
        lane.arrivals.observe(1, NOW - (15 - i) / per_s)
    return lane


def plan(
    *lanes: Lane, max_batch: int = 4, slots: int = 1, free_slots: int = 1, max_delay_s: float | None = None
) -> Plan[Entry]:
    return ByDeadline(max_batch, slots, max_delay_s).plan(lanes, free_slots, NOW)


# Who is in a batch.


def test_whatever_waits_and_is_in_time_goes_at_once() -> None:
    lane = lane_of(Entry(), due(1.0))

    assert plan(lane).batches == (tuple(lane),)


def test_before_anything_is_known_of_the_model_everything_goes() -> None:
    lane = lane_of(due(1e-6), due(1e-6), line=None)

    assert plan(lane).batches == (tuple(lane),)


def test_the_earliest_deadlines_go_first_where_not_all_fit() -> None:
    first, second, third = due(1.0), due(2.0, size=3), due(3.0)

    assert plan(lane_of(third, first, second)).batches == ((first, second),)


def test_no_later_one_is_put_in_the_place_of_one_that_does_not_fit() -> None:
    first, large, small = due(1.0), due(2.0, size=4), due(3.0)

    assert plan(lane_of(first, large, small)).batches == ((first,),)


def test_a_batch_is_as_large_as_its_earliest_deadline_allows() -> None:
    pressed, others = due(0.0125), [due(1.0) for _ in range(3)]

    decided = plan(lane_of(pressed, *others))

    assert decided.batches == ((pressed, others[0]),)
    assert decided.shed == ()


def test_who_would_keep_the_batch_small_is_passed_over_where_the_others_could_not_make_it_after_it() -> None:
    pressed, others = due(0.0112), [due(0.020) for _ in range(4)]

    decided = plan(lane_of(pressed, *others))

    assert decided.batches == (tuple(others),)
    assert decided.shed == (pressed,)


def test_nobody_is_passed_over_where_the_others_can_wait() -> None:
    pressed, others = due(0.0112), [due(0.030) for _ in range(4)]

    decided = plan(lane_of(pressed, *others))

    assert decided.batches == ((pressed,),)
    assert decided.shed == ()


def test_other_slots_count_for_who_can_wait() -> None:
    pressed, others = due(0.0112), [due(0.020) for _ in range(4)]

    assert plan(lane_of(pressed, *others), slots=4, free_slots=4).shed == ()


def test_who_cannot_be_answered_even_alone_is_refused() -> None:
    hopeless, good = due(0.005), due(1.0)

    decided = plan(lane_of(hopeless, good))

    assert (decided.shed, decided.batches) == ((hopeless,), ((good,),))


def test_an_entry_past_its_deadline_is_late_and_not_in_a_batch() -> None:
    late, good = due(0.0), Entry()

    decided = plan(lane_of(late, good))

    assert (decided.late, decided.batches) == ((late,), ((good,),))


def test_of_several_lanes_the_one_with_the_earliest_deadline_goes_first() -> None:
    later, earlier = lane_of(due(2.0)), lane_of(due(1.0))

    assert plan(later, earlier).batches == (tuple(earlier),)
    assert plan(later, earlier, free_slots=2, slots=2).batches == (tuple(earlier), tuple(later))


def test_without_a_free_slot_nothing_goes() -> None:
    assert plan(lane_of(Entry(4)), free_slots=0).batches == ()


# How large.


def test_a_batch_is_no_larger_than_pays() -> None:
    """Ten items a second, whatever the batch: two are enough."""
    lane = lane_of(*(due(9.0) for _ in range(8)), line=Line(0.001, 0.099))

    assert [len(batch) for batch in plan(lane, max_batch=8).batches] == [2]


def test_on_an_accelerator_nearly_the_largest_batch_pays() -> None:
    lane = lane_of(*(due(9.0) for _ in range(64)), line=Line(0.010, 0.0005))

    assert [len(batch) for batch in plan(lane, max_batch=64).batches] == [59]


def test_a_batch_that_is_over_in_a_blink_may_be_large_in_any_case() -> None:
    lane = lane_of(*(due(9.0) for _ in range(64)), line=Line(0.0, 0.0001))

    assert [len(batch) for batch in plan(lane, max_batch=64).batches] == [50]


def test_larger_batches_are_tried_until_it_is_known_that_they_do_not_pay() -> None:
    lane = lane_of(*(due(9.0) for _ in range(64)), line=Line(0.0, 0.1))
    lane.latency._largest = 1
    assert [len(batch) for batch in plan(lane, max_batch=64).batches] == [2]

    lane = lane_of(*(due(9.0) for _ in range(64)), line=Line(0.05, 0.05))
    lane.latency._largest = 16
    assert [len(batch) for batch in plan(lane, max_batch=64).batches] == [32]


def test_one_entry_of_many_items_goes_whole() -> None:
    lane = lane_of(due(9.0, size=8), line=Line(0.001, 0.099))

    assert [len(batch) for batch in plan(lane, max_batch=8).batches] == [1]


def test_where_nobody_is_safe_the_earliest_goes_alone_and_nobody_is_refused() -> None:
    """Half of the batches take 11 ms, a few a second: all that wait have a fair chance."""
    latency = Exact(GPU)
    latency._cautious = Line(1.0, 0.0)
    lane = Lane([due(0.1 + i / 100, size=2) for i in range(4)], latency)

    decided = plan(lane)

    assert decided.batches == (tuple(lane)[:1],)
    assert (decided.late, decided.shed) == ((), ())


def test_where_only_one_size_was_seen_a_larger_one_is_tried() -> None:
    lane = Lane([due(1.0, size=2) for _ in range(8)], LatencyCurve())
    for _ in range(64):
        lane.latency.observe(2, 0.010, NOW)

    assert [len(batch) for batch in plan(lane, max_batch=64).batches] == [2]


# Levels.


def test_the_higher_level_goes_first_and_the_earlier_deadline_of_a_level() -> None:
    low, middle, second, first = due(1.0, level=3), due(2.0, level=2), due(4.0, level=1), due(3.0, level=1)

    assert plan(lane_of(low, middle, second, first), max_batch=2).batches == ((first, second),)
    assert plan(lane_of(low, middle, second), max_batch=2).batches == ((second, middle),), "who is due first must wait"


def test_a_lower_level_fills_the_batch_of_a_higher_one() -> None:
    high, middle, low = due(1.0, level=1), due(2.0, level=2), due(2.0, level=3)

    assert plan(lane_of(low, middle, high), max_batch=2).batches == ((high, middle),)


def test_between_lanes_the_higher_level_goes_first() -> None:
    low, high = lane_of(due(1.0, level=2)), lane_of(due(9.0, level=1))

    assert plan(low, high).batches == (tuple(high),)


def test_who_has_waited_half_the_time_to_its_deadline_counts_as_highest() -> None:
    starved = due(1.0, level=9, arrived_s=NOW - 1)
    patient = due(2.0, level=9, arrived_s=NOW - 1)
    high = due(3.0, level=1, arrived_s=NOW - 0.1)

    assert plan(lane_of(patient, starved, high), max_batch=2).batches == ((starved, high),)


def test_without_a_deadline_patience_ends_too() -> None:
    starved, high = Entry(level=9, arrived_s=NOW - PATIENCE_S), Entry(level=1, arrived_s=NOW - 0.1, turn=1.0)

    assert plan(lane_of(starved, high), max_batch=1).batches == ((starved,),)


# Tenants.


def test_where_not_all_make_it_the_tenant_whose_turn_it_is_goes_first() -> None:
    flood = [due(0.013, tenant="greedy", turn=float(i)) for i in range(10)]
    modest = due(0.014, tenant="modest", turn=0.5)

    (batch,) = plan(lane_of(*flood, modest)).batches

    assert batch == (flood[0], modest, flood[1])


def test_turns_count_as_long_as_they_cost_nobody_its_deadline() -> None:
    flood = [due(1.0, tenant="greedy", turn=float(i)) for i in range(10)]
    modest = due(2.0, tenant="modest", turn=0.5)

    assert plan(lane_of(*flood, modest)).batches == ((flood[0], modest, flood[1], flood[2]),)


def test_a_deadline_that_would_be_missed_counts_more_than_a_turn() -> None:
    pressed = [due(0.016, tenant="greedy", turn=float(i)) for i in range(4)]
    modest = due(1.0, tenant="modest", turn=0.5)

    assert plan(lane_of(*pressed, modest)).batches == (tuple(pressed),)


# Waiting for company.


def test_with_one_slot_nothing_waits_for_company() -> None:
    lane = lane_of(due(1.0), per_s=10_000)

    assert plan(lane, max_delay_s=1.0).batches == (tuple(lane),)


def test_with_several_slots_a_batch_waits_while_more_comes_than_such_batches_could_serve() -> None:
    lane = lane_of(due(1.0), line=FLAT, per_s=1000)

    decided = plan(lane, slots=2, free_slots=2)

    assert decided.batches == ()
    assert NOW < decided.wake_at_s < NOW + 1.0


def test_what_goes_apart_waits_for_no_company() -> None:
    lane = lane_of(due(1.0), due(1.0), line=FLAT, per_s=1000)
    lane.merges = False

    assert plan(lane, slots=2, free_slots=2).batches == (tuple(lane),)


def test_a_batch_goes_that_is_large_enough_for_what_comes() -> None:
    """140 batches of one a second keep two slots busy for 70 % of the time."""
    alone = lane_of(due(1.0), line=FLAT, per_s=139)
    crowded = lane_of(due(1.0), line=FLAT, per_s=141)

    assert plan(alone, slots=2, free_slots=2).batches == (tuple(alone),)
    assert plan(crowded, slots=2, free_slots=2).batches == ()


def test_a_full_batch_never_waits() -> None:
    lane = lane_of(*(due(1.0) for _ in range(4)), line=FLAT, per_s=1e6)

    assert plan(lane, slots=2, free_slots=2).batches == (tuple(lane),)


def test_nothing_waits_beyond_the_last_moment_of_its_earliest_deadline() -> None:
    lane = lane_of(due(0.015), due(1.0), line=FLAT, per_s=1e6)
    pressed = lane_of(due(0.0101), due(1.0), line=FLAT, per_s=1e6)

    assert plan(lane, slots=2, free_slots=2).wake_at_s <= NOW + 0.005
    assert plan(pressed, slots=2, free_slots=2).wake_at_s <= NOW + 0.0001


def test_nothing_waits_longer_than_the_delay() -> None:
    lane = lane_of(due(1.0, arrived_s=NOW - 0.002), due(1.0), line=FLAT, per_s=400)

    assert plan(lane, slots=2, free_slots=2, max_delay_s=0.003).wake_at_s == pytest.approx(NOW + 0.001)
    assert plan(lane, slots=2, free_slots=2, max_delay_s=0.002).batches == (tuple(lane),)
    assert plan(lane, slots=2, free_slots=2, max_delay_s=0.0).batches == (tuple(lane),)


def test_what_waits_goes_when_nothing_comes_any_more() -> None:
    lane = lane_of(due(1.0), line=FLAT, per_s=1000)
    policy = ByDeadline(4, 2)
    waiting = policy.plan([lane], 2, NOW)

    decided = policy.plan([lane], 2, waiting.wake_at_s)

    assert decided.batches == (tuple(lane),)


entries = st.builds(
    Entry,
    size=st.integers(1, 4),
    deadline=st.sampled_from([-0.5, 0.0, 0.005, 0.011, 0.012, 0.014, 0.1, 1.0, math.inf]).map(
        lambda s: Deadline(NOW + s)
    ),
    arrived_s=st.sampled_from([0.0, 0.05, 0.3, 2.0]).map(lambda s: NOW - s),
    level=st.integers(1, 3) | st.just(0),
    tenant=st.sampled_from("ab"),
    turn=st.floats(0, 9),
)
lanes_of_entries = st.lists(
    st.builds(
        lambda of, line, per_s: lane_of(*of, line=line, per_s=per_s),
        st.lists(entries, min_size=1, max_size=12),
        st.sampled_from([GPU, FLAT, None]),
        st.sampled_from([0.0, 10.0, 1000.0]),
    ),
    max_size=3,
)


@given(lanes_of_entries, st.integers(1, 3), st.data(), st.sampled_from([None, 0.0, 0.2]))
def test_a_plan_keeps_every_promise(
    lanes: list[Lane], slots: int, data: st.DataObject, max_delay_s: float | None
) -> None:
    free_slots = data.draw(st.integers(1, slots))

    decided = plan(*lanes, slots=slots, free_slots=free_slots, max_delay_s=max_delay_s)

    sent = [entry for batch in decided.batches for entry in batch]
    assert len(decided.batches) <= free_slots
    assert len({*sent, *decided.late, *decided.shed}) == len(sent) + len(decided.late) + len(decided.shed)
    assert all(entry.deadline > NOW for entry in (*sent, *decided.shed))
    assert all(entry.deadline <= NOW for entry in decided.late)
    for batch in decided.batches:
        size = sum(entry.size for entry in batch)
        (lane,) = (lane for lane in lanes if batch[0] in lane.entries)
        assert 1 <= size <= 4
        assert set(batch) <= set(lane.entries), "mixed"
        is_in_time = NOW + lane.latency.cautious_s(size, NOW) <= min(entry.deadline for entry in batch) + 1e-9
        assert is_in_time or len(batch) == 1
    if any(lanes) and not (decided.batches or decided.late or decided.shed):
        assert NOW < decided.wake_at_s < math.inf


@given(lanes_of_entries)
def test_with_one_slot_nothing_that_waits_is_told_to_wait_on(lanes: list[Lane]) -> None:
    decided = plan(*lanes)

    assert bool(decided.batches or decided.late or decided.shed) == bool(lanes)


@given(lanes_of_entries, st.integers(1, 3))
def test_everything_ends_after_as_many_plans_as_there_are_entries(lanes: list[Lane], slots: int) -> None:
    policy, now = ByDeadline(4, slots), NOW
    for _ in range(2 * sum(len(lane) for lane in lanes) + 1):
        decided = policy.plan([lane for lane in lanes if len(lane)], slots, now)
        gone = {*decided.late, *decided.shed, *(entry for batch in decided.batches for entry in batch)}
        lanes = [Lane([e for e in lane.entries if e not in gone], lane.latency, lane.arrivals) for lane in lanes]
        if not gone and any(len(lane) for lane in lanes):
            now = decided.wake_at_s

    assert not any(len(lane) for lane in lanes)
