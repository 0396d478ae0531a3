"""Several servers of one model as one backend: balanced, watched, tried again elsewhere, and mended.

`open_replicas` opens them; `Replicas.infer` is the way of a call:

    choose a replica (`balance`) -> an attempt with its part of the deadline (`pacing`)
        answered                          -> the answer; its latency counts (`latency`, `health`)
        ReplicaFailed, or it ran out      -> counts against the replica (`health`);
                                             if the budget allows it (`budget`), tried again, elsewhere if possible
        BackendFailed                     -> asked for a second opinion elsewhere, like a retry
        anything else                     -> the caller's: InvalidInput, Overloaded, cancellation

Beside the calls one task supervises a `keeper` a replica, which opens, probes and reopens it. What is decided stands
in `pool` and below it, without I/O or a clock; here, and in `keeper`, it is done.

**Retries.** Inference has no side effects, so every call may be tried again. The first retry, at *another* replica,
is made at once: backing off gives a server time, and that one needs none. A retry at a replica that failed already, or
after two have failed, which is hardly chance, waits rand(0, min(1 s, 50 ms x 2^n)) before. None begins with less time
left than half of the replica's answers take. Only this layer retries: adapters and callers do not.

**A second opinion.** A server that says that its model failed may mean the batch, or be a server whose accelerator is
lost; what it says is the same (an error 500, INTERNAL). So one other replica is asked, within the retry budget. If that
answers, the first one has failed, and it counts against it; if it fails too, the batch is to blame, and nobody else.

**A call's arrays are nobody's but the caller's when it is over**: an attempt that is cut off is cancelled and waited
for, so a replica must end cancelled calls at once (in-process functions, which nothing can stop, gain no time by it).

**A hedge** (off by default) is a copy of a call that has taken longer than 95 % of the last ones, of which there must
be 100, at another replica; the first answer wins, the other attempt is cancelled. At most 5 % of the calls are
copied, and none while the replicas have half of what they overlap to do, where copies would only queue.

**Sequences** (`SEQUENCE`). The first call of one goes where `balance` says, and may be tried again elsewhere, as
nobody has any state yet. The others go to the server that has the state, whatever its health, once, without a retry, a
second opinion or a copy. A server that was opened anew is another one.

**None in service**: calls fail at once, with the time until one may be tried. That needs a pool of one, or replicas
that cannot be reached at all; ejection alone leaves at least half of a pool in (`health`).

Rejected: a queue here for calls that find no replica (the batcher has one, which knows deadlines); passing on
`FAILED` of one replica as the state of all; racing all replicas at once (an attempt costs what an answer costs).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from backends.contract import (
    SEQUENCE,
    SERVER_CALLS,
    TRACE,
    Backend,
    Batch,
    Deadline,
    Limits,
    SequenceCall,
    ServerCall,
    Signature,
    State,
    Tensors,
)
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    PointsmanError,
    ReplicaFailed,
    SequenceOver,
    SequenceUnknown,
    Unavailable,
    error_of,
)
from backends.in_flight import InFlight
from backends.replicas.attempts import call_off, first_to_decide
from backends.replicas.budget import Budget
from backends.replicas.fit import Common, common
from backends.replicas.keeper import Keeper, begin_opening, cannot_open, close_all, close_leaving, warn_of
from backends.replicas.options import ReplicaOptions
from backends.replicas.pacing import attempt_s, backoff_s, was_enough
from backends.replicas.pool import Pool
from backends.replicas.replica import Opener, Probed, Replica
from backends.replicas.report import HedgeMade, Logged, ReplicaObserver, ReplicasStatistics, RetryMade
from backends.told import Loaded, loaded_of

__all__ = ["Opener", "Probed", "Replicas", "open_replicas"]

_OWN_DEADLINE: Final = 0.9  # of the time that a server was given; timers are not so wrong


@dataclass(slots=True)
class _Call:
    """One call on its way: what it asks, and where it has been."""

    batch: Batch
    deadline: Deadline
    attempts_left: int
    tried: list[Replica]
    sequence: SequenceCall | None
    doubted: tuple[Replica, BackendFailed] | None = None  # who says that the model failed on the batch


class _Place(NamedTuple):
    """Where the state of a sequence is."""

    replica: Replica
    backend: Backend

    def is_there(self) -> bool:
        """Whether it can still be reached."""
        return self.replica.backend is self.backend and self.backend.state is State.READY


class Replicas:
    """The replicas of one model as a backend; `open_replicas` builds it. Owns them: closing this closes all."""

    def __init__(
        self,
        model_name: str,
        pool: Pool,
        shared: Common,
        options: ReplicaOptions,
        clock: Callable[[], float],
        rng: random.Random,
        observer: ReplicaObserver,
    ) -> None:
        """Args:
        model_name: names the model in errors and records.
        pool: the replicas, some of them open.
        shared: what they have in common.
        options: as configured.
        clock: of deadlines; `asyncio` waits beside it.
        rng: of pauses.
        observer: is told of retries and hedges.
        """
        self._name = model_name
        self._pool = pool
        self._shared = shared
        self._options = options
        self._clock = clock
        self._rng = rng
        self._observer = observer
        self._budget = Budget()
        self._retries = 0
        self._retry_ended = asyncio.Event()  # the next one that ends sets it
        self._calls = InFlight()
        self._closing = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"replicas of {model_name}")

    def __repr__(self) -> str:
        states = ", ".join(f"{one.address} {one.state}" for one in self.statistics().replicas)
        return f"<Replicas of {self._name!r}: {self.state}, {self._calls.count} calls; {states}>"

    @property
    def signature(self) -> Signature:
        """Of every replica."""
        return self._shared.signature

    @property
    def version(self) -> str:
        """Of every replica."""
        return self._shared.version

    @property
    def limits(self) -> Limits:
        """What all replicas open at the start take, and what they overlap together."""
        return self._shared.limits

    @property
    def state(self) -> State:
        """Ready while any replica is usable, failed while none is, closed after `aclose`."""
        if self._closing.is_set():
            return State.CLOSED
        return State.READY if self._pool.is_usable(self._clock()) else State.FAILED

    def statistics(self) -> ReplicasStatistics:
        """All replicas as they are now."""
        now = self._clock()
        return ReplicasStatistics(
            self._name,
            tuple(replica.statistics(now) for replica in self._pool.replicas),
            self._calls.count,
            self._retries,
            self._budget.retries_refused,
            self._budget.hedges,
        )

    @property
    def loaded(self) -> Loaded | None:
        """What the model takes on the server where it takes most, where it was loaded for this; else None."""
        found = [one for replica in self._pool.replicas if (one := _loaded(replica)) is not None]
        known = [one.nbytes for one in found if one.nbytes is not None]
        return Loaded(max(known, default=None)) if found else None

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Answer *batch* from whichever replica can; see `Backend.infer`.

        Raises:
            ReplicaFailed: every attempt failed, or the retry budget is used up.
            Unavailable: no replica is in service, or closed.
        """
        now = self._clock()
        self._admit(batch, deadline, now)
        self._budget.call_came(now)
        sequence = SEQUENCE.get()
        call = _Call(batch, deadline, self._options.attempts, [], sequence)
        with self._calls:
            return await (self._answer(call) if sequence is None else self._go_on(call, sequence, now))

    async def aclose(self) -> None:
        """Refuse further calls, wait for those in flight, and close every replica."""
        self._closing.set()
        await asyncio.shield(self._supervisor)  # a closer that is cancelled leaves the closing to go on

    def _admit(self, batch: Batch, deadline: Deadline, now: float) -> None:
        if self._closing.is_set():
            raise Unavailable(f"model {self._name!r} is closed; send the request elsewhere")
        if not 1 <= batch.size <= self.limits.max_batch:
            raise InvalidInput(f"batch of {batch.size} is outside 1 to {self.limits.max_batch}, the backend's limit")
        if now >= deadline:
            raise DeadlineExceeded(f"the deadline passed before model {self._name!r} started; allow more time")

    async def _answer(self, call: _Call) -> Tensors:
        failed: ReplicaFailed | BackendFailed | None = None
        try:
            while failed is None or self._may_retry(call):
                try:
                    outputs = await (self._ask(call, self._choose()) if failed is None else self._retry(call, failed))
                except ReplicaFailed as error:
                    failed = error
                except BackendFailed as error:
                    if call.doubted is not None or not self._is_another(call):
                        raise
                    call.doubted = call.tried[-1], error
                    failed = error
                else:
                    self._blame_who_was_wrong(call)
                    return outputs
            raise failed if call.doubted is None else call.doubted[1]
        finally:
            failed = call.doubted = None  # tracebacks lead here: a cycle would keep the tensors until a collection

    async def _go_on(self, call: _Call, sequence: SequenceCall, now: float) -> Tensors:
        """Answer the next call of *sequence* where its state is; the first one, where there is none, anywhere."""
        place = sequence.home.place
        is_there = isinstance(place, _Place) and place.is_there()
        if isinstance(place, _Place) and is_there and not (sequence.starts and place.replica.health.is_out(now)):
            return await self._attempt(call, place.replica, attempts_left=1)
        if sequence.starts:
            return await self._answer(call)
        if place is None:
            raise SequenceUnknown(f"model {self._name!r} has not begun this sequence; begin it")
        raise SequenceOver(f"the server of model {self._name!r} that had the state of this sequence is gone")

    def _is_another(self, call: _Call) -> bool:
        return self._pool.choose(self._clock(), call.tried) not in (None, *call.tried)

    def _blame_who_was_wrong(self, call: _Call) -> None:
        if call.doubted is not None:
            self._pool.was_wrong(call.doubted[0], self._clock())

    def _may_retry(self, call: _Call) -> bool:
        return call.attempts_left > 0 and self._budget.grant_retry(self._clock())

    async def _retry(self, call: _Call, failed: PointsmanError) -> Tensors:
        await self._turn_to_retry(call, failed)
        try:
            made = self._options.attempts - call.attempts_left
            replica = self._choose(call.tried)
            pause_s = 0.0 if made == 1 and replica not in call.tried else backoff_s(made - 1, self._rng)
            self._require_time(call, replica, pause_s, failed)
            if pause_s > 0.0:
                await asyncio.sleep(pause_s)
                replica = self._choose(call.tried)  # much may have changed
            self._retries += 1
            last = call.tried[-1].address
            self._observer.on_retry(RetryMade(self._name, last, replica.address, made + 1, pause_s))
            return await self._ask(call, replica)
        finally:
            self._budget.end_retry()
            self._retry_ended.set()
            self._retry_ended = asyncio.Event()

    async def _turn_to_retry(self, call: _Call, failed: PointsmanError) -> None:
        while not self._budget.begin_retry(self._calls.count):
            left_s = call.deadline - self._clock()
            try:
                async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                    await self._retry_ended.wait()
            except TimeoutError:
                raise self._too_late() from failed

    def _choose(self, tried: Collection[Replica] = ()) -> Replica:
        now = self._clock()
        replica = self._pool.choose(now, tried)
        if replica is None:
            retry_after_s = self._pool.retry_after_s(now)
            raise Unavailable(
                f"no server of model {self._name!r} is in service; try again in {retry_after_s:.1f} s",
                retry_after_s=retry_after_s,
            )
        return replica

    def _require_time(self, call: _Call, replica: Replica, pause_s: float, failed: PointsmanError) -> None:
        now = self._clock()
        usual_s = self._pool.quantile_s(replica, 0.5, now) or 0.0
        if now + pause_s + usual_s >= call.deadline:
            raise self._too_late() from failed

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"model {self._name!r} failed on one server, and too little time is left for another; allow more time"
        )

    async def _ask(self, call: _Call, replica: Replica) -> Tensors:
        attempts_left = call.attempts_left
        call.attempts_left -= 1
        call.tried.append(replica)
        now = self._clock()
        may_copy = self._options.hedge and call.sequence is None and not replica.health.is_out(now)
        after_s = self._pool.hedge_after_s(now) if may_copy else None
        if after_s is None:
            return await self._attempt(call, replica, attempts_left)
        return await self._hedged(call, replica, attempts_left, after_s)

    async def _attempt(self, call: _Call, replica: Replica, attempts_left: int) -> Tensors:
        """One attempt, which is a span of its own where the call is traced."""
        trace = TRACE.get()
        if trace is None:
            return await self._try(call, replica, attempts_left)
        began, failure, number = time.monotonic(), "cancelled", len(call.tried)
        span = trace.child()
        before = TRACE.set(span)
        try:
            outputs = await self._try(call, replica, attempts_left)
            failure = ""
            return outputs
        except PointsmanError as error:
            failure = error.code.value
            raise
        finally:
            TRACE.reset(before)
            if (entered := SERVER_CALLS.get()) is not None:
                entered.append(ServerCall(span, replica.address, number, began, time.monotonic(), failure))

    async def _try(self, call: _Call, replica: Replica, attempts_left: int) -> Tensors:
        """An attempt, and what it teaches; ends early only with the replica's own end of it."""
        started = self._clock()
        p99_s = self._pool.quantile_s(replica, 0.99, started)
        limit_s = attempt_s(call.deadline - started, attempts_left, p99_s, self._options.attempt_timeout_s)
        deadline = Deadline(min(call.deadline, started + limit_s))
        backend = replica.backend
        if backend is None:  # it was lost since it was chosen
            raise self._gone()
        if call.sequence is not None:
            call.sequence.home.place = _Place(replica, backend)
        ticket = self._pool.begin(replica, started)
        try:
            async with asyncio.timeout(limit_s) as timer:
                outputs = await backend.infer(call.batch, deadline)
            now = self._clock()
            self._pool.answered(replica, ticket, now - started, now)
            return outputs
        except ReplicaFailed:
            self._pool.failed(replica, ticket, self._clock())
            raise
        except (DeadlineExceeded, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not timer.expired():
                raise
            now = self._clock()
            if isinstance(error, DeadlineExceeded) and now - started < _OWN_DEADLINE * (deadline - started):
                raise  # it has a deadline of its own, which would pass anywhere
            is_callers = deadline >= call.deadline
            if not is_callers or was_enough(now - started, p99_s):
                self._pool.failed(replica, ticket, now)
            raise self._ran_out(limit_s, is_callers=is_callers) from error
        except Unavailable as error:
            if backend.state is State.READY or backend.state is State.LOADING:
                raise
            replica.attention.set()
            raise self._gone() from error
        finally:
            now = self._clock()
            self._pool.ended(replica, ticket, now - started, now)

    def _gone(self) -> ReplicaFailed:
        return ReplicaFailed(f"a server of model {self._name!r} is gone; try again")

    def _ran_out(self, limit_s: float, *, is_callers: bool) -> PointsmanError:
        if is_callers:
            return DeadlineExceeded(f"the deadline passed while model {self._name!r} was at work; allow more time")
        return ReplicaFailed(f"a server of model {self._name!r} did not answer within {limit_s:.3g} s; try again")

    async def _hedged(self, call: _Call, replica: Replica, attempts_left: int, after_s: float) -> Tensors:
        attempts = [asyncio.create_task(self._attempt(call, replica, attempts_left))]
        try:
            await asyncio.wait(attempts, timeout=after_s)
            if not attempts[0].done() and (other := self._copy_to(replica)) is not None:
                self._observer.on_hedge(HedgeMade(self._name, replica.address, other.address, after_s))
                call.tried.append(other)
                attempts.append(asyncio.create_task(self._attempt(call, other, attempts_left)))
            deciding = await first_to_decide(attempts)
        finally:
            await call_off(attempts)
        try:
            return deciding.result()
        finally:
            del deciding, attempts  # an error's traceback leads here, and they to the error

    def _copy_to(self, slow: Replica) -> Replica | None:
        now = self._clock()
        other = self._pool.choose_for_copy(now, slow)
        return other if other is not None and self._budget.begin_hedge(now) else None

    async def _supervise(self) -> None:
        """Have every replica kept until closing and the last call's end, then close them all."""
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keeper(replica).run()) for replica in self._pool.replicas]
                await self._closing.wait()
                await self._calls.wait_idle()
                for keeper in keepers:
                    keeper.cancel()
        finally:
            await close_all(self._pool.replicas)

    def _keeper(self, replica: Replica) -> Keeper:
        misfit = self._shared.misfit
        return Keeper(self._name, replica, self._pool, self._options, self._clock, self._rng, misfit)


