"""The writing thread: units share commits, fail alone, and never hold up the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import aclosing, closing
from dataclasses import replace

import pysqlite3.dbapi2 as sqlite3
import pytest
from sqlalchemy import PoolProxiedConnection, text
from sqlalchemy.exc import OperationalError

from backends.contract import Datatype, SharedMemoryWindow, Tensor
from backends.errors import Code, InvalidInput, Unavailable
from gateway.answer import Answer
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import Fresh, RequestKey
from gateway.store.transaction import Transaction
from tests.unit.gateway.store.samples import TENANT, accepted, deferred

FINGERPRINT = b"x" * 32


def unstorable() -> Answer:
    """An answer whose output is not in host memory."""
    return accepted(outputs={"x": Tensor(Datatype.FP32, (1,), SharedMemoryWindow("region", 0, 4))})


async def test_concurrent_commits_share_transactions(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await asyncio.gather(*(store.commit(*deferred()) for _ in range(200)))
        assert store.statistics().commits <= 20


async def test_an_answer_that_cannot_be_stored_fails_alone(
    options: StoreOptions, caplog: pytest.LogCaptureFixture
) -> None:
    async with aclosing(await open_store(options)) as store:
        good = [deferred() for _ in range(10)]
        commits = [store.commit(answer, tasks) for answer, tasks in good]
        outcomes = await asyncio.gather(store.commit(unstorable(), []), *commits, return_exceptions=True)
        assert isinstance(outcomes[0], InvalidInput)
        assert outcomes[1:] == [None] * 10

        lost, kept = unstorable(), accepted()
        await store.record(lost)
        await store.record(kept)
    assert f"answer {lost.id} was not recorded" in caplog.text
    async with aclosing(await open_store(options)) as store:
        assert await store.answer(TENANT, kept.id) is not None


async def test_a_decision_is_tried_once_more_where_the_store_is_closed_while_writing_fails(
    options: StoreOptions,
) -> None:
    def failing(_: Transaction) -> None:
        store._writer._closing = True
        raise OperationalError("", {}, Exception("the disk is away"))

    kept = accepted()
    store = await open_store(options)
    await store.record(kept)
    with pytest.raises(Unavailable):
        await store._writer.run(failing)
    await store.aclose()
    async with aclosing(await open_store(options)) as again:
        assert await again.answer(TENANT, kept.id) is not None


async def test_a_bug_in_one_unit_fails_it_alone_and_leaves_the_chain_whole(options: StoreOptions) -> None:
    answer, tasks = deferred(items=2)
    wrong = [tasks[0], replace(tasks[1], item=7)]

    def broken(transaction: Transaction) -> None:
        transaction.connection.execute(text("DELETE FROM answers"))
        raise ZeroDivisionError

    async with aclosing(await open_store(options)) as store:
        good, good_tasks = deferred()
        outcomes = await asyncio.gather(
            store.commit(good, good_tasks),
            store.commit(answer, wrong),
            store._writer.run(broken),
            store.commit(*deferred()),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, ZeroDivisionError, type(None)]
        assert str(outcomes[1]) == "tasks are for items [0, 7], open are (0, 1). This is a bug."
        assert await store.answer(TENANT, good.id) is not None
        assert not store._writer.is_failing
        assert await store.verify_log() == []


async def test_a_locked_database_does_not_hold_up_the_loop(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, busy_timeout_s=30.0))) as store:
        loop = asyncio.get_running_loop()
        with closing(sqlite3.connect(options.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(store.commit(*deferred()))
            started = loop.time()
            for _ in range(100):
                await asyncio.sleep(0)
            assert loop.time() - started < 5.0
            assert not waiting.done()
            assert await store.reviews(TENANT) == []
            other.execute("ROLLBACK")
        await asyncio.wait_for(waiting, 30.0)


async def test_a_store_that_closes_while_it_cannot_write_says_what_is_lost(
    options: StoreOptions, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(options)
    with closing(sqlite3.connect(options.path, isolation_level=None)) as other, caplog.at_level(logging.WARNING):
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            await store.record(accepted())
        await asyncio.wait_for(store.aclose(), 30.0)
    assert "claims stay until the store is opened again" in caplog.text
    assert "the store closes with 3 decisions unrecorded" in caplog.text


async def test_what_was_to_be_done_between_is_done_though_the_store_closes_while_it_cannot_write(
    options: StoreOptions,
) -> None:
    store = await open_store(options)
    writer, locking = store._writer, threading.Event()
    with closing(sqlite3.connect(options.path, isolation_level=None, check_same_thread=False)) as other:

        def lock() -> None:
            other.execute("BEGIN IMMEDIATE")
            locking.set()

        await writer.between(lock)
        writing = writer.run(lambda _: None)
        while not writer._in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)
        between = writer.between(lambda: "done")
        closing_ = asyncio.ensure_future(writer.aclose())
        assert await asyncio.wait_for(between, 30.0) == "done"
        with pytest.raises(Unavailable, match="the store cannot write now"):
            await writing
        await asyncio.wait_for(closing_, 30.0)
        other.execute("ROLLBACK")
    with pytest.raises(Unavailable):
        await store._writer.run(lambda _: None)
    await store.aclose()


async def claimed(store: SqlStore, key: RequestKey) -> Fresh:
    """*key*, as soon as it can be had."""
    async with asyncio.timeout(10):
        while not isinstance(claim := await store.claim_key(key, FINGERPRINT), Fresh):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return claim


@pytest.mark.parametrize("how", ["release", "finish"])
async def test_a_key_that_could_not_be_given_back_is_given_back_once_the_store_can_write(
    options: StoreOptions, how: str
) -> None:
    key = RequestKey(TENANT, "r", "k")
    async with aclosing(await open_store(replace(options, busy_timeout_s=0.05))) as store:
        first = await claimed(store, key)
        with closing(sqlite3.connect(options.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ending = (
                store.release_key(key, first.fence)
                if how == "release"
                else store.finish_key(key, first.fence, Code.NOT_FOUND, "there is none")
            )
            with pytest.raises(Unavailable):
                await ending
            other.execute("ROLLBACK")

        assert (await claimed(store, key)).fence != first.fence
        assert await store.verify_log() == []


async def test_a_key_that_was_claimed_by_a_commit_whose_reply_is_lost_is_given_back(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, held = RequestKey(TENANT, "r", "k"), RequestKey(TENANT, "r", "held")
    async with aclosing(await open_store(options)) as store:
        other = await claimed(store, held)
        dialect = store._writer._database.writer.dialect
        commit = dialect.do_commit

        def commit_and_lose_the_reply(connection: PoolProxiedConnection) -> None:
            monkeypatch.undo()
            commit(connection)
            raise sqlite3.OperationalError("the reply is lost")

        monkeypatch.setattr(dialect, "do_commit", commit_and_lose_the_reply)
        with pytest.raises(Unavailable):
            await asyncio.gather(store.claim_key(key, FINGERPRINT), store.claim_key(held, FINGERPRINT))
        with closing(sqlite3.connect(options.path)) as reader:
            assert reader.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (2,)

        await claimed(store, key)
        assert await store.renew_key(held, other.fence)


async def test_its_repr_tells_where_it_is_and_how_full(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        assert repr(store).startswith(f"<SqlStore {options.path}: 0 pending, ")
