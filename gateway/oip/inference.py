"""An inference request, as both transports understand it, and its way through the service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import field, replace

from backends.contract import Deadline, SharedMemoryWindow, Tensors, record
from backends.errors import InvalidInput
from gateway.answer import Answer
from gateway.oip.classification import check_classes
from gateway.oip.fingerprint import of_tensors
from gateway.oip.parameters import Parameters
from gateway.oip.render import Rendered, render, told, unknown_output
from gateway.oip.windows import any_window, loaded, places, stored
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
    """

    route: str
    version: str
    tensors: Tensors
    wanted: tuple[str, ...]
    parameters: Parameters
    protocol: Protocol
    deadline: Deadline
    key: str | None = None
    caller: Caller = field(default_factory=Caller)
    classes: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, SharedMemoryWindow] = field(default_factory=dict)


async def infer(service: Service, asked: Inference, memory: SharedMemory) -> tuple[Answer, Rendered]:
    """Answer *asked*, in the protocol's terms; outputs that went to shared memory are windows of it.

    Raises:
        PointsmanError: with the code to send.
    """
    _check_outputs(service, asked)
    if asked.windows or any_window(asked.tensors):
        return await _infer_shared(service, asked, memory)
    return await _decided(service, asked)


async def _decided(service: Service, asked: Inference) -> tuple[Answer, Rendered]:
    """Answer *asked*, whose tensors are all in the message."""
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
        )
    )
    return answer, await _rendered(service, asked, answer)


async def _infer_shared(service: Service, asked: Inference, memory: SharedMemory) -> tuple[Answer, Rendered]:
    """Answer *asked*, of which a tensor lies in shared memory: as if it had come, and could go, in the message."""
    _check_inputs(service, asked)
    tenant = asked.caller.tenant
    found = places(memory, tenant, asked.windows)
    tensors = await loaded(memory, tenant, asked.tensors)
    answer, rendered = await _decided(service, replace(asked, tensors=tensors, windows={}))
    return answer, replace(rendered, outputs=await stored(found, rendered.outputs))


async def _rendered(service: Service, asked: Inference, answer: Answer) -> Rendered:
    if not asked.classes:
        return await told(answer, render, answer, asked.wanted)
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
    if not asked.wanted or asked.route == AUTO:  # whose outputs are those of the route it comes to
        return
    known = {spec.name: spec.datatype for spec in service.metadata(asked.route, asked.version).outputs}
    for name in asked.wanted:
        if name not in known:
            raise unknown_output(name, tuple(known))
        if name in asked.classes:
            check_classes(name, known[name])


async def _fingerprint(asked: Inference) -> bytes:
    routed_by = {**asked.parameters.own, "content_type": asked.parameters.content_type}
    parts = (asked.route, asked.version, routed_by, asked.tensors)
    if sum(tensor.nbytes for tensor in asked.tensors.values()) <= _INLINE_BYTES:
        return of_tensors(*parts)
    return await asyncio.to_thread(of_tensors, *parts)
