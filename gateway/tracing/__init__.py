"""Spans of requests, exported by OpenTelemetry's protocol (OTLP over HTTP): the extra `tracing`.

    request → edge reads `traceparent` → Pipeline → reports with a `Span` → `spans.Tracing` → `export.SpanQueue` → OTLP

A span is built when its report comes, after what it tells of has ended, and only where its trace is sampled: what is
not costs an id, or, where no traces are configured and the caller sends none, nothing. That is why the SDK's tracer is
not used, whose spans are objects from beginning to end and follow a context of their own; its exporter, and the thread
that feeds it, are.

Only `options` can be imported without the extra.
"""
