"""What has been answered so far, in the terms of Triton's statistics extension.

A route's requests are counted where they end, in the pipeline: `success` are those that were answered, provisionally
too, and `fail` all others, cancelled ones included; durations are from the edge's call to the end. What happens between
is the models': `queue` and `compute_*` are those of the models of the route's cascade, in one sum. A model that several
routes share counts for each of them. Of a route that has versions each has its own; what ended before one was chosen
counts for none.

As in Triton, every caller of a batch has spent the whole of the batch's time, so `ns / count` is what one caller sees,
while the rows of `batch_stats` count each batch once. Counters only grow, from the start of the process on.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from batching.report import BatchingTotals, together


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """A route's or exposed model's statistics; see the module.

    Attributes:
        last_ms: Unix time of the last request's end, in milliseconds; 0 before the first.
        items: in requests that were answered.
        models: what the batchers of its models answered.
    """

    name: str
    version: str
    last_ms: int
    items: int
    successes: int
    success_ns: int
    failures: int
    failure_ns: int
    models: BatchingTotals


class RequestCounters:
    """Counts the requests of one route; single event loop."""

    __slots__ = ("failure_ns", "failures", "items", "last_ms", "success_ns", "successes")

    def __init__(self) -> None:
        self.last_ms = 0
        self.items = 0
        self.successes = 0
        self.success_ns = 0
        self.failures = 0
        self.failure_ns = 0

    def ended(self, items: int, duration_s: float) -> None:
        """A request ended: it was answered for *items*, or failed (0)."""
        self.last_ms = max(self.last_ms, time.time_ns() // 1_000_000)
        ns = max(0, int(duration_s * 1e9))
        if items:
            self.items += items
            self.successes += 1
            self.success_ns += ns
        else:
            self.failures += 1
            self.failure_ns += ns

    def statistics(self, name: str, version: str, models: Iterable[BatchingTotals]) -> ModelStatistics:
        """What was counted until now, with what *models* did."""
        return ModelStatistics(
            name,
            version,
            self.last_ms,
            self.items,
            self.successes,
            self.success_ns,
            self.failures,
            self.failure_ns,
            together(models),
        )


def model_stats(found: Iterable[ModelStatistics]) -> dict[str, Any]:
    """`inference.ModelStatisticsResponse` in JSON (hence Any)."""
    return {"model_stats": [_row(one) for one in found]}


def _row(found: ModelStatistics) -> dict[str, Any]:
    models = found.models
    return {
        "name": found.name,
        "version": found.version,
        "last_inference": found.last_ms,
        "inference_count": found.items,
        "execution_count": models.batches,
        "inference_stats": {
            "success": _duration(found.successes, found.success_ns),
            "fail": _duration(found.failures, found.failure_ns),
            "queue": _duration(models.entries, models.queue_ns),
            "compute_input": _duration(models.entries, models.input_ns),
            "compute_infer": _duration(models.entries, models.infer_ns),
            "compute_output": _duration(models.entries, models.output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "memory_usage": [],
        "batch_stats": [
            {
                "batch_size": row.size,
                "compute_input": _duration(row.batches, row.input_ns),
                "compute_infer": _duration(row.batches, row.infer_ns),
                "compute_output": _duration(row.batches, row.output_ns),
            }
            for row in models.by_size
        ],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
