"""Models that are loaded anew, and unloaded, while the gateway serves: `server: {model_control: explicit}`.

**Loading.** A model is opened from its files off to the side, as the configuration says and no request can change. Once
it is ready, and fits the routes that have it, a new catalog takes the place of the old one in one step. Requests that
began before finish on the old model, which is closed when the last of them has ended. If anything fails before that
step, nothing has changed. The first requests meet a model that nothing has warmed yet.

**Unloading** puts a catalog in place in which the model is not loaded, and closes it likewise. Routes pass it over as
one that is not ready; what it takes and gives is still known, so that metadata stay as they are.

**Certificates.** Before a model takes traffic, the subjects of its routes are worked out from the files as they are:
what was proven of other files proves nothing any more, and people decide. Files are read for that before the model is
opened and once more after; a load during which they changed is refused, since nobody could say which were opened.
The stages of other models keep what they were when these were opened, whatever lies on the disk by now. Labels and
calibrations are those that the gateway started with; a calibration of another version of the model refuses the load.

**Mending.** A model whose backend has failed is opened anew at once, and by upkeep where that fails, with all that a
load is: so a server that moved on to the next version of its model is followed, and what was proven of the old one is
not taken for proven of the new. So is one that could not be reached at the start and is not required: `backends.absent`
stands for it until then.

**Order.** Changes of one model happen one after the other, in the order in which they were asked for, and the next one
begins when the model that the last one put out is closed: never are more than two of a kind in memory. A model that
does not end by itself is left to itself after `CLOSE_S`. Whoever asked hears when the new catalog is in place. If they
leave before, the change goes on: half of it would be worse.

**Names.** A model's own name, exposed or not, is that model. Loading a route loads the models of its cascades, in all
its versions, all or none, as Triton loads an ensemble with what it is composed of. Unloading a route is refused, as
a route is a policy, and most of its models are used elsewhere; with `unload_dependents` those of its models are
unloaded that no other route and no detector uses.

Rejected: a batcher whose backend is exchanged beneath it (queues and latencies of the old model would be those of the
new one, and a signature could change under a batch); counting the users of each model (every request would pay for it;
counting the requests of each catalog costs what counting all requests did).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Protocol

from backends.contract import State
from backends.errors import BackendFailed, Conflict, InvalidInput, NotFound, PointsmanError, Unavailable
from backends.quoting import shorten
from gateway.catalog import Catalog, Model
from gateway.certificates import Certificates, stage_subject, with_subjects
from gateway.pipeline import Epoch, Pipeline
from gateway.settings import Settings
from router.certificate import StageSubject, Subject
from router.contract import AUTO

CLOSE_S = 10.0
"""What a model that was put out gets to end, once no request asks it any more."""

_LOOK_S = 0.1
"""How often `Loader.watch` looks whether a model has failed."""

_CALM_S = 2.0
"""For which a model that has failed again is left to upkeep."""

log = logging.getLogger("pointsman.loading")


class Opener(Protocol):
    """Makes models and catalogs of the configuration."""

    async def open(self, name: str) -> Model:
        """The model *name*, opened from its files; its batcher is not started.

        Raises:
            PointsmanError: it cannot be opened, or its calibration is of another version.
        """
        ...

    def joined(self, models: Mapping[str, Model]) -> Catalog:
        """The catalog over *models*, one for each that is configured.

        Raises:
            InvalidInput: they do not fit a route or a detector.
        """
        ...


class NotOpened(Exception):
    """The files of a model cannot be opened; the cause says why, in words that are for the operator's log."""


