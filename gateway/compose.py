"""The composition root: the one place where settings become a running gateway, and where every part is wired.

Order of building: store, models (all at once), catalog, pipeline, edges; closing goes backwards. Whatever fails on the
way closes what was already open.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.types import ASGIApp

from backends.absent import Absent
from backends.contract import NO_DEADLINE, Backend, Datatype, Signature, TensorSpec
from backends.errors import Code, InvalidInput, PointsmanError
from backends.preprocessed import preprocessed, weigh
from backends.registry import backend_type
from backends.warm.pool import WarmPool
from backends.warm.warming import warming_of
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.report import BatchObserver, IgnoreBatches
from batching.sequences import SequenceRunner
from gateway.answer import LABEL
from gateway.catalog import Catalog, Detector, Model
from gateway.certificates import NOT_LOOKED_UP, Certificates, subjects_of, with_subjects
from gateway.control.app import control_app
from gateway.control.overview import Overview, overview_of
from gateway.decoding import Workshop, decoded_spec
from gateway.detection import Detection
from gateway.explain import VersionPreview, configured, explanation, straight_to_people
from gateway.grpc_server import GrpcLimits, GrpcServer
from gateway.halts import Halts
from gateway.http.asgi import AsgiApp
from gateway.http.erasures import erasure_endpoints
from gateway.http.handler import Handler, HttpLimits
from gateway.http.oip import oip_endpoints
from gateway.http.reviewers import reviewer_endpoints
from gateway.http.reviews import review_endpoints
from gateway.http.v1 import v1_endpoints
from gateway.loading import Loader, NotOpened
from gateway.masking import Masks
from gateway.notices.mail import MailTarget
from gateway.notices.tell import tell_reviewers
from gateway.people.options import steps_of
from gateway.people.outlook import Outlook
from gateway.pipeline import Pipeline
from gateway.request import Request
from gateway.rereading import Rereading
from gateway.scoring import Scored, Scoring
from gateway.security import Authenticator, SecurityOptions, TrustedHosts, is_loopback
from gateway.sequences import check_sequences
from gateway.settings import (
    CertifiedSettings,
    ControlMode,
    DetectorSettings,
    ModelSettings,
    RouteSettings,
    ServerOptions,
    Settings,
    SettingsError,
    load_api_keys,
)
from gateway.shared_memory import SharedMemory
from gateway.store import open_store
from gateway.store.contract import Store
from gateway.telemetry import Telemetry, exposition_of, mask_logs
from gateway.tracing.options import TracesOptions, why_not_tracing
from gateway.traffic import outlook
from gateway.warming import expected_bytes, ladder_of
from gateway.webhooks.deliver import Deliverer, Target, bury_unclaimed
from gateway.webhooks.events import announcer
from gateway.workers.control import ControlHandler
from gateway.workers.crew import Crew
from kernels.decode import DECODERS
from router.confidence import measured, usual_measure
from router.contract import AcceptAny, OnDefer, Route, Stage, route_id
from router.table import Picked, RouteTable
from router.versions import shares

if TYPE_CHECKING:
    from gateway.tracing.spans import Tracing

OpenModel: TypeAlias = Callable[[ModelSettings], Awaitable[Backend]]
"""Opens the backend of a model, without what stands around it."""

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
class People:
    """The queues of people: what is due moves on, and how long they take is kept in step."""

    settings: Settings
    store: Store
    outlook: Outlook
    telemetry: Telemetry

    async def maintain(self) -> None:
        """One round of upkeep; of several processes one does it."""
        self.telemetry.on_escalated(await self.store.escalate(steps_of(self.settings.queues)))
        await self.look()

    async def look(self) -> None:
        """See how long people take now."""
        await self.outlook.refresh(self.store)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that is ready to serve: what `gateway.serve` listens for."""

    pipeline: Pipeline
    store: Store
    certificates: Certificates
    halts: Halts
    loader: Loader
    telemetry: Telemetry
    http: Handler
    control_app: ASGIApp
    grpc: GrpcServer
    deliver: Callable[[], Coroutine[Any, Any, None]]
    keys: Rereading[SecurityOptions]
    patience: Patience
    people: People

    async def maintain(self) -> None:
        """One round of upkeep: the store's, people's queues, what routes rest on, and models that have failed."""
        self.loader.mend()
        try:
            await _maintain(self.store, self.people)
        finally:
            await self._follow_store()

    async def keep_up(self) -> None:
        """One round of what is left of upkeep in a process whose store another one maintains."""
        self.loader.mend()
        try:
            await _look(self.store, self.people)
        finally:
            await self._follow_store()

    async def _follow_store(self) -> None:
        """Have routes accept by the certificates, and versions answer by the halts, that the store has now."""
        try:
            await self.loader.renew_certificates()
        finally:
            await self.halts.look()

    async def refuse_the_rest(self) -> None:
        """End what is still queued or running, as UNAVAILABLE."""
        await asyncio.gather(
            *(
                self.patience.close(f"model {m.name!r}", partial(m.batcher.aclose, drain=False))
                for m in self.loader.models()
            )
        )


