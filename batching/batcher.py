"""The batcher: concurrent requests for one model, answered by few calls of its backend.

**The model.** `submit` puts an entry into its lane and waits on a future. A *turn* asks the policy what to do and
starts the batches it names, each a *flight*: a task that merges, calls the backend, and hands every caller its own
rows. At most `limits.max_in_flight` flights are in the air; meanwhile the next batch grows in the lanes. A slot is
free, and the next flight started, before the replies of the one that landed are delivered, so that the backend does
not idle while callers digest their answers.

**Who owns what.** The lanes, the deadlines and the flights are changed by synchronous methods of this class on the
event loop's thread alone, each of which leaves them consistent. Flights live in a TaskGroup, held by one task from
`start` to `aclose`. A turn is a callback, run once for all arrivals of one pass of the loop; a task that wakes for
every arrival was rejected, it costs a switch more and decides nothing else.

**Coming.** What cannot make it is refused at once (`admission`): by its deadline, if the model alone takes too long, as
overload, if what runs and waits before it does. Then the queue needs room; where there is none, a tenant below its
share gets it from the greediest.

**Leaving.** A caller leaves when it is cancelled or its deadline passes, wherever its entry is. In the lanes, the entry
goes at once. In flight, the flight goes on for the others, and is cancelled when nobody is left. One timer serves all
deadlines.

**Deadlines.** A caller hears `DeadlineExceeded` when its deadline passes, not when the backend returns; an answer that
comes later is dropped. The backend is told the *latest* deadline of a batch: the earliest would let one impatient
caller end the work of all others, and the batcher already answers each in time.

**Errors.** An error that an item may be to blame for belongs to its caller alone: a batch of several entries that
fails with one is run again in halves (see `isolation`), each a flight of its own, one after the other in the slot of
the first. Entries that fail in company to the end hear that their batch failed and no more, since the text may be
about somebody else's item. Whatever else a backend raises reaches every caller of the batch. Each gets an exception
of its own: one instance shared between tasks would grow a traceback of them all. A fault in a policy fails what waits;
one in an observer is reported to the loop's exception handler. Neither leaves a caller hanging.

**Apart.** Tensors in shared memory stay where they are, so batches of them cannot be merged; a server that takes them
merges them itself. They queue like all others, but wait for a slot alone, and never for company (`policy`); what has
waited together is as many calls of the backend as it has entries, all at once in one slot. Each is answered, late,
cancelled or failed by itself.

Source: "form" and "run" joined by free slots, and leavers skipped while forming, follow text-embeddings-inference.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from backends.contract import (
    NO_DEADLINE,
    SERVER_CALLS,
    TRACE,
    URGENCY,
    WAITED_S,
    Backend,
    Batch,
    Deadline,
    Limits,
    Memory,
    ServerCall,
    Tensors,
    check_batch,
    check_outputs,
)
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PointsmanError,
    TooLarge,
    Unavailable,
)
from backends.trace_context import TraceContext, foremost
from batching.admission import outlook
from batching.concurrency import Gradient2
from batching.isolation import Isolation, may_be_an_items_fault
from batching.lanes import Deadlines, Lanes
from batching.latency import Forecast, Kinds, Latency
from batching.merge import Key, compatibility, cut, goes_apart, is_apart, join, length_bucket, merge, split
from batching.options import BatchingOptions
from batching.padding import Padded, Shaping
from batching.policy import ByDeadline, Policy
from batching.report import (
    BatchedCaller,
    BatchingCounters,
    BatchingStatistics,
    BatchingTotals,
    BatchNote,
    BatchObserver,
    BatchReport,
    BatchTrace,
    CurvePoint,
    IgnoreBatches,
    Outcome,
    Refusal,
    slowest,
)
from batching.warm_up import zeros

_ANY_SIZE: Final = Limits(max_batch=sys.maxsize)
_SHORTEST_RETRY_S: Final = 0.1
_WARM_RUNS: Final = 2  # of each size; the first may build what the second uses
_LOOP_TICK_S: Final = 0.001  # timers of the event loop are no finer
_MERGED_ON_LOOP_BYTES: Final = 1024 * 1024  # what one core copies, first touch included, in well under a millisecond

T = TypeVar("T")


class _Entry:
    """One submitted batch, or one part of a larger one."""

    __slots__ = (
        "arrived_s",
        "batch",
        "deadline",
        "flight",
        "future",
        "key",
        "level",
        "nbytes",
        "note",
        "size",
        "tenant",
        "trace",
        "turn",
    )

    def __init__(
        self,
        batch: Batch,
        nbytes: int,
        key: Key,
        deadline: Deadline,
        now: float,
        future: asyncio.Future[Tensors],
        level: int,
        tenant: str,
        trace: TraceContext | None,
        note: BatchNote | None,
    ) -> None:
        self.batch: Batch | None = batch
        self.size = batch.size
        self.nbytes = nbytes
        self.key = key
        self.deadline = deadline
        self.arrived_s = now
        self.level = level
        self.tenant = tenant
        self.trace = trace
        self.note = note
        self.turn = 0.0
        self.future: asyncio.Future[Tensors] | None = future  # None once its caller has taken what it holds
        self.flight: _Flight | None = None

    def is_over(self) -> bool:
        """Whether its caller has an answer, or has left."""
        return self.future is None or self.future.done()

    def waiting_batch(self) -> Batch:
        """Its batch, which it has as long as its caller waits."""
        assert self.batch is not None, "the batch of an entry that is over was wanted. This is a bug."
        return self.batch

    def tell(self, reply: Tensors) -> None:
        """Answer its caller, if it still waits."""
        if self.future is not None and not self.future.done():
            self.future.set_result(reply)

    def tell_error(self, error: BaseException) -> None:
        """Tell its caller, if it still waits, why there is no answer."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    async def told(self) -> Tensors:
        """What its caller is told. Afterwards it holds nothing of that: its deadline may be long to come."""
        assert self.future is not None, "an entry was waited for twice. This is a bug."
        try:
            return await self.future
        finally:
            self.future = None

    def let_go(self) -> None:
        """Drop what it holds: it may be remembered longer than its tensors should be."""
        self.batch = None
        self.flight = None


