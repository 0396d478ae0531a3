"""PostgreSQL as the database: how it is reached, whose place is whose, what happens when it is away or in the way."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from backends.errors import Conflict, InvalidInput, Unavailable
from gateway.answer import Status
from gateway.store import (
    CannotOpenStore,
    Postgres,
    Selection,
    SqlStore,
    StoreOptions,
    back_up,
    export_log,
    is_made,
    list_messages,
    migrations,
    open_beside,
    open_store,
    read_answer_log,
    redeliver,
    restore,
    verify_log_of,
)
from gateway.store.contract import Fresh, GoldItem, InProgress, OutboxState, RequestKey, ReviewState, Step
from gateway.store.database import hold
from gateway.store.gold import take_back_overdue
from gateway.store.key import key_place
from gateway.store.migrations import newest_revision
from gateway.store.postgres import PostgresDatabase
from gateway.store.retention import Watermarks
from gateway.store.schema import METADATA
from gateway.store.transaction import Transaction
from router.contract import LabelQuality
from tests.postgres import GUARDED, PostgresServer
from tests.unit.gateway.store.conformance import (
    BODY,
    DAY_S,
    KEY,
    LEASE_S,
    assert_claimed_anew,
    decide_all,
    end_as_a_kill_does,
)
from tests.unit.gateway.store.samples import TENANT, Clock, accepted, certificate, deferred, observed
from tests.unit.gateway.store.test_interleavings import tell
from tests.unit.gateway.store.test_limits import CANARY, confidential

AWAY = "the store cannot write now; nothing was acknowledged, try again"


@pytest.fixture
def postgres(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Postgres]:
    """A database of a test's own, whose tables it may alter."""
    with postgres_server.store(tmp_path) as (place, _):
        yield place


@pytest.fixture
def options(postgres: Postgres) -> StoreOptions:
    return StoreOptions(postgres, busy_timeout_s=0.3)


@pytest.fixture
async def store(options: StoreOptions) -> AsyncIterator[SqlStore]:
    async with aclosing(await open_store(options, announce=tell)) as opened:
        yield opened


@pytest.fixture
def session(postgres: Postgres) -> Iterator[psycopg.Connection[Any]]:  # Any: rows of any shape
    """A session of somebody else's."""
    with psycopg.connect(postgres.address(), autocommit=True) as connection:
        yield connection


def slot_of(store: SqlStore) -> int:
    return store._writer._identity.slot


def end_sessions(session: psycopg.Connection[Any]) -> None:
    """End all others."""
    session.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


# --- how it is reached ---


def refused(options: StoreOptions) -> str:
    """Why the store cannot be opened."""
    with pytest.raises(CannotOpenStore) as why:
        asyncio.run(open_store(options))
    assert "secret" not in "".join(traceback.format_exception(why.value))
    return str(why.value)


def at(address: str, folder: Path) -> StoreOptions:
    """A store at *address*."""
    file = folder / "address"
    file.write_text(address)
    return StoreOptions(Postgres(url_file=file))


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = at("postgresql://anna:secret@127.0.0.1:1/store", tmp_path)
    assert "Connection refused" in (told := refused(options))
    assert told.startswith(f"store on PostgreSQL ({tmp_path / 'address'}): ")
    assert told.endswith("; check that it runs, its address, and what its user may do")


def test_a_wrong_password_is_told_and_not_shown(postgres_server: PostgresServer, tmp_path: Path) -> None:
    postgres_server.execute(f"DROP ROLE IF EXISTS {GUARDED}")
    postgres_server.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD 'right'")
    options = at(f"postgresql://{GUARDED}:secret@/postgres?host={postgres_server.folder}", tmp_path)
    assert f'password authentication failed for user "{GUARDED}"' in refused(options)
    options = at(f"postgresql://{GUARDED}:right@/postgres?host={postgres_server.folder}", tmp_path)
    assert "permission denied for schema public" in refused(options)