async def open_configured(model: ModelSettings) -> Backend:
    """The backend that *model* names, of this process.

    Raises:
        PointsmanError: it cannot be opened.
    """
    return await backend_type(model.backend).open(model.name, model.options)


@asynccontextmanager
async def compose(
    settings: Settings,
    wall_clock: Callable[[], float] = time.time,
    open_model: OpenModel = open_configured,
    apart: Collection[str] = (),
) -> AsyncIterator[Gateway]:
    """Everything that *settings* describe, running; closed on leaving.

    Args:
        wall_clock: Unix time in seconds, by which canaries ramp.
        open_model: opens models, now and when they are opened anew.
        apart: models that it opens in other processes, whose memory they take.

    Raises:
        PointsmanError: the store or a model cannot be opened, models do not fit their routes, or an extra is missing.
    """
    _check_installed(settings)
    tracing = open_tracing(settings.traces)
    telemetry = Telemetry(tracing)
    async with AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(tracing.aclose)
        masks = _masks(settings)
        store = await open_store(
            settings.store,
            siblings=settings.server.has_siblings,
            announce=announcer(settings.webhooks),
            hide=masks.hiding,
        )
        stack.push_async_callback(store.aclose)
        workshop = Workshop()
        stack.callback(workshop.close)
        patience = Patience()
        pool = WarmPool(settings.pool.memory_bytes, observer=telemetry)
        pool.start()
        stack.push_async_callback(patience.close, "the pool of models", pool.aclose)
        opening = Opening(pool, open_model, apart)
        catalog = await open_catalog(settings, telemetry, stack, patience, opening, starting=True)
        versions = {name: model.backend.version for name, model in catalog.models.items()}
        subjects = await asyncio.to_thread(subjects_of, settings, versions)
        certificates = Certificates(settings, subjects, store)
        catalog = await certificates.applied(with_subjects(catalog, subjects))
        begin_trace = None if tracing is None else tracing.begin
        people = People(settings, store, Outlook(settings.queues), telemetry)
        await people.look()
        pipeline = Pipeline(
            catalog,
            store,
            workshop,
            telemetry,
            wall_clock=wall_clock,
            begin_trace=begin_trace,
            outlook=people.outlook,
            masks=masks,
        )
        telemetry.serve(lambda: pipeline.catalog, store.statistics)
        telemetry.serve_versions(lambda: pipeline.traffic.statistics(pipeline.catalog))
        if settings.cluster.version is not None:
            telemetry.serve_configuration(settings.cluster.version)
        halts = Halts(settings.traffic, pipeline.traffic, store, wall_clock)
        await halts.look()
        stack.push_async_callback(halts.look_last)
        opener = _Opener(settings, telemetry, opening)
        loader = Loader(settings, opener, pipeline, certificates, patience.abandoned)
        stack.push_async_callback(_close_loaded, loader, patience)
        stack.push_async_callback(pipeline.shadows.aclose)
        yield _wire(settings, pipeline, store, certificates, halts, loader, telemetry, patience, people)


def _masks(settings: Settings) -> Masks:
    """The masks of *settings*, which are on what is logged from now on, too."""
    masks = Masks(settings.masks)
    if masks:
        mask_logs(masks.text)
    return masks


