"""Who holds what: a process's place among the store's writers, and the leases of those that have died.

`gateway.store.sqlite` and `gateway.store.postgres` tell which writers live. Leases of a dead one are worth nothing: its
reviews are open again, its keys can be claimed again, and the fences under which it held them are never given out anew.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select, update

from gateway.store import keys, reviews
from gateway.store.database import Database, hold
from gateway.store.log import GENESIS
from gateway.store.schema import WRITERS
from gateway.store.transaction import Identity


def enrol(database: Database, connection: Connection) -> Identity:
    """Take a place among the writers, and reopen what its former holder and other dead ones held."""
    hold(connection, "enrol")  # openings are counted
    slot = database.acquire_slot()
    opening = (connection.execute(select(func.max(WRITERS.c.opening))).scalar() or 0) + 1
    mine = WRITERS.c.slot == slot
    if connection.execute(update(WRITERS).where(mine).values(opening=opening)).rowcount == 0:
        chain = {"head_seq": 0, "head_hash": GENESIS, "base_seq": 0, "base_hash": GENESIS}
        connection.execute(insert(WRITERS).values(slot=slot, opening=opening, **chain))
    reopen_of(connection, slot)
    reopen_of_dead(database, connection, slot)
    return Identity(slot, opening)


def reopen_of(connection: Connection, slot: int) -> int:
    """Reopen the reviews and keys that writer *slot* holds; how many reviews there were."""
    keys.reopen_of(connection, slot)
    return reviews.reopen_of(connection, slot)


def reopen_of_dead(database: Database, connection: Connection, mine: int) -> int:
    """Reopen the reviews and keys of every writer but *mine* that is dead; how many reviews there were."""
    reopened = 0
    for slot in connection.execute(select(WRITERS.c.slot).where(WRITERS.c.slot != mine)).scalars().all():
        if database.is_dead(slot):
            reopened += reopen_of(connection, slot)
    return reopened
