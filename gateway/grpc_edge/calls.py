"""How every gRPC call is served: admitted, read, answered, and refused in one way.

    metadata -> who asks, and whether they may -> message -> method -> reply
                                                              └ error -> status.TABLE -> abort

Messages are parsed here and not by grpc, which would report one that it cannot parse as an error of ours, with Python's
words for it. Errors leave by `context.abort` alone: a status that is set beside a returned message commits the call,
and clients then never retry it. `grpc-status-details-bin` carries google.rpc.ErrorInfo and, where a retry may help,
RetryInfo; no pushback metadata, which says the same to fewer clients. The exception is an answer that waits for a
person: it is UNAVAILABLE, which clients with a retry policy repeat, and each repetition would be one more task for that
person, so pushback tells them not to.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio

from backends.contract import NO_DEADLINE, Deadline
from backends.errors import InvalidInput
from gateway.grpc_edge.wire import check_structure
from gateway.request import Caller, Role
from gateway.security import Authenticator, require_role
from gateway.status import Refusal, refusal_of
from pointsman_pb import rich_error_pb2

ERROR_DOMAIN = "pointsman"
"""The domain of google.rpc.ErrorInfo; its reason is the upper-case `Code`."""

INLINE_BYTES = 64 * 1024
"""Messages up to this size are read where they arrive, in a millisecond or so; longer ones in a thread."""

DETAILS = "grpc-status-details-bin"
ANSWER_ID = "pointsman-answer-id"
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")

# Any: requests and replies are of the method's own message types.
_Context: TypeAlias = aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of its call beside the message.

    Attributes:
        metadata: by lower-case name, texts alone.
        deadline: the caller's.
        size_bytes: of the message as it came (protobuf's own `ByteSize` writes it once more to know).
    """

    caller: Caller
    metadata: Mapping[str, str]
    deadline: Deadline
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one reply.

    Attributes:
        request: the type of its message.
        answer: makes the reply; raises PointsmanError to refuse.
        role: what the caller must be allowed to do; None: anybody, unauthenticated.
    """

    request: type[Message]
    answer: Callable[[Call, Any], Awaitable[Message]]
    role: Role | None = Role.CALLER


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method with a stream of replies; fields as in `Unary`."""

    request: type[Message]
    answer: Callable[[Call, Any], AsyncIterator[Message]]
    role: Role | None = Role.CALLER


Method: TypeAlias = Unary | Streaming


@dataclass(frozen=True, slots=True)
class GrpcExchange:
    """A call that ended.

    Attributes:
        method: `package.Service/Method`, one that exists.
        code: what its caller was told; CANCELLED where the caller left, or its deadline passed, first.
    """

    method: str
    code: grpc.StatusCode
    duration_s: float


class GrpcObserver(Protocol):
    """Takes the exchanges; must not raise, and must be quick: it is called on the event loop."""

    def on_grpc(self, exchange: GrpcExchange) -> None:
        """A call ended."""
        ...


