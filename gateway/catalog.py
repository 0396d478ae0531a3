"""What the gateway serves, as one immutable snapshot: routes, the table that picks them, and the models behind them.

A request takes the snapshot once and keeps it to its end; a reload builds another and swaps it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.contract import NO_DEADLINE, Backend, Batch, Deadline, State, Tensors
from backends.replicas import ReplicasStatistics, statistics_of
from backends.warm.entry import Warmth
from backends.warm.policy import Phase
from backends.warm.pool import Pooled
from batching.batcher import Batcher
from gateway.scoring import scores_of
from router.contract import ModelState, Residency, Route
from router.table import RouteTable


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served: its backend, and the batcher before it.

    Attributes:
        backend: preprocessing and postprocessing included.
        batcher: asks it as a `gateway.scoring.Scored` one.
        labels: of its classes, by index; empty where it has none.
        pooled: the backend, where it is loaded when it is wanted; None where it is always in memory.
        loaded: False once it is unloaded: no request may ask it then, and it is closed, or soon will be.
    """

    name: str
    backend: Backend
    batcher: Batcher
    labels: tuple[str, ...] = ()
    loaded: bool = True
    pooled: Pooled | None = None

    def state(self, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> ModelState:
        """A snapshot for the router, as a request of *tenant* with *deadline* would find it."""
        forecast = self.batcher.forecast(deadline, tenant)
        warmth = self.warmth()
        return ModelState(
            ready=self.loaded and self.backend.state is State.READY and self.batcher.is_open,
            version=self.backend.version,
            residency=Residency.HOT if warmth is None else _RESIDENCY.get(warmth.phase, Residency.COLD),
            predicted_wait_s=forecast.wait_s,
            latency_s=forecast.latency_s,
            expected_load_s=0.0 if warmth is None else warmth.load_s,
        )

    def warmth(self) -> Warmth | None:
        """How warm it is; None where it is always in memory."""
        return None if self.pooled is None else self.pooled.warmth

    def want(self) -> None:
        """Take note that a request would have asked it, and had no time to wait for it to be loaded."""
        if self.pooled is not None and self.pooled.warmth.phase is not Phase.WARM:
            self.pooled.want()

    def replicas(self) -> ReplicasStatistics | None:
        """How its servers are; None where it has none, as a model in this process."""
        return statistics_of(self.backend)

    async def run(
        self, batch: Batch, deadline: Deadline, priority: int = 0, tenant: str = ""
    ) -> tuple[Tensors, NDArray[np.float64]]:
        """The outputs for *batch*, by way of the batcher, whose errors it raises.

        A model that is not in memory is loaded first. That is waited for before the batcher's queue and not in it, or
        the batcher would take the load for what a batch takes, and refuse what follows.

        Returns:
            the model's outputs, and (size,) calibrated estimates of P(right), NaN where there is none.
        """
        if self.pooled is None:
            return scores_of(await self.batcher.submit(batch, deadline, priority, tenant))
        async with self.pooled.hold(deadline):
            return scores_of(await self.batcher.submit(batch, deadline, priority, tenant))


_RESIDENCY = {Phase.WARM: Residency.HOT, Phase.LOADING: Residency.WARMING}


@dataclass(frozen=True, slots=True)
class Detector:
    """A model whose label is a trait of requests.

    Attributes:
        decode: name of the decoder of a request's bytes, or None.
        floor: confidence below which the trait is in doubt.
        timeout_s: what it may take.
    """

    trait: str
    model: Model
    decode: str | None
    floor: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that is served, at one version of the configuration.

    Attributes:
        routes: by name; an exposed model is a route of one stage that accepts anything.
        models: by name.
        detectors: by trait.
    """

    version: int
    table: RouteTable
    routes: Mapping[str, Route]
    models: Mapping[str, Model]
    detectors: Mapping[str, Detector] = field(default_factory=dict)

    def deadline_s(self, name: str) -> float:
        """Seconds that a request for *name* may take at most; for `auto` those of the slowest route it can come to."""
        route = self.routes.get(name)
        return max(self._deadlines_s(), default=0.0) if route is None else route.deadline_s

    def detection_s(self, name: str) -> float:
        """Seconds that detectors may take for a request for *name*: half of what the fastest route leaves it."""
        route = self.routes.get(name)
        return (min(self._deadlines_s(), default=0.0) if route is None else route.deadline_s) / 2

    def _deadlines_s(self) -> Sequence[float]:
        """Of every route that `auto` can come to."""
        names = [rule.route for rule in self.table.rules]
        names += [target.route for target in (self.table.default, self.table.unsure) if target is not None]
        return [self.routes[target].deadline_s for target in names]

    def is_unloaded(self, route: Route) -> bool:
        """Whether *route* has models, and every one of them is unloaded."""
        return bool(route.cascade) and not any(self.models[stage.model].loaded for stage in route.cascade)

    def states(self, route: Route, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> Mapping[str, ModelState]:
        """A snapshot of the models of *route*, as a request of *tenant* with *deadline* would find them."""
        return {stage.model: self.models[stage.model].state(deadline, tenant) for stage in route.cascade}
