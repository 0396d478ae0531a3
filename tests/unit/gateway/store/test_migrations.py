"""The schema is built, taken back, and never guessed at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import aclosing, closing
from dataclasses import replace

import pysqlite3.dbapi2 as sqlite3
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, inspect
from sqlalchemy.exc import IntegrityError

from gateway.answer import Status
from gateway.store import CannotOpenStore, StoreOptions, migrations, open_store
from gateway.store.contract import Erasure, GoldItem
from gateway.store.schema import METADATA
from gateway.store.sqlite import SqliteDatabase
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.quality_conformance import SECONDS, TWO_OF_THREE, hand_over
from tests.unit.gateway.store.samples import TENANT, accepted, assert_same_answer, certificate, deferred, uncertified


@pytest.fixture
def connection(options: StoreOptions) -> Iterator[Connection]:
    database = SqliteDatabase(options)
    with database.writer.begin():
        yield database.writer
    database.close()


def test_migrations_build_what_the_statements_expect(connection: Connection) -> None:
    migrations.upgrade(connection)
    assert migrations.current_revision(connection) == migrations.newest_revision()
    assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    for table in METADATA.sorted_tables:
        found = inspect(connection)
        indexes = {str(index["name"]): index["dialect_options"] for index in found.get_indexes(table.name)}
        expected = {str(index.name) for index in table.indexes}
        assert {name for name in indexes if not name.startswith("sqlite_")} >= expected
        checks = {str(check["name"]): check["sqltext"] for check in found.get_check_constraints(table.name)}
        assert checks == {
            str(constraint.name): str(constraint.sqltext)
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }


def test_upgrading_twice_changes_nothing(connection: Connection) -> None:
    migrations.upgrade(connection)
    migrations.upgrade(connection)
    assert migrations.current_revision(connection) == migrations.newest_revision()


def test_the_schema_can_be_taken_back_and_built_again(connection: Connection) -> None:
    migrations.upgrade(connection)
    migrations.downgrade(connection, "base")
    assert inspect(connection).get_table_names() == ["alembic_version"]
    migrations.upgrade(connection)
    assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


async def test_what_was_kept_survives_opening_again(options: StoreOptions) -> None:
    answer, tasks = deferred()
    async with aclosing(await open_store(options)) as store:
        await store.commit(answer, tasks)
    async with aclosing(await open_store(options)) as store:
        assert_same_answer(await store.answer(TENANT, answer.id), answer)


async def test_a_first_store_is_upgraded_and_taken_back_with_all_it_holds(options: StoreOptions) -> None:
    (answer, tasks), final = deferred(items=2), accepted()
    async with aclosing(await open_store(options)) as store:
        await store.commit(answer, tasks)
        await decide_all(store)
        await store.commit(final, [])
        await store.add_feedback(TENANT, final.id, 0, "dog", "caller")
    downgrade_to(options, "0001")  # statements of today write no first schema
    before = contents(options)
    assert "certificates" not in before

    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
        assert_same_answer(await store.answer(TENANT, final.id), final)
        assert await store.labelled(None, "pets") == []
        assert await store.certificates() == []
        kept, kept_tasks = uncertified()
        await store.commit(kept, kept_tasks)
        await store.add_certificate(certificate())
        assert await store.verify_log() == []
    after = contents(options)
    columns = len(before["reviews"][0])
    first = [without_panel(row)[:columns] for row in after["reviews"]]
    assert set(first) >= set(before["reviews"])
    untouched = [table for table in before if table not in (*BOOKS, "reviews")]
    assert all(set(before[table]) <= set(after[table]) for table in untouched)

    downgrade_to(options, "0001")
    back = contents(options)
    added: tuple[str, ...] = (
        "certificates",
        "certification_looks",
        "outbox",
        "answer_revisions",
        "skill_sets",
        "review_claims",
    )
    added += ("opinions", "gold_items", "secrets", "subjects", "review_notices", "notice_rounds", "canary_halts")
    added += ("inbox_sessions", "leases", "configurations", "alembic_version")
    kept_rows = {table: rows for table, rows in after.items() if table not in (*added, "reviews")}
    assert back == kept_rows | {"alembic_version": [("0001",)], "reviews": first}
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
        assert [item.answer_id for item in await store.labelled(None, "pets")] == [kept.id]
        assert await store.certificates() == []


async def test_what_ended_without_a_decision_is_uncertain_in_an_earlier_schema_and_the_log_stays_whole(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before, tasks), (answer, more) = deferred(items=2), deferred(items=2)
    with monkeypatch.context() as as_before:
        as_before.setattr(migrations, "upgrade", lambda connection: upgrade_to(connection, "0003"))
        async with aclosing(await open_store(options)) as store:
            await store.commit(accepted(), [])  # a record would be in one transaction with leases, which are not there
    async with aclosing(await open_store(options)) as store:
        await store.commit(before, tasks)
        await store.commit(answer, more)
        await store.cancel(TENANT, answer.id, "app")
        assert await store.verify_log() == []
    log = contents(options)["decision_log"]

    downgrade_to(options, "0003")
    back = contents(options)
    assert back["decision_log"] == log
    assert {row[1] for row in back["reviews"]} == {before.id}
    assert {row[2] for row in back["answer_items"]} == {"final", "provisional"}

    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
        assert_same_answer(await store.answer(TENANT, before.id), before)
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert (found.status, found.open_items) == (Status.PROVISIONAL, ())
        await decide_all(store)
        assert await store.verify_log() == []


BOOKS = ("alembic_version", "writers")
"""Tables whose rows change by the mere use of a store."""


def upgrade_to(connection: Connection, revision: str) -> None:
    """Make the schema as the version of Pointsman did that knew up to *revision*."""
    migrations._run(connection, migrations._scripts(), revision, up=True)


def without_panel(row: tuple[object, ...]) -> tuple[object, ...]:
    """A review's *row* as it was before several people could be asked about it."""
    assert row[14:22] == ("decide", None, 1, 1, None, 0, 0, "none")
    return (*row[:14], *row[22:])


