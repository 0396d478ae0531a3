"""One Pointsman behind another, processes all of them: one trace through both, or through the one that records any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from backends.trace_context import TraceContext
from tests.integration.process import CONFIG, GatewayProcess, running
from tests.integration.v2_servers.test_pointsman_behind_pointsman import behind_it
from tests.otlp import CLIENT, SERVER, Receiver, line_up, receiving

HTTP, GRPC = "POST /v2/models/{model}/infer", "inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Line:
    """Gateways before one that records every request (on the native transport where there is one).

    Attributes:
        recording: before it, and records what its callers sample, on grpcio.
        passing: before it, and knows nothing of traces.
    """

    recording: GatewayProcess
    passing: GatewayProcess
    receiver: Receiver


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with receiving() as receiver:
        traces = f"\ntelemetry: {{traces: {{endpoint: '{receiver.endpoint}', service_name: "
        with running(tmp_path_factory.mktemp("behind"), f"{CONFIG}{traces}behind, sample: 0%}}}}\n") as behind:
            config = behind_it(behind.http.removeprefix("http://"), behind.grpc)
            front = f"{config}server: {{grpc_transport: grpcio}}{traces}front, sample: 0%}}}}\n"
            with (
                running(tmp_path_factory.mktemp("front"), front) as recording,
                running(tmp_path_factory.mktemp("passing"), config) as passing,
            ):
                yield Line(recording, passing, receiver)


@pytest.fixture(params=["http", "grpc"])
def scheme(request: pytest.FixtureRequest) -> str:
    """How the gateways talk."""
    found: str = request.param
    return found


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["by http", "by grpc"])
def library(request: pytest.FixtureRequest) -> Any:
    """How the client talks (Any: tritonclient is untyped)."""
    return request.param


def ask(library: Any, gateway: GatewayProcess, model: str, trace: TraceContext) -> None:
    """Have some numbers doubled, within *trace*."""
    url = gateway.http.removeprefix("http://") if library is tritonclient.http else gateway.grpc
    client = library.InferenceServerClient(url)
    try:
        x = library.InferInput("x", (2, 3), "FP32")
        x.set_data_from_numpy(np.ones((2, 3), np.float32))
        reply = client.infer(model, [x], headers=dict(trace.headers()))
        np.testing.assert_array_equal(reply.as_numpy("y"), np.full((2, 3), 2.0, np.float32))
    finally:
        client.close()


def test_one_trace_goes_through_both(line: Line, library: Any, scheme: str) -> None:
    caller = TraceContext(TraceContext.begin(sampled=True).traceparent, "vendor=17")

    ask(library, line.recording, f"double-{scheme}", caller)

    spans = line.receiver.wait_for_trace(caller.trace_id, 9)
    assert {span.state for span in spans} == {"vendor=17"}
    (deepest,) = [span for span in spans if span.name == "batch double"]
    up = line_up(deepest, spans)
    own, between = (HTTP if library is tritonclient.http else GRPC), (HTTP if scheme == "http" else GRPC)
    assert [(span.name, span.resource["service.name"]) for span in up] == [
        ("batch double", "behind"),
        ("stage double", "behind"),
        (between, "behind"),
        (f"call double-{scheme}", "front"),
        (f"batch double-{scheme}", "front"),
        (f"stage double-{scheme}", "front"),
        (own, "front"),
    ]
    assert (up[2].kind, up[3].kind, up[-1].kind) == (SERVER, CLIENT, SERVER)
    assert up[-1].parent_id == caller.span_id


def test_a_gateway_that_records_nothing_passes_the_trace_on(line: Line, library: Any, scheme: str) -> None:
    caller = TraceContext.begin(sampled=True)

    ask(library, line.passing, f"double-{scheme}", caller)

    spans = line.receiver.wait_for_trace(caller.trace_id, 4)
    assert {span.resource["service.name"] for span in spans} == {"behind"}
    (request,) = [span for span in spans if span.kind == SERVER]
    assert request.parent_id not in {"", caller.span_id}
    assert request.parent_id not in {span.span_id for span in line.receiver.spans}


def test_what_is_malformed_or_not_sampled_is_answered_and_leaves_no_span(line: Line, library: Any) -> None:
    unsampled = TraceContext.begin(sampled=False)
    for trace in (unsampled, TraceContext("00-not-a-trace-01", "a=1")):
        ask(library, line.recording, "double-http", trace)
    sampled = TraceContext.begin(sampled=True)
    ask(library, line.recording, "double-http", sampled)
    line.receiver.wait_for_trace(sampled.trace_id, 9)

    assert unsampled.trace_id not in {span.trace_id for span in line.receiver.spans}
