"""What the status page shows of the gateway, as plain records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backends.contract import State
from backends.replicas import ReplicaState, ReplicaStatistics
from batching.report import BatchingStatistics, Refusal, slowest
from gateway.catalog import Model
from gateway.explain import accept_text
from gateway.observe import Mirrored
from gateway.pipeline import Pipeline
from gateway.shadow import Shadows
from gateway.traffic import VersionShare
from kernels.cost import Cost
from router.contract import Route


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route: its stages from cheap to strong, and the review queue behind them (None: nobody).

    Attributes:
        accepts: when a stage's answer is good enough, in words.
    """

    name: str
    stages: tuple[str, ...]
    accepts: str
    queue: str | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a route that has several, and what it gets.

    Attributes:
        share: of the route's requests, in [0, 1].
        state: in words: what it gets and why, or that it is halted.
        is_halted: it was, since it was worse.
        requests: that it took.
        troubles: of these, where a stage failed, came too late or had no room.
        mirrored: what became of items that it was shown; none where it is shown nothing.
        confidence_change: how much surer it was of them on average; None where that is not known.
    """

    route: str
    version: str
    share: float
    state: str
    is_halted: bool
    requests: int
    troubles: int
    mirrored: Mapping[Mirrored, int]
    confidence_change: float | None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model and its batcher.

    Attributes:
        replicas: its servers; none where it has none elsewhere.
        costs: what an item takes in `preprocess` and `postprocess`, as far as it has been measured.
    """

    name: str
    state: str
    version: str
    batching: BatchingStatistics
    replicas: tuple[ReplicaStatistics, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One of the processes that share the data plane's ports.

    Attributes:
        pid: of its present process; None while there is none.
        restarts: how often it has been started again.
        answers: whether it did when it was last asked; one that does not is shown as it was.
    """

    number: int
    pid: int | None
    is_ready: bool
    restarts: int
    answers: bool = True


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that is served.

    Attributes:
        is_ready: whether new requests are welcome.
        workers: none where one process does everything.
        versions: of routes that have several.
        configuration: the version of it, as the store numbers them; None where it keeps none.
    """

    is_ready: bool
    version: int
    routes: tuple[RouteRow, ...]
    models: tuple[ModelRow, ...]
    workers: tuple[WorkerRow, ...] = ()
    versions: tuple[VersionRow, ...] = ()
    configuration: int | None = None


def overview_of(pipeline: Pipeline) -> Overview:
    """What *pipeline* serves at this moment."""
    catalog = pipeline.catalog
    return Overview(
        is_ready=pipeline.is_ready(),
        version=catalog.version,
        routes=tuple(_route(route) for route in catalog.routes.values()),
        models=tuple(_model(model) for model in catalog.models.values()),
        versions=tuple(_version(one, pipeline.shadows) for one in pipeline.traffic.statistics(catalog)),
    )


def together(parts: Sequence[Overview], workers: Sequence[WorkerRow]) -> Overview:
    """What *workers* serve, *parts* being what those of them say that can be asked.

    All have the same configuration, and so the same routes and models in the same order. What they make of it may
    differ for a while, as when one has found a new certificate and another has not looked yet; then both are shown.
    """
    if not parts:
        return Overview(False, 0, (), (), tuple(workers))
    routes = zip(*(part.routes for part in parts), strict=True)
    models = zip(*(part.models for part in parts), strict=True)
    return replace(
        parts[0],
        is_ready=any(part.is_ready for part in parts),
        routes=tuple(replace(rows[0], accepts=_all_of(row.accepts for row in rows)) for rows in routes),
        models=tuple(_one_model(rows) for rows in models),
        workers=tuple(workers),
        versions=tuple(_one_version(rows) for rows in zip(*(part.versions for part in parts), strict=True)),
    )


def _all_of(texts: Iterable[str]) -> str:
    """The one text that all workers say, or every one that some do."""
    said = tuple(dict.fromkeys(texts))
    return said[0] if len(said) == 1 else f"workers differ: {' / '.join(said)}"


def _one_model(rows: Sequence[ModelRow]) -> ModelRow:
    """A model over the workers that have it: the state of the first that is not ready, and what all of them batch."""
    first = next((row for row in rows if row.state != State.READY), rows[0])
    each = [row.batching for row in rows]
    return replace(
        first,
        version=_all_of(row.version for row in rows),
        replicas=_all_replicas([row.replicas for row in rows if row.replicas]),
        batching=BatchingStatistics(
            queued_items=sum(part.queued_items for part in each),
            queued_bytes=sum(part.queued_bytes for part in each),
            in_flight=sum(part.in_flight for part in each),
            batches=sum(part.batches for part in each),
            items=sum(part.items for part in each),
            latency_s=max(part.latency_s for part in each),
            predicted_wait_s=max(part.predicted_wait_s for part in each),
            curve=slowest([part.curve for part in each if part.curve]),
            refusals={reason: sum(part.refusals.get(reason, 0) for part in each) for reason in Refusal},
            oldest_wait_s=max(part.oldest_wait_s for part in each),
            arrivals_per_s=sum(part.arrivals_per_s for part in each),
            bucket_curves={
                bound: slowest([part.bucket_curves[bound] for part in each if bound in part.bucket_curves])
                for bound in sorted({bound for part in each for bound in part.bucket_curves}, key=float)
            },
        ),
    )


def _one_version(rows: Sequence[VersionRow]) -> VersionRow:
    """A version over the workers that have it; where one has halted a canary, the others soon hear of it."""
    changes = [row.confidence_change for row in rows if row.confidence_change is not None]
    return replace(
        rows[0],
        share=sum(row.share for row in rows) / len(rows),
        state=_all_of(row.state for row in rows),
        is_halted=any(row.is_halted for row in rows),
        requests=sum(row.requests for row in rows),
        troubles=sum(row.troubles for row in rows),
        mirrored={outcome: sum(row.mirrored[outcome] for row in rows) for outcome in rows[0].mirrored},
        confidence_change=sum(changes) / len(changes) if changes else None,
    )


def _version(found: VersionShare, shadows: Shadows) -> VersionRow:
    counts = shadows.counts(found.route, found.version)
    parts = (["answers"] if found.share else []) + (["is shown requests"] if found.shadows else [])
    return VersionRow(
        route=found.route,
        version=found.version,
        share=found.share,
        state=f"halted: {found.halted}" if found.halted else " and ".join(parts) or "only where it is named",
        is_halted=found.halted is not None,
        requests=found.requests,
        troubles=found.failures + found.misses,
        mirrored=counts.outcomes if found.shadows else {},
        confidence_change=counts.confidence_change,
    )


_WORST_FIRST = (
    ReplicaState.EJECTED,
    ReplicaState.JOINING,
    ReplicaState.HALF_OPEN,
    ReplicaState.RAMPING,
    ReplicaState.HEALTHY,
    ReplicaState.UNLOADED,
)


def _all_replicas(each: Sequence[tuple[ReplicaStatistics, ...]]) -> tuple[ReplicaStatistics, ...]:
    """The servers of a model over the workers that have it, which judge them alone: as the worst off finds each."""
    return tuple(_one_replica(seen) for seen in zip(*each, strict=True))


def _one_replica(seen: Sequence[ReplicaStatistics]) -> ReplicaStatistics:
    worst = min(seen, key=lambda one: _WORST_FIRST.index(one.state))
    return replace(
        worst,
        in_flight=sum(one.in_flight for one in seen),
        latency_s=max((one.latency_s for one in seen if one.latency_s is not None), default=None),
        answered=sum(one.answered for one in seen),
        failures=sum(one.failures for one in seen),
        ejections=sum(one.ejections for one in seen),
    )


def _route(route: Route) -> RouteRow:
    return RouteRow(
        name=route.id,
        stages=tuple(stage.model for stage in route.cascade),
        accepts=accept_text(route.accept),
        queue=route.human.queue if route.human else None,
    )


def _model(model: Model) -> ModelRow:
    found = model.replicas()
    state = model.backend.state if model.loaded else "unloaded"
    replicas = () if found is None else found.replicas
    return ModelRow(model.name, state, model.backend.version, model.batcher.statistics(), replicas, model.costs())
