"""`inference.GRPCInferenceService`: the Open Inference Protocol v2 over gRPC, on the stubs of tritonclient.

Those stubs, and not a copy of our own: two copies of one descriptor clash in the pool of a process that has both.
Replies are always raw, whatever the request was: clients read nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from backends.contract import SharedMemoryWindow, record
from backends.errors import InvalidInput, NotFound
from backends.oip import raw
from backends.oip.contents import set_parameter
from backends.trace_context import trace_in
from gateway.answer import Answer
from gateway.grpc_edge.calls import Call, Conversation, Method, Unary
from gateway.grpc_edge.contents import is_quick, parameters, tensors
from gateway.keys import SUBJECT_HEADER, parse_idempotency_key, parse_subject
from gateway.oip.classification import class_count
from gateway.oip.inference import Inference, infer
from gateway.oip.metadata import SERVER_NAME, SERVER_VERSION, extensions, model_config
from gateway.oip.parameters import deadline_of, sort
from gateway.oip.render import Rendered, is_written_quickly
from gateway.oip.repository import index, refuse_change, refuse_overrides, refuse_repository, with_dependents
from gateway.oip.shapes import route_name, tensor_name, unique
from gateway.oip.statistics import model_stats
from gateway.oip.windows import no_cuda_region, output_window, refuse_cuda
from gateway.request import Protocol, Role
from gateway.service import ROUTE_VERSION, DataPlane, ModelControl
from gateway.shared_memory import SharedMemory
from gateway.status import Refusal

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

HINT = "ServerMetadata lists the extensions that are"
"""What a caller of a method that is not served is told."""

_SEQUENCE_ID = "sequence_id"
_FINAL = "triton_final_response"
"""The parameter of a stream's reply that says that no other follows for its request."""

# Any, throughout: tritonclient's messages are untyped.


def oip_methods(
    service: DataPlane,
    clock: Callable[[], float] = time.monotonic,
    memory: SharedMemory | None = None,
    control: ModelControl | None = None,
) -> Mapping[str, Method]:
    """The methods that are served; ServerLive and ServerReady need no key.

    Without *memory*, none is shared; without *control*, no models are loaded.
    """
    memory = memory or SharedMemory()
    oip = _Oip(service, clock, memory, control)
    changing = Role.CALLER if control is None else Role.OPERATOR
    return {
        **_shared_memory_methods(memory),
        "ServerLive": Unary(service_pb2.ServerLiveRequest, oip.live, role=None),
        "ServerReady": Unary(service_pb2.ServerReadyRequest, oip.ready, role=None),
        "ModelReady": Unary(service_pb2.ModelReadyRequest, oip.model_ready),
        "ServerMetadata": Unary(service_pb2.ServerMetadataRequest, oip.server),
        "ModelMetadata": Unary(service_pb2.ModelMetadataRequest, oip.model),
        "ModelConfig": Unary(service_pb2.ModelConfigRequest, oip.config),
        "ModelStatistics": Unary(service_pb2.ModelStatisticsRequest, oip.statistics),
        "RepositoryIndex": Unary(service_pb2.RepositoryIndexRequest, oip.index),
        "RepositoryModelLoad": Unary(service_pb2.RepositoryModelLoadRequest, oip.load, changing),
        "RepositoryModelUnload": Unary(service_pb2.RepositoryModelUnloadRequest, oip.unload, changing),
        "ModelInfer": Unary(service_pb2.ModelInferRequest, oip.infer),
        "ModelStreamInfer": Conversation(
            service_pb2.ModelInferRequest, oip.stream_infer, _stream_refused, lane=oip.lane
        ),
    }


