"""How every gRPC call is served: admitted, read, answered, and refused in one way, whatever the transport.

    metadata -> who asks, and whether they may -> message -> method -> reply
                                                              └ error -> status.TABLE -> Trailers

Nothing here knows a transport: `on_grpcio` and `on_native` bring bytes and metadata, and carry away a reply's bytes, or
the `Trailers` that a refused call ends with.

Messages are parsed here and not by grpc, which would report one that it cannot parse as an error of ours, with Python's
words for it. A refusal ends its call with trailers alone: a status that is set beside a returned message commits the
call, and clients then never retry it. `grpc-status-details-bin` carries google.rpc.ErrorInfo and, where a retry may
help, RetryInfo; no pushback metadata, which says the same to fewer clients. The exception is an answer that waits for a
person: it is UNAVAILABLE, which clients with a retry policy repeat, and each repetition would be one more task for that
person, so its trailers are not `repeatable`, and each transport tells clients so in its own way.

A conversation (requests and replies both in a stream) is admitted once. Each of its requests is then answered for
itself, and refused in a reply of its own, so that one bad request does not end the others. Those of one *lane*, as the
steps of a sequence are, are answered one after the other, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, cast

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from backends.contract import NO_DEADLINE, Deadline, record
from backends.errors import InvalidInput, TooLarge, Unavailable
from gateway.grpc_edge.wire import check_structure
from gateway.request import Caller, Role
from gateway.security import ANYBODY, Authenticator, require_role
from gateway.status import Refusal, refusal_of
from pointsman_pb import rich_error_pb2

ERROR_DOMAIN = "pointsman"
"""The domain of google.rpc.ErrorInfo; its reason is the upper-case `Code`."""

MAX_TALKING = 64
"""Requests of one conversation that are answered at the same time; the next is read when one of them is."""

MOST_WAITING = 1024
"""Further ones that wait for those before them in their lanes, so that these do not hold up other lanes' requests."""

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes that the messages of these take."""

INLINE_BYTES = 64 * 1024
"""Messages up to this size are read where they arrive, in a millisecond or so; longer ones in a thread."""

DETAILS = "grpc-status-details-bin"
ANSWER_ID = "pointsman-answer-id"

Pairs: TypeAlias = Iterable[tuple[str, str | bytes]]
"""Metadata as it travels; of names that end in -bin the values are bytes."""

# Any: requests and replies are of the method's own message types.


@record
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
        lane: that of a request; None: it has none.
    """

    request: type[Message]
    answer: Callable[[Call, Any], Awaitable[Message]]
    refused: Callable[[Any, Refusal], Message]
    role: Role | None = Role.CALLER
    lane: Callable[[Any], Hashable] = lambda request: None


Method: TypeAlias = Unary | Streaming | Conversation


OLDER = "this server is older than its caller"
"""The hint of services all of whose methods are served."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A service as it is served.

    Attributes:
        methods: those that are, some of which its descriptor may not know yet; calls of the others are refused.
        hint: what callers of the others are told.
    """

    service: ServiceDescriptor
    methods: Mapping[str, Method]
    hint: str


@dataclass(frozen=True, slots=True)
class Trailers:
    """What a refused call ends with.

    Attributes:
        metadata: google.rpc.Status among it.
        repeatable: False where a client with a retry policy must not repeat the call by itself.
    """

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    repeatable: bool = True


@record
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
        self.clock = clock
        self._authenticate = authenticator.authenticate
        self._observer = observer
        self._talks: set[_Talk] = set()
        self._is_draining = False

    def drain(self) -> None:
        """Take no further requests in conversations: each ends, as UNAVAILABLE, with its last reply."""
        self._is_draining = True
        for talk in self._talks:
            talk.stop()

    def ended(self, method: str, code: grpc.StatusCode, started_s: float) -> None:
        """Report a call of *method*, which exists, that began at *started_s* by `clock`."""
        self._observer.on_grpc(GrpcExchange(method, code, self.clock() - started_s))

    async def answer(self, method: Unary, data: bytes, metadata: Pairs, deadline: Deadline) -> bytes | Trailers:
        """The reply to *data*, or what to end the call with."""
        try:
            call = self._admit(method.role, metadata, deadline, len(data))
            return (await method.answer(call, await _read(method.request, data))).SerializeToString()
        except Exception as error:
            return trailers_of(refusal_of(error))

    async def replies(
        self, method: Streaming, data: bytes, metadata: Pairs, deadline: Deadline
    ) -> AsyncGenerator[bytes | Trailers, None]:
        """The replies to *data*; where trailers are among them, they are the last, and end the call."""
        try:
            call = self._admit(method.role, metadata, deadline, len(data))
            async for reply in method.answer(call, await _read(method.request, data)):
                yield reply.SerializeToString()
        except Exception as error:
            yield trailers_of(refusal_of(error))

    async def converse(
        self,
        method: Conversation,
        requests: AsyncIterator[bytes],
        write: Callable[[bytes], Awaitable[None]],
        metadata: Pairs,
        deadline: Deadline,
    ) -> Trailers | None:
        """Answer *requests* until they end, one `write` at a time; what to end the call with, None where it went well.

        Whoever cancels this cancels what is being answered.
        """
        try:
            if self._is_draining:
                raise shutting_down()
            talk = _Talk(method, self._admit(method.role, metadata, deadline, 0), write)
            self._talks.add(talk)
            try:
                await talk.go_on(requests)
            finally:
                self._talks.discard(talk)
        except Exception as error:
            return trailers_of(refusal_of(error))
        return None

    def _admit(self, role: Role | None, metadata: Pairs, deadline: Deadline, size_bytes: int) -> Call:
        texts = {name: value for name, value in metadata if isinstance(value, str)}
        if role is None:
            return Call(ANYBODY, texts, deadline, size_bytes)
        caller = self._authenticate(texts)
        require_role(caller, role)
        return Call(caller, texts, deadline, size_bytes)


