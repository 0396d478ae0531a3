"""The outlook over a real store: what callers are told of people, and when these count as overloaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.people.hours import WorkingHours
from gateway.people.options import QueueOptions
from gateway.people.outlook import Outlook
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import Place
from router.contract import HumanPolicy, WhenOverloaded
from tests.unit.gateway.store.samples import TENANT, Clock, deferred

NOON_S = 1_764_158_400.0  # 2025-11-26T12:00:00Z, a Wednesday
PETS = HumanPolicy("pets", 3600.0, when_overloaded=WhenOverloaded.REFUSE, max_wait_s=600.0)


@pytest.fixture
def wall_clock() -> Clock:
    return Clock(NOON_S)


@pytest.fixture
async def store(tmp_path: Path, wall_clock: Clock) -> AsyncIterator[SqlStore]:
    opened = await open_store(StoreOptions(tmp_path / "store.db"), wall_clock=wall_clock)
    yield opened
    await opened.aclose()


async def decide_one(store: SqlStore, wall_clock: Clock, takes_s: float) -> None:
    """Somebody takes the first review, and decides it after *takes_s*."""
    review = await store.claim_next(TENANT, "pets", "anna", 3600.0)
    assert review is not None
    wall_clock.now += takes_s
    await store.decide(TENANT, review.id, "anna", review.fence, "cat")


async def decide_many(store: SqlStore, wall_clock: Clock) -> None:
    """Twenty reviews, each taken at once, and decided after two minutes."""
    for _ in range(20):
        await store.commit(*deferred())
        await decide_one(store, wall_clock, 120.0)


async def seen(store: SqlStore, wall_clock: Clock, **options: QueueOptions) -> Outlook:
    outlook = Outlook(options, wall_clock)
    await outlook.refresh(store)
    return outlook


async def test_nothing_is_told_of_people_who_never_decided_anything(store: SqlStore, wall_clock: Clock) -> None:
    assert Outlook({}).predicted_s(TENANT, PETS) is None
    await store.commit(*deferred())
    outlook = await seen(store, wall_clock)

    assert outlook.predicted_s(TENANT, PETS) is None
    assert outlook.predicted_at_s(TENANT, Place("pets", 5, 0)) is None
    assert outlook.overload(TENANT, PETS) is None
    assert outlook.by_queue() == {}


async def test_the_wait_grows_with_what_is_handed_over_and_is_seen_anew(store: SqlStore, wall_clock: Clock) -> None:
    await decide_many(store, wall_clock)
    outlook = await seen(store, wall_clock)

    alone = outlook.predicted_s(TENANT, PETS)
    assert alone == pytest.approx(117, rel=0.05)  # whatever came was taken at once
    outlook.handed_over(TENANT, PETS, 9)
    tenth = outlook.predicted_s(TENANT, PETS)
    assert tenth == pytest.approx(117 + 10 * 117, rel=0.05)
    answer, tasks = deferred(items=9)
    await store.commit(answer, tasks)
    await outlook.refresh(store)
    assert outlook.predicted_s(TENANT, PETS) == pytest.approx(tenth, abs=2.0)
    (place,) = await store.places(TENANT, answer.id)
    assert place == Place("pets", 5, 8)
    assert outlook.predicted_at_s(TENANT, place) == outlook.predicted_s(TENANT, PETS, items=0)
    assert outlook.predicted_s("other", PETS) is None
    assert outlook.by_queue() == {"pets": outlook.predicted_s(TENANT, PETS)}
    assert (outlook.waits(TENANT), outlook.waits("nobody's")) == (outlook.by_queue(), {})


async def test_what_is_handed_over_while_the_store_is_read_is_not_forgotten(store: SqlStore, wall_clock: Clock) -> None:
    await decide_many(store, wall_clock)
    outlook = await seen(store, wall_clock)
    outlook.handed_over(TENANT, PETS, 5)  # and never committed: the next look does not see them
    refreshing = asyncio.ensure_future(outlook.refresh(store))
    await asyncio.sleep(0)
    outlook.handed_over(TENANT, PETS, 9)
    await refreshing

    assert outlook.predicted_s(TENANT, PETS) == pytest.approx(117 + 10 * 117, rel=0.05)


async def test_who_is_more_urgent_waits_less(store: SqlStore, wall_clock: Clock) -> None:
    await decide_many(store, wall_clock)
    for priority in (5, 5, 5, 1):
        await store.commit(*deferred(priority=priority))
    outlook = await seen(store, wall_clock)
    waits = [outlook.predicted_s(TENANT, HumanPolicy("pets", 1.0, priority=priority)) for priority in (1, 4, 5, 9)]

    assert all(wait_s is not None for wait_s in waits)
    assert waits == sorted(waits, key=lambda wait_s: wait_s or 0.0)
    assert waits[0] == waits[1] != waits[2]  # nothing of priorities 2 to 4 waits, or came of late
    assert waits[2] != waits[3]  # all that came was of 5, and goes on coming


async def test_people_who_have_gone_home_decide_in_the_morning(store: SqlStore, wall_clock: Clock) -> None:
    await decide_many(store, wall_clock)
    office = WorkingHours((((9 * 60, 17 * 60),),) * 7, "UTC")
    wall_clock.now = NOON_S + 6 * 3600.0
    outlook = await seen(store, wall_clock, pets=QueueOptions(hours=office))

    assert outlook.predicted_s(TENANT, PETS) == pytest.approx(15 * 3600 + 117, rel=0.01)


async def test_overload_begins_where_the_wait_exceeds_what_the_route_allows(store: SqlStore, wall_clock: Clock) -> None:
    await decide_many(store, wall_clock)
    outlook = await seen(store, wall_clock)
    due_alone = HumanPolicy("pets", 300.0, when_overloaded=WhenOverloaded.PROVISIONAL)
    waits = HumanPolicy("pets", 1.0)

    assert outlook.overload(TENANT, PETS) is None
    assert outlook.overload(TENANT, PETS, items=20) is not None
    outlook.handed_over(TENANT, PETS, 4)
    found, by_due = outlook.overload(TENANT, PETS), outlook.overload(TENANT, due_alone)

    assert found is not None
    assert by_due is not None
    assert (found.policy, found.queue) == (WhenOverloaded.REFUSE, "pets")
    assert found.detail == "people of queue 'pets' need about 12 min, and this route allows 10 min"
    assert found.retry_after_s == pytest.approx(6 * 117 - 600, abs=30)
    assert by_due.policy is WhenOverloaded.PROVISIONAL
    assert outlook.overload(TENANT, waits, items=1000) is None


async def test_where_nobody_decides_at_all_the_oldest_tells_of_overload(store: SqlStore, wall_clock: Clock) -> None:
    await store.commit(*deferred())
    wall_clock.now += 599.0
    assert (await seen(store, wall_clock)).overload(TENANT, PETS) is None
    wall_clock.now += 2.0
    found = (await seen(store, wall_clock)).overload(TENANT, PETS)

    assert found is not None
    assert found.detail == "nobody has decided anything in queue 'pets' for 10 min, and this route allows 10 min"
    assert found.retry_after_s == 1.0
