"""The composition root: the one place where settings become a running gateway, and where every part is wired.

Order of building: store, models (all at once), catalog, pipeline, edges; closing goes backwards. Whatever fails on the
way closes what was already open.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from backends.contract import NO_DEADLINE, Backend, Datatype, Signature, TensorSpec
from backends.errors import InvalidInput, PointsmanError
from backends.preprocessed import preprocessed
from backends.registry import backend_type
from backends.warm.pool import Pooled, WarmPool
from batching.batcher import Batcher
from batching.report import BatchObserver, IgnoreBatches
from gateway.answer import LABEL
from gateway.catalog import Catalog, Detector, Model
from gateway.certificates import NOT_LOOKED_UP, Certificates, subjects_of, with_subjects
from gateway.control.app import control_app
from gateway.control.overview import Overview, overview
from gateway.decoding import Workshop, decoded_spec
from gateway.detection import Detection
from gateway.explain import configured, explanation, straight_to_people
from gateway.grpc_server import GrpcLimits, GrpcServer
from gateway.http.asgi import AsgiApp
from gateway.http.handler import Handler, HttpLimits
from gateway.http.oip import oip_endpoints
from gateway.http.reviews import review_endpoints
from gateway.http.v1 import v1_endpoints
from gateway.loading import Loader, NotOpened
from gateway.pipeline import Pipeline
from gateway.request import Request
from gateway.scoring import Scored
from gateway.security import Authenticator, TrustedHosts, is_loopback
from gateway.settings import (
    CertifiedSettings,
    ControlMode,
    DetectorSettings,
    ModelSettings,
    RouteSettings,
    ServerOptions,
    Settings,
)
from gateway.shared_memory import SharedMemory
from gateway.store import open_store
from gateway.store.contract import Store
from gateway.telemetry import Telemetry, exposition_of
from gateway.warming import expected_bytes, ladder_of
from gateway.workers.control import ControlHandler
from gateway.workers.crew import Crew
from router.confidence import usual_measure
from router.contract import AcceptAny, OnDefer, Route, Stage
from router.table import Picked, RouteTable

CLOSE_S = 2.0
"""What all models together get to end their calls when the gateway stops."""

_LEAST_S = 0.05
"""What one gets when the others have used that up."""

log = logging.getLogger("pointsman.compose")

_EXPOSED_DEADLINE_S = 30.0
"""Deadline of a physical model that is exposed under its own name, where its caller names none."""


class Patience:
    """Closes things, and goes on without what takes too long: a model that hangs must not hold up the store."""

    def __init__(self) -> None:
        self.abandoned: list[str] = []
        """What never stopped; only the end of the process will stop it."""
        self._until = math.inf

    async def close(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Wait for *close*, until `CLOSE_S` after the first that was closed."""
        loop = asyncio.get_running_loop()
        self._until = min(self._until, loop.time() + CLOSE_S)
        closing = asyncio.ensure_future(close())
        done, _ = await asyncio.wait({closing}, timeout=max(_LEAST_S, self._until - loop.time()))
        if done:
            closing.result()
        else:
            self.abandoned.append(name)
            log.error("%s did not stop within %g s; it is abandoned", name, CLOSE_S)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that is ready to serve: what `gateway.serve` listens for."""

    pipeline: Pipeline
    store: Store
    certificates: Certificates
    loader: Loader
    telemetry: Telemetry
    http: Handler
    control_app: ASGIApp
    grpc: GrpcServer
    patience: Patience

    async def maintain(self) -> None:
        """One round of upkeep: the store's, the routes' certificates, and models that have failed."""
        self.loader.mend()
        try:
            await self.store.maintain()
        finally:
            await self.loader.renew_certificates()

    async def keep_up(self) -> None:
        """One round of what is left of upkeep in a process whose store another one maintains."""
        self.loader.mend()
        try:
            await self.store.measure()
        finally:
            await self.loader.renew_certificates()

    async def refuse_the_rest(self) -> None:
        """End what is still queued or running, as UNAVAILABLE."""
        await asyncio.gather(
            *(
                self.patience.close(f"model {m.name!r}", partial(m.batcher.aclose, drain=False))
                for m in self.loader.models()
            )
        )


@asynccontextmanager
async def compose(settings: Settings) -> AsyncIterator[Gateway]:
    """Everything that *settings* describe, running; closed on leaving.

    Raises:
        PointsmanError: the store or a model cannot be opened, or models do not fit their routes.
    """
    telemetry = Telemetry()
    async with AsyncExitStack() as stack:
        store = await open_store(settings.store, siblings=settings.server.workers > 1)
        stack.push_async_callback(store.aclose)
        workshop = Workshop()
        stack.callback(workshop.close)
        patience = Patience()
        pool = WarmPool(settings.pool.memory_bytes, observer=telemetry)
        pool.start()
        stack.push_async_callback(patience.close, "the pool of models", pool.aclose)
        catalog = await open_catalog(settings, telemetry, stack, patience, pool)
        versions = {name: model.backend.version for name, model in catalog.models.items()}
        subjects = await asyncio.to_thread(subjects_of, settings, versions)
        certificates = Certificates(settings, subjects, store)
        catalog = await certificates.applied(with_subjects(catalog, subjects))
        pipeline = Pipeline(catalog, store, workshop, telemetry)
        telemetry.serve(lambda: pipeline.catalog, store.statistics)
        loader = Loader(settings, _Opener(settings, telemetry, pool), pipeline, certificates, patience.abandoned)
        stack.push_async_callback(_close_loaded, loader, patience)
        yield _wire(settings, pipeline, store, certificates, loader, telemetry, patience)


async def _close_loaded(loader: Loader, patience: Patience) -> None:
    """End what *loader* has begun, and close what it has opened; a model that it did not is closed once more."""
    await patience.close("the loading of models", loader.aclose)
    for model in loader.models():
        await patience.close(f"the batcher of model {model.name!r}", model.batcher.aclose)
        await patience.close(f"model {model.name!r}", model.backend.aclose)


def _wire(
    settings: Settings,
    pipeline: Pipeline,
    store: Store,
    certificates: Certificates,
    loader: Loader,
    telemetry: Telemetry,
    patience: Patience,
) -> Gateway:
    authenticator, hosts = _doors(settings)
    limits = HttpLimits(body_bytes=settings.server.max_body_bytes)
    memory = _shared_memory(settings.server)
    control = loader if settings.server.model_control is ControlMode.EXPLICIT else None
    entries = (
        *oip_endpoints(pipeline, limits, memory=memory, control=control),
        *v1_endpoints(pipeline, limits),
        *review_endpoints(store),
    )
    handler = Handler(entries, authenticator, telemetry, limits, hosts=hosts)

    async def metrics(accept: str) -> tuple[bytes, str]:
        await _count_reviews(telemetry, store)
        return telemetry.exposition(accept)

    async def served() -> Overview:
        return overview(pipeline.catalog, is_ready=pipeline.is_ready())

    return Gateway(
        pipeline=pipeline,
        store=store,
        certificates=certificates,
        loader=loader,
        telemetry=telemetry,
        http=handler,
        control_app=control_app(store, authenticator, AsgiApp(handler), metrics, served, hosts),
        grpc=GrpcServer(
            pipeline,
            authenticator,
            telemetry,
            settings.server.host,
            settings.server.grpc_port,
            GrpcLimits(message_bytes=settings.server.max_body_bytes),
            memory,
            control=control,
            transport=settings.server.grpc_transport,
            reuse_port=settings.server.workers > 1,
        ),
        patience=patience,
    )


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What `gateway.workers.supervisor` serves: the control port's application, over what workers do."""

    store: Store
    app: ASGIApp


