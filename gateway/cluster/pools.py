"""Replicas that models of a pool share: each loads what is wanted there, as far as its memory goes.

A replica is a `WarmPool` (`backends.warm.pool`) with all models of the pool in it: those with `warm: {keep: 1}` are
always in its memory, others by the idle times of the calls that come to it. Which calls do, gateways decide
(`backends.ray_serve.residence`).

Each model is opened once before the pool serves, by the first replica that starts, to learn what it takes and gives;
that is kept (`backends.ray_serve.kept`), so that no later replica loads anything before it is wanted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from backends.contract import Deadline
from backends.errors import PointsmanError
from backends.ray_serve.deployment import Host, Hosted, about_of
from backends.ray_serve.kept import keep, kept
from backends.ray_serve.loopback import stay_on_loopback
from backends.ray_serve.messages import AnotherModel, Refused
from backends.ray_serve.residence import Residing, Told, told_of
from backends.warm.entry import Kind, Known
from backends.warm.policy import Phase
from backends.warm.pool import Pooled, WarmPool
from backends.warm.report import IgnorePool, StepReport
from gateway.cluster.made_of import check_made_of
from gateway.compose import open_configured
from gateway.settings import ModelSettings
from gateway.warming import expected_bytes, ladder_of

log = logging.getLogger("pointsman.cluster")

_LOAD_S = 600.0
"""What a load may take that a gateway asks for."""

_UNTOLD = frozenset({Phase.COLD, Phase.UNLOADING})


class _Logged(IgnorePool):
    """Tells the replica's log what has gone wrong; gateways are not told more than that it has."""

    def on_load_step(self, report: StepReport) -> None:
        if report.error is not None:
            log.error("model %s failed to %s", report.model, report.step.value, exc_info=report.error)

    def on_unload(self, model: str, error: BaseException | None) -> None:
        if error is not None:
            log.error("model %s was not closed in good order", model, exc_info=error)


class PoolReplica(Host):
    """The models of a pool."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, models: Sequence[tuple[ModelSettings, str]], memory_bytes: int | None, slots: int, app: str
    ) -> None:
        """Open the models as far as nothing is known of them.

        Args:
            models: with their digests.
            memory_bytes: that models in memory may take together; None: idle times alone decide.
            slots: calls that are at work at a time when the replica counts as busy.
            app: of Serve's, which this is a replica of.

        Raises:
            PointsmanError: a model cannot be opened, needs more memory than there is, or keeps state.
        """
        stay_on_loopback()
        self._app = app
        self._pooled: dict[str, Pooled] = {}
        self._pool = WarmPool(math.inf if memory_bytes is None else memory_bytes, observer=_Logged())
        self._pool.start()
        try:
            self._host({digest: await self._open(model, digest) for model, digest in models}, slots)
        except BaseException:
            await self._close()
            raise

    async def _open(self, model: ModelSettings, digest: str) -> Hosted:
        same = partial(asyncio.to_thread, check_made_of, model, digest)
        await same()
        about = await asyncio.to_thread(kept, self._app, digest)
        known = None if about is None else Known(Kind(about.signature, about.version, about.limits), about.load_s)
        ladder = replace(ladder_of(model, partial(open_configured, model)), read=same)  # the first load's files, too
        pooled = await self._pool.open(
            model.name, ladder, model.warm, estimate_bytes=expected_bytes(model), known=known
        )
        self._pooled[digest] = pooled
        if about is None:
            about = about_of(model.name, pooled, digest, pooled.load_s)
            await asyncio.to_thread(keep, about, self._app)
        return Hosted.of(model.name, pooled, about)

    async def load(self, digest: str) -> Refused | AnotherModel | None:
        """Have the model in memory; None once it is."""
        pooled = self._pooled.get(digest)
        if pooled is None:
            return AnotherModel(next(iter(self._pooled)))
        try:
            async with pooled.hold(Deadline(time.monotonic() + _LOAD_S)):
                return None
        except PointsmanError as error:
            return Refused.of(error)

    async def record_routing_stats(self) -> dict[str, Any]:  # Any: see `told_of`
        """Called by Serve, which tells gateways."""
        warmths = {digest: pooled.warmth for digest, pooled in self._pooled.items()}
        models = {
            digest: Residing(warmth.phase, self._pooled[digest].load_s, warmth.nbytes)
            for digest, warmth in warmths.items()
            if warmth.phase not in _UNTOLD
        }
        return told_of(Told(self._pool.room_bytes, models))

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises, or does not return.

        Raises:
            RuntimeError: it can load nothing any more.
        """
        if not self._pool.is_open:
            raise RuntimeError("the pool of models has failed")

    async def __del__(self) -> None:
        """Called by Serve when no call is left."""
        if hasattr(self, "_pool"):  # not where it was not even made
            await self._close()

    async def _close(self) -> None:
        await asyncio.gather(*(pooled.aclose() for pooled in self._pooled.values()))
        await self._pool.aclose()
