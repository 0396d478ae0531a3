"""What stands before a model that keeps state: requests of one sequence go one at a time, in order, each alone.

It takes the batcher's place for such a model, and there is nothing to batch here: a step needs the state that the one
before it left, and steps of different sequences are merged where the states are, by the server's sequence batcher.

    submit -> the sequence's line: first come, first served -> is there such a sequence? -> Backend.infer -> outputs

**Ids.** What callers call a sequence is theirs: two tenants, or two routes, may use the same id. Each sequence gets an
id of ours (`SequenceCall.id`) when it starts. One that is begun anew after it was lost gets another, so that what may
still be on its way to the old state never meets the new one.

**What ends a sequence.** Its `sequence_end`; the idle time that the backend states; and whatever leaves nobody knowing
whether the model took a step: no answer in time, a server that is lost, a caller that leaves, an answer that could not
be kept (`give_up`). The sequence is *over* then: the request, and all that come later, are refused with `SequenceOver`
until one starts it anew. An answer that is an error (`BackendFailed`, `InvalidInput`, `Overloaded`) ends nothing: the
model has said what became of the step, and its server goes on with the sequence.

**Gaps.** A request that leaves the line unanswered (it is cancelled, or its deadline passes) was never seen by the
model. Its caller knows, so the sequence goes on, except where others stood behind it: these were sent in the belief
that it goes before them, and would step over the gap. The sequence ends when their turn comes.

**Limits.** So many sequences live, and so many requests wait, in one line and in all. A sequence has one request at
the backend at most, so that its number of slots needs no attention; a limit on calls would even be wrong, as requests
of sequences that wait for a slot at the server would keep out the steps that free one. Among tenants, one that has
many sequences may begin another only while it has fewer than eight times what is free, which leaves room for those
that have few; one alone may have all.

Rejected: taking an idle sequence from the greediest tenant for one that has none. A sequence that is lost costs its
caller all its steps, one that is refused costs nothing.

Sources: Triton's sequence batcher (`src/sequence_batch_scheduler.cc`, 2.51) for what is refused, and in which words;
Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches" (1998), for the share.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from backends.contract import (
    NO_DEADLINE,
    SEQUENCE,
    URGENCY,
    Backend,
    Batch,
    Deadline,
    Home,
    SequenceCall,
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
    SequenceOver,
    SequenceUnknown,
    Unavailable,
)
from batching.latency import Arrivals, Forecast, LatencyCurve
from batching.options import BatchingOptions, SequenceOptions
from batching.report import (
    BatchingCounters,
    BatchingStatistics,
    BatchingTotals,
    BatchObserver,
    BatchReport,
    CurvePoint,
    IgnoreBatches,
    Outcome,
    Refusal,
    SequenceStatistics,
)

Key: TypeAlias = tuple[str, str, int | str]
"""A sequence as its caller means it: the tenant, what it calls the model, and its own id."""

_ALPHA: Final = 8  # times what is free, that a tenant may have among others
_CONTENDED_S: Final = 10.0  # for which a tenant that was refused counts as one of these
_OVER_S: Final = 300.0  # for which it is remembered that a sequence is over; later it is one that never was
_ID_BITS: Final = 63
_SHORTEST_RETRY_S: Final = 0.1

_ANSWERS = (InvalidInput, BackendFailed, Overloaded)  # errors with which a server says what became of a step


@dataclass(frozen=True, slots=True)
class Step:
    """A request as one of a sequence.

    Attributes:
        tenant: whose it is.
        name: what its caller calls the model.
        id: the caller's own, neither 0 nor "".
        starts: it is the first one.
        ends: it is the last one.
    """

    tenant: str
    name: str
    id: int | str
    starts: bool = False
    ends: bool = False

    @property
    def key(self) -> Key:
        """Which sequence is meant."""
        return self.tenant, self.name, self.id


class _Sequence(Home):
    """One that lives.

    Attributes:
        was_answered: a step of it; before that, there is no state to lose.
    """

    __slots__ = ("id", "was_answered")

    def __init__(self) -> None:
        Home.__init__(self)
        self.id = secrets.randbits(_ID_BITS) or 1
        self.was_answered = False


class _Waiter:
    """A request in a line.

    Attributes:
        has_turn: it is the one whose turn it is.
        follows_gap: one that stood before it has left without an answer.
    """

    __slots__ = ("arrived_s", "follows_gap", "has_turn", "nbytes", "turn")

    def __init__(self, turn: asyncio.Future[None], nbytes: int, now: float) -> None:
        self.turn = turn
        self.nbytes = nbytes
        self.arrived_s = now
        self.has_turn = False
        self.follows_gap = False


class _Line:
    """The requests of one sequence, and the sequence while it lives.

    Attributes:
        is_busy: one of the requests has its turn.
        idle_since: when the last one ended.
    """

    __slots__ = ("idle_since", "is_busy", "sequence", "waiting")

    def __init__(self) -> None:
        self.is_busy = False
        self.waiting: deque[_Waiter] = deque()
        self.sequence: _Sequence | None = None
        self.idle_since = 0.0


class SequenceRunner:
    """Runs the sequences of one model; see the module for how.

    Belongs to the event loop that started it. Requests run in their callers' tasks.

    Args:
        model: the model's name, for messages and reports.
        backend: what answers, and keeps the states; stays open when this closes.
        options: of them, how much may wait, and what priorities count.
        limits: of sequences.
        observer: is told of every step.
        clock: of the deadlines, in seconds.

    Raises:
        ValueError: *backend* keeps no state.
    """

    def __init__(
        self,
        model: str,
        backend: Backend,
        options: BatchingOptions,
        limits: SequenceOptions,
        *,
        observer: BatchObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        idle_s = backend.limits.sequence_idle_s
        if idle_s is None:
            raise ValueError(f"model {model!r} keeps no state over sequences")
        self._model = model
        self._backend = backend
        self._options = options
        self._limits = limits
        self._observer = observer or IgnoreBatches()
        self._clock = clock
        self._idle_s = idle_s
        self._signature = backend.signature
        self._lines: dict[Key, _Line] = {}
        self._idle: OrderedDict[Key, _Line] = OrderedDict()  # those in which nobody is, the longest idle first
        self._over: OrderedDict[Key, float] = OrderedDict()  # since when
        self._held: dict[str, int] = {}  # sequences, by tenant
        self._live = 0
        self._contended_until = -math.inf
        self._waiting = 0
        self._waiting_bytes = 0
        self._running: set[asyncio.Timeout] = set()
        self._emptied = asyncio.Event()
        self._requests = 0
        self._started = 0
        self._lost = 0
        self._steps = 0
        self._latency = LatencyCurve()
        self._arrivals = Arrivals()
        self._counters = BatchingCounters()
        self._refusals = dict.fromkeys(Refusal, 0)
        self._is_open = False

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<SequenceRunner {self._model!r} {state}, {self._live} live, {self._waiting} wait>"

    def start(self) -> None:
        """Accept requests, on the running event loop."""
        self._is_open = True

    async def warm_up(self) -> None:
        """Nothing: a step without a sequence means nothing, and so teaches nothing."""

    async def aclose(self, *, drain: bool = True) -> None:
        """Accept nothing more, and end; what lives is forgotten.

        Never started, or closed before: harmless.

        Args:
            drain: whether requests that were accepted are answered first; if not, they are refused.
        """
        self._is_open = False
        if not drain:
            self._stop()
        while self._requests:
            self._emptied.clear()
            await self._emptied.wait()
        self._forget_all()

    def _stop(self) -> None:
        for line in self._lines.values():
            for waiter in line.waiting:
                if not waiter.turn.done():
                    waiter.turn.set_exception(self._stopped())
        for limit in self._running:
            limit.reschedule(asyncio.get_running_loop().time())

    def _stopped(self) -> Unavailable:
        return Unavailable(f"model {self._model!r} stopped taking requests; try again later")

    def _forget_all(self) -> None:
        self._lost += self._live
        self._live = 0
        self._lines.clear()
        self._idle.clear()
        self._held.clear()

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._is_open

    @property
    def max_batch(self) -> int:
        """Most items in one call of the backend."""
        return 1

    @property
    def takes_shared(self) -> bool:
        """Whether inputs may be windows of shared memory: they may not."""
        return False

    @property
    def max_delay_s(self) -> float:
        """Seconds that an item waits for others: none."""
        return 0.0

    @property
    def idle_s(self) -> float:
        """Seconds without a request after which a sequence is forgotten."""
        return self._idle_s

    def forecast(self, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> Forecast:
        """What a request has to expect whose sequence has none other under way."""
        return Forecast(0.0, self._latency.typical_s(1, self._clock()))

    def has(self, key: Key) -> bool:
        """Whether a sequence of *key* lives here, or is being begun."""
        self._forget_idle(self._clock())
        return key in self._lines

    def has_lost(self, key: Key) -> bool:
        """Whether one is over here, so that requests that go on with it are told so."""
        return key in self._over

    def sequences(self) -> SequenceStatistics:
        """How many there are, and what became of others."""
        self._forget_idle(self._clock())
        return SequenceStatistics(self._live, self._started, self._lost)

    def statistics(self) -> BatchingStatistics:
        """What is going on now; every step counts as a batch."""
        now = self._clock()
        waiting = [waiter.arrived_s for line in self._lines.values() for waiter in line.waiting]
        return BatchingStatistics(
            queued_items=self._waiting,
            queued_bytes=self._waiting_bytes,
            in_flight=len(self._running),
            batches=self._steps,
            items=self._steps,
            latency_s=self._latency.typical_s(1, now),
            predicted_wait_s=0.0,
            curve=tuple([CurvePoint(*point) for point in self._latency.curve([1], now)]),
            refusals=dict(self._refusals),
            oldest_wait_s=now - min(waiting, default=now),
            arrivals_per_s=self._arrivals.per_s(now),
        )

    def totals(self) -> BatchingTotals:
        """What was answered since the start."""
        return self._counters.totals()

    # A request.

    async def submit(self, batch: Batch, deadline: Deadline, step: Step | None, priority: int = 0) -> Tensors:
        """Answer *batch*, one item, as the next step of its sequence.

        Args:
            step: None: the request names no sequence.
            priority: as the options have it; the backend may pass it on.

        Raises:
            InvalidInput: *batch* is not what the model's signature says, or more than one item; or there is no *step*.
            SequenceUnknown: the sequence was not begun, has ended, or was idle for too long.
            SequenceOver: its state is lost.
            DeadlineExceeded: *deadline* passed first.
            Unavailable: too many sequences live, or too much waits; or this is closed.
            PointsmanError: what the backend raised.
        """
        now = self._clock()
        step = self._admit(batch, deadline, step, now)
        self._arrivals.observe(1, now)
        line = self._line(step.key, now)
        self._requests += 1
        try:
            follows_gap = await self._turn(line, batch, deadline, now) if line.is_busy else False
            line.is_busy = True
            try:
                return await self._take(line, batch, deadline, step, priority, now, follows_gap=follows_gap)
            finally:
                self._pass_on(line)
        finally:
            self._requests -= 1
            self._settle(step.key, line)

    def give_up(self, key: Key) -> None:
        """End a sequence whose caller never hears of a step that the model took; harmless where there is none."""
        line = self._lines.get(key)
        if line is not None and line.sequence is not None:
            self._lose(key, line)

    def _admit(self, batch: Batch, deadline: Deadline, step: Step | None, now: float) -> Step:
        """Refuse what the model could never answer."""
        if not self._is_open:
            raise Unavailable(f"model {self._model!r} is not taking requests; try again later")
        if deadline <= now:
            self._refusals[Refusal.EXPIRED] += 1
            raise DeadlineExceeded(f"the deadline passed before the request reached model {self._model!r}")
        if step is None:
            raise InvalidInput(
                f"inference request to model {self._model!r} must specify a non-zero or non-empty correlation ID: "
                "it keeps state, so send sequence_id"
            )
        if batch.size != 1:
            raise InvalidInput(
                f"inference request to model {step.name!r} must specify batch-size 1 due to requirements of sequence "
                f"batcher; it has {batch.size}"
            )
        check_batch(self._signature, batch, self._backend.limits)
        return step

    def _line(self, key: Key, now: float) -> _Line:
        """The line of *key*, in which there is somebody from now on."""
        self._forget_idle(now)
        self._idle.pop(key, None)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        return line

    def _settle(self, key: Key, line: _Line) -> None:
        """Whoever was in *line* has left it: it is idle, or gone."""
        if not line.is_busy and not line.waiting and self._lines.get(key) is line:
            if line.sequence is None:
                del self._lines[key]
            else:
                line.idle_since = self._clock()
                self._idle[key] = line
                self._idle.move_to_end(key)
        if not self._requests:
            self._emptied.set()

    # Turns.

    async def _turn(self, line: _Line, batch: Batch, deadline: Deadline, now: float) -> bool:
        """Wait for the turn in *line*; whether somebody who stood before left without an answer."""
        nbytes = batch.nbytes
        self._check_queue(line, nbytes)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), nbytes, now)
        line.waiting.append(waiter)
        self._waiting += 1
        self._waiting_bytes += nbytes
        try:
            async with asyncio.timeout(_left_s(deadline, now)) as limit:
                await waiter.turn
        except BaseException as error:
            self._leave(line, waiter)
            if isinstance(error, TimeoutError) and limit.expired():
                self._refusals[Refusal.EXPIRED] += 1
                raise DeadlineExceeded(
                    f"the deadline passed while earlier requests of this sequence were with model {self._model!r}"
                ) from error
            raise
        return waiter.follows_gap

    def _check_queue(self, line: _Line, nbytes: int) -> None:
        options = self._options
        for what, taken, wanted, limit in (
            ("requests of this sequence", len(line.waiting), 1, self._limits.max_waiting),
            ("requests", self._waiting, 1, options.max_queue),
            ("bytes", self._waiting_bytes, nbytes, options.max_queue_bytes),
        ):
            if taken + wanted > limit:
                self._refusals[Refusal.QUEUE_FULL] += 1
                raise Overloaded(
                    f"model {self._model!r} is overloaded: {taken} of {limit} {what} wait, {wanted} more do not fit; "
                    "try again later",
                    retry_after_s=max(_SHORTEST_RETRY_S, self._latency.typical_s(1, self._clock()) * taken),
                )

    def _leave(self, line: _Line, waiter: _Waiter) -> None:
        """*waiter* goes without an answer; where its turn had come, the next one's does."""
        if waiter.has_turn:
            self._mark_gap(line)
            self._pass_on(line)
        elif waiter in line.waiting:
            behind = line.waiting.index(waiter) + 1
            if behind < len(line.waiting):
                line.waiting[behind].follows_gap = True
            line.waiting.remove(waiter)
            self._left_queue(waiter)

    def _mark_gap(self, line: _Line) -> None:
        """Whoever has the turn takes no step, and is told so; whoever stands behind is not."""
        if line.waiting:
            line.waiting[0].follows_gap = True

    def _left_queue(self, waiter: _Waiter) -> None:
        self._waiting -= 1
        self._waiting_bytes -= waiter.nbytes

    def _pass_on(self, line: _Line) -> None:
        """The turn is over; it stays with the line where somebody waits."""
        line.is_busy = False
        while line.waiting and not line.is_busy:
            waiter = line.waiting.popleft()
            self._left_queue(waiter)
            if waiter.turn.done():  # it is about to leave
                self._mark_gap(line)
            else:
                waiter.turn.set_result(None)
                waiter.has_turn = line.is_busy = True

    # Steps.

    async def _take(
        self,
        line: _Line,
        batch: Batch,
        deadline: Deadline,
        step: Step,
        priority: int,
        arrived_s: float,
        *,
        follows_gap: bool,
    ) -> Tensors:
        """Take *step* in its turn, and enter what became of the sequence."""
        now = self._clock()
        if deadline <= now:
            self._refusals[Refusal.EXPIRED] += 1
            self._mark_gap(line)
            raise DeadlineExceeded(f"the deadline passed before the request reached model {self._model!r}")
        if follows_gap and not step.starts and line.sequence is not None:
            self._lose(step.key, line)
        sequence = self._enter(line, step, now)
        call = SequenceCall(sequence.id, step.starts, step.ends, sequence)
        try:
            outputs = await self._ask(batch, deadline, call, priority)
        except BaseException as error:
            self._observe(arrived_s, now, error)
            told = self._failed(line, step, error)
            if told is error:
                raise
            raise told from error
        sequence.was_answered = True
        if step.ends:
            self._release(step.key, line)
        self._observe(arrived_s, now, None)
        return outputs

    def _enter(self, line: _Line, step: Step, now: float) -> _Sequence:
        """The sequence of *step*, which begins with it, or lives."""
        if line.sequence is not None:
            return line.sequence
        if not step.starts:
            if step.key in self._over:
                raise _over(step)
            raise _unknown(step)
        self._check_room(step.tenant, now)
        self._over.pop(step.key, None)
        line.sequence = _Sequence()
        self._live += 1
        self._started += 1
        self._held[step.tenant] = self._held.get(step.tenant, 0) + 1
        return line.sequence

    async def _ask(self, batch: Batch, deadline: Deadline, call: SequenceCall, priority: int) -> Tensors:
        with _told(call, self._options.level(priority)):
            try:
                async with asyncio.timeout(_left_s(deadline, self._clock())) as limit:
                    self._running.add(limit)
                    outputs = await self._backend.infer(batch, deadline)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                if not self._is_open and self._clock() < deadline:
                    raise self._stopped() from error
                raise DeadlineExceeded(f"the deadline passed while running on model {self._model!r}") from error
            finally:
                self._running.discard(limit)
        if problem := check_outputs(self._signature, outputs, 1):
            raise BackendFailed(f"model {self._model!r} gave a wrong answer: {problem}")
        return outputs

    def _failed(self, line: _Line, step: Step, error: BaseException) -> BaseException:
        """What to tell of *error*, and what it means for the sequence of *line*: see the module."""
        if line.sequence is None:  # it was given up meanwhile
            return error
        if isinstance(error, SequenceUnknown):  # its first step never came to where its state would be
            self._release(step.key, line)
            return _unknown(step)
        if isinstance(error, _ANSWERS):
            was_refused = isinstance(error, Overloaded)
            if (step.starts and was_refused) or (step.ends and isinstance(error, BackendFailed)):
                self._release(step.key, line)
            return error
        self._lose(step.key, line)
        if isinstance(error, DeadlineExceeded):
            return DeadlineExceeded(f"{error}; nobody knows whether the step was taken, so begin a new sequence")
        if isinstance(error, SequenceOver) or (isinstance(error, Unavailable) and self._is_open and not step.starts):
            return _over(step)
        if isinstance(error, PointsmanError) or not isinstance(error, Exception):
            return error
        return BackendFailed(f"model {self._model!r} failed on this request")

    def _observe(self, arrived_s: float, began_s: float, error: BaseException | None) -> None:
        now = self._clock()
        self._steps += 1
        if error is None:
            self._latency.observe(1, now - began_s, now)
            self._counters.answered(1, [arrived_s], (began_s, began_s, now, now))
        cancelled = isinstance(error, asyncio.CancelledError)
        outcome = Outcome.ANSWERED if error is None else Outcome.ABANDONED if cancelled else Outcome.FAILED
        report = BatchReport(self._model, 1, 1, began_s - arrived_s, now - began_s, outcome, error)
        try:
            self._observer.on_batch(report)
        except Exception as bug:
            told = {"message": f"a batch observer failed (model {self._model!r})", "exception": bug}
            asyncio.get_running_loop().call_exception_handler(told)

    # Sequences.

    def _check_room(self, tenant: str, now: float) -> None:
        """Refuse a new sequence where there is no room, or too little is left for others.

        Raises:
            Overloaded: says why.
        """
        most = self._limits.max_live
        free = most - self._live
        held = self._held.get(tenant, 0)
        others = len(self._held) - (held > 0)
        is_contended = others > 0 or now < self._contended_until
        if free > 0 and (held < _ALPHA * free or not is_contended):
            return
        if held * (others + 1) < most:  # it has less than its share
            self._contended_until = now + _CONTENDED_S
        self._refusals[Refusal.QUEUE_FULL] += 1
        why = f"{self._live} of {most} sequences live"
        if free > 0:
            why += f", and the {free} left are for tenants that have fewer than yours"
        retry_after_s = self._idle_s
        if self._idle:
            retry_after_s -= now - next(iter(self._idle.values())).idle_since
        raise Overloaded(
            f"model {self._model!r} is overloaded: {why}; try again later",
            retry_after_s=max(_SHORTEST_RETRY_S, retry_after_s),
        )

    def _forget_idle(self, now: float) -> None:
        """Let go of sequences whose states the backend has let go of, and of those that are long over."""
        while self._idle:
            key, line = next(iter(self._idle.items()))
            if now - line.idle_since < self._idle_s:
                break
            del self._idle[key], self._lines[key]
            self._release(key, line)
        while self._over:
            key, since_s = next(iter(self._over.items()))
            if now - since_s < _OVER_S and len(self._over) <= self._limits.max_live:
                break
            del self._over[key]

    def _release(self, key: Key, line: _Line) -> None:
        """The sequence of *line* lives no longer; harmless where it had ended already."""
        if line.sequence is None:
            return
        line.sequence = None
        self._live -= 1
        tenant = key[0]
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]

    def _lose(self, key: Key, line: _Line) -> None:
        """The sequence of *line* is over."""
        assert line.sequence is not None, "a sequence was lost that does not live. This is a bug."
        self._lost += line.sequence.was_answered
        self._release(key, line)
        if self._idle.pop(key, None) is not None:
            del self._lines[key]
        self._over[key] = self._clock()


@contextmanager
def _told(call: SequenceCall, urgency: int) -> Iterator[None]:
    """Tell the backend beside its call what it is in a sequence, and how urgent."""
    sequence, urgent = SEQUENCE.set(call), URGENCY.set(urgency)
    try:
        yield
    finally:
        URGENCY.reset(urgent)
        SEQUENCE.reset(sequence)


def _over(step: Step) -> SequenceOver:
    return SequenceOver(
        f"sequence {step.id} of model {step.name!r} is over: its state is lost, or nobody knows whether its last step "
        "was taken; begin it anew, with sequence_start"
    )


def _unknown(step: Step) -> SequenceUnknown:
    return SequenceUnknown(
        f"inference request for sequence {step.id} to model {step.name!r} must specify the START flag on the first "
        "request of the sequence"
    )


def _left_s(deadline: Deadline, now: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - now)
