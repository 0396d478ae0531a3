"""One model's worker processes: who is free, who waits, who is replaced and when.

Each worker has a keeper, a task that waits until its worker is spent and brings the next. A worker that has served
`recycle_after` calls goes on serving until its successor is ready, so that nobody waits for a start. One that is over
`memory_limit` goes first: two of them at once may be what the machine has no room for.

Calls wait in order of arrival, also for a worker that is being started: after a death, the halves of the batch come at
once, and refusing them would keep the poisonous item from being found. They are refused, with the time after which to
try again, when every worker that is left waits out a delay of `Restarts`, or when none is back before their deadline.

**State.** Ready while a worker is there, busy or not; loading while none is and one is on its way; failed when several
starts in a row have failed, which goes on being tried.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass, replace

from backends.contract import Deadline, State
from backends.errors import DeadlineExceeded, Unavailable
from backends.in_flight import InFlight
from backends.process.child import Launch, Phase, WorkerProcess
from backends.process.restarts import Restarts

_AT_WORK = (Phase.IDLE, Phase.BUSY, Phase.OVERRUN)

log = logging.getLogger("pointsman.backends.process")


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool has seen.

    Attributes:
        workers: that are there, busy or not.
        idle: of these.
        waiting: calls that have no worker yet.
        started: workers that became ready.
        recycled: that were replaced for their calls, or their memory.
        died: that ended though nobody wanted them to, or that broke the protocol.
        hung: that were killed as a call did not end.
        failed_starts: workers that never became ready.
        calls: that workers were given.
        memory_bytes: of the workers that are there, without what they share with others.
    """

    workers: int
    idle: int
    waiting: int
    started: int
    recycled: int
    died: int
    hung: int
    failed_starts: int
    calls: int
    memory_bytes: int

    def after(self, past: PoolStatistics) -> PoolStatistics:
        """As it is now, with what was counted before the model was last opened; see `backends.told.Statistics`."""
        return replace(self, **{name: getattr(self, name) + getattr(past, name) for name in _COUNTED})

    def at_rest(self) -> PoolStatistics:
        """What stays of it when the model is unloaded."""
        return replace(self, workers=0, idle=0, waiting=0, memory_bytes=0)


_COUNTED = ("started", "recycled", "died", "hung", "failed_starts", "calls")


