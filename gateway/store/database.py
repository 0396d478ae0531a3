"""What the store asks of its database: `gateway.store.sqlite` and `gateway.store.postgres` are the two there are.

**Statements** are the same for both. Where SQLite has one writer at a time, PostgreSQL has many, under READ COMMITTED:
there a statement that decides something has locked the row that it decides by (`FOR UPDATE`), or the name of what has
no row yet (`hold`), or is a single statement that the database checks anew after it has waited. SQLite ignores all
three. Whoever adds a statement asks of it: what if another process commits between this one and the one before?
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import BigInteger, Connection, Engine, bindparam, func, select

from gateway.store.log import Head
from gateway.store.transaction import Identity


class Superseded(Exception):
    """This process has lost its place among the writers: what it held may be another's, and it must enrol anew."""


class SessionLost(Exception):
    """The connection was lost before the transaction had begun: nothing was done, and it can be done on a new one."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What time it is: on the clock of leases, and Unix time; in seconds."""

    now: float
    now_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """What a transaction of the writer begins with.

    Attributes:
        head: where the writer's chain ends; None: where this process last left it.
    """

    clocks: Clocks
    head: Head | None


class Database(Protocol):
    """A database, opened for one writing thread and a few reading ones. Every method blocks.

    Attributes:
        reading: connections that cannot write; each transaction is a snapshot.
        readers: how many threads can read at once.
        measured_every_s: seconds from one look at the size to the next.
    """

    reading: Engine
    readers: int
    measured_every_s: float

    @property
    def writer(self) -> Connection:
        """The writing thread's connection; a new one where the last was lost."""
        ...

    def acquire_slot(self) -> int:
        """The lowest slot that no living process holds; held from now on."""
        ...

    def is_dead(self, slot: int) -> bool:
        """Whether the holder of *slot*, who is another, is dead; asked in a transaction of `writer`.

        Where it is, whoever takes the slot gives leases by it only after that transaction.
        """
        ...

    def take_turn(self, identity: Identity) -> Turn:
        """Begin a transaction of `writer` as *identity*, whose chain nobody else appends to until it ends.

        Raises:
            Superseded: another process has that place by now.
            SessionLost: the server has been away since the last one.
        """
        ...

    def clocks(self, connection: Connection) -> Clocks:
        """What time it is, for a reader."""
        ...

    def used_bytes(self, connection: Connection) -> int:
        """What rows and indexes take; falls with every row deleted."""
        ...

    def size_bytes(self, connection: Connection) -> int:
        """What counts against the operator's limit."""
        ...

    def give_back(self, connection: Connection, pages: int) -> None:
        """Return up to *pages* free pages to the file system, within *connection*'s transaction, where that is ours."""
        ...

    def overwrite(self) -> bool:
        """Have nothing on disk that was deleted, where that is ours, while nobody writes; whether there is nothing."""
        ...

    def shrink_log(self) -> None:
        """Shorten the write-ahead log, where that is ours."""
        ...

    def close(self) -> None:
        """Close every connection and free the slot."""
        ...


def hold(connection: Connection, *name: str) -> None:
    """Wait until no other transaction holds *name*, and hold it until this one ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(_HOLD, {"key": _key(name)})


def try_hold(connection: Connection, *name: str) -> bool:
    """Hold *name* until this transaction ends, unless another does; whether it is held."""
    if connection.dialect.name == "postgresql":
        return bool(connection.execute(_TRY_HOLD, {"key": _key(name)}).scalar_one())
    return True


def _key(name: tuple[str, ...]) -> int:
    """Names share a number with a probability of 2^-64, and then wait for each other, no more."""
    digest = hashlib.sha256("\0".join(("pointsman", *name)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


_HOLD = select(func.pg_advisory_xact_lock(bindparam("key", type_=BigInteger)))
_TRY_HOLD = select(func.pg_try_advisory_xact_lock(bindparam("key", type_=BigInteger)))
