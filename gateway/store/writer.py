"""One thread that writes: units of work queue to it and share transactions.

**Group commit.** A commit costs a disk flush, whatever it holds. So whatever has queued while the last flush ran goes
into the next transaction, up to 64 units. When the last group was of n units, the next waits for as many, at most 2 ms:
callers answered together come back together. A lone caller never waits.

**Units** are functions that take a list of arguments and return a list of outcomes: those of a group that share their
function are applied together, with a constant number of statements. Each function runs inside a savepoint. Where it
raises, its units are tried again one by one, so that a bad one fails alone. Futures are resolved after COMMIT, and a
failed COMMIT fails the whole group.

**Records** are what nobody waits for. They are written with the units of a group (at most 64, which delay these by a
few milliseconds), or alone after 20 ms or 256 of them, and kept until a commit that holds them has succeeded. While
writing fails it is tried anew every 250 ms, so that the store recovers by itself.

Rejected: a process for writing (the loop's process would still have to serialise and hand over every answer), one
thread a connection (SQLite has one writer anyway).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from backends.contract import record
from backends.errors import PointsmanError, Unavailable
from gateway.store import log
from gateway.store.answers import Commit, commit_answers
from gateway.store.log import Head
from gateway.store.sqlite import SqliteDatabase
from gateway.store.transaction import Identity, Transaction, is_database_s_fault

_LOGGER = logging.getLogger(__name__)

_GROUP_UNITS = 64
_GATHER_S = 0.002
_GROUP_RECORDS = 256
_RECORDS_BESIDE_UNITS = 64
_LINGER_S = 0.020
_RETRY_S = 0.250
_MEASURE_S = 0.100

_A = TypeVar("_A")
_R = TypeVar("_R")

Bulk: TypeAlias = Callable[[Transaction, Sequence[_A]], Sequence[_R | PointsmanError]]
"""A function of many units: for each argument its result, or the error that its caller gets."""


@record(eq=False)
class _Unit:
    """Any: units of one queue have arguments and results of many types; `Writer.submit` pairs them."""

    apply: Callable[[Transaction, Sequence[Any]], Sequence[Any]]
    argument: Any
    future: asyncio.Future[Any] | None


class Writer:
    """The writing thread, and the queue to it. Its methods are the event loop's to call."""

    def __init__(
        self,
        database: SqliteDatabase,
        identity: Identity,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_recorded: Callable[[list[Commit]], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._database = database
        self._identity = identity
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_recorded = on_recorded
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        # Shared with the loop, under this lock:
        self._changed = threading.Condition()
        self._units: deque[_Unit] = deque()
        self._records: deque[_Unit] = deque()
        self._wanted = 1
        self._closing = False
        # The thread's own; the loop only reads the public ones:
        self._head: Head | None = None
        self._expected = 1
        self._linger_until = 0.0
        self._in_flight = 0
        self._measured_at = -_MEASURE_S
        self.is_failing = False
        self.size_bytes = 0
        self.commits = 0
        self.rows = 0
        self._thread.start()

    def submit(self, apply: Bulk[_A, _R], argument: _A) -> asyncio.Future[_R]:
        """Queue *argument* for *apply*; the future's result is durable.

        Raises:
            Unavailable: the store is closed.
        """
        future: asyncio.Future[_R] = self._loop.create_future()
        with self._changed:
            if self._closing:
                raise Unavailable("the store is closed; this process is going away")
            self._units.append(_Unit(apply, argument, future))
            if len(self._units) >= self._wanted:
                self._changed.notify()
        return future

    def run(self, work: Callable[[Transaction], _R]) -> asyncio.Future[_R]:
        """Queue one piece of work."""
        return self.submit(_each, work)

    def measure(self, transaction: Transaction) -> int:
        """The store's size in bytes, a unit of work; kept in `size_bytes`."""
        self.size_bytes = self._database.size_bytes(transaction.connection)
        self._measured_at = time.monotonic()
        return self.size_bytes

    def record(self, commit: Commit) -> None:
        """Queue *commit* to be kept soon; the caller bounds how many wait.

        Raises:
            Unavailable: the store is closed.
        """
        with self._changed:
            if self._closing:
                raise Unavailable("the store is closed; this process is going away")
            self._records.append(_Unit(commit_answers, commit, None))
            if len(self._records) in (1, _GROUP_RECORDS):
                self._changed.notify()

    @property
    def pending(self) -> int:
        """Units and records that are not committed."""
        return len(self._units) + len(self._records) + self._in_flight

    async def aclose(self) -> None:
        """Write what is queued, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            try:
                outcomes = self._transact(group)
            except Exception as exc:
                self._fail(group, exc)
                if self._closing and not self._units:
                    _LOGGER.error("the store closes with %d decisions unrecorded", len(self._records), exc_info=exc)
                    return
            else:
                self._succeed(group, outcomes)

    def _next_group(self) -> list[_Unit] | None:
        """What to write next, in this order of preference; None when closed and done.

        1. units: as soon as there are as many as were answered last, or 2 ms after the first
        2. records: a full group of them, or those that have waited long enough
        3. nothing, while failing: to find out whether writing works again
        """
        with self._changed:
            while not self._units:
                now = time.monotonic()
                full = len(self._records) >= _GROUP_RECORDS and not self.is_failing
                if self._records and (self._closing or full or now >= self._linger_until > 0):
                    break
                if self._closing and not self._records:
                    return None
                if self.is_failing and now >= self._linger_until:
                    break
                if (self._records or self.is_failing) and not self._linger_until:
                    self._linger_until = now + _LINGER_S
                self._changed.wait(self._linger_until - now if self._linger_until else None)
            if self._units and not self._closing:
                self._wanted = self._expected
                self._changed.wait_for(lambda: len(self._units) >= self._wanted or self._closing, _GATHER_S)
                self._wanted = 1
            units = [self._units.popleft() for _ in range(min(len(self._units), _GROUP_UNITS))]
            most = _RECORDS_BESIDE_UNITS if units else _GROUP_RECORDS
            records = [self._records.popleft() for _ in range(min(len(self._records), most))]
            self._linger_until = 0.0
            self._expected = max(1, len(units))
            self._in_flight = len(units) + len(records)
            return units + records

    def _transact(self, group: list[_Unit]) -> list[Any]:
        connection = self._database.writer
        with connection.begin():
            head = self._head or log.load_head(connection, self._identity.slot)
            transaction = Transaction(connection, self._identity, self._clock(), self._wall_clock(), head)
            outcomes = _apply(transaction, group)
            if transaction.head != head or not group:
                log.save_head(connection, self._identity.slot, transaction.head)
            if time.monotonic() - self._measured_at >= _MEASURE_S:
                self.measure(transaction)
        self._head = transaction.head
        return outcomes

    def _succeed(self, group: list[_Unit], outcomes: list[Any]) -> None:
        self.commits += 1
        self.rows += len(group)
        self._in_flight = 0
        if self.is_failing:
            self.is_failing = False
            _LOGGER.warning("the store can write again")
        self._tell(self._resolve, group, outcomes)

    def _fail(self, group: list[_Unit], exc: Exception) -> None:
        # What the database holds now is unknown: the chain's head is read anew.
        self._head = None
        if not self.is_failing:
            self.is_failing = True
            _LOGGER.error("the store cannot write, and refuses until it can: %s", exc, exc_info=exc)
        units = [unit for unit in group if unit.future is not None]
        with self._changed:
            self._records.extendleft(unit for unit in reversed(group) if unit.future is None)
            self._linger_until = time.monotonic() + _RETRY_S
            self._in_flight = 0
        self._tell(self._refuse, units, exc)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        # The loop is gone where its owner never closed the store: then nobody waits for an answer either.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _resolve(self, group: list[_Unit], outcomes: list[Any]) -> None:
        recorded = []
        for unit, outcome in zip(group, outcomes, strict=True):
            if unit.future is None:
                recorded.append(unit.argument)
                if isinstance(outcome, Exception):
                    _LOGGER.error("answer %s was not recorded", unit.argument.answer.id, exc_info=outcome)
            elif unit.future.done():
                continue
            elif isinstance(outcome, Exception):
                unit.future.set_exception(outcome)
            else:
                unit.future.set_result(outcome)
        if recorded:
            self._on_recorded(recorded)

    def _refuse(self, units: list[_Unit], exc: Exception) -> None:
        for unit in units:
            if unit.future is not None and not unit.future.done():
                error = Unavailable(
                    "the store cannot write now; nothing was acknowledged, try again", retry_after_s=1.0
                )
                error.__cause__ = exc
                unit.future.set_exception(error)
        self._on_failure()


def _apply(transaction: Transaction, group: list[_Unit]) -> list[Any]:
    """Apply every unit, those of one function together; outcomes in the order of *group*."""
    indices: dict[Callable[..., Any], list[int]] = {}
    for i, unit in enumerate(group):
        indices.setdefault(unit.apply, []).append(i)
    outcomes: list[Any] = [None] * len(group)
    for apply, places in indices.items():
        found = _apply_bulk(transaction, apply, [group[i].argument for i in places])
        for i, outcome in zip(places, found, strict=True):
            outcomes[i] = outcome
    return outcomes


def _apply_bulk(transaction: Transaction, apply: Callable[..., Any], arguments: list[Any]) -> list[Any]:
    try:
        with transaction.savepoint():
            return list(apply(transaction, arguments))
    except Exception as exc:
        if is_database_s_fault(exc):
            raise
        if len(arguments) == 1:
            return [exc]
    return [_apply_bulk(transaction, apply, [argument])[0] for argument in arguments]


def _each(transaction: Transaction, works: Sequence[Callable[[Transaction], _R]]) -> Sequence[_R | PointsmanError]:
    outcomes: list[_R | PointsmanError] = []
    for work in works:
        try:
            with transaction.savepoint():
                outcomes.append(work(transaction))
        except PointsmanError as error:
            outcomes.append(error)
    return outcomes
