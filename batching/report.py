"""What batching tells of itself: a record per batch, pushed; a snapshot, and totals that only grow, pulled.

No metrics or logging library is known here; whoever watches implements `BatchObserver`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from backends.contract import ServerCall, record
from backends.trace_context import TraceContext


class Outcome(StrEnum):
    """How a batch ended."""

    ANSWERED = "answered"
    FAILED = "failed"  # its callers were told, or its entries are run again, to find the one to blame
    ABANDONED = "abandoned"  # every caller had left, so the call was cancelled


@record
class BatchedCaller:
    """One of those who share a batch, or a part of a caller's larger batch.

    Attributes:
        trace: the span that its items were submitted for.
        queued_s: seconds that they had waited when the batch was formed; None where they were in one before, which
            failed.
    """

    trace: TraceContext
    queued_s: float | None


@record
class BatchTrace:
    """Where a batch belongs in its callers' traces.

    Attributes:
        span: the batch's own, within that of the foremost caller (`backends.trace_context.foremost`).
        callers: those that are traced, in the order of the batch.
        server_calls: that its backend made.
    """

    span: TraceContext
    callers: tuple[BatchedCaller, ...]
    server_calls: tuple[ServerCall, ...]


class BatchNote:
    """What a caller wants to know of the batches that its items were in; filled in as they are answered.

    Attributes:
        batch: id of the first; "" before.
        size: items in it.
        model_s: the model's time for all of them, of each the caller's share by items; in seconds.
    """

    __slots__ = ("batch", "model_s", "size")

    def __init__(self) -> None:
        self.batch = ""
        self.size = 0
        self.model_s = 0.0

    def answered(self, batch: str, size: int, own: int, took_s: float) -> None:
        """*batch*, in which *own* of *size* items are the caller's, was answered after *took_s* seconds."""
        if not self.batch:
            self.batch, self.size = batch, size
        self.model_s += took_s * own / size


@record
class BatchReport:
    """One batch, that is one call of the backend, after what it answered or failed was told.

    Attributes:
        model: the model's name.
        size: items in the batch.
        entries: callers (or parts of a caller's larger batch) that shared it.
        queued_s: seconds that its oldest entry had waited when the batch was formed.
        infer_s: seconds from there to the backend's answer, merging included.
        outcome: how it ended.
        error: what was raised, for the operator's log; may hold what no caller should read.
        padding: the share of its inputs that is padding; None where lengths do not matter.
        trace: where it belongs; None where no span of it is recorded.
    """

    model: str
    size: int
    entries: int
    queued_s: float
    infer_s: float
    outcome: Outcome
    error: BaseException | None = None
    padding: float | None = None
    trace: BatchTrace | None = None


class BatchObserver(Protocol):
    """Is told of every batch; called on the event loop, so it must be quick."""

    def on_batch(self, report: BatchReport) -> None:
        """A batch has ended."""
        ...


class IgnoreBatches:
    """Observes nothing."""

    def on_batch(self, report: BatchReport) -> None:
        """Drop *report*."""


