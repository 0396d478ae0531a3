"""What the data plane reports as it works: small frozen records, and the hook that takes them.

`gateway.telemetry` turns them into metrics, and into spans what carries a `Span`; the pipeline and the edges know no
library for either.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from backends.contract import record
from backends.errors import Code
from backends.trace_context import TraceContext
from gateway.request import Protocol as RequestProtocol
from router.contract import Decision


class Outcome(StrEnum):
    """How a request ended, for its caller."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    REFUSED = "refused"
    ERROR = "error"

    @classmethod
    def of(cls, code: Code) -> Outcome:
        """The outcome that an error with *code* is: ours to answer for, or a refusal."""
        return cls.ERROR if code in (Code.INTERNAL, Code.BACKEND_FAILED) else cls.REFUSED


@record
class Span:
    """A part of a trace that is recorded.

    Attributes:
        context: its own.
        parent: what it is a part of; None where the trace begins with it.
    """

    context: TraceContext
    parent: TraceContext | None


def part_of(trace: TraceContext | None) -> Span | None:
    """A new span within *trace*; None where none is recorded."""
    return Span(trace.child(), trace) if trace is not None and trace.is_recorded else None


@record
class RequestTrace:
    """What is told of a request in its trace alone.

    Attributes:
        tenant: whose it is.
        items: how many; 0 where it failed.
        answer_id: "" where it failed.
        code: of the error that its caller was told; None where there was none.
    """

    span: Span
    tenant: str
    items: int
    answer_id: str
    code: Code | None


@record
class RequestReport:
    """A request that ended.

    Attributes:
        route: a route that exists, or "" where the request named none.
        duration_s: from the edge's call to its answer.
        version: of the route, that answered, where it has several; "" where it has not, or none was chosen.
        trace: None where it is not recorded.
    """

    route: str
    protocol: RequestProtocol
    outcome: Outcome
    duration_s: float
    version: str = ""
    trace: RequestTrace | None = None


@record
class StageReport:
    """One stage that ran for one request.

    Attributes:
        duration_s: queueing, preprocessing and the model.
        decisions: one an item; empty where it failed.
        confidences: one an item that had one, in [0, 1].
        version: of the model.
        failure: why it has answered no item, `CANCELLED` where its caller left; None where it has.
        span: None where it is not recorded.
    """

    route: str
    stage: str
    duration_s: float
    decisions: tuple[Decision, ...]
    confidences: tuple[float, ...]
    version: str = ""
    failure: Code | None = None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class DetectorReport:
    """A detector that was asked about one request.

    Attributes:
        duration_s: decoding, queueing and the model.
        failed: it should have answered, and did not.
        span: None where it is not recorded.
    """

    trait: str
    duration_s: float
    failed: bool
    span: Span | None = None


@record
class DecodeReport:
    """The items of a request were decoded; told where that is recorded."""

    decoder: str
    items: int
    duration_s: float
    span: Span


@record
class KeepReport:
    """An answer was committed before its caller heard of it; told where that is recorded.

    Attributes:
        queue: that of the people to whom items were handed over; "" where none were.
        items: those that were, by index in the answer.
    """

    answer_id: str
    queue: str
    items: tuple[int, ...]
    duration_s: float
    span: Span


class Mirrored(StrEnum):
    """What became of an item that a version was shown, and another answered."""

    AGREED = "agreed"
    DIFFERED = "differed"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Items of one request that a version was shown beside the one that answered.

    Attributes:
        outcomes: one an item.
        confidence_changes: how much surer it was than the version that answered, in [-1, 1]; one for each item that
            both had a confidence for.
    """

    route: str
    version: str
    outcomes: tuple[Mirrored, ...]
    confidence_changes: tuple[float, ...] = ()


class PipelineObserver(Protocol):
    """Takes the reports; must not raise, and must be quick: it is called on the event loop."""

    def on_request(self, report: RequestReport) -> None:
        """A request ended."""
        ...

    def on_stage(self, report: StageReport) -> None:
        """A stage ran, or failed to."""
        ...

    def on_detector(self, report: DetectorReport) -> None:
        """A detector was asked."""
        ...

    def on_shadow(self, report: ShadowReport) -> None:
        """A version was shown a request, or was to be."""
        ...

    def on_decode(self, report: DecodeReport) -> None:
        """Items were decoded."""
        ...

    def on_keep(self, report: KeepReport) -> None:
        """An answer was committed."""
        ...
