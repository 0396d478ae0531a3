"""HTTP/1.1 to one server over connections that are kept: what a batch costs beside the server's own time.

    a, b = client.exchange(request), client.exchange(request)      one connection each
    a done -> its connection waits, open, for the next             the last one used is used first

The edge of `gateway.http` is the other end of the same idea: an `asyncio.Protocol` on httptools. A library's client was
measured first, as this is the data plane: an exchange of 64 bytes with a Triton beside it took aiohttp 193 us of CPU on
uvloop, and this 104, or 37 where eight go on at a time (two cores of a virtual machine).

**One request at a time on a connection.** No pipelining: an answer that is late would hold up another's, and an answer
that is one too many would be taken for it. Whatever is not exactly one answer to exactly one request ends the
connection: bytes after the answer, an answer before the request is out, a cancelled or late exchange. So a cancellation
is seen by the server as a closed connection, and no answer can reach another's call.

**Arrays.** What is sent is lent: when `exchange` has returned or raised, nothing here or in the transport refers to it.

**A kept connection can be closed by the server** in the moment that it is used again: some servers close one after an
idle time, uvicorn after every 500 of an exception and without saying so. It says nothing of the server's health, so a
request whose kept connection ends before a byte of an answer goes out once more, on a new connection. That a server
dies of a request, and gets it twice, is possible and harmless: it is not there to be connected to. A request that must
not be done twice, as it changes what the server keeps, is sent `once`, and fails then.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import httptools

from backends.contract import NO_DEADLINE, Deadline, record

Part: TypeAlias = bytes | memoryview

_HEAD_LIMIT_BYTES = 64 * 1024


class Unreachable(Exception):
    """No connection could be made."""


class HungUp(Exception):
    """The server ended the connection before its answer was whole."""


class Nonsense(Exception):
    """What came is no answer in HTTP, or one beyond a limit."""


class Oversized(Nonsense):
    """The answer's body is larger than is allowed."""


class Late(Exception):
    """The deadline passed first."""


