"""What the status page shows of the gateway, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

from batching.report import BatchingStatistics
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
class Overview:
    """Everything that is served."""

    version: int
    routes: tuple[RouteRow, ...]
    models: tuple[ModelRow, ...]


def overview(catalog: Catalog) -> Overview:
    """What *catalog* serves at this moment."""
    routes = tuple(_route(route) for route in catalog.routes.values())
    return Overview(catalog.version, routes, tuple(_model(model) for model in catalog.models.values()))


def _route(route: Route) -> RouteRow:
    return RouteRow(
        name=route.name,
        stages=tuple(stage.model for stage in route.cascade),
        accepts=accept_text(route.accept),
        queue=route.human.queue if route.human else None,
    )


def _model(model: Model) -> ModelRow:
    return ModelRow(model.name, model.backend.state, model.backend.version, model.batcher.statistics())
