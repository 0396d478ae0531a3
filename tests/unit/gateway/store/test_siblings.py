"""Several processes that answer the same callers from one store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from backends.errors import NotFound
from gateway.answer import new_answer_id, told_s
from gateway.store import StoreOptions, open_store
from gateway.store.store import SqlStore
from tests.unit.gateway.store.samples import TENANT, accepted


@pytest.fixture
async def sibling(options: StoreOptions) -> AsyncIterator[SqlStore]:
    opened = await open_store(options, siblings=True)
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(options: StoreOptions) -> AsyncIterator[SqlStore]:
    opened = await open_store(options, siblings=True)
    yield opened
    await opened.aclose()


async def test_an_answer_is_found_before_the_process_that_told_it_has_committed(
    sibling: SqlStore, other: SqlStore
) -> None:
    for _ in range(5):
        answer = accepted()
        await sibling.record(answer)
        assert await other.answer(TENANT, answer.id) is not None


async def test_feedback_is_taken_before_the_process_that_told_the_answer_has_committed(
    sibling: SqlStore, other: SqlStore
) -> None:
    answer = accepted()
    await sibling.record(answer)

    await other.add_feedback(TENANT, answer.id, 0, "dog", "caller")


async def test_revisions_are_told_before_the_process_that_told_the_answer_has_committed(
    sibling: SqlStore, other: SqlStore
) -> None:
    answer = accepted()
    await sibling.record(answer)

    assert [revision.number for revision in await other.revisions(TENANT, answer.id)] == [1]


async def test_what_nobody_has_told_is_not_looked_for_for_long(sibling: SqlStore) -> None:
    async with asyncio.timeout(30):
        assert await sibling.answer(TENANT, new_answer_id()) is None
        with pytest.raises(NotFound):
            await sibling.add_feedback(TENANT, new_answer_id(), 0, "dog", "caller")


def test_an_id_tells_when_it_was_made() -> None:
    assert told_s(new_answer_id(1234.567)) == pytest.approx(1234.567)
    assert told_s(new_answer_id()) == pytest.approx(time.time(), abs=60)


async def test_a_process_sees_how_large_the_store_has_become_without_writing(
    sibling: SqlStore, other: SqlStore
) -> None:
    before = await other.measure()
    for _ in range(200):
        await sibling.commit(accepted(), ())

    assert await other.measure() > before
    assert other.statistics().size_bytes == await other.measure()
