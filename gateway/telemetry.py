"""Metrics and logs: the only module that knows their libraries, as `gateway.tracing` alone knows that of spans.

Everything below reports through small frozen records (`gateway.observe`, `batching`); here they become Prometheus
series. Labels are names from the configuration and fixed sets of words, never anything that a caller invents, so the
number of series is bounded.

Names follow Prometheus's conventions (base units, `_seconds`, `_total`).

Counters and histograms are kept here as plain numbers, and become Prometheus's when they are scraped: reports and
scrapes are both the event loop's, and the library's own, which are made for many threads, take a lock for every number,
several times as long as the addition.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from backends.errors import InvalidInput, PointsmanError
from backends.oip.remote import ServerSaid
from backends.replicas import ReplicaState
from backends.warm.policy import Phase
from backends.warm.report import StepReport
from batching.report import BatchReport, CurvePoint
from batching.report import Outcome as BatchOutcome
from gateway.catalog import Catalog
from gateway.grpc_edge.calls import GrpcExchange
from gateway.http.handler import HttpExchange
from gateway.observe import DecodeReport, DetectorReport, KeepReport, RequestReport, ShadowReport, StageReport
from gateway.store.contract import (
    Escalated,
    OutboxDepth,
    OutboxState,
    QualityCounts,
    QueueDepth,
    StoreStatistics,
)
from gateway.traffic import VersionShare
from gateway.webhooks.report import AttemptReport
from gateway.workers.metrics import Family, Sample
from kernels.guard import Fault
from router.contract import Certified, Uncertified

if TYPE_CHECKING:
    from gateway.tracing.spans import Tracing  # at run time where traces are configured: it needs an extra

_LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LOAD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

log = logging.getLogger("pointsman")

_CHAIN = 8
"""Most causes of one exception that are logged."""


class Telemetry:
    """The gateway's metrics; takes the reports of the pipeline and of every batcher.

    Args:
        tracing: what makes spans of them; None: nothing does.
    """

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.tracing = tracing
        self.configuration: int | None = None
        self.registry = CollectorRegistry()
        for standard in (GCCollector, PlatformCollector, ProcessCollector):
            standard(registry=self.registry)
        self._requests = self._counter("pointsman_requests", "Requests that ended.", "route", "protocol", "outcome")
        self._request_s = self._histogram(
            "pointsman_request_duration_seconds", "From call to answer.", _LATENCY_S, "route", "protocol"
        )
        self._stage_s = self._histogram(
            "pointsman_stage_duration_seconds", "A stage's queue, plan and model.", _LATENCY_S, "route", "stage"
        )
        self._detector_s = self._histogram(
            "pointsman_detector_duration_seconds", "A detector's decoding, queue and model.", _LATENCY_S, "detector"
        )
        self._detector_failures = self._counter("pointsman_detector_failures", "Detectors without answer.", "detector")
        self._decisions = self._counter(
            "pointsman_decisions", "Items that a stage accepted, escalated or deferred.", "route", "stage", "decision"
        )
        self._confidence = self._histogram(
            "pointsman_confidence", "Calibrated confidence of a model's answers.", _CONFIDENCE, "route", "model"
        )
        self._batch_size = self._histogram("pointsman_batch_size", "Items in a batch.", _BATCH, "model")
        self._queue_s = self._histogram("pointsman_queue_wait_seconds", "A batch's oldest item.", _LATENCY_S, "model")
        self._batch_s = self._histogram("pointsman_batch_duration_seconds", "A batch's run.", _LATENCY_S, "model")
        self._padding = self._histogram(
            "pointsman_batch_padding_ratio",
            "Padding in a batch's inputs, of models with length_buckets or padding.",
            (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
            "model",
        )
        self._cold_starts = self._counter(
            "pointsman_cold_starts", "Requests that found their model not in memory, or not warmed up.", "model"
        )
        self._load_s = self._histogram(
            "pointsman_model_load_seconds", "A step from the disk to a model that is warm.", _LOAD_S, "model", "step"
        )
        self._load_failures = self._counter(
            "pointsman_model_load_failures", "Steps of these that failed.", "model", "step"
        )
        self._unloads = self._counter("pointsman_model_unloads", "Models that left the memory.", "model")
        self._http = self._counter("pointsman_http_responses", "HTTP responses of the data plane.", "path", "status")
        self._grpc = self._counter("pointsman_grpc_calls", "gRPC calls that ended.", "method", "code")
        self._reviews = Gauge(
            "pointsman_reviews_open", "Reviews that wait for a person.", ["queue"], registry=self.registry
        )
        self._waits = Gauge(
            "pointsman_review_predicted_wait_seconds",
            "Until people would have decided a review that came now, of the tenant where that is longest.",
            ["queue"],
            registry=self.registry,
        )
        self._escalations = self._counter(
            "pointsman_review_escalations", "Reviews that were due and undecided, by where they went on.", "queue", "to"
        )
        self._versions = self._counter(
            "pointsman_route_version_requests",
            "Requests that ended, of routes with several versions, by the one that took them.",
            "route",
            "version",
            "outcome",
        )
        self._shadows = self._counter(
            "pointsman_shadow", "Items that a version was shown beside the one that answered.", "route", "version",
            "outcome",
        )  # fmt: skip
        self._shadow_changes = self._histogram(
            "pointsman_shadow_confidence_change",
            "How much surer a version was than the one that answered.",
            (-0.5, -0.2, -0.1, -0.05, -0.01, 0.0, 0.01, 0.05, 0.1, 0.2, 0.5),
            "route",
            "version",
        )
        self._attempts = self._counter(
            "pointsman_webhook_attempts", "Messages that were sent to webhooks and mailboxes.", "webhook", "outcome"
        )
        self._attempt_s = self._histogram(
            "pointsman_webhook_attempt_seconds", "From sending one to its answer.", _LATENCY_S, "webhook"
        )
        self._gold = Gauge(
            "pointsman_review_gold_labels",
            "Labels that reviewers gave gold items.",
            ("queue", "outcome"),
            registry=self.registry,
        )
        self._seconds = Gauge(
            "pointsman_review_second_opinions",
            "Second opinions on what one person had decided.",
            ("queue", "outcome"),
            registry=self.registry,
        )
        self._messages = Gauge(
            "pointsman_webhook_messages",
            "Messages that are not delivered.",
            ["webhook", "state"],
            registry=self.registry,
        )
        self._lag = self._histogram("pointsman_event_loop_lag_seconds", "How late the event loop was.", _LATENCY_S)
        if tracing is not None:
            self.registry.register(_Spans(tracing))

    def serve(self, catalog: Callable[[], Catalog], store: Callable[[], StoreStatistics]) -> None:
        """Show the queues of *catalog* and the state of *store* from now on."""
        self.registry.register(_Snapshot(catalog, store))
        self.registry.register(_Replicas(catalog))
        self.registry.register(_Processes(catalog))
        self.registry.register(_Kernels(catalog))

    def serve_versions(self, versions: Callable[[], Sequence[VersionShare]]) -> None:
        """Show what *versions* of routes get from now on."""
        self.registry.register(_Versions(versions))

    def serve_configuration(self, version: int) -> None:
        """Show which *version* of the configuration is served, as the store numbers them."""
        self.configuration = version
        Gauge(
            "pointsman_configuration_version",
            "Of the configuration that this replica serves, as the store numbers them; see `cluster versions`.",
            registry=self.registry,
        ).set(version)

    def on_request(self, report: RequestReport) -> None:
        """A request ended."""
        if report.version:
            self._versions.add(report.route, report.version, report.outcome)
        self._requests.add(report.route, report.protocol, report.outcome)
        self._request_s.observe(report.duration_s, report.route, report.protocol)
        if report.trace is not None and self.tracing is not None:
            trace_id = report.trace.span.context.trace_id
            self._request_s.exemplify(report.duration_s, {"trace_id": trace_id}, report.route, report.protocol)
            self.tracing.on_request(report)

    def on_stage(self, report: StageReport) -> None:
        """A stage ran, or failed to, which the metrics of its batches tell."""
        if report.span is not None and self.tracing is not None:
            self.tracing.on_stage(report)
        if report.failure is not None:
            return
        self._stage_s.observe(report.duration_s, report.route, report.stage)
        for decision in report.decisions:
            self._decisions.add(report.route, report.stage, decision)
        for confidence in report.confidences:
            self._confidence.observe(confidence, report.route, report.stage)

    def on_shadow(self, report: ShadowReport) -> None:
        """A version was shown a request, or was to be."""
        for outcome in report.outcomes:
            self._shadows.add(report.route, report.version, outcome.value)
        for change in report.confidence_changes:
            self._shadow_changes.observe(change, report.route, report.version)

    def on_detector(self, report: DetectorReport) -> None:
        """A detector was asked."""
        self._detector_s.observe(report.duration_s, report.trait)
        if report.failed:
            self._detector_failures.add(report.trait)
        if report.span is not None and self.tracing is not None:
            self.tracing.on_detector(report)

    def on_decode(self, report: DecodeReport) -> None:
        """Items were decoded, which is recorded."""
        if self.tracing is not None:
            self.tracing.on_decode(report)

    def on_keep(self, report: KeepReport) -> None:
        """An answer was committed, which is recorded."""
        if self.tracing is not None:
            self.tracing.on_keep(report)

    def on_http(self, exchange: HttpExchange) -> None:
        """An HTTP request of the data plane ended; paths are templates."""
        self._http.add(exchange.template, str(exchange.status))

    def on_grpc(self, exchange: GrpcExchange) -> None:
        """A gRPC call ended."""
        self._grpc.add(exchange.method, exchange.code.name)

    def on_batch(self, report: BatchReport) -> None:
        """A batch ran."""
        self._batch_size.observe(report.size, report.model)
        self._batch_s.observe(report.infer_s, report.model)
        self._queue_s.observe(report.queued_s, report.model)
        if report.padding is not None:
            self._padding.observe(report.padding, report.model)
        if report.trace is not None and self.tracing is not None:
            self.tracing.on_batch(report)
        # What its callers abandoned has not failed; what an item's contents caused would only repeat them here.
        if report.outcome is BatchOutcome.FAILED and not isinstance(report.error, InvalidInput):
            extra = None if report.trace is None else {"trace_id": report.trace.span.trace_id}
            log.error("a batch of %d failed in model %s", report.size, report.model, exc_info=report.error, extra=extra)

    def on_load_step(self, report: StepReport) -> None:
        """A model took a step towards its first request, or failed to."""
        if report.error is None:
            self._load_s.observe(report.duration_s, report.model, report.step.value)
        else:
            self._load_failures.add(report.model, report.step.value)
            log.error("model %s failed to %s", report.model, report.step.value, exc_info=report.error)

    def on_cold_start(self, model: str) -> None:
        """A request found *model* not warm."""
        self._cold_starts.add(model)

    def on_unload(self, model: str, error: BaseException | None) -> None:
        """*model* has left the memory."""
        self._unloads.add(model)
        if error is not None:
            log.error("model %s was not closed in good order", model, exc_info=error)

    def on_lag(self, lag_s: float) -> None:
        """The event loop was *lag_s* seconds late."""
        self._lag.observe(lag_s)

    def on_queues(self, depths: Mapping[str, QueueDepth]) -> None:
        """Show how many reviews wait in every queue."""
        for queue, depth in depths.items():
            self._reviews.labels(queue).set(depth.open + depth.claimed)

    def on_waits(self, waits_s: Mapping[str, float]) -> None:
        """Show how long people would take in every queue of which that is known, in seconds."""
        self._waits.clear()
        for queue, wait_s in waits_s.items():
            self._waits.labels(queue).set(wait_s)

    def on_escalated(self, escalated: Iterable[Escalated]) -> None:
        """Reviews were due, and went to another queue, or have none to go to."""
        for one in escalated:
            self._escalations.add(one.queue, one.to or "")

    def on_quality(self, counts: Mapping[str, QualityCounts]) -> None:
        """Show what checks of people have come to."""
        for queue, count in counts.items():
            self._gold.labels(queue, "right").set(count.gold_right)
            self._gold.labels(queue, "wrong").set(count.gold_wrong)
            self._seconds.labels(queue, "agreed").set(count.seconds_agreed)
            self._seconds.labels(queue, "differed").set(count.seconds_differed)
            self._seconds.labels(queue, "asked").set(count.seconds_asked)

    def on_attempt(self, report: AttemptReport) -> None:
        """A message was sent to a webhook."""
        self._attempts.add(report.webhook, report.outcome.value)
        self._attempt_s.observe(report.duration_s, report.webhook)

    def on_outbox(self, depths: Mapping[str, OutboxDepth]) -> None:
        """Show how many messages are not delivered."""
        self._messages.clear()
        for webhook, depth in depths.items():
            self._messages.labels(webhook, OutboxState.WAITING.value).set(depth.waiting)
            self._messages.labels(webhook, OutboxState.DEAD.value).set(depth.dead)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that *accept* asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def families(self) -> tuple[Family, ...]:
        """The metrics as plain records, which go from process to process."""
        return tuple(
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                tuple(Sample(s.name, tuple(sorted(s.labels.items())), s.value) for s in metric.samples),
            )
            for metric in self.registry.collect()
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> _Counter:
        counter = _Counter(name, documentation, labels)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, documentation: str, buckets: Iterable[float], *labels: str) -> _Histogram:
        histogram = _Histogram(name, documentation, labels, buckets)
        self.registry.register(histogram)
        return histogram


def exposition_of(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """*families* in the format that *accept* asks for, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Given(Collector):
    """What others have counted."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


class _Counter(Collector):
    """Numbers that only grow, by the values of *labels*: texts, or members of an enumeration of texts."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...]) -> None:
        self._about = (name, documentation)
        self._labels = labels
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def add(self, *values: str) -> None:
        """Count one more."""
        self._counts[values] += 1

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric([*map(str, values)], count)
        return [family]