def open_tracing(options: TracesOptions | None) -> Tracing | None:
    """What makes spans, as *options* say; None where they say nothing.

    Raises:
        InvalidInput: the extra is not installed, or the receiver's headers cannot be read.
    """
    if options is None:
        return None
    if (why := why_not_tracing()) is not None:
        raise InvalidInput(f"telemetry.traces {why}")
    from gateway.tracing.spans import Tracing  # its packages are not installed everywhere

    try:
        return Tracing(options)
    except ValueError as error:
        raise InvalidInput(f"telemetry.traces.headers_file: {error}") from error


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
    halts: Halts,
    loader: Loader,
    telemetry: Telemetry,
    patience: Patience,
    people: People,
) -> Gateway:
    authenticator, hosts = _doors(settings)
    limits = HttpLimits(body_bytes=settings.server.max_body_bytes)
    memory = _shared_memory(settings.server)
    control = loader if settings.server.model_control is ControlMode.EXPLICIT else None
    entries = (
        *oip_endpoints(pipeline, limits, memory=memory, control=control),
        *v1_endpoints(pipeline, limits),
        *review_endpoints(store, authenticator),
        *reviewer_endpoints(store),
        *erasure_endpoints(store, settings.labels_of),
    )
    handler = Handler(entries, authenticator, telemetry, limits, hosts=hosts)

    async def metrics(accept: str) -> tuple[bytes, str]:
        await _count_reviews(telemetry, store, people.outlook)
        return telemetry.exposition(accept)

    async def served() -> Overview:
        return replace(overview_of(pipeline), configuration=telemetry.configuration)

    return Gateway(
        pipeline=pipeline,
        store=store,
        certificates=certificates,
        halts=halts,
        loader=loader,
        telemetry=telemetry,
        http=handler,
        control_app=control_app(store, authenticator, AsgiApp(handler), metrics, served, hosts, people.outlook.waits),
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
            reuse_port=settings.server.has_siblings,
        ),
        deliver=partial(_deliver, settings, store, telemetry),
        keys=_keys(settings, authenticator),
        patience=patience,
        people=people,
    )


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What `gateway.workers.supervisor` serves: the control port's application, over what workers do."""

    store: Store
    app: ASGIApp
    deliver: Callable[[], Coroutine[Any, Any, None]]
    keys: Rereading[SecurityOptions]
    people: People

    async def maintain(self) -> None:
        """One round of upkeep: the store's, and people's queues."""
        await _maintain(self.store, self.people)


async def _maintain(store: Store, people: People) -> None:
    """The round of whoever leads, of several gateways on *store*; of the others, what is left of it."""
    if await store.lead(_LEAD_S):
        await store.maintain()
        await people.maintain()
    else:
        await _look(store, people)


async def _look(store: Store, people: People) -> None:
    """The round of whoever leaves it to others to maintain *store*."""
    await store.measure()
    await people.look()


_LEAD_S = 10.0
"""For which a gateway leads unless it says again that it does, as it does every few seconds."""


async def _deliver(settings: Settings, store: Store, telemetry: Telemetry) -> None:
    """Deliver messages to webhooks and mailboxes, and end those for such that are no more, until cancelled.

    Raises:
        InvalidInput: what it needs is not installed.
    """
    async with AsyncExitStack() as stack:
        targets: dict[str, Target] = {}
        for rule in settings.notify:
            if rule.email:
                assert settings.smtp is not None, "mail without a server passed the settings. This is a bug."
                targets[rule.target] = MailTarget(settings.smtp, rule.email)
        if settings.webhooks:
            from gateway.webhooks.post import webhook_targets

            targets |= await stack.enter_async_context(webhook_targets(settings.webhooks))
        work = [bury_unclaimed(targets, store)]
        if targets:
            work += [Deliverer(targets, store, telemetry).run(), tell_reviewers(settings.notify, store)]
        await asyncio.gather(*work)


def _check_installed(settings: Settings) -> None:
    """Refuse webhooks where nothing is installed to deliver to them.

    Raises:
        InvalidInput: names the extra.
    """
    if settings.webhooks and importlib.util.find_spec("aiohttp") is None:
        raise InvalidInput("webhooks need their extra: pip install 'pointsman[webhooks]'")


@asynccontextmanager
async def compose_control(settings: Settings, crew: Crew) -> AsyncIterator[ControlPlane]:
    """The control plane of *settings* without any model, beside *crew*, which has them; closed on leaving.

    Raises:
        PointsmanError: the store cannot be opened, or an extra is missing.
    """
    _check_installed(settings)
    masks = _masks(settings)
    telemetry = Telemetry()
    store = await open_store(settings.store, siblings=True, announce=announcer(settings.webhooks), hide=masks.hiding)
    try:
        telemetry.serve(lambda: _NOTHING_SERVED, store.statistics)
        authenticator, hosts = _doors(settings)
        limits = HttpLimits(body_bytes=settings.server.max_body_bytes)
        entries = (*review_endpoints(store, authenticator), *reviewer_endpoints(store))
        handler = ControlHandler(crew, entries, authenticator, telemetry, limits, hosts=hosts)
        people = People(settings, store, Outlook(settings.queues), telemetry)

        async def metrics(accept: str) -> tuple[bytes, str]:
            await _count_reviews(telemetry, store, people.outlook)
            return exposition_of(await crew.families(telemetry.families()), accept)

        app = control_app(store, authenticator, AsgiApp(handler), metrics, crew.overview, hosts, people.outlook.waits)
        deliver = partial(_deliver, settings, store, telemetry)
        yield ControlPlane(store, app, deliver, _keys(settings, authenticator), people)
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