@record(eq=False)
class HttpReply:
    """An answer.

    Attributes:
        headers: names in lower case; the last one counts where a name is there twice.
        body: decoded from chunks, and from nothing else.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray


class HttpClient:
    """Connections to one server, of one event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        authority: str,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = 2.0,
        limit_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        """Args:
        authority: for the Host header.
        headers: sent with every request.
        tls: as which the server is to prove itself; None: no TLS.
        limit_bytes: most that an answer's body may have.
        """
        self._host, self._port = host, port
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._common = f" HTTP/1.1\r\nHost: {authority}\r\n{more}"
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._limit_bytes = limit_bytes
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<HttpClient of {self._host}:{self._port}: {len(self._busy)} busy, {len(self._idle)} idle>"

    async def exchange(
        self, method: str, path: str, headers: str, body: Sequence[Part], deadline: Deadline, *, once: bool = False
    ) -> HttpReply:
        """Send a request, and wait for its answer.

        Args:
            path: as it stands in the request line.
            headers: whole lines, each with its CRLF; framing is added here.
            body: sent one after the other, not copied; lent until this returns or raises.
            once: never sent anew, whatever becomes of the connection.

        Raises:
            Unreachable: no connection, within the time for one.
            HungUp: the connection ended first.
            Nonsense: the answer is malformed or too large.
            Late: *deadline* passed first.
        """
        size = sum(map(len, body))
        framing = f"Content-Length: {size}\r\n\r\n" if size or method != "GET" else "\r\n"
        head = f"{method} {path}{self._common}{headers}{framing}".encode("latin-1")
        if self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange_on(kept, head, body, deadline)
            except HungUp:
                if kept.is_answering or self._is_closed or once:
                    raise
        return await self._exchange_on(await self._connection(deadline), head, body, deadline)

    async def _exchange_on(
        self, connection: _Connection, head: bytes, body: Sequence[Part], deadline: Deadline
    ) -> HttpReply:
        self._busy.add(connection)
        try:
            return await connection.exchange(head, body, deadline)
        finally:
            self._busy.discard(connection)
            if connection.is_reusable and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.abort()

    async def aclose(self) -> None:
        """Close every connection; exchanges that go on end as `HungUp`."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    def forget(self, connection: _Connection) -> None:
        """Called by a connection that has ended."""
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connection(self, deadline: Deadline) -> _Connection:
        if self._is_closed:
            raise Unreachable("this client is closed")
        left_s = deadline - time.monotonic()
        loop = asyncio.get_running_loop()
        make = loop.create_connection(
            lambda: _Connection(self, self._limit_bytes), self._host, self._port, ssl=self._tls
        )
        try:
            async with asyncio.timeout(max(0.0, min(left_s, self._connect_timeout_s))):
                _, connection = await make
        except TimeoutError as error:
            if left_s <= self._connect_timeout_s:
                raise Late from error
            raise Unreachable(f"no connection within {self._connect_timeout_s} s") from error
        except OSError as error:  # ssl.SSLError is one
            raise Unreachable(str(error)) from error
        return connection


class _Connection(asyncio.Protocol):
    """A connection, and at most one exchange on it."""

    def __init__(self, client: HttpClient, limit_bytes: int) -> None:
        self._client = client
        self._limit_bytes = limit_bytes
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self._waiter: asyncio.Future[HttpReply] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._is_head_read = False
        self.is_answering = False  # a byte of an answer to the latest request has come
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._size = 0

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent: all is out, the answer is whole, and the server means to go on."""
        return not self._ended and self._waiter is None

    async def exchange(self, head: bytes, body: Sequence[Part], deadline: Deadline) -> HttpReply:
        """See `HttpClient.exchange`."""
        loop = asyncio.get_running_loop()
        if self._ended or self._transport is None:
            raise HungUp("the server closed the connection while nothing was asked")
        waiter: asyncio.Future[HttpReply] = loop.create_future()
        self._waiter = waiter
        self.is_answering = False
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._late) if deadline < NO_DEADLINE else None
        self._transport.writelines([head, *body])
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiter is not None:  # no whole answer: the next one to come would be this one's
                self.abort()

    def abort(self) -> None:
        """Close at once; what was not sent is not sent, and whoever waits hears `HungUp`."""
        self._end(HungUp("the connection was closed on this side"))

    def _late(self) -> None:
        self._end(Late())

    def _end(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self._waiter = None
        self._chunks = []
        if not self._ended:
            self._ended = True
            self._client.forget(self)
            if self._transport is not None:
                self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """A part of the answer has come."""
        if self._ended:
            return
        if self._waiter is None:
            self._end(Nonsense("bytes came that nobody asked for"))
            return
        self.is_answering = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._end(_caused(Nonsense("the server wants another protocol"), error))
        except (httptools.HttpParserError, _NoAnswer) as error:
            cause = error.__context__ if isinstance(error.__context__, _NoAnswer) else error
            kind = Oversized if isinstance(cause, _TooMuch) else Nonsense
            self._end(_caused(kind(str(cause)), error))

    def eof_received(self) -> None:
        """The server sends no more; returning None closes the connection."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._waiter is not None and self._reads_to_end():
            self._complete()
        self._end(HungUp("the server closed the connection" if error is None else str(error)))

    # httptools

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self._waiter is None:
            raise _NoAnswer("an answer came that nobody asked for")
        self._is_head_read = False
        self._headers, self._head_bytes, self._chunks, self._size = {}, 0, [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_LIMIT_BYTES:
            raise _NoAnswer(f"headers have more than {_HEAD_LIMIT_BYTES} bytes")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """All headers."""
        self._is_head_read = True
        stated = self._headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._limit_bytes:
            raise _TooMuch(f"the answer says that it has {stated} bytes; the limit is {self._limit_bytes}")

    def on_body(self, chunk: bytes) -> None:
        """A part of the body."""
        self._size += len(chunk)
        if self._size > self._limit_bytes:
            raise _TooMuch(f"the answer has more than {self._limit_bytes} bytes")
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """The whole answer."""
        if self._parser.get_status_code() >= 200:  # below, it only announces the answer
            self._complete()

    def _reads_to_end(self) -> bool:
        """Whether the end of the connection is the end of a body without a stated length."""
        framed = "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "")
        return self._is_head_read and not framed

    def _complete(self) -> None:
        waiter, self._waiter = self._waiter, None
        assert self._transport is not None
        chunks, self._chunks = self._chunks, []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if waiter is not None and not waiter.done():
            waiter.set_result(HttpReply(self._parser.get_status_code(), self._headers, body))
        # An answer before all of the request is out leaves bytes that the next request must not follow.
        if not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
            self._end(HungUp("the exchange was the last on its connection"))


class _NoAnswer(Exception):
    """Beyond a limit, or not asked for."""


class _TooMuch(_NoAnswer):
    """A body beyond the limit."""


def _caused(error: Nonsense, cause: Exception) -> Nonsense:
    error.__cause__ = cause
    return error
