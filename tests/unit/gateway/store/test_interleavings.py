"""Two processes on one PostgreSQL whose statements run in any order: what one writer alone would do still holds.

`Order` lets the statements of two stores through in the order that hypothesis draws. One that waits for the other's
lock cannot have its turn, so a turn that is not taken soon is over.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from backends.errors import Conflict
from gateway.answer import Answer, Status
from gateway.store import SqlStore, StoreOptions, keys, open_store
from gateway.store.contract import Done, Fresh, InProgress, Message, Mismatch, OutboxState, RequestKey, ReviewState
from gateway.store.outbox import new_message
from tests.postgres import PostgresServer
from tests.unit.gateway.store.conformance import BODY, LEASE_S, OTHER_BODY
from tests.unit.gateway.store.samples import TENANT, accepted, certificate, deferred

TURN_S = 0.02

Stores: TypeAlias = tuple[SqlStore, SqlStore]
Scenario: TypeAlias = Callable[[Stores, "Order", str], Coroutine[Any, Any, None]]


class Order:
    """Whose statement is next: 0 or 1, by turns; at the end, anybody's."""

    def __init__(self, turns: Sequence[int]) -> None:
        self._turns = turns
        self._at = len(turns)
        self._changed = threading.Condition()

    def statement(self, me: int) -> None:
        """Wait for a turn of mine."""
        with self._changed:
            self._changed.wait_for(lambda: self._at >= len(self._turns) or self._turns[self._at] == me, TURN_S)
            self._at += 1
            self._changed.notify_all()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the order inside; outside, anybody is next."""
        self._at = 0
        yield
        with self._changed:
            self._at = len(self._turns)
            self._changed.notify_all()


def tell(answer: Answer, now_s: float) -> list[Message]:
    return [new_message("crm", now_s, lambda message_id: f"{message_id} {answer.id}")]


async def one_key_is_one_request_s(stores: Stores, order: Order, name: str) -> None:
    key = RequestKey(TENANT, "pets", name)
    with order.kept():
        claims = await asyncio.gather(*(store.claim_key(key, BODY) for store in stores))
    assert sorted(type(claim).__name__ for claim in claims) == ["Fresh", "InProgress"]


async def one_key_is_one_body_s(stores: Stores, order: Order, name: str) -> None:
    key = RequestKey(TENANT, "pets", name)
    with order.kept():
        claims = await asyncio.gather(stores[0].claim_key(key, BODY), stores[1].claim_key(key, OTHER_BODY))
    assert sorted(type(claim).__name__ for claim in claims) == ["Fresh", "Mismatch"]


async def many_keys_are_shared_out(stores: Stores, order: Order, name: str) -> None:
    wanted = [RequestKey(TENANT, "pets", f"{name}-{i}") for i in range(6)]
    with order.kept():
        claims = await asyncio.gather(
            *(stores[0].claim_key(key, BODY) for key in wanted),
            *(stores[1].claim_key(key, BODY) for key in wanted[::-1]),
        )
    for one, other in zip(claims[:6], claims[:5:-1], strict=True):
        assert {type(one), type(other)} == {Fresh, InProgress}


async def a_released_key_is_taken_whole_or_not(stores: Stores, order: Order, name: str) -> None:
    key = RequestKey(TENANT, "pets", name)
    held = await stores[0].claim_key(key, BODY)
    assert isinstance(held, Fresh)
    with order.kept():
        _, claim = await asyncio.gather(stores[0].release_key(key, held.fence), stores[1].claim_key(key, OTHER_BODY))
    assert isinstance(claim, Fresh | Mismatch)
    again = await stores[0].claim_key(key, OTHER_BODY)
    assert isinstance(again, InProgress if isinstance(claim, Fresh) else Fresh)


async def a_key_whose_holder_died_is_one_request_s(stores: Stores, order: Order, name: str) -> None:
    key = RequestKey(TENANT, "pets", name)
    dead = await stores[0].claim_key(key, BODY)
    assert isinstance(dead, Fresh)
    await stores[0]._writer.run(lambda transaction: keys.reopen_of(transaction.connection, transaction.identity.slot))
    with order.kept():
        claims = await asyncio.gather(*(store.claim_key(key, BODY) for store in stores))
    assert sorted(type(claim).__name__ for claim in claims) == ["Fresh", "InProgress"]


async def a_late_holder_and_a_new_one_are_one_of_them(stores: Stores, order: Order, name: str) -> None:
    key, answer = RequestKey(TENANT, "pets", name), accepted()
    late = await stores[0].claim_key(key, BODY)
    assert isinstance(late, Fresh)
    await stores[0]._writer.run(lambda transaction: keys.reopen_of(transaction.connection, transaction.identity.slot))
    with order.kept():
        kept, claim = await asyncio.gather(
            stores[0].commit(answer, [], key, late.fence), stores[1].claim_key(key, BODY), return_exceptions=True
        )
    if kept is None:
        assert claim == Done(answer.id)
    else:
        assert isinstance(kept, Conflict)
        assert isinstance(claim, Fresh)
        assert await stores[1].answer(TENANT, answer.id) is None


async def the_last_of_two_decisions_closes_the_answer(stores: Stores, order: Order, name: str) -> None:
    answer, tasks = deferred(items=2, queue=name)
    key = RequestKey(TENANT, "pets", name)
    claim = await stores[0].claim_key(key, BODY)
    assert isinstance(claim, Fresh)
    await stores[0].commit(answer, tasks, key, claim.fence)
    held = [await store.claim_next(TENANT, name, f"anna-{i}", LEASE_S) for i, store in enumerate(stores)]
    with order.kept():
        told = await asyncio.gather(
            *(
                store.decide(TENANT, review.id, f"anna-{i}", review.fence, "cat")
                for i, (store, review) in enumerate(zip(stores, held, strict=True))
                if review is not None
            )
        )
    assert sorted(answer.revision for answer in told) == [2, 3]
    found = await stores[0].answer(TENANT, answer.id)
    assert found is not None
    assert (found.status, found.revision) == (Status.FINAL, 3)
    messages = await stores[0].take_messages({"crm": 100}, LEASE_S)
    assert [message.answer_id for message in messages] == [answer.id]
    await stores[0].end_message(messages[0].message.id, OutboxState.DELIVERED, "")
    async with asyncio.timeout(5.0):
        assert (await stores[1].wait(TENANT, answer.id, 60.0)) is not None


async def one_review_is_one_reviewer_s(stores: Stores, order: Order, name: str) -> None:
    await stores[0].commit(*deferred(queue=name))
    review = (await stores[0].reviews(TENANT, name))[0]
    with order.kept():
        claims = await asyncio.gather(
            *(store.claim(TENANT, review.id, f"anna-{i}", LEASE_S) for i, store in enumerate(stores)),
            return_exceptions=True,
        )
    assert [type(claim) for claim in claims].count(Conflict) == 1


async def two_reviewers_get_two_reviews(stores: Stores, order: Order, name: str) -> None:
    await stores[0].commit(*deferred(items=2, queue=name))
    with order.kept():
        held = await asyncio.gather(
            *(store.claim_next(TENANT, name, f"anna-{i}", LEASE_S) for i, store in enumerate(stores))
        )
    assert len({review.id for review in held if review is not None}) == 2


async def a_reviewer_who_asks_twice_at_once_gets_one_review(stores: Stores, order: Order, name: str) -> None:
    await stores[0].commit(*deferred(items=2, queue=name))
    with order.kept():
        held = await asyncio.gather(*(store.claim_next(TENANT, name, "anna", LEASE_S) for store in stores))
    assert len({review.id for review in held if review is not None}) == 1
    assert len(await stores[0].reviews(TENANT, name, ReviewState.CLAIMED)) == 1


async def a_decision_and_a_release_are_one_of_them(stores: Stores, order: Order, name: str) -> None:
    answer, tasks = deferred(queue=name)
    await stores[0].commit(answer, tasks)
    held = await stores[0].claim_next(TENANT, name, "anna", LEASE_S)
    assert held is not None
    with order.kept():
        told, _ = await asyncio.gather(
            stores[0].decide(TENANT, held.id, "anna", held.fence, "cat"),
            stores[1].release(TENANT, held.id, "anna", held.fence),
            return_exceptions=True,
        )
    review = await stores[0].review(TENANT, held.id)
    assert review is not None
    if isinstance(told, Answer):
        assert review.state is ReviewState.DECIDED
    else:
        assert isinstance(told, Conflict)
        assert review.state is ReviewState.OPEN


async def one_label_is_one_person_s(stores: Stores, order: Order, name: str) -> None:
    """The same reviewer, in two tabs that two processes answer, chooses twice."""
    await stores[0].commit(*deferred(queue=name))
    held = await stores[0].claim_next(TENANT, name, "anna", LEASE_S)
    assert held is not None
    with order.kept():
        told = await asyncio.gather(
            *(
                store.decide(TENANT, held.id, "anna", held.fence, label)
                for store, label in zip(stores, ("cat", "dog"), strict=True)
            ),
            return_exceptions=True,
        )
    assert [type(one) for one in told].count(Conflict) == 1
    (decided,) = [one for one in told if isinstance(one, Answer)]
    review = await stores[0].review(TENANT, held.id)
    assert review is not None
    assert review.label == decided.items[0].label


async def a_message_is_taken_by_one(stores: Stores, order: Order, name: str) -> None:
    answer, tasks = deferred(queue=name)
    await stores[0].commit(answer, tasks)
    held = await stores[0].claim_next(TENANT, name, "anna", LEASE_S)
    assert held is not None
    await stores[0].decide(TENANT, held.id, "anna", held.fence, "cat")
    with order.kept():
        taken = await asyncio.gather(*(store.take_messages({"crm": 100}, LEASE_S) for store in stores))
    (delivery,) = [delivery for one in taken for delivery in one]
    assert delivery.answer_id == answer.id
    await stores[0].end_message(delivery.message.id, OutboxState.DELIVERED, "")


async def looks_are_counted_one_by_one(stores: Stores, order: Order, name: str) -> None:
    with order.kept():
        looks = await asyncio.gather(
            *(store.add_look("pets", name, f"labels {i}") for i, store in enumerate(stores)),
        )
    assert sorted(looks) == [1, 2]


async def a_certificate_is_kept_once(stores: Stores, order: Order, name: str) -> None:
    one = certificate(route=name)
    with order.kept():
        await asyncio.gather(*(store.add_certificate(one) for store in stores))
    assert await stores[0].certificates(name) == [one]


SCENARIOS: tuple[Scenario, ...] = (
    one_key_is_one_request_s,
    one_key_is_one_body_s,
    many_keys_are_shared_out,
    a_released_key_is_taken_whole_or_not,
    a_key_whose_holder_died_is_one_request_s,
    a_late_holder_and_a_new_one_are_one_of_them,
    the_last_of_two_decisions_closes_the_answer,
    one_review_is_one_reviewer_s,
    two_reviewers_get_two_reviews,
    a_reviewer_who_asks_twice_at_once_gets_one_review,
    a_decision_and_a_release_are_one_of_them,
    one_label_is_one_person_s,
    a_message_is_taken_by_one,
    looks_are_counted_one_by_one,
    a_certificate_is_kept_once,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_whatever_the_order_of_statements(postgres_server: PostgresServer, tmp_path: Path, scenario: Scenario) -> None:
    names = (f"{scenario.__name__}-{number}" for number in itertools.count())
    with postgres_server.store(tmp_path) as (place, _), asyncio.Runner() as runner:
        options = StoreOptions(place, undo_s=0.0)

        async def opened() -> SqlStore:
            return await open_store(options, announce=tell)

        stores = (runner.run(opened()), runner.run(opened()))
        order = Order(())
        for me, store in enumerate(stores):
            engine = store._database._writing  # type: ignore[attr-defined]  # of PostgreSQL
            event.listen(engine, "before_cursor_execute", lambda *_, me=me: order.statement(me))

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.integers(0, 1), min_size=4, max_size=24))
        def hold_for(turns: list[int]) -> None:
            order._turns = turns
            order._at = len(turns)
            runner.run(scenario(stores, order, next(names)))

        hold_for()
        assert runner.run(stores[0].verify_log()) == []
        for store in stores:
            runner.run(store.aclose())


@settings(max_examples=5, deadline=None)
@given(
    items=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    reviewers=st.lists(st.integers(0, 1), min_size=2, max_size=8),
)
def test_a_queue_that_many_work_off_is_decided_once_each(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, items: list[int], reviewers: list[int]
) -> None:
    async def work_off(stores: Stores) -> None:
        answers = [deferred(items=count) for count in items]
        await asyncio.gather(*(stores[i % 2].commit(*one) for i, one in enumerate(answers)))
        decided: list[str] = []

        async def review(store: SqlStore, name: str) -> None:
            while (held := await store.claim_next(TENANT, "pets", name, LEASE_S)) is not None:
                await store.decide(TENANT, held.id, name, held.fence, "cat")
                decided.append(held.id)

        while len(decided) < sum(items):  # who is locked is skipped: a reviewer may find nothing for a moment
            await asyncio.gather(*(review(stores[i], f"{n}") for n, i in enumerate(reviewers)))
        assert len(decided) == len(set(decided)) == sum(items)
        for answer, _ in answers:
            found = await stores[0].answer(TENANT, answer.id)
            assert found is not None
            assert (found.status, found.revision) == (Status.FINAL, 1 + len(answer.items))
        messages = await stores[1].take_messages({"crm": 1000}, LEASE_S)
        assert sorted(message.answer_id for message in messages) == sorted(answer.id for answer, _ in answers)
        assert await stores[0].verify_log() == []

    async def run() -> None:
        with postgres_server.store(tmp_path_factory.mktemp("store")) as (place, _):
            options = StoreOptions(place, undo_s=0.0)
            async with (
                aclosing(await open_store(options, announce=tell)) as one,
                aclosing(await open_store(options, announce=tell)) as other,
            ):
                await work_off((one, other))

    asyncio.run(run())