def _keys(settings: Settings, authenticator: Authenticator) -> Rereading[SecurityOptions]:
    """The keys that *authenticator* knows, where they are in a file of their own."""
    file = settings.security.file
    return Rereading(
        "the list of API keys",
        [] if file is None else [file],
        lambda: settings.security if file is None else load_api_keys(file, settings.queues),
        authenticator.use,
        (SettingsError,),
    )


async def _count_reviews(telemetry: Telemetry, store: Store, outlook: Outlook) -> None:
    telemetry.on_waits(outlook.by_queue())
    with suppress(PointsmanError):  # a store that cannot be read is when the other metrics are needed most
        telemetry.on_queues(await store.queue_depths())
        telemetry.on_outbox(await store.outbox_depths())
        telemetry.on_quality(await store.quality_counts())


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
        without_routes = replace(settings, models=models, routes={}, traffic={})
        catalog = await open_catalog(without_routes, IgnoreBatches(), stack, Patience(), Opening())
        detection = Detection(workshop, Telemetry(), time.monotonic)
        found = await detection.classified(catalog, request, NO_DEADLINE)
    people_alone = {route.name for route in settings.routes.values() if not route.cascade}
    found = replace(found, choice=straight_to_people(found.choice, people_alone.__contains__))
    match found.choice:
        case Picked(name, to_person) if name in settings.names:
            version, versions = "", tuple[VersionPreview, ...]()
            if (traffic := settings.traffic.get(name)) is not None:
                version, versions = outlook(traffic, shares(traffic, time.time()), name, request)
            told = configured(settings.routes[route_id(name, version)], to_person=to_person, versions=versions)
            return explanation(settings.table, found, told)
        case _:
            return explanation(settings.table, found, None)


async def open_versions(settings: Settings, names: Iterable[str]) -> Mapping[str, str]:
    """The versions of the models *names*, which are opened for it and closed again.

    Raises:
        PointsmanError: one cannot be opened, or its calibration is of another version.
    """
    wanted = replace(settings, models={name: settings.models[name] for name in names})
    async with AsyncExitStack() as stack:
        backends = await _open_backends(wanted, stack, Patience(), Opening())
        for name, backend in backends.items():
            _check_calibrated(settings.models[name], backend.version)
        return {name: backend.version for name, backend in backends.items()}


async def check_models(settings: Settings) -> None:
    """Load every model, and check that plans, outputs and routes fit.

    Raises:
        PointsmanError: says what does not.
    """
    async with WarmPool(settings.pool.memory_bytes) as pool, AsyncExitStack() as stack:
        await open_catalog(settings, IgnoreBatches(), stack, Patience(), Opening(pool))


@dataclass(frozen=True, slots=True)
class Opening:
    """How models are opened.

    Attributes:
        pool: has the models that are not always kept, as there is room; None: they are kept as the others are.
        open_model: opens them.
        apart: those that it opens in other processes, whose memory they take.
    """

    pool: WarmPool | None = None
    open_model: OpenModel = open_configured
    apart: Collection[str] = ()

    def reserve(self, models: Iterable[ModelSettings]) -> None:
        """Set aside what those of *models* take here that are always kept.

        Raises:
            InvalidInput: more than the pool has.
        """
        if self.pool is not None:
            kept = (model for model in models if model.warm.keep and model.name not in self.apart)
            self.pool.reserve(sum(expected_bytes(model) for model in kept))

    def pool_of(self, model: ModelSettings) -> WarmPool | None:
        """What loads *model* when it is wanted; None: it is opened for good."""
        return None if model.warm.keep or model.name in self.apart else self.pool


