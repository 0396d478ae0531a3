"""One exposition of many processes: what becomes of each kind of series.

| series | over processes | why |
|---|---|---|
| counters, histograms | summed, those of workers that have ended included | what was counted stays counted |
| `pointsman_queue_depth`, `_queue_bytes`, `_queue_arrivals_per_second` | summed | each has a queue of its own |
| `pointsman_batches_in_flight`, `_store_pending_writes` | summed | each has its own |
| `pointsman_batch_latency_seconds`, `_bucket_latency_seconds` | the greatest | a caller may come to any of them |
| `pointsman_model_residency`, `pointsman_model_memory_bytes` | summed | in how many processes it is so; what it takes |
| `pointsman_queue_oldest_seconds` | the greatest | it is the oldest of all |
| `pointsman_model_ready`, `pointsman_route_certified`, `pointsman_replica_up` | the least | a caller may come to any |
| `pointsman_replica_in_flight` | summed | each has connections of its own |
| `pointsman_replica_latency_seconds` | the greatest | a caller may come to any of them |
| `pointsman_canary_halted` | the greatest | where one has halted it, the others soon do |
| `pointsman_model_processes`, `_process_queue`, `_process_memory_bytes` | summed | each has processes of its own |
| `pointsman_store_size_bytes`, `_store_limit_bytes`, `pointsman_reviews_open` | the greatest | there is one store |
| `pointsman_review_gold_labels`, `_second_opinions`, `_predicted_wait_seconds` | the greatest | likewise |
| `process_*`, `python_*` | each, with the label `worker` | they are about a process, and begin anew with it |
| any other gauge | each, with the label `worker` | true of whatever it means |

What a worker counted since it was last asked is lost if it is killed; nothing that was shown ever falls. One that ends
in order says its last words.

No metrics library is known here: `gateway.telemetry` makes families, and turns them into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

WORKER = "worker"
"""The label of what is told of each process."""

Labels: TypeAlias = tuple[tuple[str, str], ...]
_Join: TypeAlias = Callable[[float, float], float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value.

    Attributes:
        name: the family's, and what its kind adds to it, such as `_total`.
        labels: in the order of their names.
    """

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """Everything under one name.

    Attributes:
        kind: as Prometheus calls it.
    """

    name: str
    kind: str
    documentation: str
    samples: tuple[Sample, ...]


def _sum(one: float, other: float) -> float:
    return one + other


GAUGES: Mapping[str, _Join] = {
    "pointsman_queue_depth": _sum,
    "pointsman_queue_bytes": _sum,
    "pointsman_queue_arrivals_per_second": _sum,
    "pointsman_queue_oldest_seconds": max,
    "pointsman_batches_in_flight": _sum,
    "pointsman_model_residency": _sum,
    "pointsman_model_memory_bytes": _sum,
    "pointsman_store_pending_writes": _sum,
    "pointsman_batch_latency_seconds": max,
    "pointsman_bucket_latency_seconds": max,
    "pointsman_model_ready": min,
    "pointsman_route_certified": min,
    "pointsman_webhook_messages": max,
    "pointsman_sequences_live": _sum,
    "pointsman_replica_up": min,
    "pointsman_replica_in_flight": _sum,
    "pointsman_replica_latency_seconds": max,
    "pointsman_model_processes": _sum,
    "pointsman_model_process_queue": _sum,
    "pointsman_model_process_memory_bytes": _sum,
    "pointsman_store_size_bytes": max,
    "pointsman_store_limit_bytes": max,
    "pointsman_reviews_open": max,
    "pointsman_review_predicted_wait_seconds": max,
    "pointsman_review_gold_labels": max,
    "pointsman_review_second_opinions": max,
    "pointsman_canary_halted": max,
}
"""How gauges become one; every other is told of each process."""

_OF_A_PROCESS = ("process_", "python_")


def together(processes: Mapping[str, Sequence[Family]], ended: Iterable[Family] = ()) -> list[Family]:
    """The families of all *processes*, by the value of the label `worker`, and what those counted that have *ended*."""
    joined = _Families()
    for family in ended:
        joined.add(family)
    for worker, families in processes.items():
        for family in families:
            joined.add(family if _join_of(family) else _labelled(family, worker))
    return joined.families()


def counted(families: Iterable[Family], before: Iterable[Family] = ()) -> list[Family]:
    """What stays counted of *families* when their process has ended, added to what stayed *before*."""
    joined = _Families()
    for family in (*before, *families):
        if _adds_up(family):
            joined.add(family)
    return joined.families()


class _Families:
    """Families under construction, in the order in which they came."""

    def __init__(self) -> None:
        self._about: dict[str, Family] = {}
        self._values: dict[str, dict[tuple[str, Labels], float]] = {}

    def add(self, family: Family) -> None:
        self._about.setdefault(family.name, family)
        values = self._values.setdefault(family.name, {})
        join = _join_of(family)
        for sample in family.samples:
            key = (sample.name, sample.labels)
            values[key] = join(values[key], sample.value) if join and key in values else sample.value

    def families(self) -> list[Family]:
        return [
            replace(about, samples=tuple(Sample(*key, value) for key, value in self._values[name].items()))
            for name, about in self._about.items()
        ]


def _adds_up(family: Family) -> bool:
    return family.kind in ("counter", "histogram") and not family.name.startswith(_OF_A_PROCESS)


def _join_of(family: Family) -> _Join | None:
    """What makes one of two values of *family*; None where each is told."""
    return _sum if _adds_up(family) else GAUGES.get(family.name)


def _labelled(family: Family, worker: str) -> Family:
    return replace(
        family,
        samples=tuple(
            replace(sample, labels=tuple(sorted((*sample.labels, (WORKER, worker))))) for sample in family.samples
        ),
    )
