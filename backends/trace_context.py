"""W3C Trace Context: which trace a call belongs to, as it travels from server to server.

A server that passes a call on keeps the trace's id and puts an id of its own in place of its caller's, so that each
sees by whom it was called. That needs no tracing library, and is done whether anybody here records spans or not.

What cannot be read is ignored and never an error: a trace is about requests, and must not be what they fail by.

Source: W3C Trace Context, level 1 (Recommendation, 23 November 2021), and of level 2 the flag `random`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

_PARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE: Final = re.compile(
    r"(?:[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MOST_ENTRIES: Final = 32
_MOST_STATE: Final = 512  # characters that everybody should pass on; no more are
_SAMPLED: Final = 1
_KNOWN_FLAGS: Final = 3  # sampled, random
_IDS: Final = random.Random()  # noqa: S311 (ids are to be unique, and no secret)


@dataclass(slots=True, unsafe_hash=True)
class TraceContext:
    """A span, as others refer to it: what a call passes on in its headers or metadata.

    Frozen in effect, and no frozen dataclass, as one is made for each request that is traced (see `contract.record`).

    Attributes:
        traceparent: version 00: `00-<trace id>-<span id>-<flags>`, in lower-case hexadecimal.
        tracestate: what tracing systems on the way keep there; "" where they keep nothing.
        is_recorded: this process keeps the span, so spans within it are worth telling of.
    """

    traceparent: str
    tracestate: str = ""
    is_recorded: bool = False

    @classmethod
    def begin(cls, *, sampled: bool) -> Self:
        """The first span of a trace; it is recorded if it is *sampled*."""
        trace_id, span_id = _IDS.getrandbits(128) or 1, _IDS.getrandbits(64) or 1
        return cls(f"00-{trace_id:032x}-{span_id:016x}-0{sampled:d}", "", sampled)

    @classmethod
    def read(cls, traceparent: str, tracestate: str = "") -> Self | None:
        """What a caller has sent; None where *traceparent* is malformed. A malformed *tracestate* is left out."""
        found = _PARENT.fullmatch(traceparent)
        if found is None or (found[5] is not None and found[1] == "00"):
            return None
        flags = int(found[4], 16) & (_KNOWN_FLAGS if found[1] == "00" else _SAMPLED)
        return cls(f"00-{found[2]}-{found[3]}-{flags:02x}", _state(tracestate) if tracestate else "")

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        return self.traceparent[36:52]

    @property
    def is_sampled(self) -> bool:
        """Whether the trace's spans are wanted."""
        return self.traceparent[54] in "13"

    def child(self) -> Self:
        """A span within this one."""
        text = self.traceparent
        state, recorded = self.tracestate, self.is_recorded
        return type(self)(f"{text[:36]}{_IDS.getrandbits(64) or 1:016x}{text[52:]}", state, recorded)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What a call carries: HTTP headers, or gRPC metadata."""
        if not self.tracestate:
            return (("traceparent", self.traceparent),)
        return (("traceparent", self.traceparent), ("tracestate", self.tracestate))


def trace_in(headers: Mapping[str, str]) -> TraceContext | None:
    """The caller's span in *headers* or metadata, by lower-case name; None where there is none that can be read."""
    traceparent = headers.get("traceparent")
    return None if traceparent is None else TraceContext.read(traceparent, headers.get("tracestate", ""))


def foremost(traces: Iterable[TraceContext]) -> TraceContext:
    """The one of *traces* (at least one) that stands for all: the first that is sampled, or else the first.

    What is done for several at once belongs to one trace alone; in the others it is linked.
    """
    first: TraceContext | None = None
    for trace in traces:
        if trace.is_sampled:
            return trace
        first = first or trace
    assert first is not None, "nobody's trace was asked for. This is a bug."
    return first


def _state(text: str) -> str:
    """*text* without spaces around entries, and without the last ones where it is long; "" where it is malformed."""
    entries = [entry for part in text.split(",") if (entry := part.strip(" \t"))]
    keys = {entry.partition("=")[0] for entry in entries}
    if len(entries) > _MOST_ENTRIES or len(keys) < len(entries) or not all(map(_STATE.fullmatch, entries)):
        return ""
    kept, size = [], -1
    for entry in entries:
        size += 1 + len(entry)
        if size > _MOST_STATE:
            break
        kept.append(entry)
    return ",".join(kept)
