"""A receiver that is down, slow, or refuses: nothing is lost but spans, and no more memory taken than is allowed."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from gateway.compose import compose
from gateway.request import JsonInputs, Protocol, Request
from gateway.settings import load_settings
from gateway.tracing import export
from gateway.tracing.export import SpanQueue
from gateway.tracing.options import TracesOptions, read_headers
from tests.conformance.triton import free_port
from tests.integration.process import CONFIG
from tests.otlp import Receiver

RESOURCE = Resource({})


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports every 10 ms; the last spans get a fifth of a second."""
    monkeypatch.setattr(export, "_EVERY_S", 0.01)
    monkeypatch.setattr(export, "FLUSH_S", 0.2)


def a_span(number: int) -> ReadableSpan:
    context = SpanContext(1, number + 1, False, TraceFlags(1))
    return ReadableSpan(f"span {number}", context, resource=RESOURCE, start_time=1, end_time=2)


async def until_done(queue: SpanQueue, count: int) -> None:
    async with asyncio.timeout(20):
        while (found := queue.statistics()).exported + found.failed < count:  # noqa: ASYNC110 (a thread counts)
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("hurried")
async def test_what_was_put_arrives_once(receiver: Receiver) -> None:
    queue = SpanQueue(TracesOptions(receiver.endpoint))
    for number in range(2000):
        queue.put(a_span(number))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await until_done(queue, 2000)
    await queue.aclose()

    assert sorted(int(span.span_id, 16) for span in receiver.spans) == list(range(1, 2001))
    assert queue.statistics() == export.SpanStatistics(exported=2000, failed=0, dropped=0)


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_what_waits_at_the_end_is_sent(
    receiver: Receiver, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    queue = SpanQueue(TracesOptions(receiver.endpoint))
    for number in range(10):
        queue.put(a_span(number))

    await queue.aclose()
    await queue.aclose()
    queue.put(a_span(10))

    assert len(receiver.spans) == 10
    assert receiver.headers[0].get("content-encoding", "none") == compression
    assert queue.statistics().dropped == 1


@pytest.mark.usefixtures("hurried")
async def test_a_receiver_that_hangs_costs_no_more_than_the_queue_and_keeps_nobody(receiver: Receiver) -> None:
    receiver.hold.set()
    queue = SpanQueue(TracesOptions(receiver.endpoint, max_queue=64))
    for number in range(1000):
        queue.put(a_span(number))
        await asyncio.sleep(0)

    assert queue.statistics() == export.SpanStatistics(exported=0, failed=0, dropped=936)
    assert len(queue._processor._batch_processor._queue) <= 64
    async with asyncio.timeout(10):
        await queue.aclose()


@pytest.mark.usefixtures("hurried")
async def test_a_receiver_that_answers_again_gets_what_comes_then(receiver: Receiver) -> None:
    receiver.hold.set()
    queue = SpanQueue(TracesOptions(receiver.endpoint, max_queue=8))
    for number in range(20):
        queue.put(a_span(number))
    receiver.hold.clear()
    await until_done(queue, 8)

    queue.put(a_span(99))
    await until_done(queue, 9)

    assert queue.statistics() == export.SpanStatistics(exported=9, failed=0, dropped=12)
    await queue.aclose()


@pytest.mark.usefixtures("hurried")
async def test_what_a_receiver_refuses_has_failed_and_is_told_now_and_then(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 401
    queue = SpanQueue(TracesOptions(receiver.endpoint))
    for filtering in logging.getLogger(export._LIBRARY).filters:
        assert isinstance(filtering, export._Seldom)
        filtering._next_s = 0.0
    for number in range(5):
        queue.put(a_span(number))
        await until_done(queue, number + 1)
    await queue.aclose()

    assert queue.statistics() == export.SpanStatistics(exported=0, failed=5, dropped=0)
    assert [record.levelname for record in caplog.records if record.name == export._LIBRARY] == ["ERROR"]
    assert "401" in caplog.text


@pytest.mark.usefixtures("hurried")
async def test_a_gateway_whose_receiver_is_down_answers_and_stops(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    endpoint = f"http://127.0.0.1:{free_port()}"
    path.write_text(f"{CONFIG}\ntelemetry: {{traces: {{endpoint: '{endpoint}', sample: 100%, max_queue: 32}}}}\n")
    before = {thread for thread in threading.enumerate() if thread.daemon}
    async with asyncio.timeout(60):
        async with compose(load_settings(path)) as gateway:
            for _ in range(50):
                inputs = JsonInputs({"text": "fast=0.95:b"}, 0)
                answer = await gateway.pipeline.decide(Request("words", inputs, Protocol.V1_HTTP))
                assert answer.items[0].label == "b"
            text, _ = gateway.telemetry.exposition("text/plain")

    assert b'pointsman_spans_total{outcome="exported"} 0.0' in text
    lost = [float(line.split()[1]) for line in text.splitlines() if b'"dropped"' in line or b'"failed"' in line]
    assert sum(lost) >= 50 * 5 - 32  # request, decode, stage, queue and batch; what is not lost waits
    for thread in {thread for thread in threading.enumerate() if thread.daemon} - before:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_headers_are_read_by_line_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Basic a:b=\n\nX-Team:  blue green \n")
    assert read_headers(file) == {"Authorization": "Basic a:b=", "X-Team": "blue green"}

    for wrong in ("hunter2", "Author ization: hunter2", "Authorization:", "A: hunter2\x07"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"line 1 of .* is no header") as raised:
            read_headers(file)
        assert "hunter2" not in str(raised.value)

    with pytest.raises(ValueError, match="cannot be read"):
        read_headers(tmp_path / "missing")
