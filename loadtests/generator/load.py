"""One process of the generator: its arrivals, its connections, and what it counted."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtests.generator.callers import OK, Caller, grpc_callers, http_callers
from loadtests.generator.histogram import Histogram
from loadtests.generator.sharing import shared_shots
from loadtests.generator.shots import WIDTH, Form, Shot, grpc_shots, http_shots
from loadtests.generator.timer import Timer

_CHANNEL = (("grpc.max_receive_message_length", -1),)
_BURST = 32
"""Requests written before replies are looked at again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    Attributes:
        url: `http://host:port` or `grpc://host:port`.
        rate: requests a second of all processes, open loop; None: a closed loop.
        clients: of a closed loop, over all processes.
        path: HTTP: where to post, instead of `/v2/models/{model}/infer`.
        rows: HTTP: `{"x": [[...]]}` instead of the Open Inference Protocol; the reply is `[[...]]` or `{"y": [[...]]}`.
        moments: open loop: when requests come, in seconds from the start, instead of by *rate*.
        within_s: replies count as in time up to so long after their moment.
        shared: tensors lie in shared memory, in a region that is registered at the server; open loop: not served.
        width: numbers in a row.
        timeout_s: HTTP: what requests say they wait at most (Triton's `timeout`); None: nothing.
        connections: most requests that one process has under way, open loop.
        patience_s: what replies get after the last arrival.
        slices: equal parts of the run whose arrivals are counted apart.
    """

    url: str
    model: str = "dbl"
    rate: float | None = None
    clients: int = 1
    seconds: float = 5.0
    processes: int = 1
    binary: bool = False
    shared: bool = False
    path: str | None = None
    rows: bool = False
    moments: tuple[float, ...] = ()
    within_s: float = math.inf
    width: int = WIDTH
    timeout_s: float | None = None
    connections: int = 128
    patience_s: float = 5.0
    slices: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        if self.binary and self.rows:
            raise ValueError("rows are JSON: leave out binary, or rows")
        if self.shared and (self.rows or self.is_open):
            raise ValueError(
                "shared memory is for a closed loop of the Open Inference Protocol: leave out rows and rate"
            )
        if self.moments and self.rate is not None:
            raise ValueError("requests come by a rate or at moments: leave out one of them")
        if self.timeout_s is not None and (self.rows or not self.url.startswith("http://")):
            raise ValueError("timeout_s is a parameter of the Open Inference Protocol over HTTP: leave it out")
        if self.width < 1:
            raise ValueError(f"a row of {self.width} numbers has none to tell it by; use at least 1")
        if self.slices < 1:
            raise ValueError(f"a run of {self.slices} slices has no arrivals; use at least 1")
        if self.moments and not 0.0 <= min(self.moments) <= max(self.moments) < self.seconds:
            raise ValueError(
                f"moments from {min(self.moments)} to {max(self.moments)} s leave a run of {self.seconds} s; "
                "give more seconds"
            )

    @property
    def is_open(self) -> bool:
        """Whether requests come by themselves, not when earlier ones are answered."""
        return self.rate is not None or bool(self.moments)

    @property
    def form(self) -> Form:
        """How HTTP carries the tensors."""
        return Form.BINARY if self.binary else Form.ROWS if self.rows else Form.JSON

    def by_slice(self, moments: Sequence[float]) -> NDArray[np.int64]:
        """How many of *moments* fall into each slice."""
        nearest = np.round(moments, 9)  # a moment that was added to the clock, and taken off again, is the same again
        return np.histogram(nearest, self.slices, (0.0, self.seconds))[0]


@dataclass(slots=True)
class Tally:
    """What one process, or all of them, counted.

    Attributes:
        offered: requests that the schedule held; of a closed loop, those sent.
        held: requests whose moment passed while all connections waited for replies.
        errors: by kind; `wrong` is a reply with other numbers, and counts as an error as well.
        offered_in, in_time_in: arrivals, and those of them that were answered rightly within `Plan.within_s`, by slice.
        latency: of right replies, from their scheduled moment (closed loop: from writing).
        refusal: of every other reply, from when it was written.
        lateness: from the scheduled moment to writing, or to the end of the run for what was never written.
        cpu_s: user and system time.
        took_s: from the common start to the last reply.
    """

    offered: int = 0
    sent: int = 0
    completed: int = 0
    held: int = 0
    offered_in: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    in_time_in: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    refusal: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    cpu_s: float = 0.0
    took_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Count what *other* counted as well."""
        self.offered += other.offered
        self.sent += other.sent
        self.completed += other.completed
        self.held += other.held
        self.offered_in = self.offered_in + other.offered_in
        self.in_time_in = self.in_time_in + other.in_time_in
        self.errors.update(other.errors)
        self.latency.add(other.latency)
        self.refusal.add(other.refusal)
        self.lateness.add(other.lateness)
        self.cpu_s += other.cpu_s
        self.took_s = max(self.took_s, other.took_s)


def arrivals(rate: float, seconds: float, seed: tuple[int, int]) -> NDArray[np.float64]:
    """The moments of a Poisson process of *rate* a second, from 0 to *seconds*; the same for the same *seed*."""
    rng = np.random.default_rng(seed)
    # Given their number, the moments of a Poisson process are uniform.
    return np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))


def run_process(plan: Plan, number: int, pipe: Connection) -> None:
    """Connect, say so over *pipe*, start when told the moment, and send the tally back; in a process of its own."""
    uvloop.run(_Load(plan, number).run(pipe))


