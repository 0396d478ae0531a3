import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, Deadline
from batching.latency import RecentLatency
from batching.policy import PATIENCE_S, ByPriority, Plan, SizeAndDelay

NOW = 100.0


@dataclass(frozen=True, eq=False)
class Entry:
    size: int = 1
    deadline: Deadline = NO_DEADLINE
    arrived_s: float = NOW
    level: int = 0


def latency_of(infer_s: float) -> RecentLatency:
    latency = RecentLatency()
    latency.observe(1, infer_s, NOW)
    return latency


def plan(*lanes: list[Entry], max_delay_s: float = 0.0, free_slots: int = 1, infer_s: float = 0.0) -> Plan[Entry]:
    return SizeAndDelay(4, max_delay_s).plan(lanes, free_slots, latency_of(infer_s), NOW)


def test_without_a_delay_whatever_waits_goes_at_once() -> None:
    lane = [Entry(), Entry()]

    assert plan(lane).batches == (tuple(lane),)


def test_a_full_batch_goes_before_its_delay_is_over() -> None:
    lane = [Entry(2), Entry(2), Entry(1)]

    decided = plan(lane, max_delay_s=1.0)

    assert decided.batches == (tuple(lane[:2]),)


def test_a_batch_that_the_next_in_line_does_not_fit_counts_as_full() -> None:
    lane = [Entry(3), Entry(2), Entry(1)]

    decided = plan(lane, max_delay_s=1.0)

    assert decided.batches == ((lane[0],),)


def test_a_batch_that_is_not_full_waits_for_its_delay() -> None:
    decided = plan([Entry(arrived_s=NOW - 0.25), Entry()], max_delay_s=1.0)

    assert decided == Plan(wake_at_s=NOW + 0.75)


def test_a_batch_goes_when_its_oldest_has_waited_its_delay() -> None:
    lane = [Entry(arrived_s=NOW - 1.0), Entry()]

    assert plan(lane, max_delay_s=1.0).batches == (tuple(lane),)


def test_a_batch_goes_no_later_than_its_earliest_deadline_allows() -> None:
    decided = plan([Entry(), Entry(deadline=Deadline(NOW + 0.5))], max_delay_s=1.0, infer_s=0.125)

    assert decided == Plan(wake_at_s=NOW + 0.375)


def test_a_batch_whose_deadline_presses_goes_at_once() -> None:
    lane = [Entry(deadline=Deadline(NOW + 0.1))]

    assert plan(lane, max_delay_s=1.0, infer_s=0.125).batches == (tuple(lane),)


def test_an_entry_past_its_deadline_is_late_and_not_in_a_batch() -> None:
    late, good = Entry(deadline=Deadline(NOW)), Entry()

    decided = plan([late, good])

    assert (decided.late, decided.batches) == ((late,), ((good,),))


def test_the_lane_whose_head_waits_longest_goes_first() -> None:
    young, old = [Entry(4)], [Entry(arrived_s=NOW - 1.0)]

    assert plan(young, old).batches == (tuple(old),)


def test_every_free_slot_gets_a_batch() -> None:
    lane = [Entry(4), Entry(4), Entry(4)]

    assert plan(lane, free_slots=2).batches == ((lane[0],), (lane[1],))


def test_without_a_free_slot_nothing_goes() -> None:
    assert plan([Entry(4)], free_slots=0).batches == ()


entries = st.builds(
    Entry,
    size=st.integers(1, 4),
    deadline=st.sampled_from([-0.5, 0.0, 0.1, 1.0, math.inf]).map(lambda s: Deadline(NOW + s)),
    arrived_s=st.sampled_from([0.0, 0.05, 0.3, 2.0]).map(lambda s: NOW - s),
)
lanes_of_entries = st.lists(
    st.lists(entries, min_size=1, max_size=12).map(lambda lane: sorted(lane, key=lambda e: e.arrived_s)), max_size=4
)