class _Flight:
    """A batch at the backend, and what else is to be run in its slot where it is part of one that failed."""

    __slots__ = (
        "apart",
        "batches",
        "callers",
        "entries",
        "is_again",
        "isolation",
        "merged_s",
        "padded",
        "server_calls",
        "should_end_s",
        "size",
        "started_s",
        "task",
        "trace",
    )

    def __init__(self, entries: Sequence[_Entry], now: float, isolation: Isolation[_Entry] | None) -> None:
        self.entries = entries
        self.isolation = isolation
        self.batches = [entry.waiting_batch() for entry in entries]
        self.size = sum(entry.size for entry in entries)
        self.callers = len(entries)
        self.started_s = now
        self.merged_s = now
        self.padded: Padded | None = None
        self.should_end_s = now
        self.task: asyncio.Task[None] | None = None
        self.apart: dict[_Entry, asyncio.Task[BaseException | None]] = {}  # where every entry has a call of its own
        self.is_again = isolation is not None
        self.trace: TraceContext | None = None
        self.server_calls: list[ServerCall] | None = None

    def is_abandoned(self) -> bool:
        """Whether nobody waits for it."""
        for entry in self.entries:  # noqa: SIM110  # asked of every batch, and `all` takes three times as long
            if not entry.is_over():
                return False
        return True


class _Alarm:
    """Rings at an instant of *clock*, passing it on; setting it again moves it."""

    __slots__ = ("_clock", "_handle", "_loop", "_ring", "when")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], ring: Callable[[float], None]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self.when = math.inf

    def set(self, when: float) -> None:
        """Ring at *when*; infinity silences it."""
        if when == self.when:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self.when = when
        if when < math.inf:
            self._handle = self._loop.call_later(max(when - self._clock(), _LOOP_TICK_S), self._due)

    def _due(self) -> None:
        # Timers may fire a tick early: that counts as on time, or everything would wait for a second tick.
        when, self.when, self._handle = self.when, math.inf, None
        now = self._clock()
        if now < when - _LOOP_TICK_S:
            self.set(when)
        else:
            self._ring(max(now, when))


