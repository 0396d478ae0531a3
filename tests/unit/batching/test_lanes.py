import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, Deadline
from batching.fairness import FairShare
from batching.lanes import Deadlines, Lanes
from batching.latency import Kinds


@dataclass(eq=False)
class Entry:
    key: str = "a"
    size: int = 1
    nbytes: int = 8
    deadline: Deadline = NO_DEADLINE
    arrived_s: float = 0.0
    level: int = 0
    tenant: str = ""
    turn: float = 0.0
    over: bool = field(default=False)

    def is_over(self) -> bool:
        return self.over


def empty() -> Lanes[Entry]:
    return Lanes(Kinds(has_buckets=False))


def test_a_lane_holds_what_may_share_a_batch_in_order_of_arrival() -> None:
    lanes = empty()
    entries = [Entry("a"), Entry("b"), Entry("a")]
    for entry in entries:
        lanes.add(entry)

    assert [list(lane) for lane in lanes] == [[entries[0], entries[2]], [entries[1]]]


def test_an_entry_is_removed_once() -> None:
    lanes = empty()
    entry = Entry()
    lanes.add(entry)
    lanes.remove(entry)

    with pytest.raises(KeyError):
        lanes.remove(entry)

    assert not lanes


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 99)), max_size=30), st.data())
def test_the_totals_are_those_of_what_waits(kinds: list[tuple[str, int, int]], data: st.DataObject) -> None:
    lanes = empty()
    waiting = [Entry(key, size, nbytes) for key, size, nbytes in kinds]
    for entry in waiting:
        lanes.add(entry)
    for entry in data.draw(st.permutations(waiting))[: len(waiting) // 2]:
        waiting.remove(entry)
        lanes.remove(entry)

        assert entry not in lanes
        assert (lanes.items, lanes.nbytes) == (sum(e.size for e in waiting), sum(e.nbytes for e in waiting))
        assert set(lanes.entries()) == set(waiting)
        assert bool(lanes) == bool(waiting)


def test_nobody_overtakes_an_earlier_one_of_its_tenant_when_another_leaves() -> None:
    lanes = empty()
    first, leaver, waiter, last = Entry(), Entry(size=3), Entry(), Entry()
    for entry in (first, leaver, waiter):
        lanes.add(entry)
    lanes.remove(leaver)
    lanes.add(last)

    assert waiter.turn <= last.turn
    assert [list(lane) for lane in lanes] == [[first, waiter, last]]


def test_what_a_leaver_gives_back_is_the_tenant_s_as_soon_as_nobody_is_overtaken() -> None:
    lanes = empty()
    leaver, waiter = Entry(size=3), Entry()
    lanes.add(leaver)
    lanes.add(waiter)
    lanes.remove(leaver)
    lanes.take(waiter)
    last = Entry()
    lanes.add(last)

    assert last.turn == waiter.size


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("xy")), min_size=1, max_size=12), st.data())
def test_to_take_all_is_to_take_one_after_the_other(kinds: list[tuple[int, str]], data: st.DataObject) -> None:
    together, apart = empty(), empty()
    pairs = [[Entry("a", size, 8 * size, tenant=tenant) for _ in range(2)] for size, tenant in kinds]
    other = Entry("b")
    together.add(other)
    apart.add(other)
    for one, twin in pairs:
        together.add(one)
        apart.add(twin)
    taken = data.draw(st.permutations(pairs))[: data.draw(st.integers(1, len(pairs)))]

    assert together.holds([one for one, _ in taken])
    together.take_all([one for one, _ in taken])
    for _, twin in taken:
        apart.take(twin)

    assert not together.holds([one for one, _ in taken])
    assert (together.items, together.nbytes) == (apart.items, apart.nbytes)
    assert [len(lane) for lane in together] == [len(lane) for lane in apart]
    assert vars_of(together.shares) == vars_of(apart.shares)


