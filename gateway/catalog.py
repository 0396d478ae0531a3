"""What the gateway serves, as one immutable snapshot: routes, the table that picks them, and the models behind them.

A request takes the snapshot once and keeps it to its end; a reload builds another and swaps it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.contract import Backend, Batch, Deadline, State, Tensors
from batching.batcher import Batcher
from router.calibration import Calibrator, confidences
from router.confidence import Measure
from router.contract import ModelState, Route
from router.table import RouteTable


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served: its backend behind its batcher, and how its confidence is read.

    Attributes:
        backend: preprocessing and postprocessing included.
        measure: what of its outputs says how sure it is.
        calibrator: turns that into P(the model is right).
    """

    name: str
    backend: Backend
    batcher: Batcher
    measure: Measure
    calibrator: Calibrator

    def state(self) -> ModelState:
        """A snapshot for the router."""
        statistics = self.batcher.statistics()
        return ModelState(
            ready=self.backend.state is State.READY,
            version=self.backend.version,
            predicted_wait_s=statistics.predicted_wait_s,
            latency_s=statistics.latency_s,
        )

    async def run(self, batch: Batch, deadline: Deadline) -> Tensors:
        """The outputs for *batch*, by way of the batcher, whose errors it raises."""
        return await self.batcher.submit(batch, deadline)

    def confidences(self, outputs: Tensors, size: int) -> NDArray[np.float64]:
        """(size,) estimates of P(right), NaN where there is none."""
        return confidences(self.measure, self.calibrator, outputs, size)


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
        return max(self._deadlines_s(name), default=0.0)

    def detection_s(self, name: str) -> float:
        """Seconds that detectors may take for a request for *name*: half of what the fastest route leaves it."""
        return min(self._deadlines_s(name), default=0.0) / 2

    def _deadlines_s(self, name: str) -> Sequence[float]:
        if name in self.routes:
            return [self.routes[name].deadline_s]
        names = [rule.route for rule in self.table.rules]
        names += [target.route for target in (self.table.default, self.table.unsure) if target is not None]
        return [self.routes[target].deadline_s for target in names]

    def states(self, route: Route) -> Mapping[str, ModelState]:
        """A snapshot of the models of *route*."""
        return {stage.model: self.models[stage.model].state() for stage in route.cascade}
