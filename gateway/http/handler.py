"""The HTTP data plane without I/O: a request in, a response out, and no socket in sight.

    path table -> method -> who asks, and whether they may -> content coding -> endpoint -> response
                                                                                   └ error -> status.TABLE -> response

Every transport (our own listener, ASGI) reads a request whole, calls `Handler.handle`, and writes
what it returns. Nothing but cancellation leaves `handle`: errors are responses. A response can be made while it is
written (`messages.Parts`): then it is the transport that asks for each part, when the one before it has left.

Errors read as their readers expect: on `/v1` as problem details (RFC 9457), elsewhere as `{"error": "..."}`, which is
what clients of the Open Inference Protocol look for; the problem details have an `error` member as well.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from backends.contract import record
from backends.errors import Code, PointsmanError, TooLarge
from gateway.http.content_coding import decoded
from gateway.http.messages import HttpRequest, HttpResponse, Parts, json_response
from gateway.http.paths import UNMATCHED, PathEntry, PathTable, WrongMethod
from gateway.request import Caller
from gateway.security import ANYBODY, LOOPBACK_ONLY, Authenticator, TrustedHosts, refuse_foreign_pages, require_role
from gateway.status import Refusal, refusal_of

PROBLEM_TYPES = "tag:pointsman,2025:problem:"
"""What problem types begin with; the code follows."""

_UNPACK_INLINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request may take.

    Attributes:
        body_bytes: of a body, before and after content decoding.
        json_bytes: of JSON, which costs far more time and memory per byte than binary tensors do. orjson lets no other
            thread run while it reads: 4 MiB take it 50 ms at most (see also `strict_json.MAX_NODES`).
        body_timeout_s: for a body to arrive whole.
        wait_s: longest long poll.
        streams_per_caller: event streams that one caller can have open, in one process.
        streams_per_tenant: those of one tenant.
    """

    body_bytes: int = 64 * 1024 * 1024
    json_bytes: int = 4 * 1024 * 1024
    body_timeout_s: float = 30.0
    wait_s: float = 60.0
    streams_per_caller: int = 256
    streams_per_tenant: int = 1024


@record
class HttpExchange:
    """A request that ended.

    Attributes:
        template: the path's entry in the table, or `paths.UNMATCHED`: never what a caller invented.
        status: of the response; 499 where the caller left before it.
    """

    template: str
    status: int
    duration_s: float


class HttpObserver(Protocol):
    """Takes the exchanges; must not raise, and must be quick: it is called on the event loop."""

    def on_http(self, exchange: HttpExchange) -> None:
        """A request ended."""
        ...


class Handler:
    """Answers every request of the HTTP data plane. Single event loop."""

    def __init__(
        self,
        entries: Iterable[PathEntry],
        authenticator: Authenticator,
        observer: HttpObserver,
        limits: HttpLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        hosts: TrustedHosts = LOOPBACK_ONLY,
    ) -> None:
        """Serve *entries*; *hosts* are the Host headers under which callers are served where none needs a key."""
        self.limits = limits or HttpLimits()
        self._table = PathTable(entries)
        self._authenticator = authenticator
        self._observer = observer
        self._clock = clock
        self._hosts = hosts

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer *request*; raises nothing but cancellation.

        The response to HEAD is GET's, body included: the transport leaves it out, and keeps its length.
        """
        started = self._clock()
        template, status, parts = UNMATCHED, 499, None
        try:
            try:
                match = self._table.match(request.method, request.path)
                template = match.entry.template
                caller = self._admit(match.entry, request)
                if len(request.body) > self.limits.body_bytes or "content-encoding" in request.headers:
                    request = await self._unpacked(request)
                response = await match.entry.endpoint(caller, request, match.parameters)
            except WrongMethod as error:
                template = error.template
                response = _refused(request, error, [("allow", ", ".join(error.allowed))])
            except Exception as error:
                response = _refused(request, error)
            status, parts = response.status, response.parts
            if parts is None:
                return response

            def ended() -> None:
                self._observer.on_http(HttpExchange(template, status, self._clock() - started))

            return replace(response, parts=_Observed(parts, ended))
        finally:
            if parts is None:
                self._observer.on_http(HttpExchange(template, status, self._clock() - started))

    def refuse(self, request: HttpRequest, error: PointsmanError) -> HttpResponse:
        """The response to a request that its transport could not read whole (too large, too slow)."""
        response = _refused(request, error, [("connection", "close")])
        self._observer.on_http(HttpExchange(UNMATCHED, response.status, 0.0))
        return response

    def _admit(self, entry: PathEntry, request: HttpRequest) -> Caller:
        """Who asks, if they may; what needs no role is open to every page too, as it tells nothing and does nothing."""
        if entry.role is None:
            return ANYBODY
        caller = self._authenticator.authenticate(request.headers)
        if not self._authenticator.needs_key:
            self._hosts.check(request.headers.get("host", ""))
            refuse_foreign_pages(request.headers)
        require_role(caller, entry.role)
        return caller

    async def _unpacked(self, request: HttpRequest) -> HttpRequest:
        if len(request.body) > self.limits.body_bytes:
            raise TooLarge(f"the body has {len(request.body)} bytes; at most {self.limits.body_bytes} are read")
        coding = request.headers.get("content-encoding")
        if not coding or not request.body:
            return request
        if len(request.body) <= _UNPACK_INLINE_BYTES:
            body = decoded(request.body, coding, self.limits.body_bytes)
        else:
            body = await asyncio.to_thread(decoded, request.body, coding, self.limits.body_bytes)
        return replace(request, body=body)


class _Observed:
    """Parts with whose end their exchange ends; implements `messages.Parts`."""

    def __init__(self, parts: Parts, on_end: Callable[[], None]) -> None:
        self._parts = parts
        self._on_end: Callable[[], None] | None = on_end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._parts)

    async def aclose(self) -> None:
        on_end, self._on_end = self._on_end, None
        try:
            await self._parts.aclose()
        finally:
            if on_end is not None:
                on_end()


def _refused(request: HttpRequest, error: Exception, headers: Iterable[tuple[str, str]] = ()) -> HttpResponse:
    refusal = refusal_of(error)
    found = list(headers)
    if refusal.retry_after_s is not None:
        found.append(("retry-after", str(max(1, math.ceil(refusal.retry_after_s)))))
    if refusal.code is Code.UNAUTHENTICATED:
        found.append(("www-authenticate", "Bearer"))
    if refusal.answer_id is not None:
        found += (("location", f"/v1/answers/{refusal.answer_id}"), ("pointsman-answer-id", refusal.answer_id))
    body = _problem(refusal) if request.path.startswith("/v1/") else {"error": refusal.message}
    if refusal.answer_id is not None:
        body["pointsman_answer_id"] = refusal.answer_id
    response = json_response(body, refusal.wire.http, found)
    if not request.path.startswith("/v1/"):
        return response
    return replace(response, headers=[("content-type", "application/problem+json"), *found])


def _problem(refusal: Refusal) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "type": f"{PROBLEM_TYPES}{refusal.code}",
        "title": refusal.wire.title,
        "status": refusal.wire.http,
        "detail": refusal.message,
        "error": refusal.message,
    }
    if refusal.error_id is not None:
        problem["error_id"] = refusal.error_id
    return problem
