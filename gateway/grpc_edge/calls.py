"""How every gRPC call is served: admitted, read, answered, and refused in one way.

    metadata -> who asks, and whether they may -> message -> method -> reply
                                                              └ error -> status.TABLE -> abort

Messages are parsed here and not by grpc, which would report one that it cannot parse as an error of ours, with Python's
words for it. Errors leave by `context.abort` alone: a status that is set beside a returned message commits the call,
and clients then never retry it. `grpc-status-details-bin` carries google.rpc.ErrorInfo and, where a retry may help,
RetryInfo; no pushback metadata, which says the same to fewer clients. The exception is an answer that waits for a
person: it is UNAVAILABLE, which clients with a retry policy repeat, and each repetition would be one more task for that
person, so pushback tells them not to.

A conversation (requests and replies both in a stream) is admitted once. Each of its requests is then answered for
itself, and refused in a reply of its own, so that one bad request does not end the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio

from backends.contract import NO_DEADLINE, Deadline
from backends.errors import InvalidInput, Unavailable
from gateway.grpc_edge.wire import check_structure
from gateway.request import Caller, Role
from gateway.security import Authenticator, require_role
from gateway.status import Refusal, refusal_of
from pointsman_pb import rich_error_pb2

ERROR_DOMAIN = "pointsman"
"""The domain of google.rpc.ErrorInfo; its reason is the upper-case `Code`."""

MAX_TALKING = 64
"""Requests of one conversation that are answered at the same time; the next is read when one of them is."""

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


@dataclass(frozen=True, slots=True)
class Conversation:
    """A method with a stream of requests, each of which gets one reply, in the order in which these are ready.

    Attributes:
        request: the type of its messages.
        answer: makes the reply to one; raises PointsmanError to refuse it.
        refused: the reply that says so; its request is None where it could not be read.
        role: what the caller must be allowed to do; None: anybody, unauthenticated.
    """

    request: type[Message]
    answer: Callable[[Call, Any], Awaitable[Message]]
    refused: Callable[[Any, Refusal], Message]
    role: Role | None = Role.CALLER


Method: TypeAlias = Unary | Streaming | Conversation


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
        self._talks: set[_Talk] = set()
        self._is_draining = False

    def drain(self) -> None:
        """Take no further requests in conversations: each ends, as UNAVAILABLE, with its last reply."""
        self._is_draining = True
        for talk in self._talks:
            talk.stop()

    def handlers(self, service: ServiceDescriptor, methods: Mapping[str, Method], hint: str) -> grpc.GenericRpcHandler:
        """Handlers of every method of *service*: those in *methods*, and a refusal with *hint* for all others."""
        found = {
            method.name: grpc.stream_stream_rpc_method_handler(_unimplemented(method.name, hint))
            if method.client_streaming and method.name not in methods
            else self._handler(f"{service.full_name}/{method.name}", methods.get(method.name), hint)
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
            case Conversation():
                return grpc.stream_stream_rpc_method_handler(self._conversation(name, method))
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

    def _conversation(
        self, name: str, method: Conversation
    ) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
        async def serve(requests: AsyncIterator[bytes], context: _Context) -> None:
            started, code = self._clock(), grpc.StatusCode.CANCELLED
            try:
                refusal = None
                try:
                    if self._is_draining:
                        raise _shutting_down()
                    talk = _Talk(method, self._admit(method.role, context, 0), context)
                    self._talks.add(talk)
                    try:
                        await talk.go_on(requests)
                    finally:
                        self._talks.discard(talk)
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


class _Talk:
    """One conversation: reads requests while fewer than `MAX_TALKING` of them are being answered."""

    def __init__(self, method: Conversation, call: Call, context: _Context) -> None:
        self._method = method
        self._call = call
        self._context = context
        self._slots = asyncio.Semaphore(MAX_TALKING)
        self._writing = asyncio.Lock()  # grpc takes one message at a time
        self._listening: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Read no further requests."""
        if self._listening is not None:
            self._listening.cancel()

    async def go_on(self, requests: AsyncIterator[bytes]) -> None:
        """Answer *requests* until they end; whoever cancels this cancels what is being answered.

        Raises:
            Unavailable: it was stopped before they ended; what had been read is answered.
        """
        async with asyncio.TaskGroup() as group:
            self._listening = group.create_task(self._listen(requests, group))
        if self._listening.cancelled():
            raise _shutting_down()

    async def _listen(self, requests: AsyncIterator[bytes], group: asyncio.TaskGroup) -> None:
        await self._slots.acquire()
        with suppress(aio.BaseError):  # its caller has just left
            async for data in requests:
                group.create_task(self._reply(data))
                await self._slots.acquire()

    async def _reply(self, data: bytes) -> None:
        request = None
        try:
            try:
                request = await _read(self._method.request, data)
                reply = await self._method.answer(replace(self._call, size_bytes=len(data)), request)
            except Exception as error:
                reply = self._method.refused(request, refusal_of(error))
            written = _serialized(reply)
            async with self._writing:
                with suppress(aio.BaseError):  # its caller has just left
                    await self._context.write(written)
        finally:
            self._slots.release()


def _shutting_down() -> Unavailable:
    return Unavailable("this gateway is shutting down; open a stream to another", retry_after_s=1.0)


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