class _Load:
    """The state of one run."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._seed = (plan.seed, number)
        if not plan.is_open:
            self._size = len(range(number, plan.clients, plan.processes))
            self._due: list[float] = []
        else:
            self._size = plan.connections
            self._due = self._moments()
        self._tally = Tally()
        self._latencies: list[float] = []
        self._refusals: list[float] = []
        self._in_time: list[float] = []
        self._lateness: list[float] = []
        self._next = 0
        self._under_way = 0
        self._stopped = False
        self._start = self._end = self._last = 0.0
        self._done = asyncio.Event()

    def _moments(self) -> list[float]:
        if self._plan.rate is None:
            _, number = self._seed
            return list(self._plan.moments[number :: self._plan.processes])
        moments: list[float] = arrivals(self._plan.rate / self._plan.processes, self._plan.seconds, self._seed).tolist()
        return moments

    async def run(self, pipe: Connection) -> None:
        where = urlsplit(self._plan.url)
        host, port = where.hostname or "127.0.0.1", where.port or (8001 if where.scheme == "grpc" else 8000)
        path = self._plan.path or f"/v2/models/{self._plan.model}/infer"
        if self._plan.shared:
            with shared_shots(
                where.scheme, f"{host}:{port}", path, self._plan.model, self._seed, self._plan.width, 4 * self._size
            ) as shots:
                await self._send_to(where.scheme, host, port, shots, pipe)
        elif where.scheme == "grpc":
            shots = grpc_shots(self._plan.model, self._seed, self._plan.width)
            await self._send_to(where.scheme, host, port, shots, pipe)
        else:
            shots = http_shots(
                f"{host}:{port}", path, self._plan.form, self._seed, self._plan.timeout_s, self._plan.width
            )
            await self._send_to(where.scheme, host, port, shots, pipe)

    async def _send_to(self, scheme: str, host: str, port: int, shots: list[Shot], pipe: Connection) -> None:
        if scheme == "grpc":
            async with grpc.aio.insecure_channel(f"{host}:{port}", _CHANNEL) as channel:
                await self._send_all(grpc_callers(channel, self._size), shots, pipe)
        else:
            await self._send_all(http_callers(host, port, self._size), shots, pipe)

    async def _send_all(self, callers: list[Caller], shots: list[Shot], pipe: Connection) -> None:
        self._shots = cycle(shots)
        try:
            for caller in callers:
                await caller.wait_open()
        except OSError as error:
            pipe.send(str(error))
            return
        gc.collect()
        gc.freeze()  # the requests stay; looking through them again would make others late
        pipe.send("ready")
        self._start = self._last = pipe.recv()  # nothing else is to be done until then
        self._end = self._start + self._plan.seconds
        cpu_s = time.process_time()
        self._idle = deque(callers)
        self._timer = Timer(self._on_time)
        self._timer.set(self._start)
        try:
            await asyncio.wait_for(self._done.wait(), self._end - time.monotonic() + self._plan.patience_s)
        except TimeoutError:
            self._tally.errors["unanswered"] += self._under_way
        self._stopped = True
        self._timer.close()
        tally = self._tally
        tally.cpu_s = time.process_time() - cpu_s
        tally.took_s = self._last - self._start
        tally.latency, tally.lateness = Histogram.of(self._latencies), Histogram.of(self._lateness)
        tally.refusal = Histogram.of(self._refusals)
        tally.in_time_in = self._plan.by_slice(self._in_time)
        tally.offered_in = self._plan.by_slice(self._due) if self._plan.is_open else tally.in_time_in
        pipe.send(tally)
        for caller in callers:
            caller.close()
        await asyncio.sleep(0)

    def _on_time(self) -> None:
        """Send what is due now, and be called when the next is.

        1. past the end: what was not written never will be
        2. a closed loop: everybody asks, once; their replies do the rest
        3. nobody is free: the next reply calls
        """
        now = time.monotonic()
        if now >= self._end:
            self._finish()
            return
        if not self._plan.is_open:
            while self._idle:
                self._ask(self._idle.popleft(), now)
            self._timer.set(self._end)
            return
        for _ in range(_BURST):
            if self._next >= len(self._due):
                break
            due = self._start + self._due[self._next]
            if due > now or not self._idle:
                break
            self._next += 1
            self._ask(self._idle.popleft(), due)
            now = time.monotonic()
        left = self._start + self._due[self._next] if self._next < len(self._due) else self._end
        self._timer.set(left if self._idle else self._end)

    def _ask(self, caller: Caller, due: float) -> None:
        self._under_way += 1
        self._tally.sent += 1
        now = time.monotonic()
        if self._plan.is_open:
            self._lateness.append(now - due)

        def ended(how: str) -> None:
            self._on_ended(caller, due if self._plan.is_open else now, now, how)

        caller.ask(next(self._shots), ended)

    def _on_ended(self, caller: Caller, since: float, written: float, how: str) -> None:
        if self._stopped:
            return
        now = self._last = time.monotonic()
        self._under_way -= 1
        if how == OK:
            self._tally.completed += 1
            if now - since <= self._plan.within_s:
                self._in_time.append(since - self._start)
            self._latencies.append(now - since)
        else:
            self._tally.errors[how] += 1
            self._refusals.append(now - written)
        if now >= self._end:
            self._finish()
            self._idle.append(caller)
        elif not self._plan.is_open:
            self._ask(caller, now)
        else:
            self._idle.append(caller)
            if len(self._idle) == 1:
                self._tally.held += self._next < len(self._due) and self._start + self._due[self._next] <= now
                self._on_time()

    def _finish(self) -> None:
        if not self._idle:
            self._tally.held += len(self._due) - self._next
        for due in self._due[self._next :]:
            self._lateness.append(self._end - self._start - due)
        self._tally.offered = len(self._due) if self._plan.is_open else self._tally.sent
        self._next = len(self._due)
        if not self._under_way:
            self._done.set()
