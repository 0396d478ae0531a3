"""One thread that writes: units of work queue to it and share transactions.

**Group commit.** A commit costs a disk flush, whatever it holds. So whatever has queued while the last flush ran goes
into the next transaction, up to `StoreOptions.group_units`. When the last group was of n units, the next waits for as
many, at most 2 ms: callers answered together come back together. A lone caller never waits.

**Units** are functions that take a list of arguments and return a list of outcomes: those of a group that share their
function are applied together, with a constant number of statements. Each function runs inside a savepoint. Where it
raises, its units are tried again one by one, so that a bad one fails alone. Futures are resolved after COMMIT, and a
failed COMMIT fails the whole group. A transaction that another was in the way of (a deadlock, which PostgreSQL ends) is
done again at once, and so is one whose connection was found lost before it began.

**Records** are what nobody waits for. They are written with the units of a group (at most 64, which delay these by a
few milliseconds), or alone after 20 ms or 256 of them, and kept until a commit that holds them has succeeded. While
writing fails it is tried anew every 250 ms, so that the store recovers by itself.

**In doubt.** Where a COMMIT itself fails, nobody knows whether it was done. Units are told so, with what their outcome
would be (`InDoubt`): whoever can must see to it (`insist`) that it does no harm.

**Turns.** `Database.take_turn` begins every transaction: the writer's chain is its own until the end. A process that
has lost its place among the writers enrols anew, and goes on under another.

Rejected: a process for writing (the loop's process would still have to serialise and hand over every answer), one
thread a connection (SQLite has one writer anyway, and on PostgreSQL the units of a group share a flush).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from backends.contract import record
from backends.errors import PointsmanError, Unavailable
from gateway.store import log
from gateway.store.answers import Commit, commit_answers
from gateway.store.database import Database, SessionLost, Superseded
from gateway.store.log import Head
from gateway.store.options import KEYS_S
from gateway.store.ownership import enrol
from gateway.store.transaction import Identity, Transaction, is_database_s_fault, is_passing

_LOGGER = logging.getLogger(__name__)

_GATHER_S = 0.002
_GROUP_RECORDS = 256
_RECORDS_BESIDE_UNITS = 64
_LINGER_S = 0.020
_RETRY_S = 0.250
_ATTEMPTS = 4

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


class InDoubt(Unavailable):
    """The store cannot write now, and may have written nevertheless.

    Attributes:
        outcome: what came of it, if it has. Any: each unit has its own.
    """

    def __init__(self, message: str, outcome: Any) -> None:
        super().__init__(message, retry_after_s=1.0)
        self.outcome = outcome


@record(eq=False)
class _Chore:
    """Something to do between transactions. Any: its result is its caller's."""

    work: Callable[[], Any]
    future: asyncio.Future[Any]


