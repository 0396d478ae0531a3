"""`pointsman.v1.Gateway`: decisions in two phases over gRPC, as `/v1` has them over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from backends.contract import ParameterValue, Tensor
from backends.errors import InvalidInput, UnsupportedMedia
from backends.oip import raw
from backends.quoting import shorten
from backends.trace_context import trace_in
from gateway.answer import Answer, ItemAnswer, Status
from gateway.grpc_edge.calls import INLINE_BYTES, Call, Method, Streaming, Unary
from gateway.keys import parse_answer_id, parse_idempotency_key, parse_label
from gateway.oip import fingerprint
from gateway.oip.parameters import MAX_PARAMETERS, media_type
from gateway.oip.render import subject_in, take_on_defer, told
from gateway.oip.shapes import claim, route_name, unique
from gateway.request import Payload, Protocol, RawBody, Request, TensorInputs
from gateway.service import Service
from pointsman_pb import gateway_pb2 as pb
from router.contract import route_id

SERVICE = pb.DESCRIPTOR.services_by_name["Gateway"]

MAX_WAIT_S = 3600.0
"""How long a stream stays open for a person where the call has no deadline."""

_POLL_S = 60.0  # a stream's look at an answer that a person still has to give
_STATUSES = {
    Status.FINAL: pb.STATUS_FINAL,
    Status.PROVISIONAL: pb.STATUS_PROVISIONAL,
    Status.PENDING: pb.STATUS_PENDING,
    Status.CANCELLED: pb.STATUS_CANCELLED,
    Status.EXPIRED: pb.STATUS_EXPIRED,
}


def gateway_methods(service: Service, clock: Callable[[], float] = time.monotonic) -> Mapping[str, Method]:
    """Every method of the service."""
    gateway = _Gateway(service, clock)
    return {
        "Decide": Streaming(pb.DecideRequest, gateway.decide),
        "GetAnswer": Unary(pb.GetAnswerRequest, gateway.get_answer),
        "Cancel": Unary(pb.CancelRequest, gateway.cancel),
        "SendFeedback": Unary(pb.SendFeedbackRequest, gateway.send_feedback),
    }


@dataclass(frozen=True, slots=True)
class _Gateway:
    """The methods over one service."""

    service: Service
    clock: Callable[[], float]

    async def decide(self, call: Call, request: pb.DecideRequest) -> AsyncIterator[pb.Answer]:
        """What is known at once, and, where the caller waits, every change until nothing of it is open.

        Where that is not in time, the stream ends without it, and so it does when this gateway drains: the caller has
        what is known, and the id under which the answer can be asked for. Of changes that come faster than the caller
        reads, it gets the newest.
        """
        inline = call.size_bytes <= INLINE_BYTES
        asked = _request(call, request) if inline else await asyncio.to_thread(_request, call, request)
        answer = await self.service.decide(asked)
        yield await told(answer, answer_message, answer)
        if not request.wait:
            return
        until = min(call.deadline, self.clock() + MAX_WAIT_S)
        while answer.open_items and not self.service.is_draining and (left_s := until - self.clock()) > 0:
            found = await self.service.answer(call.caller, answer.id, min(left_s, _POLL_S), answer.revision)
            if found.revision != answer.revision:
                answer = found
                yield await told(answer, answer_message, answer)

    async def get_answer(self, call: Call, request: pb.GetAnswerRequest) -> pb.Answer:
        """An answer's current state; waits, and at most so long that the reply still makes the call's deadline."""
        left_s = max(0.0, 0.9 * (call.deadline - self.clock()))
        wait_s = min(request.wait_ms / 1000, left_s, _POLL_S)
        answer = await self.service.answer(call.caller, parse_answer_id(request.answer_id), wait_s)
        return await told(answer, answer_message, answer)

    async def cancel(self, call: Call, request: pb.CancelRequest) -> pb.Answer:
        """Ask people no more; the answer as it is then."""
        answer = await self.service.cancel(call.caller, parse_answer_id(request.answer_id))
        return await told(answer, answer_message, answer)

    async def send_feedback(self, call: Call, request: pb.SendFeedbackRequest) -> pb.SendFeedbackResponse:
        """Keep what an item's label should have been."""
        label = parse_label(request.label)
        await self.service.feedback(call.caller, parse_answer_id(request.answer_id), request.item, label)
        return pb.SendFeedbackResponse()


