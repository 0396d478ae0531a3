"""Reports as spans: which span each is, what it is called, and what it tells.

    SERVER   POST /v2/models/{model}/infer              one a request, within its caller's
      decode utf8
      detect language                                   a detector that was asked
      stage tickets-fast                                a model that was asked about the open items
        queue tickets-fast                              from the batcher's door to a batch
        batch tickets-fast                              within the foremost caller's stage, linked to all callers'
          CLIENT   call tickets-fast                    each attempt at a server; what `traceparent` names there
      keep                                              the commit that a reply waits for, and tasks for people

Attributes have the names of OpenTelemetry's semantic conventions (HTTP, RPC and error, 1.40) where these have one, and
begin with `pointsman.` elsewhere. None holds what a caller has sent, but for the tenant, which is the API key's.

A caller that sends a trace decides whether its request is recorded; of the others a share is, drawn at random.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

import grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from backends.contract import ServerCall
from backends.errors import Code, PointsmanError
from backends.trace_context import TraceContext, foremost
from batching.report import BatchReport
from batching.report import Outcome as BatchOutcome
from gateway.observe import DecodeReport, DetectorReport, KeepReport, Outcome, RequestReport, Span, StageReport
from gateway.oip.metadata import SERVER_VERSION
from gateway.request import Protocol
from gateway.status import TABLE
from gateway.tracing.export import SpanQueue, SpanStatistics
from gateway.tracing.options import TracesOptions
from router.contract import Decision

_Value: TypeAlias = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
_Attributes: TypeAlias = Mapping[str, _Value]

_MOST_LISTED = 64
"""Most items whose decisions are told one by one."""

_MOST_LINKS = 128
"""As in the SDK."""

_HTTP = {
    Protocol.OIP_HTTP: "/v2/models/{model}/infer",
    Protocol.V1_HTTP: "/v1/routes/{route}:decide",
}
_RPC = {
    Protocol.OIP_GRPC: "inference.GRPCInferenceService/ModelInfer",
    Protocol.V1_GRPC: "pointsman.v1.Gateway/Decide",
}
_FAILED_CALLS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Statuses that the conventions for RPC call an error of the server."""

_UNSET = Status(StatusCode.UNSET)


class Tracing:
    """Begins traces, and builds spans of what is reported. Single event loop."""

    def __init__(self, options: TracesOptions) -> None:
        """Begin to export.

        Raises:
            ValueError: the receiver's headers cannot be read.
        """
        self._sample = options.sample
        self._draw = random.Random().random  # noqa: S311 (spreads load, no secret)
        self._resource = _resource(options.service_name)
        self._scope = InstrumentationScope("pointsman", SERVER_VERSION)
        self._queue = SpanQueue(options)

    def begin(self, caller: TraceContext | None) -> TraceContext:
        """The span of a request: within its *caller*'s, or the first of a trace."""
        if caller is None:
            return TraceContext.begin(sampled=self._draw() < self._sample)
        found = caller.child()
        return TraceContext(found.traceparent, found.tracestate, found.is_sampled)

    def statistics(self) -> SpanStatistics:
        """What became of the spans so far."""
        return self._queue.statistics()

    async def aclose(self) -> None:
        """Send what waits; see `SpanQueue.aclose`."""
        await self._queue.aclose()

    def on_request(self, report: RequestReport) -> None:
        """A request ended."""
        trace = report.trace
        if trace is None:
            return
        attributes: dict[str, _Value] = {
            "pointsman.route": report.route,
            "pointsman.protocol": report.protocol.value,
            "pointsman.outcome": report.outcome.value,
            "pointsman.tenant": trace.tenant,
        }
        if trace.answer_id:
            attributes |= {"pointsman.items": trace.items, "pointsman.answer.id": trace.answer_id}
        name, status = _call(report, trace.code, attributes)
        self._put(name, trace.span, report.duration_s, attributes, SpanKind.SERVER, status)

    def on_stage(self, report: StageReport) -> None:
        """A stage ran, or failed to."""
        if report.span is None:
            return
        attributes: dict[str, _Value] = {
            "pointsman.route": report.route,
            "pointsman.model.name": report.stage,
            "pointsman.model.version": report.version,
            "pointsman.items": len(report.decisions),
        }
        for decision in Decision:
            if count := report.decisions.count(decision):
                attributes[f"pointsman.items.{decision.value}"] = count
        if len(report.decisions) <= _MOST_LISTED:
            attributes["pointsman.decisions"] = [decision.value for decision in report.decisions]
            attributes["pointsman.confidences"] = report.confidences
        if report.confidences:
            attributes["pointsman.confidence.min"] = min(report.confidences)
        self._put(f"stage {report.stage}", report.span, report.duration_s, attributes, failure=report.failure)

    def on_detector(self, report: DetectorReport) -> None:
        """A detector was asked."""
        if report.span is not None:
            attributes: _Attributes = {"pointsman.detector": report.trait}
            status = Status(StatusCode.ERROR) if report.failed else _UNSET
            self._put(f"detect {report.trait}", report.span, report.duration_s, attributes, status=status)

    def on_decode(self, report: DecodeReport) -> None:
        """Items were decoded."""
        attributes: _Attributes = {"pointsman.decoder": report.decoder, "pointsman.items": report.items}
        self._put(f"decode {report.decoder}", report.span, report.duration_s, attributes)

    def on_keep(self, report: KeepReport) -> None:
        """An answer was committed."""
        attributes: dict[str, _Value] = {"pointsman.answer.id": report.answer_id}
        if report.items:
            attributes |= {"pointsman.review.queue": report.queue, "pointsman.review.items": report.items}
        self._put("keep", report.span, report.duration_s, attributes)

    def on_batch(self, report: BatchReport) -> None:
        """A batch ran."""
        trace = report.trace
        if trace is None:
            return
        own = trace.span
        to_batch = [Link(_context(own))]
        for caller in trace.callers:
            if caller.queued_s is not None and caller.trace.is_recorded:
                waited = Span(caller.trace.child(), caller.trace)
                attributes: dict[str, _Value] = {"pointsman.model.name": report.model}
                name = f"queue {report.model}"
                self._put(name, waited, caller.queued_s, attributes, links=to_batch, ended_s_ago=report.infer_s)
        attributes = {
            "pointsman.model.name": report.model,
            "pointsman.batch.size": report.size,
            "pointsman.batch.callers": report.entries,
            "pointsman.batch.outcome": report.outcome.value,
        }
        if report.padding is not None:
            attributes["pointsman.batch.padding_ratio"] = report.padding
        links = [Link(_context(caller.trace)) for caller in trace.callers[:_MOST_LINKS]]
        span = Span(own, foremost([caller.trace for caller in trace.callers]))
        failure = None
        if report.outcome is BatchOutcome.FAILED:
            failure = report.error.code if isinstance(report.error, PointsmanError) else Code.INTERNAL
        self._put(f"batch {report.model}", span, report.infer_s, attributes, failure=failure, links=links)
        for call in trace.server_calls:
            self._put_call(report.model, call, own)

    def _put_call(self, model: str, call: ServerCall, batch: TraceContext) -> None:
        attributes: dict[str, _Value] = {"pointsman.model.name": model, "pointsman.attempt": call.attempt}
        attributes |= _server(call.address)
        status = _UNSET
        if call.failure:
            attributes["error.type"] = call.failure
            status = Status(StatusCode.ERROR, call.failure)
        self._put(
            f"call {model}",
            Span(call.span, batch),
            call.ended_s - call.started_s,
            attributes,
            SpanKind.CLIENT,
            status,
            ended_s_ago=time.monotonic() - call.ended_s,
        )

    def _put(
        self,
        name: str,
        span: Span,
        duration_s: float,
        attributes: _Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status = _UNSET,
        *,
        failure: Code | None = None,
        links: Sequence[Link] = (),
        ended_s_ago: float = 0.0,
    ) -> None:
        if failure is not None:
            attributes = {**attributes, "error.type": failure.value}
            status = _UNSET if failure is Code.CANCELLED else Status(StatusCode.ERROR, failure.value)
        ended_ns = time.time_ns() - int(1e9 * ended_s_ago)
        self._queue.put(
            ReadableSpan(
                name,
                _context(span.context),
                None if span.parent is None else _context(span.parent, is_remote=kind is SpanKind.SERVER),
                self._resource,
                attributes,
                links=links,
                kind=kind,
                status=status,
                start_time=ended_ns - int(1e9 * duration_s),
                end_time=ended_ns,
                instrumentation_scope=self._scope,
            )
        )