def _loaded(replica: Replica) -> Loaded | None:
    return None if replica.backend is None else loaded_of(replica.backend)


async def open_replicas(
    model_name: str,
    openers: Mapping[str, Opener],
    options: ReplicaOptions,
    *,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
    observer: ReplicaObserver | None = None,
) -> Replicas:
    """Open the replicas of a model, one at least; the others may come later.

    Args:
        model_name: names the model in errors, records and the log.
        openers: what opens each, by address.
        options: as configured.
        clock: the clock of deadlines.
        rng: of choices and pauses.
        observer: is told of retries, hedges, ejections and readmissions.

    Raises:
        InvalidInput: *openers* is empty.
        PointsmanError: none could be opened; says why of each.
    """
    if not openers:
        raise InvalidInput(f"model {model_name!r} has no replicas; name one address at least")
    rng = rng or random.Random()  # noqa: S311 (spreads load, no secret)
    replicas = [Replica(address, opener, options) for address, opener in openers.items()]
    try:
        errors = await _open_first(replicas, options)
        if len(errors) == len(replicas):
            raise _none_opened(model_name, errors)
        shared = await _agree(model_name, replicas, options.open_timeout_s)
    except BaseException:
        await close_all(replicas)
        raise
    watching = observer or Logged()
    pool = Pool(model_name, replicas, options, rng, watching)
    return Replicas(model_name, pool, shared, options, clock, rng, watching)


