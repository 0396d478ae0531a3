"""Inserting many rows with few statements.

Every statement lets go of Python's global lock and must win it back. Beside a busy event loop that takes up to 5 ms
each time, whatever the statement costs: measured, row by row (`executemany`) reached 163 rows/s where statements of 64
rows reached 7,800. So the writer's statements are few and wide. SQLAlchemy's own multi-row form compiles anew for
every number of rows; here the text for one row is compiled once and its VALUES repeated, in a few sizes that the
driver's statement cache holds on to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

from sqlalchemy import Connection, Dialect, Table

Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[Value, ...]

_CHUNKS = (256, 64, 16, 4, 1)


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row], *, replace: bool = False) -> None:
    """Insert *rows*, whose values are in the order of *table*'s columns; where *replace*, over those with their key."""
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            values = tuple(chain.from_iterable(rows[start : start + size]))
            connection.exec_driver_sql(_statement(table, size, replace, connection.dialect), values)
            start += size


@lru_cache(maxsize=256)
def _statement(table: Table, size: int, replace: bool, dialect: Dialect) -> str:
    """An INSERT of *size* rows, for a dialect whose parameters are positional."""
    head, values, row = str(table.insert().compile(dialect=dialect)).partition("VALUES ")
    statement = head + values + ", ".join([row] * size)
    if not replace:
        return statement
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key)
    others = [column.name for column in table.columns if not column.primary_key]
    if not others:
        return f"{statement} ON CONFLICT ({keys}) DO NOTHING"
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in others)
    return f"{statement} ON CONFLICT ({keys}) DO UPDATE SET {changes}"