@dataclass(frozen=True, slots=True)
class _Oip:
    """The methods over one service."""

    service: DataPlane
    clock: Callable[[], float]
    memory: SharedMemory
    control: ModelControl | None

    async def live(self, call: Call, request: Any) -> Message:
        """The process answers."""
        return _message("ServerLiveResponse", live=True)

    async def ready(self, call: Call, request: Any) -> Message:
        """New requests are welcome."""
        return _message("ServerReadyResponse", ready=self.service.is_ready())

    async def model_ready(self, call: Call, request: Any) -> Message:
        """A route would be answered; of what does not exist the answer is no, as clients wait for what is to come."""
        try:
            ready = self.service.is_model_ready(route_name(request.name), request.version)
        except NotFound:
            ready = False
        return _message("ModelReadyResponse", ready=ready)

    async def server(self, call: Call, request: Any) -> Message:
        """What this server is."""
        listed = extensions(self.memory, model_control=self.control is not None)
        return _message("ServerMetadataResponse", name=SERVER_NAME, version=SERVER_VERSION, extensions=listed)

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

    async def config(self, call: Call, request: Any) -> Message:
        """A route as Triton configures models."""
        config = model_config(self.service.metadata(route_name(request.name), request.version))
        return _message("ModelConfigResponse", config=config)

    async def statistics(self, call: Call, request: Any) -> Message:
        """What was answered so far, for a route or for all."""
        name = route_name(request.name) if request.name else ""
        return _message("ModelStatisticsResponse", **model_stats(self.service.statistics(name, request.version)))

    async def index(self, call: Call, request: Any) -> Message:
        """Every route, and whether it is ready."""
        refuse_repository(request.repository_name)
        return _message("RepositoryIndexResponse", models=index(self.service, ready_only=request.ready))

    async def load(self, call: Call, request: Any) -> Message:
        """Load a model anew."""
        if self.control is None:
            refuse_change("load")
        refuse_repository(request.repository_name)
        refuse_overrides(request.parameters)
        await self.control.load(route_name(request.model_name))
        return _message("RepositoryModelLoadResponse")

    async def unload(self, call: Call, request: Any) -> Message:
        """Unload a model."""
        if self.control is None:
            refuse_change("unload")
        refuse_repository(request.repository_name)
        stated = {name: _stated(parameter) for name, parameter in request.parameters.items()}
        await self.control.unload(route_name(request.model_name), dependents=with_dependents(stated))
        return _message("RepositoryModelUnloadResponse")

    async def infer(self, call: Call, request: Any) -> Message:
        """Answer an inference request."""
        reply = _message("ModelInferResponse")
        await self._infer(call, request, reply)
        return reply

    async def stream_infer(self, call: Call, request: Any) -> Message:
        """Answer an inference request of a stream."""
        if "idempotency-key" in call.metadata:
            raise InvalidInput("an idempotency key names one request, and a stream has many; send it with ModelInfer")
        reply: Any = _message("ModelStreamInferResponse")
        await self._infer(call, request, reply.infer_response)
        set_parameter(reply.infer_response.parameters[_FINAL], True)
        return _as_message(reply)

    def lane(self, request: Any) -> Hashable:
        """The sequence of which a request of a stream is a step; None where its model keeps no state."""
        if _SEQUENCE_ID not in request.parameters:
            return None
        try:
            if self.service.metadata(route_name(request.model_name)).sequence_idle_s is None:
                return None
        except (InvalidInput, NotFound):
            return None  # which is told where it is answered
        return request.model_name, _stated(request.parameters[_SEQUENCE_ID])

    async def _infer(self, call: Call, request: Any, reply: Any) -> None:
        """Answer an inference request in *reply*, a ModelInferResponse."""
        sorted_parameters = sort(parameters(request.parameters))
        inputs = tensors(request) if is_quick(request, call.size_bytes) else await asyncio.to_thread(tensors, request)
        wanted = _wanted(request)
        answer, rendered = await infer(
            self.service,
            Inference(
                route=route_name(request.model_name),
                version=request.model_version,
                tensors=inputs,
                wanted=tuple(wanted),
                parameters=sorted_parameters,
                protocol=Protocol.OIP_GRPC,
                deadline=min(call.deadline, deadline_of(self.clock(), sorted_parameters.timeout_s)),
                key=parse_idempotency_key(call.metadata.get("idempotency-key")),
                id=request.id,
                caller=call.caller,
                classes={name: want.classes for name, want in wanted.items() if want.classes},
                windows={name: want.window for name, want in wanted.items() if want.window is not None},
                trace=trace_in(call.metadata),
                subject=parse_subject(call.metadata.get(SUBJECT_HEADER)),
            ),
            self.memory,
        )
        filling = (reply, request, answer, rendered)
        if is_written_quickly(answer, rendered, copied=True):
            _fill(*filling)
        else:
            await asyncio.to_thread(_fill, *filling)


