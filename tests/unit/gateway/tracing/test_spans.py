"""A gateway with traces: what arrives at a receiver of OpenTelemetry's protocol, of requests that took every turn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from backends.errors import InvalidInput, PointsmanError
from backends.trace_context import TraceContext
from gateway.answer import Answer, Status
from gateway.compose import Gateway, compose
from gateway.request import Caller, JsonInputs, Protocol, Request
from gateway.settings import load_settings
from gateway.telemetry import _JsonLines
from tests.integration.process import CONFIG
from tests.otlp import INTERNAL, SERVER, Receiver, Seen

CALLER = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=17")
UNSAMPLED = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")


DETECTING = (
    CONFIG[: CONFIG.index("classify:")].replace(
        "routes:\n",
        """  tongue:
    backend: python
    target: tests.integration.models:tongue
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    labels: [en, fr, de]
detectors:
  language: {model: tongue, decode: utf8}
routes:
""",
        1,
    )
    + """
classify:
  - when: {traits: {language: fr}}
    route: alone
  - unsure: words
  - otherwise: words
store: {path: store.db}
"""
)


def gateway(
    folder: Path, receiver: Receiver, config: str = CONFIG, **options: Any
) -> Any:  # Any: an asynchronous context of a Gateway
    """A gateway whose spans go to *receiver*: all of them, where *options* do not say otherwise."""
    said = ", ".join(f"{name}: {value}" for name, value in {"sample": "100%", **options}.items())
    path = folder / "gateway.yaml"
    path.write_text(f"{config}\ntelemetry: {{traces: {{endpoint: '{receiver.endpoint}', {said}}}}}\n")
    return compose(load_settings(path))


async def decide(
    gateway: Gateway, text: str, route: str = "words", trace: TraceContext | None = None, key: str | None = None
) -> Answer:
    inputs = JsonInputs({"text": text}, 0)
    caller = Caller(tenant="acme")
    return await gateway.pipeline.decide(
        Request(route, inputs, Protocol.V1_HTTP, caller, trace=trace, idempotency_key=key, fingerprint=b"1")
    )


def named(spans: list[Seen], name: str) -> Seen:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_a_request_is_a_tree_of_spans_within_its_callers(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver, service_name="intake") as serving:
        answer = await decide(serving, "fast=0.5 strong=0.95:b", trace=CALLER)

    spans = receiver.spans
    assert {span.trace_id for span in spans} == {CALLER.trace_id}
    assert {span.state for span in spans} == {"vendor=17"}
    assert {span.resource["service.name"] for span in spans} == {"intake"}
    request = named(spans, "POST /v1/routes/{route}:decide")
    assert (request.kind, request.parent_id, request.is_error) == (SERVER, CALLER.span_id, False)
    assert request.attributes == {
        "pointsman.route": "words",
        "pointsman.protocol": "v1_http",
        "pointsman.outcome": "accepted",
        "pointsman.tenant": "acme",
        "pointsman.items": 1,
        "pointsman.answer.id": answer.id,
        "http.request.method": "POST",
        "http.route": "/v1/routes/{route}:decide",
        "http.response.status_code": 200,
    }
    for name in ("decode utf8", "stage fast", "stage strong"):
        assert named(spans, name).parent_id == request.span_id
    fast, strong = named(spans, "stage fast"), named(spans, "stage strong")
    assert fast.attributes["pointsman.decisions"] == ["escalate"]
    assert strong.attributes["pointsman.decisions"] == ["accept"]
    assert fast.attributes["pointsman.confidence.min"] == pytest.approx(0.5)
    assert strong.attributes["pointsman.model.name"] == "strong"
    for model, stage in (("fast", fast), ("strong", strong)):
        batch, queue = named(spans, f"batch {model}"), named(spans, f"queue {model}")
        assert (batch.parent_id, queue.parent_id, batch.kind) == (stage.span_id, stage.span_id, INTERNAL)
        assert batch.attributes["pointsman.batch.size"] == 1
        assert batch.links == ((CALLER.trace_id, stage.span_id),)
        assert queue.links == ((CALLER.trace_id, batch.span_id),)
    for span in spans:
        whole = next((other for other in spans if other.span_id == span.parent_id), None)
        assert span.start_ns <= span.end_ns
        if whole is not None:  # clocks are read one after the other
            assert whole.start_ns - 2_000_000 <= span.start_ns
            assert span.end_ns <= whole.end_ns + 2_000_000


@pytest.mark.parametrize(("text", "is_error"), [("tongue=0.95:a fast=0.95", False), ("tongue=fail", True)])
async def test_a_detector_is_a_span_with_a_batch_of_its_own(
    tmp_path: Path, receiver: Receiver, text: str, is_error: bool
) -> None:
    async with gateway(tmp_path, receiver, DETECTING) as serving:
        await decide(serving, text, route="auto", trace=CALLER)

    detect = named(receiver.spans, "detect language")
    request = named(receiver.spans, "POST /v1/routes/{route}:decide")
    assert (detect.parent_id, detect.is_error) == (request.span_id, is_error)
    assert detect.attributes == {"pointsman.detector": "language"}
    assert named(receiver.spans, "batch tongue").parent_id == detect.span_id
    assert request.attributes["pointsman.route"] == "words"


async def test_what_is_handed_over_tells_to_whom(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        answer = await decide(serving, "fast=0.5 strong=0.5")

    assert answer.status is Status.PROVISIONAL
    request, keep = named(receiver.spans, "POST /v1/routes/{route}:decide"), named(receiver.spans, "keep")
    assert (request.parent_id, request.attributes["pointsman.outcome"]) == ("", "deferred")
    assert keep.parent_id == request.span_id
    assert keep.attributes == {
        "pointsman.answer.id": answer.id,
        "pointsman.review.queue": "words",
        "pointsman.review.items": [0],
    }


async def test_a_repeated_request_is_a_span_without_stages(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        first = await decide(serving, "fast=0.95", key="ticket-1")
        again = await decide(serving, "fast=0.95", key="ticket-1", trace=CALLER)

    assert again.id == first.id
    (repeated,) = [span for span in receiver.spans if span.trace_id == CALLER.trace_id]
    assert repeated.attributes["pointsman.answer.id"] == first.id


async def test_a_failed_stage_and_its_request_say_why(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(tmp_path, receiver) as serving:
        with pytest.raises(PointsmanError):
            await decide(serving, "fast=fail", route="alone", trace=CALLER)

    request = named(receiver.spans, "POST /v1/routes/{route}:decide")
    assert request.is_error
    assert request.attributes["error.type"] == "backend_failed"
    assert request.attributes["http.response.status_code"] == 502
    for name in ("stage fast", "batch fast"):
        assert named(receiver.spans, name).is_error
        assert named(receiver.spans, name).attributes["error.type"] == "backend_failed"
    assert "secret" not in repr(receiver.spans)
    (logged,) = [record for record in caplog.records if record.getMessage() == "a batch of 1 failed in model fast"]
    assert json.loads(_JsonLines().format(logged))["trace_id"] == CALLER.trace_id


async def test_a_caller_that_leaves_is_no_error_and_leaves_a_whole_tree(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        leaving = asyncio.create_task(decide(serving, "fast=slow", trace=CALLER))
        async with asyncio.timeout(10):
            while not serving.pipeline.catalog.models["fast"].batcher.statistics().in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.wait([leaving])

    spans = receiver.spans
    assert not any(span.is_error for span in spans)
    for name in ("POST /v1/routes/{route}:decide", "stage fast"):
        assert named(spans, name).attributes["error.type"] == "cancelled"
    assert named(spans, "batch fast").attributes["pointsman.batch.outcome"] == "abandoned"
    assert {span.parent_id for span in spans} <= {CALLER.span_id, *(span.span_id for span in spans)}


async def test_a_refusal_is_no_error_of_the_server(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        with pytest.raises(PointsmanError):
            await decide(serving, "fast=1", route="nowhere", trace=CALLER)

    (request,) = receiver.spans
    assert (request.is_error, request.attributes["error.type"], request.attributes["pointsman.outcome"]) == (
        False, "not_found", "refused",
    )  # fmt: skip


async def test_one_batch_is_linked_to_all_its_callers(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        blocking = asyncio.create_task(decide(serving, "fast=slow"))  # the others meet in the queue behind it
        await asyncio.sleep(0.1)
        await asyncio.gather(blocking, *(decide(serving, "fast=0.95") for _ in range(4)))

    batches = [span for span in receiver.spans if span.name == "batch fast"]
    (shared,) = [span for span in batches if len(span.links) > 1]
    stages = {(span.trace_id, span.span_id) for span in receiver.spans if span.name == "stage fast"}
    assert (
        shared.attributes["pointsman.batch.callers"] == len(shared.links) == shared.attributes["pointsman.batch.size"]
    )
    assert set(shared.links) <= stages
    assert (shared.trace_id, shared.parent_id) == shared.links[0]
    waiting = [span for span in receiver.spans if span.links == ((shared.trace_id, shared.span_id),)]
    assert {(span.trace_id, span.parent_id) for span in waiting} == set(shared.links)
    assert all(span.name == "queue fast" for span in waiting)


async def test_callers_that_are_not_sampled_leave_no_span(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        await decide(serving, "fast=0.95", trace=UNSAMPLED)
        await decide(serving, "fast=0.95", trace=CALLER)

    assert {span.trace_id for span in receiver.spans} == {CALLER.trace_id}
    assert len([span for span in receiver.spans if span.kind == SERVER]) == 1


async def test_a_share_of_those_who_do_not_say_is_recorded(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver, sample="0%") as serving:
        await decide(serving, "fast=0.95")
        assert serving.pipeline._begin_trace is not None
        assert not serving.pipeline._begin_trace(None).is_sampled
    assert receiver.spans == []

    async with gateway(tmp_path, receiver, sample="25%") as serving:
        begin = serving.telemetry.tracing.begin
        recorded = sum(begin(None).is_recorded for _ in range(4000))
    assert 800 < recorded < 1200  # 27 standard deviations would have to lie beyond


async def test_the_headers_file_reaches_the_receiver_and_nobody_else(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from-environment=yes")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    (tmp_path / "headers").write_text("Authorization: Bearer hunter2\nX-Scope-OrgID: acme\n")
    async with gateway(tmp_path, receiver, headers_file="headers") as serving:
        assert "hunter2" not in repr(serving)
        await decide(serving, "fast=0.95")

    assert receiver.headers[0]["authorization"] == "Bearer hunter2"
    assert receiver.headers[0]["x-scope-orgid"] == "acme"
    assert receiver.headers[0]["x-from-environment"] == "yes"
    assert receiver.spans[0].resource["deployment.environment.name"] == "test"


async def test_openmetrics_shows_a_trace_beside_its_latency(tmp_path: Path, receiver: Receiver) -> None:
    async with gateway(tmp_path, receiver) as serving:
        await decide(serving, "fast=0.95", trace=CALLER)
        text, _ = serving.telemetry.exposition("application/openmetrics-text; version=1.0.0")
        plain, _ = serving.telemetry.exposition("text/plain")

    assert f'# {{trace_id="{CALLER.trace_id}"}}'.encode() in text
    assert CALLER.trace_id.encode() not in plain


async def test_without_the_extra_the_start_says_what_to_install(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = gateway(tmp_path, receiver)
    monkeypatch.setattr("gateway.compose.why_not_tracing", lambda: "needs OpenTelemetry, which is not installed")

    with pytest.raises(InvalidInput, match=r"telemetry\.traces needs OpenTelemetry"):
        async with context:
            pass
