"""A replica of a model: the class that Ray Serve runs, around any backend that computes in its process."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

from backends.contract import NO_DEADLINE, TRACE, URGENCY, Backend, Deadline, State
from backends.errors import BackendFailed, InvalidInput, PointsmanError
from backends.ray_serve.kept import keep
from backends.ray_serve.loopback import stay_on_loopback
from backends.ray_serve.messages import About, AnotherModel, Answered, Asked, Refused
from backends.ray_serve.scaling import Load
from backends.registry import backend_type

log = logging.getLogger("pointsman.ray_serve")


class ModelReplica:
    """Answers batches on Serve's event loop by a backend of its own."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model_name: str, kind: str, options: Any, digest: str
    ) -> None:
        """Open the model.

        Args:
            kind: of backend, as `backends.registry.backend_type` knows it.
            options: an instance of that kind's. Any: each has its own.
            digest: of what the model is made of.

        Raises:
            PointsmanError: it cannot be opened, or keeps state, which no replica can be asked for again.
        """
        stay_on_loopback()
        self._backend: Backend = await backend_type(kind).open(model_name, options)
        limits = self._backend.limits
        if limits.sequence_idle_s is not None:
            await self._backend.aclose()
            raise InvalidInput(f"model {model_name!r} keeps state over sequences; leave `serve` out of it")
        self._name = model_name
        self._about = About(digest, self._backend.signature, self._backend.version, limits)
        self._load = Load(limits.max_in_flight)
        await asyncio.to_thread(keep, self._about)

    async def about(self) -> About:
        """What it serves."""
        return self._about

    async def infer(self, asked: Asked) -> Answered | Refused | AnotherModel:
        """Have the model answer."""
        if asked.digest != self._about.digest:
            return AnotherModel(self._about.digest)
        came = time.monotonic()
        URGENCY.set(asked.urgency)
        TRACE.set(asked.trace)
        self._load.began(asked.waited_s, asked.misses)
        try:
            deadline = NO_DEADLINE if math.isinf(asked.left_s) else Deadline(came + asked.left_s)
            outputs = await self._backend.infer(asked.batch, deadline)
            return Answered(outputs, time.monotonic() - came)
        except PointsmanError as error:
            if error.__cause__ is not None:  # which goes no further than this log
                log.warning("model %s: %s", self._name, error, exc_info=error.__cause__)
            return Refused.of(error)
        except Exception:  # a bug in an adapter, which would else be a traceback in every caller's log
            log.exception("model %s failed on a batch", self._name)
            return Refused.of(BackendFailed(f"model {self._name!r} failed on this batch; its log has the cause"))
        finally:
            self._load.ended()

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises, or does not return.

        Raises:
            RuntimeError: the model has failed for good.
        """
        if self._backend.state is State.FAILED:
            raise RuntimeError(f"model {self._name!r} has failed")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve where the model is scaled."""
        return dict(self._load.told())

    async def __del__(self) -> None:
        """Called by Serve when no call is left."""
        if hasattr(self, "_backend"):  # not where it could not be opened
            await self._backend.aclose()
