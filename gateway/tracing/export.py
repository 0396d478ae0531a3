"""Spans on their way out: bounded, counted, in a thread of OpenTelemetry's, and never in anybody's way.

What waits and what is under way is bounded together, so that a receiver that hangs costs `max_queue` spans of memory
and no more. Where there is no room, the span that comes is dropped, and counted; the event loop never waits for any.

At the end, what waits is sent within `FLUSH_S`; a receiver that takes longer does not keep the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from gateway.tracing.options import TracesOptions, read_headers

FLUSH_S = 2.0
"""What the last spans get to go out when the gateway stops."""

_EVERY_S = 1.0
_BATCH = 512
_LOG_EVERY_S = 60.0
_LIBRARY = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

log = logging.getLogger("pointsman.tracing")


@dataclass(frozen=True, slots=True)
class SpanStatistics:
    """What became of spans; the numbers only grow.

    Attributes:
        exported: that the receiver has taken.
        failed: that it has not, or not in time.
        dropped: that found no room.
    """

    exported: int
    failed: int
    dropped: int


class SpanQueue:
    """Takes spans on the event loop, and sends them from a thread."""

    def __init__(self, options: TracesOptions) -> None:
        """Begin; the receiver need not be there.

        Raises:
            ValueError: the headers cannot be read.
        """
        self._most = options.max_queue
        self._counted = _Counted(_exporter(options))
        self._put = 0
        self._dropped = 0
        self._is_closed = False
        self._processor = BatchSpanProcessor(
            self._counted,
            max_queue_size=options.max_queue,
            schedule_delay_millis=1e3 * _EVERY_S,
            max_export_batch_size=min(_BATCH, options.max_queue),
        )

    def put(self, span: ReadableSpan) -> None:
        """Send *span* some time; drop it where there is no room."""
        if self._is_closed or self._put - self._counted.done >= self._most:
            self._dropped += 1
            return
        self._put += 1
        self._processor.on_end(span)

    def statistics(self) -> SpanStatistics:
        """What became of the spans so far."""
        return SpanStatistics(self._counted.exported, self._counted.done - self._counted.exported, self._dropped)

    async def aclose(self) -> None:
        """Send what waits, within `FLUSH_S`; closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def send() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # too late: the loop is gone
                loop.call_soon_threadsafe(sent.set)

        # No thread of the loop's own: its end would wait for that one.
        threading.Thread(target=send, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await sent.wait()
        except TimeoutError:
            self._counted.shutdown()  # ends the pauses between repetitions
            log.warning("%d spans are lost: their receiver did not take them in time", self._put - self._counted.done)


class _Counted(SpanExporter):
    """Counts what becomes of spans. Its numbers are written by the thread that exports, and read by others."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._is_closed = False
        self.done = 0
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Have *spans* exported."""
        result = SpanExportResult.FAILURE
        try:
            if not self._is_closed:
                result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            self.done += len(spans)
        return result

    def shutdown(self) -> None:
        """End it; once."""
        if not self._is_closed:
            self._is_closed = True
            self._inner.shutdown()


def _exporter(options: TracesOptions) -> OTLPSpanExporter:
    session = requests.Session()
    session.trust_env = False  # neither proxies nor a .netrc: headers go to the receiver, and nowhere else
    library = logging.getLogger(_LIBRARY)
    if not any(isinstance(one, _Seldom) for one in library.filters):
        library.addFilter(_Seldom())
    return OTLPSpanExporter(
        options.url,
        certificate_file=None if options.ca is None else str(options.ca),
        headers={} if options.headers_file is None else dict(read_headers(options.headers_file)),
        timeout=options.timeout_s,
        session=session,
    )


class _Seldom(logging.Filter):
    """Lets an error through now and then: a receiver that is down would fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.ERROR or now < self._next_s:
            return False
        self._next_s = now + _LOG_EVERY_S
        return True