class _Talk:
    """One conversation: reads requests while fewer than `MAX_TALKING` of them are being answered."""

    def __init__(self, method: Conversation, call: Call, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._method = method
        self._call = call
        self._write = write
        self._slots = asyncio.Semaphore(MAX_TALKING)
        self._writing = asyncio.Lock()  # transports take one message at a time
        self._has_read = asyncio.Event()  # the latest message, where it is long
        self._lanes: dict[Hashable, asyncio.Event] = {}  # what the latest request of each sets at its end
        self._waiting = 0
        self._waiting_bytes = 0
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
            raise shutting_down()

    async def _listen(self, requests: AsyncIterator[bytes], group: asyncio.TaskGroup) -> None:
        await self._slots.acquire()
        async for data in requests:
            group.create_task(self._reply(data))
            if len(data) > INLINE_BYTES:  # or what comes behind it would be read before it
                await self._has_read.wait()
                self._has_read.clear()
            await self._slots.acquire()

    async def _reply(self, data: bytes) -> None:
        request = None
        try:
            try:
                request = await self._read(data)
                reply = await self._answer(replace(self._call, size_bytes=len(data)), request)
            except Exception as error:
                reply = self._method.refused(request, refusal_of(error))
            written = reply.SerializeToString()
            async with self._writing:
                await self._write(written)
        finally:
            self._slots.release()

    async def _read(self, data: bytes) -> Message:
        try:
            return await _read(self._method.request, data)
        finally:
            if len(data) > INLINE_BYTES:
                self._has_read.set()

    async def _answer(self, call: Call, request: Message) -> Message:
        """The reply to *request*, once those are answered that came before in its lane."""
        lane = self._method.lane(request)
        if lane is None:
            return await self._method.answer(call, request)
        before, ended = self._lanes.get(lane), asyncio.Event()
        self._lanes[lane] = ended
        try:
            if before is not None and not before.is_set():
                await self._wait_for(before, call.size_bytes)
            return await self._method.answer(call, request)
        finally:
            ended.set()
            if self._lanes.get(lane) is ended:
                del self._lanes[lane]

    async def _wait_for(self, before: asyncio.Event, size_bytes: int) -> None:
        """Wait for it without a slot, where there is room for that: others may have to go first."""
        if self._waiting >= MOST_WAITING or self._waiting_bytes + size_bytes > MOST_WAITING_BYTES:
            await before.wait()
            return
        self._waiting += 1
        self._waiting_bytes += size_bytes
        self._slots.release()
        try:
            await before.wait()
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size_bytes
        await self._slots.acquire()


def deadline_in(remaining_s: float | None, now_s: float) -> Deadline:
    """The deadline of a call that has *remaining_s* left at *now_s*; None: as long as it takes."""
    return NO_DEADLINE if remaining_s is None else Deadline(now_s + remaining_s)


def shutting_down() -> Unavailable:
    """Why nothing new is taken while the gateway drains."""
    return Unavailable("this gateway is shutting down; call another", retry_after_s=1.0)


def too_large(size_bytes: int, limit_bytes: int) -> TooLarge:
    """Why a message is not read."""
    return TooLarge(f"the message has {size_bytes} bytes; at most {limit_bytes} are read")


async def _read(kind: type[Message], data: bytes) -> Message:
    return _parsed(kind, data) if len(data) <= INLINE_BYTES else await asyncio.to_thread(_parsed, kind, data)


def _parsed(kind: type[Message], data: bytes) -> Message:
    check_structure(cast(Descriptor, kind.DESCRIPTOR), data)  # or its twin in C, which is the same to us
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"the message is not a {kind.DESCRIPTOR.full_name}") from error


def trailers_of(refusal: Refusal) -> Trailers:
    """What a call that is refused so ends with: the one place where a refusal becomes gRPC's."""
    metadata: tuple[tuple[str, str | bytes], ...] = ((DETAILS, _details(refusal)),)
    if refusal.answer_id is not None:
        metadata += ((ANSWER_ID, refusal.answer_id),)
    return Trailers(refusal.wire.grpc, refusal.message, metadata, repeatable=refusal.answer_id is None)


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


def unimplemented(method: str, hint: str) -> Trailers:
    """What a call of a method that exists, and is not served, ends with."""
    return Trailers(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here; {hint}")
