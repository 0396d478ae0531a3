"""PostgreSQL as the store's database: how it is reached, who writes, by which clock, how large it is.

**Writers.** Each process takes the lowest free *slot*, by an advisory lock of the session that it writes by. So a slot
is held exactly as long as that session lives, and no process can write that does not hold its own. PostgreSQL gives the
lock back when the session ends, however its process ended. A process that has lost its session (PostgreSQL was
restarted, the network was) takes its slot again in the next one. If another has got it meanwhile, `writers.opening`
tells, and it enrols anew (`Superseded`): the row of `writers` is locked by every transaction that appends to its chain,
and found by slot and opening, so that two writers on one chain are impossible whatever became of the locks.

A slot that is free counts as its holder's death only when it has stayed free for `GRACE_S`: after a restart of
PostgreSQL all are, and those that live need a moment. Whose own session has outlasted that knows that there was no
restart, and waits for `ALONE_S`: a session can end without its process. Every process writes more often than that.

**Leases** run on PostgreSQL's clock, one for all hosts, as does Unix time for what is due and what has expired. That
clock is read once a transaction, before its locks: so a lease is never thought to be over too early.

**Durability.** `synchronous_commit` is at least `on`. PostgreSQL with `fsync` off is used, and warned of.

**Size.** Files of PostgreSQL do not shrink when rows are deleted; their space is used again. So as long as they are
well below the limit their size counts, and from there what is alive in them, as a sample of their pages tells: it falls
with every row deleted, with or without a VACUUM. Rejected: the statistics (a crash empties them, and those of large
values tell no sizes), `pgstattuple` and `pg_freespacemap` (extensions that only an administrator can install), and
counters of our own (one row that everybody writes to).

**What nothing can hang on.** Connecting, statements, waits for locks, and transactions whose process has stopped, all
have limits; a network that swallows packets is noticed within half a minute, and so is a server that has stopped itself
(`ANSWER_S`), which keeps no limits of its own.

Not supported: poolers that give sessions to others between transactions (PgBouncer's `transaction` mode), since
sessions hold the slots.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg
import psycopg.conninfo
from psycopg.abc import RV, Buffer, PQGen
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, Double, Engine, bindparam, create_engine, event, literal_column, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from gateway.store.arrays import Array
from gateway.store.database import Clocks, SessionLost, Superseded, Turn
from gateway.store.log import Head
from gateway.store.options import CannotOpenStore, Postgres, StoreOptions
from gateway.store.schema import METADATA, WRITERS
from gateway.store.transaction import Identity

_LOGGER = logging.getLogger(__name__)

GRACE_S = 10.0
"""Seconds that a slot stays free before its last holder counts as dead; see `gateway.serve` for how often all write."""

ALONE_S = 4.0
"""The same, where only that holder's session has ended."""

_LOOKS_S = 30.0
"""Longest time between two looks at a slot that is taken to have been free in between."""

ANSWER_S = 25.0
"""Seconds that a server may be silent; longer than it may work on a statement."""

_OLDEST = 140_000
_READERS = 2
_MEASURED_EVERY_S = 1.0
_SAMPLED_FROM = 0.65  # of the limit, below which nothing depends on the size
_SAMPLE_PAGES = 500
_ROW_BYTES = 32  # what a row takes beside its columns
_LOCK_NOT_AVAILABLE = "55P03"
_SESSION_ENDED = (
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.DatabaseDropped,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # it was the primary, and another server is now
)

_R = TypeVar("_R")

# What the address does not say.
_CONNECTING = {
    "application_name": "pointsman",
    "connect_timeout": "5",
    "target_session_attrs": "read-write",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
_SESSION = {
    # The server's own watch over clients that have vanished: until it notices, their locks are held.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "15s",
}
_WRITING = _SESSION | {"default_transaction_isolation": "read committed", "statement_timeout": "15s"}
_READING = _SESSION | {
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
    "statement_timeout": "60s",
}
_DURABLY = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"
)


