"""A version that is shown what another has answered: it works beside the traffic, and nobody ever gets its answers.

    answer kept -> reply on its way ─────────────────────────────► caller
                         └► decoded items -> the shadow's stages -> compared with what was answered -> counted

**Nothing waits for it.** It begins when the answer is done. A stage is asked only while its model has a slot free and
nothing queued, at the lowest priority that there is; until then it waits, for as long as the route's deadline allows.
What comes while `max_running` requests are at work is dropped, and so is what finds a model that would have to be
loaded. Dropped items are counted: what is compared is what there was room for.

**Nothing is kept.** No answer, no task for people, no metrics of the route's stages.

**Models.** What is mirrored counts among the requests of the catalog that is served when it begins, so that no model is
closed beneath it; whoever waits for that waits no longer than the route's deadline. When the gateway drains, all end.

**Agreement** is about labels; where there are none, outputs must be alike to `RTOL` and `ATOL`, texts equal.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from backends.contract import Batch, Datatype, Deadline, HostArray, Ragged, Tensor, Tensors, fit_in
from backends.errors import PointsmanError
from batching.batcher import Batcher
from gateway.answer import Answer, ItemAnswer
from gateway.binding import rows_of
from gateway.catalog import Catalog, Model
from gateway.certificates import in_force
from gateway.observe import Mirrored, PipelineObserver, ShadowReport
from gateway.progress import Progress
from kernels.images import from_bfloat16
from router.cascade import judge, next_stage
from router.contract import FAILURES, HumanPolicy, Reason, Route, route_id

RTOL = 1e-3
"""Most that two outputs may differ, relative to the greater."""

ATOL = 1e-5
"""Most that they may differ beside that."""

_POLL_S = 0.005
"""How often a model is looked at that has no slot free."""


log = logging.getLogger("pointsman.shadow")


_QUICK_BYTES = 256 * 1024
"""Outputs of up to this size are compared in a millisecond or so; larger ones are in a thread."""

_ANYBODY = HumanPolicy("", 0.0)
"""Whoever has people refuses no item, so that each can be compared by itself."""


class _NoRoom(Exception):
    """The model has better things to do, or would have to be loaded."""


class Epoch(Protocol):
    """Counts requests; see `gateway.pipeline.Epoch`."""

    def enter(self) -> None:
        """A request begins."""
        ...

    def leave(self) -> None:
        """A request has ended."""
        ...


@dataclass(slots=True)
class ShadowCounts:
    """What became of the items that a version was shown.

    Attributes:
        outcomes: how many, by what became of them.
        compared: that both had a confidence for.
        changes: how much surer the shadow was, all of these together.
    """

    outcomes: dict[Mirrored, int] = field(default_factory=lambda: dict.fromkeys(Mirrored, 0))
    compared: int = 0
    changes: float = 0.0

    @property
    def confidence_change(self) -> float | None:
        """How much surer the shadow was on average; None where nothing was compared."""
        return self.changes / self.compared if self.compared else None


class Shadows:
    """Mirrors requests. Single event loop."""

    def __init__(
        self,
        observer: PipelineObserver,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """Args:
        rng: numbers in [0, 1).
        """
        self._observer = observer
        self._clock = clock
        self._rng = rng
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._counts: dict[str, ShadowCounts] = {}
        self._is_open = True

    def offer(self, catalog: Catalog, epoch: Epoch, route: Route, items: Batch, answer: Answer) -> None:
        """Show *items*, which *route* has just answered, to the shadow of its name, if it has one that is not itself.

        Args:
            catalog: what is served now.
            epoch: counts its requests.
            items: decoded.
        """
        traffic = catalog.traffic.get(route.name)
        shadow = traffic.shadow if traffic is not None else None
        if shadow is None or shadow.version == route.version or not self._is_open:
            return
        if shadow.share < 1.0 and self._rng() >= shadow.share:
            return
        mirror = catalog.routes[route_id(route.name, shadow.version)]
        running = self._running.setdefault(mirror.id, set())
        if len(running) >= shadow.max_running or not _stays(items):
            self._report(mirror, [Mirrored.DROPPED] * items.size)
            return
        epoch.enter()
        task = asyncio.create_task(self._compare(catalog, mirror, items, answer), name=f"shadow {mirror.id}")
        running.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            epoch.leave()  # here: a task that is cancelled before it began runs no line of its own
            running.discard(task)

        task.add_done_callback(ended)

    def counts(self, route: str, version: str) -> ShadowCounts:
        """What became of the items that *version* of *route* was shown."""
        return self._counts.get(route_id(route, version), ShadowCounts())

    def close(self) -> None:
        """End everything, and begin nothing more. Closing twice is harmless."""
        self._is_open = False
        for running in self._running.values():
            for task in running:
                task.cancel()

    async def aclose(self) -> None:
        """As `close`; returns when everything has ended."""
        self.close()
        if tasks := [task for running in self._running.values() for task in running]:
            await asyncio.wait(tasks)

    async def _compare(self, catalog: Catalog, mirror: Route, items: Batch, answer: Answer) -> None:
        try:
            found = await self._answered(catalog, in_force(mirror, time.time()), items)
        except _NoRoom:
            self._report(mirror, [Mirrored.DROPPED] * items.size)
        except Exception as error:
            if not isinstance(error, PointsmanError):
                log.exception("mirroring a request to %s failed. This is a bug.", mirror.id)
            self._report(mirror, [Mirrored.FAILED] * items.size)
        else:
            outcomes = await _verdicts(answer.items, found)
            self._report(mirror, outcomes, _confidence_changes(answer.items, found))

    async def _answered(self, catalog: Catalog, mirror: Route, items: Batch) -> tuple[ItemAnswer, ...]:
        """What *mirror* says of *items*; as the pipeline asks stages, but that nobody is in a hurry.

        Raises:
            _NoRoom: a model was busy until the deadline, or is not in memory.
            PointsmanError: what a stage raised.
        """
        deadline = Deadline(self._clock() + mirror.deadline_s)
        progress = Progress(items.size)
        stage: int | None = None
        while progress.open:
            step = next_stage(mirror, stage, catalog.states(mirror), deadline - self._clock())
            for skipped in step.skipped:
                if skipped.reason is not Reason.STAGE_UNAVAILABLE or _is_cold(catalog.models[skipped.model]):
                    raise _NoRoom
                progress.passed_over(skipped.model, "", skipped.reason, skipped.detail)
            if step.stage is None:
                break
            stage = step.stage
            model = catalog.models[mirror.cascade[stage].model]
            await self._wait_for_room(model, deadline)
            rows = rows_of(items, progress.open)
            try:
                outputs, confidences = await model.run(rows, deadline, _batcher(model).lowest_priority)
            except PointsmanError as error:
                progress.failed(model.name, model.backend.version, error)
                if progress.troubles[-1].reason not in FAILURES:
                    raise _NoRoom from error
                continue
            verdicts = judge(mirror, stage, confidences, all_ran=progress.all_ran)
            progress.judged(model.name, model.backend.version, outputs, verdicts)
        return progress.settle(replace(mirror, human=_ANYBODY))

    async def _wait_for_room(self, model: Model, deadline: Deadline) -> None:
        while not _batcher(model).is_idle:
            if self._clock() + _POLL_S >= deadline:
                raise _NoRoom
            await asyncio.sleep(_POLL_S)
        if _is_cold(model):
            raise _NoRoom

    def _report(self, mirror: Route, outcomes: Sequence[Mirrored], changes: Sequence[float] = ()) -> None:
        counts = self._counts.setdefault(mirror.id, ShadowCounts())
        for outcome in outcomes:
            counts.outcomes[outcome] += 1
        counts.compared += len(changes)
        counts.changes += sum(changes)
        self._observer.on_shadow(ShadowReport(mirror.name, mirror.version, tuple(outcomes), tuple(changes)))


def _stays(items: Batch) -> bool:
    """Whether *items* are still there when their request has ended: what lies in a client's memory may not be."""
    return all(isinstance(tensor.data, np.ndarray | Ragged) for tensor in items.inputs.values())


