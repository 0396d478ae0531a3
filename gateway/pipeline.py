"""The one path that every request takes; `LIFE_OF_A_REQUEST.md` walks one through it.

    parse, authenticate (the edge) -> classify, route -> bind -> decode -> stage, judge, ... -> keep -> answer

Time. The deadline is the earlier of the caller's and the route's. Stages may use it less a reserve, so that what no
stage was sure of can still be handed over, durably, before the caller stops listening.

What is kept. A hand-over to a person, and any answer under an idempotency key, is committed before its caller hears
of it; an accepted answer is logged in a batch behind the reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from backends.contract import Batch, Datatype, Deadline, TensorSpec
from backends.errors import DeadlineExceeded, InvalidInput, NotFound, PointsmanError, Unavailable
from backends.quoting import shorten
from gateway.answer import Answer, AnswerId, Status, new_answer_id
from gateway.binding import bind, rename_only_input, rows_of
from gateway.catalog import Catalog, Model
from gateway.certificates import in_force
from gateway.decoding import INLINE_BYTES, Workshop, decode_batch
from gateway.detection import Detection
from gateway.explain import explanation, preview, straight_to_people
from gateway.idempotency import Held, Idempotency
from gateway.observe import Outcome, PipelineObserver, RequestReport, StageReport
from gateway.oip.statistics import ModelStatistics, RequestCounters
from gateway.progress import Progress
from gateway.request import MAX_ITEMS, Caller, JsonInputs, Request
from gateway.review import tasks_of
from gateway.service import ROUTE_VERSION, ModelMetadata
from gateway.store.contract import ReviewTask, Store
from router.cascade import judge, next_stage
from router.contract import AUTO, Certified, Observe, OnDefer, Reason, Route, Uncertified
from router.table import Choice, Picked, Refused

MAX_WAIT_S = 60.0
"""Longest time that a caller can wait for an answer to become final, in one call."""


class Epoch:
    """The requests that began under one catalog, as far as they have not ended.

    Attributes:
        idle: set while there are none.
    """

    __slots__ = ("idle", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> None:
        """A request begins."""
        self.requests += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request has ended."""
        self.requests -= 1
        if not self.requests:
            self.idle.set()


