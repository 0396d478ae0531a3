"""What batching tells of itself: a record per batch, pushed, and a snapshot, pulled.

No metrics or logging library is known here; whoever watches implements `BatchObserver`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Outcome(StrEnum):
    """How a batch ended."""

    ANSWERED = "answered"
    FAILED = "failed"  # its callers were told, or its entries are run again, to find the one to blame
    ABANDONED = "abandoned"  # every caller had left, so the call was cancelled


@dataclass(frozen=True, slots=True)
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
    """

    model: str
    size: int
    entries: int
    queued_s: float
    infer_s: float
    outcome: Outcome
    error: BaseException | None = None


class BatchObserver(Protocol):
    """Is told of every batch; called on the event loop, so it must be quick."""

    def on_batch(self, report: BatchReport) -> None:
        """A batch has ended."""
        ...


class IgnoreBatches:
    """Observes nothing."""

    def on_batch(self, report: BatchReport) -> None:
        """Drop *report*."""


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
    """

    queued_items: int
    queued_bytes: int
    in_flight: int
    batches: int
    items: int
    latency_s: float
    predicted_wait_s: float
