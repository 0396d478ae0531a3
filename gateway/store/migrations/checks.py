"""CHECKs that become others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def change_check(table: str, name: str, before: str, after: str, *, rows_hold: bool) -> None:
    """Let the CHECK *name* of *table*, whose condition is *before*, allow what *after* does, from now on.

    SQLite has no statement for this; copying the table would be one, and of a decision log takes minutes and as much
    disk again. So its text in the schema is changed, as SQLite documents for changes that rows know nothing of
    (https://www.sqlite.org/lang_altertable.html, 7). There, rows are not looked at.

    Args:
        rows_hold: all rows are as *after* says. A log that an earlier version is to go on with has others, and keeps
            them.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, after, postgresql_not_valid=not rows_hold)
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after)"
            " WHERE type = 'table' AND name = :table AND instr(sql, :before)"
        ),
        {
            "table": table,
            "before": f"CONSTRAINT {name} CHECK ({before})",
            "after": f"CONSTRAINT {name} CHECK ({after})",
        },
    )
    assert changed.rowcount == 1, f"table {table} has no CHECK {name} of that condition. This is a bug."
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=RESET")