async def _open_first(replicas: Sequence[Replica], options: ReplicaOptions) -> dict[str, Exception]:
    """Until all are open or have failed, or some time after the first is open; what went wrong, by address."""
    errors: dict[str, Exception] = {}
    pending = {begin_opening(replica, options.open_timeout_s) for replica in replicas}
    while pending and len(errors) == len(replicas) - len(pending):  # none is open
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        errors |= _take_opened(replicas)
    if pending:
        await asyncio.wait(pending, timeout=options.start_grace_s)
        errors |= _take_opened(replicas)
    return errors


def _take_opened(replicas: Sequence[Replica]) -> dict[str, Exception]:
    """Backends that are open by now go to their replicas; the errors of the others, by address."""
    errors: dict[str, Exception] = {}
    for replica in replicas:
        if replica.opening is None or not replica.opening.done():
            continue
        opening, replica.opening = replica.opening, None
        try:
            replica.backend, replica.refusal = opening.result(), None
        except Exception as error:
            errors[replica.address] = error
            replica.refusal = cannot_open(error)
    return errors


async def _agree(model_name: str, replicas: Sequence[Replica], timeout_s: float) -> Common:
    """What the replicas that are open have in common; who does not belong is closed."""
    shared, misfits = common({r.address: r.backend for r in replicas if r.backend is not None})
    for replica in replicas:
        if (why := misfits.get(replica.address)) is not None:
            replica.leaving, replica.backend, replica.refusal = replica.backend, None, why
            await close_leaving(replica, model_name, timeout_s)
        if replica.backend is None and replica.opening is None:
            warn_of(replica, model_name)
    return shared


def _none_opened(model_name: str, errors: Mapping[str, Exception]) -> Exception:
    """The error of the only replica as it is; all errors of several in one message."""
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    told = "; ".join(f"{address}: {error}" for address, error in errors.items())
    code = first.code if isinstance(first, PointsmanError) else ReplicaFailed.code
    error = error_of(code, f"no replica of model {model_name!r} can be opened: {told}")
    error.__cause__ = ExceptionGroup("openings", list(errors.values()))
    return error
