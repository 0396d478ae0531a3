"""Canaries that were halted: the last halt of each version of a route, until another takes its place."""

from __future__ import annotations

from sqlalchemy import Connection, select

from gateway.store.bulk import Existing, insert_rows
from gateway.store.contract import CanaryHalt
from gateway.store.schema import CANARY_HALTS


def add(connection: Connection, halt: CanaryHalt) -> None:
    """Keep *halt*, within *connection*'s transaction, in the place of one of the same version."""
    insert_rows(connection, CANARY_HALTS, [(halt.route, halt.version, halt.at_s, halt.why)], Existing.REPLACED)


def read(connection: Connection) -> list[CanaryHalt]:
    """Every halt, by route and version."""
    c = CANARY_HALTS.c
    rows = connection.execute(select(c.route, c.version, c.at_s, c.why).order_by(c.route, c.version))
    return [CanaryHalt(*row) for row in rows]