class _Histogram(Collector):
    """How often values fell at or below each of *buckets*, by the values of *labels*."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], buckets: Iterable[float]) -> None:
        self._about = (name, documentation)
        self._labels = labels
        self._bounds = tuple(buckets)
        self._counts: defaultdict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(self._bounds) + 1))
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._exemplars: dict[tuple[str, ...], dict[int, Exemplar]] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count *value*."""
        self._counts[values][bisect_left(self._bounds, value)] += 1
        self._sums[values] += value

    def exemplify(self, value: float, labels: Mapping[str, str], *values: str) -> None:
        """Let *labels* stand for what fell where *value* does, until others do; only OpenMetrics tells of it."""
        latest = self._exemplars.setdefault(values, {})
        latest[bisect_left(self._bounds, value)] = Exemplar(dict(labels), value, time.time())

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, counts in self._counts.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]]
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            for place, exemplar in self._exemplars.get(values, {}).items():
                buckets[place] = (*buckets[place][:2], exemplar)
            family.add_metric([*map(str, values)], buckets, self._sums[values])
        return [family]


class _Spans(Collector):
    """What became of spans."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "pointsman_spans",
            "Spans that the receiver has taken (exported) or not (failed), or that found no room (dropped).",
            labels=["outcome"],
        )
        found = self._tracing.statistics()
        for outcome, count in (("exported", found.exported), ("failed", found.failed), ("dropped", found.dropped)):
            family.add_metric([outcome], count)
        return [family]


class _Snapshot(Collector):
    """Gauges that are read off at every scrape instead of being kept up to date."""

    def __init__(self, catalog: Callable[[], Catalog], store: Callable[[], StoreStatistics]) -> None:
        self._catalog = catalog
        self._store = store

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("pointsman_queue_depth", "Items that wait for a batch.", labels=["model"])
        nbytes = GaugeMetricFamily("pointsman_queue_bytes", "Bytes that inputs of these take.", labels=["model"])
        oldest = GaugeMetricFamily(
            "pointsman_queue_oldest_seconds", "How long the oldest of these has waited.", labels=["model"]
        )
        arrivals = GaugeMetricFamily(
            "pointsman_queue_arrivals_per_second", "How fast items have come of late.", labels=["model"]
        )
        running = GaugeMetricFamily("pointsman_batches_in_flight", "Batches that run.", labels=["model"])
        ready = GaugeMetricFamily("pointsman_model_ready", "Whether the model takes batches.", labels=["model"])
        residency = GaugeMetricFamily(
            "pointsman_model_residency", "Whether a model is in this state, 1 or 0.", labels=["model", "state"]
        )
        memory = GaugeMetricFamily(
            "pointsman_model_memory_bytes", "What a model takes, or took when it was loaded.", labels=["model"]
        )
        latency = GaugeMetricFamily(
            "pointsman_batch_latency_seconds", "What a batch is expected to take.", labels=["model", "size", "estimate"]
        )
        by_length = GaugeMetricFamily(
            "pointsman_bucket_latency_seconds",
            "What a batch of one of the model's length_buckets is expected to take, by the bucket's upper bound.",
            labels=["model", "bucket", "size", "estimate"],
        )
        refusals = CounterMetricFamily(
            "pointsman_batch_refusals", "Entries that a batcher refused or dropped.", labels=["model", "reason"]
        )
        live = GaugeMetricFamily("pointsman_sequences_live", "Sequences that go on.", labels=["model"])
        lost = CounterMetricFamily(
            "pointsman_sequences_lost", "Sequences whose state was lost, or in doubt.", labels=["model"]
        )
        for model in self._catalog().models.values():
            if (sequences := model.sequences()) is not None:
                live.add_metric([model.name], sequences.live)
                lost.add_metric([model.name], sequences.lost)
            statistics = model.batcher.statistics()
            _add_curve(latency, [model.name], statistics.curve)
            for bound, curve in statistics.bucket_curves.items():
                _add_curve(by_length, [model.name, bound], curve)
            for reason, count in statistics.refusals.items():
                refusals.add_metric([model.name, reason.value], count)
            depth.add_metric([model.name], statistics.queued_items)
            nbytes.add_metric([model.name], statistics.queued_bytes)
            oldest.add_metric([model.name], statistics.oldest_wait_s)
            arrivals.add_metric([model.name], statistics.arrivals_per_s)
            running.add_metric([model.name], statistics.in_flight)
            ready.add_metric([model.name], float(model.state().ready))
            warmth = model.warmth()
            found = warmth.phase if warmth is not None else Phase.WARM if model.loaded else Phase.COLD
            for phase in Phase:
                residency.add_metric([model.name, phase.value], float(found is phase))
            if warmth is not None:
                memory.add_metric([model.name], warmth.nbytes)
        certified = GaugeMetricFamily(
            "pointsman_route_certified", "Whether the error budget of a route is proven.", labels=["route"]
        )
        for route in self._catalog().routes.values():
            if isinstance(route.accept, Certified | Uncertified):
                which = {"route": route.name} | ({"version": route.version} if route.version else {})
                certified.add_sample(certified.name, which, float(isinstance(route.accept, Certified)))
        store = self._store()
        size = GaugeMetricFamily("pointsman_store_size_bytes", "The store on disk.", value=store.size_bytes)
        limit = GaugeMetricFamily("pointsman_store_limit_bytes", "The store's limit.", value=store.limit_bytes)
        writes = GaugeMetricFamily("pointsman_store_pending_writes", "Not yet committed.", value=store.pending_writes)
        queues = [depth, nbytes, oldest, arrivals, running, ready, residency, memory, latency, by_length, refusals]
        return [*queues, live, lost, certified, size, limit, writes]


class _Versions(Collector):
    """What versions of routes get, of those that have several."""

    def __init__(self, versions: Callable[[], Sequence[VersionShare]]) -> None:
        self._versions = versions

    def collect(self) -> Iterable[Metric]:
        labels = ["route", "version"]
        share = GaugeMetricFamily(
            "pointsman_route_version_share", "What it gets of its route's requests.", labels=labels
        )
        halted = GaugeMetricFamily(
            "pointsman_canary_halted",
            "Whether it gets nothing, as it was worse than the stable version.",
            labels=labels,
        )
        for one in self._versions():
            share.add_metric([one.route, one.version], one.share)
            halted.add_metric([one.route, one.version], float(one.halted is not None))
        return [share, halted]


class _Replicas(Collector):
    """How the servers of models are that have several, or one, elsewhere."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog

    def collect(self) -> Iterable[Metric]:
        of_each = ["model", "replica"]
        up = GaugeMetricFamily("pointsman_replica_up", "Whether the server gets calls.", labels=of_each)
        running = GaugeMetricFamily("pointsman_replica_in_flight", "Calls that it has.", labels=of_each)
        latency = GaugeMetricFamily(
            "pointsman_replica_latency_seconds", "What its answers take, peaks weighing most.", labels=of_each
        )
        answers = CounterMetricFamily("pointsman_replica_answers", "Calls that it answered.", labels=of_each)
        failures = CounterMetricFamily("pointsman_replica_failures", "Calls and probes that failed.", labels=of_each)
        ejections = CounterMetricFamily("pointsman_replica_ejections", "Times it was left out.", labels=of_each)
        retries = CounterMetricFamily("pointsman_retries", "Calls that were tried again.", labels=["model"])
        refused = CounterMetricFamily(
            "pointsman_retries_refused", "Calls that were not, as the budget was used up.", labels=["model"]
        )
        for model in self._catalog().models.values():
            found = model.replicas()
            if found is None:
                continue
            retries.add_metric([model.name], found.retries)
            refused.add_metric([model.name], found.retries_refused)
            for one in found.replicas:
                labels = [model.name, one.address]
                if one.state is not ReplicaState.UNLOADED:  # it gets no calls, and nothing is wrong with it
                    up.add_metric(labels, float(one.state in (ReplicaState.HEALTHY, ReplicaState.RAMPING)))
                running.add_metric(labels, one.in_flight)
                answers.add_metric(labels, one.answered)
                failures.add_metric(labels, one.failures)
                ejections.add_metric(labels, one.ejections)
                if one.latency_s is not None:
                    latency.add_metric(labels, one.latency_s)
        return [up, running, latency, answers, failures, ejections, retries, refused]


