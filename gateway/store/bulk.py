"""Inserting many rows with few statements.

Every statement lets go of Python's global lock and must win it back. Beside a busy event loop that takes up to 5 ms
each time, whatever the statement costs: measured, row by row (`executemany`) reached 163 rows/s where statements of 64
rows reached 7,800. So the writer's statements are few and wide.

**SQLite.** SQLAlchemy's own multi-row form compiles anew for every number of rows; here the text for one row is
compiled once and its VALUES repeated, in a few sizes that the driver's statement cache holds on to.

**PostgreSQL.** One statement for any number of rows, whose parameters are the columns, as arrays
(`gateway.store.arrays`). With VALUES the driver read the text of the statement anew each time, which took more than all
else that a row costs, and the server planned it anew for every pattern of NULLs and of sizes of numbers
(`python -m loadtests.insertions`). A lone one still goes as before: its statement is short, and takes a twentieth less.

Rejected for PostgreSQL, with what the three rows of a decision took: COPY (24 µs, these arrays 28, VALUES 132), as it
knows no ON CONFLICT, and goes around SQLAlchemy, which tells a lost connection from a bad row; the driver's own arrays
(35 in binary form, 94 as text), whose types follow from their values; literals of our own as text (38); `FROM unnest`
of all arrays (32), which has the server write the rows down before it inserts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Dialect, Select, Table, bindparam, select

from gateway.store.arrays import array_of, element_of

Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[Value, ...]

_CHUNKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class Existing(StrEnum):
    """What happens where a row with the same key is there; by default, the insertion fails."""

    KEPT = "DO NOTHING"
    REPLACED = "DO UPDATE SET"


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row], existing: Existing | None = None) -> int:
    """Insert *rows*, whose values are in the order of *table*'s columns; how many were written.

    Where another transaction is inserting the same key, it is waited for: it is there then, or not.
    """
    if len(rows) > 1 and takes_arrays(connection):
        return _insert_columns(connection, table, rows, existing)
    return _insert_values(connection, table, rows, existing)


def found_among(connection: Connection, column: Column[Any], values: Sequence[str]) -> set[str]:
    """Which of *values* are in *column*, which is of texts (Any)."""
    if len(values) > 1 and takes_arrays(connection):
        among = array_of(element_of(column), values)
        return set(connection.exec_driver_sql(_of_array(column), (among,)).scalars())
    return set(connection.execute(_of_list(column), {"values": values}).scalars())


def takes_arrays(connection: Connection) -> bool:
    """Whether the database is given columns as arrays."""
    return connection.dialect.name == "postgresql"


def _insert_values(connection: Connection, table: Table, rows: Sequence[Row], existing: Existing | None) -> int:
    start = written = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            values = tuple(chain.from_iterable(rows[start : start + size]))
            statement = _of_values(table, size, existing, connection.dialect)
            written += connection.exec_driver_sql(statement, values).rowcount
            start += size
    return written


def _insert_columns(connection: Connection, table: Table, rows: Sequence[Row], existing: Existing | None) -> int:
    columns = zip(*rows, strict=True)
    arrays = tuple(array_of(element_of(column), values) for column, values in zip(table.columns, columns, strict=True))
    return connection.exec_driver_sql(_of_columns(table, existing, connection.dialect), arrays).rowcount


@lru_cache(maxsize=256)
def _of_values(table: Table, size: int, existing: Existing | None, dialect: Dialect) -> str:
    """An INSERT of *size* rows, for a dialect whose parameters are positional."""
    head, values, row = str(table.insert().compile(dialect=dialect)).partition("VALUES ")
    return head + values + ", ".join([row] * size) + _on_conflict(table, existing)


@lru_cache(maxsize=256)
def _of_columns(table: Table, existing: Existing | None, dialect: Dialect) -> str:
    """An INSERT of the rows of arrays, which the server walks through together."""
    head, _, _ = str(table.insert().compile(dialect=dialect)).partition("VALUES ")
    columns = ", ".join(f"unnest(%s::{element_of(column).name}[])" for column in table.columns)
    return f"{head}SELECT {columns}{_on_conflict(table, existing)}"


@lru_cache(maxsize=256)
def _of_array(column: Column[Any]) -> str:
    """A SELECT of those values of an array that a column has."""
    name, table = f'"{column.name}"', column.table.name
    return f"SELECT {name} FROM {table} WHERE {name} = ANY(%s::{element_of(column).name}[])"  # noqa: S608 - names of ours


@lru_cache(maxsize=256)
def _of_list(column: Column[Any]) -> Select[Any]:
    """The same of a list."""
    return select(column).where(column.in_(bindparam("values", expanding=True)))


def _on_conflict(table: Table, existing: Existing | None) -> str:
    if existing is None:
        return ""
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key)
    changes = ""
    if existing is Existing.REPLACED:
        changes = ", ".join(f'"{c.name}" = excluded."{c.name}"' for c in table.columns if not c.primary_key)
    return f" ON CONFLICT ({keys}) {existing} {changes}"
