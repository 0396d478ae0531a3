"""Predicted waits: right where the queue is what the model says, cautious where it is not, and silent without data."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.people.hours import ALWAYS, WorkingHours
from gateway.people.wait import Pace, pace_of
from gateway.store.contract import Taken, Workload
from gateway.store.workload import LATEST

NOW_S = 1_764_000_000.0
EMPTY = Workload("default", "tickets", {}, 0, None, (), False)


def taken(arrived: float, claimed: float, decided: float | None, reviewer: str = "anna", priority: int = 5) -> Taken:
    """Times in seconds before now."""
    return Taken(priority, reviewer, NOW_S - arrived, NOW_S - claimed, None if decided is None else NOW_S - decided)


def pace(load: Workload, hours: WorkingHours = ALWAYS) -> Pace:
    found = pace_of(load, hours, NOW_S)
    assert found is not None
    return found


def test_without_any_decision_nothing_is_told() -> None:
    assert pace_of(EMPTY, ALWAYS, NOW_S) is None
    held = replace(EMPTY, taken=(taken(60, 30, None),), claimed=1, undecided={5: 1})
    assert pace_of(held, ALWAYS, NOW_S) is None


def test_one_reviewer_with_a_backlog_takes_one_after_the_other() -> None:
    decided = tuple(taken(5000, 100.0 * (n + 1), 100.0 * n) for n in range(40))
    load = replace(EMPTY, taken=decided, undecided={5: 10}, unclaimed_since_s=NOW_S - 5000)

    found = pace(load)

    assert found.people == 1
    assert found.service_s == pytest.approx(100, rel=0.02)
    assert found.expected_s(10, 0, 5) == pytest.approx(11 * 100 + 100, rel=0.3)


def test_people_who_come_by_now_and_then_take_as_long_as_they_stay_away() -> None:
    """Each review is taken ten minutes after it came, and decided half a minute later: a new one will be, too."""
    decided = tuple(taken(2000.0 * n + 630, 2000.0 * n + 30, 2000.0 * n) for n in range(40))

    assert pace(replace(EMPTY, taken=decided)).expected_s(0, 0, 5) == pytest.approx(630, rel=0.05)


def test_people_who_do_not_come_any_more_make_it_longer() -> None:
    decided = tuple(taken(100.0 * n + 4000, 100.0 * n + 4000 - 1, 100.0 * n + 3970) for n in range(20))
    waits = [
        pace(replace(EMPTY, taken=decided, undecided={5: 1}, unclaimed_since_s=NOW_S - since_s)).expected_s(1, 0, 5)
        for since_s in (1.0, 600.0, 3600.0, 86_400.0)
    ]

    assert all(before < after for before, after in pairwise(waits))
    assert waits[-1] > 3600


def test_a_quiet_hour_does_not_promise_that_a_crowd_goes_as_fast() -> None:
    """Whatever came was taken at once, by one person who needs two minutes; twenty at once take forty."""
    decided = tuple(taken(600.0 * n + 121, 600.0 * n + 120, 600.0 * n, "anna") for n in range(30))

    assert pace(replace(EMPTY, taken=decided)).expected_s(20, 0, 5) == pytest.approx(20 * 120 + 120, rel=0.1)


def test_time_outside_working_hours_does_not_count() -> None:
    """Reviews that came at night were taken in the morning: nobody was slow."""
    day = 86_400.0
    midnight_s = NOW_S - NOW_S % day
    morning = WorkingHours((((8 * 60, 9 * 60),),) * 7, "UTC")
    mornings = [midnight_s - n * day + 8 * 3600 for n in range(20)]
    decided = tuple(Taken(5, "anna", at_s - 8 * 3600, at_s + 60, at_s + 90) for at_s in mornings)
    load = replace(EMPTY, taken=decided)

    slow, fast = pace_of(load, ALWAYS, midnight_s + day / 2), pace_of(load, morning, midnight_s + day / 2)

    assert slow is not None
    assert fast is not None
    assert slow.expected_s(0, 0, 5) > 7 * 3600
    assert fast.expected_s(0, 0, 5) < 200


def test_more_urgent_reviews_go_first_and_those_to_come_overtake() -> None:
    urgent = tuple(taken(100.0 * n + 51, 100.0 * n + 50, 100.0 * n, priority=1) for n in range(30))
    found = pace(replace(EMPTY, taken=urgent))

    assert found.expected_s(3, 0, 1) < 0.7 * found.expected_s(3, 0, 5)
    assert found.better == {2: pytest.approx(0.01, rel=0.1)}


def test_what_was_claimed_before_the_first_that_is_told_does_not_count() -> None:
    """The backlog is so long that each waits for a day; yet one is taken every minute."""
    decided = tuple(taken(86_400 + 60.0 * n, 60.0 * (n + 1), 60.0 * n) for n in range(LATEST))
    load = replace(EMPTY, taken=decided, is_cut=True, undecided={5: 1440}, unclaimed_since_s=NOW_S - 86_400)

    assert pace(load).expected_s(1440, 0, 5) == pytest.approx(1441 * 60, rel=0.05)


@given(
    decided=st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1e5), st.floats(0, 1e5), st.sampled_from("abc"), st.integers(1, 9)),
        min_size=1,
        max_size=30,
    ),
    unclaimed=st.integers(0, 1000),
    claimed=st.integers(0, 10),
    priority=st.integers(1, 9),
    open_s=st.none() | st.floats(0, 1e6),
)
def test_a_wait_is_finite_and_grows_with_what_is_ahead(
    decided: list[tuple[float, float, float, str, int]],
    unclaimed: int,
    claimed: int,
    priority: int,
    open_s: float | None,
) -> None:
    rows = tuple(
        taken(ago + serving + waiting, ago + serving, ago, reviewer, level)
        for ago, waiting, serving, reviewer, level in decided
    )
    found = pace(replace(EMPTY, taken=rows, unclaimed_since_s=None if open_s is None else NOW_S - open_s))

    wait_s = found.expected_s(unclaimed, claimed, priority)

    assert 0.0 < wait_s < float("inf")
    assert found.expected_s(unclaimed + 1, claimed, priority) > wait_s
    assert found.expected_s(unclaimed, claimed + 1, priority) >= wait_s
    assert priority == 9 or found.expected_s(unclaimed, claimed, priority + 1) >= wait_s


# --- a simulated queue ---


class People:
    """Reviewers who take what came first, each for an exponential time: M/M/c, seen only as the store sees it."""

    def __init__(self, rng: random.Random, people: int, service_s: float) -> None:
        self.rng, self.people, self.service_s = rng, people, service_s
        self.free = list(range(people))
        self.gone: set[int] = set()
        self.waiting: list[float] = []
        self.at_work: list[tuple[float, int, float, float]] = []  # decided, who, arrived, claimed
        self.decided: list[Taken] = []

    def run_until(self, now_s: float) -> None:
        while self.at_work and self.at_work[0][0] <= now_s:
            done_s, who, arrived_s, claimed_s = heapq.heappop(self.at_work)
            self.decided.append(Taken(5, f"p{who}", arrived_s, claimed_s, done_s))
            if who not in self.gone:
                self.free.append(who)
            self.take(done_s)

    def take(self, now_s: float) -> None:
        while self.waiting and self.free:
            arrived_s, who = self.waiting.pop(0), self.free.pop()
            done_s = now_s + self.rng.expovariate(1 / self.service_s)
            heapq.heappush(self.at_work, (done_s, who, arrived_s, now_s))

    def arrive(self, now_s: float) -> None:
        self.run_until(now_s)
        self.waiting.append(now_s)
        self.take(now_s)

    def load(self) -> Workload:
        held = tuple(Taken(5, f"p{who}", arrived, claimed, None) for _, who, arrived, claimed in self.at_work)
        latest = tuple(self.decided[-LATEST:])
        since_s = self.waiting[0] if self.waiting else None
        count = len(held) + len(self.waiting)
        return Workload("t", "q", {5: count}, len(held), since_s, (*held, *latest), len(latest) == LATEST)


@pytest.mark.no_cover
@pytest.mark.parametrize(("people", "load"), [(1, 0.5), (1, 0.9), (3, 0.6), (3, 0.95), (8, 0.8)])
def test_predictions_of_an_m_m_c_queue_are_right_on_average(people: int, load: float) -> None:
    rng = random.Random(people * 100 + int(load * 100))
    service_s = 90.0
    predicted: list[float] = []
    real: list[float] = []
    for _ in range(12):
        queue, now_s = People(rng, people, service_s), 0.0
        expected: dict[float, float] = {}
        for number in range(400):
            now_s += rng.expovariate(load * people / service_s)
            queue.run_until(now_s)
            found = pace_of(queue.load(), ALWAYS, now_s)
            if number > 100 and found is not None:
                expected[now_s] = found.expected_s(len(queue.waiting), len(queue.at_work), 5)
            queue.arrive(now_s)
        queue.run_until(float("inf"))
        waits = {one.arrived_s: one.decided_s - one.arrived_s for one in queue.decided if one.decided_s is not None}
        predicted += expected.values()
        real += [waits[arrived_s] for arrived_s in expected]

    assert mean(predicted) == pytest.approx(mean(real), rel=0.25)


def test_predictions_follow_people_who_leave_for_good() -> None:
    """Of three people two leave; within thirty decisions the wait is told as what it is now."""
    queue, now_s = People(random.Random(7), 3, 60.0), 0.0
    for number in range(290):
        if number == 200:
            queue.gone = {1, 2}
            queue.free = [who for who in queue.free if who not in queue.gone]
        now_s += 20.0
        queue.arrive(now_s)
    found = pace_of(queue.load(), ALWAYS, now_s)

    assert found is not None
    ahead = len(queue.waiting)
    assert ahead > 30
    assert 0.4 * ahead * 60.0 < found.expected_s(ahead, 1, 5) < 2.0 * ahead * 60.0
