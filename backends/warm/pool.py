"""A pool of models under a memory budget: loaded ahead of demand where that can be known, at the first call otherwise.

**The model.** Each model is a `Pooled` backend over what opens it. Its signature, version and limits are learnt when it
is opened for the first time, and hold for good: an opening that comes to something else has failed (one that overlaps
fewer calls has not, as where a server is away). A *turn* looks at
all models, asks `policy.plan` what to do, and starts the loads and unloads that it names, each a task of its own, so
that none waits for another, nor for the event loop. Turns are taken when a model is asked for that is not warm, when a
load or an unload has ended, and when idle times say so; a call of a warm model costs none.

**Who owns what.** All state is changed on the event loop's thread by synchronous methods; the tasks live in a
TaskGroup, held by one supervising task from `start` to `aclose`.

**Up the ladder.** `Ladder.read` brings the files into the system's cache, `Ladder.open` builds the session, and
`Ladder.warm_up` runs a batch of every size that will come. Each step is timed, and what the last loads took is what
the next one is expected to take. A model is warm after the last step, and not before.

**Callers of a model that is not warm** (`Pooled.hold`):
1. closed: `Unavailable`.
2. its last load failed: `Unavailable` at once, until the backoff is over; that doubles with each failure.
3. the load will take longer than the caller has: `Unavailable` with the time of the load as `retry_after_s`; the
   model is loaded none the less, so that the next try finds it.
4. else the caller waits: for one load, however many callers there are. Whoever leaves ends nothing but its own wait.

**Unloading** only ever takes a model that answers no call and that nobody holds. Its memory counts as taken until its
backend is closed.

Rejected: a load that is cancelled when nobody waits any more (its caller will come again, and pay the load a second
time); handing out the inner backend (a caller could keep it beyond its unloading).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from backends.contract import Backend, Batch, Deadline, Limits, Signature, State, Tensors
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable
from backends.told import Loaded, Statistics, loaded_of
from backends.warm.entry import Entry, Kind, Known, Ladder, WarmOptions, Warmth
from backends.warm.memory import give_back, resident_bytes
from backends.warm.policy import Phase, plan
from backends.warm.report import IgnorePool, PoolObserver, Step, StepReport
from backends.warm.usage import Usage
from backends.warm.warming import SHORTEST_RETRY_S, came_late, closed, no_time_to_load

_FIRST_BACKOFF_S: Final = 1.0
_LONGEST_BACKOFF_S: Final = 60.0
_LONGEST_SLEEP_S: Final = 3600.0
_SHORTEST_SLEEP_S: Final = 0.001
_GRACE_S: Final = 60.0  # for which a model waits for whoever asked for it and could not wait themselves

T = TypeVar("T")


class Hold:
    """Keeps a model warm from entering to leaving; `Pooled.hold` makes it."""

    __slots__ = ("_deadline", "_entry", "_pool")

    def __init__(self, pool: WarmPool, entry: Entry, deadline: Deadline) -> None:
        self._pool = pool
        self._entry = entry
        self._deadline = deadline

    async def __aenter__(self) -> Backend:
        """Wait until the model is warm, and hold it; see the module for what else may come.

        Raises:
            DeadlineExceeded: the deadline passed first.
            Unavailable: closed, or not to be had by the deadline.
        """
        if not self._pool.take(self._entry):
            await self._pool.wait_warm(self._entry, self._deadline)
        assert self._entry.backend is not None, "a warm model has no backend. This is a bug."
        return self._entry.backend

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.let_go(self._entry)


class Pooled:
    """A model of a pool as a backend; `WarmPool.open` makes it."""

    def __init__(self, pool: WarmPool, entry: Entry, kind: Kind) -> None:
        self._pool = pool
        self._entry = entry
        self._kind = kind

    def __repr__(self) -> str:
        return f"<Pooled {self._entry.name!r}: {self._entry.phase}, {self._entry.nbytes} bytes>"

    @property
    def signature(self) -> Signature:
        """As it was when it was opened first."""
        return self._kind.signature

    @property
    def version(self) -> str:
        """As it was when it was opened first."""
        return self._kind.version

    @property
    def limits(self) -> Limits:
        """As they were when it was opened first."""
        return self._kind.limits

    @property
    def state(self) -> State:
        """Ready while it is warm or can be loaded, failed where its last load failed not long ago."""
        if self._entry.is_closed:
            return State.CLOSED
        if self._entry.backend is not None and self._entry.phase is Phase.WARM:
            return self._entry.backend.state
        return State.FAILED if self._pool.has_failed(self._entry) else State.READY

    def statistics(self) -> Statistics | None:
        """See `Entry.statistics`."""
        return self._entry.statistics()

    @property
    def warmth(self) -> Warmth:
        """How warm it is."""
        return self._pool.warmth(self._entry)

    @property
    def load_s(self) -> float:
        """What loading it is expected to take, in seconds; 0.0 where nothing is known."""
        return self._entry.load_s

    def hold(self, deadline: Deadline) -> Hold:
        """Keep it warm over `async with`: waits until it is, within *deadline*; its value is the model's backend.

        For callers that queue before they call: between two calls of `infer` alone it could be unloaded.
        """
        return Hold(self._pool, self._entry, deadline)

    def want(self) -> None:
        """Load it if it is cold, though nobody waits: somebody would have called, and had no time for that."""
        self._pool.want(self._entry)

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Load the model if need be, and ask it; see `Backend.infer`."""
        async with self.hold(deadline) as backend:
            return await backend.infer(batch, deadline)

    async def aclose(self) -> None:
        """Take no more calls, wait for those in flight, and leave the pool."""
        await self._pool.close(self._entry)


