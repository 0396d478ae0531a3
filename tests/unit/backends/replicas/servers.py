"""What the tests of replicas share: servers that fail on demand, and a pool over them in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.contract import (
    NO_DEADLINE,
    Backend,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
)
from backends.errors import DeadlineExceeded, ReplicaFailed, Unavailable
from backends.replicas import (
    HedgeMade,
    ReplicaEjected,
    ReplicaOptions,
    ReplicaReadmitted,
    Replicas,
    ReplicaState,
    RetryMade,
    open_replicas,
)
from tests.unit.batching.conftest import now

SIGNATURE = Signature(
    inputs=(TensorSpec("nonce", Datatype.INT64, (1,)),),
    outputs=(TensorSpec("nonce", Datatype.INT64, (1,)),),
)


class Server:
    """A server that echoes; what it does wrong can be changed at any time."""

    def __init__(self, address: str = "a", took_s: float = 0.01, *, limits: Limits | None = None) -> None:
        self.address = address
        self.took_s = took_s
        self.version = "1"
        self.limits = limits or Limits(max_batch=4, max_in_flight=4)
        self.fault: Callable[[], Exception | None] = lambda: None
        self.hangs = False
        self.keeps_deadlines = False
        self.open_fault: Exception | None = None
        self.opens_after_s = 0.0
        self.probe_fault: BaseException | None = None
        self.probe_hangs = False
        self.calls = 0
        self.cancelled = 0
        self.running = 0
        self.most_running = 0
        self.probes = 0
        self.opened: list[Served] = []
        self.openings = 0
        self.let_go = asyncio.Event()  # until then cancelled calls do not end
        self.let_go.set()

    async def open(self) -> Backend:
        """An opener."""
        self.openings += 1
        await asyncio.sleep(self.opens_after_s)
        if self.open_fault is not None:
            raise self.open_fault
        self.opened.append(Served(self))
        return self.opened[-1]

    def fail(self) -> None:
        """As `fault` says."""
        fault = self.fault()
        try:
            if fault is not None:
                raise fault
        finally:
            del fault  # its traceback leads here

    def refuses(self) -> None:
        """From now on every call fails."""
        self.fault = lambda: ReplicaFailed(f"server {self.address} refused; try again")

    def is_well(self) -> None:
        """From now on all is well."""
        self.fault = lambda: None
        self.hangs = self.probe_hangs = False
        self.open_fault = self.probe_fault = None

    @property
    def still_open(self) -> int:
        """Backends that nobody has closed."""
        return sum(not served.is_closed for served in self.opened)


class Served:
    """A connection to a server."""

    signature = SIGNATURE

    def __init__(self, server: Server) -> None:
        self.server = server
        self.version = server.version
        self.limits = server.limits
        self.state = State.READY
        self.is_closed = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        server = self.server
        if self.state is not State.READY:
            raise Unavailable("not ready")
        check_batch(self.signature, batch, self.limits)
        server.calls += 1
        server.running += 1
        self.in_flight += 1
        self.idle.clear()
        server.most_running = max(server.running, server.most_running)
        try:
            if server.hangs and server.keeps_deadlines:
                await asyncio.sleep(deadline - now())
                raise DeadlineExceeded("the deadline passed")
            if server.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(server.took_s)
            server.fail()
            return {"nonce": Tensor.of(batch.inputs["nonce"].numpy().copy())}
        except asyncio.CancelledError:
            server.cancelled += 1
            await server.let_go.wait()
            raise
        finally:
            server.running -= 1
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    async def probe(self, deadline: Deadline) -> None:
        self.server.probes += 1
        if self.server.probe_hangs:
            await asyncio.Event().wait()
        if self.server.probe_fault is not None:
            raise self.server.probe_fault

    async def aclose(self) -> None:
        self.state = State.CLOSED
        await self.idle.wait()
        self.is_closed = True


class Watch:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.retries: list[RetryMade] = []
        self.hedges: list[HedgeMade] = []
        self.ejected: list[ReplicaEjected] = []
        self.readmitted: list[ReplicaReadmitted] = []

    def on_retry(self, record: RetryMade) -> None:
        self.retries.append(record)

    def on_hedge(self, record: HedgeMade) -> None:
        self.hedges.append(record)

    def on_ejected(self, record: ReplicaEjected) -> None:
        self.ejected.append(record)

    def on_readmitted(self, record: ReplicaReadmitted) -> None:
        self.readmitted.append(record)


class Scene:
    """An open pool over some servers, in virtual time; `async with` closes it and looks for leaks."""

    def __init__(self, *servers: Server, seed: int = 0, **options: Any) -> None:
        self.servers = servers
        self.watch = Watch()
        self._options = ReplicaOptions(**options)
        self._seed = seed
        self.pool: Replicas

    async def __aenter__(self) -> Scene:
        self.pool = await open_replicas(
            "m",
            {server.address: server.open for server in self.servers},
            self._options,
            clock=now,
            rng=random.Random(self._seed),
            observer=self.watch,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.pool.aclose()
        for server in self.servers:
            assert server.running == 0, f"a call is left at {server.address}"
            assert server.still_open == 0, f"a backend of {server.address} is left open"

    async def ask(self, nonce: int = 7, left_s: float | None = None) -> int:
        """One call; its answer."""
        deadline = NO_DEADLINE if left_s is None else Deadline(now() + left_s)
        outputs = await self.pool.infer(Batch.of({"nonce": Tensor.of(np.array([[nonce]], np.int64))}), deadline)
        return int(outputs["nonce"].numpy()[0, 0])

    async def ask_all(self, count: int, left_s: float | None = None) -> list[int | BaseException]:
        """So many calls at once; what became of each."""
        return await asyncio.gather(*(self.ask(nonce, left_s) for nonce in range(count)), return_exceptions=True)

    def states(self) -> dict[str, ReplicaState]:
        """The state of every replica."""
        return {one.address: one.state for one in self.pool.statistics().replicas}
