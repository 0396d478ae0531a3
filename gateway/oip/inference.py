"""An inference request, as both transports understand it, and its way through the service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import field, replace

from backends.contract import Deadline, SharedMemoryWindow, Tensors, fit_in, record
from backends.errors import InvalidInput
from backends.trace_context import TraceContext
from gateway.answer import Answer
from gateway.keys import check_idempotency_key
from gateway.oip.classification import check_classes
from gateway.oip.fingerprint import of_tensors
from gateway.oip.parameters import Parameters
from gateway.oip.render import Rendered, is_rendered_quickly, render, told, unknown_output
from gateway.oip.windows import any_window, loaded, located, places, stored
from gateway.passing import InPlace, in_place
from gateway.request import Caller, Protocol, Request, TensorInputs
from gateway.service import Service
from gateway.shared_memory import SharedMemory
from router.contract import AUTO

_INLINE_BYTES = 256 * 1024
"""What takes longer to hash than this much is hashed in a thread."""

_QUICK_CLASSES = 2048
"""More classes than that take longer than a millisecond to write."""


@record(eq=False)
class Inference:
    """An inference request that has been read.

    Attributes:
        version: the model version asked for; "" for any.
        wanted: names of the outputs asked for, in order; empty for all.
        classes: of those that are asked for as their greatest elements, how many of these, by name.
        windows: of those that go to shared memory, where to, by name.
        key: the idempotency key, or None.
        id: that its caller gave it, which may be its key (`ModelMetadata.id_as_key`); "" for none.
        trace: the caller's span, or None.
        subject: whom it is about, by a header or metadata; a parameter that says so comes first. "": neither says.
    """

    route: str
    version: str
    tensors: Tensors
    wanted: tuple[str, ...]
    parameters: Parameters
    protocol: Protocol
    deadline: Deadline
    key: str | None = None
    id: str = ""
    caller: Caller = field(default_factory=Caller)
    classes: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, SharedMemoryWindow] = field(default_factory=dict)
    trace: TraceContext | None = None
    subject: str = field(default="", repr=False)


async def infer(service: Service, asked: Inference, memory: SharedMemory) -> tuple[Answer, Rendered]:
    """Answer *asked*, in the protocol's terms; outputs that went to shared memory are windows of it.

    Raises:
        PointsmanError: with the code to send.
    """
    asked = _keyed(service, asked)
    if asked.wanted:
        _check_outputs(service, asked)
    if asked.windows or any_window(asked.tensors):
        return await _infer_shared(service, asked, memory)
    return await _decided(service, asked)


def _keyed(service: Service, asked: Inference) -> Inference:
    """*asked*, with its id for a key where its route says so, and it has none."""
    if not asked.id or asked.key is not None or asked.route == AUTO:
        return asked
    if not service.metadata(asked.route, asked.version).id_as_key:
        return asked
    return replace(asked, key=check_idempotency_key(asked.id))


async def _decided(service: Service, asked: Inference, shared: InPlace | None = None) -> tuple[Answer, Rendered]:
    """Answer *asked*, whose tensors are all in the message, but for those that may be passed on (*shared*)."""
    answer = await service.decide(
        Request(
            route=asked.route,
            payload=TensorInputs(asked.tensors, asked.parameters.content_type),
            protocol=asked.protocol,
            caller=asked.caller,
            version=asked.version,
            parameters=asked.parameters.own,
            deadline=asked.deadline,
            idempotency_key=asked.key,
            fingerprint=b"" if asked.key is None else await _fingerprint(asked),
            on_defer=asked.parameters.on_defer,
            priority=asked.parameters.priority,
            shared=shared,
            trace=asked.trace,
            sequence=asked.parameters.sequence,
            subject=asked.parameters.subject or asked.subject,
        )
    )
    if asked.classes:
        return answer, await _classified(service, asked, answer)
    if is_rendered_quickly(answer):
        return answer, render(answer, asked.wanted)
    return answer, await asyncio.to_thread(render, answer, asked.wanted)


async def _infer_shared(service: Service, asked: Inference, memory: SharedMemory) -> tuple[Answer, Rendered]:
    """Answer *asked*, of which a tensor lies in shared memory: as if it had come, and could go, in the message."""
    _check_inputs(service, asked)
    tenant = asked.caller.tenant
    found = places(memory, tenant, asked.windows)
    tensors = located(memory, tenant, asked.tensors)
    shared = in_place(memory, tenant, tensors, found) if asked.key is None and asked.route != AUTO else None
    if shared is None:
        tensors = await loaded(memory, tenant, tensors)
    answer, rendered = await _decided(service, replace(asked, tensors=tensors, windows={}), shared)
    return answer, replace(rendered, outputs=await stored(found, rendered.outputs))


async def _classified(service: Service, asked: Inference, answer: Answer) -> Rendered:
    """*answer* as classes, as *asked*, in a thread where that takes long."""
    labels = service.metadata(answer.route).labels if answer.route in service.names() else ()
    if len(answer.items) * sum(asked.classes.values()) <= _QUICK_CLASSES:
        return await told(answer, render, answer, asked.wanted, asked.classes, labels)
    return await asyncio.to_thread(render, answer, asked.wanted, asked.classes, labels)


def _check_inputs(service: Service, asked: Inference) -> None:
    """Refuse an input that nobody takes before anything is copied for it."""
    if asked.route == AUTO:
        return
    known = [spec.name for spec in service.metadata(asked.route, asked.version).inputs]
    for name in asked.tensors:
        if name not in known:
            raise InvalidInput(f"input {name!r} is unknown; expected {sorted(known)}")


def _check_outputs(service: Service, asked: Inference) -> None:
    """Refuse an output that does not exist before any model has worked for it."""
    if asked.route == AUTO:  # whose outputs are those of the route it comes to
        return
    known = {spec.name: spec.datatype for spec in service.metadata(asked.route, asked.version).outputs}
    for name in asked.wanted:
        if name not in known:
            raise unknown_output(name, tuple(known))
        if name in asked.classes:
            check_classes(name, known[name])


async def _fingerprint(asked: Inference) -> bytes:
    routed_by = {**asked.parameters.own, "content_type": asked.parameters.content_type}
    if (place := asked.parameters.sequence) is not None:
        routed_by |= {"sequence_id": place.id, "sequence_start": place.starts, "sequence_end": place.ends}
    parts = (asked.route, asked.version, routed_by, asked.tensors)
    if fit_in(_INLINE_BYTES, asked.tensors.values()):
        return of_tensors(*parts)
    return await asyncio.to_thread(of_tensors, *parts)