def vars_of(shares: FairShare) -> list[object]:
    return [getattr(shares, name) for name in FairShare.__slots__]


def test_what_does_not_wait_or_is_there_twice_is_not_held() -> None:
    lanes = empty()
    first, second = Entry(), Entry()
    lanes.add(first)
    lanes.add(second)

    assert lanes.holds([second, first])
    assert lanes.holds([second])
    assert not lanes.holds([first, first])
    assert not lanes.holds([first, Entry()])
    assert not lanes.holds([Entry()])
    assert not lanes.holds([Entry("b")])


deadlines = st.sampled_from([1.0, 2.0, 3.0, math.inf]).map(Deadline)


@given(st.lists(st.tuples(deadlines, st.sampled_from("xy")), max_size=30), st.data())
def test_a_lane_is_in_the_order_of_deadlines_and_equal_ones_in_that_of_turns(
    kinds: list[tuple[Deadline, str]], data: st.DataObject
) -> None:
    lanes = empty()
    waiting = [Entry(deadline=deadline, tenant=tenant) for deadline, tenant in kinds]
    for entry in waiting:
        lanes.add(entry)
    for entry in data.draw(st.permutations(waiting))[: len(waiting) // 2]:
        waiting.remove(entry)
        lanes.take(entry)

    for lane in lanes:
        assert list(lane) == sorted(waiting, key=lambda e: (e.deadline, e.turn))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20)), max_size=30),
    st.integers(-1, 21),
    st.integers(-1, 21),
)
def test_what_is_due_between_two_moments_is_counted(kinds: list[tuple[str, int]], after: int, until: int) -> None:
    lanes = empty()
    for key, due in kinds:
        lanes.add(Entry(key, 2, deadline=Deadline(due)))

    assert lanes.due(after, until) == sum(2 for _, due in kinds if after < due <= until)


def test_what_is_known_of_a_lane_outlives_its_entries() -> None:
    lanes = empty()
    for at_s in (0.0, 1.0):
        entry = Entry(arrived_s=at_s)
        lanes.add(entry)
        lanes.take(entry)
    lanes.add(Entry(arrived_s=2.0))

    (lane,) = lanes
    assert lane.arrivals.per_s(2.0) == 1.0


def test_who_makes_room_is_the_last_in_turn_of_the_greediest() -> None:
    lanes = empty()
    entries = [Entry(key, tenant=tenant) for key, tenant in ("ax", "by", "bx", "ax", "ay")]
    for entry in entries:
        lanes.add(entry)

    assert list(lanes.surplus("z", 1))[:3] == [entries[3], entries[2], entries[4]]
    assert list(lanes.surplus("x", 1)) == []
    assert len(lanes.entries()) == 5, "nobody has left yet"


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200), st.integers(0, 20))
def test_what_has_expired_comes_out_once_and_what_is_over_never(timed: list[tuple[int, bool]], now: int) -> None:
    deadlines: Deadlines[Entry] = Deadlines()
    entries = [Entry(deadline=Deadline(due), over=over) for due, over in timed]
    for entry in entries:
        deadlines.push(entry)

    expired = deadlines.pop_expired(now)

    live = [entry for entry in entries if not entry.over]
    assert set(expired) == {entry for entry in live if entry.deadline <= now}
    assert len(set(expired)) == len(expired)
    assert deadlines.earliest() == min((e.deadline for e in live if e.deadline > now), default=math.inf)


def test_what_is_over_does_not_pile_up() -> None:
    deadlines: Deadlines[Entry] = Deadlines()
    for i in range(10_000):
        deadlines.push(Entry(deadline=Deadline(i), over=True))

    assert len(deadlines) <= 64


def test_what_has_no_deadline_is_not_watched() -> None:
    deadlines: Deadlines[Entry] = Deadlines()
    deadlines.push(Entry())

    assert (len(deadlines), deadlines.earliest()) == (0, math.inf)
