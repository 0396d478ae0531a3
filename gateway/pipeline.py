"""The one path that every request takes; `LIFE_OF_A_REQUEST.md` walks one through it.

    parse, authenticate (the edge) -> classify, route, version -> bind -> decode -> stage, judge, ... -> keep -> answer

Time. The deadline is the earlier of the caller's and the route's. Stages may use it less a reserve, so that what no
stage was sure of can still be handed over, durably, before the caller stops listening.

What is kept. A hand-over to a person, and any answer under an idempotency key, is committed before its caller hears
of it; an accepted answer is logged in a batch behind the reply.

Traces. A request is a span within its caller's; where spans are recorded, its stages and whatever else takes time are
spans within it, told to the observer as they end (`gateway.tracing`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.contract import Batch, Datatype, Deadline, TensorSpec, fit_in
from backends.errors import Code, DeadlineExceeded, InvalidInput, NotFound, PointsmanError, SequenceOver, Unavailable
from backends.quoting import shorten
from backends.trace_context import TraceContext
from batching.report import BatchNote
from batching.sequences import SequenceRunner
from gateway import passing
from gateway.answer import Answer, AnswerId, Revision, StageRun, Status, new_answer_id
from gateway.binding import bind, rename_only_input, rows_of
from gateway.catalog import Catalog, Model
from gateway.certificates import in_force
from gateway.decoding import INLINE_BYTES, Workshop, decode_batch
from gateway.detection import Detection, traits_told
from gateway.explain import explanation, preview, straight_to_people
from gateway.idempotency import Held, Idempotency
from gateway.masking import NO_MASKS, Mask, Masks
from gateway.observe import (
    DecodeReport,
    KeepReport,
    Outcome,
    PipelineObserver,
    RequestReport,
    RequestTrace,
    Span,
    StageReport,
    part_of,
)
from gateway.oip.statistics import ModelStatistics, RequestCounters
from gateway.passing import InPlace
from gateway.people.outlook import Outlook, Overload
from gateway.progress import Progress, refusal_of_people
from gateway.request import MAX_ITEMS, Caller, JsonInputs, Request, TensorInputs
from gateway.review import tasks_of
from gateway.sequences import step_of
from gateway.service import ROUTE_VERSION, ModelMetadata
from gateway.shadow import Shadows
from gateway.store.contract import ReviewTask, Store
from gateway.traffic import VersionTraffic
from router.cascade import judge, next_stage
from router.contract import (
    AUTO,
    LEAST_PRIORITY,
    Certified,
    MinConfidence,
    Observe,
    OnDefer,
    Reason,
    Route,
    Uncertified,
    WhenOverloaded,
    route_id,
)
from router.table import Choice, Picked, Refused

MAX_WAIT_S = 60.0
"""Longest time that a caller can wait for an answer to become final, in one call."""


_GATHERING = (Uncertified, Observe)


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
        if not self.requests:
            self.idle.clear()
        self.requests += 1

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
        wall_clock: Callable[[], float] = time.time,
        begin_trace: Callable[[TraceContext | None], TraceContext] | None = None,
        outlook: Outlook | None = None,
        masks: Masks = NO_MASKS,
    ) -> None:
        """Serve *catalog*.

        Args:
            outlook: how long people take; None: nobody knows.
            masks: what is kept in the place of what callers sent.
            begin_trace: a request's own span, given its caller's; None: no spans are recorded here, and what callers
                send is passed on.
        """
        self.catalog = catalog
        self.traffic = VersionTraffic(wall_clock)
        self.shadows = Shadows(observer, clock)
        self._store = store
        self._workshop = workshop
        self._observer = observer
        self._clock = clock
        self._begin_trace = begin_trace
        self._outlook = Outlook({}) if outlook is None else outlook
        self._masks = masks
        self._idempotency = Idempotency(store, clock, self._words)
        self._detection = Detection(workshop, observer, clock)
        self._counters: dict[str, RequestCounters] = {}
        self._described = catalog
        self._descriptions: dict[str, ModelMetadata] = {}  # of that catalog's routes, those that were asked for
        self._draining = asyncio.Event()
        self._retired = False
        self._epoch = Epoch()
        self._past_epochs: tuple[Epoch, ...] = ()

    async def decide(self, request: Request) -> Answer:
        """Answer *request*, hand it to people, or refuse it, by its deadline.

        Raises:
            PointsmanError: why it is refused, or what failed; the code is what the edges send.
        """
        started = self._clock()
        outcome = Outcome.ERROR
        name = version = ""
        items = 0
        answer_id, code, is_replay = "", None, True
        caller_trace = request.trace
        if self._begin_trace is not None:
            request = replace(request, trace=self._begin_trace(caller_trace))
        elif caller_trace is not None:
            request = replace(request, trace=caller_trace.child())
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
                nonlocal name, version, is_replay
                is_replay = False
                asked = request if request.shared is None else await self._admitted(catalog, request)
                picked, traits = _unruled(catalog, asked), None
                if picked is None:
                    within = Deadline(min(deadline, started + catalog.detection_s(name)))
                    picked, traits = await self._pick(catalog, asked, within)
                name = picked.route
                route = catalog.routes.get(name) or self.traffic.pick(catalog, name, asked)
                version = route.version
                within = Deadline(min(deadline, started + route.deadline_s))
                return await self._answer(asked, catalog, picked, route, within, held, traits)

            answer = await self._idempotency.run(request, deadline, work)
            outcome = Outcome.ACCEPTED if answer.status is Status.FINAL else Outcome.DEFERRED
            name, version = answer.route, answer.version
            items, answer_id = len(answer.items), answer.id
            if is_replay:
                answer = await self._with_wait(answer)
            route = catalog.shared(name)  # a replay may be of a route that is gone
            on_defer = request.on_defer or (route.on_defer if route else OnDefer.PROVISIONAL)
            return answer if answer.on_defer is on_defer else replace(answer, on_defer=on_defer)
        except PointsmanError as error:
            outcome, code = Outcome.of(error.code), error.code
            raise
        except asyncio.CancelledError:
            outcome, code = Outcome.REFUSED, Code.CANCELLED  # its caller left: nobody failed
            raise
        finally:
            epoch.leave()
            duration_s = self._clock() - started
            self._count(route_id(name, version), items, duration_s)
            if name != AUTO and request.route == AUTO:
                self._count(AUTO, items, duration_s)
            trace = None
            if request.trace is not None and request.trace.is_recorded:
                span = Span(request.trace, caller_trace)
                trace = RequestTrace(span, request.caller.tenant, items, answer_id, code)
            self._observer.on_request(RequestReport(name, request.protocol, outcome, duration_s, version, trace))

    async def _admitted(self, catalog: Catalog, request: Request) -> Request:
        """*request*, whose tensors lie in shared memory, with them read unless its route leaves them there."""
        route = catalog.routes.get(request.route)
        return await passing.admitted(catalog, route and in_force(route, time.time()), request)

    def _count(self, name: str, items: int, duration_s: float) -> None:
        """Count a request for the route of id *name* that ended ("": there is none); *items* is 0 where it failed."""
        if not name:
            return
        counters = self._counters.get(name)
        if counters is None:
            counters = self._counters[name] = RequestCounters()
        counters.ended(items, duration_s)

    async def _pick(self, catalog: Catalog, request: Request, deadline: Deadline) -> tuple[Picked, Mapping[str, Any]]:
        """The route that *request* takes by the rules, and what was known of it, for the log (Any: JSON).

        Detectors are asked where the rules need them.

        Raises:
            InvalidInput: no rule takes it.
        """
        found = await self._detection.classified(catalog, request, deadline)
        picked = _picked(straight_to_people(found.choice, lambda name: not _has_models(catalog, name)))
        return picked, traits_told(catalog.table, picked, found.traits, self._masks.of(picked.route))

    def _words(self, request: Request, error: PointsmanError) -> str:
        """What is kept of why *request* was refused: words quote what it sent."""
        masked = self._masks.of(request.route) if request.route != AUTO else self._masks
        return (
            f"the request was refused ({error.code}); why is not kept, send it again to be told"
            if masked
            else str(error)
        )

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
        found = replace(found, choice=straight_to_people(found.choice, lambda name: not _has_models(catalog, name)))
        match found.choice:
            case Picked(name, to_person):
                route, versions = self.traffic.outlook(catalog, name, request)
                previewed = preview(
                    route, catalog.states(route), to_person=to_person, versions=versions, steps=_steps(catalog, route)
                )
                return explanation(catalog.table, found, previewed)
            case _:
                return explanation(catalog.table, found, None)

    async def _answer(
        self,
        request: Request,
        catalog: Catalog,
        picked: Picked,
        route: Route,
        deadline: Deadline,
        held: Held | None,
        traits: Mapping[str, Any] | None,
    ) -> Answer:
        """The path from a route to an answer that is kept."""
        now_s = time.time()
        if catalog.unknown:
            catalog.check_known(route.id)
        route = _urgent(in_force(route, now_s), request)
        if isinstance(request.payload, TensorInputs) and request.route != AUTO:
            batch = bind(route.signature, request.payload)
        else:
            batch = await self._bind(route, request, deadline)
        # What only people can decide is refused before anything works for it. Where labels are gathered that is before
        # any stage has scored it, too: whom people have no time for must not depend on what is to be proven.
        is_for_people = picked.to_person or isinstance(route.accept, Uncertified)
        overload = self._overload(route, request, batch.size) if is_for_people else None
        if overload is not None and overload.policy is WhenOverloaded.REFUSE:
            raise refusal_of_people(overload)
        items = batch
        if route.decode is not None:
            span, started = part_of(request.trace), self._clock()
            items = await decode_batch(route.decode, batch, self._workshop, self._left_s(deadline))
            if span is not None:
                report = DecodeReport(route.decode, batch.size, self._clock() - started, span)
                self._observer.on_decode(report)

        shared = request.shared
        progress = Progress(batch.size)
        if route.version:
            progress.of_version(route.version)
        progress.routed(picked, traits)
        stage: int | None = None
        while progress.open and not picked.to_person:
            within = self._stage_deadline(deadline)
            states = catalog.states(route, within, request.caller.tenant)
            step = next_stage(route, stage, states, within - self._clock())
            if step.stage is None and step.skipped and self._insists(route, request):
                step = next_stage(route, stage, states, within - self._clock(), insist=True)
            for skipped in step.skipped:
                progress.passed_over(skipped.model, "", skipped.reason, skipped.detail, skipped.wait_s)
                catalog.models[skipped.model].want()
            if step.stage is None:
                break
            stage = step.stage
            model = catalog.models[route.cascade[stage].model]
            if shared is not None:
                items, shared = await self._for_stage(route, model, items, progress, shared)
            try:
                await self._run_stage(route, stage, model, items, progress, within, request)
            except PointsmanError:
                if model.keeps_state:
                    self._count_version(catalog, route, request, progress)
                raise

        if not picked.to_person:
            self._count_version(catalog, route, request, progress)
        if not is_for_people:
            overload = self._overload(route, request, len(progress.open))
        answer = Answer(
            id=new_answer_id(),
            tenant=request.caller.tenant,
            route=route.name,
            created_s=now_s,
            items=progress.settle(route, overload),
            max_error=route.max_error,
            certified=isinstance(route.accept, Certified),
            inputs=batch if request.shared is None else None,
            subject=self._store.subject(request.caller.tenant, request.subject) if request.subject else None,
        )
        kept = answer if request.shared is None else passing.unseen(answer)
        if request.sequence is None:
            await self._keep(route, batch, kept, held, request.trace)
        else:
            await self._keep_step(catalog, route, request, batch, kept, held)
        if route.version:
            self.shadows.offer(self.catalog, self._epoch, route, items, answer)
        return self._handed_over(route, answer)

    def _count_version(self, catalog: Catalog, route: Route, request: Request, progress: Progress) -> None:
        """Enter what became of *request* in the books of the version that *route* is, if it is one."""
        if route.version:
            is_pinned = bool(request.version) and request.route == route.name
            self.traffic.ended(catalog, route, progress.troubles, is_pinned=is_pinned)

    def _handed_over(self, route: Route, answer: Answer) -> Answer:
        """*answer*, which is kept, with how long people will take for what is open in it."""
        if route.human is None or not (waiting := len(answer.open_items)):
            return answer
        wait_s = self._outlook.predicted_s(answer.tenant, route.human, waiting)
        self._outlook.handed_over(answer.tenant, route.human, waiting)
        return replace(answer, predicted_wait_s=wait_s)

    async def _with_wait(self, answer: Answer) -> Answer:
        """*answer*, which the store had, with how long people will take for what is open in it still."""
        if not answer.open_items:
            return answer
        places = await self._store.places(answer.tenant, answer.id)
        waits = [self._outlook.predicted_at_s(answer.tenant, place) for place in places]
        known = [wait_s for wait_s in waits if wait_s is not None]
        return replace(answer, predicted_wait_s=max(known) if known and len(known) == len(waits) else None)

    def _overload(self, route: Route, request: Request, items: int) -> Overload | None:
        """Why people have no time for so many *items* of *request*; None where they have, or there are none."""
        if not items or route.human is None:
            return None
        return self._outlook.overload(request.caller.tenant, route.human, items)

    def _insists(self, route: Route, request: Request) -> bool:
        """Whether stages that would be passed over are asked before people are."""
        overload = self._overload(route, request, 1)
        return overload is not None and overload.policy is WhenOverloaded.STRONGER

    async def _for_stage(
        self, route: Route, model: Model, items: Batch, progress: Progress, shared: InPlace
    ) -> tuple[Batch, InPlace | None]:
        """*items*, which lie in shared memory, as *model* takes them; None with those that have been read."""
        if len(progress.open) == items.size and passing.takes(model, items.size):
            return passing.placed(route, model, items, shared), shared
        return Batch(await shared.read(), items.size), None

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
        span = part_of(request.trace)
        trace = request.trace if span is None else span.context
        note = BatchNote()
        try:
            step = None if request.sequence is None else step_of(request, route.name)
            asked = (request.priority, request.caller.tenant, trace, step, note)
            outputs, confidences = await model.run(rows, deadline, *asked)
        except (PointsmanError, asyncio.CancelledError) as error:
            code = error.code if isinstance(error, PointsmanError) else Code.CANCELLED
            duration_s, version = self._clock() - started, model.backend.version
            self._observer.on_stage(StageReport(route.name, model.name, duration_s, (), (), version, code, span))
            if not isinstance(error, PointsmanError):
                raise
            if isinstance(error, SequenceOver) and error.__cause__ is not None:  # this very step has lost it
                progress.passed_over(model.name, version, Reason.STAGE_FAILED)
            else:
                progress.failed(model.name, version, error)
            if model.keeps_state:
                raise  # it is the only one, and its own words say what became of the sequence
            return
        verdicts = judge(route, stage, confidences, all_ran=progress.all_ran)
        # What is scored where labels are gathered may become evidence for a certificate.
        gathers = isinstance(route.accept, _GATHERING)
        duration_s = self._clock() - started
        run = _run_of(route, stage, note, len(verdicts), duration_s)
        progress.judged(model.name, model.backend.version, outputs, verdicts, route.subject if gathers else "", run)
        self._observer.on_stage(
            StageReport(
                route.name,
                model.name,
                duration_s,
                tuple([verdict.decision for verdict in verdicts]),
                tuple([verdict.confidence for verdict in verdicts if verdict.confidence is not None]),
                model.backend.version,
                span=span,
            )
        )

    async def _keep(
        self, route: Route, batch: Batch, answer: Answer, held: Held | None, trace: TraceContext | None
    ) -> None:
        """Make the answer durable: before the reply where somebody relies on it, else behind it."""
        tasks = await self._tasks(route, batch, answer) if route.human is not None else ()
        if (mask := self._masks.of(route.name)) is not None:
            answer, tasks = await self._masked(mask, answer, tasks)
        if held is None and not tasks:
            await self._store.record(answer)
            return
        span, started = part_of(trace), self._clock()
        if held is not None:
            await self._store.commit(answer, tasks, held.key, held.fence)
        else:
            await self._store.commit(answer, tasks)
        if span is not None:
            queue, waiting = tasks[0].queue if tasks else "", tuple([task.item for task in tasks])
            self._observer.on_keep(KeepReport(answer.id, queue, waiting, self._clock() - started, span))

    async def _keep_step(
        self, catalog: Catalog, route: Route, request: Request, batch: Batch, answer: Answer, held: Held | None
    ) -> None:
        """Like `_keep`; a step whose caller gets no answer ends its sequence, or a retry would take it twice."""
        try:
            await self._keep(route, batch, answer, held, request.trace)
        except BaseException:
            for stage in route.cascade:
                catalog.models[stage.model].give_up(step_of(request, route.name))
            raise

    async def _tasks(self, route: Route, batch: Batch, answer: Answer) -> Sequence[ReviewTask]:
        """The tasks for people; tensors are made readable for them, which takes time where they are large."""
        if answer.open_items and route.decode is None and not fit_in(INLINE_BYTES, batch.inputs.values()):
            return await asyncio.to_thread(tasks_of, route, batch, answer)
        return tasks_of(route, batch, answer)

    async def _masked(
        self, mask: Mask, answer: Answer, tasks: Sequence[ReviewTask]
    ) -> tuple[Answer, Sequence[ReviewTask]]:
        """*answer* and *tasks* with *mask* on, which takes time where there is much text."""

        def masked() -> tuple[Answer, Sequence[ReviewTask]]:
            return mask.answer(answer), [mask.task(task) for task in tasks]

        outputs = [tensor for item in answer.items for tensor in (item.outputs or {}).values()]
        is_quick = sum(len(task.payload) for task in tasks) <= INLINE_BYTES and fit_in(INLINE_BYTES, outputs)
        return masked() if is_quick else await asyncio.to_thread(masked)

    def _stage_deadline(self, deadline: Deadline) -> Deadline:
        """*deadline* less the reserve for what follows the last stage."""
        return Deadline(deadline - max(0.005, 0.02 * (deadline - self._clock())))

    def _left_s(self, deadline: Deadline) -> float:
        """Seconds that may still be spent before what follows the last stage."""
        return self._stage_deadline(deadline) - self._clock()

    async def answer(
        self, caller: Caller, answer_id: AnswerId, wait_s: float = 0.0, after: int | None = None
    ) -> Answer:
        """The answer's current state, waiting up to *wait_s* seconds for it to be closed, or later than *after*.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        if wait_s > 0.0:
            found = await self._when_changed(caller.tenant, answer_id, min(wait_s, MAX_WAIT_S), after)
        else:
            found = await self._store.answer(caller.tenant, answer_id)
        if found is None:
            raise NotFound(f"there is no answer {answer_id!r}")
        return await self._with_wait(found)

    async def _when_changed(self, tenant: str, answer_id: AnswerId, wait_s: float, after: int | None) -> Answer | None:
        """The answer, once it is closed, or later than *after*, *wait_s* have passed, or this gateway drains."""
        changed = asyncio.ensure_future(self._store.wait(tenant, answer_id, wait_s, after))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((changed, draining), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            changed.cancel()
            await asyncio.wait((changed,))
        return await self._store.answer(tenant, answer_id) if changed.cancelled() else changed.result()

    async def cancel(self, caller: Caller, answer_id: AnswerId) -> Answer:
        """Ask people no more about what is open of the answer; the answer as it is then.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        return await self._store.cancel(caller.tenant, answer_id, caller.name)

    async def revisions(self, caller: Caller, answer_id: AnswerId) -> Sequence[Revision]:
        """What the answer was, from its first reply to now.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        found = await self._store.revisions(caller.tenant, answer_id)
        if not found:
            raise NotFound(f"there is no answer {answer_id!r}")
        return found

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
            Unavailable: nobody knows yet, as no model of it could be opened.
        """
        if name == AUTO and self._serves_auto and version in ("", ROUTE_VERSION):
            return ModelMetadata(AUTO, (ROUTE_VERSION,), "pointsman", (_ANYTHING,), ())
        routes = self._versions(name, version)
        if self._described is not self.catalog:
            self._described, self._descriptions = self.catalog, {}
        asked = route_id(name, version)
        if asked not in self._descriptions:
            self._descriptions[asked] = self._describe(routes)
        return self._descriptions[asked]

    def _describe(self, routes: Sequence[Route]) -> ModelMetadata:
        """One route, in the versions *routes*."""
        route = next((one for one in routes if one.id not in self.catalog.unknown), routes[0])
        self.catalog.check_known(route.id)
        batchers = [self.catalog.models[stage.model].batcher for one in routes for stage in one.cascade]
        return ModelMetadata(
            route.name,
            tuple(one.version or ROUTE_VERSION for one in routes),
            "pointsman",
            route.signature.inputs,
            route.signature.outputs,
            labels=(route.human.labels if route.human else ()) or self._labels(route),
            max_batch=min([MAX_ITEMS, *(batcher.max_batch for batcher in batchers)]),
            max_delay_s=max((batcher.max_delay_s for batcher in batchers if batcher.max_batch > 1), default=None),
            sequence_idle_s=next((b.idle_s for b in batchers if isinstance(b, SequenceRunner)), None),
            id_as_key=route.id_as_key,
        )

    def _labels(self, route: Route) -> tuple[str, ...]:
        """Those of the models of *route*, which share theirs."""
        return next((self.catalog.models[stage.model].labels for stage in route.cascade), ())

    def names(self) -> Sequence[str]:
        """Every route, and every exposed model."""
        return self.catalog.names

    def statistics(self, name: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """What was answered so far for *name*, or for each of `names`; `auto` has no models of its own.

        Raises:
            NotFound: there is no such name or version.
        """
        if not name:
            return tuple(self._statistics(route) for route in self.catalog.routes.values())
        self.metadata(name, version)
        if name == AUTO:
            return (self._counters.get(AUTO, RequestCounters()).statistics(AUTO, ROUTE_VERSION, ()),)
        return tuple(self._statistics(route) for route in self._versions(name, version))

    def _statistics(self, route: Route) -> ModelStatistics:
        models = (self.catalog.models[stage.model].batcher.totals() for stage in route.cascade)
        counters = self._counters.get(route.id, RequestCounters())
        return counters.statistics(route.name, route.version or ROUTE_VERSION, models)

    def is_ready(self) -> bool:
        """Whether new requests are welcome: not leaving, and no route without a stage that is ready.

        A route whose models were all unloaded, or are none that is required, is as somebody wanted it, and keeps
        nothing else from being served. Of versions the one counts that gets most: a canary that cannot answer is no
        reason to send everything elsewhere.
        """
        catalog = self.catalog
        return not (self._retired or self._draining.is_set()) and all(
            self._can_answer(route) or catalog.is_unloaded(route) or catalog.is_optional(route)
            for route in (self.traffic.chosen(catalog, name) for name in catalog.names)
        )

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a request for *name* would be answered by a model; in the version that gets most, if none is named.

        Raises:
            NotFound: there is no such name or version.
        """
        if name == AUTO and self._serves_auto:
            return self.is_ready()
        return self._can_answer(self._named(name, version)) and not self._draining.is_set()

    def why_not_ready(self, name: str, version: str = "") -> str | None:
        """What keeps a model from answering requests for *name*, in Triton's words where it has some; None: nothing.

        Raises:
            NotFound: there is no such name or version.
        """
        if self.is_model_ready(name, version):
            return None
        if name != AUTO and self.catalog.is_unloaded(self._named(name, version)):
            return "unloaded"
        return "no model of it is ready, or the gateway is shutting down"

    def retire(self) -> None:
        """Say from now on that others are to be asked, and answer nevertheless."""
        self._retired = True

    def drain(self) -> None:
        """Refuse new requests from now on, and end long polls and shadows; what is in flight goes on."""
        self._draining.set()
        self.shadows.close()

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

    def count_anew(self, models: Collection[str]) -> None:
        """Begin the statistics of what has none but *models*, which were opened anew, as those of models begin."""
        for name, route in self.catalog.routes.items():
            if route.cascade and all(stage.model in models for stage in route.cascade):
                self._counters.pop(name, None)

    @property
    def _serves_auto(self) -> bool:
        return bool(self.catalog.table.rules or self.catalog.table.default)

    def _can_answer(self, route: Route) -> bool:
        return not route.cascade or any(state.ready for state in self.catalog.states(route).values())

    def _named(self, name: str, version: str) -> Route:
        """The *version* of the route *name*; "": the one that gets most."""
        routes = self._versions(name, version)
        return routes[0] if len(routes) == 1 else self.traffic.chosen(self.catalog, name)

    def _versions(self, name: str, version: str) -> Sequence[Route]:
        """The *version* of the route *name*; "": all that it has."""
        routes = self.catalog.each_version(name)
        if not routes:
            raise _unknown(self.catalog, name)
        if not version:
            return routes
        if version not in self.catalog.versions_of(name):
            raise _no_version(self.catalog, name, version)
        return [route for route in routes if route.version in ("", version)]


_ANYTHING = TensorSpec("input", Datatype.BYTES, (1,))
"""What `auto` says it takes: one item's bytes, whatever they are."""


def _run_of(route: Route, stage: int, note: BatchNote, items: int, took_s: float) -> StageRun:
    """What *stage*'s answer took, of which *note* tells the batches, and what it was judged by."""
    accept = route.accept
    threshold = accept.value if isinstance(accept, MinConfidence) else None
    certificate = ""
    if isinstance(accept, Certified):
        threshold, certificate = accept.threshold, accept.certificate
    if not note.batch:
        return StageRun(took_s, None, threshold=threshold, certificate=certificate)
    model_s = note.model_s / items
    cost_ms = 1e3 * model_s * route.cascade[stage].cost
    return StageRun(took_s, model_s, note.batch, note.size, cost_ms, threshold, certificate)


def _known(catalog: Catalog, request: Request) -> str:
    """The name that *request* asks for.

    Raises:
        NotFound: there is no such route or version.
    """
    table = catalog.table
    is_known = catalog.shared(request.route) or (request.route == AUTO and (table.rules or table.default))
    if not is_known:
        raise _unknown(catalog, request.route)
    if request.version and request.version not in catalog.versions_of(request.route):
        raise _no_version(catalog, request.route, request.version)
    return request.route


def _urgent(route: Route, request: Request) -> Route:
    """*route*, whose people see *request* as urgent as its caller says, where the route lets callers say so."""
    human = route.human
    if human is None or not human.callers_priority:
        return route
    priority = request.priority or request.parameters.get("priority")
    if type(priority) is not int or not 1 <= priority <= LEAST_PRIORITY:
        return route
    return replace(route, human=replace(human, priority=priority))


def _has_models(catalog: Catalog, name: str) -> bool:
    route = catalog.shared(name)
    return route is not None and bool(route.cascade)


def _steps(catalog: Catalog, route: Route) -> Mapping[str, Mapping[str, str]]:
    """What the steps around each model of *route* take an item, in words."""
    costs = {stage.model: catalog.models[stage.model].costs() for stage in route.cascade}
    return {model: {name: str(cost) for name, cost in taken.items()} for model, taken in costs.items()}


def _unruled(catalog: Catalog, request: Request) -> Picked | None:
    """The route that *request* names, where no rule is about it, as `router.table.route` says too; else None."""
    if request.route in catalog.table.unruled and _has_models(catalog, request.route):
        return Picked(request.route)
    return None


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
    return NotFound(f"there is no route {name!r}; known: {', '.join(sorted(catalog.names))}")


def _no_version(catalog: Catalog, name: str, version: str) -> NotFound:
    known = catalog.versions_of(name)
    has = f"its only version is {known[0]}" if len(known) == 1 else f"its versions are {', '.join(known)}"
    return NotFound(f"route {name!r} has no version {shorten(version)}; {has}, or leave the version out")
