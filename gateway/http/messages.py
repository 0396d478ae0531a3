"""HTTP without I/O: a request that has been read, a response to be written, and what an endpoint is.

The transport (our own listener, or ASGI for Ray Serve's ingress) reads and writes; handlers only turn
one of these into the other, so that every transport serves the same data plane and tests need no socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, TypeAlias

import orjson

from backends.contract import record
from gateway.request import Caller

Body: TypeAlias = bytes | memoryview


@record(eq=False)
class HttpRequest:
    """A request as it arrived, body complete.

    Attributes:
        method: upper-case.
        path: the raw path, percent-encoding untouched, without the query.
        query: the raw query string, without "?".
        headers: by lower-case name; a repeated header's values joined by ", ".
        body: after transfer decoding, before content decoding. A long one is a view on where it was put.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""

    @property
    def octets(self) -> bytes:
        """The body as bytes, for those who read no tensors; a view is copied."""
        return bytes(self.body)


class Parts(Protocol):
    """A body that is made while it is sent. Whoever is given one closes it, however far it was read."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its parts; each may take its time, and goes out at once."""
        ...

    async def aclose(self) -> None:
        """Free what it holds; closing twice is harmless."""
        ...


@record(eq=False)
class HttpResponse:
    """A response to write; the transport adds Content-Length, Date and Connection, and withholds the body from HEAD.

    Attributes:
        parts: the body, where it is made while it is sent, and has no length; None: it is `body`.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    parts: Parts | None = None


PathParameters: TypeAlias = Mapping[str, str]
Endpoint: TypeAlias = Callable[[Caller, HttpRequest, PathParameters], Awaitable[HttpResponse]]
"""Answers a request whose caller is known and whose path matched; raises PointsmanError to refuse."""


def json_response(value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> HttpResponse:
    """*value* as JSON (Any: whatever orjson takes, NumPy arrays included)."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return HttpResponse(status, [("content-type", "application/json"), *headers], body)