class WarmPool:
    """Models under one memory budget; see the module for how. Use it as `async with`; it belongs to one event loop.

    Args:
        budget_bytes: memory that resident models may take together; infinity: no limit, and idle times alone decide.
        clock: of the deadlines, in seconds.
        observer: is told of loads, unloads and cold starts.
    """

    def __init__(
        self,
        budget_bytes: float = math.inf,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: PoolObserver | None = None,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._reserved_bytes = 0
        self._clock = clock
        self._observer = observer or IgnorePool()
        self._entries: set[Entry] = set()
        self._loads = 0  # that have begun so far, to know whether one was alone
        self._poked = asyncio.Event()
        self._turn_at_s = -math.inf
        self._is_short = False  # whether a model that somebody waits for has no room
        self._is_open = False
        self._supervisor: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<WarmPool: {len(self._entries)} models, {self.taken_bytes} of {self._budget_bytes:g} bytes taken>"

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def start(self) -> None:
        """Begin to load, on the running event loop.

        Raises:
            RuntimeError: it was started before.
        """
        if self._supervisor is not None:
            raise RuntimeError("the pool was started twice. This is a bug.")
        self._is_open = True
        self._supervisor = asyncio.create_task(self._supervise(), name="warm pool")

    async def aclose(self) -> None:
        """Load nothing more, and end; models stay their owners' to close. Never started, or closed before: harmless."""
        self._is_open = False
        if self._supervisor is not None:
            self._poked.set()
            await asyncio.wait({self._supervisor})

    @property
    def is_open(self) -> bool:
        """Whether it loads models: from its start until it is closed, or fails."""
        return self._is_open

    @property
    def room_bytes(self) -> float:
        """Memory that is free; infinity where there is no limit."""
        return self._budget_bytes - self.taken_bytes

    @property
    def taken_bytes(self) -> int:
        """Memory that models take now, those that are on their way included, and what is reserved."""
        resident = (entry.nbytes for entry in self._entries if entry.phase not in (Phase.COLD, Phase.FAILED))
        return self._reserved_bytes + sum(resident)

    def reserve(self, nbytes: int) -> None:
        """Set *nbytes* of the budget aside for models that are not the pool's.

        Raises:
            InvalidInput: more than there is.
        """
        if self._reserved_bytes + nbytes > self._budget_bytes:
            raise InvalidInput(
                f"models that are always kept take {self._reserved_bytes + nbytes} bytes, and the pool's memory is "
                f"{self._budget_bytes:g}; raise it, or keep fewer"
            )
        self._reserved_bytes += nbytes

    async def open(
        self,
        name: str,
        ladder: Ladder,
        options: WarmOptions | None = None,
        *,
        estimate_bytes: int = 0,
        known: Known | None = None,
    ) -> Pooled:
        """Load a model for the first time, as soon as there is room.

        Args:
            name: the model's name, for messages and reports; two may share it, one replacing the other.
            ladder: how it is loaded, now and whenever it is wanted again.
            estimate_bytes: memory that it takes at least.
            known: what it is; it is not loaded then before it is wanted, unless it is always kept.

        Raises:
            InvalidInput: it needs more memory than the pool has.
            Unavailable: the pool is closed.
            Exception: what *ladder* raised.
        """
        entry = Entry(name, ladder, options or WarmOptions(), estimate_bytes, self._clock())
        if known is not None:
            entry.kind, entry.load_s = known.kind, known.load_s
        room = self._budget_bytes - self._reserved_bytes
        if entry.nbytes > room:
            raise InvalidInput(
                f"model {name!r} takes {entry.nbytes} bytes, and the pool has {room:g}; raise its memory"
            )
        self._check_open()
        self._entries.add(entry)
        if known is None or entry.options.keep:
            try:
                await self._first_load(entry)
            except BaseException:
                await self.close(entry)
                raise
        assert entry.kind is not None
        return Pooled(self, entry, entry.kind)

    async def _first_load(self, entry: Entry) -> None:
        waiter = self._ask(entry)
        try:
            error = await waiter
        finally:
            entry.waiters.discard(waiter)
        if error is not None:
            raise error

    def poke(self) -> None:
        """Decide anew soon: something outside has changed, such as the clock of a test."""
        self._poked.set()

    # Calls.

    def warmth(self, entry: Entry) -> Warmth:
        """How warm *entry* is."""
        return Warmth(entry.phase, entry.left_s(self._clock()), entry.nbytes)

    def has_failed(self, entry: Entry) -> bool:
        """Whether the last load of *entry* failed, and its backoff is not over."""
        return entry.phase is Phase.FAILED and self._clock() < entry.retry_at_s

    def take(self, entry: Entry) -> bool:
        """Hold *entry* if it is warm; otherwise False."""
        if entry.phase is not Phase.WARM or entry.is_closed:
            return False
        entry.began(self._clock())
        return True

    def let_go(self, entry: Entry) -> None:
        """Hold *entry* no longer."""
        now = self._clock()
        entry.usage.ended(now)
        # A turn looks at every model: one is taken only where this end changes what the last one decided.
        if entry.usage.calls:
            return
        if entry.is_closed:
            entry.drained.set()
        if self._is_short or not entry.is_due(now) or entry.next_change_s(now) < self._turn_at_s:
            self._poked.set()

    def want(self, entry: Entry) -> None:
        """Take note that somebody would have called *entry*, and load it."""
        if entry.is_closed:
            return
        now = self._clock()
        entry.usage.wanted(now)
        if entry.phase is not Phase.WARM:
            self._observer.on_cold_start(entry.name)
            self._demand(entry, now)

    async def wait_warm(self, entry: Entry, deadline: Deadline) -> None:
        """Wait for a load of *entry*, and hold it.

        Raises:
            DeadlineExceeded: *deadline* passed first.
            Unavailable: closed, or not to be had by the deadline.
        """
        self._observer.on_cold_start(entry.name)
        while not self.take(entry):
            self._admit(entry, deadline)
            waiter = self._ask(entry)
            try:
                left_s = deadline - self._clock()
                async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                    error = await waiter
                if self.take(entry):  # before it is nobody's
                    return
            except TimeoutError:
                raise DeadlineExceeded(f"the deadline passed while model {entry.name!r} was loaded") from None
            finally:
                entry.waiters.discard(waiter)
            if error is not None and not entry.is_closed:
                raise _not_loaded(entry.name, error, max(entry.left_s(self._clock()), SHORTEST_RETRY_S))

    def _admit(self, entry: Entry, deadline: Deadline) -> None:
        """Refuse a caller that cannot wait; numbered as in the module."""
        now = self._clock()
        if entry.is_closed or not self._is_open:  # 1
            raise closed(entry.name)
        if now >= deadline:
            raise came_late(entry.name)
        if self.has_failed(entry):  # 2
            entry.usage.wanted(now)
            raise _not_loaded(entry.name, entry.error, max(entry.left_s(now), SHORTEST_RETRY_S))
        if (left_s := entry.left_s(now)) > deadline - now:  # 3
            entry.usage.wanted(now)
            self._demand(entry, now)
            raise no_time_to_load(entry.name, left_s)

    def _ask(self, entry: Entry) -> asyncio.Future[BaseException | None]:
        """What is set when *entry* is warm, or to what its load has failed with."""
        waiter: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        entry.waiters.add(waiter)
        self._demand(entry, self._clock())
        return waiter

    def _demand(self, entry: Entry, now: float) -> None:
        if entry.asked_s is None and entry.phase is not Phase.WARM:
            entry.asked_s = now
        self._poked.set()

    def _check_open(self) -> None:
        if not self._is_open:
            raise Unavailable("the pool of models is closed; send the request elsewhere")

    # Turns.

    async def _supervise(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while self._is_open:
                    self._poked.clear()
                    sleep_s = self._turn(tasks)
                    try:
                        async with asyncio.timeout(sleep_s):
                            await self._poked.wait()
                    except TimeoutError:
                        pass
        finally:
            self._is_open = False
            for entry in self._entries:
                _tell(entry, closed(entry.name))

    def _turn(self, tasks: asyncio.TaskGroup) -> float:
        """Start what the policy wants started; seconds until the next turn is due."""
        now = self._clock()
        for entry in self._entries:
            if entry.phase is Phase.FAILED and now >= entry.retry_at_s:
                entry.phase = Phase.COLD
        room_bytes = self._budget_bytes - self._reserved_bytes
        decided = plan([entry.seen(now, room_bytes) for entry in self._entries], room_bytes)
        for entry in decided.unload:
            entry.phase = Phase.UNLOADING
            entry.task = tasks.create_task(self._unload(entry), name=f"unload of {entry.name}")
        for entry in decided.load:
            entry.begin_load(now)
            self._loads += 1
            entry.task = tasks.create_task(self._load(entry), name=f"load of {entry.name}")
        self._is_short = any(entry.phase is Phase.COLD and entry.asked_s is not None for entry in self._entries)
        self._turn_at_s = min((entry.next_change_s(now) for entry in self._entries), default=math.inf)
        return min(max(self._turn_at_s - now, _SHORTEST_SLEEP_S), _LONGEST_SLEEP_S)

    async def _load(self, entry: Entry) -> None:
        is_alone = sum(other.phase is Phase.LOADING for other in self._entries) == 1
        before_bytes, number = resident_bytes(), self._loads
        try:
            backend = await self._climb(entry)
        except asyncio.CancelledError:  # only with the supervisor
            self._failed(entry, closed(entry.name))
            raise
        except Exception as error:  # an adapter's own, too
            self._failed(entry, error)
        else:
            if (loaded := loaded_of(backend)) is not None:
                entry.measured_bytes.append(loaded.nbytes or 0)
            elif is_alone and number == self._loads:
                entry.measured_bytes.append(resident_bytes() - before_bytes)
            self._loaded(entry, backend)
        finally:
            self._poked.set()

    async def _climb(self, entry: Entry) -> Backend:
        """One step after the other; whatever was opened is closed where a later one fails."""
        if entry.ladder.read is not None:
            await self._step(entry, Step.READ, entry.ladder.read())
        backend = await self._step(entry, Step.OPEN, entry.ladder.open())
        try:
            if entry.is_closed:
                raise closed(entry.name)
            kind = Kind.of(backend)
            self._check_memory(entry, loaded_of(backend))
            if entry.kind is not None and not entry.kind.has(kind):
                raise InvalidInput(f"model {entry.name!r} is not what it was when it was opened first; load it anew")
            await self._step(entry, Step.WARM_UP, entry.ladder.warm_up(backend))
        except BaseException:
            await backend.aclose()
            raise
        if entry.kind is None:
            entry.kind, entry.usage = kind, Usage(entry.options.keep_alive, self._clock())
        return backend

    def _check_memory(self, entry: Entry, loaded: Loaded | None) -> None:
        """Refuse a model of which nobody says what it takes, where there is a limit."""
        if loaded is None or loaded.nbytes is not None or entry.options.memory_bytes is not None:
            return
        if math.isfinite(self._budget_bytes):
            raise InvalidInput(
                f"model {entry.name!r} is loaded on a server that does not say how much memory it takes; write it as "
                "`warm: {memory: 2GiB}`, or take `pool: {memory: ...}` out"
            )

    async def _step(self, entry: Entry, step: Step, work: Awaitable[T]) -> T:
        started_s = self._clock()
        try:
            result = await work
        except BaseException as error:
            self._observer.on_load_step(StepReport(entry.name, step, self._clock() - started_s, error))
            raise
        duration_s = self._clock() - started_s
        entry.learn(step, duration_s)
        self._observer.on_load_step(StepReport(entry.name, step, duration_s))
        return result

    def _loaded(self, entry: Entry, backend: Backend) -> None:
        entry.backend = backend
        entry.phase = Phase.WARM
        entry.failures = 0
        entry.error = None
        if entry.asked_s is not None:
            entry.grace_until_s = self._clock() + _GRACE_S
        entry.asked_s = None
        _tell(entry, None)

    def _failed(self, entry: Entry, error: BaseException) -> None:
        backoff_s = min(_FIRST_BACKOFF_S * 2.0**entry.failures, _LONGEST_BACKOFF_S)
        entry.failures += 1
        entry.phase = Phase.FAILED
        entry.retry_at_s = self._clock() + backoff_s
        entry.asked_s = None
        entry.error = error
        _tell(entry, error)

    async def _unload(self, entry: Entry) -> None:
        backend = entry.leave()
        error: BaseException | None = None
        try:
            await backend.aclose()
            del backend
            await asyncio.to_thread(give_back)
        except Exception as raised:
            error = raised
        finally:
            entry.phase = Phase.COLD
            self._poked.set()
        self._observer.on_unload(entry.name, error)

    # Leaving.

    async def close(self, entry: Entry) -> None:
        """Take no more calls of *entry*, wait for those in flight, and forget it."""
        if entry.closing is None:
            entry.is_closed = True
            _tell(entry, closed(entry.name))
            entry.closing = asyncio.ensure_future(self._close(entry))
        await asyncio.shield(entry.closing)

    async def _close(self, entry: Entry) -> None:
        while entry.usage.calls:
            entry.drained.clear()
            await entry.drained.wait()
        if entry.task is not None:  # a load or unload that goes on: ended, it leaves nothing half open
            await asyncio.wait({entry.task})
        self._entries.discard(entry)
        entry.phase = Phase.COLD
        backend, entry.backend = entry.backend, None
        if backend is not None:
            await backend.aclose()
            del backend
            await asyncio.to_thread(give_back)
        self._poked.set()


def _tell(entry: Entry, error: BaseException | None) -> None:
    """Tell all who wait for *entry* that it is warm, or why it is not."""
    for waiter in entry.waiters:
        if not waiter.done():
            waiter.set_result(error)


def _not_loaded(name: str, cause: BaseException | None, retry_after_s: float) -> Unavailable:
    """What a caller hears of a load that failed: the cause is for the operator's log."""
    told = Unavailable(f"model {name!r} could not be loaded; try again later", retry_after_s=retry_after_s)
    told.__cause__ = cause
    return told
