"""Replicas of models: classes that Ray Serve runs, around backends that compute in their process."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.contract import NO_DEADLINE, TRACE, URGENCY, Backend, Deadline, State
from backends.errors import BackendFailed, InvalidInput, PointsmanError
from backends.ray_serve.kept import keep
from backends.ray_serve.loopback import stay_on_loopback
from backends.ray_serve.messages import About, AnotherModel, Answered, Asked, Refused
from backends.ray_serve.scaling import Load
from backends.registry import backend_type
from backends.warm.policy import Phase
from backends.warm.pool import Pooled

log = logging.getLogger("pointsman.ray_serve")


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model in a replica, by its *name*.

    Attributes:
        turns: as many as calls that it overlaps, and one more: its tensors travel meanwhile.
    """

    name: str
    backend: Backend
    about: About
    turns: asyncio.Semaphore

    @classmethod
    def of(cls, name: str, backend: Backend, about: About) -> Hosted:
        """*backend*, with its turns."""
        return cls(name, backend, about, asyncio.Semaphore(about.limits.max_in_flight + 1))

    def is_cold(self) -> bool:
        """Whether it has to be loaded before it can answer."""
        return isinstance(self.backend, Pooled) and self.backend.warmth.phase is not Phase.WARM


class Host:
    """Answers batches on Serve's event loop, by the models that `_host` was told of."""

    _hosted: Mapping[str, Hosted]

    def _host(self, hosted: Mapping[str, Hosted], slots: int) -> None:
        """Answer by *hosted*, by digest, of which *slots* calls are at work at a time at most."""
        self._hosted = hosted
        self._load = Load(slots)

    async def about(self, digest: str = "") -> About:
        """What the model *digest* is, or any, where it is not here."""
        return (self._hosted.get(digest) or next(iter(self._hosted.values()))).about

    async def infer(self, asked: Asked) -> Answered | Refused | AnotherModel:
        """Have a model answer."""
        hosted = self._hosted.get(asked.digest)
        if hosted is None:
            return AnotherModel(next(iter(self._hosted)))
        came = time.monotonic()
        URGENCY.set(asked.urgency)
        TRACE.set(asked.trace)
        self._load.began(asked.waited_s, asked.misses)
        try:
            deadline = NO_DEADLINE if math.isinf(asked.left_s) else Deadline(came + asked.left_s)
            was_cold = hosted.is_cold()
            async with hosted.turns:
                outputs = await hosted.backend.infer(asked.batch, deadline)
            return Answered(outputs, time.monotonic() - came, was_cold)
        except PointsmanError as error:
            if error.__cause__ is not None:  # which goes no further than this log
                log.warning("model %s: %s", hosted.name, error, exc_info=error.__cause__)
            return Refused.of(error)
        except Exception:  # a bug in an adapter, which would else be a traceback in every caller's log
            log.exception("model %s failed on a batch", hosted.name)
            return Refused.of(BackendFailed(f"model {hosted.name!r} failed on this batch; its log has the cause"))
        finally:
            self._load.ended()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve where replicas are scaled."""
        return dict(self._load.told())


class ModelReplica(Host):
    """A model by itself."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model_name: str, kind: str, options: Any, digest: str, app: str = ""
    ) -> None:
        """Open the model.

        Args:
            kind: of backend, as `backends.registry.backend_type` knows it.
            options: an instance of that kind's. Any: each has its own.
            digest: of what the model is made of.
            app: of Serve's, whose next gateways are to know the model while there is no replica; "": they ask one.

        Raises:
            PointsmanError: it cannot be opened, or keeps state, which no replica can be asked for again.
        """
        stay_on_loopback()
        self._backend: Backend = await backend_type(kind).open(model_name, options)
        try:
            about = about_of(model_name, self._backend, digest)
        except InvalidInput:
            await self._backend.aclose()
            raise
        self._host({digest: Hosted.of(model_name, self._backend, about)}, about.limits.max_in_flight)
        if app:
            await asyncio.to_thread(keep, about, app)

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises, or does not return.

        Raises:
            RuntimeError: the model has failed for good.
        """
        if self._backend.state is State.FAILED:
            raise RuntimeError(f"model {next(iter(self._hosted.values())).name!r} has failed")

    async def __del__(self) -> None:
        """Called by Serve when no call is left."""
        if hasattr(self, "_backend"):  # not where it could not be opened
            await self._backend.aclose()


def about_of(model_name: str, backend: Backend, digest: str, load_s: float = 0.0) -> About:
    """What *backend* is, to whoever asks it by its *digest*.

    Raises:
        InvalidInput: it keeps state, which no replica can be asked for again.
    """
    if backend.limits.sequence_idle_s is not None:
        raise InvalidInput(f"model {model_name!r} keeps state over sequences; leave `serve` out of it")
    return About(digest, backend.signature, backend.version, backend.limits, load_s)