@asynccontextmanager
async def compose_control(settings: Settings, crew: Crew) -> AsyncIterator[ControlPlane]:
    """The control plane of *settings* without any model, beside *crew*, which has them; closed on leaving.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    telemetry = Telemetry()
    store = await open_store(settings.store, siblings=True)
    try:
        telemetry.serve(lambda: _NOTHING_SERVED, store.statistics)
        authenticator, hosts = _doors(settings)
        limits = HttpLimits(body_bytes=settings.server.max_body_bytes)
        handler = ControlHandler(crew, review_endpoints(store), authenticator, telemetry, limits, hosts=hosts)

        async def metrics(accept: str) -> tuple[bytes, str]:
            await _count_reviews(telemetry, store)
            return exposition_of(await crew.families(telemetry.families()), accept)

        yield ControlPlane(store, control_app(store, authenticator, AsgiApp(handler), metrics, crew.overview, hosts))
    finally:
        await store.aclose()


_NOTHING_SERVED = Catalog(0, RouteTable(frozenset()), {}, {})


def _doors(settings: Settings) -> tuple[Authenticator, TrustedHosts]:
    """Who may come in, and under which host names."""
    authenticator = Authenticator(settings.security)
    hosts = TrustedHosts(
        [settings.server.host, *settings.server.trusted_hosts],
        any_name=not authenticator.needs_key and not is_loopback(settings.server.host),
    )
    return authenticator, hosts


async def _count_reviews(telemetry: Telemetry, store: Store) -> None:
    with suppress(PointsmanError):  # a store that cannot be read is when the other metrics are needed most
        telemetry.on_queues(await store.queue_depths())


def _shared_memory(server: ServerOptions) -> SharedMemory:
    """The regions of clients on this machine.

    Raises:
        InvalidInput: clients elsewhere could name regions too.
    """
    if server.shared_memory.enabled and not is_loopback(server.host):
        raise InvalidInput(
            f"shared memory is for clients on this machine, but host {server.host!r} lets others in; listen on "
            "127.0.0.1, or set `server: {shared_memory: {enabled: false}}`"
        )
    return SharedMemory(server.shared_memory, heap_bytes=server.max_body_bytes)


async def explain(settings: Settings, request: Request) -> dict[str, Any]:
    """What would become of *request*, by the rules of *settings* (Any: JSON); only detectors' models are opened.

    Raises:
        PointsmanError: a detector's model cannot be opened.
    """
    wanted = {detector.model for detector in settings.detectors.values()}
    models = {name: model for name, model in settings.models.items() if name in wanted}
    async with AsyncExitStack() as stack:
        workshop = Workshop()
        stack.callback(workshop.close)
        without_routes = replace(settings, models=models, routes={})
        catalog = await open_catalog(without_routes, IgnoreBatches(), stack, Patience())
        detection = Detection(workshop, Telemetry(), time.monotonic)
        found = await detection.classified(catalog, request, NO_DEADLINE)
    people_alone = {name for name, route in settings.routes.items() if not route.cascade}
    found = replace(found, choice=straight_to_people(found.choice, people_alone.__contains__))
    match found.choice:
        case Picked(name, to_person) if name in settings.routes:
            return explanation(settings.table, found, configured(settings.routes[name], to_person=to_person))
        case _:
            return explanation(settings.table, found, None)


async def open_versions(settings: Settings, names: Iterable[str]) -> Mapping[str, str]:
    """The versions of the models *names*, which are opened for it and closed again.

    Raises:
        PointsmanError: one cannot be opened, or its calibration is of another version.
    """
    wanted = replace(settings, models={name: settings.models[name] for name in names})
    async with AsyncExitStack() as stack:
        backends = await _open_backends(wanted, stack, Patience(), None)
        for name, backend in backends.items():
            _check_calibrated(settings.models[name], backend.version)
        return {name: backend.version for name, backend in backends.items()}


async def check_models(settings: Settings) -> None:
    """Load every model, and check that plans, outputs and routes fit.

    Raises:
        PointsmanError: says what does not.
    """
    async with WarmPool(settings.pool.memory_bytes) as pool, AsyncExitStack() as stack:
        await open_catalog(settings, IgnoreBatches(), stack, Patience(), pool)


async def open_catalog(
    settings: Settings,
    observer: BatchObserver,
    stack: AsyncExitStack,
    patience: Patience,
    pool: WarmPool | None = None,
) -> Catalog:
    """Open every model of *settings*, all at once, and join them to routes; *stack* closes them.

    Args:
        pool: has the models that are not always kept, as there is room; None: they are kept as the others are.

    Raises:
        PointsmanError: a model cannot be opened, or does not fit a route.
    """
    backends = await _open_backends(settings, stack, patience, pool)
    models = {name: _model(model, backends[name], observer) for name, model in settings.models.items()}
    for model in models.values():
        await _warm_up(model)
    for model in models.values():
        model.batcher.start()
        stack.push_async_callback(patience.close, f"the batcher of model {model.name!r}", model.batcher.aclose)
    return _joined(settings, models)


def _joined(settings: Settings, models: Mapping[str, Model]) -> Catalog:
    """The catalog of *settings* over *models*.

    Raises:
        InvalidInput: a model does not fit a route or a detector.
    """
    routes = {name: _route(route, settings, models) for name, route in settings.routes.items()}
    exposed = {name: _exposed(model) for name, model in models.items() if settings.models[name].expose}
    detectors = {trait: _detector(detector, models) for trait, detector in settings.detectors.items()}
    return Catalog(1, settings.table, {**exposed, **routes}, models, detectors)


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the models of *settings* one by one; implements `gateway.loading.Opener`."""

    settings: Settings
    observer: BatchObserver
    pool: WarmPool

    async def open(self, name: str) -> Model:
        """The model *name*; see `gateway.loading.Opener`."""
        model = self.settings.models[name]
        try:
            backend = await _open_backend(model, _decoded_inputs(name, self.settings), self.pool)
        except (PointsmanError, OSError, ValueError) as error:
            raise NotOpened(name) from error
        try:
            opened = _model(model, backend, self.observer)
            await _warm_up(opened)
            return opened
        except BaseException:
            await backend.aclose()
            raise

    def joined(self, models: Mapping[str, Model]) -> Catalog:
        """The catalog over *models*; see `gateway.loading.Opener`."""
        return _joined(self.settings, models)


