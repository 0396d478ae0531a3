"""`inference.GRPCInferenceService`: the Open Inference Protocol v2 over gRPC, on the stubs of tritonclient.

Those stubs, and not a copy of our own: two copies of one descriptor clash in the pool of a process that has both.
Replies are always raw, whatever the request was: clients read nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from gateway.grpc_edge.calls import Call, Method, Unary
from gateway.grpc_edge.contents import is_quick, parameters, set_parameter, tensors
from gateway.keys import parse_idempotency_key
from gateway.oip import raw
from gateway.oip.inference import Inference, infer
from gateway.oip.metadata import EXTENSIONS, SERVER_NAME, SERVER_VERSION
from gateway.oip.parameters import deadline_of, refuse_extensions, sort
from gateway.oip.render import Rendered, told
from gateway.oip.shapes import route_name, tensor_name, unique
from gateway.request import Protocol
from gateway.service import Service

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

HINT = "use ModelInfer, ModelMetadata, ModelReady, ServerMetadata, ServerReady or ServerLive"
"""What a caller of a method that is not served is told."""

# Any, throughout: tritonclient's messages are untyped.


def oip_methods(service: Service, clock: Callable[[], float] = time.monotonic) -> Mapping[str, Method]:
    """The methods that are served; ServerLive and ServerReady need no key."""
    oip = _Oip(service, clock)
    return {
        "ServerLive": Unary(service_pb2.ServerLiveRequest, oip.live, role=None),
        "ServerReady": Unary(service_pb2.ServerReadyRequest, oip.ready, role=None),
        "ModelReady": Unary(service_pb2.ModelReadyRequest, oip.model_ready),
        "ServerMetadata": Unary(service_pb2.ServerMetadataRequest, oip.server),
        "ModelMetadata": Unary(service_pb2.ModelMetadataRequest, oip.model),
        "ModelInfer": Unary(service_pb2.ModelInferRequest, oip.infer),
    }


@dataclass(frozen=True, slots=True)
class _Oip:
    """The methods over one service."""

    service: Service
    clock: Callable[[], float]

    async def live(self, call: Call, request: Any) -> Message:
        """The process answers."""
        return _message("ServerLiveResponse", live=True)

    async def ready(self, call: Call, request: Any) -> Message:
        """New requests are welcome."""
        return _message("ServerReadyResponse", ready=self.service.is_ready())

    async def model_ready(self, call: Call, request: Any) -> Message:
        """A route would be answered."""
        ready = self.service.is_model_ready(route_name(request.name), request.version)
        return _message("ModelReadyResponse", ready=ready)

    async def server(self, call: Call, request: Any) -> Message:
        """What this server is."""
        return _message("ServerMetadataResponse", name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    async def model(self, call: Call, request: Any) -> Message:
        """A route's inputs and outputs, batch axis included."""
        found = self.service.metadata(route_name(request.name), request.version)
        reply: Any = _message(
            "ModelMetadataResponse", name=found.name, versions=found.versions, platform=found.platform
        )
        for specs, described in ((found.inputs, reply.inputs), (found.outputs, reply.outputs)):
            for spec in specs:
                described.add(name=spec.name, datatype=spec.datatype.value, shape=[-1, *spec.shape])
        return _as_message(reply)

    async def infer(self, call: Call, request: Any) -> Message:
        """Answer an inference request."""
        sorted_parameters = sort(parameters(request.parameters))
        inputs = tensors(request) if is_quick(request, call.size_bytes) else await asyncio.to_thread(tensors, request)
        answer, rendered = await infer(
            self.service,
            Inference(
                route=route_name(request.model_name),
                version=request.model_version,
                tensors=inputs,
                wanted=_wanted(request),
                parameters=sorted_parameters,
                protocol=Protocol.OIP_GRPC,
                deadline=min(call.deadline, deadline_of(self.clock(), sorted_parameters.timeout_s)),
                key=parse_idempotency_key(call.metadata.get("idempotency-key")),
                caller=call.caller,
            ),
        )
        return await told(answer, _reply, request, answer.route, rendered)


def _reply(request: Any, route: str, rendered: Rendered) -> Message:
    reply: Any = _message("ModelInferResponse", model_name=route, model_version=request.model_version, id=request.id)
    for name, value in rendered.parameters.items():
        set_parameter(reply.parameters[name], value)
    for name, tensor in rendered.outputs.items():
        reply.outputs.add(name=name, datatype=tensor.datatype.value, shape=tensor.shape)
        reply.raw_output_contents.append(bytes(raw.encode(tensor)))
    return _as_message(reply)


def _wanted(request: Any) -> tuple[str, ...]:
    names = tuple(tensor_name(output.name, "output") for output in request.outputs)
    unique(names, "output")
    for output in request.outputs:
        refuse_extensions(parameters(output.parameters), output.name)
    return names


def _message(kind: str, **fields: Any) -> Message:
    return _as_message(getattr(service_pb2, kind)(**fields))


def _as_message(message: Any) -> Message:
    assert isinstance(message, Message)
    return message
