"""A store that is full, locked or out of disk refuses, acknowledges nothing, and recovers."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import traceback
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace

import numpy as np
import pysqlite3.dbapi2 as sqlite3
import pytest
from sqlalchemy.exc import IntegrityError

from backends.contract import Tensor
from backends.errors import Unavailable
from gateway.answer import Answer, AnswerId
from gateway.store import CannotOpenStore, SqlStore, StoreOptions, open_store
from gateway.store.contract import Fresh, RequestKey, ReviewState, ReviewTask
from gateway.store.retention import Watermarks
from tests.unit.gateway.store.conformance import BODY, DAY_S, KEY, decide_all
from tests.unit.gateway.store.samples import TENANT, Clock, accepted, assert_same_answer, deferred, seen

LIMIT = 2 * 2**20
CANARY = "canary-4711"


@contextmanager
def locked(options: StoreOptions) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def disk_full(options: StoreOptions) -> Iterator[None]:
    """No file of this process can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def fill_with_reviews(store: SqlStore, up_to: int) -> None:
    """Defer items with payloads of 64 KiB until the store is larger than *up_to* bytes."""
    while (await store.maintain()).size_bytes < up_to:
        answer, tasks = deferred()
        await store.commit(answer, [replace(task, payload=bytes(64 * 1024)) for task in tasks])