class PostgresDatabase:
    """`gateway.store.database.Database` over a PostgreSQL database."""

    def __init__(self, options: StoreOptions) -> None:
        """Connect.

        Raises:
            CannotOpenStore: it cannot be reached, or is none to keep answers in.
        """
        self.readers = _READERS
        self.measured_every_s = _MEASURED_EVERY_S
        self._options = options
        self._writing = _engine(options, _WRITING, NullPool)
        self.reading = _engine(options, _READING, QueuePool, size=_READERS)
        self._writer: Connection | None = None
        self._holder: _Session | None = None  # which holds the slot
        self._free: dict[int, tuple[float, float]] = {}  # by slot: since when, and when that was seen last
        self._answer_s = math.inf  # migrations may take long
        try:
            with self.writer.begin():
                _check_server(self.writer, options)
                self._space = _space(self.writer)
        except DBAPIError as exc:
            self.close()
            raise cannot_use(options, exc) from exc
        except BaseException:
            self.close()
            raise

    @property
    def writer(self) -> Connection:
        """See `Database.writer`."""
        if self._writer is not None and self._writer.invalidated:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = self._writing.connect()
            _session(self._writer).answer_s = self._answer_s
        return self._writer

    def acquire_slot(self) -> int:
        """See `Database.acquire_slot`."""
        writer, slot = self.writer, 0
        while not writer.execute(_TRY_LOCK, {"space": self._space, "slot": slot}).scalar_one():
            slot += 1
        self._holder = _session(writer)
        self._holder.answer_s = self._answer_s = ANSWER_S
        return slot

    def is_dead(self, slot: int) -> bool:
        """See `Database.is_dead`; the slot is held until the transaction ends."""
        now = time.monotonic()
        if not self.writer.execute(_TRY_LOCK_BRIEFLY, {"space": self._space, "slot": slot}).scalar_one():
            self._free.pop(slot, None)
            return False
        since, seen = self._free.get(slot, (now, now))
        if now - seen > _LOOKS_S:
            since = now
        self._free[slot] = since, now
        may_have_restarted = now - _session(self.writer).since < GRACE_S
        return now - since >= (GRACE_S if may_have_restarted else min(ALONE_S, GRACE_S))

    def take_turn(self, identity: Identity) -> Turn:
        """See `Database.take_turn`."""
        writer, mine = self.writer, {"slot": identity.slot, "opening": identity.opening}
        try:
            if _session(writer) is not self._holder:
                self._take_slot_again(writer, mine)
            row = writer.execute(_TURN, mine).first()
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise SessionLost from exc
            raise
        if row is None:
            raise Superseded
        return Turn(Clocks(row.now, row.now), Head(row.head_seq, row.head_hash))

    def clocks(self, connection: Connection) -> Clocks:
        """See `Database.clocks`."""
        now = connection.execute(select(_NOW)).scalar_one()
        return Clocks(now, now)

    def used_bytes(self, connection: Connection) -> int:
        """See `Database.used_bytes`."""
        return self.size_bytes(connection)

    def size_bytes(self, connection: Connection) -> int:
        """See `Database.size_bytes`."""
        sizes = [_Size(*row) for row in connection.execute(_SIZES, {"names": _TABLES})]
        taken = sum(size.table_bytes + size.index_bytes for size in sizes)
        if taken < _SAMPLED_FROM * self._options.limit_bytes:
            return taken
        return sum(_alive_bytes(connection, size) for size in sizes)

    def give_back(self, connection: Connection, pages: int) -> None:
        """See `Database.give_back`: PostgreSQL's autovacuum does."""

    def shrink_log(self) -> None:
        """See `Database.shrink_log`: PostgreSQL does."""

    def overwrite(self) -> bool:
        """See `Database.overwrite`: dead rows are there until VACUUM, which is the server's, or `VACUUM FULL`."""
        return False

    def close(self) -> None:
        """See `Database.close`."""
        self.reading.dispose()
        if self._writer is not None and not self._writer.invalidated:
            # PostgreSQL would do so too, a moment after; whoever opens the store next need not wait.
            with contextlib.suppress(DBAPIError):
                self._writer.execute(_UNLOCK)
        if self._writer is not None:
            self._writer.close()
        self._writing.dispose()

    def _take_slot_again(self, writer: Connection, mine: dict[str, int]) -> None:
        if writer.execute(_OPENED, mine).first() is None:
            raise Superseded
        try:
            writer.execute(_LOCK, {"space": self._space, "slot": mine["slot"]})
        except DBAPIError as exc:
            if getattr(exc.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise Superseded from exc  # by our last session, which PostgreSQL thinks alive
        self._holder = _session(writer)


def read_beside(options: StoreOptions, query: Callable[[Connection], _R]) -> _R:
    """What *query* finds in a snapshot of the database, which it cannot write to.

    Raises:
        CannotOpenStore: it cannot be reached, or read.
    """
    return _beside(options, _READING, query)


def write_beside(options: StoreOptions, work: Callable[[Connection], _R]) -> _R:
    """What *work* does in one durable transaction: a writer without a slot, which gives no lease and logs no decision.

    Raises:
        CannotOpenStore: the database cannot be reached, or written; nothing was done.
    """
    return _beside(options, _WRITING, work)


def cannot_use(options: StoreOptions, exc: DBAPIError) -> CannotOpenStore:
    """*exc*, told to whoever starts something."""
    told = " ".join(str(exc.orig).split())
    return CannotOpenStore(f"{options.name}: {told}; check that it runs, its address, and what its user may do")


def _beside(options: StoreOptions, settings: Mapping[str, str], work: Callable[[Connection], _R]) -> _R:
    engine = _engine(options, settings, NullPool)
    try:
        with engine.begin() as connection:
            return work(connection)
    except DBAPIError as exc:
        raise cannot_use(options, exc) from exc
    finally:
        engine.dispose()


def _engine(
    options: StoreOptions,
    settings: Mapping[str, str],
    pool: type[NullPool] | type[QueuePool],
    *,
    size: int | None = None,
) -> Engine:
    assert isinstance(options.place, Postgres), f"{options.name} is not on PostgreSQL. This is a bug."
    waiting = {"lock_timeout": f"{max(1, round(1000 * options.busy_timeout_s))}ms"}
    engine = create_engine(
        "postgresql+psycopg://",
        creator=partial(_connect, options.place, {**settings, **waiting}),
        poolclass=pool,
        paramstyle="format",  # `gateway.store.bulk` writes statements whose parameters are positional
        hide_parameters=True,  # they are what callers sent; errors are logged
        use_native_hstore=False,
        **({} if size is None else {"pool_size": size, "max_overflow": 0}),
    )
    event.listen(engine, "handle_error", _on_error)
    return engine


class _ArrayDumper(Dumper):
    """Gives the server an array that is in its form, and is of the type that the statement says."""

    format = Format.BINARY

    def dump(self, obj: Array) -> Buffer:
        """See `psycopg.adapt.Dumper.dump`."""
        return obj


class _Session(psycopg.Connection[tuple[Any, ...]]):  # Any: a row's columns
    """Ends where the server is silent for `answer_s`; there `since` then."""

    answer_s = 70.0  # a reader's, which the server gives 60
    since = math.inf

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:  # Any: how psycopg waits
        """See `psycopg.Connection.wait`, which all that is asked of the server goes through."""
        return super().wait(self._within_limit(gen), *arguments, **options)

    def _within_limit(self, gen: PQGen[RV]) -> PQGen[RV]:
        until = time.monotonic() + self.answer_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has said nothing for {self.answer_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            found: RV = done.value
            return found


def _connect(place: Postgres, settings: Mapping[str, str]) -> _Session:
    try:
        given = psycopg.conninfo.conninfo_to_dict(place.address())
    except psycopg.Error:
        # Its message would repeat the address.
        raise CannotOpenStore(
            f"{place} names no address of PostgreSQL (what it holds is not shown); put one there, as"
            " postgresql://USER:PASSWORD@HOST/DATABASE",
        ) from None
    connection = _Session.connect(**(_CONNECTING | given), autocommit=True)  # type: ignore[arg-type]  # libpq's names
    try:
        names = ", ".join(["set_config(%s, %s, false)"] * len(settings))
        connection.execute(f"SELECT {names}".encode(), [word for setting in settings.items() for word in setting])
        connection.execute(_DURABLY)
        connection.adapters.register_dumper(Array, _ArrayDumper)
        connection.autocommit = False
        connection.since = time.monotonic()
    except BaseException:
        connection.close()
        raise
    return connection


def _on_error(context: ExceptionContext) -> None:
    error = context.original_exception
    if not isinstance(error, psycopg.Error):
        return
    if isinstance(error, _SESSION_ENDED):
        context.is_disconnect = True
    # DETAIL repeats whole rows, which are what callers sent; errors are logged.
    told = error.diag.message_primary
    if told is not None:
        error.args = (told,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(error).__name__}) {told}",)


def _check_server(connection: Connection, options: StoreOptions) -> None:
    found = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,"
            " current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync"
        )
    ).one()
    if found.number < _OLDEST:
        raise CannotOpenStore(f"{options.name}: PostgreSQL {found.version} is too old; use 14 or later")
    if found.encoding != "UTF8":
        raise CannotOpenStore(
            f"{options.name}: its encoding is {found.encoding}, which cannot hold every text; use a database in UTF8"
        )
    if found.fsync != "on":
        _LOGGER.warning("%s: fsync is off, and what is acknowledged can be lost when its host fails", options.name)