class Writer:
    """The writing thread, and the queue to it. Its methods are the event loop's to call."""

    def __init__(
        self,
        database: Database,
        identity: Identity,
        on_recorded: Callable[[list[Commit]], None],
        on_failure: Callable[[], None],
        *,
        clock: Callable[[], float] | None = None,
        wall_clock: Callable[[], float] | None = None,
        group_units: int = 64,
        keys_s: float = KEYS_S,
    ) -> None:
        """Start the thread.

        Args:
            database: open; the thread's from now on, but for its readers.
            identity: the place among the writers that was taken.
            on_recorded: told, on the loop, what of `record` is durable.
            on_failure: told, on the loop, that writing has failed.
            clock: of leases; None: the database's.
            wall_clock: Unix time; None: the database's.
            group_units: most units of a transaction.
            keys_s: seconds that idempotency keys are kept, once nothing about their answer is open.
        """
        self._database = database
        self._identity = identity
        self._clock = clock
        self._wall_clock = wall_clock
        self._group_units = group_units
        self._on_recorded = on_recorded
        self._on_failure = on_failure
        self._keys_s = keys_s
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        # Shared with the loop, under this lock, as which the condition counts too:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._units: deque[_Unit] = deque()
        self._records: deque[_Unit] = deque()
        self._chores: deque[_Chore] = deque()
        self._wanted = 1
        self._closing = False
        # The thread's own; the loop only reads the public ones:
        self._head: Head | None = None
        self._expected = 1
        self._linger_until = 0.0
        self._in_flight = 0
        self._in_doubt: list[Any] | None = None  # the outcomes of the group whose COMMIT is under way
        self._measured_at = -math.inf
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
            self._check_open()
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
        with self._lock:
            self._check_open()
            self._records.append(_Unit(commit_answers, commit, None))
            if len(self._records) in (1, _GROUP_RECORDS):
                self._changed.notify()

    def insist(self, apply: Bulk[_A, _R], argument: _A) -> None:
        """Have *argument* applied as soon as the store can write, though nobody waits; the caller bounds how often.

        Raises:
            Unavailable: the store is closed.
        """
        with self._lock:
            self._check_open()
            self._records.appendleft(_Unit(apply, argument, None))
            self._changed.notify()

    def between(self, work: Callable[[], _R]) -> asyncio.Future[_R]:
        """Queue *work* to be done between transactions, while nothing is written.

        Raises:
            Unavailable: the store is closed.
        """
        future: asyncio.Future[_R] = self._loop.create_future()
        with self._changed:
            self._check_open()
            self._chores.append(_Chore(work, future))
            self._changed.notify()
        return future

    def _check_open(self) -> None:
        """Raises:
        Unavailable: the store is closed.
        """
        if self._closing:
            raise Unavailable("the store is closed; this process is going away")

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
            if isinstance(group, _Chore):
                self._do(group)
                continue
            was_closing = self._closing
            try:
                outcomes = self._transact(group)
            except Exception as exc:
                self._fail(group, exc)
                if was_closing and not self._units and not self._chores:
                    _LOGGER.error("the store closes with %d decisions unrecorded", self._decisions(), exc_info=exc)
                    return
            else:
                self._succeed(group, outcomes)

    def _decisions(self) -> int:
        """How many wait to be recorded."""
        return sum(unit.apply is commit_answers for unit in self._records)

    def _next_group(self) -> list[_Unit] | _Chore | None:
        """What to do next, in this order of preference; None when closed and done.

        1. what is to be done between transactions
        2. units: as soon as there are as many as were answered last, or 2 ms after the first
        3. records: a full group of them, or those that have waited long enough
        4. nothing, while failing: to find out whether writing works again
        """
        with self._changed:
            while not self._units and not self._chores:
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
            if self._chores:
                return self._chores.popleft()
            if self._units and not self._closing:
                self._wanted = min(self._expected, self._group_units)
                self._changed.wait_for(lambda: len(self._units) >= self._wanted or self._closing, _GATHER_S)
                self._wanted = 1
            units = [self._units.popleft() for _ in range(min(len(self._units), self._group_units))]
            most = _RECORDS_BESIDE_UNITS if units else _GROUP_RECORDS
            records = [self._records.popleft() for _ in range(min(len(self._records), most))]
            self._linger_until = 0.0
            self._expected = max(1, len(units))
            self._in_flight = len(units) + len(records)
            return units + records

    def _do(self, chore: _Chore) -> None:
        """Do *chore*, and tell whoever waits for it what came of it."""
        try:
            result = chore.work()
        except Exception as error:
            self._tell(_conclude, chore.future, None, error)
        else:
            self._tell(_conclude, chore.future, result, None)

    def _transact(self, group: list[_Unit]) -> list[Any]:
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._commit(group)
            except SessionLost:
                continue
            except Superseded:
                self._enrol()
            except DBAPIError as exc:
                if not is_passing(exc):
                    raise
        return self._commit(group)

    def _commit(self, group: list[_Unit]) -> list[Any]:
        connection, identity = self._database.writer, self._identity
        self._in_doubt = None
        with connection.begin():
            turn = self._database.take_turn(identity)
            now = turn.clocks.now if self._clock is None else self._clock()
            now_s = turn.clocks.now_s if self._wall_clock is None else self._wall_clock()
            head = turn.head or self._head or log.load_head(connection, identity.slot)
            transaction = Transaction(
                connection, identity, now, now_s, head, self._keys_s, cache(self._database.is_dead)
            )
            outcomes = _apply(transaction, group)
            if transaction.head != head or not group:
                log.save_head(connection, identity.slot, transaction.head)
            if time.monotonic() - self._measured_at >= self._database.measured_every_s:
                self.measure(transaction)
            self._in_doubt = outcomes
        self._in_doubt = None
        self._head = transaction.head
        return outcomes

    def _enrol(self) -> None:
        former, connection = self._identity, self._database.writer
        with connection.begin():
            self._identity = enrol(self._database, connection)
        self._head = None
        _LOGGER.warning(
            "this process was thought dead, and writes as %d now, not as %d; claims that it gave may be open again",
            self._identity.slot,
            former.slot,
        )

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
        in_doubt = self._in_doubt
        with self._changed:
            self._records.extendleft(unit for unit in reversed(group) if unit.future is None)
            self._linger_until = time.monotonic() + _RETRY_S
            self._in_flight = 0
        self._tell(self._refuse, group, in_doubt, exc)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        # The loop is gone where its owner never closed the store: then nobody waits for an answer either.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _resolve(self, group: list[_Unit], outcomes: list[Any]) -> None:
        recorded = []
        for unit, outcome in zip(group, outcomes, strict=True):
            if unit.future is None:
                if unit.apply is commit_answers:
                    recorded.append(unit.argument)
                if isinstance(outcome, Exception):
                    _LOGGER.error("%s was not recorded", _name(unit.argument), exc_info=outcome)
            elif unit.future.done():
                continue
            elif isinstance(outcome, Exception):
                unit.future.set_exception(outcome)
            else:
                unit.future.set_result(outcome)
        if recorded:
            self._on_recorded(recorded)

    def _refuse(self, group: list[_Unit], in_doubt: list[Any] | None, exc: Exception) -> None:
        message = "the store cannot write now; nothing was acknowledged, try again"
        for i, unit in enumerate(group):
            if unit.future is not None and not unit.future.done():
                error = Unavailable(message, retry_after_s=1.0) if in_doubt is None else InDoubt(message, in_doubt[i])
                error.__cause__ = exc
                unit.future.set_exception(error)
        self._on_failure()


def _name(argument: object) -> str:
    """What a record is about, for the log."""
    return f"answer {argument.answer.id}" if isinstance(argument, Commit) else f"a {type(argument).__name__.lower()}"


def _conclude(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


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


def _apply_bulk(
    transaction: Transaction, apply: Callable[..., Any], arguments: list[Any], *, again: bool = False
) -> list[Any]:
    try:
        with transaction.savepoint():
            return list(apply(transaction, arguments))
    except Exception as exc:
        if is_database_s_fault(exc):
            raise
        # A row that another transaction has inserted meanwhile is seen now, and what is done then may be right.
        if len(arguments) == 1 and (again or not isinstance(exc, IntegrityError)):
            return [exc]
    again = len(arguments) == 1
    return [_apply_bulk(transaction, apply, [argument], again=again)[0] for argument in arguments]


def _each(transaction: Transaction, works: Sequence[Callable[[Transaction], _R]]) -> Sequence[_R | PointsmanError]:
    outcomes: list[_R | PointsmanError] = []
    for work in works:
        try:
            with transaction.savepoint():
                outcomes.append(work(transaction))
        except PointsmanError as error:
            outcomes.append(error)
    return outcomes