def _request(call: Call, request: pb.DecideRequest) -> Request:
    route = route_name(request.route)
    if len(request.parameters) > MAX_PARAMETERS:
        raise InvalidInput(f"there are {len(request.parameters)} parameters; at most {MAX_PARAMETERS} are allowed")
    given = {name: _parameter(name, found) for name, found in request.parameters.items()}
    _, own = take_on_defer(given)
    key = parse_idempotency_key(request.idempotency_key or call.metadata.get("idempotency-key"))
    payload = _payload(request)
    return Request(
        route=route,
        payload=payload,
        protocol=Protocol.V1_GRPC,
        caller=call.caller,
        parameters=own,
        deadline=call.deadline,
        idempotency_key=key,
        fingerprint=b"" if key is None else _fingerprint(route, request.version, payload, own),
        version=request.version,
        trace=trace_in(call.metadata),
        subject=subject_in(given, call.metadata),
    )


def _parameter(name: str, found: pb.Parameter) -> ParameterValue:
    match found.WhichOneof("value"):
        case "bool_value":
            return found.bool_value
        case "int_value":
            return found.int_value
        case "double_value":
            return found.double_value
        case "string_value":
            return found.string_value
        case None:
            raise InvalidInput(f"parameter {shorten(name)} has no value")


def _payload(request: pb.DecideRequest) -> Payload:
    match request.WhichOneof("input"):
        case "text":
            return RawBody(request.text.encode(), "text/plain")
        case "file":
            return _file(request.file)
        case "tensors":
            return TensorInputs(_tensors(request.tensors))
        case None:
            raise InvalidInput("the request has no input; set text, file or tensors")


def _file(file: pb.File) -> RawBody:
    content_type = media_type(file.content_type)
    if not content_type.startswith("image/") and content_type != "application/octet-stream":
        raise UnsupportedMedia(
            f"content_type {shorten(content_type)} is not read here; send image/* or application/octet-stream"
        )
    if not file.data:
        raise InvalidInput("the file is empty")
    return RawBody(file.data, content_type)


def _tensors(found: pb.Tensors) -> dict[str, Tensor]:
    if not found.tensors:
        raise InvalidInput("tensors is empty; a request needs at least one")
    claims = [claim(tensor.name, tensor.datatype, tensor.shape) for tensor in found.tensors]
    unique([stated.name for stated in claims], "input")
    return {stated.name: raw.decode(stated, tensor.data) for stated, tensor in zip(claims, found.tensors, strict=True)}


def _fingerprint(route: str, version: str, payload: Payload, own: Mapping[str, ParameterValue]) -> bytes:
    if isinstance(payload, TensorInputs):
        return fingerprint.of_tensors(route, version, own, payload.tensors)
    assert isinstance(payload, RawBody)
    return fingerprint.of_body(route_id(route, version), payload.content_type, payload.data, own)


def answer_message(answer: Answer) -> pb.Answer:
    """*answer* as `pointsman.v1` tells it."""
    return pb.Answer(
        answer_id=answer.id,
        status=_STATUSES[answer.status],
        route=answer.route,
        items=[_item(item) for item in answer.items],
        revision=answer.revision,
        max_error=answer.max_error,
        certified=answer.certified,
        version=answer.version or None,
        predicted_wait_s=answer.predicted_wait_s,
    )


def _item(item: ItemAnswer) -> pb.Item:
    return pb.Item(
        status=_STATUSES[item.status],
        stage=item.stage,
        label=item.label,
        confidence=item.confidence,
        decided_by=item.decided_by,
        reason=None if item.reason is None else str(item.reason),
        outputs=[
            pb.Tensor(name=name, datatype=tensor.datatype, shape=tensor.numpy().shape, data=bytes(raw.encode(tensor)))
            for name, tensor in (item.outputs or {}).items()
        ],
        remarks=item.remarks,
    )
