"""Servers of the protocol that answer as a test says, byte by byte over HTTP, message by message over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from backends.contract import Datatype, Deadline, Limits, Signature, Tensor, TensorSpec
from backends.http_client import HttpClient
from backends.oip.grpc_remote import GrpcRemote, channel
from backends.oip.http_remote import HttpRemote
from backends.oip.remote import InferCall, Remote
from backends.oip.served import Inline, Served, Terms

NEVER = Deadline(float("inf"))
SECRET = "what is for the log alone"

# Any, throughout: JSON, tritonclient's messages and grpc's contexts are untyped.
Message: TypeAlias = Any
Context: TypeAlias = Any


def call_of(name: str = "dbl", version: str = "") -> InferCall:
    """A call with one input, x: FP32 [2, 3]."""
    x = Tensor.of(np.arange(6, dtype=np.float32).reshape(2, 3))
    return InferCall(name, version, "id-1", {"x": x}, {}, {})


SIGNATURE = Signature((TensorSpec("x", Datatype.FP32, (3,)),), (TensorSpec("y", Datatype.FP32, (3,)),))


def served(remote: Remote, version: str = "") -> Served:
    """A model `mine` over *remote*, called `dbl` there: x FP32 [3] to y FP32 [3]."""
    return Served("mine", remote, Terms("dbl", version, SIGNATURE, Limits(8, 2)), Inline())


@dataclass(frozen=True, slots=True)
class Request:
    """What came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its JSON, without the tensors behind it."""
        end = int(self.headers.get("inference-header-content-length", len(self.body)))
        return orjson.loads(self.body[:end])


def http(status: int, body: bytes = b"", **headers: str | int) -> bytes:
    """An answer as it is on the wire."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def error(status: int, message: str = SECRET, **headers: str | int) -> bytes:
    """A refusal in the form of the protocol."""
    return http(status, orjson.dumps({"error": message}), **headers)


@dataclass(slots=True)
class HttpServer:
    """What came, and which connections the client has closed.

    Attributes:
        came: set when a request has come.
        left: set when the client has closed a connection.
    """

    address: str = ""
    requests: list[Request] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def over_http(
    *replies: bytes | Callable[[Request], bytes | None],
) -> AsyncIterator[tuple[HttpRemote, HttpServer]]:
    """A server that answers its requests with *replies* in turn, the last one for ever; None: it says nothing."""
    server = HttpServer()
    connections: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        try:
            while True:
                request = await _request(reader)
                reply = replies[min(len(server.requests), len(replies) - 1)]
                server.requests.append(request)
                server.came.set()
                if (answer := reply(request) if callable(reply) else reply) is not None:
                    writer.write(answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            server.left.set()
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.address = f"127.0.0.1:{port}"
    remote = HttpRemote("mine", HttpClient("127.0.0.1", port, authority=server.address))
    try:
        yield remote, server
    finally:
        await remote.aclose()
        listening.close()
        await asyncio.gather(*filter(None, connections))


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


Answer: TypeAlias = Callable[[str, Message, Context], Awaitable[Message]]
"""From a method's name, its request and its context to the reply: a message, or bytes as they are."""


@dataclass(slots=True)
class GrpcServer:
    """Where it listens, and what came: methods with their requests."""

    address: str = ""
    calls: list[tuple[str, Message]] = field(default_factory=list)
    metadata: list[Mapping[str, Any]] = field(default_factory=list)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: GrpcServer, answer: Answer) -> None:
        self._server, self._answer = server, answer

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        name = str(details.method).rpartition("/")[2]

        async def behaviour(request: Message, context: Context) -> Message:
            self._server.calls.append((name, request))
            self._server.metadata.append(dict(context.invocation_metadata()))
            return await self._answer(name, request, context)

        return grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
            response_serializer=lambda reply: reply if isinstance(reply, bytes) else reply.SerializeToString(),
        )


@asynccontextmanager
async def over_grpc(
    answer: Answer, *, token: str | None = None, limit_bytes: int = 1 << 20, takes_bytes: int = 1 << 22
) -> AsyncIterator[tuple[GrpcRemote, GrpcServer]]:
    """A server that answers by *answer*, and takes messages of *takes_bytes*."""
    server = GrpcServer()
    real = grpc.aio.server(options=[("grpc.max_receive_message_length", takes_bytes)])
    real.add_generic_rpc_handlers((_Handler(server, answer),))
    server.address = f"127.0.0.1:{real.add_insecure_port('127.0.0.1:0')}"
    await real.start()
    remote = GrpcRemote("mine", lambda: channel(server.address, credentials=None, limit_bytes=limit_bytes), token)
    try:
        yield remote, server
    finally:
        await remote.aclose()
        await real.stop(None)


def replying(reply: Message) -> Answer:
    """*reply* to whatever comes."""

    async def answer(name: str, request: Message, context: Context) -> Message:
        return reply

    return answer


def aborting(code: grpc.StatusCode, said: str = SECRET, trailers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """A refusal of whatever comes."""

    async def answer(name: str, request: Message, context: Context) -> Message:
        await context.abort(code, said, trailers)

    return answer