class _Kernels(Collector):
    """How the fused kernels of models with image steps do."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog

    def collect(self) -> Iterable[Metric]:
        items = CounterMetricFamily(
            "pointsman_kernel_items",
            "Pictures that a fused kernel did, or the plain steps in its place.",
            labels=["model", "path"],
        )
        checked = CounterMetricFamily(
            "pointsman_kernel_checks", "Pictures computed again by the plain steps, to compare.", labels=["model"]
        )
        demoted = CounterMetricFamily(
            "pointsman_kernel_demotions",
            "Shapes of pictures that a kernel is not used for any more.",
            labels=["model", "fault"],
        )
        for model in self._catalog().models.values():
            kernels = model.kernels()
            if not kernels:
                continue
            items.add_metric([model.name, "fused"], sum(one.fused for one in kernels))
            items.add_metric([model.name, "plain"], sum(one.plain for one in kernels))
            checked.add_metric([model.name], sum(one.checked for one in kernels))
            for fault in Fault:
                demoted.add_metric([model.name, fault.value], sum(one.demoted.get(fault, 0) for one in kernels))
        return [items, checked, demoted]


class _Processes(Collector):
    """How the processes of models fare that run in some of their own."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog

    def collect(self) -> Iterable[Metric]:
        alive = GaugeMetricFamily("pointsman_model_processes", "Processes of a model.", labels=["model", "state"])
        waiting = GaugeMetricFamily(
            "pointsman_model_process_queue", "Calls that wait for a process to be free.", labels=["model"]
        )
        memory = GaugeMetricFamily(
            "pointsman_model_process_memory_bytes", "What they take, but for what they share.", labels=["model"]
        )
        calls = CounterMetricFamily("pointsman_model_process_calls", "Calls that they were given.", labels=["model"])
        starts = CounterMetricFamily("pointsman_model_process_starts", "Processes that were ready.", labels=["model"])
        ends = CounterMetricFamily(
            "pointsman_model_process_ends",
            "Processes that were replaced as they were worn, died, hung in a call, or never became ready.",
            labels=["model", "reason"],
        )
        for model in self._catalog().models.values():
            found = model.processes()
            if found is None:
                continue
            alive.add_metric([model.name, "idle"], found.idle)
            alive.add_metric([model.name, "busy"], found.workers - found.idle)
            waiting.add_metric([model.name], found.waiting)
            memory.add_metric([model.name], found.memory_bytes)
            calls.add_metric([model.name], found.calls)
            starts.add_metric([model.name], found.started)
            ends.add_metric([model.name, "recycled"], found.recycled)
            ends.add_metric([model.name, "died"], found.died)
            ends.add_metric([model.name, "hung"], found.hung)
            ends.add_metric([model.name, "not_started"], found.failed_starts)
        return [alive, waiting, memory, calls, starts, ends]


