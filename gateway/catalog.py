"""What the gateway serves, as one immutable snapshot: routes, the table that picks them, and the models behind them.

A request takes the snapshot once and keeps it to its end; a reload builds another and swaps it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.absent import Absent
from backends.contract import NO_DEADLINE, Backend, Batch, Deadline, State, Tensors
from backends.errors import Unavailable
from backends.preprocessed import costs_of, kernels_of
from backends.process.pool import PoolStatistics
from backends.replicas import ReplicasStatistics
from backends.told import statistics_of
from backends.trace_context import TraceContext
from backends.warm.entry import Warmth
from backends.warm.policy import Phase
from backends.warm.warming import Warming
from batching.batcher import Batcher
from batching.report import BatchNote, SequenceStatistics
from batching.sequences import SequenceRunner, Step
from gateway.scoring import Scoring, scores_of
from gateway.service import ROUTE_VERSION
from kernels.cost import Cost
from kernels.guard import KernelStatistics
from router.contract import ModelState, Residency, Route, route_id
from router.table import RouteTable
from router.versions import Traffic


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served: its backend, and the batcher before it.

    Attributes:
        backend: preprocessing and postprocessing included.
        batcher: asks it as a `gateway.scoring.Scored` one, where there is no *scoring*; of a model that keeps state,
            what runs its sequences.
        labels: of its classes, by index; empty where it has none.
        warming: the backend, or what it is around, where it is loaded when it is wanted; None where it is always there.
        measured: the output that the configuration measures confidence on; "" where it names none.
        scoring: of answers as their callers get them; None: the batcher's have their confidence with them.
        required: False where the gateway is ready without it.
        loaded: False once it is unloaded: no request may ask it then, and it is closed, or soon will be.
    """

    name: str
    backend: Backend
    batcher: Batcher | SequenceRunner
    labels: tuple[str, ...] = ()
    loaded: bool = True
    warming: Warming | None = None
    measured: str = ""
    scoring: Scoring | None = None
    required: bool = True

    @property
    def is_absent(self) -> bool:
        """Whether it could not be opened yet, so that nobody knows what it takes and gives."""
        return isinstance(self.backend, Absent)

    def state(self, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> ModelState:
        """A snapshot for the router, as a request of *tenant* with *deadline* would find it."""
        forecast = self.batcher.forecast(deadline, tenant)
        warmth = None if self.warming is None else self.warming.warmth
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
        return None if self.warming is None else self.warming.warmth

    @property
    def is_cold(self) -> bool:
        """Whether it would have to be loaded before it can answer."""
        return self.warming is not None and self.warming.warmth.phase is not Phase.WARM

    def want(self) -> None:
        """Take note that a request would have asked it, and had no time to wait for it to be loaded."""
        if self.warming is not None and self.is_cold:
            self.warming.want()

    def replicas(self) -> ReplicasStatistics | None:
        """How its servers are; None where it has none, as a model in this process."""
        return statistics_of(self.backend, ReplicasStatistics)

    def processes(self) -> PoolStatistics | None:
        """How the processes fare that run it; None where it has none of its own."""
        return statistics_of(self.backend, PoolStatistics)

    @property
    def keeps_state(self) -> bool:
        """Whether its requests belong to sequences."""
        return isinstance(self.batcher, SequenceRunner)

    def sequences(self) -> SequenceStatistics | None:
        """How its sequences are; None where it keeps no state."""
        return self.batcher.sequences() if isinstance(self.batcher, SequenceRunner) else None

    def has_sequence(self, step: Step) -> bool:
        """Whether the sequence of *step* lives here."""
        return isinstance(self.batcher, SequenceRunner) and self.batcher.has(step.key)

    def has_lost(self, step: Step) -> bool:
        """Whether the sequence of *step* was here, and is over."""
        return isinstance(self.batcher, SequenceRunner) and self.batcher.has_lost(step.key)

    def give_up(self, step: Step) -> None:
        """End the sequence of *step*, whose caller never hears of it; harmless where there is none."""
        if isinstance(self.batcher, SequenceRunner):
            self.batcher.give_up(step.key)

    def kernels(self) -> tuple[KernelStatistics, ...]:
        """How the fused kernels of its preprocessing are; none of a model of the pool, which comes and goes."""
        return kernels_of(self.backend)

    def costs(self) -> Mapping[str, Cost]:
        """What an item takes in `preprocess` and `postprocess`, as measured when it was opened; likewise."""
        return costs_of(self.backend)

    async def run(
        self,
        batch: Batch,
        deadline: Deadline,
        priority: int = 0,
        tenant: str = "",
        trace: TraceContext | None = None,
        step: Step | None = None,
        note: BatchNote | None = None,
    ) -> tuple[Tensors, NDArray[np.float64]]:
        """The outputs for *batch*, by way of the batcher, whose errors it raises.

        Args:
            step: what it is in a sequence; only a model that keeps state looks at it.
            note: is told of the batches; only a model that keeps no state has such.

        A model that is not in memory is loaded first. That is waited for before the batcher's queue and not in it, or
        the batcher would take the load for what a batch takes, and refuse what follows.

        Returns:
            the model's outputs, and (size,) calibrated estimates of P(right), NaN where there is none.
        """
        if isinstance(self.batcher, SequenceRunner):
            return scores_of(await self.batcher.submit(batch, deadline, step, priority))
        if self.warming is None:
            outputs = await self.batcher.submit(batch, deadline, priority, tenant, trace, note)
        else:
            async with self.warming.hold(deadline):
                outputs = await self.batcher.submit(batch, deadline, priority, tenant, trace, note)
        return scores_of(outputs) if self.scoring is None else (outputs, await self.scoring.of(outputs, batch.size))


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
        routes: by id; an exposed model is a route of one stage that accepts anything. A route that has versions is here
            once for each, and not under its name alone.
        models: by name.
        detectors: by trait.
        traffic: what the versions of a route get, by its name; of those that have versions.
        unknown: names in *routes* of which nobody knows what they take or give, as no model of them is open yet.
    """

    version: int
    table: RouteTable
    routes: Mapping[str, Route]
    models: Mapping[str, Model]
    detectors: Mapping[str, Detector] = field(default_factory=dict)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Of every route and exposed model."""
        return tuple(dict.fromkeys(route.name for route in self.routes.values()))

    def shared(self, name: str) -> Route | None:
        """The route *name*, for what its versions share: all but cascade and accept rule; None where there is none."""
        route = self.routes.get(name)
        if route is None and (traffic := self.traffic.get(name)) is not None:
            return self.routes[route_id(name, traffic.versions[-1])]
        return route

    def versions_of(self, name: str) -> tuple[str, ...]:
        """The versions that callers can ask for by *name*; of a route that has none of its own, the one that it is."""
        traffic = self.traffic.get(name)
        return (ROUTE_VERSION,) if traffic is None else traffic.versions

    def each_version(self, name: str) -> tuple[Route, ...]:
        """The route *name*, once for each of its versions."""
        traffic = self.traffic.get(name)
        if traffic is None:
            return (self.routes[name],) if name in self.routes else ()
        return tuple(self.routes[route_id(name, version)] for version in traffic.versions)

    def check_known(self, name: str) -> None:
        """Refuse what is about the route *name*, while nobody knows what it takes or gives.

        Raises:
            Unavailable: that is so.
        """
        if name in self.unknown:
            raise Unavailable(f"no model of {name!r} could be opened yet; try again later")

    def deadline_s(self, name: str) -> float:
        """Seconds that a request for *name* may take at most; for `auto` those of the slowest route it can come to."""
        route = self.shared(name)
        return max(self._deadlines_s(), default=0.0) if route is None else route.deadline_s

    def detection_s(self, name: str) -> float:
        """Seconds that detectors may take for a request for *name*: half of what the fastest route leaves it."""
        route = self.shared(name)
        return (min(self._deadlines_s(), default=0.0) if route is None else route.deadline_s) / 2

    def _deadlines_s(self) -> Sequence[float]:
        """Of every route that `auto` can come to."""
        names = [rule.route for rule in self.table.rules]
        names += [target.route for target in (self.table.default, self.table.unsure) if target is not None]
        return [route.deadline_s for target in names if (route := self.shared(target)) is not None]

    def is_optional(self, route: Route) -> bool:
        """Whether the gateway is ready without any model of *route*."""
        return bool(route.cascade) and not any(self.models[stage.model].required for stage in route.cascade)

    def is_unloaded(self, route: Route) -> bool:
        """Whether *route* has models, and every one of them is unloaded."""
        return bool(route.cascade) and not any(self.models[stage.model].loaded for stage in route.cascade)

    def states(self, route: Route, deadline: Deadline = NO_DEADLINE, tenant: str = "") -> Mapping[str, ModelState]:
        """A snapshot of the models of *route*, as a request of *tenant* with *deadline* would find them."""
        return {stage.model: self.models[stage.model].state(deadline, tenant) for stage in route.cascade}