async def open_catalog(
    settings: Settings,
    observer: BatchObserver,
    stack: AsyncExitStack,
    patience: Patience,
    opening: Opening,
    *,
    starting: bool = False,
) -> Catalog:
    """Open every model of *settings*, all at once, and join them to routes; *stack* closes them.

    Args:
        starting: go on without models that are not required and cannot be reached; they are to be mended.

    Raises:
        PointsmanError: a model cannot be opened, or does not fit a route.
    """
    await _check_decoders(settings)
    backends = await _open_backends(settings, stack, patience, opening, starting=starting)
    models = {name: _model(model, backends[name], observer) for name, model in settings.models.items()}
    for model in models.values():
        await _warm_up(model)
    for model in models.values():
        model.batcher.start()
        stack.push_async_callback(patience.close, f"the batcher of model {model.name!r}", model.batcher.aclose)
    return _joined(settings, models)


async def _check_decoders(settings: Settings) -> None:
    """Refuse decoders that cannot work on this machine.

    Raises:
        InvalidInput: says which, and the remedy.
    """
    used = {route.decode: f"route {route.id!r}" for route in settings.routes.values() if route.decode}
    used |= {one.decode: f"detector {one.trait!r}" for one in settings.detectors.values() if one.decode}
    for decoder, where in used.items():
        try:
            await asyncio.to_thread(DECODERS[decoder].check)
        except ValueError as error:
            raise InvalidInput(f"{where}: {error}") from error


def _joined(settings: Settings, models: Mapping[str, Model]) -> Catalog:
    """The catalog of *settings* over *models*.

    Raises:
        InvalidInput: a model does not fit a route or a detector, or keeps state where it cannot.
    """
    check_sequences(settings, models)
    routes = {name: _route(route, settings, models) for name, route in settings.routes.items()}
    exposed = {name: _exposed(model) for name, model in models.items() if settings.models[name].expose}
    detectors = {trait: _detector(detector, models) for trait, detector in settings.detectors.items()}
    unknown = frozenset(
        name
        for name, route in {**exposed, **routes}.items()
        if route.cascade and route.human is None and all(models[stage.model].is_absent for stage in route.cascade)
    )
    _check_versions(settings, routes, models)
    return Catalog(1, settings.table, {**exposed, **routes}, models, detectors, settings.traffic, unknown)


