"""Rows come back equal from both databases, whatever is in them, and as PostgreSQL's own form of VALUES wrote them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    select,
)
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.pool import StaticPool

from gateway.store import Postgres, StoreOptions, open_store
from gateway.store.arrays import Array, array_of, element_of
from gateway.store.bulk import Existing, Row, _insert_values, found_among, insert_rows
from gateway.store.postgres import PostgresDatabase
from gateway.store.schema import METADATA
from gateway.store.sqlite import find_module
from tests.unit.gateway.store.samples import TENANT, accepted

EVERY_TYPE = Table(
    "every_type",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("big", BigInteger),
    Column("ratio", Double),
    Column("flag", Boolean),
    Column("blob", LargeBinary),
    Column("name", String(32)),
    Column("words", Text),
    CheckConstraint("words <> 'poison'"),
    prefixes=["TEMPORARY"],
)

HOSTILE = (
    "", "NULL", "null", r"\N", r"\.", "\\", "\\\\", '"', "'", "{", "}", "{a,b}", ",", "\t", "\n", "\r\n", "%s", "%",
    "$1", " leading", "trailing ", "\x01\x7f\x85\xa0", "ﬀ\u2028\u2029\ufeff", "\U0010ffff🦉",
    r'{"a": "\\u0000", "b": [null]}',
)  # fmt: skip
texts = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=32)
blobs = st.binary(max_size=40) | st.sampled_from([b"\0", b"\\x00", b"\xff\xfe", b"NULL", b"\\"])
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False).map(lambda one: one + 0.0)
"""Without NaN and the negative zero, which SQLite does not keep."""


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    values = st.tuples(
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | numbers,
        st.none() | st.booleans(),
        st.none() | blobs,
        st.none() | texts,
        st.none() | texts,
    )
    ids = draw(st.lists(st.integers(-(2**31), 2**31 - 1), unique=True, max_size=9))
    return [(one, *draw(values)) for one in ids]


class Colour(StrEnum):
    RED = "red"


@pytest.fixture
def postgres_connection(postgres: Postgres) -> Iterator[Connection]:
    database = PostgresDatabase(StoreOptions(postgres))
    with database.writer.begin() as transaction:
        EVERY_TYPE.create(database.writer)
        yield database.writer
        transaction.rollback()
    database.close()


@pytest.fixture
def sqlite_connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://", module=find_module(), poolclass=StaticPool)
    with engine.begin() as connection:
        EVERY_TYPE.create(connection)
        yield connection
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def connection(request: pytest.FixtureRequest) -> Connection:
    found: Connection = request.getfixturevalue(f"{request.param}_connection")
    return found


def stored(connection: Connection) -> list[tuple[Any, ...]]:  # Any: of the columns' types
    """All rows, numbers to the bit."""
    found = connection.execute(select(EVERY_TYPE).order_by(EVERY_TYPE.c.id)).all()
    return [tuple(struct.pack(">d", one) if isinstance(one, float) else one for one in row) for row in found]


def clear(connection: Connection) -> None:
    connection.execute(EVERY_TYPE.delete())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows())
@example([(i, i, 0.5, True, text.encode(), text[:32], text) for i, text in enumerate(HOSTILE)])
@example([(i, None, None, None, None, None, None) for i in range(300)])
def test_rows_come_back_equal_however_they_were_written(
    postgres_connection: Connection, sqlite_connection: Connection, given_rows: list[Row]
) -> None:
    def as_values(connection: Connection, table: Table, some: list[Row]) -> int:
        return _insert_values(connection, table, some, None)

    found = []
    sides = ((sqlite_connection, insert_rows), (postgres_connection, insert_rows), (postgres_connection, as_values))
    for connection, insert in sides:
        clear(connection)
        assert insert(connection, EVERY_TYPE, given_rows) == len(given_rows)
        found.append(stored(connection))

    wanted = [(*row[:2], None if row[2] is None else struct.pack(">d", row[2]), *row[3:]) for row in sorted(given_rows)]
    assert found == [wanted] * 3


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0, 5e-324, 1.7976931348623157e308])
def test_numbers_reach_postgresql_to_the_bit(postgres_connection: Connection, number: float) -> None:
    insert_rows(postgres_connection, EVERY_TYPE, [(1, None, number, None, None, None, None)])
    assert stored(postgres_connection)[0][2] == struct.pack(">d", number)


def test_a_name_of_a_choice_is_its_text(connection: Connection) -> None:
    rows = [(i, None, None, None, None, name, None) for i, name in enumerate((Colour.RED, "red", None))]
    insert_rows(connection, EVERY_TYPE, rows)
    assert [row[5] for row in stored(connection)] == ["red", "red", None]


def test_large_values_come_back_equal(connection: Connection) -> None:
    blob, text = bytes(range(256)) * 40_000, '\\"{🦉' * 500_000
    insert_rows(connection, EVERY_TYPE, [(1, None, None, None, blob, None, text), (2, *[None] * 6)])
    assert stored(connection)[0] == (1, None, None, None, blob, None, text)


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 1000])
def test_as_many_rows_are_written_as_are_given(connection: Connection, count: int) -> None:
    rows = [(i, i, 0.5, False, b"b", "n", "w") for i in range(count)]
    assert insert_rows(connection, EVERY_TYPE, rows) == count
    assert len(stored(connection)) == count


def test_rows_that_are_there_are_kept_or_replaced(connection: Connection) -> None:
    def named(*names: str) -> list[Row]:
        return [(i, None, None, None, None, name, None) for i, name in enumerate(names)]

    insert_rows(connection, EVERY_TYPE, named("a"))
    assert insert_rows(connection, EVERY_TYPE, named("x", "b"), Existing.KEPT) == 1
    assert [row[5] for row in stored(connection)] == ["a", "b"]
    assert insert_rows(connection, EVERY_TYPE, named("y", "z", "c"), Existing.REPLACED) == 3
    assert [row[5] for row in stored(connection)] == ["y", "z", "c"]


def test_what_is_there_is_found(connection: Connection) -> None:
    insert_rows(connection, EVERY_TYPE, [(i, None, None, None, None, name, None) for i, name in enumerate(HOSTILE)])
    assert found_among(connection, EVERY_TYPE.c.name, [*HOSTILE, "absent"]) == set(HOSTILE)
    assert found_among(connection, EVERY_TYPE.c.name, ["absent"]) == set()
    assert found_among(connection, EVERY_TYPE.c.name, []) == set()


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("words", "poison", IntegrityError),
        ("words", "a\0b", DataError),
        ("name", "n" * 33, DataError),
        ("words", "\udc80", UnicodeEncodeError),
        ("id", 2**31, struct.error),
        ("big", 2**63, struct.error),
    ],
)
def test_what_postgresql_cannot_keep_is_an_error_of_the_statement(
    postgres_connection: Connection, column: str, value: Any, error: type[Exception]
) -> None:
    values = {"id": 1, column: value}
    bad = tuple(values.get(c.name) for c in EVERY_TYPE.columns)
    with pytest.raises(error), postgres_connection.begin_nested():
        insert_rows(postgres_connection, EVERY_TYPE, [(2, *[None] * 6), bad])
    assert stored(postgres_connection) == []


async def test_a_decision_that_cannot_be_kept_is_lost_alone(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    good = [accepted() for _ in range(40)]
    poison = [accepted(tenant="a\0b"), accepted(tenant="\udc80")]
    async with aclosing(await open_store(StoreOptions(postgres))) as store:
        for answer in (*good[:20], *poison, *good[20:]):
            await store.record(answer)
        while store.statistics().pending_writes:
            await store._writer.run(lambda _: None)
        assert [one.id for one in good if await store.answer(TENANT, one.id) is None] == []
        assert await store.verify_log() == []
        assert not store._writer.is_failing
    for answer in poison:
        assert f"answer {answer.id} was not recorded" in caplog.text


def test_one_statement_is_planned_for_rows_of_any_kind_and_number(postgres_connection: Connection) -> None:
    session = postgres_connection.connection.driver_connection
    assert isinstance(session, psycopg.Connection)
    for i in range(40):
        row = (i, i * 10**9, None if i % 2 else 0.5, None, b"b" if i % 3 else None, None, "w" if i % 5 else None)
        more = [(1000 + 10 * i + j, *[None] * 6) for j in range(1 + i % 3)]
        insert_rows(postgres_connection, EVERY_TYPE, [row, *more])
    prepared = postgres_connection.exec_driver_sql("SELECT statement FROM pg_prepared_statements").scalars().all()
    assert sum(statement.startswith("INSERT INTO every_type") for statement in prepared) == 1


def columns() -> Sequence[Column[Any]]:
    return [column for table in METADATA.sorted_tables for column in table.columns]


@pytest.mark.parametrize("column", columns(), ids=str)
def test_every_column_of_the_schema_can_be_an_array(column: Column[Any]) -> None:
    assert isinstance(array_of(element_of(column), [None]), Array)