@given(lanes_of_entries, st.integers(1, 3), st.sampled_from([0.0, 0.2, 5.0]), st.sampled_from([0.0, 0.08]))
def test_a_plan_keeps_every_promise(
    lanes: list[list[Entry]], free_slots: int, max_delay_s: float, infer_s: float
) -> None:
    decided = plan(*lanes, max_delay_s=max_delay_s, free_slots=free_slots, infer_s=infer_s)

    sent = [entry for batch in decided.batches for entry in batch]
    assert len(decided.batches) <= free_slots
    assert len(set(sent)) == len(sent)
    assert all(1 <= sum(e.size for e in batch) <= 4 for batch in decided.batches)
    assert all(entry.deadline > NOW for entry in sent)
    assert all(entry.deadline <= NOW for entry in decided.late)
    for lane in lanes:  # first come, first served: what goes is what came first among those in time
        on_time = [entry for entry in lane if entry.deadline > NOW]
        assert [entry for entry in on_time if entry in sent] == on_time[: len([e for e in lane if e in sent])]
    if any(lanes) and not decided.batches and not decided.late:
        assert NOW < decided.wake_at_s < math.inf


@given(lanes_of_entries, st.integers(1, 3))
def test_without_a_delay_nothing_that_waits_is_told_to_wait_on(lanes: list[list[Entry]], free_slots: int) -> None:
    decided = plan(*lanes, free_slots=free_slots)

    assert bool(decided.batches or decided.late) == bool(lanes)


@pytest.mark.parametrize("fill", [0.0, 0.01])
def test_looking_again_at_the_time_a_plan_names_sends_what_waited(fill: float) -> None:
    lane = [Entry(), Entry(deadline=Deadline(NOW + 0.5 + fill))]
    policy = SizeAndDelay(4, 1.0)
    waiting = policy.plan([lane], 1, latency_of(0.125), NOW)

    decided = policy.plan([lane], 1, latency_of(0.125), waiting.wake_at_s)

    assert decided.batches == (tuple(lane),)


def ranked(*lanes: list[Entry], free_slots: int = 1, max_delay_s: float = 0.0, infer_s: float = 0.0) -> Plan[Entry]:
    return ByPriority(2, max_delay_s).plan(lanes, free_slots, latency_of(infer_s), NOW)


def test_in_a_lane_the_higher_level_goes_first_and_the_first_of_a_level() -> None:
    ages = ((3, 0.4), (2, 0.3), (1, 0.2), (1, 0.1))
    low, middle, first, second = (Entry(level=level, arrived_s=NOW - age) for level, age in ages)

    assert ranked([low, middle, first, second]).batches == ((first, second),)
    assert ranked([low, middle, first, second], free_slots=2).batches == ((first, second), (middle, low))


def test_between_lanes_the_higher_level_goes_first() -> None:
    low, high = Entry(level=2, arrived_s=NOW - 0.5), Entry(level=1)

    assert ranked([low], [high]).batches == ((high,),)


def test_who_has_waited_half_the_time_to_its_deadline_counts_as_highest() -> None:
    starved = Entry(level=9, arrived_s=NOW - 1, deadline=Deadline(NOW + 1))
    patient = Entry(level=9, arrived_s=NOW - 1, deadline=Deadline(NOW + 2))
    high = Entry(level=1, arrived_s=NOW - 0.1)

    assert ranked([patient, starved, high]).batches == ((starved, high),)


def test_without_a_deadline_patience_ends_too() -> None:
    starved, high = Entry(level=9, arrived_s=NOW - PATIENCE_S), Entry(level=1, arrived_s=NOW - 0.1)

    assert ranked([starved], [high]).batches == ((starved,),)


def test_a_batch_of_several_levels_goes_when_its_oldest_has_waited_its_delay() -> None:
    low, high = Entry(level=2, arrived_s=NOW - 0.25), Entry(level=1)

    assert ByPriority(4, 0.5).plan([[low, high]], 1, latency_of(0.0), NOW) == Plan(wake_at_s=NOW + 0.25)
    assert ByPriority(4, 0.25).plan([[low, high]], 1, latency_of(0.0), NOW).batches == ((high, low),)


def test_with_one_level_it_decides_as_without_priorities() -> None:
    lanes = [[Entry(2, arrived_s=NOW - 0.3), Entry(arrived_s=NOW - 0.2)], [Entry(arrived_s=NOW - 0.4)]]

    assert ByPriority(2, 0.1).plan(lanes, 2, latency_of(0.0), NOW) == SizeAndDelay(2, 0.1).plan(
        lanes, 2, latency_of(0.0), NOW
    )