def test_a_database_that_is_not_there_is_told(postgres_server: PostgresServer, tmp_path: Path) -> None:
    assert 'database "nowhere" does not exist' in refused(at(postgres_server.address("nowhere"), tmp_path))


@pytest.mark.parametrize("address", ["secret", "postgresql+psycopg://anna:secret@host/store", "host=a secret"])
def test_what_is_no_address_is_not_shown(tmp_path: Path, address: str) -> None:
    assert "names no address of PostgreSQL (what it holds is not shown)" in refused(at(address, tmp_path))


def test_an_address_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    assert refused(StoreOptions(Postgres(url_env="NOWHERE"))).startswith("$NOWHERE is empty; put the store's address")
    assert "the store's address cannot be read: " in refused(StoreOptions(Postgres(url_file=tmp_path / "nowhere")))
    assert "is empty" in refused(at(" \n", tmp_path))


def test_the_address_may_be_in_the_environment(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", postgres.address())
    options = StoreOptions(Postgres(url_env="STORE"), key_file=key_place(StoreOptions(postgres)))

    async def opened() -> str:
        async with aclosing(await open_store(options)) as store:
            return repr(store)

    assert asyncio.run(opened()).startswith("<SqlStore PostgreSQL ($STORE): 0 pending, ")


def test_a_driver_that_is_missing_is_told(options: StoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert refused(options).endswith("needs its extra: pip install 'pointsman[postgres]'")


def test_an_encoding_that_cannot_hold_every_text_is_refused(postgres_server: PostgresServer, tmp_path: Path) -> None:
    postgres_server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    assert "its encoding is LATIN1" in refused(at(postgres_server.address("latin"), tmp_path))


async def test_a_newer_schema_is_refused_and_left_alone(
    options: StoreOptions, session: psycopg.Connection[Any]
) -> None:
    session.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CannotOpenStore, match="has schema '9999', which a later version of Pointsman made"):
        await open_store(options)
    assert session.execute("SELECT count(*) FROM writers").fetchone() == (0,)


def test_a_server_without_fsync_is_warned_of(options: StoreOptions, caplog: pytest.LogCaptureFixture) -> None:
    PostgresDatabase(options).close()
    assert "fsync is off, and what is acknowledged can be lost when its host fails" in caplog.text


def test_commits_are_durable_whatever_the_database_s_default(
    options: StoreOptions, session: psycopg.Connection[Any]
) -> None:
    for default, used in (("off", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")):
        session.execute(f"ALTER ROLE postgres SET synchronous_commit = {default}".encode())
        database = PostgresDatabase(options)
        with database.writer.begin():
            assert database.writer.execute(text("SHOW synchronous_commit")).scalar_one() == used
            assert database.writer.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
        database.close()
    session.execute("ALTER ROLE postgres RESET synchronous_commit")


def test_readers_cannot_write(options: StoreOptions) -> None:
    database = PostgresDatabase(options)
    with database.reading.connect() as connection, pytest.raises(Exception, match="read-only transaction"):
        connection.execute(text("DELETE FROM answers"))
    database.close()


# --- the schema ---


def test_migrations_build_what_the_statements_expect_and_are_taken_back(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with postgres_server.store(tmp_path, empty=True) as (place, _):
        database = PostgresDatabase(StoreOptions(place))
        for _ in range(2):
            with database.writer.begin():
                migrations.upgrade(database.writer)
                assert migrations.current_revision(database.writer) == newest_revision()
                assert compare_metadata(MigrationContext.configure(database.writer), METADATA) == []
            with database.writer.begin():
                migrations.downgrade(database.writer, "base")
                tables = database.writer.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
                assert tables.scalars().all() == ["alembic_version"]
        database.close()


async def test_a_store_is_taken_back_with_all_its_log_tells_and_upgraded_again(
    options: StoreOptions, store: SqlStore
) -> None:
    for _ in range(3):
        await store.commit(*deferred(due_s=1.0))
    await store.escalate({"pets": Step("seniors", 60.0)})
    taken, corrected, cancelled = await store.reviews(TENANT)
    for review in (taken, corrected):
        held = await store.claim(TENANT, review.id, "anna", LEASE_S)
        await store.decide(TENANT, review.id, "anna", held.fence, "cat")
    await store.undo(TENANT, taken.id, "anna", 1)
    await store.correct(TENANT, corrected.id, "anna", "owl")
    await store.cancel(TENANT, cancelled.answer_id, "app")
    await store.aclose()
    database = PostgresDatabase(options)
    for revision in ("0007", "0006", "0005", "0004", "0003", "0002", "0001"):
        with database.writer.begin():
            migrations.downgrade(database.writer, revision)
            events = database.writer.execute(text("SELECT DISTINCT event FROM decision_log")).scalars().all()
            assert set(events) == {"defer", "escalate", "decide", "undo", "correct", "cancel"}
            if revision == "0003":
                with pytest.raises(IntegrityError, match="decision_log_event"), database.writer.begin_nested():
                    database.writer.execute(text("UPDATE decision_log SET event = 'escalate'"))
    database.close()
    async with aclosing(await open_store(options)) as again:
        assert await again.verify_log() == []
        await again.commit(*deferred(due_s=1.0))
        assert len(await again.escalate({"pets": Step("seniors", 60.0)})) > 0


async def test_a_gold_item_that_somebody_is_taking_is_not_taken_back(
    store: SqlStore, session: psycopg.Connection[Any]
) -> None:
    await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
    answer, tasks = deferred(due_s=1.0)
    await store.commit(answer, [replace(task, quality=LabelQuality(gold=1.0)) for task in tasks])
    gold = next(review for review in await store.reviews(TENANT) if review.answer_id != answer.id)
    taken = "state = 'claimed', reviewer = 'anna', fence = 1, owner = 1, lease_until_s = 1e12"
    with session.transaction():
        session.execute(f"UPDATE reviews SET {taken} WHERE id = '{gold.id}'".encode())
        # Whoever waited for that to end would take it from her then.
        await asyncio.wait_for(asyncio.shield(store._writer.run(take_back_overdue)), 5.0)
        await store.remove_gold(TENANT, "pets")
    found = await store.review(TENANT, gold.id)
    assert found is not None
    assert found.reviewer == "anna"


async def test_many_processes_that_open_an_empty_database_at_once_share_it(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with postgres_server.store(tmp_path, empty=True) as (place, _):
        options = StoreOptions(place)
        assert not await asyncio.to_thread(is_made, options)
        stores = await asyncio.gather(*(open_store(options) for _ in range(5)))
        assert await asyncio.to_thread(is_made, options)
        assert sorted(slot_of(store) for store in stores) == [0, 1, 2, 3, 4]
        openings = [store._writer._identity.opening for store in stores]
        assert len(set(openings)) == 5
        for store in stores:
            await store.aclose()


async def test_schemas_of_one_database_are_stores_apart(
    postgres: Postgres, session: psycopg.Connection[Any], tmp_path: Path
) -> None:
    session.execute("CREATE SCHEMA other")
    address = psycopg.conninfo.make_conninfo(postgres.address(), options="-c search_path=other")
    async with (
        aclosing(await open_store(StoreOptions(postgres))) as one,
        aclosing(await open_store(replace(at(address, tmp_path), key_file=key_place(StoreOptions(postgres))))) as other,
    ):
        assert (slot_of(one), slot_of(other)) == (0, 0)
        await one.commit(*deferred())
        assert await other.reviews(TENANT) == []


# --- places among the writers ---


def is_dead(slot: int, seen_from: PostgresDatabase) -> bool:
    """Whether the holder of *slot* is dead."""
    with seen_from.writer.begin():
        return seen_from.is_dead(slot)


def test_each_writer_has_a_slot_of_its_own_and_a_dead_one_s_is_taken_over(options: StoreOptions) -> None:
    first, second, third = (PostgresDatabase(options) for _ in range(3))
    with first.writer.begin(), second.writer.begin():
        assert (first.acquire_slot(), second.acquire_slot()) == (0, 1)
    first.close()
    with third.writer.begin():
        assert third.acquire_slot() == 0
    second.close()
    third.close()


def test_a_free_slot_counts_as_a_death_after_a_while(options: StoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.2)
    living, dying = PostgresDatabase(options), PostgresDatabase(options)

    with living.writer.begin(), dying.writer.begin():
        living.acquire_slot()
        slot = dying.acquire_slot()
    assert not is_dead(slot, living)
    dying.close()
    assert not is_dead(slot, living)
    time.sleep(0.25)
    assert is_dead(slot, living)
    again = PostgresDatabase(options)
    with again.writer.begin():
        assert again.acquire_slot() == slot
    assert not is_dead(slot, living)
    again.close()
    assert not is_dead(slot, living)  # it counts anew
    living.close()


def test_a_slot_counts_as_free_since_it_was_looked_at_again_and_again(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once seen free, as after a restart, and a long while afterwards: its holder has had it in between."""
    monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.2)
    monkeypatch.setattr("gateway.store.postgres._LOOKS_S", 0.3)
    database = PostgresDatabase(options)
    assert not is_dead(7, database)
    time.sleep(0.4)
    assert not is_dead(7, database)
    time.sleep(0.25)
    assert is_dead(7, database)
    database.close()


def test_where_the_server_has_stayed_a_free_slot_counts_as_a_death_earlier(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch, session: psycopg.Connection[Any]
) -> None:
    monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.6)
    monkeypatch.setattr("gateway.store.postgres.ALONE_S", 0.0)
    database = PostgresDatabase(options)
    assert not is_dead(7, database)
    time.sleep(0.65)
    assert is_dead(8, database)
    end_sessions(session)  # of all, as a restart does
    with pytest.raises(DBAPIError):
        is_dead(9, database)
    assert not is_dead(9, database)
    database.close()


async def test_upkeep_reopens_what_a_dead_process_held(options: StoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.0)
    async with aclosing(await open_store(options)) as living:
        dying = await open_store(options)
        await living.commit(*deferred())
        held = await dying.claim_next(TENANT, "pets", "anna", LEASE_S)
        claim = await dying.claim_key(KEY, BODY)
        assert held is not None
        await end_as_a_kill_does(dying)

        assert (await living.maintain()).leases_reopened == 1
        await assert_claimed_anew(living, claim)


async def test_the_keys_of_a_dead_process_wait_for_no_upkeep(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aclosing(await open_store(options)) as living:
        dying = await open_store(options)
        claim = await dying.claim_key(KEY, BODY)
        assert await living.claim_key(KEY, BODY) == InProgress()
        await end_as_a_kill_does(dying)

        assert await living.claim_key(KEY, BODY) == InProgress()  # it may have lost its session alone
        monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.0)
        await assert_claimed_anew(living, claim)


async def test_a_process_that_has_lost_its_session_takes_its_place_again(
    store: SqlStore, session: psycopg.Connection[Any]
) -> None:
    await store.commit(*deferred())
    held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
    assert held is not None
    for _ in range(3):
        end_sessions(session)
        await asyncio.gather(*(store.commit(*deferred()) for _ in range(3)))
    assert slot_of(store) == 0
    assert (await store.decide(TENANT, held.id, "anna", held.fence, "cat")).status is Status.FINAL
    assert len(await store.reviews(TENANT)) == 9
    assert await store.verify_log() == []


async def test_a_process_whose_place_another_has_taken_enrols_anew(
    store: SqlStore, options: StoreOptions, session: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await store.commit(*deferred())
    held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
    assert held is not None
    end_sessions(session)
    async with aclosing(await open_store(options)) as other:
        await asyncio.gather(*(one.commit(*deferred()) for one in (store, other) for _ in range(5)))
        assert (slot_of(other), slot_of(store)) == (0, 1)
        assert "this process was thought dead, and writes as 1 now, not as 0" in caplog.text
        with pytest.raises(Conflict, match="is not held under this claim any more; claim it again"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")
        assert await store.verify_log() == []


async def test_a_process_whose_last_session_lives_on_enrols_anew(
    store: SqlStore, session: psycopg.Connection[Any]
) -> None:
    """The network was gone for the process, and PostgreSQL has not noticed."""
    await store.commit(*deferred())
    space = store._database._space  # type: ignore[attr-defined]  # of PostgreSQL
    end_sessions(session)
    session.execute("SELECT pg_advisory_lock(%s::int, 0)", [space])
    await store.commit(*deferred())
    assert slot_of(store) == 1
    assert await store.verify_log() == []


async def test_nobody_appends_to_a_chain_that_is_another_s(store: SqlStore, session: psycopg.Connection[Any]) -> None:
    """Whatever became of the locks: the row of the chain tells whose it is."""
    await store.commit(accepted(), [])
    session.execute("UPDATE writers SET opening = opening + 1, head_seq = head_seq WHERE slot = 0")
    before = session.execute("SELECT head_seq, head_hash FROM writers WHERE slot = 0").fetchone()
    await store.commit(accepted(), [])
    assert slot_of(store) == 0  # which it holds the lock of, and so may open anew
    assert store._writer._identity.opening == 3
    after = session.execute("SELECT head_seq FROM writers WHERE slot = 0").fetchone()
    assert before is not None
    assert after == (before[0] + 1,)
    assert await store.verify_log() == []


# --- clocks ---


async def test_leases_run_on_the_server_s_clock(store: SqlStore, options: StoreOptions) -> None:
    async with aclosing(await open_store(options, wall_clock=Clock(0.0))) as other:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", 0.3)
        assert held is not None
        assert await other.claim_next(TENANT, "pets", "ben", LEASE_S) is None
        (listed,) = await other.reviews(TENANT, state=ReviewState.CLAIMED)
        assert listed.lease_s is not None
        assert 0.0 < listed.lease_s <= 0.3
        await asyncio.sleep(0.35)
        taken = await other.claim_next(TENANT, "pets", "ben", LEASE_S)
        assert taken is not None
        assert taken.fence == held.fence + 1
        with pytest.raises(Conflict):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")


async def test_what_is_kept_has_the_server_s_time(store: SqlStore, session: psycopg.Connection[Any]) -> None:
    await store.commit(*deferred())
    (review,) = await store.reviews(TENANT)
    row = session.execute("SELECT extract(epoch FROM clock_timestamp())::float").fetchone()
    assert row is not None
    assert 0.0 <= row[0] - review.created_s < 5.0


# --- away, and in the way ---


async def test_a_server_that_is_away_is_503_and_then_everything_goes_on(
    postgres_server: PostgresServer, store: SqlStore
) -> None:
    answer, tasks = deferred()
    await store.commit(answer, tasks)
    held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
    assert held is not None
    recorded = accepted()
    await store.record(recorded)
    await asyncio.to_thread(postgres_server.stop)
    try:
        lost, lost_tasks = deferred()
        with pytest.raises(Unavailable, match=AWAY):
            await store.commit(lost, lost_tasks)
        with pytest.raises(Unavailable, match="the store cannot read now; try again"):
            await store.reviews(TENANT)
        with pytest.raises(Unavailable, match="records no decision"):
            await store.record(accepted())
    finally:
        await asyncio.to_thread(postgres_server.start)
    async with asyncio.timeout(20):
        while store._writer.is_failing:  # noqa: ASYNC110 the thread signals to nobody
            await asyncio.sleep(0.01)
    assert slot_of(store) == 0
    await store.commit(lost, lost_tasks)
    assert (await store.decide(TENANT, held.id, "anna", held.fence, "cat")).id == answer.id
    assert {review.answer_id for review in await store.reviews(TENANT)} == {lost.id}
    async with asyncio.timeout(20):
        while store.statistics().pending_writes:  # noqa: ASYNC110 likewise
            await asyncio.sleep(0.01)
    assert (await store.answer(TENANT, recorded.id)) is not None
    assert await store.verify_log() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
async def test_a_server_that_goes_under_load_loses_nothing_acknowledged(
    postgres_server: PostgresServer, options: StoreOptions, how: signal.Signals
) -> None:
    """A commit that was executed and then timed out is repeated until it is acknowledged, and there once."""
    over = asyncio.Event()
    acknowledged: set[str] = set()

    async def defer(store: SqlStore) -> None:
        while not over.is_set():
            answer, tasks = deferred()
            key = RequestKey(TENANT, "pets", answer.id)
            fence = 0
            while not over.is_set():
                try:
                    if not fence:
                        claim = await store.claim_key(key, BODY)
                        if not isinstance(claim, Fresh):
                            break  # executed, then timed out: its lease must run out first
                        fence = claim.fence
                    await store.commit(answer, tasks, key, fence)
                except Unavailable:
                    await asyncio.sleep(0.02)
                else:
                    acknowledged.add(answer.id)
                    break

    async with aclosing(await open_store(options)) as one, aclosing(await open_store(options)) as other:
        loads = [asyncio.ensure_future(defer(store)) for store in (one, other) for _ in range(4)]
        for _ in range(3):
            before = len(acknowledged)
            async with asyncio.timeout(30):
                while len(acknowledged) < before + 20:  # noqa: ASYNC110 progress has no signal
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres_server.stop, how)
            await asyncio.to_thread(postgres_server.start)
        over.set()
        await asyncio.gather(*loads)
        assert {slot_of(one), slot_of(other)} == {0, 1}
        reviews = await one.reviews(TENANT, limit=100_000)
        assert acknowledged <= {review.answer_id for review in reviews}
        assert len({review.answer_id for review in reviews}) == len(reviews)
        assert await one.verify_log() == []


async def test_a_session_that_says_nothing_any_more_is_left_for_another(
    options: StoreOptions, session: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.postgres.ANSWER_S", 1.0)
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred())
        row = session.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            started = time.monotonic()
            await store.commit(*deferred())
            assert time.monotonic() - started < 20.0
            assert slot_of(store) == 1
            assert len(await store.reviews(TENANT)) == 2
        finally:
            os.kill(row[0], signal.SIGCONT)
        assert await store.verify_log() == []


async def test_a_lock_that_nobody_gives_back_is_503_in_time(store: SqlStore, session: psycopg.Connection[Any]) -> None:
    await store.commit(*deferred())
    (review,) = await store.reviews(TENANT)
    with session.transaction():
        session.execute("SELECT 1 FROM reviews FOR UPDATE")
        started = time.monotonic()
        with pytest.raises(Unavailable, match=AWAY):
            await store.claim(TENANT, review.id, "anna", LEASE_S)
        assert time.monotonic() - started < 5.0
        assert await store.claim_next(TENANT, "pets", "ben", LEASE_S) is None  # which skips it
    assert (await store.claim(TENANT, review.id, "anna", LEASE_S)).reviewer == "anna"


async def test_a_deadlock_is_done_again_and_nobody_is_refused(options: StoreOptions) -> None:
    options = replace(options, busy_timeout_s=10.0)
    met = threading.Barrier(2)
    tries: list[int] = []

    def crossing(me: int, first: str, second: str) -> Callable[[Transaction], None]:
        def work(transaction: Transaction) -> None:
            is_first = me not in tries
            tries.append(me)
            hold(transaction.connection, first)
            if is_first:
                met.wait(10.0)
            hold(transaction.connection, second)

        return work

    async with aclosing(await open_store(options)) as one, aclosing(await open_store(options)) as other:
        await asyncio.gather(
            one._writer.run(crossing(0, "a", "b")), other._writer.run(crossing(1, "b", "a")), one.commit(*deferred())
        )
        assert len(tries) == 3
        assert not one._writer.is_failing
        assert not other._writer.is_failing
        assert await one.verify_log() == []


async def test_a_row_that_the_database_refuses_is_not_told(
    store: SqlStore, session: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    session.execute("ALTER TABLE answer_items ADD CONSTRAINT no CHECK (item > 5)")
    answer, tasks = confidential(100)
    with pytest.raises(IntegrityError, match="violates check constraint") as why:
        await store.commit(answer, tasks)
    await store.record(answer)
    await store._writer.run(lambda _: None)
    assert (caplog.text + "".join(traceback.format_exception(why.value))).count(CANARY) == 0


async def test_a_label_that_postgresql_cannot_hold_is_refused_alone(store: SqlStore) -> None:
    outcomes = await asyncio.gather(
        store.commit(accepted(label="a\0b"), []), store.commit(accepted(), []), return_exceptions=True
    )
    assert isinstance(outcomes[0], InvalidInput)
    assert outcomes[1] is None


# --- size ---


async def test_the_size_falls_with_what_is_purged_without_a_vacuum(
    options: StoreOptions,
    session: psycopg.Connection[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.store.retention.BATCH", 4)
    for table in METADATA.tables:
        session.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
    limit = 4 * 2**20
    async with aclosing(await open_store(replace(options, limit_bytes=limit))) as store:
        marks = Watermarks.of(limit)
        store._watermarks = replace(marks, purge_from=10 * limit)
        while (await store.maintain()).size_bytes < marks.refuse_deferrals:
            answer, tasks = deferred()
            blob = np.random.default_rng(0).bytes(64 * 1024)  # which does not compress
            await store.commit(answer, [replace(task, payload=blob) for task in tasks])
        with pytest.raises(Unavailable, match="takes no new reviews"):
            await store.commit(*deferred())
        await decide_all(store)
        store._watermarks = marks
        with caplog.at_level(logging.WARNING):
            upkeep = await store.maintain()
        assert 0 < upkeep.answers_purged < 60
        assert not upkeep.full
        assert marks.purge_to * 0.5 < upkeep.size_bytes < marks.purge_to
        assert "final answers purged early" in caplog.text
        assert (await store.maintain()).answers_purged == 0  # what is dead in the files is not purged for again
        await store.commit(*deferred())
        assert await store.verify_log() == []


async def test_what_a_sample_tells_is_about_what_is_there(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, retention_s=0.0))) as store:
        await asyncio.gather(*(store.commit(accepted(items=20), []) for _ in range(300)))
        whole = await store._measure(shrink=False)
        store._database._options = replace(options, limit_bytes=1)  # type: ignore[attr-defined]
        sampled = await store._measure(shrink=False)
        assert 0.5 * whole < sampled <= 1.02 * whole
        await store.maintain()
        assert await store._measure(shrink=False) < 0.9 * sampled


async def test_old_log_rows_are_pruned_by_one_process_at_a_time(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.retention.LOG_BATCH", 16)
    wall_clock = Clock(1_700_000_000.0)
    options = replace(options, retention_s=DAY_S)
    async with (
        aclosing(await open_store(options, wall_clock=wall_clock)) as one,
        aclosing(await open_store(options, wall_clock=wall_clock)) as other,
    ):
        for age_days in (3.0, 0.0):
            for store in (one, other):
                answer = accepted(items=50)
                for _ in range(3):
                    old = replace(answer, id=accepted().id, created_s=wall_clock.now - age_days * DAY_S)
                    await store.commit(old, [])
        for store in (one, other):
            store._watermarks = Watermarks.of(limit_bytes=1)
        await asyncio.gather(one.maintain(), other.maintain())
        await asyncio.gather(one.maintain(), other.maintain())
        assert await one.verify_log() == []

    def bases(options: StoreOptions) -> list[int]:
        database = PostgresDatabase(options)
        with database.writer.begin():
            found = database.writer.execute(text("SELECT base_seq FROM writers ORDER BY slot")).scalars().all()
        database.close()
        return list(found)

    assert await asyncio.to_thread(bases, options) == [150, 150]


# --- who does what one of all is to do ---


async def test_one_of_several_leads_until_it_is_gone_or_held_up(options: StoreOptions) -> None:
    clock = Clock(1_700_000_000.0)
    one, other = [await open_store(options, wall_clock=clock) for _ in range(2)]
    async with aclosing(one):
        async with aclosing(other):
            assert [await store.lead(10.0) for store in (one, other, one)] == [True, False, True]
            clock.now += 9.0
            assert [await store.lead(10.0) for store in (one, other)] == [True, False]
            clock.now += 10.5
            assert [await store.lead(10.0) for store in (other, one, other)] == [True, False, True]
        assert await one.lead(10.0)


async def test_of_many_that_ask_at_once_one_leads(options: StoreOptions) -> None:
    stores = [await open_store(options) for _ in range(6)]
    for _ in range(3):
        assert sum(await asyncio.gather(*(store.lead(10.0) for store in stores))) == 1
    for store in stores:
        await store.aclose()


# --- beside ---


async def test_it_is_verified_read_and_certified_from_beside(
    store: SqlStore, options: StoreOptions, session: psycopg.Connection[Any], tmp_path: Path
) -> None:
    answer, tasks = deferred()
    await store.commit(answer, tasks)
    await decide_all(store)
    stands = observed()
    await store.commit(stands, [])
    for _ in range(3):
        verifying = asyncio.ensure_future(verify_log_of(options))
        while not verifying.done():
            await store.commit(accepted(), [])
        assert await verifying == []
    assert [row.event for row in await read_answer_log(options, answer.id)] == ["defer", "decide"]
    with (tmp_path / "rows").open("w+b") as out:
        assert await export_log(options, Selection(), out) > 3
    (message,) = await list_messages(options, None, 10)
    await store.end_message(message.message.id, OutboxState.DEAD, "410")
    assert await redeliver(options, None) == 1
    assert [one.message.id for one in await store.take_messages({"crm": 1}, 1.0)] == [message.message.id]
    async with open_beside(options) as beside:
        assert [item.answer_id for item in await beside.labelled(None, "pets")] == [stands.id]
        await beside.add_certificate(certificate())
        assert await beside.add_look("pets", "subject", "labels") == 1
    assert await store.certificates("pets") == [certificate()]
    session.execute("UPDATE decision_log SET label = 'owl' WHERE seq = 1")
    assert await verify_log_of(options) == ["chain 0: row 1 was altered, or the one before it"]


async def test_looks_from_beside_are_counted_one_by_one(store: SqlStore, options: StoreOptions) -> None:
    async with open_beside(options) as beside:
        looks = await asyncio.gather(*(beside.add_look("pets", "subject", f"labels {i}") for i in range(8)))
    assert sorted(looks) == list(range(1, 9))


async def test_what_is_no_store_is_told_from_beside(postgres_server: PostgresServer, tmp_path: Path) -> None:
    told = "is a database, and no store of Pointsman; check where it is"
    with postgres_server.store(tmp_path, empty=True) as (place, _), pytest.raises(CannotOpenStore, match=told):
        await verify_log_of(StoreOptions(place))


async def test_an_altered_certificate_is_left_out(
    store: SqlStore, session: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = certificate(created_s=1.0), certificate(created_s=2.0)
    for one in (good, bad):
        await store.add_certificate(one)
    session.execute("UPDATE certificates SET max_error = 0.5 WHERE id = %s", [bad.id])
    assert await store.certificates() == [good]
    assert "was altered in the store, and is not used" in caplog.text


def test_backups_are_postgresql_s_business(options: StoreOptions, tmp_path: Path) -> None:
    with pytest.raises(CannotOpenStore, match=f"pg_dump --format=custom --file={tmp_path / 'b'} DATABASE"):
        back_up(options, tmp_path / "b")
    with pytest.raises(CannotOpenStore, match="while no gateway runs: pg_restore --clean --if-exists"):
        restore(options, tmp_path / "b")