class Loader:
    """Changes which models the catalog of *pipeline* has; implements `gateway.service.ModelControl`."""

    def __init__(
        self,
        settings: Settings,
        opener: Opener,
        pipeline: Pipeline,
        certificates: Certificates,
        abandoned: list[str],
    ) -> None:
        """Args:
        abandoned: is told what never ended.
        """
        self._settings = settings
        self._opener = opener
        self._pipeline = pipeline
        self._certificates = certificates
        self._abandoned = abandoned
        self._locks = {name: asyncio.Lock() for name in settings.models}
        self._catalog_lock = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self._departing: dict[int, Model] = {}
        self._unmended: dict[str, str] = {}
        self._mended: dict[str, float] = {}
        self._is_open = True

    async def renew_certificates(self) -> None:
        """Look the accept rules of routes up anew.

        Raises:
            Unavailable: the store cannot be read.
        """
        async with self._catalog_lock:
            self._pipeline.catalog = await self._certificates.applied(self._pipeline.catalog)

    async def load(self, name: str) -> None:
        """Open the model *name*, or all models of the route *name*, anew, and serve what was opened.

        Raises:
            NotFound: there is no such model or route.
            InvalidInput: the name is not clear, or what was opened does not fit its routes.
            BackendFailed: it cannot be opened.
            Conflict: its files changed while they were read.
            Unavailable: the gateway is shutting down.
        """
        names = self._to_load(name)
        await self._changed(names, lambda: self._load(names))

    async def unload(self, name: str, *, dependents: bool) -> None:
        """Serve the model *name* no longer; of a route, with *dependents*, the models that nothing else uses.

        Raises:
            NotFound: there is no such model or route.
            InvalidInput: the name is not clear.
            Unavailable: the gateway is shutting down.
        """
        names = self._to_unload(name, dependents=dependents)
        await self._changed(names, lambda: self._unload(names))

    def mend(self) -> None:
        """Have models opened anew whose backend has failed: where all servers of a model are gone, those that are there
        now may have another version of it. What goes wrong is logged, once, and tried again when this is called again.
        """
        self._mend_those_before(math.inf)

    async def watch(self) -> None:
        """Mend soon after a model has failed, for ever; one that fails again soon is left to upkeep."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._mend_those_before(time.monotonic() - _CALM_S)

    def _mend_those_before(self, before_s: float) -> None:
        """Mend what has failed and was last mended *before_s*, or never."""
        if not self._is_open or self._pipeline.is_draining:
            return
        for name, model in self._pipeline.catalog.models.items():
            has_failed = model.loaded and model.backend.state is State.FAILED
            if has_failed and not self._locks[name].locked() and self._mended.get(name, -math.inf) < before_s:
                self._mended[name] = time.monotonic()
                task = asyncio.create_task(self._mend(name), name=f"mending of {name}")
                self._changes.add(task)
                task.add_done_callback(self._changes.discard)

    async def _mend(self, name: str) -> None:
        try:
            await self.load(name)
        except PointsmanError as error:
            why = str(error.__cause__ or error)  # the cause is for the operator's log, as this is
            if self._unmended.get(name) != why:
                self._unmended[name] = why
                log.warning("model %r cannot be opened, and is tried again until it can: %s", name, why)
        else:
            self._unmended.pop(name, None)

    def models(self) -> Sequence[Model]:
        """Every model that is open: those of the catalog, and those that it no longer has."""
        return (*self._pipeline.catalog.models.values(), *self._departing.values())

    async def aclose(self) -> None:
        """Take no more changes, and return when those that go on have ended. Closing twice is harmless."""
        self._is_open = False
        if self._changes:
            await asyncio.wait(self._changes)

    # Names.

    def _to_load(self, name: str) -> tuple[str, ...]:
        model, cascade = self._named(name)
        if model:
            return (name,)
        if not cascade:
            raise InvalidInput(f"route {name!r} has no models, people decide everything; there is nothing to load")
        return cascade

    def _to_unload(self, name: str, *, dependents: bool) -> tuple[str, ...]:
        model, cascade = self._named(name)
        if model:
            return (name,)
        listed = ", ".join(cascade) or "it has none"
        if not dependents:
            raise InvalidInput(
                f"{name!r} is a route, which stays when its models go: unload these by their names ({listed}), or say "
                "unload_dependents for those that nothing else uses"
            )
        free = tuple(one for one in cascade if not self._is_used(one, beside=name))
        if not free:
            raise InvalidInput(
                f"route {name!r} has no models that nothing else uses; unload them by their names ({listed})"
            )
        return free

    def _named(self, name: str) -> tuple[bool, tuple[str, ...]]:
        """Whether *name* means a model, and the models of the route that it means otherwise, of all its versions."""
        versions = self._settings.versions_of(name)
        cascade = tuple(dict.fromkeys(model for route in versions for model in route.cascade))
        is_model = name in self._settings.models
        if is_model and versions and cascade != (name,):
            raise InvalidInput(
                f"{name!r} is a route and, elsewhere, a model, and it is not clear which is meant; rename one of them"
            )
        if name == AUTO or not (is_model or versions):
            known = ", ".join(sorted({*self._settings.models, *self._settings.names}))
            raise NotFound(f"there is no model or route {shorten(name)}; known: {known}")
        return is_model, cascade

    def _is_used(self, model: str, beside: str) -> bool:
        routes = (route for route in self._settings.routes.values() if route.name != beside)
        return any(model in route.cascade for route in routes) or any(
            detector.model == model for detector in self._settings.detectors.values()
        )

    # Changes.

    async def _changed(self, names: Iterable[str], change: Callable[[], Awaitable[_Departure]]) -> None:
        """Have *change* done to *names*, in its turn; returns when it is done, before what it put out has ended."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._change(names, change, told), name=f"change of {', '.join(names)}")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await told  # a caller that leaves cancels this future, and not the task

    async def _change(
        self, names: Iterable[str], change: Callable[[], Awaitable[_Departure]], told: asyncio.Future[None]
    ) -> None:
        async with AsyncExitStack() as stack:
            for name in sorted(names):  # in one order, or two changes could wait for each other
                await stack.enter_async_context(self._locks[name])
            try:
                departure = await change()
            except Exception as error:
                if told.done():
                    log.warning("models %s were not changed, and nobody waited to be told", names, exc_info=error)
                else:
                    told.set_exception(error)
                return
            if not told.done():
                told.set_result(None)
            await self._close_departed(departure)

    async def _load(self, names: Sequence[str]) -> _Departure:
        self._check_open()
        before = await self._contents(names)
        opened = await self._opened(names)
        try:
            if await self._contents(names) != before:
                raise Conflict(f"the files of {_quoted(names)} changed while they were loaded; load again")
            departure = await self._put_in_place(opened, before)
        except BaseException:
            for model in opened.values():
                await model.batcher.aclose(drain=False)
                await model.backend.aclose()
            raise
        log.info("loaded %s", _quoted(f"{model.name}: {model.backend.version}" for model in opened.values()))
        return departure

    async def _unload(self, names: Sequence[str]) -> _Departure:
        self._check_open()
        async with self._catalog_lock:
            models = self._pipeline.catalog.models
            going = [models[name] for name in names if models[name].loaded]
            gone = {model.name: replace(model, loaded=False) for model in going}
            departure = self._swap(self._without(gone), going)
        log.info("unloaded %s", _quoted(gone))
        return departure

    def _check_open(self) -> None:
        if not self._is_open or self._pipeline.is_draining:
            raise Unavailable("this gateway is shutting down; its models stay as they are")

    async def _opened(self, names: Sequence[str]) -> Mapping[str, Model]:
        """The models *names*, all of them or none."""
        found = await asyncio.gather(*(self._opener.open(name) for name in names), return_exceptions=True)
        models = [model for model in found if isinstance(model, Model)]
        for name, error in zip(names, found, strict=True):
            if isinstance(error, BaseException):
                for model in models:
                    await model.backend.aclose()
                raise self._told(name, error)
        return {model.name: model for model in models}

    def _told(self, name: str, error: BaseException) -> BaseException:
        """What the caller may know of *error*: a backend's own words name files."""
        goes_on = "what was served before is served still"
        match error:
            case NotOpened(__cause__=NotFound()):
                why = "a file that its configuration names is not there"
            case NotOpened():
                backend = self._settings.models[name].backend
                why = f"its files are not what backend {backend!r} and its configuration need"
            case PointsmanError():
                return type(error)(f"model {name!r} does not fit: {error}; {goes_on}")
            case _:
                return error
        told = BackendFailed(f"model {name!r} could not be opened: {why}; {goes_on}")
        told.__cause__ = error.__cause__
        return told

    async def _contents(self, names: Sequence[str]) -> Mapping[tuple[str, str], StageSubject]:
        """What the files of *names* are at this moment to certificates, by route's id and model; without versions."""
        routes = self._settings.routes
        wanted = [(name, model) for name in self._certificates.subjects for model in names]
        wanted = [(name, model) for name, model in wanted if model in routes[name].cascade]

        def read() -> Mapping[tuple[str, str], StageSubject]:
            models = self._settings.models
            return {(name, model): stage_subject(models[model], "", routes[name].decode) for name, model in wanted}

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            told = BackendFailed(
                f"the files of {_quoted(names)} cannot be read; what was served before is served still"
            )
            raise told from error

    async def _put_in_place(
        self, opened: Mapping[str, Model], contents: Mapping[tuple[str, str], StageSubject]
    ) -> _Departure:
        """Serve *opened*, whose files are *contents*, from now on."""
        async with self._catalog_lock:
            self._check_open()
            old = self._pipeline.catalog.models
            subjects = dict(self._certificates.subjects)
            for (route, name), stage in contents.items():
                known = replace(stage, version=opened[name].backend.version)
                subjects[route] = _with_stage(subjects[route], known)
            catalog = with_subjects(self._with(opened), {route: subjects[route] for route, _ in contents})
            catalog = await self._certificates.applied(catalog, subjects)
            for model in opened.values():
                model.batcher.start()
            departure = self._swap(catalog, [old[name] for name in opened if old[name].loaded])
            self._pipeline.count_anew(opened)
            return departure

    def _with(self, changed: Mapping[str, Model]) -> Catalog:
        """The present catalog with the models *changed*, and what rests on them; all else is as it was.

        Raises:
            InvalidInput: they do not fit a route or a detector.
        """
        present = self._pipeline.catalog
        try:
            fresh = self._opener.joined({**present.models, **changed})
        except InvalidInput as error:
            raise InvalidInput(f"{error}; what was served before is served still") from error
        routes = {
            name: route if changed.keys() & {stage.model for stage in route.cascade} else present.routes[name]
            for name, route in fresh.routes.items()
        }
        return replace(fresh, version=present.version + 1, routes=routes)

    def _without(self, gone: Mapping[str, Model]) -> Catalog:
        """The present catalog, in which the models *gone* are not loaded; its routes are what they were."""
        present = self._pipeline.catalog
        models = {**present.models, **gone}
        detectors = {trait: replace(one, model=models[one.model.name]) for trait, one in present.detectors.items()}
        return replace(present, version=present.version + 1, models=models, detectors=detectors)

    def _swap(self, catalog: Catalog, going: Sequence[Model]) -> _Departure:
        epochs = self._pipeline.swap(catalog)
        self._departing |= {id(model): model for model in going}
        return _Departure(going, epochs)

    async def _close_departed(self, departure: _Departure) -> None:
        """Close what was put out, once the last request that may ask it has ended."""
        for epoch in departure.epochs:
            await epoch.idle.wait()
        for model in departure.models:
            closing = asyncio.ensure_future(_close(model))
            done, _ = await asyncio.wait({closing}, timeout=CLOSE_S)
            if not done:
                self._abandoned.append(f"model {model.name!r}")
                log.error("the model %s that was put out did not end within %g s; it is abandoned", model.name, CLOSE_S)
            elif (error := closing.exception()) is not None:
                log.error("closing the model %s that was put out failed", model.name, exc_info=error)
            del self._departing[id(model)]


class _Departure:
    """Models that were put out, and the requests that may ask them still."""

    __slots__ = ("epochs", "models")

    def __init__(self, models: Sequence[Model], epochs: Sequence[Epoch]) -> None:
        self.models = models
        self.epochs = epochs


async def _close(model: Model) -> None:
    await model.batcher.aclose()
    await model.backend.aclose()


def _with_stage(subject: Subject, known: StageSubject) -> Subject:
    stages = (known if stage.model == known.model else stage for stage in subject.stages)
    return replace(subject, stages=tuple(stages))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