async def test_a_store_that_is_locked_is_not_opened(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        pass
    with (
        locked(options),
        pytest.raises(CannotOpenStore, match="database is locked; free or restore it, or use another"),
    ):
        await open_store(options)
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []


async def test_what_cannot_be_read_is_unavailable(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("ALTER TABLE answers RENAME TO elsewhere")
            with pytest.raises(Unavailable, match="the store cannot read now; try again"):
                await store.answer(TENANT, accepted().id)
            other.execute("ALTER TABLE elsewhere RENAME TO answers")
        assert await store.answer(TENANT, accepted().id) is None


@pytest.mark.parametrize("broken", [locked, disk_full])
async def test_what_cannot_be_written_is_refused_until_it_can(options: StoreOptions, broken: type) -> None:
    (lost, lost_tasks), (kept, tasks), recorded = deferred(), deferred(), accepted()
    async with aclosing(await open_store(options)) as store:
        with broken(options):
            for _ in range(3):
                with pytest.raises(
                    Unavailable, match="the store cannot write now; nothing was acknowledged, try again"
                ):
                    await store.commit(lost, lost_tasks)
            with pytest.raises(Unavailable, match="the store cannot write now, and records no decision; try again"):
                await store.record(recorded)
            assert await store.answer(TENANT, lost.id) is None
        await store.commit(kept, tasks)
        await store.record(recorded)
        assert [review.answer_id for review in await store.reviews(TENANT)] == [kept.id]
    async with aclosing(await open_store(options)) as store:
        assert_same_answer(await store.answer(TENANT, recorded.id), recorded)
        assert await store.answer(TENANT, lost.id) is None
        assert await store.verify_log() == []


def confidential(payload_bytes: int) -> tuple[Answer, list[ReviewTask]]:
    """A deferral that holds the canary wherever its caller can put something."""
    answer, tasks = deferred()
    outputs = {"text": Tensor.of(np.array([[CANARY.encode()]], object))}
    item = replace(answer.items[0], label=CANARY, outputs=outputs)
    payload = CANARY.encode() * (payload_bytes // len(CANARY))
    return replace(answer, items=(item,)), [replace(tasks[0], labels=(CANARY,), payload=payload)]


@pytest.mark.parametrize("payload_bytes", [100, 8 * 2**20], ids=["at COMMIT", "when SQLite's cache spills"])
async def test_a_log_that_tells_of_a_full_disk_tells_nothing_of_what_was_written(
    options: StoreOptions, caplog: pytest.LogCaptureFixture, payload_bytes: int
) -> None:
    store, key = await open_store(options), RequestKey(TENANT, "pets", CANARY)
    claim = await store.claim_key(key, BODY)
    assert isinstance(claim, Fresh)
    with disk_full(options):
        with pytest.raises(Unavailable) as refused:
            await store.commit(*confidential(payload_bytes), key, claim.fence)
        with pytest.raises(Unavailable):
            await store.renew_key(key, claim.fence)
        await store.aclose()
    assert re.search("the store cannot write, and refuses until it can: .*(disk I/O error|disk is full)", caplog.text)
    assert told_by(caplog, refused.value).count(CANARY) == 0


async def test_decisions_that_closing_loses_are_counted_and_not_told(
    options: StoreOptions, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(options)
    with disk_full(options):
        await store.record(replace(confidential(0)[0], items=confidential(0)[0].items * 2000))
        await store.aclose()
    assert "the store closes with 1 decisions unrecorded" in caplog.text
    assert caplog.text.count(CANARY) == 0


async def test_a_row_that_the_database_refuses_is_not_told(
    options: StoreOptions, caplog: pytest.LogCaptureFixture
) -> None:
    async with aclosing(await open_store(options)) as store:
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("CREATE TRIGGER t BEFORE INSERT ON answer_items BEGIN SELECT RAISE(ABORT, 'no'); END")
        answer, tasks = confidential(100)
        with pytest.raises(IntegrityError) as refused:
            await store.commit(answer, tasks)
        await store.record(answer)
    assert f"answer {answer.id} was not recorded" in caplog.text
    assert told_by(caplog, refused.value).count(CANARY) == 0


async def test_a_log_that_tells_of_a_failed_read_tells_nothing_of_what_was_asked_for(
    options: StoreOptions, caplog: pytest.LogCaptureFixture
) -> None:
    async with aclosing(await open_store(options)) as store:
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("ALTER TABLE answers RENAME TO elsewhere")
            with pytest.raises(Unavailable) as refused:
                await store.answer(TENANT, AnswerId(CANARY))
            other.execute("ALTER TABLE elsewhere RENAME TO answers")
    assert "the store cannot read" in caplog.text
    assert told_by(caplog, refused.value).count(CANARY) == 0


def told_by(caplog: pytest.LogCaptureFixture, error: BaseException) -> str:
    """What the log says, and would say if *error* were logged with all that led to it."""
    return caplog.text + "".join(traceback.format_exception(error))


async def test_what_was_recorded_before_the_disk_filled_is_kept_and_written_later(options: StoreOptions) -> None:
    answers = [accepted() for _ in range(50)]
    async with aclosing(await open_store(options)) as store:
        with disk_full(options):
            for answer in answers:
                await store.record(answer)
            with pytest.raises(Unavailable):
                await store.commit(*deferred())
            assert store.statistics().pending_writes == 50
            assert_same_answer(await store.answer(TENANT, answers[0].id), answers[0])
    async with aclosing(await open_store(options)) as store:
        for answer in answers:
            assert_same_answer(await store.answer(TENANT, answer.id), answer)
        assert await store.verify_log() == []


async def test_the_store_finds_out_by_itself_that_it_can_write_again(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        with locked(options), pytest.raises(Unavailable):
            await store.commit(*deferred())
        async with asyncio.timeout(10):
            while store._writer.is_failing:  # noqa: ASYNC110 the thread signals to nobody
                await asyncio.sleep(0.01)
        await store.record(accepted())


async def test_too_many_recorded_answers_make_the_next_wait(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.store._QUEUE_RECORDS", 10)
    async with aclosing(await open_store(replace(options, busy_timeout_s=30.0))) as store:
        with locked(options):
            for _ in range(10):
                await store.record(accepted())
            waiting = asyncio.ensure_future(store.record(accepted()))
            await asyncio.sleep(0)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 10.0)


async def test_inputs_that_are_digested_already_take_no_room_among_what_is_recorded(options: StoreOptions) -> None:
    large = seen(accepted(), bytes(2**20))
    async with aclosing(await open_store(replace(options, busy_timeout_s=30.0))) as store:
        with locked(options):
            await store.record(large)
            assert 0 < store._queued_bytes < 2**19
        await store.commit(*deferred())
        assert store._queued_bytes == 0


async def test_near_the_limit_deferrals_are_refused_and_at_it_everything_new(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, limit_bytes=LIMIT))) as store:
        marks = Watermarks.of(LIMIT)
        await fill_with_reviews(store, marks.refuse_deferrals)
        assert store.statistics().full
        with pytest.raises(
            Unavailable, match=r"the store is at 9\d% of its limit and takes no new reviews; decide open ones"
        ):
            await store.commit(*deferred())
        filler = accepted()
        filler = replace(filler, items=(replace(filler.items[0], label="x" * 65536),))
        while (await store.maintain()).size_bytes < LIMIT:
            await store.commit(replace(filler, id=accepted().id), [])
            # Reviews that wait are what fills it: nothing can be purged.
            store._watermarks = replace(marks, purge_from=10 * LIMIT)
        for refused in (
            store.record(accepted()),
            store.commit(accepted(), []),
            store.claim_key(KEY, BODY),
            store.add_feedback(TENANT, filler.id, 0, "cat", "caller"),
        ):
            with pytest.raises(
                Unavailable, match="a decision that cannot be recorded is not made; shorten the retention"
            ):
                await refused


async def test_decisions_make_room_again(options: StoreOptions, caplog: pytest.LogCaptureFixture) -> None:
    async with aclosing(await open_store(replace(options, limit_bytes=LIMIT))) as store:
        await fill_with_reviews(store, Watermarks.of(LIMIT).refuse_deferrals)
        await decide_all(store)
        with caplog.at_level(logging.WARNING):
            upkeep = await store.maintain()
        assert upkeep.answers_purged > 0
        assert not upkeep.full
        assert upkeep.size_bytes < Watermarks.of(LIMIT).purge_to
        assert "final answers purged early" in caplog.text
        await store.commit(*deferred())
        assert await store.verify_log() == []


async def test_the_oldest_answers_go_first_and_open_ones_stay(options: StoreOptions, wall_clock: Clock) -> None:
    open_, tasks = deferred()
    async with aclosing(await open_store(replace(options, limit_bytes=LIMIT), wall_clock=wall_clock)) as store:
        await store.commit(open_, tasks)
        answers = []
        while (await store._measure(shrink=True)) < Watermarks.of(LIMIT).purge_from:
            wall_clock.now += 1.0
            answer = accepted(items=30)
            item = replace(answer.items[0], label="x" * 500)
            answers.append(replace(answer, items=(item,) * 30))
            await store.commit(answers[-1], [])
        upkeep = await store.maintain()
        left = [await store.answer(TENANT, answer.id) is not None for answer in answers]
        assert 0 < upkeep.answers_purged == left.count(False)
        assert left == sorted(left)
        assert await store.answer(TENANT, open_.id) is not None


async def test_old_log_rows_go_when_space_is_needed_and_young_ones_never(
    options: StoreOptions, wall_clock: Clock
) -> None:
    options = replace(options, retention_s=DAY_S)
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        for age_days in (3.0, 0.0):
            for _ in range(40):
                answer = accepted(items=50)
                await store.commit(replace(answer, created_s=wall_clock.now - age_days * DAY_S), [])
        store._watermarks = Watermarks.of(limit_bytes=1)
        await store.maintain()
        assert await store.verify_log() == []
    with closing(sqlite3.connect(os.fspath(options.path))) as connection:
        rows = connection.execute("SELECT count(*), min(seq), min(at_s) FROM decision_log").fetchone()
    assert rows == (2000, 2001, wall_clock.now)


async def test_a_long_reader_does_not_make_upkeep_purge_more_than_it_must(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, limit_bytes=16 * LIMIT))) as store:
        for _ in range(40):
            await asyncio.gather(*(store.commit(accepted(items=10), []) for _ in range(16)))
        used = await store._measure(shrink=True)
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM answers").fetchone()
            store._watermarks = Watermarks(int(used * 0.7), int(used * 0.8), LIMIT * 16, LIMIT * 16)
            upkeep = await store.maintain()
        assert 0 < upkeep.answers_purged < 640


async def test_free_pages_return_to_the_file_system(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, retention_s=0.0))) as store:
        for _ in range(20):
            answer, tasks = deferred()
            await store.commit(answer, [replace(task, payload=bytes(64 * 1024)) for task in tasks])
        await decide_all(store)
        await store._measure(shrink=True)
        before = options.path.stat().st_size
        await store.maintain()
        await store._measure(shrink=True)
        assert options.path.stat().st_size < before / 2
        assert await store.reviews(TENANT, state=ReviewState.DECIDED) == []
