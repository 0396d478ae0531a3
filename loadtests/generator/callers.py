"""Connections: each takes a request while it is free, and tells how it ended.

HTTP is a protocol of our own that looks for the status and the body's length alone, since whatever the generator spends
is missing to the server beside it. gRPC is grpc.aio with requests serialised beforehand, all over one channel.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import grpc
from tritonclient.grpc import service_pb2

from loadtests.generator.shots import Shot, is_right_grpc, is_right_http

OK = ""
WRONG = "wrong"

Ended = Callable[[str], None]
"""Called with `OK`, `WRONG`, or the kind of the error."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"
_INFER = "/inference.GRPCInferenceService/ModelInfer"


class Caller(Protocol):
    """Sends one request at a time."""

    def ask(self, shot: Shot, ended: Ended) -> None:
        """Send *shot*; *ended* is called once, later."""

    async def wait_open(self) -> None:
        """Open the connection, or open it again.

        Raises:
            OSError: nobody is there.
        """

    def close(self) -> None:
        """Close it."""


def http_callers(host: str, port: int, count: int) -> list[Caller]:
    """*count* connections, not open yet."""
    return [_HttpCaller(host, port) for _ in range(count)]


def grpc_callers(channel: grpc.aio.Channel, count: int) -> list[Caller]:
    """As many calls at once as *count*, all over *channel*."""
    return [_GrpcCaller(channel) for _ in range(count)]


class _HttpCaller(asyncio.Protocol):
    """One connection that is kept alive."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._wanted = 0  # bytes, where it is known
        self._shot: Shot | None = None
        self._ended: Ended | None = None

    async def wait_open(self) -> None:
        if self._transport is None:
            await asyncio.get_running_loop().create_connection(lambda: self, *self._address)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end("disconnected")

    def ask(self, shot: Shot, ended: Ended) -> None:
        self._shot, self._ended, self._received, self._wanted = shot, ended, bytearray(), 0
        if self._transport is None:
            self._opening = asyncio.get_running_loop().create_task(self._ask_again_opened())
        else:
            self._transport.write(shot.sent)

    async def _ask_again_opened(self) -> None:
        try:
            await self.wait_open()
        except OSError as error:
            self._end(f"connect: {type(error).__name__}")
            return
        if self._transport is not None and self._shot is not None:
            self._transport.write(self._shot.sent)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if len(received) < self._wanted:
            return  # a long reply: looking again would tell nothing
        end = received.find(b"\r\n\r\n")
        if end < 0 or self._shot is None:
            return
        head = bytes(received[:end])
        length = _LENGTH.search(head)
        if length is None and not _CHUNKED.search(head):
            self._end("no Content-Length")
            self.close()
            return
        if length is not None and len(received) < end + 4 + int(length[1]):
            self._wanted = end + 4 + int(length[1])
            return
        body = bytes(memoryview(received)[end + 4 :])
        if length is None:
            if not body.endswith(_LAST_CHUNK):
                return
            body = _joined(body)
        status = head[9:12]
        if status != b"200":
            self._end(f"HTTP {status.decode('latin-1')}")
        else:
            self._end(OK if is_right_http(self._shot, head, body) else WRONG)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()  # `connection_lost` follows

    def _end(self, how: str) -> None:
        ended, self._ended, self._shot = self._ended, None, None
        if ended is not None:
            ended(how)


def _joined(chunks: bytes) -> bytes:
    """What *chunks*, all that there are, say together; they have no extensions and no trailers."""
    body = b""
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        if not (length := int(size, 16)):
            return body
        body += chunks[:length]
        chunks = chunks[length + 2 :]


class _GrpcCaller:
    """One call at a time on a channel that others share."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._infer: Any = channel.unary_unary(_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString)
        self._asking: asyncio.Task[None] | None = None

    async def wait_open(self) -> None:
        try:
            await asyncio.wait_for(self._channel.channel_ready(), 10.0)
        except TimeoutError as error:
            raise ConnectionRefusedError("no gRPC server answers there") from error

    def ask(self, shot: Shot, ended: Ended) -> None:
        self._asking = asyncio.get_running_loop().create_task(self._ask(shot, ended))

    async def _ask(self, shot: Shot, ended: Ended) -> None:
        call = self._infer(shot.sent)
        with suppress(asyncio.CancelledError):  # closed while it waited: counted as unanswered
            try:
                how = OK if is_right_grpc(shot, await call) else WRONG
            except grpc.aio.AioRpcError as error:
                how = f"gRPC {error.code().name}"
            ended(how)

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