class Pool:
    """The workers of one model; belongs to one event loop."""

    def __init__(self, launch: Launch, size: int, recycle_after: int | None, rng: random.Random) -> None:
        """Args:
        launch: what every worker is started with.
        size: how many.
        recycle_after: calls after which one is replaced.
        rng: spreads restarts.
        """
        self._launch = launch
        self._size = size
        self._recycle_after = recycle_after
        self._rng = rng
        self._restarts = Restarts()
        self._workers: set[WorkerProcess] = set()  # whose processes have not ended
        self._idle: list[WorkerProcess] = []
        self._retiring: set[WorkerProcess] = set()
        self._waiting: deque[asyncio.Future[WorkerProcess]] = deque()
        self._keepers: list[asyncio.Task[None]] = []
        self._starts_s: dict[object, float] = {}  # by keeper: when the start that it is at began, or will begin
        self._start_takes_s = 0.0
        self._calls = InFlight()
        self._is_closed = False
        self._started = self._recycled = self._died = self._hung = self._failed_starts = 0
        self._calls_of_ended = 0

    def __repr__(self) -> str:
        return f"<Pool of {self._launch.model_name!r}: {self.state}, {self.statistics()}>"

    @property
    def state(self) -> State:
        """See the module."""
        if self._is_closed:
            return State.CLOSED
        if self._is_served:
            return State.READY
        return State.FAILED if self._restarts.is_hopeless else State.LOADING

    @property
    def _is_served(self) -> bool:
        return any(worker.phase in _AT_WORK for worker in self._workers)

    def statistics(self) -> PoolStatistics:
        """What it has seen so far."""
        return PoolStatistics(
            workers=sum(worker.phase in _AT_WORK for worker in self._workers),
            idle=len(self._idle),
            waiting=sum(not place.done() for place in self._waiting),
            started=self._started,
            recycled=self._recycled,
            died=self._died,
            hung=self._hung,
            failed_starts=self._failed_starts,
            calls=self._calls_of_ended + sum(worker.calls for worker in self._workers),
            memory_bytes=sum(worker.own_bytes() for worker in self._workers),
        )

    async def open(self) -> None:
        """Start every worker.

        Raises:
            NotFound, InvalidInput, BackendFailed: see `WorkerProcess.start`. Nothing is left behind then.
        """
        starts = [asyncio.create_task(self._start()) for _ in range(self._size)]
        try:
            workers = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.aclose()
            raise
        for worker in workers:
            self._keepers.append(asyncio.create_task(self._keep(worker)))
            self._offer(worker)

    # --- calls ---

    def call(self) -> InFlight:
        """A call that closing waits for.

        Raises:
            Unavailable: closed.
        """
        if self._is_closed:
            raise Unavailable(f"model {self._launch.model_name!r} is {self.state}; send the request elsewhere")
        return self._calls

    async def claim(self, deadline: Deadline) -> WorkerProcess:
        """A worker that is free, for one call, which must follow.

        Raises:
            DeadlineExceeded: *deadline* passed first.
            Unavailable: there is none, and none before *deadline*.
        """
        name = self._launch.model_name
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before model {name!r} started; allow more time")
        if self._idle:
            worker = self._idle.pop()
            worker.claim()
            return worker
        if refusal := self._refusal(deadline):
            raise refusal
        place: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(None if left_s == float("inf") else left_s):
                return await place
        except TimeoutError:
            self._vacate(place)
            raise DeadlineExceeded(f"the deadline passed before model {name!r} started; allow more time") from None
        except asyncio.CancelledError:
            self._vacate(place)
            raise
        finally:
            del place  # a refusal's traceback leads here: a cycle would keep the tensors until a collection

    def _vacate(self, place: asyncio.Future[WorkerProcess]) -> None:
        """Whoever waited there has left; a worker that came just then is the next one's."""
        if place.done() and not place.cancelled() and place.exception() is None:
            place.result().unclaim()
        elif place in self._waiting:
            self._waiting.remove(place)

    def _refusal(self, deadline: float) -> Unavailable | None:
        """Why waiting is of no use, if it is not."""
        if self._is_served or not self._starts_s:
            return None
        now, name = time.monotonic(), self._launch.model_name
        first_s = min(self._starts_s.values())
        back_in_s = max(0.0, first_s + self._start_takes_s - now)
        if first_s <= now and back_in_s <= deadline - now:
            return None
        return Unavailable(f"no process of model {name!r} is running now; try again later", retry_after_s=back_in_s)

    def _refuse_all(self) -> None:
        for place in self._waiting:
            if not place.done() and (refusal := self._refusal(float("inf"))):
                place.set_exception(refusal)

    # --- workers ---

    def _offer(self, worker: WorkerProcess) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                worker.claim()
                place.set_result(worker)
                return
        self._idle.append(worker)

    def _on_rest(self, worker: WorkerProcess) -> None:
        """*worker* is idle, or its process has ended."""
        if worker.phase is Phase.ENDED:
            self._bury(worker)
        elif worker in self._retiring:
            worker.leave("was recycled")
        elif worker.is_over_memory:
            self._recycled += 1
            log.warning("%r has grown to %d bytes, over its memory_limit, and is replaced", worker, worker.own_bytes())
            worker.leave("was over its memory_limit")
        else:
            if self._recycle_after is not None and worker.calls >= self._recycle_after:
                worker.spent.set()
            self._offer(worker)

    def _bury(self, worker: WorkerProcess) -> None:
        if worker in self._workers:
            self._workers.discard(worker)
            self._calls_of_ended += worker.calls
        self._retiring.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.was_ready and worker.is_casualty:
            self._died += 1
            self._restarts.died(time.monotonic())
            log.error("%r %s", worker, worker.why_ended)
        elif worker.is_hung:
            self._hung += 1
            log.error("%r %s", worker, worker.why_ended)
        worker.spent.set()

    async def _keep(self, worker: WorkerProcess) -> None:
        """Keep one worker there."""
        while True:
            await worker.spent.wait()
            successor = await self._successor()
            self._retire(worker)
            worker = successor
            self._offer(worker)

    def _retire(self, worker: WorkerProcess) -> None:
        if worker.phase not in _AT_WORK:
            return
        self._recycled += 1
        if worker in self._idle:
            self._idle.remove(worker)
            worker.leave("was recycled")
        else:
            self._retiring.add(worker)

    async def _successor(self) -> WorkerProcess:
        """A worker that is ready, however many tries that takes."""
        keeper = object()
        try:
            while True:
                now = time.monotonic()
                delay_s = self._restarts.delay_s(now, self._rng.random())
                self._starts_s[keeper] = now + delay_s
                if delay_s:
                    self._refuse_all()
                    await asyncio.sleep(delay_s)
                try:
                    return await self._start()
                except Exception as error:  # whatever it was, the next try may do
                    self._restarts.failed()
                    log.error("model %r: a process did not start: %s", self._launch.model_name, error)
        finally:
            self._starts_s.pop(keeper, None)

    async def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._launch, self._on_rest)
        self._workers.add(worker)
        began_s = time.monotonic()
        try:
            await worker.start()
        except BaseException:
            self._failed_starts += 1
            if worker.phase is Phase.ENDED:  # it never had a process
                self._workers.discard(worker)
            raise
        self._start_takes_s = time.monotonic() - began_s
        self._started += 1
        self._restarts.started()
        return worker

    # --- the end ---

    async def aclose(self) -> None:
        """Wait for calls in flight, then end every process; those whose callers are gone at once."""
        self._is_closed = True
        await self._calls.wait_idle()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in tuple(self._workers):
            if worker.phase is Phase.IDLE:
                worker.leave("was closed")
            else:
                worker.kill("was closed")
        for worker in tuple(self._workers):
            await worker.wait_ended()
        await self._launch.copiers.aclose()
