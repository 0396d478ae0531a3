"""The HTTP data plane's transport: accepts connections, times them, and lets a `Handler` answer.

    accept ─► Connection ─ bytes ─► RequestReader ─ HttpRequest ─► Handler.handle, in a task ─ HttpResponse ─► bytes

A connection has one request at work at a time. What a client sends meanwhile is held, up to a limit, and read when the
reply is written, so that replies are in order without anything that orders them; at the limit nothing more is taken
from the socket. A connection has one timer, whose deadline is moved with its phase, and a task only while a request is
answered.

Phases, and what ends each when it takes too long:

    IDLE       nothing of a request is here                  closed
    HEAD       a part of its head is here                    408
    BODY       its head is here                              408
    ANSWERING  it is at work; the handler has the time       the probe of a client that may have left, see `_probe`
    STREAMING  its reply is being made; the handler has the  aborted, where the client does not take a part of it
               time, and the client to take each part
    WRITING    the client does not read its reply            aborted, unless it has taken a fair part of it
    ENDING     nothing more is read; the rest goes out       aborted

A reply that is made while it is sent (`messages.Parts`) is asked for its next part when the client has taken the one
before it, so that one that reads slowly is not written to ahead. Such a reply may go on for an hour, so a client that
ends its side meanwhile has left: it cannot be asked whether it has, as another could (see `_probe`), in mid-reply.

Nothing here knows what a request means.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self, cast

from backends.errors import PointsmanError, RequestTimeout
from gateway.http.handler import Handler
from gateway.http.messages import HttpRequest, HttpResponse, Parts
from gateway.http.protocol import (
    CONTINUE,
    LAST_CHUNK,
    Dates,
    Heads,
    RequestReader,
    WireLimits,
    encode_chunk,
    encode_head,
    is_last,
)

log = logging.getLogger("pointsman.http")

_BACKLOG = 2048
_ACCEPTS_A_TURN = 64
_JOINED_BYTES = 16 * 1024
"""Up to here head and body are copied into one write; a longer body goes out as it is."""

_NOTHING_READ = HttpRequest("", "")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        wire: what its requests may take.
        head_timeout_s: from the first byte of a head to its end.
        idle_timeout_s: between requests.
        write_timeout_s: in which a client must take all of a reply, or `write_bytes` of it.
        ending_timeout_s: what a refused client gets to read its refusal, while whatever it still sends is dropped.
        held_bytes: sent ahead of a reply, beyond which nothing more is read.
        accept_retry_s: until connections are accepted again, when file descriptors have run out.
        probe_s: from a client's end of its side to the first look whether it has left altogether.
    """

    wire: WireLimits = field(default_factory=WireLimits)
    head_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    write_bytes: int = 256 * 1024
    ending_timeout_s: float = 2.0
    held_bytes: int = 64 * 1024
    accept_retry_s: float = 0.5
    probe_s: float = 0.02