def _is_cold(model: Model) -> bool:
    return model.loaded and model.is_cold


async def _verdicts(ours: Sequence[ItemAnswer], theirs: Sequence[ItemAnswer]) -> list[Mirrored]:
    def compared() -> list[Mirrored]:
        return [_verdict(one, other) for one, other in zip(ours, theirs, strict=True)]

    unlabelled = [item.outputs for item in theirs if item.label is None and item.outputs is not None]
    tensors = (tensor for outputs in unlabelled for tensor in outputs.values())
    return compared() if fit_in(_QUICK_BYTES, tensors) else await asyncio.to_thread(compared)


def _confidence_changes(ours: Sequence[ItemAnswer], theirs: Sequence[ItemAnswer]) -> list[float]:
    return [
        other.confidence - one.confidence
        for one, other in zip(ours, theirs, strict=True)
        if one.confidence is not None and other.confidence is not None
    ]


def _verdict(ours: ItemAnswer, theirs: ItemAnswer) -> Mirrored:
    """1. the shadow has no outputs: none of its stages answered
    2. both have a label: equal or not
    3. else the outputs, if both have some
    """
    if theirs.outputs is None:
        return Mirrored.FAILED
    if ours.label is not None and theirs.label is not None:
        agree = ours.label == theirs.label
    else:
        agree = ours.outputs is not None and _are_alike(ours.outputs, theirs.outputs)
    return Mirrored.AGREED if agree else Mirrored.DIFFERED


def _are_alike(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(_is_alike(tensor, theirs[name]) for name, tensor in ours.items())


def _is_alike(ours: Tensor, theirs: Tensor) -> bool:
    left, right = _rows(ours), _rows(theirs)
    return len(left) == len(right) and all(
        one.shape == other.shape
        and (
            bool(np.allclose(one, other, RTOL, ATOL, equal_nan=True))
            if np.issubdtype(one.dtype, np.floating)
            else bool(np.array_equal(one, other))
        )
        for one, other in zip(left, right, strict=True)
    )


def _rows(tensor: Tensor) -> list[HostArray]:
    rows = list(tensor.data.rows) if isinstance(tensor.data, Ragged) else [tensor.numpy()]
    if tensor.datatype is Datatype.BF16:
        return [from_bfloat16(row) for row in rows]
    return rows


def _batcher(model: Model) -> Batcher:
    assert isinstance(model.batcher, Batcher), "a model that keeps state is in no version of a route. This is a bug."
    return model.batcher
