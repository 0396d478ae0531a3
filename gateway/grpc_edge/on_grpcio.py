"""The gRPC transport on grpcio's asyncio server, which serves every kind of call.

Floods of calls that are reset as soon as they are made (CVE-2023-44487) must not cost others their calls. The asyncio
server takes calls one after the other, and what waits for it beyond a limit is dropped, whoever sent it, as CANCELLED;
calls that were reset wait too. So a connection may have `MAX_STREAMS` calls at a time, each reset is answered with a
ping, without whose answer the reset call still counts as one of them, and more may wait than a few connections have.
Calls beyond the limit are refused as UNAVAILABLE; a client that keeps to the limit, as grpcio's does, may meet that
too, while calls of its that have ended are being cleared away.

Its log line on metadata that is no UTF-8 is dropped, as it quotes them, and they may be a key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc import aio

from backends.contract import Deadline
from gateway.grpc_edge.calls import (
    CallServer,
    Conversation,
    Method,
    Offer,
    Streaming,
    Trailers,
    Unary,
    deadline_in,
    unimplemented,
)

_NO_RETRY = ("grpc-retry-pushback-ms", "-1")
"""Keeps clients with a retry policy from repeating the call (gRFC A6)."""

HOLD_S = 0.05
"""For how long replies are held back before the end, and as long again: some round trips of a busy client."""

MAX_STREAMS = 1024
"""Calls of one connection at a time."""

_MAX_WAITING = 16 * MAX_STREAMS
"""Calls that wait to be taken, from which on some are dropped; at twice as many all are."""

_AGAINST_FLOODS = (
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.http2.ping_on_rst_stream_percent", 100),
    ("grpc.server.max_pending_requests", _MAX_WAITING),
    ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_WAITING),
)

logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not str(record.msg).startswith("Invalid encoding"))

# Any: the bytes of requests and replies, as which grpcio's types know no messages.
_Context: TypeAlias = aio.ServicerContext[Any, Any]


class GrpcioListener:
    """Serves *offers* on *address* while it is started; implements `transport.Listener`."""

    def __init__(
        self, calls: CallServer, offers: Sequence[Offer], address: str, message_bytes: int, *, reuse_port: bool = False
    ) -> None:
        """Args:
        calls: answers them.
        address: `host:port`, or `unix:` and a path.
        message_bytes: of a request; a longer one is RESOURCE_EXHAUSTED.
        reuse_port: let other processes listen on the port too.
        """
        self._calls = calls
        self._offers = offers
        self._address = address
        self._message_bytes = message_bytes
        self._reuse_port = reuse_port
        self._server: aio.Server | None = None
        self._released: asyncio.Event | None = None

    async def start(self) -> int:
        """Listen; the port.

        Raises:
            OSError: the address cannot be bound.
        """
        server = aio.server(
            options=(
                ("grpc.max_receive_message_length", self._message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(self._reuse_port)),
                # Behind a Unix socket is our own front, which has the calls of all clients on one connection.
                *(() if self._address.startswith("unix:") else _AGAINST_FLOODS),
            )
        )
        server.add_generic_rpc_handlers([self._handlers(offer) for offer in self._offers])
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError("it cannot be bound; choose another port") from error
        await server.start()
        self._server = server
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and end those in flight after *grace_s* seconds; harmless when repeated."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    async def hand_over(self, grace_s: float) -> None:
        """As `stop`, where others listen on the port too, and so that callers go on with them.

        A call that arrives just when grpcio stops, before its client has heard of that (GOAWAY), is cancelled, and no
        client repeats it. So replies are held back for a moment before, after which whoever calls again as soon as it
        is answered is waiting for one, and for a moment after, in which clients hear that their next calls go
        elsewhere. Calls whose deadlines would not bear it are answered at once.
        """
        if self._server is None:
            return
        self._released = asyncio.Event()
        await asyncio.sleep(HOLD_S)
        stopping = asyncio.ensure_future(self.stop(grace_s))
        await asyncio.sleep(HOLD_S)
        self._released.set()
        await stopping

    async def _may_leave(self, deadline: Deadline) -> None:
        """Wait until a reply may leave."""
        released = self._released
        if released is not None and not released.is_set() and deadline - self._calls.clock() > 4 * HOLD_S:
            await released.wait()

    def _handlers(self, offer: Offer) -> grpc.GenericRpcHandler:
        """Handlers of every method of the service: those that are served, and a refusal for all others."""
        found = {
            method.name: _refusing(unimplemented(method.name, offer.hint), streams=method.client_streaming)
            for method in offer.service.methods
        }
        for name, method in offer.methods.items():
            found[name] = self._handler(f"{offer.service.full_name}/{name}", method)
        return grpc.method_handlers_generic_handler(offer.service.full_name, found)

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        match method:
            case Unary():
                return grpc.unary_unary_rpc_method_handler(self._unary(name, method))
            case Streaming():
                return grpc.unary_stream_rpc_method_handler(self._streaming(name, method))
            case Conversation():
                return grpc.stream_stream_rpc_method_handler(self._conversation(name, method))

    def _unary(self, name: str, method: Unary) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        calls, clock = self._calls, self._calls.clock

        async def serve(data: bytes, context: _Context) -> bytes:
            started, code = clock(), grpc.StatusCode.CANCELLED
            try:
                deadline = deadline_in(context.time_remaining(), started)
                ended = await calls.answer(method, data, context.invocation_metadata() or (), deadline)
                if self._released is not None:
                    await self._may_leave(deadline)
                if isinstance(ended, Trailers):
                    code = ended.code
                    await _abort(context, ended)
                code = grpc.StatusCode.OK
                return ended
            finally:
                calls.ended(name, code, started)

        return serve

    def _streaming(self, name: str, method: Streaming) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
        calls, clock = self._calls, self._calls.clock

        async def serve(data: bytes, context: _Context) -> AsyncIterator[bytes]:
            started, code = clock(), grpc.StatusCode.CANCELLED
            try:
                deadline = deadline_in(context.time_remaining(), started)
                metadata = context.invocation_metadata() or ()
                async with aclosing(calls.replies(method, data, metadata, deadline)) as replies:
                    async for reply in replies:
                        if isinstance(reply, Trailers):
                            code = reply.code
                            await _abort(context, reply)
                        yield reply
                code = grpc.StatusCode.OK
            finally:
                calls.ended(name, code, started)

        return serve

    def _conversation(
        self, name: str, method: Conversation
    ) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
        calls, clock = self._calls, self._calls.clock

        async def serve(requests: AsyncIterator[bytes], context: _Context) -> None:
            started, code = clock(), grpc.StatusCode.CANCELLED

            async def write(reply: bytes) -> None:
                with suppress(aio.BaseError):  # its caller has just left
                    await context.write(reply)

            try:
                deadline = deadline_in(context.time_remaining(), started)
                metadata = context.invocation_metadata() or ()
                trailers = await calls.converse(method, _until_they_leave(requests), write, metadata, deadline)
                code = grpc.StatusCode.OK if trailers is None else trailers.code
                if trailers is not None:
                    await _abort(context, trailers)
            finally:
                calls.ended(name, code, started)

        return serve


async def _until_they_leave(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    with suppress(aio.BaseError):  # their sender has just left
        async for data in requests:
            yield data


async def _abort(context: _Context, trailers: Trailers) -> NoReturn:
    """End the call with *trailers*."""
    metadata = trailers.metadata if trailers.repeatable else (*trailers.metadata, _NO_RETRY)
    await context.abort(trailers.code, trailers.message, metadata)


def _refusing(trailers: Trailers, *, streams: bool) -> grpc.RpcMethodHandler[Any, Any]:
    """Refuses calls, with one message or a stream of them, which it does not read."""

    async def serve(request: Any, context: _Context) -> NoReturn:
        await _abort(context, trailers)

    return (grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler)(serve)
