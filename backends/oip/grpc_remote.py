"""A server over gRPC, with tritonclient's messages and a channel of grpc.aio.

tritonclient's own aio client was looked at and left: it makes an `InferInput` for each tensor, checks and copies what
is checked here already, has no way to see the reply's bytes, and hides the status of errors that it makes anew.

**The channel** reconnects by itself. It fails at once while it cannot (`wait_for_ready` is off), so that another
replica gets the call. A peer that is silent without closing (a blackhole, a stopped process) is not noticed by TCP for
minutes: after `_SILENT` calls in a row that ended without a word, the channel is closed and made anew.

**Cancellation** goes over the wire, and so does the deadline, but not to a Triton before 2.58 (25.05): there either of
them can end the whole server with a segmentation fault, when it meets the answer on its way (server issues 7368 and
8034; measured with 2.51: 2,000 to 8,000 cancelled calls are enough, or 800 deadlines of a millisecond). Such a server
is left to finish the call, and its answer is thrown away; its own `timeout` still ends requests that only wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2

from backends.contract import NO_DEADLINE, TRACE, Deadline, SharedMemoryWindow, Tensor
from backends.errors import InvalidInput, NotFound, PointsmanError
from backends.oip import raw
from backends.oip.answers import ANSWER_ID, claim_of, filled, is_expired, is_forgotten, is_full, is_unsure, spec_of
from backends.oip.contents import set_parameter, typed
from backends.oip.remote import Blame, Indexed, InferCall, InferReply, ServedModel, Server

_SERVICE = "/inference.GRPCInferenceService/"
_SHARED = "shared_memory_region"
_SILENT = 3
_SILENT_S = 0.25
_LEFT_S = 5.0
_TRITON_THAT_ENDS_CALLS = (2, 58)

# Any, throughout: tritonclient's messages and grpc's calls are untyped.


class GrpcRemote:
    """One server over gRPC; see `Remote`."""

    def __init__(self, model: str, connect: Callable[[], grpc.aio.Channel], token: str | None = None) -> None:
        """Args:
        model: for messages: what the model is called here.
        connect: makes a channel to the server.
        token: sent as a bearer token with every call.
        """
        self._blame = Blame(model)
        self._connect = connect
        self._metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {token}"),) if token else ()
        self._silent = 0
        self._ends_calls = True
        self._silent_channels: list[grpc.aio.Channel] = []
        self._left: set[asyncio.Future[Any]] = set()
        self._open()

    def __repr__(self) -> str:
        return f"<GrpcRemote, {self._silent} calls without a word>"

    def _open(self) -> None:
        self._channel = self._connect()
        self._methods: dict[str, Any] = {}

    async def about(self, deadline: Deadline) -> Server:
        """What the server says of itself; from here on, inferences are left to end where ending them would end it."""
        reply = await self._ask("ServerMetadata", service_pb2.ServerMetadataRequest(), deadline)
        self._ends_calls = _ends_calls(reply.name, reply.version)
        return Server(reply.name, reply.version, frozenset(reply.extensions))

    async def models(self, deadline: Deadline) -> tuple[str, ...]:
        """The models that the server is ready to serve."""
        request = service_pb2.RepositoryIndexRequest(ready=True)
        reply = await self._ask("RepositoryIndex", request, deadline, asked_for="index")
        return tuple(sorted({model.name for model in reply.models}))

    async def model(self, name: str, version: str, deadline: Deadline) -> ServedModel:
        """What the server says of a model; see `Remote.model`."""
        request = service_pb2.ModelMetadataRequest(name=name, version=version)
        reply = await self._ask("ModelMetadata", request, deadline, asked_for=f"model {name!r}")
        try:
            return ServedModel(
                reply.name,
                tuple(reply.versions),
                reply.platform,
                tuple(spec_of(tensor.name, tensor.datatype, tensor.shape) for tensor in reply.inputs),
                tuple(spec_of(tensor.name, tensor.datatype, tensor.shape) for tensor in reply.outputs),
            )
        except ValueError as error:
            raise self._blame.nonsense(f"metadata of {name!r}: {error!r}") from error

    async def config(self, name: str, version: str, deadline: Deadline) -> Mapping[str, Any]:
        """Triton's configuration of a model, with its fields' own names."""
        request = service_pb2.ModelConfigRequest(name=name, version=version)
        reply = await self._ask("ModelConfig", request, deadline, asked_for=f"configuration of model {name!r}")
        found: Mapping[str, Any] = MessageToDict(reply.config, preserving_proto_field_name=True)
        return found

    async def is_ready(self, name: str, version: str, deadline: Deadline) -> bool:
        """Whether the server would answer for this model now."""
        request = service_pb2.ModelReadyRequest(name=name, version=version)
        return bool((await self._ask("ModelReady", request, deadline)).ready)

    async def infer(self, call: InferCall, deadline: Deadline) -> InferReply:
        """Have *call* answered."""
        request = _written(call)
        reply = await (self._ask if self._ends_calls else self._ask_to_the_end)("ModelInfer", request, deadline)
        try:
            return _read(reply, call)
        except (InvalidInput, ValueError, TypeError) as error:
            raise self._blame.nonsense(error) from error

    async def register(self, region: str, key: str, byte_size: int, deadline: Deadline, offset: int = 0) -> None:
        """Tell the server of a region of system shared memory."""
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region, key=key, offset=offset, byte_size=byte_size
        )
        await self._ask("SystemSharedMemoryRegister", request, deadline)

    async def unregister(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=region)
        await self._ask("SystemSharedMemoryUnregister", request, deadline)

    async def register_cuda(self, region: str, handle: bytes, device: int, byte_size: int, deadline: Deadline) -> None:
        """Tell the server of a region of a CUDA device's memory."""
        request = service_pb2.CudaSharedMemoryRegisterRequest(
            name=region, raw_handle=handle, device_id=device, byte_size=byte_size
        )
        await self._ask("CudaSharedMemoryRegister", request, deadline, asked_for="CUDA shared memory")

    async def unregister_cuda(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        request = service_pb2.CudaSharedMemoryUnregisterRequest(name=region)
        await self._ask("CudaSharedMemoryUnregister", request, deadline)

    async def index(self, deadline: Deadline) -> tuple[Indexed, ...]:
        """Everything in the server's repository."""
        reply = await self._ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(), deadline, asked_for="index")
        return tuple(Indexed(model.name, model.version, model.state, model.reason) for model in reply.models)

    async def load(self, name: str, deadline: Deadline) -> None:
        """Have the server load a model."""
        await self._ask("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=name), deadline)

    async def unload(self, name: str, deadline: Deadline) -> None:
        """Have the server unload it."""
        await self._ask("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=name), deadline)

    async def memory_bytes(self, name: str, deadline: Deadline) -> int | None:
        """What the model takes, where the server says so."""
        reply = await self._ask("ModelStatistics", service_pb2.ModelStatisticsRequest(name=name), deadline)
        return sum(used.byte_size for model in reply.model_stats for used in model.memory_usage) or None

    async def aclose(self) -> None:
        """Close the channel; calls in flight end at once, but those that must not."""
        if self._left:
            await asyncio.wait(tuple(self._left), timeout=_LEFT_S)
        for channel in (*self._silent_channels, self._channel):
            await channel.close(None)

    async def _ask(self, method: str, request: Any, deadline: Deadline, *, asked_for: str = "") -> Any:
        began = time.monotonic()
        left_s = deadline - began
        if left_s <= 0:
            raise self._blame.late("nothing was sent")
        await self._reconnect_if_silent()
        timeout_s = left_s if left_s < _FOREVER_S else None
        try:
            reply = await self._method(method)(request, timeout=timeout_s, metadata=self._metadata_of(method))
        except grpc.aio.AioRpcError as error:
            self._silent = self._silent + 1 if _is_silent(error) else 0
            refusal = self._refusal(error, asked_for)
            raise refusal from refusal.__cause__ or error  # what was said, without a page of the call's state
        except grpc.aio.UsageError as error:  # the channel was closed meanwhile
            raise self._blame.unreachable(error) from error
        except asyncio.CancelledError:
            self._note_silence(began)
            raise
        self._silent = 0
        if reply is None:  # what grpc.aio makes of a message that cannot be read
            raise self._blame.nonsense("the answer is no message of the protocol")
        return reply

    async def _ask_to_the_end(self, method: str, request: Any, deadline: Deadline) -> Any:
        """Like `_ask`, but the server hears nothing of it when nobody waits for its answer any more."""
        began = time.monotonic()
        left_s = deadline - began
        if left_s <= 0:
            raise self._blame.late("nothing was sent")
        call = asyncio.ensure_future(self._ask(method, request, NO_DEADLINE))
        self._left.add(call)
        call.add_done_callback(self._forget)
        done: set[asyncio.Future[Any]] = set()
        try:
            done, _ = await asyncio.wait((call,), timeout=left_s if left_s < _FOREVER_S else None)
        finally:
            if not done:
                self._note_silence(began)
        if not done:
            raise self._blame.late("nothing in time")
        return call.result()

    def _forget(self, call: asyncio.Future[Any]) -> None:
        self._left.discard(call)
        if not call.cancelled():
            call.exception()  # nobody may be there to hear it

    def _metadata_of(self, method: str) -> tuple[tuple[str, str], ...]:
        trace = TRACE.get() if method == "ModelInfer" else None
        return self._metadata if trace is None else (*self._metadata, *trace.headers())

    def _method(self, name: str) -> Any:
        found = self._methods.get(name)
        if found is None:
            reply = getattr(service_pb2, f"{name}Response")
            found = self._channel.unary_unary(
                _SERVICE + name,
                request_serializer=_REQUESTS[name].SerializeToString,
                response_deserializer=reply.FromString,
            )
            self._methods[name] = found
        return found

    def _note_silence(self, began: float) -> None:
        """A call was given up that began then; a caller that leaves soon has not waited for a word."""
        if time.monotonic() - began >= _SILENT_S:
            self._silent += 1

    async def _reconnect_if_silent(self) -> None:
        """Connect anew after many calls in a row that ended without a word from the server."""
        if self._silent >= _SILENT:
            self._silent = 0
            self._silent_channels.append(self._channel)
            self._open()
        while self._silent_channels and (not self._left or len(self._silent_channels) > _SILENT):
            await self._silent_channels.pop(0).close(None)  # which ends its calls, so those that must not end go first

    def _refusal(self, error: grpc.aio.AioRpcError, asked_for: str) -> PointsmanError:
        """The error that a status is."""
        said = error.details() or ""
        why = f"{error.code().name}: {said}"
        match error.code():
            case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.UNIMPLEMENTED if asked_for:
                return NotFound(f"the server has no {asked_for}: {said}")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return self._blame.late(why)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.ABORTED if is_forgotten(said):
                return self._blame.forgot(why)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
                return self._blame.refused(why)
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return self._blame.unauthorized(why)
            case grpc.StatusCode.UNAVAILABLE if _has_answer_id(error) or is_unsure(said):
                return self._blame.undecided(why)
            case grpc.StatusCode.UNAVAILABLE if is_full(said):
                return self._blame.busy(why)
            case grpc.StatusCode.UNAVAILABLE if is_expired(said):
                return self._blame.late(why)
            case grpc.StatusCode.RESOURCE_EXHAUSTED if _is_too_large(said):
                # Either the answer is larger than this side allows, or the call than its server: half may fit there.
                return self._blame.oversized(why) if "CLIENT:" in said else self._blame.failed(why)
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return self._blame.busy(why)
            case grpc.StatusCode.INTERNAL if _is_of_the_transport(said):
                return self._blame.hung_up(why)
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN | grpc.StatusCode.ABORTED:
                return self._blame.failed(why)
            case grpc.StatusCode.CANCELLED:
                return self._blame.hung_up(why)
        return self._blame.unwell(why)


_FOREVER_S = 365 * 86_400.0
_REQUESTS = {
    name: getattr(service_pb2, f"{name}Request")
    for name in (
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelReady",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ModelInfer",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    )
}


def _is_silent(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not error.initial_metadata()


def _ends_calls(server: str, version: str) -> bool:
    """Whether a server survives it when its calls are cancelled, or their deadlines pass."""
    if server != "triton":
        return True
    try:
        return tuple(map(int, version.split(".")[:2])) >= _TRITON_THAT_ENDS_CALLS
    except ValueError:
        return False


def _has_answer_id(error: grpc.aio.AioRpcError) -> bool:
    return any(key == ANSWER_ID for key, _ in error.trailing_metadata() or ())


def _is_too_large(said: str) -> bool:
    """Whether grpc, in C++, Go or Java, says that a message is beyond a limit."""
    return "larger than max" in said or "exceeds maximum size" in said


def _is_of_the_transport(said: str) -> bool:
    """Whether grpc itself says INTERNAL, for streams that are reset and broken messages, and not the model's server."""
    return said.startswith(("Received RST_STREAM", "RST_STREAM", "Exception deserializing", "Error parsing", "Stream "))


def channel(target: str, *, credentials: grpc.ChannelCredentials | None, limit_bytes: int) -> grpc.aio.Channel:
    """A channel to *target* (host:port) that nothing else shares.

    Args:
        credentials: for TLS; None: without.
        limit_bytes: most that an answer may have.
    """
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", limit_bytes),
        ("grpc.use_local_subchannel_pool", 1),  # or channels to one address share a connection, and its silence
        ("grpc.enable_retries", 0),  # retries are the replicas'
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 1000),  # also how long a connection may take
        ("grpc.max_reconnect_backoff_ms", 250),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def _written(call: InferCall) -> Any:
    request = service_pb2.ModelInferRequest(model_name=call.model, model_version=call.version, id=call.id)
    contents = request.raw_input_contents
    for name, tensor in call.inputs.items():
        stated = request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if isinstance(tensor.data, SharedMemoryWindow):
            _put_place(stated, tensor.data)
        else:
            contents.append(bytes(raw.encode(tensor)))
    for name, value in call.parameters.items():
        set_parameter(request.parameters[name], value)
    for name, window in call.outputs.items():
        wanted = request.outputs.add(name=name)
        if window is not None:
            _put_place(wanted, window)
    return request


def _put_place(stated: Any, window: SharedMemoryWindow) -> None:
    stated.parameters[_SHARED].string_param = window.region
    stated.parameters["shared_memory_offset"].int64_param = window.offset
    stated.parameters["shared_memory_byte_size"].int64_param = window.byte_size


def _read(reply: Any, call: InferCall) -> InferReply:
    """The answer to *call*.

    Raises:
        InvalidInput, ValueError, TypeError: it is none.
    """
    outputs: dict[str, Tensor] = {}
    contents = list(reply.raw_output_contents)
    if contents and len(contents) != len(reply.outputs):
        raise ValueError(f"there are {len(contents)} raw contents for {len(reply.outputs)} outputs")
    for i, stated in enumerate(reply.outputs):
        claim = claim_of(stated.name, stated.datatype, stated.shape)
        if claim.name in outputs:
            raise ValueError(f"output {claim.name!r} is there twice")
        if place := call.outputs.get(claim.name):
            outputs[claim.name] = Tensor(claim.datatype, claim.shape, filled(claim, place))
        elif contents:
            outputs[claim.name] = raw.decode(claim, contents[i])
        else:
            outputs[claim.name] = typed(claim, stated.contents)
    return InferReply(reply.id, reply.model_version, outputs)
