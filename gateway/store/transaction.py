"""What a unit of work sees of the group it is committed with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from gateway.store import log
from gateway.store.log import Head, LogEntry

_STATEMENTS_FAULT = (IntegrityError, DataError, ProgrammingError, InterfaceError)


_PASSING = ("40001", "40P01")  # SQLSTATE of serialization failures and deadlocks


def is_database_s_fault(exc: BaseException) -> bool:
    """Whether *exc* is neither the statement's fault nor its values': the whole transaction has failed."""
    if not isinstance(exc, DBAPIError):
        return False
    return exc.connection_invalidated or not isinstance(exc, _STATEMENTS_FAULT)


def is_passing(exc: DBAPIError) -> bool:
    """Whether another transaction was in the way, and this one can simply be done again."""
    return getattr(exc.orig, "sqlstate", None) in _PASSING


@dataclass(slots=True)
class Identity:
    """Who writes: one opening of the store by one process.

    Attributes:
        slot: the writer's; names its chain and the leases it gives.
        opening: no other opening of this store, ever, has the same.
    """

    slot: int
    opening: int
    _fences: Iterator[int] = field(default_factory=itertools.count)

    def next_fence(self) -> int:
        """A number that no other claim of this store has ever had."""
        return self.opening << 32 | next(self._fences)


@dataclass(slots=True)
class Transaction:
    """A transaction of the writer.

    Attributes:
        now: on the clock of leases, in seconds.
        now_s: Unix time, in seconds.
        head: where the writer's chain ends, this transaction's rows included.
        keys_s: seconds that idempotency keys are kept, once nothing about their answer is open.
        is_dead: whether a writer is, by its slot; asked of others only.
    """

    connection: Connection
    identity: Identity
    now: float
    now_s: float
    head: Head
    keys_s: float
    is_dead: Callable[[int], bool]

    @property
    def key_ends_s(self) -> float:
        """When a key is forgotten whose answer is final now, as Unix time in seconds."""
        return self.now_s + self.keys_s

    def has_lost(self, owner: int) -> bool:
        """Whether nothing comes of what writer *owner* has begun: it is another, and dead."""
        return owner != self.identity.slot and self.is_dead(owner)

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Append *entries* to the decision log."""
        self.head = log.append(self.connection, self.identity.slot, self.head, entries)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What is done inside is undone, the log included, where it raises; where the database failed, all is lost."""
        # Not SQLAlchemy's: it gives each a name of its own, and so makes the driver compile each anew. Of nested ones
        # with the same name the innermost is meant.
        head = self.head
        self.connection.exec_driver_sql("SAVEPOINT unit")
        try:
            yield
        except BaseException as exc:
            self.head = head
            # On a full disk SQLite has already undone the transaction, savepoints and all: a statement about one would
            # fail, and hide why.
            if not is_database_s_fault(exc):
                self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT unit")
                self.connection.exec_driver_sql("RELEASE SAVEPOINT unit")
            raise
        self.connection.exec_driver_sql("RELEASE SAVEPOINT unit")
