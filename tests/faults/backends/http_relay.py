"""What a server can do wrong in HTTP: a proxy that understands requests and replies, and spoils those of inferences.

Health, metadata and everything else pass as they are: whoever asks whether the server is well hears that it is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httptools

from tests.faults.backends.answers import LIES, from_http, to_http
from tests.faults.backends.door import reset
from tests.faults.backends.fault import BURST, OVERSIZED_BYTES, PAUSE, Fault

_PIECE = 1 << 16
_STATUSES = ("500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout")
_MALFORMED = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"outputs": [',
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"outputs": {}}',
    b'HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 99\r\nContent-Length: 15\r\n\r\n{"outputs": []}',
    b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: x\r\nContent-Length: 15\r\n\r\n" + b'{"outputs": []}',
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x00",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is no HTTP at all\r\n\r\n",
)


@dataclass(slots=True)
class _Message:
    """A request or a reply, and the bytes that it came in."""

    raw: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False

    # httptools

    def on_url(self, url: bytes) -> None:
        self.url += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_whole = True


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A client that waits, and what the server answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reply: _Message


class HttpRelay:
    """The proxy; belongs to one event loop.

    Attributes:
        port: on 127.0.0.1.
        fault: what is done to inferences.
        seen: inferences that reached it.
        slow_s: what `Fault.SLOW` adds.
        upstream: the server's address.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.fault = Fault.NONE
        self.seen = 0
        self.slow_s = 0.0
        self.port = 0
        self._count = itertools.count()
        self._previous: bytes | None = None
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()  # Any: whatever asyncio makes of `_serve`
        self._spoil: Mapping[Fault, Callable[[_Exchange], Awaitable[None]]] = {
            Fault.HANG: self._hang,
            Fault.ERRORS: self._err,
            Fault.MODEL_ERRORS: self._err_as_a_model,
            Fault.MALFORMED: self._malform,
            Fault.OVERSIZED: self._oversize,
            Fault.WRONG: self._lie,
            Fault.SWAPPED: self._swap,
            Fault.SLOW: self._delay,
        }

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Listen no more, and end every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with suppress(OSError):
                upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
                try:
                    await self._relay(reader, writer, upstream_reader, upstream_writer)
                finally:
                    upstream_writer.transport.abort()
        except asyncio.CancelledError:
            pass  # of `aclose`
        finally:
            self._serving.discard(task)
            reset(writer)

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
    ) -> None:
        while (request := await _read(reader, httptools.HttpRequestParser)) is not None:
            is_inference = request.url.endswith("/infer")
            self.seen += is_inference
            upstream_writer.write(request.raw)
            reply = await _read(upstream_reader, httptools.HttpResponseParser)
            if reply is None:
                return
            if is_inference:
                await self._spoil.get(self.fault, _pass)(_Exchange(reader, writer, reply))
            else:
                writer.write(reply.raw)
            await writer.drain()

    async def _hang(self, exchange: _Exchange) -> None:
        exchange.writer.write(exchange.reply.raw[: -len(exchange.reply.body)])
        await exchange.reader.read()  # until the client leaves

    async def _err(self, exchange: _Exchange) -> None:
        i = next(self._count)
        if i % (BURST + PAUSE) >= BURST:
            await _pass(exchange)
            return
        status = _STATUSES[i % len(_STATUSES)]
        body = f"<html><h1>{status}</h1> 10.1.2.3 has failed</html>"
        exchange.writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    async def _err_as_a_model(self, exchange: _Exchange) -> None:
        body = '{"error":"CUDA error: an illegal memory access was encountered"}'
        head = f"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        exchange.writer.write(f"{head}\r\n\r\n{body}".encode())

    async def _malform(self, exchange: _Exchange) -> None:
        exchange.writer.write(_MALFORMED[next(self._count) % len(_MALFORMED)])

    async def _oversize(self, exchange: _Exchange) -> None:
        """Half of them say so, and half go on and on."""
        if next(self._count) % 2:
            exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n{")
            await exchange.reader.read()
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(OVERSIZED_BYTES // _PIECE):
            exchange.writer.write(b"%x\r\n%b\r\n" % (_PIECE, bytes(_PIECE)))
            await exchange.writer.drain()  # which raises once the client has left

    async def _lie(self, exchange: _Exchange) -> None:
        lie = LIES[next(self._count) % len(LIES)]
        exchange.writer.write(to_http(lie(from_http(exchange.reply.headers, bytes(exchange.reply.body)))))

    async def _swap(self, exchange: _Exchange) -> None:
        mine = bytes(exchange.reply.raw)
        others, self._previous = self._previous, mine
        exchange.writer.write(others or mine)

    async def _delay(self, exchange: _Exchange) -> None:
        await asyncio.sleep(self.slow_s)
        await _pass(exchange)


async def _pass(exchange: _Exchange) -> None:
    exchange.writer.write(exchange.reply.raw)


async def _read(reader: asyncio.StreamReader, parser_type: Callable[[_Message], Any]) -> _Message | None:
    """One whole message; None where the connection has ended. Any: httptools is untyped."""
    message = _Message()
    parser = parser_type(message)
    while not message.is_whole:
        if not (data := await reader.read(_PIECE)):
            return None
        message.raw += data
        parser.feed_data(data)
    return message