def _add_curve(family: GaugeMetricFamily, labels: Sequence[str], curve: Iterable[CurvePoint]) -> None:
    for point in curve:
        family.add_metric([*labels, str(point.size), "typical"], point.typical_s)
        family.add_metric([*labels, str(point.size), "cautious"], point.cautious_s)


class _JsonLines(logging.Formatter):
    """One JSON object a line, so that nothing a caller sends can forge a second one.

    Of an exception the types and the places are logged, and the message only where it is ours, the operating system's,
    or what another server said, whose operator decides what its errors quote: a model's own messages quote its inputs
    (`invalid literal for int(): 'card 4711...'`), and what callers send has no place in a log.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}
        self.mask: Callable[[str], str] = _as_it_is

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.mask(record.getMessage()),
            **self._worker,
        }
        if (trace_id := getattr(record, "trace_id", None)) is not None:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = [self.mask(told) for told in _without_inputs(record.exc_info[1])]
        return json.dumps(line, ensure_ascii=True)


def _without_inputs(error: BaseException | None) -> list[str]:
    """*error* and what caused it, innermost first: each with its type, and where it was raised."""
    told: list[str] = []
    while error is not None and len(told) < _CHAIN:
        said = f": {error}" if isinstance(error, PointsmanError | OSError | ServerSaid) else ""
        frames = [f"{f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        told.append(f"{type(error).__module__}.{type(error).__qualname__}{said} at {' < '.join(reversed(frames))}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told[::-1]


def _as_it_is(text: str) -> str:
    return text


def mask_logs(mask: Callable[[str], str]) -> None:
    """Log what *mask* leaves of messages, from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _JsonLines):
            handler.formatter.mask = mask


def configure_logging(level: str = "INFO", worker: int | None = None) -> None:
    """Log JSON lines to standard error, from *level* on; each names *worker*, where there are several."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(worker))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The servers' own lines repeat ours, and their access logs would name what callers sent.
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
