"""Server-sent events: what becomes of an answer, told as it happens, until nothing of it is open any more.

    id: 2                       the revision; a client that comes back says `Last-Event-ID: 2`, and misses nothing
    data: {"answer_id": ...}    the answer as it is then, as `GET /v1/answers/{id}` tells it

The answer as it is comes at once, unless the client has seen it, and then each change. A client that reads slowly is
told the newest of several changes, which holds them all. A comment every 15 s shows that the stream is alive, and finds
out whether its client is. A stream that ends before its answer does (this gateway drains, the store cannot be read, or
an hour is over) says with `retry` when to come back; browsers then do so by themselves. Who comes back for an answer
that is closed, and has seen it so, is told 204, by which browsers come no more.

Each stream costs a connection and a task, and so there are limits for a caller and a tenant, in each process.

Source: the HTML standard, 9.2 (server-sent events).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import orjson

from backends.errors import PointsmanError, QuotaExceeded
from gateway.answer import Answer
from gateway.http.handler import HttpLimits
from gateway.oip.render import told
from gateway.request import Caller
from gateway.service import Service

HEADERS = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store"),
    ("vary", "Prefer, Accept"),
    ("x-accel-buffering", "no"),  # nginx would keep events until it has a page of them
)

KEEP_ALIVE_S = 15.0
MAX_STREAM_S = 3600.0
"""After this long, a client is asked to come back: connections move on to other processes so."""

_KEEP_ALIVE = b":\n\n"
_RETRY_MS, _RETRY_SPREAD_MS = 1000, 2000
_LAST_SEEN = re.compile(r"[0-9]{1,9}")

_K = TypeVar("_K", bound=Hashable)

Write = Callable[[Answer], object]
"""An answer as JSON has it, for orjson."""


def are_wanted(headers: Mapping[str, str]) -> bool:
    """Whether Accept asks for events."""
    ranges = (part.split(";") for part in headers.get("accept", "").lower().split(","))
    return any(
        name.strip() == "text/event-stream" and not any(re.fullmatch(r"\s*q=0(\.0*)?\s*", p) for p in parameters)
        for name, *parameters in ranges
    )


def last_seen(headers: Mapping[str, str]) -> int | None:
    """The revision that the client has seen; None where it has seen none, or says something that is none."""
    value = headers.get("last-event-id", "").strip()
    return int(value) if _LAST_SEEN.fullmatch(value) else None


@dataclass(frozen=True, slots=True)
class EventStreams:
    """The streams that are open. Single event loop."""

    service: Service
    limits: HttpLimits
    write: Write
    clock: Callable[[], float] = time.monotonic
    _by_tenant: Counter[str] = field(default_factory=Counter)
    _by_caller: Counter[tuple[str, str]] = field(default_factory=Counter)

    def open(self, caller: Caller, answer: Answer, seen: int | None) -> AnswerEvents:
        """The events of *answer*, for *caller*, who has seen the revision *seen*; whoever gets them closes them.

        Raises:
            QuotaExceeded: as many are open as may be.
        """
        who = caller.tenant, caller.name
        if self._by_caller[who] >= self.limits.streams_per_caller:
            raise _too_many("caller", self.limits.streams_per_caller)
        if self._by_tenant[caller.tenant] >= self.limits.streams_per_tenant:
            raise _too_many("tenant", self.limits.streams_per_tenant)
        self._by_caller[who] += 1
        self._by_tenant[caller.tenant] += 1

        def leave() -> None:
            _take_away(self._by_caller, who)
            _take_away(self._by_tenant, caller.tenant)

        return AnswerEvents(self, caller, answer, seen, leave)


def _take_away(counter: Counter[_K], key: _K) -> None:
    """Count one less, and forget who has none."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _too_many(whose: str, limit: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"this {whose} has {limit} event streams open, the most there can be; close some, or ask with Prefer: wait",
        retry_after_s=5.0,
    )


class AnswerEvents:
    """The events of one answer; implements `messages.Parts`."""

    def __init__(
        self, streams: EventStreams, caller: Caller, answer: Answer, seen: int | None, leave: Callable[[], None]
    ) -> None:
        self._events = _events(streams, caller, answer, seen)
        self._leave: Callable[[], None] | None = leave

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        """End the stream, and make room for another."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        await self._events.aclose()


async def _events(
    streams: EventStreams, caller: Caller, answer: Answer, seen: int | None
) -> AsyncGenerator[bytes, None]:
    service, clock = streams.service, streams.clock
    until = clock() + MAX_STREAM_S
    if answer.revision != seen:
        yield await told(answer, _event, answer, streams.write)
    while answer.open_items and not service.is_draining and clock() < until:
        try:
            found = await service.answer(caller, answer.id, KEEP_ALIVE_S, answer.revision)
        except PointsmanError:
            break  # whoever comes back is told why
        if found.revision != answer.revision:
            answer = found
            yield await told(answer, _event, answer, streams.write)
        elif not service.is_draining:
            yield _KEEP_ALIVE
    if answer.open_items:
        # Spread by the answer, so that not all who were here come back at once.
        yield b"retry: %d\n\n" % (_RETRY_MS + int(answer.id[-4:], 16) % _RETRY_SPREAD_MS)


def _event(answer: Answer, write: Write) -> bytes:
    written = orjson.dumps(write(answer), option=orjson.OPT_SERIALIZE_NUMPY)
    return b"id: %d\ndata: %b\n\n" % (answer.revision, written)
