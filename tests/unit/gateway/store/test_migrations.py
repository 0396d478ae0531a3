"""The schema is built, taken back, and never guessed at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import aclosing, closing

import pysqlite3.dbapi2 as sqlite3
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gateway.store import CannotOpenStore, StoreOptions, migrations, open_store
from gateway.store.schema import METADATA
from gateway.store.sqlite import SqliteDatabase
from tests.unit.gateway.store.conformance import decide_all
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
        checks = {(check["name"], check["sqltext"]) for check in found.get_check_constraints(table.name)}
        assert {name for name, _ in checks} == {
            str(constraint.name) for constraint in table.constraints if type(constraint).__name__ == "CheckConstraint"
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


async def test_a_first_store_is_upgraded_and_taken_back_with_all_it_holds(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answer, tasks), final = deferred(items=2), accepted()
    with monkeypatch.context() as as_before:
        as_before.setattr(migrations, "upgrade", lambda connection: upgrade_to(connection, "0001"))
        async with aclosing(await open_store(options)) as store:
            await store.commit(answer, tasks)
            await decide_all(store)
            await store.commit(final, [])
            await store.add_feedback(TENANT, final.id, 0, "dog", "caller")
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
    assert all(set(rows) <= set(after[table]) for table, rows in before.items() if table not in BOOKS)

    database = SqliteDatabase(options)
    with database.writer.begin():
        migrations.downgrade(database.writer, "0001")
    database.close()
    back = contents(options)
    assert back == {
        table: rows
        for table, rows in after.items()
        if table not in ("certificates", "certification_looks", "alembic_version")
    } | {"alembic_version": [("0001",)]}
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
        assert [item.answer_id for item in await store.labelled(None, "pets")] == [kept.id]
        assert await store.certificates() == []


BOOKS = ("alembic_version", "writers")
"""Tables whose rows change by the mere use of a store."""


def upgrade_to(connection: Connection, revision: str) -> None:
    """Make the schema as the version of Pointsman did that knew up to *revision*."""
    migrations._run(connection, migrations._scripts(), revision, up=True)


def contents(options: StoreOptions) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(os.fspath(options.path))) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for (name,) in tables}


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
        f" '{migrations.newest_revision()}'. Install that version, or use another store file"
    )