async def _open_backends(
    settings: Settings, stack: AsyncExitStack, patience: Patience, pool: WarmPool | None
) -> Mapping[str, Backend]:
    """Every model's backend, opened concurrently; those that opened are closed even where another failed.

    Raises:
        PointsmanError: one cannot be opened, or there is less memory than models take that are always kept.
    """
    if pool is not None:
        pool.reserve(sum(expected_bytes(model) for model in settings.models.values() if model.warm.keep))
    inputs = {name: _decoded_inputs(name, settings) for name in settings.models}
    opening = [_open_backend(model, inputs[name], pool) for name, model in settings.models.items()]
    opened = await asyncio.gather(*opening, return_exceptions=True)
    for name, result in zip(settings.models, opened, strict=True):
        if not isinstance(result, BaseException):
            stack.push_async_callback(patience.close, f"model {name!r}", result.aclose)
    for result in opened:
        if isinstance(result, BaseException):
            raise result
    return dict(zip(settings.models, (r for r in opened if not isinstance(r, BaseException)), strict=True))


async def _open_backend(model: ModelSettings, inputs: tuple[TensorSpec, ...] | None, pool: WarmPool | None) -> Backend:
    """The backend of *model* with its plans, ready to serve; one that is not always kept goes into *pool*."""
    if pool is None or model.warm.keep:
        return await _open_now(model, inputs)
    ladder = ladder_of(model, partial(_open_now, model, inputs))
    return await pool.open(model.name, ladder, model.warm, estimate_bytes=expected_bytes(model))