def _space(connection: Connection) -> int:
    """A number for this store among those of its database, of which each schema may have one; 32 bits."""
    schema = connection.execute(text("SELECT current_schema()")).scalar_one()
    return zlib.crc32(f"pointsman {schema}".encode()) - 2**31


def _session(connection: Connection) -> _Session:
    session = connection.connection.driver_connection
    assert isinstance(session, _Session)
    return session


class _Size(NamedTuple):
    """How many pages a table's rows are on; what it takes, its large values included; and its indexes."""

    name: str
    pages: int
    table_bytes: int
    index_bytes: int


def _alive_bytes(connection: Connection, size: _Size) -> int:
    """About what the rows of a table take that are there, and their part of its indexes."""
    percent = min(100.0, 100.0 * _SAMPLE_PAGES / max(1, size.pages))
    sampled = connection.exec_driver_sql(
        f"SELECT coalesce(sum({_ROW_SIZES[size.name]}), 0)::bigint"  # noqa: S608 - names of ours
        f" FROM {size.name} TABLESAMPLE SYSTEM ({percent:.6f})"
    ).scalar_one()
    rows = min(size.table_bytes, sampled * 100.0 / percent)
    return int(rows + size.index_bytes * rows / max(1, size.table_bytes))


_TABLES = [table.name for table in METADATA.sorted_tables]
_ROW_SIZES = {
    table.name: f"{_ROW_BYTES} + "
    + " + ".join(f'coalesce(pg_column_size("{column.name}"), 0)' for column in table.columns)
    for table in METADATA.sorted_tables
}
_SIZES = text(
    "SELECT name, (pg_relation_size(oid) / current_setting('block_size')::int)::bigint, pg_table_size(oid),"
    " pg_indexes_size(oid)"
    " FROM (SELECT name, to_regclass(name) AS oid FROM unnest(CAST(:names AS text[])) name) found"
    " WHERE oid IS NOT NULL"
)
_NOW = literal_column("extract(epoch FROM clock_timestamp())::double precision", Double).label("now")
_TURN = (
    select(WRITERS.c.head_seq, WRITERS.c.head_hash, _NOW)
    .where(WRITERS.c.slot == bindparam("slot"), WRITERS.c.opening == bindparam("opening"))
    .with_for_update(key_share=True)
)
_OPENED = select(WRITERS.c.slot).where(WRITERS.c.slot == bindparam("slot"), WRITERS.c.opening == bindparam("opening"))
_UNLOCK = text("SELECT pg_advisory_unlock_all()")
_LOCK = text("SELECT pg_advisory_lock(:space, :slot)")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:space, :slot)")
_TRY_LOCK_BRIEFLY = text("SELECT pg_try_advisory_xact_lock(:space, :slot)")