async def test_what_checks_people_is_taken_back_and_their_decisions_stay(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
        decided = await hand_over(store, replace(SECONDS, gold=1.0))
        waiting = await hand_over(store, TWO_OF_THREE)
        for reviewer in ("anna", "ben"):
            held = await store.claim_next(TENANT, "pets", reviewer, 60.0)
            assert held is not None
            await store.decide(TENANT, held.id, reviewer, held.fence, "dog")
    downgrade_to(options, "0003")
    assert {row[1] for row in contents(options)["reviews"]} == {decided.id, waiting.id}
    assert {row[0] for row in contents(options)["answers"]} == {decided.id, waiting.id}
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
        assert {review.answer_id for review in await store.reviews(TENANT, state=None)} == {decided.id, waiting.id}


def contents(options: StoreOptions) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, but for the column that a later schema has added."""
    with closing(sqlite3.connect(os.fspath(options.path))) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        found = {}
        for (name,) in tables:
            columns = [f'"{column[1]}"' for column in connection.execute(f"PRAGMA table_info({name})")]
            kept = ", ".join(column for column in columns if column != '"expires_s"' or name != "reviews")
            found[name] = sorted(connection.execute(f"SELECT {kept} FROM {name}").fetchall(), key=repr)
        return found


def downgrade_to(options: StoreOptions, revision: str) -> None:
    """Take the schema of a store back."""
    database = SqliteDatabase(options)
    with database.writer.begin():
        migrations.downgrade(database.writer, revision)
        assert migrations.current_revision(database.writer) == revision
    database.close()


async def test_a_newer_schema_is_refused_and_left_alone(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        pass
    database = SqliteDatabase(options)
    with database.writer.begin():
        database.writer.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()

    with pytest.raises(CannotOpenStore) as refused:
        await open_store(options)

    assert str(refused.value) == (
        f"the store has schema '9999', which a later version of Pointsman made; this one knows up to"
        f" '{migrations.newest_revision()}'. Install that version, or use another store"
    )


def test_a_changed_check_holds_at_once_and_for_who_opens_the_file_next(options: StoreOptions) -> None:
    database = SqliteDatabase(options)
    values = "0, ?, 0.0, 't', 'a', 0, 'r', ?, NULL, NULL, NULL, NULL, '[]', NULL, NULL, x'00'"
    row = f"INSERT INTO decision_log VALUES ({values})"
    with database.writer.begin():
        upgrade_to(database.writer, "0003")
        database.writer.exec_driver_sql("INSERT INTO writers VALUES (0, 1, 0, x'00', 0, x'00')")
        with pytest.raises(IntegrityError, match="decision_log_event"):
            database.writer.exec_driver_sql(row, (1, "escalate"))
        upgrade_to(database.writer, "0004")
        database.writer.exec_driver_sql(row, (1, "escalate"))
    database.close()
    database = SqliteDatabase(options)
    with database.writer.begin():
        database.writer.exec_driver_sql(row, (2, "escalate"))
        with pytest.raises(IntegrityError, match="decision_log_event"):
            database.writer.exec_driver_sql(row, (3, "nonsense"))
        assert database.writer.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    database.close()


async def test_a_store_that_was_erased_from_is_not_taken_back(options: StoreOptions) -> None:
    answer, tasks = deferred()
    async with aclosing(await open_store(options)) as store:
        await store.commit(answer, tasks)
        await store.erase(Erasure(TENANT, "operator:olga", answer_id=answer.id), lambda _: ())
    with pytest.raises(ValueError, match="1 rows about erasures, which an earlier version cannot verify"):
        downgrade_to(options, "0006")
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
