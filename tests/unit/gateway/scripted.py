"""A small, real `Service`: it echoes inputs as outputs, and a request's parameter `script` says what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from backends.contract import Batch, Datatype, Ragged, Tensor, Tensors, TensorSpec
from backends.errors import NotFound, QuotaExceeded, Unavailable
from batching.report import BatchingTotals, SizeTotals
from gateway.answer import Answer, AnswerId, ItemAnswer, ItemState, Revision, Status, new_answer_id
from gateway.oip.statistics import ModelStatistics, RequestCounters
from gateway.request import Caller, JsonInputs, RawBody, Request, TensorInputs
from gateway.service import ModelMetadata
from router.contract import OnDefer, Reason

ROUTES = {
    "echo": ModelMetadata(
        "echo",
        ("1",),
        "pointsman",
        tuple(TensorSpec(f"{datatype}", datatype, (-1,)) for datatype in Datatype),
        tuple(TensorSpec(f"{datatype}", datatype, (-1,)) for datatype in Datatype),
        labels=("cat", "dog", "fox"),
    ),
    "tickets": ModelMetadata(
        "tickets",
        ("1",),
        "pointsman",
        (TensorSpec("text", Datatype.BYTES, (1,)),),
        (TensorSpec("text", Datatype.BYTES, (1,)),),
        max_batch=16,
        max_delay_s=0.002,
    ),
}

BATCHED = BatchingTotals(9, 900, 90, 9000, 9, (SizeTotals(1, 2, 20, 2000, 2), SizeTotals(4, 1, 10, 1000, 1)))
"""What the models of every route have answered."""


class ScriptedService:
    """Implements `gateway.service.DataPlane` in memory."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.kept: dict[AnswerId, Answer] = {}
        self.feedbacks: list[tuple[AnswerId, int, str]] = []
        self.hanging = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.changed = asyncio.Condition()
        self.ready = True
        self.draining = False
        self.asked = 0
        self.arrivals: asyncio.Queue[Request] = asyncio.Queue()
        self.at_once = 0
        self.most_at_once = 0
        self.counters = {name: RequestCounters() for name in ROUTES}

    async def drain(self) -> None:
        """End every wait, and let none begin, as a gateway that drains does."""
        async with self.changed:
            self.draining = True
            self.changed.notify_all()

    async def decide(self, request: Request) -> Answer:
        self.requests.append(request)
        self.arrivals.put_nowait(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._decide(request)
        finally:
            self.at_once -= 1

    async def _decide(self, request: Request) -> Answer:
        if request.route not in ROUTES:
            raise NotFound(f"there is no route {request.route!r}")
        script = request.parameters.get("script", "accept")
        match script:
            case "hang":
                self.hanging.set()
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "bug":
                raise RuntimeError("secret: /etc/shadow")
            case "busy":
                raise Unavailable("the queue is full", retry_after_s=2.5)
            case "quota":
                raise QuotaExceeded("100 requests a second are yours")
            case _:
                pass
        inputs = _batch(request)
        items = tuple(_item(inputs, row, str(script)) for row in range(inputs.size))
        answer = Answer(
            new_answer_id(),
            request.caller.tenant,
            request.route,
            1.0,
            items,
            max_error=0.01,
            on_defer=request.on_defer or OnDefer.PROVISIONAL,
        )
        self.kept[answer.id] = answer
        return answer

    async def decide_open(self, answer_id: AnswerId, label: str, item: int = 0) -> None:
        """A person gives an item its label."""
        await self.change(self.kept[answer_id].decided(item, label, "ann"))

    async def change(self, answer: Answer) -> None:
        """An answer becomes *answer*."""
        async with self.changed:
            self.kept[answer.id] = answer
            self.changed.notify_all()

    async def explain(self, request: Request) -> dict[str, Any]:
        self.requests.append(request)
        return {"route": request.route, "size_bytes": request.payload.size_bytes}

    async def answer(
        self, caller: Caller, answer_id: AnswerId, wait_s: float = 0.0, after: int | None = None
    ) -> Answer:
        if answer_id not in self.kept or self.kept[answer_id].tenant != caller.tenant:
            raise NotFound(f"there is no answer {answer_id!r}")
        self.asked += 1
        if wait_s > 0:
            try:
                async with asyncio.timeout(wait_s), self.changed:
                    await self.changed.wait_for(lambda: self.draining or self._ends_wait(answer_id, after))
            except TimeoutError:
                pass
        return self.kept[answer_id]

    def _ends_wait(self, answer_id: AnswerId, after: int | None) -> bool:
        answer = self.kept[answer_id]
        return not answer.open_items or (after is not None and answer.revision > after)

    async def cancel(self, caller: Caller, answer_id: AnswerId) -> Answer:
        answer = await self.answer(caller, answer_id)
        if answer.open_items:
            items = [
                replace(item, status=Status.CANCELLED) if i in answer.open_items else item
                for i, item in enumerate(answer.items)
            ]
            await self.change(replace(answer, items=tuple(items), revision=answer.revision + 1))
        return self.kept[answer_id]

    async def revisions(self, caller: Caller, answer_id: AnswerId) -> Sequence[Revision]:
        answer = await self.answer(caller, answer_id)
        states = [ItemState(i, o.status, o.label, o.confidence, o.decided_by) for i, o in enumerate(answer.items)]
        return [Revision(answer.revision, answer.created_s, "answer", None, None, tuple(states))]

    @property
    def is_draining(self) -> bool:
        return self.draining

    async def feedback(self, caller: Caller, answer_id: AnswerId, item: int, label: str) -> None:
        if item >= len((await self.answer(caller, answer_id)).items):
            raise NotFound(f"answer {answer_id!r} has no item {item}")
        self.feedbacks.append((answer_id, item, label))

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        if name not in ROUTES or version not in ("", "1"):
            raise NotFound(f"there is no route {name!r} of version {version!r}")
        return ROUTES[name]

    def names(self) -> Sequence[str]:
        return tuple(ROUTES)

    def statistics(self, name: str = "", version: str = "") -> Sequence[ModelStatistics]:
        names = (self.metadata(name, version).name,) if name else self.names()
        return tuple(self.counters[found].statistics(found, "1", (BATCHED,)) for found in names)

    def why_not_ready(self, name: str, version: str = "") -> str | None:
        return None if self.is_model_ready(name, version) else "not now"

    def is_ready(self) -> bool:
        return self.ready

    def is_model_ready(self, name: str, version: str = "") -> bool:
        self.metadata(name, version)
        return self.ready


def _batch(request: Request) -> Batch:
    match request.payload:
        case TensorInputs(tensors=tensors):
            return Batch.of(tensors)
        case RawBody(data=data):
            return Batch.of({"text": text_tensor(data)})
        case JsonInputs(values=values):
            return Batch.of({name: text_tensor(str(value).encode()) for name, value in values.items()})


def text_tensor(*texts: bytes) -> Tensor:
    """BYTES of shape (n, 1)."""
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = texts
    return Tensor.of(array)


def _item(batch: Batch, row: int, script: str) -> ItemAnswer:
    outputs: Tensors = {name: tensor.rows(row, row + 1) for name, tensor in batch.inputs.items()}
    first = next(iter(outputs.values()))
    assert not isinstance(first.data, Ragged)
    accepted = ItemAnswer(Status.FINAL, "fast", f"label-{row}", outputs, 0.9 - row / 10, "model:fast", None)
    match script:
        case "defer":
            return replace(
                accepted, status=Status.PROVISIONAL, decided_by=None, reason=Reason.LOW_CONFIDENCE, stage="strong"
            )
        case "pending":
            return replace(
                accepted,
                status=Status.PENDING,
                stage=None,
                label=None,
                outputs=None,
                confidence=None,
                decided_by=None,
                reason=Reason.STAGE_UNAVAILABLE,
            )
        case "unsure":
            return replace(accepted, status=Status.PROVISIONAL, reason=Reason.LOW_CONFIDENCE)
        case "unlabelled":
            return replace(accepted, label=None)
        case "defer-last" if row == batch.size - 1:
            return replace(accepted, status=Status.PROVISIONAL, decided_by=None, reason=Reason.NO_CONFIDENCE)
        case _:
            return accepted
