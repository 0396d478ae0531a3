"""What the status page shows of the gateway, as plain records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backends.contract import State
from batching.report import BatchingStatistics, Refusal, slowest
from gateway.catalog import Catalog, Model
from gateway.explain import accept_text
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
class ModelRow:
    """A model and its batcher."""

    name: str
    state: str
    version: str
    batching: BatchingStatistics


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
    """

    is_ready: bool
    version: int
    routes: tuple[RouteRow, ...]
    models: tuple[ModelRow, ...]
    workers: tuple[WorkerRow, ...] = ()


def overview(catalog: Catalog, *, is_ready: bool) -> Overview:
    """What *catalog* serves at this moment."""
    routes = tuple(_route(route) for route in catalog.routes.values())
    return Overview(is_ready, catalog.version, routes, tuple(_model(model) for model in catalog.models.values()))


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


def _route(route: Route) -> RouteRow:
    return RouteRow(
        name=route.name,
        stages=tuple(stage.model for stage in route.cascade),
        accepts=accept_text(route.accept),
        queue=route.human.queue if route.human else None,
    )


def _model(model: Model) -> ModelRow:
    state = model.backend.state if model.loaded else "unloaded"
    return ModelRow(model.name, state, model.backend.version, model.batcher.statistics())
