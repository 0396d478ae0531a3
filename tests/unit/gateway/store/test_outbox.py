"""Messages: there exactly when what they tell is, taken by one at a time, never lost by who took them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace

import pysqlite3.dbapi2 as sqlite3
import pytest

from gateway.answer import Answer, Status
from gateway.store import SqlStore, StoreOptions, list_messages, open_store, redeliver
from gateway.store.contract import Message, OutboxState
from gateway.store.outbox import new_message
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import TENANT, Clock, deferred
from tests.unit.gateway.store.test_beside import execute

ROOM = {"crm": 10, "erp": 10}


def tell_both(answer: Answer, now_s: float) -> Iterable[Message]:
    for webhook in ROOM:
        yield new_message(webhook, now_s, lambda message_id: f"{message_id} {answer.id} {answer.status}")


@pytest.fixture
async def store(options: StoreOptions, clock: Clock, wall_clock: Clock) -> AsyncIterator[SqlStore]:
    at_once = replace(options, undo_s=0.0)
    opened = await open_store(at_once, clock=clock, wall_clock=wall_clock, announce=tell_both)
    async with aclosing(opened) as store:
        yield store


async def test_messages_come_with_the_decision_that_closes_an_answer(store: SqlStore) -> None:
    answer, tasks = deferred(items=2)
    await store.commit(answer, tasks)
    first, second = await store.reviews(TENANT)
    claimed = await store.claim(TENANT, first.id, "anna", 60.0)
    await store.decide(TENANT, first.id, "anna", claimed.fence, "cat")
    assert await store.take_messages(ROOM, 60.0) == ()

    claimed = await store.claim(TENANT, second.id, "anna", 60.0)
    await store.decide(TENANT, second.id, "anna", claimed.fence, "cat")
    await store.decide(TENANT, second.id, "anna", claimed.fence, "cat")  # saying it again tells nobody again

    taken = await store.take_messages(ROOM, 60.0)
    assert {delivery.message.webhook for delivery in taken} == {"crm", "erp"}
    assert len(taken) == 2
    for delivery in taken:
        assert delivery.message.body == f"{delivery.message.id} {answer.id} {Status.FINAL}"
        assert (delivery.tenant, delivery.answer_id, delivery.attempts) == (TENANT, answer.id, 0)


async def test_what_was_taken_is_due_again_when_its_taker_may_be_dead(store: SqlStore, wall_clock: Clock) -> None:
    await store.commit(*deferred())
    await decide_all(store)

    first = await store.take_messages(ROOM, 60.0)
    assert len(first) == 2
    assert await store.take_messages(ROOM, 60.0) == ()
    wall_clock.now += 60.0
    assert {d.message.id for d in await store.take_messages(ROOM, 60.0)} == {d.message.id for d in first}


async def test_the_longest_due_are_taken_first_and_no_more_than_there_is_room_for(
    store: SqlStore, wall_clock: Clock
) -> None:
    for _ in range(4):
        await store.commit(*deferred())
        await decide_all(store)
        wall_clock.now += 1.0

    taken = [await store.take_messages({"crm": 3}, 60.0) for _ in range(2)]

    assert [len(part) for part in taken] == [3, 1]
    created = [delivery.created_s for part in taken for delivery in part]
    assert created == sorted(created)


async def test_a_message_ends_once(store: SqlStore, wall_clock: Clock) -> None:
    await store.commit(*deferred())
    await decide_all(store)
    one, other = await store.take_messages(ROOM, 60.0)

    await store.postpone_message(one.message.id, 300.0, "503: later")
    await store.end_message(other.message.id, OutboxState.DEAD, "410: gone")
    await store.end_message(other.message.id, OutboxState.DELIVERED, "200: too late")
    await store.postpone_message(other.message.id, 1.0, "too late")

    depths = await store.outbox_depths()
    assert (depths["crm"].waiting, depths["crm"].dead) == (1, 0)
    assert (depths["erp"].waiting, depths["erp"].dead) == (0, 1)
    wall_clock.now += 299.0
    assert await store.take_messages(ROOM, 60.0) == ()
    wall_clock.now += 1.0
    (again,) = await store.take_messages(ROOM, 60.0)
    assert (again.message, again.attempts, again.last) == (one.message, 1, "503: later")
    await store.end_message(one.message.id, OutboxState.DELIVERED, "200 OK: ")
    assert set(await store.outbox_depths()) == {"erp"}


async def test_the_dead_are_delivered_anew_and_those_that_are_named(
    store: SqlStore, options: StoreOptions, wall_clock: Clock
) -> None:
    await store.commit(*deferred())
    await decide_all(store)
    one, other = await store.take_messages(ROOM, 60.0)
    await store.end_message(one.message.id, OutboxState.DEAD, "410: gone")
    await store.end_message(other.message.id, OutboxState.DELIVERED, "200 OK: ")

    assert await redeliver(options, None) == 1
    assert await redeliver(options, [other.message.id, "nothing"]) == 1

    waiting = await list_messages(options, OutboxState.WAITING, 10)
    assert {delivery.message for delivery in waiting} == {one.message, other.message}
    assert {delivery.attempts for delivery in waiting} == {0}
    wall_clock.now = 4e9  # beyond the moment that redeliver took from the real clock
    assert len(await store.take_messages(ROOM, 60.0)) == 2


async def test_what_ended_long_ago_is_forgotten_and_what_waits_is_not(
    store: SqlStore, options: StoreOptions, wall_clock: Clock
) -> None:
    await store.commit(*deferred())
    await decide_all(store)
    one, other = await store.take_messages(ROOM, 60.0)
    await store.end_message(one.message.id, OutboxState.DELIVERED, "200 OK: ")
    wall_clock.now += options.retention_s + 1.0

    await store.maintain()

    assert [delivery.message for delivery in await list_messages(options, None, 10)] == [other.message]


async def test_what_nobody_delivers_any_more_is_dead_some_time_after_it_was_due(
    options: StoreOptions, store: SqlStore, wall_clock: Clock
) -> None:
    await store.commit(*deferred())
    await decide_all(store)
    (to_crm,) = await store.take_messages({"crm": 10}, 60.0)
    await store.postpone_message(to_crm.message.id, 500.0, "502")

    wall_clock.now += 1400.0  # that for `erp` is due for as long, that for `crm` since 900 s
    assert await store.bury_messages(["crm", "erp"], 1000.0, "nobody") == {}
    assert await store.bury_messages(["erp"], 1000.0, "nobody") == {}
    assert await store.bury_messages(["crm"], 1000.0, "nobody has it") == {"erp": 1}
    assert await store.bury_messages(["crm"], 1000.0, "nobody has it") == {}

    found = {delivery.message.webhook: delivery for delivery in await list_messages(options, None, 10)}
    assert (found["erp"].state, found["erp"].attempts, found["erp"].last) == (OutboxState.DEAD, 0, "nobody has it")
    assert found["crm"].state is OutboxState.WAITING
    assert (await store.outbox_depths())["erp"].dead == 1
    wall_clock.now += 100.0
    assert await store.bury_messages([], 1000.0, "nobody") == {"crm": 1}


async def test_what_is_dead_as_nobody_delivers_it_is_delivered_anew_by_who_does(
    options: StoreOptions, store: SqlStore, wall_clock: Clock
) -> None:
    await store.commit(*deferred())
    await decide_all(store)
    wall_clock.now += 2000.0
    await store.bury_messages([], 1000.0, "nobody has it")

    assert await redeliver(options, None) == 2

    wall_clock.now = time.time() + 10.0  # redeliver has it from the real clock
    assert await store.bury_messages([], 1000.0, "nobody has it") == {}  # not before its time is over again
    assert len(await store.take_messages(ROOM, 60.0)) == 2


async def test_a_decision_that_is_not_committed_tells_nobody(options: StoreOptions) -> None:
    def fail(answer: Answer, now_s: float) -> Iterable[Message]:
        raise RuntimeError("no message can be made")

    async with aclosing(await open_store(options, announce=fail)) as store:
        answer, tasks = deferred()
        await store.commit(answer, tasks)
        with pytest.raises(RuntimeError, match="no message can be made"):
            await decide_all(store)
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert found.status is Status.PROVISIONAL
        assert await store.verify_log() == []
    assert await list_messages(options, None, 10) == []


@pytest.mark.parametrize(
    "change",
    ["state = 'lost'", "state = 'dead'", "state = 'delivered'", "ended_s = 1.0", "state = 'waiting', ended_s = 1.0"],
)
async def test_no_state_is_there_but_those(options: StoreOptions, change: str) -> None:
    async with aclosing(await open_store(replace(options), announce=tell_both)) as store:
        await store.commit(*deferred())
        await decide_all(store)
    with pytest.raises(sqlite3.IntegrityError, match="outbox_state"):
        execute(options.path, f"UPDATE outbox SET {change}")