class Refusal(StrEnum):
    """Why an entry was refused, or dropped from the queue."""

    EXPIRED = "expired"  # its deadline passed before it came, or while it waited or ran
    HOPELESS = "hopeless"  # the model alone takes longer than there is time
    OVERLOADED = "overloaded"  # what runs or waits before it takes the time
    QUEUE_FULL = "queue_full"
    EVICTED = "evicted"  # made room for a tenant that had less than its share


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What batches of one size take, in seconds: the median, and what 95 % of them do not exceed."""

    size: int
    typical_s: float
    cautious_s: float


def slowest(curves: Iterable[Sequence[CurvePoint]]) -> tuple[CurvePoint, ...]:
    """At each size the slowest of *curves*, which have the same sizes."""
    return tuple(
        CurvePoint(points[0].size, max(point.typical_s for point in points), max(point.cautious_s for point in points))
        for points in zip(*curves, strict=True)
    )


@dataclass(frozen=True, slots=True)
class BatchingStatistics:
    """One batcher at one moment.

    Attributes:
        queued_items: items that wait.
        queued_bytes: bytes of host memory that their inputs take.
        in_flight: batches at the backend.
        batches: batches that have ended, since the start.
        items: items in them; one that was run again counts again.
        latency_s: seconds that a batch is expected to take now (the median of recent ones); 0.0 where none is recent.
        predicted_wait_s: seconds that a new item would queue.
        curve: what batches take, by ascending size; empty where nothing recent is known.
        refusals: since the start, by reason.
        oldest_wait_s: seconds that the entry has waited which waits longest; 0.0 where none waits.
        arrivals_per_s: items that came to the queue, as fast as the latest did.
        bucket_curves: as `curve`, by the upper bound of length buckets; those of which something recent is known.
    """

    queued_items: int
    queued_bytes: int
    in_flight: int
    batches: int
    items: int
    latency_s: float
    predicted_wait_s: float
    curve: tuple[CurvePoint, ...] = ()
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    oldest_wait_s: float = 0.0
    arrivals_per_s: float = 0.0
    bucket_curves: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SequenceStatistics:
    """The sequences of one model that keeps state.

    Attributes:
        live: that have begun, and neither ended nor been idle for too long.
        started: since the start.
        lost: of these, those whose state was lost, or in doubt.
    """

    live: int
    started: int
    lost: int


@dataclass(frozen=True, slots=True)
class SizeTotals:
    """The batches of one size that were answered.

    Attributes:
        size: items in each.
        input_ns: nanoseconds that merging took, over all of them.
        infer_ns: that the backend took.
        output_ns: that handing out the rows took.
    """

    size: int
    batches: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True)
class BatchingTotals:
    """What a batcher has answered since its start.

    Attributes:
        entries: callers' batches, or parts of large ones.
        queue_ns: nanoseconds that these waited, over all of them.
        input_ns, infer_ns, output_ns: that their batches took, as in `SizeTotals`; every entry counts the whole.
        by_size: in ascending order.
    """

    entries: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    by_size: tuple[SizeTotals, ...]

    @property
    def batches(self) -> int:
        """Calls of the backend that were answered."""
        return sum(row.batches for row in self.by_size)


class BatchingCounters:
    """Counts what is answered, in numbers that only grow; single event loop."""

    __slots__ = ("_by_size", "_entries", "_infer_ns", "_input_ns", "_output_ns", "_queue_ns")

    def __init__(self) -> None:
        self._entries = 0
        self._queue_ns = 0
        self._input_ns = 0
        self._infer_ns = 0
        self._output_ns = 0
        self._by_size: dict[int, list[int]] = {}  # batches, input_ns, infer_ns, output_ns

    def answered(self, size: int, arrivals_s: Sequence[float], instants_s: tuple[float, float, float, float]) -> None:
        """A batch was answered.

        Args:
            size: items in it.
            arrivals_s: when each of its entries came.
            instants_s: when it was formed, merged, answered and handed out. Timers that ring early may put one
                slightly before the one it follows, which counts as no time.
        """
        formed, merged, inferred, delivered = instants_s
        entries = len(arrivals_s)
        input_ns, infer_ns = _ns(merged - formed), _ns(inferred - merged)
        output_ns = _ns(delivered - inferred)
        self._entries += entries
        self._queue_ns += sum([_ns(formed - arrived) for arrived in arrivals_s])
        self._input_ns += entries * input_ns
        self._infer_ns += entries * infer_ns
        self._output_ns += entries * output_ns
        row = self._by_size.get(size)
        if row is None:
            row = self._by_size[size] = [0, 0, 0, 0]
        row[0] += 1
        row[1] += input_ns
        row[2] += infer_ns
        row[3] += output_ns

    def totals(self) -> BatchingTotals:
        """What was counted until now."""
        rows = tuple(SizeTotals(size, *row) for size, row in sorted(self._by_size.items()))
        return BatchingTotals(self._entries, self._queue_ns, self._input_ns, self._infer_ns, self._output_ns, rows)


def together(parts: Iterable[BatchingTotals]) -> BatchingTotals:
    """The totals of several batchers as one."""
    found = tuple(parts)
    by_size: dict[int, SizeTotals] = {}
    for row in (row for part in found for row in part.by_size):
        other = by_size.get(row.size, SizeTotals(row.size, 0, 0, 0, 0))
        by_size[row.size] = SizeTotals(
            row.size,
            other.batches + row.batches,
            other.input_ns + row.input_ns,
            other.infer_ns + row.infer_ns,
            other.output_ns + row.output_ns,
        )
    return BatchingTotals(
        sum(part.entries for part in found),
        sum(part.queue_ns for part in found),
        sum(part.input_ns for part in found),
        sum(part.infer_ns for part in found),
        sum(part.output_ns for part in found),
        tuple(by_size[size] for size in sorted(by_size)),
    )


def _ns(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