async def _open_now(model: ModelSettings, inputs: tuple[TensorSpec, ...] | None) -> Backend:
    backend = await backend_type(model.backend).open(model.name, model.options)
    try:
        return await preprocessed(
            backend,
            backend.signature.inputs if inputs is None else inputs,
            model.preprocess,
            model.postprocess,
            labels=model.labels,
            base=model.base,
        )
    except BaseException:
        await backend.aclose()
        raise


def _model(model: ModelSettings, backend: Backend, observer: BatchObserver) -> Model:
    _check_calibrated(model, backend.version)
    measure = model.measure or usual_measure(spec.name for spec in backend.signature.outputs)
    scored = Scored.of(model.name, backend, measure, model.calibrator)
    try:
        batcher = Batcher(model.name, scored, model.batching, observer=observer)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    pooled = backend if isinstance(backend, Pooled) else None
    return Model(model.name, backend, batcher, model.labels or (), pooled=pooled)


async def _warm_up(model: Model) -> None:
    try:
        await model.batcher.warm_up()
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def _check_calibrated(model: ModelSettings, version: str) -> None:
    fitted = model.calibration
    if fitted is not None and fitted.version != version:
        raise InvalidInput(
            f"the calibration of model {model.name!r} was fitted for its version {fitted.version!r}, and version "
            f"{version!r} is loaded; calibrate again"
        )