class CallServer:
    """Serves calls; single event loop."""

    def __init__(
        self, authenticator: Authenticator, observer: GrpcObserver, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._authenticator = authenticator
        self._observer = observer
        self._clock = clock

    def handlers(self, service: ServiceDescriptor, methods: Mapping[str, Method], hint: str) -> grpc.GenericRpcHandler:
        """Handlers of every method of *service*: those in *methods*, and a refusal with *hint* for all others."""
        found = {
            method.name: self._handler(f"{service.full_name}/{method.name}", methods.get(method.name), hint)
            if not method.client_streaming
            else grpc.stream_stream_rpc_method_handler(_unimplemented(method.name, hint))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, found)

    def _handler(self, name: str, method: Method | None, hint: str) -> grpc.RpcMethodHandler[Any, Any]:
        match method:
            case Unary():
                return grpc.unary_unary_rpc_method_handler(self._unary(name, method), response_serializer=_serialized)
            case Streaming():
                return grpc.unary_stream_rpc_method_handler(
                    self._streaming(name, method), response_serializer=_serialized
                )
            case None:
                return grpc.unary_unary_rpc_method_handler(_unimplemented(name.rpartition("/")[2], hint))

    def _unary(self, name: str, method: Unary) -> Callable[[bytes, _Context], Awaitable[Message]]:
        async def serve(data: bytes, context: _Context) -> Message:
            started, code = self._clock(), grpc.StatusCode.CANCELLED
            try:
                try:
                    call = self._admit(method.role, context, len(data))
                    reply = await method.answer(call, await _read(method.request, data))
                except Exception as error:
                    refusal = refusal_of(error)
                else:
                    code = grpc.StatusCode.OK
                    return reply
                code = refusal.wire.grpc
                await abort(context, refusal)
            finally:
                self._observer.on_grpc(GrpcExchange(name, code, self._clock() - started))

        return serve

    def _streaming(self, name: str, method: Streaming) -> Callable[[bytes, _Context], AsyncIterator[Message]]:
        async def serve(data: bytes, context: _Context) -> AsyncIterator[Message]:
            started, code = self._clock(), grpc.StatusCode.CANCELLED
            try:
                refusal = None
                try:
                    call = self._admit(method.role, context, len(data))
                    async for reply in method.answer(call, await _read(method.request, data)):
                        yield reply
                except Exception as error:
                    refusal = refusal_of(error)
                code = grpc.StatusCode.OK if refusal is None else refusal.wire.grpc
                if refusal is not None:
                    await abort(context, refusal)
            finally:
                self._observer.on_grpc(GrpcExchange(name, code, self._clock() - started))

        return serve

    def _admit(self, role: Role | None, context: _Context, size_bytes: int) -> Call:
        remaining_s = context.time_remaining()
        deadline = NO_DEADLINE if remaining_s is None else Deadline(self._clock() + remaining_s)
        metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        if role is None:
            return Call(Caller(), metadata, deadline, size_bytes)
        caller = self._authenticator.authenticate(metadata)
        require_role(caller, role)
        return Call(caller, metadata, deadline, size_bytes)


async def _read(kind: type[Message], data: bytes) -> Message:
    return _parsed(kind, data) if len(data) <= INLINE_BYTES else await asyncio.to_thread(_parsed, kind, data)


def _parsed(kind: type[Message], data: bytes) -> Message:
    check_structure(cast(Descriptor, kind.DESCRIPTOR), data)  # or its twin in C, which is the same to us
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"the message is not a {kind.DESCRIPTOR.full_name}") from error


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


async def abort(context: _Context, refusal: Refusal) -> NoReturn:
    """End the call with *refusal*, details included."""
    metadata: list[tuple[str, str | bytes]] = [(DETAILS, _details(refusal))]
    if refusal.answer_id is not None:
        metadata += ((ANSWER_ID, refusal.answer_id), _NO_RETRY)
    await context.abort(refusal.wire.grpc, refusal.message, tuple(metadata))


def _details(refusal: Refusal) -> bytes:
    """google.rpc.Status, serialised."""
    rich = rich_error_pb2.RichError(code=refusal.wire.grpc.value[0], message=refusal.message)
    info = rich_error_pb2.ErrorInfo(reason=refusal.code.upper(), domain=ERROR_DOMAIN)
    if refusal.answer_id is not None:
        info.metadata["answer_id"] = refusal.answer_id
    if refusal.error_id is not None:
        info.metadata["error_id"] = refusal.error_id
    rich.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    if refusal.retry_after_s is not None:
        retry = rich_error_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(math.ceil(refusal.retry_after_s * 1e9))
        rich.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=retry.SerializeToString())
    return rich.SerializeToString()


def _unimplemented(method: str, hint: str) -> Callable[[Any, _Context], Any]:
    """Refuses a call of any kind: one message or a stream of them, which it does not read."""

    async def serve(request: Any, context: _Context) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here; {hint}")

    return serve
