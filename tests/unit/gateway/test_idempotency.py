"""One key, one answer: whoever retries, waits, leaves or fails, on a real store."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.contract import NO_DEADLINE, Deadline
from backends.errors import Conflict, InvalidInput, KeyReused, Unavailable
from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.idempotency import Held, Idempotency
from gateway.request import Protocol, RawBody, Request
from gateway.store import SqlStore, StoreOptions, open_store

BODY = b"x" * 32


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(StoreOptions(tmp_path / "store.db"))
    yield store
    await store.aclose()


def request(key: str | None = "k", fingerprint: bytes = BODY) -> Request:
    return Request("r", RawBody(b"x", "text/plain"), Protocol.V1_HTTP, idempotency_key=key, fingerprint=fingerprint)


class Work:
    """Answers, once it is let go; counts how often it ran."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.runs = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, held: Held | None) -> Answer:
        self.runs += 1
        self.started.set()
        await self.go.wait()
        item = ItemAnswer(Status.FINAL, "m", "a", None, 0.9, "model:m", None)
        answer = Answer(new_answer_id(), "default", "r", time.time(), (item,))
        if held is not None:
            await self.store.commit(answer, (), held.key, held.fence)
        return answer


async def test_concurrent_and_later_duplicates_get_the_first_answer(store: SqlStore) -> None:
    once, work = Idempotency(store), Work(store)
    duplicates = [asyncio.create_task(once.run(request(), NO_DEADLINE, work)) for _ in range(20)]
    await work.started.wait()

    work.go.set()
    answers = await asyncio.gather(*duplicates)
    later = await once.run(request(), NO_DEADLINE, work)

    assert {answer.id for answer in (*answers, later)} == {answers[0].id}
    assert work.runs == 1


async def test_without_a_key_every_request_is_its_own(store: SqlStore) -> None:
    once, work = Idempotency(store), Work(store)
    work.go.set()

    answers = [await once.run(request(key=None), NO_DEADLINE, work) for _ in range(2)]

    assert answers[0].id != answers[1].id


async def test_another_body_under_the_key_is_refused_during_the_first_request_and_after(store: SqlStore) -> None:
    once, work = Idempotency(store), Work(store)
    first = asyncio.create_task(once.run(request(), NO_DEADLINE, work))
    await work.started.wait()

    with pytest.raises(KeyReused):
        await once.run(request(fingerprint=b"y" * 32), NO_DEADLINE, work)
    work.go.set()
    await first
    with pytest.raises(KeyReused):
        await once.run(request(fingerprint=b"y" * 32), NO_DEADLINE, work)


async def test_a_duplicate_waits_no_longer_than_its_deadline(store: SqlStore) -> None:
    once, work = Idempotency(store), Work(store)
    first = asyncio.create_task(once.run(request(), NO_DEADLINE, work))
    await work.started.wait()

    with pytest.raises(Conflict, match="still being answered"):
        await once.run(request(), Deadline(time.monotonic() + 0.05), work)

    work.go.set()
    assert (await first).status is Status.FINAL


async def test_a_refusal_is_replayed_and_a_failure_is_not(store: SqlStore) -> None:
    once = Idempotency(store)
    runs = 0

    async def refuse(held: Held | None) -> Answer:
        nonlocal runs
        runs += 1
        raise InvalidInput("input 'x' is missing")

    async def fail(held: Held | None) -> Answer:
        nonlocal runs
        runs += 1
        raise Unavailable("later")

    for _ in range(2):
        with pytest.raises(InvalidInput, match="input 'x' is missing"):
            await once.run(request("refused"), NO_DEADLINE, refuse)
    assert runs == 1
    for _ in range(2):
        with pytest.raises(Unavailable):
            await once.run(request("failed"), NO_DEADLINE, fail)
    assert runs == 3


async def test_whoever_leaves_at_whatever_moment_can_come_back_at_once(store: SqlStore) -> None:
    once, work = Idempotency(store), Work(store)
    work.go.set()
    moments = random.Random(0)

    for number in range(100):
        leaving = asyncio.create_task(once.run(request(f"k{number}"), NO_DEADLINE, work))
        await asyncio.sleep(moments.uniform(0, 0.004))
        leaving.cancel()
        await asyncio.wait({leaving})

    for number in range(100):
        answer = await once.run(request(f"k{number}"), Deadline(time.monotonic() + 5), work)
        assert answer.status is Status.FINAL


async def test_a_long_answer_keeps_its_key(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.idempotency.RENEW_S", 0.01)
    renewed = asyncio.Event()
    renew_key = store.renew_key

    async def noticed(*arguments: object) -> bool:
        renewed.set()
        return await renew_key(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "renew_key", noticed)
    once, work = Idempotency(store), Work(store)
    first = asyncio.create_task(once.run(request(), NO_DEADLINE, work))

    async with asyncio.timeout(10):
        await renewed.wait()

    work.go.set()
    assert (await first).status is Status.FINAL
