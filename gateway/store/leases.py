"""Who of several gateways on one store does what one of all is to do: whoever holds the lease of it, while it runs.

Whoever is held up for longer than its lease finds out when it renews it; until then two do the work, so that only such
work is given out by leases as two may do.
"""

from __future__ import annotations

from sqlalchemy import delete, or_, select, update

from gateway.store.bulk import Existing, insert_rows
from gateway.store.schema import LEASES
from gateway.store.transaction import Transaction

_C = LEASES.c


def hold(transaction: Transaction, name: str, for_s: float) -> bool:
    """Take the lease *name* for *for_s* seconds, or renew it where half of them are over; whether it is this process's.

    So most of those who ask again and again, as they must, write nothing.
    """
    holder, until_s = transaction.identity.opening, transaction.now_s + for_s
    held = transaction.connection.execute(select(_C.holder, _C.until_s).where(_C.name == name)).first()
    if held is not None and held.until_s > transaction.now_s + (for_s / 2 if held.holder == holder else 0.0):
        return bool(held.holder == holder)
    is_free = or_(_C.holder == holder, _C.until_s <= transaction.now_s)
    taken = update(LEASES).where(_C.name == name, is_free).values(holder=holder, until_s=until_s)
    if transaction.connection.execute(taken).rowcount == 1:
        return True
    return insert_rows(transaction.connection, LEASES, [(name, holder, until_s)], Existing.KEPT) == 1


def release(transaction: Transaction, name: str | None = None) -> None:
    """Give up the lease *name*, or all, where this process holds it."""
    gone = delete(LEASES).where(_C.holder == transaction.identity.opening)
    transaction.connection.execute(gone if name is None else gone.where(_C.name == name))


def left_s(transaction: Transaction, name: str) -> float:
    """For how many seconds somebody holds the lease *name* still."""
    until_s = transaction.connection.execute(select(_C.until_s).where(_C.name == name)).scalar()
    return 0.0 if until_s is None else max(0.0, until_s - transaction.now_s)