class _OneResource(Resource):
    """The only one there is, which is its hash: the SDK's is of all attributes as JSON, and is taken for every span."""

    __hash__ = object.__hash__


def _resource(service_name: str) -> Resource:
    found = Resource.create({"service.name": service_name, "service.version": SERVER_VERSION})
    return _OneResource(found.attributes, found.schema_url)


def _call(report: RequestReport, code: Code | None, attributes: dict[str, _Value]) -> tuple[str, Status]:
    """The name and the status of a request's span; its protocol's attributes are added to *attributes*."""
    is_failed = False
    if path := _HTTP.get(report.protocol):
        name = f"POST {path}"
        attributes |= {"http.request.method": "POST", "http.route": path}
        # What waits for a person is answered at once in some ways, and refused in others: its edge knows.
        http = TABLE[code].http if code is not None else 200 if report.outcome is Outcome.ACCEPTED else None
        if http is not None:
            attributes["http.response.status_code"] = http
            is_failed = http >= 500
    else:
        name = _RPC[report.protocol]
        attributes |= {"rpc.system.name": "grpc", "rpc.method": name}
        if code is not None:
            attributes["rpc.response.status_code"] = TABLE[code].grpc.name
            is_failed = TABLE[code].grpc in _FAILED_CALLS
    if code is None and report.outcome is Outcome.ERROR:  # an exception of nobody's making
        code, is_failed = Code.INTERNAL, True
    if code is not None:
        attributes["error.type"] = code.value
    return name, Status(StatusCode.ERROR, code.value) if is_failed and code is not None else _UNSET


def _server(address: str) -> dict[str, _Value]:
    """What the conventions tell of a server; its whole *address* where that is no URL."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or address, parts.port
    except ValueError:
        return {"server.address": address}
    found: dict[str, _Value] = {"server.address": host}
    if port is not None:
        found["server.port"] = port
    if parts.scheme in ("grpc", "grpcs"):
        found["rpc.system.name"] = "grpc"
        found["rpc.method"] = _RPC[Protocol.OIP_GRPC]
    elif parts.scheme in ("http", "https"):
        found["http.request.method"] = "POST"
    return found


def _context(trace: TraceContext, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int(trace.trace_id, 16),
        int(trace.span_id, 16),
        is_remote,
        TraceFlags(int(trace.traceparent[53:], 16)),
        TraceState.from_header([trace.tracestate]) if trace.tracestate else None,
    )