class _Phase(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    STREAMING = auto()
    WRITING = auto()
    ENDING = auto()


class HttpListener:
    """Serves *handler* on a bound socket, from `__aenter__` on."""

    def __init__(
        self,
        handler: Handler,
        bound: socket.socket,
        grace_s: float,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen on *bound*; what was accepted gets *grace_s* seconds from `close` on."""
        self.handler = handler
        self.limits = limits or ConnectionLimits()
        self.dates = Dates()
        self.heads = Heads(self.limits.wire)
        self.retired = False
        self.closing = False
        self.connections: set[Connection] = set()
        self._bound = bound
        self._grace_s = grace_s
        self._tls = tls
        self._joining: set[asyncio.Task[Any]] = set()  # Any: a transport and a protocol that nobody looks at
        self._retry: asyncio.TimerHandle | None = None
        self._exhausted = False
        self._closed_at = math.inf
        self._cancelled: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._bound.setblocking(False)
        self._bound.listen(_BACKLOG)
        self._loop.add_reader(self._bound, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        try:
            async with asyncio.timeout_at(self._closed_at + self._grace_s):
                while self._joining:
                    await asyncio.wait(self._joining)
                await self._empty.wait()
        except TimeoutError:
            log.warning("%d connections did not end in time; they are cut off", len(self.connections))
        finally:
            self.abort()
        await self._empty.wait()
        if self._cancelled:
            await asyncio.wait(self._cancelled)

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Greet new connections by *context*; those that are here go on with what they were greeted by."""
        self._tls = context

    def retire(self) -> None:
        """Stop accepting now, and end every connection with its next reply; one that is idle may still ask.

        For a port that others listen on too: who asks again reaches them. What has connected and was not accepted yet
        is, as its connection would be reset otherwise.
        """
        if self.retired:
            return
        while self._accept():
            pass
        self.retired = True
        self._loop.remove_reader(self._bound)
        if self._retry is not None:
            self._retry.cancel()
        self._bound.close()

    def close(self) -> None:
        """Stop accepting now, and end every connection with its reply; closing twice is harmless."""
        if self.closing:
            return
        self.retire()
        self.closing = True
        self._closed_at = self._loop.time()
        for connection in tuple(self.connections):
            connection.close_if_idle()

    def abort(self) -> None:
        """Wait for nothing any more: cut every connection off, and cancel its request."""
        for task in self._joining:
            task.cancel()
        for connection in tuple(self.connections):
            connection.abort()

    def joined(self, connection: Connection) -> None:
        """A connection is there."""
        self.connections.add(connection)
        self._empty.clear()

    def left(self, connection: Connection) -> None:
        """A connection is gone, and its request, if one is at work, is cancelled."""
        self.connections.discard(connection)
        if connection.task is not None:
            connection.task.cancel()
            self._cancelled.add(connection.task)
            connection.task.add_done_callback(self._cancelled.discard)
        if not self.connections:
            self._empty.set()

    def _accept(self) -> bool:
        """Accept who has connected, some at a time; whether there may be more."""
        for _ in range(_ACCEPTS_A_TURN):
            try:
                accepted, _ = self._bound.accept()
            except BlockingIOError:
                self._exhausted = False
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return False
            accepted.setblocking(False)
            joining = self._loop.create_task(self._join(accepted))
            self._joining.add(joining)
            joining.add_done_callback(self._joining.discard)
        return True

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a while: what has run out comes back only when something else ends."""
        if not self._exhausted:
            self._exhausted = True
            log.error("cannot accept connections: %s; trying again every %g s", error, self.limits.accept_retry_s)
        self._loop.remove_reader(self._bound)
        self._retry = self._loop.call_later(self.limits.accept_retry_s, self._resume)

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._bound, self._accept)

    async def _join(self, accepted: socket.socket) -> None:
        """Make *accepted* a connection; that asyncio has no synchronous way to is why this is a task, a short one."""
        try:
            timeout_s = self.limits.head_timeout_s if self._tls else None
            await self._loop.connect_accepted_socket(
                lambda: Connection(self, self._loop), accepted, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
        except (OSError, TimeoutError):  # it left, or did not greet as TLS asks (ssl.SSLError is an OSError)
            accepted.close()
        except BaseException:
            accepted.close()
            raise


class Connection(asyncio.Protocol):
    """One client. The listener makes it, and its event loop calls it."""

    __slots__ = ("_deadline", "_eof", "_held_back", "_limits", "_listener", "_loop", "_phase", "_reader", "_room",
                 "_timer", "_timer_at", "_transport", "_unsent", "_wait_s", "_writable", "task")  # fmt: skip

    def __init__(self, listener: HttpListener, loop: asyncio.AbstractEventLoop) -> None:
        self.task: asyncio.Task[None] | None = None
        self._listener = listener
        self._limits = listener.limits
        self._loop = loop
        self._reader = RequestReader(listener.limits.wire, listener.handler.limits.body_bytes, listener.heads)
        self._phase = _Phase.IDLE
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._deadline = math.inf
        self._eof = False
        self._held_back = False
        self._writable = True
        self._room: asyncio.Future[None] | None = None
        self._unsent = math.inf
        self._wait_s = 0.0
        self._transport: asyncio.Transport

    def __repr__(self) -> str:
        return f"<Connection {self._phase.name}{' after its end' if self._eof else ''}>"

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._listener.joined(self)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: its request goes with it."""
        if self._timer is not None:
            self._timer.cancel()
        self._phase = _Phase.ENDING
        self._listener.left(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came: of a request, or ahead of a reply."""
        match self._phase:
            case _Phase.ENDING:
                return
            case _Phase.ANSWERING | _Phase.STREAMING | _Phase.WRITING:
                self._reader.hold(data)
                if not self._held_back and self._reader.held_bytes > self._limits.held_bytes:
                    self._held_back = True
                    self._transport.pause_reading()
            case _:
                self._read(data)

    def eof_received(self) -> bool:
        """The client sends nothing more; whether it may still be told something."""
        self._eof = True
        if self._phase is _Phase.STREAMING:
            self._transport.abort()
        elif self._phase is _Phase.ANSWERING:
            self._watch()
        return self._phase in (_Phase.ANSWERING, _Phase.WRITING) and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has read most of it."""
        self._writable = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        elif self._phase is _Phase.WRITING:
            self._go_on()

    # --- called by the listener ---

    def close_if_idle(self) -> None:
        """End the connection now if nothing of a request has come, and otherwise with its reply."""
        if self._phase is _Phase.IDLE:
            self._end()

    def abort(self) -> None:
        """End it now."""
        self._transport.abort()

    # --- reading ---

    def _read(self, data: bytes) -> None:
        reader = self._reader
        try:
            request = reader.read(data)
        except PointsmanError as error:
            self._refuse(error)
            return
        if request is not None:
            self._phase = _Phase.ANSWERING
            self._deadline = math.inf
            self.task = self._loop.create_task(self._answer(request))
            if self._eof:
                self._watch()
        elif self._eof:
            self._end()
        elif reader.head is not None:
            if self._phase is not _Phase.BODY:
                self._enter(_Phase.BODY, self._listener.handler.limits.body_timeout_s)
            if reader.wants_continue:
                reader.wants_continue = False
                self._transport.write(CONTINUE)
        elif reader.is_between_requests:
            self._rest()
        elif self._phase is not _Phase.HEAD:
            self._enter(_Phase.HEAD, self._limits.head_timeout_s)

    def _refuse(self, error: PointsmanError) -> None:
        """Tell the client why its request is not read to the end, and end the connection."""
        response = self._listener.handler.refuse(self._reader.head or _NOTHING_READ, error)
        self._write(response, close=True)
        self._end(unread=True)

    # --- answering ---

    async def _answer(self, request: HttpRequest) -> None:
        try:
            response = await self._listener.handler.handle(request)
            without_body = request.method == "HEAD"
            close = not self._reader.keep_alive or self._listener.retired or is_last(response)
            if response.parts is not None:
                close = await self._stream(response, response.parts, close=close, without_body=without_body)
            elif self._phase is _Phase.ANSWERING:
                self._write(response, close=close, without_body=without_body)
            self.task = None  # what follows may make the next one
            if self._phase in (_Phase.ANSWERING, _Phase.STREAMING):
                self._written(close=close)
        except Exception:  # a bug, here or in the handler: the client learns by the end of the connection
            log.exception("a reply could not be written")
            self._transport.abort()
        except BaseException:
            self._transport.abort()
            raise

    async def _stream(self, response: HttpResponse, parts: Parts, *, close: bool, without_body: bool) -> bool:
        """Write a reply as it is made, no faster than its client takes it; whether it is the connection's last."""
        try:
            chunked = self._reader.is_1_1
            close = close or not chunked
            date = self._listener.dates.line()
            self._transport.write(encode_head(response, date, close=close, chunked=chunked))
            if without_body:
                return close
            if self._eof:
                self._transport.abort()
                return True
            self._phase, self._deadline = _Phase.STREAMING, math.inf
            self._transport.set_write_buffer_limits(0)
            async for part in parts:
                if part:
                    self._transport.write(encode_chunk(part) if chunked else part)
                    await self._taken()
            if chunked:
                self._transport.write(LAST_CHUNK)
            self._transport.set_write_buffer_limits()
            return close or self._listener.retired
        finally:
            await parts.aclose()

    async def _taken(self) -> None:
        """Return when the client has taken what was written; one that does not in time is cut off."""
        if self._writable:
            return
        self._unsent = self._transport.get_write_buffer_size()
        self._move(self._loop.time() + self._limits.write_timeout_s)
        self._room = self._loop.create_future()
        try:
            await self._room
        finally:
            self._room, self._deadline = None, math.inf

    def _written(self, *, close: bool) -> None:
        """The reply is written, as far as the client takes it."""
        if close:
            self._end(unread=not self._reader.is_between_requests)
        elif self._writable:
            self._go_on()
        else:
            self._unsent = self._transport.get_write_buffer_size()
            self._enter(_Phase.WRITING, self._limits.write_timeout_s)

    def _go_on(self) -> None:
        """The reply is on its way: to the next request."""
        if self._held_back and self._reader.held_bytes <= self._limits.held_bytes:
            self._held_back = False
            self._transport.resume_reading()
        if self._eof or not self._reader.is_between_requests:
            self._phase = _Phase.IDLE
            self._read(b"")
        else:
            self._rest()

    def _rest(self) -> None:
        """Nothing of another request is here."""
        if self._listener.closing:
            self._end()
        else:
            self._enter(_Phase.IDLE, self._limits.idle_timeout_s)

    def _write(self, response: HttpResponse, *, close: bool, without_body: bool = False) -> None:
        head = encode_head(response, self._listener.dates.line(), close=close)
        if without_body or not response.body:
            self._transport.write(head)
        elif len(response.body) <= _JOINED_BYTES:
            self._transport.write(head + response.body)
        else:
            self._transport.writelines((head, response.body))

    def _end(self, *, unread: bool = False) -> None:
        """End the connection when everything is written.

        Where the client has sent something that is *unread*, or may still be sending, the sending side ends first, and
        what comes is dropped for a while: a socket that is closed with something unread in it takes back what it has
        sent last, and the client would not learn why.
        """
        transport = self._transport
        if self._held_back:
            self._held_back = False
            transport.resume_reading()
        if unread and not self._eof and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
        self._unsent = math.inf
        self._enter(_Phase.ENDING, self._limits.ending_timeout_s)

    # --- time ---

    def _enter(self, phase: _Phase, within_s: float) -> None:
        self._phase = phase
        self._move(self._loop.time() + within_s)

    def _move(self, deadline: float) -> None:
        """Set the deadline; the timer is only touched if it would be late, as it finds out by itself if it is early."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._on_timer)
            self._timer_at = deadline

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._move(self._deadline)
            return
        self._deadline = math.inf
        match self._phase:
            case _Phase.IDLE:
                self._end()
            case _Phase.HEAD:
                limit_s = self._limits.head_timeout_s
                self._refuse(RequestTimeout(f"the headers did not arrive within {limit_s:g} s"))
            case _Phase.BODY:
                limit_s = self._listener.handler.limits.body_timeout_s
                self._refuse(RequestTimeout(f"the body did not arrive within {limit_s:g} s"))
            case _Phase.ANSWERING:
                self._probe()
            case _Phase.STREAMING | _Phase.WRITING | _Phase.ENDING:
                self._unread()

    def _unread(self) -> None:
        """Abort, unless the client has taken a fair part of what it is sent since the last time."""
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent <= self._unsent - self._limits.write_bytes:
            self._unsent = unsent
            self._move(self._loop.time() + self._limits.write_timeout_s)
        else:
            self._transport.abort()

    def _watch(self) -> None:
        self._wait_s = self._limits.probe_s
        self._move(self._loop.time() + self._wait_s)

    def _probe(self) -> None:
        """Find out whether a client that has ended its side is still there.

        One that has only finished sending waits for its reply; one that has closed its socket has left, and TCP tells
        the two apart only when something is sent. 100 (Continue) is what every client of HTTP/1.1 must be ready to drop
        (RFC 9110, 15.2). The machine of one that has left answers it with a reset, which is found here the next time.
        """
        connection = self._transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
            return
        if self._wait_s == self._limits.probe_s and self._reader.is_1_1:
            self._transport.write(CONTINUE)
        self._wait_s = min(2 * self._wait_s, 1.0)
        self._move(self._loop.time() + self._wait_s)