def _fill(reply: Any, request: Any, answer: Answer, rendered: Rendered) -> None:
    reply.model_name, reply.model_version, reply.id = answer.route, answer.version or ROUTE_VERSION, request.id
    for name, value in rendered.parameters.items():
        set_parameter(reply.parameters[name], value)
    for name, tensor in rendered.outputs.items():
        reply.outputs.add(name=name, datatype=tensor.datatype.value, shape=tensor.shape)
        in_memory = isinstance(tensor.data, SharedMemoryWindow)
        reply.raw_output_contents.append(b"" if in_memory else bytes(raw.encode(tensor)))


def _stream_refused(request: Any, refusal: Refusal) -> Message:
    """The reply that refuses *request* and leaves the stream open."""
    reply: Any = _message("ModelStreamInferResponse", error_message=refusal.message)
    if request is not None:
        reply.infer_response.id = request.id
    return _as_message(reply)


@record
class _Wanted:
    """How an output is wanted.

    Attributes:
        classes: as how many of its greatest elements; 0: as it is.
        window: where in shared memory; None: in the reply.
    """

    classes: int
    window: SharedMemoryWindow | None


def _wanted(request: Any) -> dict[str, _Wanted]:
    """The outputs asked for, in order."""
    if not request.outputs:
        return {}
    unique([tensor_name(output.name, "output") for output in request.outputs], "output")
    found: dict[str, _Wanted] = {}
    for output in request.outputs:
        stated = parameters(output.parameters)
        classes = class_count(stated.get("classification"), output.name)
        found[output.name] = _Wanted(classes, output_window(stated, output.name, classes))
    return found


def _stated(parameter: Any) -> Any:
    """The value of a ModelRepositoryParameter; None where it has none."""
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _message(kind: str, **fields: Any) -> Message:
    return _as_message(getattr(service_pb2, kind)(**fields))


def _as_message(message: Any) -> Message:
    assert isinstance(message, Message)
    return message


def _shared_memory_methods(memory: SharedMemory) -> Mapping[str, Method]:
    """The methods of regions. As over HTTP, there are no CUDA regions, and unregistering none is done."""

    async def status(call: Call, request: Any) -> Message:
        found = memory.status(call.caller.tenant, request.name)
        return _message("SystemSharedMemoryStatusResponse", regions={one.name: asdict(one) for one in found})

    async def register(call: Call, request: Any) -> Message:
        memory.register(call.caller.tenant, request.name, request.key, request.offset, request.byte_size)
        return _message("SystemSharedMemoryRegisterResponse")

    async def unregister(call: Call, request: Any) -> Message:
        memory.unregister(call.caller.tenant, request.name)
        return _message("SystemSharedMemoryUnregisterResponse")

    async def cuda_status(call: Call, request: Any) -> Message:
        if request.name:
            raise no_cuda_region(request.name)
        return _message("CudaSharedMemoryStatusResponse")

    async def cuda_register(call: Call, request: Any) -> Message:
        refuse_cuda()

    async def cuda_unregister(call: Call, request: Any) -> Message:
        return _message("CudaSharedMemoryUnregisterResponse")

    return {
        "SystemSharedMemoryStatus": Unary(service_pb2.SystemSharedMemoryStatusRequest, status),
        "SystemSharedMemoryRegister": Unary(service_pb2.SystemSharedMemoryRegisterRequest, register),
        "SystemSharedMemoryUnregister": Unary(service_pb2.SystemSharedMemoryUnregisterRequest, unregister),
        "CudaSharedMemoryStatus": Unary(service_pb2.CudaSharedMemoryStatusRequest, cuda_status),
        "CudaSharedMemoryRegister": Unary(service_pb2.CudaSharedMemoryRegisterRequest, cuda_register),
        "CudaSharedMemoryUnregister": Unary(service_pb2.CudaSharedMemoryUnregisterRequest, cuda_unregister),
    }
