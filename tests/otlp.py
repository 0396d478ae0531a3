"""A receiver of spans, as OpenTelemetry's protocol has it over HTTP, that can be slow, hang or refuse."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_IDS = ("traceid", "spanid", "trace_id", "span_id")

SERVER, CLIENT, INTERNAL = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_INTERNAL


@dataclass(frozen=True, slots=True)
class Seen:
    """One span as it came; ids in hexadecimal, "" where there is no parent. Any: whatever an attribute's value is."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    resource: Mapping[str, Any]


@dataclass
class Receiver:
    """What came, and how the receiver behaves.

    Attributes:
        status: of its answers.
        hold: while it is set, no request is answered.
        headers: of the requests, by lower-case name.
    """

    endpoint: str = ""
    status: int = 200
    hold: threading.Event = field(default_factory=threading.Event)
    spans: list[Seen] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)
    gone: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, *names: str, within_s: float = 15.0) -> list[Seen]:
        """All spans, once there is one of each of *names*."""
        with self.came:
            found = self.came.wait_for(lambda: set(names) <= {span.name for span in self.spans}, within_s)
            assert found, f"of {names} came {sorted(span.name for span in self.spans)}"
            return list(self.spans)

    def wait_for_trace(self, trace_id: str, count: int, within_s: float = 15.0) -> list[Seen]:
        """The spans of a trace, once there are *count* of them."""

        def those() -> list[Seen]:
            return [span for span in self.spans if span.trace_id == trace_id]

        with self.came:
            self.came.wait_for(lambda: len(those()) >= count, within_s)
            assert len(those()) == count, f"{len(those())} of {count} came: {sorted(span.name for span in those())}"
            return those()

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self.came:
            for resource in request.resource_spans:
                about = _attributes(resource.resource.attributes)
                self.spans += [_seen(span, about) for scope in resource.scope_spans for span in scope.spans]
            self.came.notify_all()


def line_up(span: Seen, spans: Sequence[Seen]) -> list[Seen]:
    """*span*, what it is within, and so on, as far as *spans* go."""
    by_id = {one.span_id: one for one in spans}
    line = [span]
    while (whole := by_id.get(line[-1].parent_id)) is not None:
        line.append(whole)
    return line


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of this machine."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            while receiver.hold.is_set() and not receiver.gone.is_set():
                time.sleep(0.01)
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if receiver.status == 200:
                assert self.path == "/v1/traces"
                receiver.take(_request(self.headers["content-type"], body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(receiver.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that gave up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        serving.start()
        try:
            yield receiver
        finally:
            receiver.gone.set()
            server.shutdown()
            serving.join()


def _request(content_type: str, body: bytes) -> ExportTraceServiceRequest:
    """What came, as protobuf or as JSON, in which OTLP has ids in hexadecimal, and protobuf would have base64."""
    if content_type.startswith("application/x-protobuf"):
        return ExportTraceServiceRequest.FromString(body)
    return json_format.ParseDict(
        _with_base64(json.loads(body)), ExportTraceServiceRequest(), ignore_unknown_fields=True
    )


def _with_base64(said: Any) -> Any:
    if isinstance(said, list):
        return [_with_base64(one) for one in said]
    if not isinstance(said, dict):
        return said
    return {
        name: base64.b64encode(bytes.fromhex(one)).decode() if name.lower().endswith(_IDS) else _with_base64(one)
        for name, one in said.items()
    }


def _seen(span: Span, resource: Mapping[str, Any]) -> Seen:
    return Seen(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        span.status.code == span.status.STATUS_CODE_ERROR,
        resource,
    )


def _attributes(pairs: Any) -> Mapping[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(element) for element in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