class Pipeline:
    """The data plane: implements `gateway.service.DataPlane`. Safe on one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        workshop: Workshop,
        observer: PipelineObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self._store = store
        self._workshop = workshop
        self._observer = observer
        self._clock = clock
        self._idempotency = Idempotency(store, clock)
        self._detection = Detection(workshop, observer, clock)
        self._counters: dict[str, RequestCounters] = {}
        self._described = catalog
        self._descriptions: dict[str, ModelMetadata] = {}  # of that catalog's routes, those that were asked for
        self._draining = asyncio.Event()
        self._epoch = Epoch()
        self._past_epochs: tuple[Epoch, ...] = ()

    async def decide(self, request: Request) -> Answer:
        """Answer *request*, hand it to people, or refuse it, by its deadline.

        Raises:
            PointsmanError: why it is refused, or what failed; the code is what the edges send.
        """
        started = self._clock()
        outcome = Outcome.ERROR
        name = ""
        items = 0
        epoch = self._epoch
        epoch.enter()
        try:
            if self._draining.is_set():
                raise Unavailable("this gateway is shutting down; send the request to another", retry_after_s=1.0)
            catalog = self.catalog  # one snapshot for the whole request
            name = _known(catalog, request)
            deadline = Deadline(min(request.deadline, started + catalog.deadline_s(name)))
            if deadline <= started:
                raise DeadlineExceeded("the deadline had passed when the request arrived; allow more time")

            async def work(held: Held | None) -> Answer:
                nonlocal name
                picked = await self._pick(
                    catalog, request, Deadline(min(deadline, started + catalog.detection_s(name)))
                )
                name = picked.route
                within = Deadline(min(deadline, started + catalog.deadline_s(name)))
                return await self._answer(request, catalog, picked, within, held)

            answer = await self._idempotency.run(request, deadline, work)
            outcome = Outcome.ACCEPTED if answer.status is Status.FINAL else Outcome.DEFERRED
            name, items = answer.route, len(answer.items)
            route = catalog.routes.get(name)  # a replay may be of a route that is gone
            on_defer = request.on_defer or (route.on_defer if route else OnDefer.PROVISIONAL)
            return answer if answer.on_defer is on_defer else replace(answer, on_defer=on_defer)
        except PointsmanError as error:
            outcome = Outcome.of(error.code)
            raise
        except asyncio.CancelledError:
            outcome = Outcome.REFUSED  # its caller left: nobody failed
            raise
        finally:
            epoch.leave()
            duration_s = self._clock() - started
            self._count(name, items, duration_s)
            if name != AUTO and request.route == AUTO:
                self._count(AUTO, items, duration_s)
            self._observer.on_request(RequestReport(name, request.protocol, outcome, duration_s))

    def _count(self, name: str, items: int, duration_s: float) -> None:
        """Count a request for *name* that ended ("": for no route that exists); *items* is 0 where it failed."""
        if not name:
            return
        counters = self._counters.get(name)
        if counters is None:
            counters = self._counters[name] = RequestCounters()
        counters.ended(items, duration_s)

    async def _pick(self, catalog: Catalog, request: Request, deadline: Deadline) -> Picked:
        """The route that *request* takes; detectors are asked where the rules need them.

        Raises:
            InvalidInput: no rule takes it.
        """
        if request.route in catalog.table.unruled and catalog.routes[request.route].cascade:
            return Picked(request.route)  # as `router.table.route` says too, after a look at every rule
        choice = (await self._detection.classified(catalog, request, deadline)).choice
        return _picked(straight_to_people(choice, lambda name: not catalog.routes[name].cascade))

    async def explain(self, request: Request) -> dict[str, Any]:
        """What would become of *request*, as `gateway.explain.explanation` tells it (Any: JSON); nothing does.

        Raises:
            NotFound: there is no such route or version.
        """
        catalog = self.catalog
        within_s = catalog.detection_s(_known(catalog, request))
        deadline = Deadline(min(request.deadline, self._clock() + within_s))
        epoch = self._epoch
        epoch.enter()
        try:
            found = await self._detection.classified(catalog, request, deadline)
        finally:
            epoch.leave()
        found = replace(found, choice=straight_to_people(found.choice, lambda name: not catalog.routes[name].cascade))
        match found.choice:
            case Picked(name, to_person):
                route = catalog.routes[name]
                return explanation(catalog.table, found, preview(route, catalog.states(route), to_person=to_person))
            case _:
                return explanation(catalog.table, found, None)

    async def _answer(
        self, request: Request, catalog: Catalog, picked: Picked, deadline: Deadline, held: Held | None
    ) -> Answer:
        """The path from a route to an answer that is kept."""
        now_s = time.time()
        route = in_force(catalog.routes[picked.route], now_s)
        batch = await self._bind(route, request, deadline)
        items = batch
        if route.decode is not None:
            items = await decode_batch(route.decode, batch, self._workshop, self._left_s(deadline))

        progress = Progress(batch.size)
        progress.routed(picked)
        stage: int | None = None
        while progress.open and not picked.to_person:
            within = self._stage_deadline(deadline)
            states = catalog.states(route, within, request.caller.tenant)
            step = next_stage(route, stage, states, within - self._clock())
            for skipped in step.skipped:
                progress.passed_over(skipped.model, "", skipped.reason, skipped.detail, skipped.wait_s)
                catalog.models[skipped.model].want()
            if step.stage is None:
                break
            stage = step.stage
            model = catalog.models[route.cascade[stage].model]
            await self._run_stage(route, stage, model, items, progress, within, request)

        answer = Answer(
            id=new_answer_id(),
            tenant=request.caller.tenant,
            route=route.name,
            created_s=now_s,
            items=progress.settle(route),
            max_error=route.max_error,
            certified=isinstance(route.accept, Certified),
        )
        await self._keep(route, batch, answer, held)
        return answer

    async def _bind(self, route: Route, request: Request, deadline: Deadline) -> Batch:
        """The request's payload as a batch of the route's inputs; typing much JSON takes time, and so a thread."""
        payload = rename_only_input(route.signature, request.payload) if request.route == AUTO else request.payload
        if not isinstance(payload, JsonInputs):
            return bind(route.signature, payload)
        left_s = self._left_s(deadline)
        return await self._workshop.run(lambda: bind(route.signature, payload), payload.size_bytes, left_s, inline=True)

    async def _run_stage(
        self,
        route: Route,
        stage: int,
        model: Model,
        items: Batch,
        progress: Progress,
        deadline: Deadline,
        request: Request,
    ) -> None:
        """Ask *model* about the open items, until *deadline*, and enter what became of them."""
        started = self._clock()
        rows = rows_of(items, progress.open)
        try:
            outputs, confidences = await model.run(rows, deadline, request.priority, request.caller.tenant)
        except PointsmanError as error:
            progress.failed(model.name, model.backend.version, error)
            return
        verdicts = judge(route, stage, confidences, all_ran=progress.all_ran)
        # What is scored where labels are gathered may become evidence for a certificate.
        gathers = isinstance(route.accept, Uncertified | Observe)
        progress.judged(model.name, model.backend.version, outputs, verdicts, route.subject if gathers else "")
        self._observer.on_stage(
            StageReport(
                route.name,
                model.name,
                self._clock() - started,
                tuple([verdict.decision for verdict in verdicts]),
                tuple([verdict.confidence for verdict in verdicts if verdict.confidence is not None]),
            )
        )

    async def _keep(self, route: Route, batch: Batch, answer: Answer, held: Held | None) -> None:
        """Make the answer durable: before the reply where somebody relies on it, else behind it."""
        tasks = await self._tasks(route, batch, answer) if route.human is not None else ()
        if held is not None:
            await self._store.commit(answer, tasks, held.key, held.fence)
        elif tasks:
            await self._store.commit(answer, tasks)
        else:
            await self._store.record(answer)

    async def _tasks(self, route: Route, batch: Batch, answer: Answer) -> Sequence[ReviewTask]:
        """The tasks for people; tensors are made readable for them, which takes time where they are large."""
        if answer.open_items and route.decode is None and batch.nbytes > INLINE_BYTES:
            return await asyncio.to_thread(tasks_of, route, batch, answer)
        return tasks_of(route, batch, answer)

    def _stage_deadline(self, deadline: Deadline) -> Deadline:
        """*deadline* less the reserve for what follows the last stage."""
        return Deadline(deadline - max(0.005, 0.02 * (deadline - self._clock())))

    def _left_s(self, deadline: Deadline) -> float:
        """Seconds that may still be spent before what follows the last stage."""
        return self._stage_deadline(deadline) - self._clock()

    async def answer(self, caller: Caller, answer_id: AnswerId, wait_s: float = 0.0) -> Answer:
        """The answer's current state, waiting up to *wait_s* seconds for it to be final.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        if wait_s > 0.0:
            found = await self._when_final(caller.tenant, answer_id, min(wait_s, MAX_WAIT_S))
        else:
            found = await self._store.answer(caller.tenant, answer_id)
        if found is None:
            raise NotFound(f"there is no answer {answer_id!r}")
        return found

    async def _when_final(self, tenant: str, answer_id: AnswerId, wait_s: float) -> Answer | None:
        """The answer, once it is final, *wait_s* have passed, or this gateway drains."""
        final = asyncio.ensure_future(self._store.wait(tenant, answer_id, wait_s))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((final, draining), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            final.cancel()
            await asyncio.wait((final,))
        return await self._store.answer(tenant, answer_id) if final.cancelled() else final.result()

    async def feedback(self, caller: Caller, answer_id: AnswerId, item: int, label: str) -> None:
        """Keep what an item's true label turned out to be.

        Raises:
            NotFound: *caller*'s tenant has no such answer or item.
        """
        await self._store.add_feedback(caller.tenant, answer_id, item, label, caller.name)

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Describe the route *name*; `auto` takes any one input, and its outputs are those of the route it comes to.

        Raises:
            NotFound: there is no such name or version.
        """
        if name == AUTO and self._serves_auto and version in ("", ROUTE_VERSION):
            return ModelMetadata(AUTO, (ROUTE_VERSION,), "pointsman", (_ANYTHING,), ())
        route = self._route(name, version)
        if self._described is not self.catalog:
            self._described, self._descriptions = self.catalog, {}
        if name not in self._descriptions:
            self._descriptions[name] = self._describe(route)
        return self._descriptions[name]

    def _describe(self, route: Route) -> ModelMetadata:
        batchers = [self.catalog.models[stage.model].batcher for stage in route.cascade]
        return ModelMetadata(
            route.name,
            (ROUTE_VERSION,),
            "pointsman",
            route.signature.inputs,
            route.signature.outputs,
            labels=(route.human.labels if route.human else ()) or self._labels(route),
            max_batch=min([MAX_ITEMS, *(batcher.max_batch for batcher in batchers)]),
            max_delay_s=max((batcher.max_delay_s for batcher in batchers if batcher.max_batch > 1), default=None),
        )

    def _labels(self, route: Route) -> tuple[str, ...]:
        """Those of the models of *route*, which share theirs."""
        return next((self.catalog.models[stage.model].labels for stage in route.cascade), ())

    def names(self) -> Sequence[str]:
        """Every route, and every exposed model."""
        return tuple(self.catalog.routes)

    def statistics(self, name: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """What was answered so far for *name*, or for each of `names`; `auto` has no models of its own.

        Raises:
            NotFound: there is no such name or version.
        """
        if not name:
            return tuple(self._statistics(route) for route in self.names())
        self.metadata(name, version)
        return (self._statistics(name),)

    def _statistics(self, name: str) -> ModelStatistics:
        cascade = self.catalog.routes[name].cascade if name in self.catalog.routes else ()
        models = (self.catalog.models[stage.model].batcher.totals() for stage in cascade)
        return self._counters.get(name, RequestCounters()).statistics(name, ROUTE_VERSION, models)

    def is_ready(self) -> bool:
        """Whether new requests are welcome: not draining, and no route without a stage that is ready.

        A route whose models were all unloaded is as somebody wanted it, and keeps nothing else from being served.
        """
        routes = self.catalog.routes.values()
        return not self._draining.is_set() and all(
            self._can_answer(route) or self.catalog.is_unloaded(route) for route in routes
        )

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a request for *name* would be answered by a model.

        Raises:
            NotFound: there is no such name or version.
        """
        if name == AUTO and self._serves_auto:
            return self.is_ready()
        return self._can_answer(self._route(name, version)) and not self._draining.is_set()

    def why_not_ready(self, name: str) -> str | None:
        """What keeps a model from answering requests for *name*, in Triton's words where it has some; None: nothing.

        Raises:
            NotFound: there is no such name.
        """
        if self.is_model_ready(name):
            return None
        if name in self.catalog.routes and self.catalog.is_unloaded(self.catalog.routes[name]):
            return "unloaded"
        return "no model of it is ready, or the gateway is shutting down"

    def drain(self) -> None:
        """Refuse new requests from now on, and end long polls; what is in flight goes on."""
        self._draining.set()

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining.is_set()

    async def idle(self) -> None:
        """Return when no request is being answered."""
        while self.in_flight:
            for epoch in (*self._past_epochs, self._epoch):
                await epoch.idle.wait()

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return sum(epoch.requests for epoch in (*self._past_epochs, self._epoch))

    def swap(self, catalog: Catalog) -> Sequence[Epoch]:
        """Serve *catalog* to requests from now on; the epochs whose requests may use an earlier one still."""
        self._past_epochs = tuple(epoch for epoch in (*self._past_epochs, self._epoch) if epoch.requests)
        self.catalog, self._epoch = catalog, Epoch()
        return self._past_epochs

    @property
    def _serves_auto(self) -> bool:
        return bool(self.catalog.table.rules or self.catalog.table.default)

    def _can_answer(self, route: Route) -> bool:
        return not route.cascade or any(state.ready for state in self.catalog.states(route).values())

    def _route(self, name: str, version: str) -> Route:
        route = self.catalog.routes.get(name)
        if route is None:
            raise _unknown(self.catalog, name)
        if version not in ("", ROUTE_VERSION):
            raise NotFound(f"route {name!r} has no version {shorten(version)}; its only version is {ROUTE_VERSION}")
        return route


_ANYTHING = TensorSpec("input", Datatype.BYTES, (1,))
"""What `auto` says it takes: one item's bytes, whatever they are."""


def _known(catalog: Catalog, request: Request) -> str:
    """The name that *request* asks for.

    Raises:
        NotFound: there is no such route or version.
    """
    if request.version not in ("", ROUTE_VERSION):
        raise NotFound(f"route {request.route!r} has no version {shorten(request.version)}; leave the version out")
    table = catalog.table
    is_known = request.route in catalog.routes or (request.route == AUTO and (table.rules or table.default))
    if not is_known:
        raise _unknown(catalog, request.route)
    return request.route


def _picked(choice: Choice) -> Picked:
    match choice:
        case Picked() as picked:
            return picked
        case Refused(Reason.NO_RULE_MATCHED):
            raise InvalidInput("no rule of `classify` matches this request; name a route")
        case Refused(_, detail):
            raise InvalidInput(f"this request cannot be routed: {detail}; name a route")
        case _:
            raise AssertionError(f"{choice} for a name that is known. This is a bug.")


def _unknown(catalog: Catalog, name: str) -> NotFound:
    return NotFound(f"there is no route {name!r}; known: {', '.join(sorted(catalog.routes))}")
