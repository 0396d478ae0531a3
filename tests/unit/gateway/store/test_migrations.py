"""The schema is built, taken back, and never guessed at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gateway.store import CannotOpenStore, StoreOptions, migrations, open_store
from gateway.store.schema import METADATA
from gateway.store.sqlite import SqliteDatabase
from tests.unit.gateway.store.samples import TENANT, assert_same_answer, deferred


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