def _decoded_inputs(model: str, settings: Settings) -> tuple[TensorSpec, ...] | None:
    """What the routes and detectors of *model* feed it, after decoding; None where it has neither.

    Raises:
        InvalidInput: two feed it differently.
    """
    fed = {
        f"route {route.name!r}": tuple(_decoded(spec, route.decode) for spec in route.inputs)
        for route in settings.routes.values()
        if model in route.cascade
    }
    name = next((inputs[0].name for inputs in fed.values()), "content")
    for detector in settings.detectors.values():
        if detector.model == model:
            content = TensorSpec(name, Datatype.BYTES, (1,))
            fed[f"detector {detector.trait!r}"] = (_decoded(content, detector.decode),)
    if len(set(fed.values())) > 1:
        raise InvalidInput(f"model {model!r} gets different inputs from {', '.join(fed)}; give each its own model")
    return next(iter(fed.values()), None)


def _decoded(spec: TensorSpec, decoder: str | None) -> TensorSpec:
    return decoded_spec(spec, decoder) if decoder else spec


def _detector(detector: DetectorSettings, models: Mapping[str, Model]) -> Detector:
    model = models[detector.model]
    if TensorSpec(LABEL, Datatype.BYTES, (1,)) not in model.backend.signature.outputs:
        raise InvalidInput(
            f"detector {detector.trait!r}: model {model.name!r} has no output {LABEL!r}, one BYTES an item; give it "
            "`labels`"
        )
    return Detector(detector.trait, model, detector.decode, detector.floor, detector.timeout_s)


def _route(route: RouteSettings, settings: Settings, models: Mapping[str, Model]) -> Route:
    outputs = {name: models[name].backend.signature.outputs for name in route.cascade}
    first = next(iter(outputs.values()), _DECIDED_BY_PEOPLE)
    for name, other in outputs.items():
        if other != first:
            raise InvalidInput(
                f"route {route.name!r}: stages must have the same outputs, but {route.cascade[0]!r} gives "
                f"{_described(first)} and {name!r} gives {_described(other)}; postprocess them alike"
            )
    return Route(
        name=route.name,
        signature=Signature(route.inputs, first),
        decode=route.decode,
        cascade=tuple(Stage(name, settings.models[name].cost) for name in route.cascade),
        accept=NOT_LOOKED_UP if isinstance(route.accept, CertifiedSettings) else route.accept,
        human=route.human,
        on_defer=route.on_defer,
        deadline_s=route.deadline_s,
        max_error=route.max_error,
    )


_DECIDED_BY_PEOPLE = (TensorSpec(LABEL, Datatype.BYTES, (1,)),)
"""The outputs of a route without models."""


def _exposed(model: Model) -> Route:
    return Route(
        name=model.name,
        signature=model.backend.signature,
        decode=None,
        cascade=(Stage(model.name),),
        accept=AcceptAny(),
        human=None,
        on_defer=OnDefer.PROVISIONAL,
        deadline_s=_EXPOSED_DEADLINE_S,
    )


def _described(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs)
