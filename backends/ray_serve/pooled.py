"""A model of a pool on Ray Serve, as a backend: it is loaded when it is wanted, in a replica that others share."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from backends.contract import Deadline, State
from backends.errors import DeadlineExceeded, ReplicaFailed
from backends.ray_serve.backend import RayServe, ask_about, near_first
from backends.ray_serve.messages import About, Answered, Refused
from backends.ray_serve.residence import Residence
from backends.warm.entry import Warmth
from backends.warm.policy import Phase
from backends.warm.warming import came_late, closed, no_time_to_load

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_LOADS = 3
"""Replicas that are asked in turn to load a model, where each is lost on the way."""


def _ignored(model: str) -> None:
    """Nobody counts."""


class PooledRayServe(RayServe):
    """A model that a replica loads when it is wanted; `open_pooled` builds it. Belongs to one event loop.

    It implements `backends.warm.warming.Warming`. Where it is warm is only known as far as replicas have told: a call
    may find it cold none the less, and waits for it where it came to.

    No second replica is asked beside one that is silent, which may be loading.
    """

    def __init__(
        self,
        model_name: str,
        handle: DeploymentHandle[Any],
        about: About,
        residence: Residence,
        on_cold_start: Callable[[str], None] = _ignored,
    ) -> None:
        """Args:
        model_name: names the model in errors.
        handle: of the pool; calls by it are for this model.
        about: what a replica has said of the model.
        residence: what is known of the pool.
        on_cold_start: is told the model's name whenever a request finds it not warm.

        Raises:
            InvalidInput: it cannot be asked from another process.
        """
        super().__init__(model_name, handle, about, replicas=1)
        self._have_loaded = handle.options(method_name="load")
        self._residence = residence
        self._on_cold_start = on_cold_start
        self._loading: asyncio.Task[None] | None = None

    @property
    def warmth(self) -> Warmth:
        """How warm it is, where it is warmest."""
        return self._residence.warmth(self._about.digest, self._about.load_s, time.monotonic())

    @asynccontextmanager
    async def hold(self, deadline: Deadline) -> AsyncIterator[RayServe]:
        """Wait until it is warm, within *deadline*; see `Warming.hold`. One load is waited for, however many wait."""
        if self.warmth.phase is not Phase.WARM:
            await self._wait_warm(deadline)
        yield self

    def want(self) -> None:
        """Have it loaded, if it is not on its way."""
        self._on_cold_start(self._name)
        self._load()

    async def _wait_warm(self, deadline: Deadline) -> None:
        self._on_cold_start(self._name)
        if self._state is State.CLOSED:
            raise closed(self._name)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise came_late(self._name)
        loading, load_s = self._load(), self.warmth.load_s
        if load_s > left_s:
            raise no_time_to_load(self._name, load_s)
        done, _ = await asyncio.wait({loading}, timeout=None if math.isinf(left_s) else left_s)
        if not done:
            raise DeadlineExceeded(f"the deadline passed while model {self._name!r} was loaded; allow more time")
        if loading.cancelled():
            raise closed(self._name)
        loading.result()

    def _load(self) -> asyncio.Task[None]:
        """The load that is under way, or the next."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._have_it_loaded(), name=f"load of {self._name}")
            self._loading.add_done_callback(_heard)
        return self._loading

    async def _have_it_loaded(self) -> None:
        for attempt in range(1, _LOADS + 1):
            try:
                reply = await self._reply(self._have_loaded.remote(self._about.digest), math.inf)
            except ReplicaFailed:
                if attempt == _LOADS:
                    raise
                continue
            if isinstance(reply, Refused):
                raise reply.error()
            self._residence.is_warm(self._about.digest, time.monotonic())
            return

    def _was_answered(self, reply: Answered) -> None:
        if reply.was_cold:
            self._on_cold_start(self._name)
        self._residence.is_warm(self._about.digest, time.monotonic())

    async def aclose(self) -> None:
        """As `RayServe.aclose`."""
        if self._loading is not None:
            self._loading.cancel()
        await super().aclose()


def _heard(loading: asyncio.Task[None]) -> None:
    """Whoever waits for *loading* hears of its error; nobody may."""
    if not loading.cancelled():
        loading.exception()


async def open_pooled(
    model_name: str,
    handle: DeploymentHandle[Any],
    residence: Residence,
    *,
    digest: str,
    timeout_s: float,
    about: About | None = None,
    on_cold_start: Callable[[str], None] = _ignored,
) -> PooledRayServe:
    """The model *digest* of the pool behind *handle*, which stays as warm as it is.

    Args:
        timeout_s: what the first answer of a replica may take.
        about: what one has said before; None: one is asked.
        on_cold_start: see `PooledRayServe`.

    Raises:
        Unavailable: no replica answers, or none has the model.
        InvalidInput: it cannot be asked from another process.
    """
    near_first(handle)
    if about is None:
        about = await ask_about(model_name, handle, digest=digest, timeout_s=timeout_s)
    return PooledRayServe(model_name, handle.options(multiplexed_model_id=digest), about, residence, on_cold_start)