def _check_versions(settings: Settings, routes: Mapping[str, Route], models: Mapping[str, Model]) -> None:
    """Refuse versions of a route that answer with other outputs, as far as these are known: to callers they are one."""
    for name, traffic in settings.traffic.items():
        versions = [routes[route_id(name, version)] for version in traffic.versions]
        known = [one for one in versions if not all(models[stage.model].is_absent for stage in one.cascade)]
        for other in known[1:]:
            if other.signature != known[0].signature:
                raise InvalidInput(
                    f"route {name!r}: versions must have the same outputs, but version {known[0].version!r} gives "
                    f"{_described(known[0].signature.outputs)} and version {other.version!r} gives "
                    f"{_described(other.signature.outputs)}; postprocess them alike"
                )


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the models of *settings* one by one; implements `gateway.loading.Opener`."""

    settings: Settings
    observer: BatchObserver
    opening: Opening

    async def open(self, name: str) -> Model:
        """The model *name*; see `gateway.loading.Opener`."""
        model = self.settings.models[name]
        try:
            backend = await _open_backend(model, _decoded_inputs(name, self.settings), self.opening)
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
    settings: Settings,
    stack: AsyncExitStack,
    patience: Patience,
    opening: Opening,
    *,
    starting: bool = False,
) -> Mapping[str, Backend]:
    """Every model's backend, opened concurrently; those that opened are closed even where another failed.

    Raises:
        PointsmanError: one cannot be opened, or there is less memory than models take that are always kept.
    """
    opening.reserve(settings.models.values())
    inputs = {name: _decoded_inputs(name, settings) for name in settings.models}
    open_one = _open_or_go_without if starting else _open_backend
    tasks = [open_one(model, inputs[name], opening) for name, model in settings.models.items()]
    opened = await asyncio.gather(*tasks, return_exceptions=True)
    for name, result in zip(settings.models, opened, strict=True):
        if not isinstance(result, BaseException):
            stack.push_async_callback(patience.close, f"model {name!r}", result.aclose)
    for result in opened:
        if isinstance(result, BaseException):
            raise result
    return dict(zip(settings.models, (r for r in opened if not isinstance(r, BaseException)), strict=True))


async def _open_backend(model: ModelSettings, inputs: tuple[TensorSpec, ...] | None, opening: Opening) -> Backend:
    """The backend of *model* with its plans, ready to serve; one that is not always kept goes into the pool."""
    if (pool := opening.pool_of(model)) is None:
        return await _open_now(model, inputs, opening.open_model)
    ladder = ladder_of(model, partial(_open_now, model, inputs, opening.open_model))
    return await pool.open(model.name, ladder, model.warm, estimate_bytes=expected_bytes(model))


async def _open_or_go_without(model: ModelSettings, inputs: tuple[TensorSpec, ...] | None, opening: Opening) -> Backend:
    """As `_open_backend`; where only time can mend what is in the way, and the model is not required, `Absent`."""
    try:
        return await _open_backend(model, inputs, opening)
    except PointsmanError as error:
        if model.required or error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            raise
        log.warning("starting without model %r, which is tried again until it opens: %s", model.name, error)
        return Absent(model.name)


async def _open_now(model: ModelSettings, inputs: tuple[TensorSpec, ...] | None, open_model: OpenModel) -> Backend:
    backend = await open_model(model)
    try:
        return await preprocessed(
            backend,
            backend.signature.inputs if inputs is None else inputs,
            model.preprocess,
            model.postprocess,
            labels=model.labels,
            base=model.base,
            kernels=model.kernels,
        )
    except BaseException:
        await backend.aclose()
        raise


def _model(model: ModelSettings, backend: Backend, observer: BatchObserver) -> Model:
    if isinstance(backend, Absent):
        batcher = Batcher(model.name, backend, BatchingOptions(), observer=observer)
        return Model(model.name, backend, batcher, model.labels or (), required=model.required)
    _check_calibrated(model, backend.version)
    measure = model.measure or usual_measure(spec.name for spec in backend.signature.outputs)
    scoring = Scoring(measure, model.calibrator)
    is_cut_back = measured(measure, {spec.name for spec in backend.signature.outputs}) in model.batching.trim
    asked = backend if is_cut_back else Scored.of(model.name, backend, scoring)
    try:
        runner = _runner(model, asked, observer)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    named = (model.measure.output or "") if model.measure is not None else ""
    return Model(
        name=model.name,
        backend=backend,
        batcher=runner,
        labels=model.labels or (),
        warming=warming_of(backend),
        scoring=scoring if is_cut_back else None,
        required=model.required,
        measured=named,
    )


def _runner(model: ModelSettings, asked: Backend, observer: BatchObserver) -> Batcher | SequenceRunner:
    """What asks the model: one that keeps state is asked step by step."""
    if asked.limits.sequence_idle_s is None:
        return Batcher(model.name, asked, model.batching, observer=observer)
    return SequenceRunner(model.name, asked, model.batching, model.sequences, observer=observer)


async def _warm_up(model: Model) -> None:
    if model.is_cold:  # elsewhere, where it is warmed up whenever it is loaded
        return
    try:
        await model.batcher.warm_up()
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    if model.warming is None:  # loading it must not take longer than it has to
        await weigh(model.backend)
        for steps, cost in model.costs().items():
            log.info("model %s: %s takes %s", model.name, steps, cost)


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
        f"route {route.id!r}": tuple(_decoded(spec, route.decode) for spec in route.inputs)
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
    if not model.is_absent and TensorSpec(LABEL, Datatype.BYTES, (1,)) not in model.backend.signature.outputs:
        raise InvalidInput(
            f"detector {detector.trait!r}: model {model.name!r} has no output {LABEL!r}, one BYTES an item; give it "
            "`labels`"
        )
    return Detector(detector.trait, model, detector.decode, detector.floor, detector.timeout_s)


def _route(route: RouteSettings, settings: Settings, models: Mapping[str, Model]) -> Route:
    outputs = {name: models[name].backend.signature.outputs for name in route.cascade if not models[name].is_absent}
    first = next(iter(outputs.values()), _DECIDED_BY_PEOPLE)
    for name, other in outputs.items():
        if other != first:
            raise InvalidInput(
                f"route {route.id!r}: stages must have the same outputs, but {next(iter(outputs))!r} gives "
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
        id_as_key=route.id_as_key,
        deadline_s=route.deadline_s,
        max_error=route.max_error,
        version=route.version,
    )


_DECIDED_BY_PEOPLE = (TensorSpec(LABEL, Datatype.BYTES, (1,)),)
"""The outputs of a route without models, or without one that could be opened yet."""


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