class Batcher:
    """Gathers the requests for one model into batches; see the module for how.

    Use it as `async with`, or with `start` and `aclose`; it belongs to the event loop that started it.

    Args:
        model: the model's name, for messages and reports.
        backend: what answers; stays open when the batcher closes.
        options: what the operator says.
        observer: is told of every batch.
        clock: of the deadlines, in seconds.
        policy: decides when batches go; by default by deadline.

    Raises:
        ValueError: `options.max_batch` exceeds the backend's limit, or what *options* say of lengths does not fit it.
    """

    def __init__(
        self,
        model: str,
        backend: Backend,
        options: BatchingOptions,
        *,
        observer: BatchObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
    ) -> None:
        limit = backend.limits.max_batch
        if options.max_batch is not None and options.max_batch > limit:
            raise ValueError(f"max_batch {options.max_batch} of model {model!r} exceeds its backend's limit {limit}")
        self._model = model
        self._backend = backend
        self._options = options
        self._observer = observer or IgnoreBatches()
        self._clock = clock
        self._signature = backend.signature
        self._memory = backend.limits.memory
        self._slots = backend.limits.max_in_flight
        self._max_batch = options.max_batch or limit
        self._policy = policy or ByDeadline(self._max_batch, self._slots, options.max_delay_s)
        self._shaping = Shaping.of(options, self._signature, self._memory)
        self._takes_shared = Memory.SHARED in self._memory and self._shaping is None
        has_shapes = any(-1 in spec.shape for spec in self._signature.inputs)
        self._kinds = Kinds(has_buckets=has_shapes or self._shaping is not None)
        has_unmerged = self._shaping is None and not self._memory.isdisjoint({Memory.SHARED, Memory.DEVICE})
        self._lanes: Lanes[_Entry] = Lanes(self._kinds, is_apart if has_unmerged else None)
        self._deadlines: Deadlines[_Entry] = Deadlines()
        self._flights: set[_Flight] = set()
        self._batches = 0
        self._prefix = secrets.token_hex(3)
        self._items = 0
        self._limit = Gradient2(self._slots) if options.adaptive_concurrency else None
        self._counters = BatchingCounters()
        self._refusals = dict.fromkeys(Refusal, 0)
        self._is_open = False
        self._is_flying = False
        self._turn_is_due = False
        self._supervisor: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<Batcher {self._model!r} {state}, {self._lanes.items} items wait, {len(self._flights)} in flight>"

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(drain=error is None)

    def start(self) -> None:
        """Accept requests, on the running event loop.

        Raises:
            RuntimeError: it was started before.
        """
        if self._supervisor is not None:
            raise RuntimeError(f"the batcher of model {self._model!r} was started twice. This is a bug.")
        self._loop = asyncio.get_running_loop()
        self._turn_alarm = _Alarm(self._loop, self._clock, self._turn)
        self._deadline_alarm = _Alarm(self._loop, self._clock, self._expire)
        self._emptied = asyncio.Event()
        self._hangar = asyncio.TaskGroup()
        self._is_open = True
        self._supervisor = self._loop.create_task(self._supervise(), name=f"batcher of {self._model}")
        self._supervisor.add_done_callback(self._end)

    async def aclose(self, *, drain: bool = True) -> None:
        """Accept nothing more, and end.

        Never started, or closed before: harmless.

        Args:
            drain: whether entries that were accepted are answered first; if not, they are refused and what is in
                flight is cancelled. Either way this waits until the backend has returned.
        """
        self._is_open = False
        if self._supervisor is None:
            return
        if not drain:
            self._ground()
        self._check_emptied()
        await asyncio.wait({self._supervisor})

    async def warm_up(self) -> None:
        """Run the batches of zeros that the options name, one after the other, and learn what they take.

        For before the start: nothing else may run meanwhile, or it would be learnt too.

        Raises:
            ValueError: a size exceeds `max_batch`, or the model does not take zeros.
        """
        for size in self._options.warm_up:
            if size > self._max_batch:
                raise ValueError(
                    f"warm_up has a batch of {size}, model {self._model!r} takes {self._max_batch} at most"
                )
            batch = zeros(self._signature, size)
            latency = self._kinds.of(compatibility(batch, self._memory, self._shaping)).latency
            for _ in range(_WARM_RUNS):
                started_s = self._clock()
                try:
                    await self._backend.infer(batch, NO_DEADLINE)
                except PointsmanError as error:
                    raise ValueError(
                        f"model {self._model!r} cannot be warmed up with zeros ({error}); leave warm_up out"
                    ) from error
            now = self._clock()
            latency.observe(size, now - started_s, now)

    async def submit(
        self,
        batch: Batch,
        deadline: Deadline,
        priority: int = 0,
        tenant: str = "",
        trace: TraceContext | None = None,
        note: BatchNote | None = None,
    ) -> Tensors:
        """Answer *batch*, in the company of others.

        A batch larger than `max_batch` goes in parts, and its answer is joined again. The arrays of *batch* must not
        change after the call, however it ends: a batch in flight may still read them. Those returned may be views
        of arrays in which other callers see other rows.

        Args:
            priority: 1 the highest; 0: the default of the options, which also say whether it counts at all.
            tenant: whose it is; each gets an equal share where not all can be answered.
            trace: the span that it is for; None: nobody traces it.
            note: is told what batches it was answered in; None: nobody asks.

        Raises:
            InvalidInput: *batch* is not what the model's signature says, or not where its backend can take it.
            TooLarge: *batch* could never fit the queue.
            DeadlineExceeded: *deadline* passed first, or leaves the model too little time.
            Unavailable: too much waits already for *deadline* to be met, or for the queue to hold more; or the batcher
                is closed.
            PointsmanError: what the backend raised for these items, or for reasons of its own.
        """
        now = self._clock()
        nbytes = self._admit(batch, deadline, now)
        key = compatibility(batch, self._memory, self._shaping)
        if self._shaping is not None:
            nbytes = self._nbytes(batch)
            self._check_size("bytes", nbytes, self._options.max_queue_bytes)
        self._check_outlook(key, deadline, tenant, now)
        options, lanes = self._options, self._lanes
        if lanes.items + batch.size > options.max_queue or lanes.nbytes + nbytes > options.max_queue_bytes:
            self._make_room(batch.size, nbytes, tenant)
        level = options.level(priority)
        if batch.size > self._max_batch:
            return await self._submit_parts(batch, key, deadline, now, level, tenant, trace, note)
        entry = self._enqueue(batch, nbytes, key, deadline, now, level, tenant, trace, note)
        assert entry.future is not None
        try:
            return await entry.future  # as `told`, without a coroutine more
        except asyncio.CancelledError:
            self._leave(entry)
            raise
        finally:
            entry.future = None

    async def _submit_parts(
        self,
        batch: Batch,
        key: Key,
        deadline: Deadline,
        now: float,
        level: int,
        tenant: str,
        trace: TraceContext | None,
        note: BatchNote | None,
    ) -> Tensors:
        parts = [
            self._enqueue(
                part,
                self._nbytes(part),
                key,
                deadline,
                now,
                level,
                tenant,
                trace,
                note,
            )
            for part in cut(batch, self._max_batch)
        ]
        try:
            replies = await asyncio.gather(*(part.told() for part in parts))
        except BaseException:
            for part in parts:
                if part.future is not None:
                    part.future.cancel()
                self._leave(part)
            raise
        nbytes = sum(tensor.nbytes for reply in replies for tensor in reply.values())
        return await self._off_loop(nbytes, join, replies)

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._is_open

    @property
    def is_idle(self) -> bool:
        """Whether a new item would run at once: a slot is free, and nothing waits for one."""
        return self._free_slots() > 0 and not self._lanes

    @property
    def lowest_priority(self) -> int:
        """The level that comes last; 0, the default, where there are none."""
        return self._options.priority_levels

    @property
    def max_batch(self) -> int:
        """Most items in one call of the backend."""
        return self._max_batch

    @property
    def takes_shared(self) -> bool:
        """Whether inputs may be windows of shared memory, which reach the backend as they are."""
        return self._takes_shared

    @property
    def max_delay_s(self) -> float:
        """Seconds that an item waits at most for others, while the backend could take it; 0.0: as long as it pays."""
        return self._options.max_delay_s or 0.0

    def forecast(self, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> Forecast:
        """What a new item has to expect now."""
        return self._outlook(self._kinds.latency, deadline, tenant, self._clock())

    def _outlook(self, latency: Latency, deadline: Deadline, tenant: str, now: float) -> Forecast:
        if len(self._flights) < self._slots and self._lanes.items < self._max_batch:  # as `outlook` says too
            return Forecast(0.0, latency.typical_s(1, now))
        free_at_s = [self._free_at_s(flight, latency, now) for flight in self._flights]
        free_at_s += [now] * (self._slots - len(free_at_s))
        return outlook(self._lanes, latency, free_at_s, self._max_batch, deadline, tenant, now)

    def _free_at_s(self, flight: _Flight, latency: Latency, now: float) -> float:
        """When the slot of *flight* should be free: what is lined up in it to be run again comes first."""
        if flight.isolation is None:
            return flight.should_end_s
        again = len(flight.isolation.entries())
        return flight.should_end_s + (latency.typical_s(again, now) if again else 0.0)

    def statistics(self) -> BatchingStatistics:
        """What is going on now."""
        now = self._clock()
        forecast = self.forecast()
        sizes = self._curve_sizes()
        return BatchingStatistics(
            queued_items=self._lanes.items,
            queued_bytes=self._lanes.nbytes,
            in_flight=len(self._flights),
            batches=self._batches,
            items=self._items,
            latency_s=forecast.latency_s,
            predicted_wait_s=forecast.wait_s,
            curve=_points(self._kinds.latency.curve(sizes, now)),
            refusals=dict(self._refusals),
            oldest_wait_s=now - min([entry.arrived_s for entry in self._lanes.entries()], default=now),
            arrivals_per_s=self._kinds.arrivals_per_s(now),
            bucket_curves=self._bucket_curves(sizes, now),
        )

    def _curve_sizes(self) -> Sequence[int]:
        """1, 2, 4, ... items, and the most."""
        doubled = [1 << power for power in range(self._max_batch.bit_length())]
        return doubled if doubled[-1] == self._max_batch else [*doubled, self._max_batch]

    def _bucket_curves(self, sizes: Sequence[int], now: float) -> Mapping[str, tuple[CurvePoint, ...]]:
        """By upper bound; where several lanes share a bucket, the slowest of them."""
        if self._shaping is None or not self._shaping.bounds:
            return {}
        found: dict[int, list[tuple[CurvePoint, ...]]] = {}
        for key, curve in self._kinds.curves(sizes, now):
            found.setdefault(length_bucket(key), []).append(_points(curve))
        bounds = [*map(str, self._shaping.bounds), "+Inf"]
        return {bounds[bucket]: slowest(found[bucket]) for bucket in sorted(found)}

    def totals(self) -> BatchingTotals:
        """What was answered since the start."""
        return self._counters.totals()

    # Arrivals.

    def _admit(self, batch: Batch, deadline: Deadline, now: float) -> int:
        """Refuse *batch* if it cannot be queued; its bytes if it can."""
        if not self._is_open:
            raise Unavailable(f"model {self._model!r} is not taking requests; try again later")
        if deadline <= now:
            self._refusals[Refusal.EXPIRED] += 1
            raise DeadlineExceeded(f"the deadline passed before the request reached model {self._model!r}")
        if batch.size < 1:
            raise InvalidInput("a batch of 0 items has no answer; send at least 1")
        check_batch(self._signature, batch, _ANY_SIZE)
        nbytes = batch.nbytes
        if batch.size > self._options.max_queue or nbytes > self._options.max_queue_bytes:
            self._check_size("items", batch.size, self._options.max_queue)
            self._check_size("bytes", nbytes, self._options.max_queue_bytes)
        return nbytes

    def _nbytes(self, batch: Batch) -> int:
        """What *batch* takes while it waits, or merged by itself."""
        return batch.nbytes if self._shaping is None else self._shaping.nbytes(batch)

    def _check_size(self, unit: str, wanted: int, limit: int) -> None:
        if wanted > limit:
            raise TooLarge(
                f"batch of {wanted} {unit} exceeds the whole queue of model {self._model!r} ({limit} {unit}); "
                "send smaller batches"
            )

    def _check_outlook(self, key: Key, deadline: Deadline, tenant: str, now: float) -> None:
        """Refuse at once what cannot make it: nothing is gained by letting it wait."""
        if deadline == NO_DEADLINE:
            return
        found = self._outlook(self._kinds.of(key).latency, deadline, tenant, now)
        left_s = deadline - now
        if found.latency_s > left_s:
            self._refusals[Refusal.HOPELESS] += 1
            raise DeadlineExceeded(
                f"model {self._model!r} takes {found.latency_s * 1e3:.1f} ms and {left_s * 1e3:.1f} ms are left; "
                "allow more time"
            )
        if found.wait_s + found.latency_s > left_s:
            self._refusals[Refusal.OVERLOADED] += 1
            raise self._overloaded(f"a new request waits {found.wait_s * 1e3:.1f} ms, too long for its deadline")

    def _make_room(self, items: int, nbytes: int, tenant: str) -> None:
        """Refuse what does not fit the queue; where *tenant* has less than its share, what waits for the greediest."""
        why = self._shortage(items, nbytes)
        assert why is not None, "room was to be made where there is some. This is a bug."
        leaving: list[_Entry] = []
        for entry in self._lanes.surplus(tenant, items):
            leaving.append(entry)
            if not self._shortage(items - sum(e.size for e in leaving), nbytes - sum(e.nbytes for e in leaving)):
                break
        else:  # nobody is refused for what does not fit even then
            self._refusals[Refusal.QUEUE_FULL] += 1
            raise self._overloaded(why)
        crowded = self._overloaded("other tenants have less than their share of the queue")
        self._refuse(leaving, crowded, Refusal.EVICTED)

    def _shortage(self, items: int, nbytes: int) -> str | None:
        """What the queue lacks room for."""
        for unit, wanted, taken, limit in (
            ("items", items, self._lanes.items, self._options.max_queue),
            ("bytes", nbytes, self._lanes.nbytes, self._options.max_queue_bytes),
        ):
            if taken + wanted > limit:
                return f"{taken} of {limit} {unit} wait, {wanted} more do not fit"
        return None

    def _overloaded(self, why: str) -> Overloaded:
        retry_after_s = max(_SHORTEST_RETRY_S, self.forecast().wait_s)
        return Overloaded(f"model {self._model!r} is overloaded: {why}; try again later", retry_after_s=retry_after_s)

    def _enqueue(
        self,
        batch: Batch,
        nbytes: int,
        key: Key,
        deadline: Deadline,
        now: float,
        level: int,
        tenant: str,
        trace: TraceContext | None,
        note: BatchNote | None,
    ) -> _Entry:
        entry = _Entry(batch, nbytes, key, deadline, now, self._loop.create_future(), level, tenant, trace, note)
        self._lanes.add(entry)
        self._deadlines.push(entry)
        if deadline < self._deadline_alarm.when:
            self._deadline_alarm.set(deadline)
        if not self._turn_is_due and self._free_slots() > 0:
            self._turn_is_due = True
            self._loop.call_soon(self._turn_now)
        return entry

    # Departures.

    def _leave(self, entry: _Entry) -> None:
        """Forget *entry*, whose caller waits no longer; harmless where it is gone already."""
        if entry in self._lanes:
            self._lanes.remove(entry)
            self._check_emptied()
        elif (flight := entry.flight) is not None:
            flight.callers -= 1
            if (call := flight.apart.get(entry)) is not None:
                call.cancel()
            elif flight.callers == 0 and flight.task is not None:
                flight.task.cancel()
        entry.let_go()

    def _expire(self, now: float) -> None:
        for entry in self._deadlines.pop_expired(now):
            where = "waiting for" if entry.flight is None else "running on"
            late = DeadlineExceeded(f"the deadline passed while {where} model {self._model!r}")
            self._refuse([entry], late, Refusal.EXPIRED)
        self._deadline_alarm.set(self._deadlines.earliest())

    def _refuse(self, entries: Iterable[_Entry], error: PointsmanError, reason: Refusal | None = None) -> None:
        for entry in entries:
            if reason is not None and not entry.is_over():
                self._refusals[reason] += 1
            self._fail(entry, error)
            self._leave(entry)

    def _expired(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed while waiting for model {self._model!r}")

    def _fail(self, entry: _Entry, error: BaseException, *, is_its_own: bool = True) -> None:
        if not entry.is_over():
            entry.tell_error(_told(error, self._model, is_its_own))

    def _ground(self) -> None:
        """Let everybody leave who is still here."""
        stopped = Unavailable(f"model {self._model!r} stopped taking requests; try again later")
        self._refuse(self._lanes.entries(), stopped)
        for flight in tuple(self._flights):
            self._refuse(flight.entries, stopped)
            if flight.isolation is not None:
                self._refuse(flight.isolation.entries(), stopped)

    def _check_emptied(self) -> None:
        if not self._is_open and not self._lanes:
            self._emptied.set()

    # Turns.

    def _turn_now(self) -> None:
        self._turn(self._clock())

    def _turn(self, now: float) -> None:
        """Start what the policy wants started; never raises."""
        self._turn_is_due = False
        try:
            while self._has_work_for_a_slot() and self._advance(now):
                pass
        except Exception as error:
            failed = PointsmanError(f"requests for model {self._model!r} could not be batched. This is a bug.")
            self._refuse(self._lanes.entries(), failed)
            self._report_bug("the batching policy failed", error)
        self._check_emptied()

    def _has_work_for_a_slot(self) -> bool:
        return self._is_flying and bool(self._lanes) and self._free_slots() > 0

    def _free_slots(self) -> int:
        slots = self._slots if self._limit is None else min(self._slots, self._limit.limit)
        return slots - len(self._flights)

    def _advance(self, now: float) -> bool:
        """Follow one plan; whether it changed anything, so that another is due."""
        plan = self._policy.plan(self._lanes, self._free_slots(), now)
        for entries in plan.batches:  # before anybody is refused: to answer dozens of them takes milliseconds
            self._launch(entries, now)
        if plan.late:
            self._refuse(plan.late, self._expired(), Refusal.EXPIRED)
        if plan.shed:
            self._refuse(plan.shed, self._overloaded("its deadline cannot be met any more"), Refusal.OVERLOADED)
        if plan.batches or plan.late or plan.shed:
            return True
        if not now < plan.wake_at_s < math.inf:
            raise RuntimeError(f"the policy waits at {now} until {plan.wake_at_s}. This is a bug.")
        self._turn_alarm.set(plan.wake_at_s)
        return False

    def _launch(self, entries: Sequence[_Entry], now: float) -> None:
        self._check_planned(entries)
        if self._shaping is not None and self._shaping.pads:  # who is left is in the next plan
            batches = [entry.waiting_batch() for entry in entries]
            entries = entries[: self._shaping.affordable(batches, self._options.max_queue_bytes)]
        self._lanes.take_all(entries)
        self._take_off(entries, now)

    def _take_off(self, entries: Sequence[_Entry], now: float, isolation: Isolation[_Entry] | None = None) -> bool:
        """Send those of *entries* whose callers wait, in a slot that is free; whether there were any."""
        staying = [entry for entry in entries if not entry.is_over()]
        if not staying:
            return False
        flight = _Flight(staying, now, isolation)
        flight.should_end_s += self._kinds.of(staying[0].key).latency.typical_s(flight.size, now)
        for entry in staying:
            entry.flight = flight
        self._flights.add(flight)
        self._hangar.create_task(self._fly(flight))
        return True

    def _check_planned(self, entries: Sequence[_Entry]) -> None:
        """Hold a policy to its word: a batch it should not have planned must never reach a backend."""
        is_mixed = len({entry.key for entry in entries}) != 1
        if is_mixed or not 1 <= sum([entry.size for entry in entries]) <= self._max_batch:
            raise RuntimeError("the policy planned an empty, too large or mixed batch. This is a bug.")
        if not self._lanes.holds(entries):
            raise RuntimeError("the policy planned an entry that does not wait. This is a bug.")

    # Flights.

    async def _supervise(self) -> None:
        async with self._hangar:
            self._is_flying = True
            try:
                await self._emptied.wait()
            except asyncio.CancelledError:  # from outside: nobody may be left behind
                self._is_open = False
                self._ground()
                raise

    def _end(self, _: asyncio.Task[None]) -> None:
        """Clear up after the supervisor, which may have been cancelled before its first step, as may flights."""
        self._is_open = False
        self._ground()
        self._flights.clear()
        self._turn_alarm.set(math.inf)
        self._deadline_alarm.set(math.inf)

    async def _fly(self, flight: _Flight) -> None:
        flight.task = asyncio.current_task()
        if self._takes_shared and goes_apart(flight.batches[0]):
            await self._fly_apart(flight)
            return
        result = await self._attempt(flight)
        now = self._clock()
        is_abandoned = flight.is_abandoned()
        is_taken_apart = isinstance(result, BaseException) and self._take_apart(flight, result)
        self._flights.discard(flight)
        self._learn(flight, result, now)
        if flight.isolation is not None:
            self._resume(flight.isolation, now)
        self._turn(now)
        error = result if isinstance(result, BaseException) else self._deliver(flight, result, now)
        if error is not None and not is_taken_apart:
            is_its_own = len(flight.entries) == 1 or error is not result
            for entry in flight.entries:
                entry.let_go()
                self._fail(entry, error, is_its_own=is_its_own)
        self._observe(flight, now, error, is_abandoned=is_abandoned)

    async def _fly_apart(self, flight: _Flight) -> None:
        """A call for each entry of *flight*, all at once; see the module."""
        flight.batches = []
        parts = [_Flight([entry], flight.started_s, None) for entry in flight.entries if not entry.is_over()]
        flight.apart = {part.entries[0]: self._hangar.create_task(self._fly_part(part)) for part in parts}
        del parts
        if flight.apart:
            await asyncio.wait(flight.apart.values())
        errors = [asyncio.CancelledError() if call.cancelled() else call.result() for call in flight.apart.values()]
        flight.apart = {}
        now = self._clock()
        self._flights.discard(flight)
        error = next(iter(errors), asyncio.CancelledError())
        self._learn(flight, {} if error is None or None in errors else error, now)
        self._turn(now)

    async def _fly_part(self, part: _Flight) -> BaseException | None:
        """Have the backend answer the one entry of *part*, and tell its caller; the error, where there is one."""
        result = await self._attempt(part)
        now = self._clock()
        error = result if isinstance(result, BaseException) else self._deliver(part, result, now)
        is_abandoned = part.is_abandoned()
        if error is not None:
            for entry in part.entries:
                entry.let_go()
                self._fail(entry, error)
        self._observe(part, now, error, is_abandoned=is_abandoned)
        return error

    def _take_apart(self, flight: _Flight, error: BaseException) -> bool:
        """Line up the halves of *flight* to be run again; False where *error* is final."""
        if len(flight.entries) == 1 or not may_be_an_items_fault(error):
            return False
        if flight.isolation is None:
            flight.isolation = Isolation(len(flight.entries))
        if not flight.isolation.halve(flight.entries):
            return False
        for entry in flight.entries:
            entry.flight = None
        return True

    def _resume(self, isolation: Isolation[_Entry], now: float) -> None:
        """Run the next group that somebody waits for."""
        while group := isolation.next_group():
            late = [entry for entry in group if entry.deadline <= now]
            self._refuse(late, self._expired(), Refusal.EXPIRED)
            if self._take_off(group, now, isolation):
                return

    async def _attempt(self, flight: _Flight) -> Tensors | BaseException:
        """The backend's answer, or what came instead; returned, so that no frame here joins a cycle with it.

        A cancellation ends here too: the task has nothing left to do but to clear up.
        """
        try:
            return await self._infer(flight)
        except (Exception, asyncio.CancelledError) as error:
            return error

    async def _infer(self, flight: _Flight) -> Tensors:
        if flight.is_abandoned():  # they left before the task's first step
            raise asyncio.CancelledError
        nbytes = sum(entry.nbytes for entry in flight.entries) if len(flight.entries) > 1 else 0
        batches, flight.batches = flight.batches, []
        if self._shaping is not None:
            flight.padded = padded = self._shaping.padded(batches)
            if padded.total > padded.own > 0:
                nbytes = sum([entry.nbytes for entry in flight.entries]) * padded.total // padded.own
        batch = await self._off_loop(nbytes, merge, batches, self._memory, self._shaping)
        flight.merged_s = self._clock()
        URGENCY.set(min([entry.level for entry in flight.entries]))  # in the context of this flight's own task
        WAITED_S.set(flight.merged_s - min([entry.arrived_s for entry in flight.entries]))
        traces = [entry.trace for entry in flight.entries if entry.trace is not None]
        if traces:
            flight.trace = foremost(traces).child()
            flight.server_calls = [] if flight.trace.is_recorded else None
        TRACE.set(flight.trace)  # always: the context is a copy of another flight's, where that started this one
        SERVER_CALLS.set(flight.server_calls)
        return await self._backend.infer(batch, max(entry.deadline for entry in flight.entries))

    def _deliver(self, flight: _Flight, outputs: Tensors, now: float) -> BaseException | None:
        """Hand every caller its rows, or say why none of them can be trusted."""
        try:
            if problem := check_outputs(self._signature, outputs, flight.size):
                return BackendFailed(f"model {self._model!r} gave a wrong answer: {problem}")
            replies = split(outputs, [entry.size for entry in flight.entries], flight.padded)
        except Exception as error:
            failed = BackendFailed(f"model {self._model!r} gave an answer that cannot be split")
            failed.__cause__ = error
            return failed
        name, took_s = self._name_batch(), now - flight.merged_s
        for entry, reply in zip(flight.entries, replies, strict=True):
            entry.let_go()
            if entry.note is not None:
                entry.note.answered(name, flight.size, entry.size, took_s)
            if entry.deadline <= now:
                late = DeadlineExceeded(f"model {self._model!r} answered after the deadline")
                self._refuse([entry], late, Refusal.EXPIRED)
            else:
                entry.tell(reply)
        return None

    def _name_batch(self) -> str:
        """An id that no other batch of this model, in whatever process, is likely to have."""
        return f"{self._prefix}-{self._batches:x}"

    def _learn(self, flight: _Flight, result: Tensors | BaseException, now: float) -> None:
        """Take note of how long *flight*, which has landed, took; of one that was too late, that it took longer."""
        latency = self._kinds.of(flight.entries[0].key).latency
        if isinstance(result, BaseException):
            if self._limit is not None and isinstance(result, DeadlineExceeded | Unavailable):
                self._limit.refused()
            # If nothing were learnt of a batch that was given up, the next would be as large, and so given up as well.
            took_s, is_late = now - flight.started_s, now >= min([entry.deadline for entry in flight.entries])
            gave_up = isinstance(result, asyncio.CancelledError | DeadlineExceeded)
            if gave_up and is_late and took_s > latency.cautious_s(flight.size, now):
                latency.observe(flight.size, took_s, now)
            return
        latency.observe(flight.size, now - flight.started_s, now)
        if self._limit is not None:
            in_flight = len(self._flights) + 1
            self._limit.answered(flight.size, now - flight.merged_s, latency.line(now), in_flight, now)

    def _observe(self, flight: _Flight, now: float, error: BaseException | None, *, is_abandoned: bool) -> None:
        outcome = Outcome.ANSWERED if error is None else Outcome.ABANDONED if is_abandoned else Outcome.FAILED
        self._batches += 1
        self._items += flight.size
        if outcome is Outcome.ANSWERED:
            instants_s = (flight.started_s, flight.merged_s, now, self._clock())
            self._counters.answered(flight.size, [entry.arrived_s for entry in flight.entries], instants_s)
        report = BatchReport(
            model=self._model,
            size=flight.size,
            entries=len(flight.entries),
            queued_s=flight.started_s - min(entry.arrived_s for entry in flight.entries),
            infer_s=now - flight.started_s,
            outcome=outcome,
            error=error,
            padding=flight.padded.wasted if flight.padded is not None else None,
            trace=_trace_of(flight) if flight.trace is not None and flight.trace.is_recorded else None,
        )
        try:
            self._observer.on_batch(report)
        except Exception as bug:
            self._report_bug("a batch observer failed", bug)

    def _report_bug(self, what: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{what} (model {self._model!r})", "exception": error})

    async def _off_loop(self, nbytes: int, work: Callable[..., T], *arguments: Any) -> T:
        """Do *work* here where it is small, else on a thread: the loop must not stall."""
        if nbytes <= _MERGED_ON_LOOP_BYTES:
            return work(*arguments)
        return await self._loop.run_in_executor(None, work, *arguments)


def _trace_of(flight: _Flight) -> BatchTrace:
    """What is told of *flight*, which is traced."""
    assert flight.trace is not None
    return BatchTrace(
        flight.trace,
        tuple(
            BatchedCaller(entry.trace, None if flight.is_again else flight.started_s - entry.arrived_s)
            for entry in flight.entries
            if entry.trace is not None
        ),
        tuple(flight.server_calls or ()),
    )


def _points(curve: Iterable[tuple[int, float, float]]) -> tuple[CurvePoint, ...]:
    return tuple([CurvePoint(*point) for point in curve])


def _told(error: BaseException, model: str, is_its_own: bool) -> PointsmanError:
    """What one caller is told of *error*: an exception of its own, caused by *error*.

    Args:
        is_its_own: whether *error* can be about no other caller's item.
    """
    if isinstance(error, PointsmanError) and (is_its_own or not may_be_an_items_fault(error)):
        told = type(error).__new__(type(error), *error.args)  # a copy; an adapter's subclass may construct otherwise
        vars(told).update(vars(error))
    elif isinstance(error, asyncio.CancelledError):
        told = Unavailable(f"model {model!r} was stopped while it worked on the request; try again later")
    else:
        told = BackendFailed(f"model {model!r} failed on the batch that the request was in")
    told.__cause__ = error
    return told
