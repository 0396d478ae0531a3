"""The handler as an ASGI application: for the control plane, for Ray Serve's ingress, and for tests.

A request is read whole, within the limits and the time for it, before anything works on it. While it is answered,
somebody listens for the client: one that leaves takes its request with it. That costs a task a request, and is why the
data plane has a transport of its own (`gateway.http.listener`); this one is for wherever ASGI is what there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from backends.errors import InvalidInput, PointsmanError, RequestTimeout, TooLarge
from gateway.http.handler import Handler
from gateway.http.messages import HttpRequest, HttpResponse, Parts

_T = TypeVar("_T")

_WRITE_TIMEOUT_S = 30.0
"""For a client to take a part of a reply that is made while it is sent."""

# Any: what ASGI 3.0 puts into scopes and events.
_Scope: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Gone(Exception):
    """The client left before its request was whole."""


class AsgiApp:
    """`Handler` behind ASGI 3.0."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection of the server's."""
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await _lifespan(receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1003})

    async def _http(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        head = _head(scope)
        try:
            _check_host(scope)
            body = await self._body(head, receive)
        except _Gone:
            return
        except PointsmanError as error:
            response: HttpResponse | None = self._handler.refuse(head, error)
        else:
            whole = HttpRequest(head.method, head.path, head.query, head.headers, body)
            response = await self._answer(whole, receive)
        if response is not None and response.parts is not None:
            try:
                with suppress(TimeoutError):  # the server ends what is not finished
                    await _unless_gone(_send_parts(response, response.parts, head.method, send), receive)
            finally:
                await response.parts.aclose()
        elif response is not None:
            await _send(response, head.method, send)

    async def _answer(self, request: HttpRequest, receive: _Receive) -> HttpResponse | None:
        """The response to *request*; None where its client has left. One that nobody gets is closed."""
        answering = asyncio.ensure_future(self._handler.handle(request))
        response = None
        try:
            response = await _unless_gone(answering, receive)
        finally:
            # It may have been made in the very moment in which the client left, or the server gave up.
            if response is None and answering.done() and not answering.cancelled():
                unsent = answering.result()
                if unsent.parts is not None:
                    await unsent.parts.aclose()
        return response

    async def _body(self, head: HttpRequest, receive: _Receive) -> bytes:
        """The body; never holds more than the limit, and no declared excess at all.

        Raises:
            TooLarge: it is, or declares to be, longer than the limit.
            RequestTimeout: it did not arrive in time.
            _Gone: the client left.
        """
        limits = self._handler.limits
        if _declared(head) > limits.body_bytes:
            raise TooLarge(f"the body has {_declared(head)} bytes; at most {limits.body_bytes} are read")
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while more:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise _Gone
                    part = event.get("body", b"")
                    more = event.get("more_body", False)
                    size += len(part)
                    if size > limits.body_bytes:
                        raise TooLarge(f"the body is longer than {limits.body_bytes} bytes, the most that is read")
                    if part:
                        parts.append(part)
        except TimeoutError as error:
            raise RequestTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _head(scope: _Scope) -> HttpRequest:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    found: dict[str, str] = {}
    names: Sequence[tuple[bytes, bytes]] = scope["headers"]
    for name, value in names:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return HttpRequest(
        scope["method"].upper(), raw_path.decode("latin-1"), scope["query_string"].decode("latin-1"), found
    )


def _check_host(scope: _Scope) -> None:
    """Refuse what two readers would take for requests to different hosts.

    Raises:
        InvalidInput: HTTP/1.1 without a Host, or with several.
    Source:
        RFC 9112, 3.2.
    """
    hosts = sum(name.lower() == b"host" for name, _ in scope["headers"])
    if scope.get("http_version") == "1.1" and hosts != 1:
        raise InvalidInput(f"the request has {hosts} Host headers; HTTP/1.1 needs exactly one")


def _declared(head: HttpRequest) -> int:
    value = head.headers.get("content-length", "0")
    if not (value.isascii() and value.isdigit()):
        raise InvalidInput("Content-Length is not a number of bytes")
    return int(value) if len(value) < 20 else 10**20


async def _unless_gone(work: Awaitable[_T], receive: _Receive) -> _T | None:
    """The result of *work*, or None and *work* cancelled, once the client has left."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(response: HttpResponse, method: str, send: _Send) -> None:
    fields = _fields(response)
    fields.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else response.body})


async def _send_parts(response: HttpResponse, parts: Parts, method: str, send: _Send) -> None:
    """Send a body as it is made, no faster than the client takes it; one that does not take a part is left."""
    await send({"type": "http.response.start", "status": response.status, "headers": _fields(response)})
    if method != "HEAD":
        async for part in parts:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _fields(response: HttpResponse) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]


async def _lifespan(receive: _Receive, send: _Send) -> None:
    """Nothing is started or stopped with the server; it is only told that all is well."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
