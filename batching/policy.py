"""When a batch goes, and who is in it: pure decisions over what waits.

A policy sees the lanes (what may share a batch shares a lane, each in order of arrival), the free slots, the
latency estimate and the time, and answers with a `Plan`. It keeps no clock and does nothing: the batcher, and a
simulator as well, call `plan` whenever something changed (an arrival, a free slot, `wake_at_s` reached) and obey.

`SizeAndDelay` is the first policy. A batch goes when it is full, when its oldest item has waited `max_delay_s`, or at
the last moment that the latency estimate leaves to its earliest deadline. Of several ready batches the one whose head
waited longest goes first, so that no lane starves another.

`ByPriority` is the one where requests have priorities: in a lane, and between lanes, entries of a higher level go first
when there is not room for all. Nobody starves: an entry that has waited half the time to its deadline (without one,
`PATIENCE_S`) counts as one of the highest level, and of these who came first goes first. Levels may share a batch, so
that priorities cost no occupancy. It looks at every entry that waits, which `SizeAndDelay` need not: where no
priorities are configured, they cost nothing.

Rejected: a lane for each level (batches that are never full, and a lane's head that says nothing of the rest); raising
entries level by level while they wait (more knobs, and the same end).

Rejected: filling a batch with a later, smaller entry where the next in line does not fit. It would raise occupancy a
little and let a stream of single items starve every large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from itertools import islice
from typing import Generic, Protocol, TypeVar

from backends.contract import Deadline, record
from batching.latency import Latency


class Waiting(Protocol):
    """What a policy may know of an entry."""

    @property
    def size(self) -> int:
        """Its items; never more than a batch holds."""
        ...

    @property
    def deadline(self) -> Deadline:
        """When its answer becomes worthless."""
        ...

    @property
    def arrived_s(self) -> float:
        """When it came, on the deadline's clock."""
        ...

    @property
    def level(self) -> int:
        """Its priority, 1 the highest; matters where a policy goes by it."""
        ...


W = TypeVar("W", bound=Waiting)


@record
class Plan(Generic[W]):
    """What to do now.

    Attributes:
        batches: to be sent at once, the most urgent first; each from one lane, at most one for every free slot.
        late: entries whose deadline has passed; to be refused, never sent.
        wake_at_s: when to ask again if nothing happens before; matters only where nothing else is in the plan.
    """

    batches: tuple[tuple[W, ...], ...] = ()
    late: tuple[W, ...] = ()
    wake_at_s: float = math.inf


class Policy(Protocol):
    """Decides when batches go."""

    def plan(self, lanes: Iterable[Iterable[W]], free_slots: int, latency: Latency, now: float) -> Plan[W]:
        """What to do at *now*.

        Where something waits, a slot is free and neither `batches` nor `late` is filled, `wake_at_s` must be a
        finite time after *now*: a plan that waits for nothing would never end. No lane is empty.
        """
        ...


class SizeAndDelay:
    """Full batches at once, the rest after a delay, all of them before their deadlines press."""

    def __init__(self, max_batch: int, max_delay_s: float) -> None:
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s

    def plan(self, lanes: Iterable[Iterable[W]], free_slots: int, latency: Latency, now: float) -> Plan[W]:
        """What to do at *now*; see the module."""
        if self._max_delay_s == 0:  # every lane is ready, so that only the oldest need a look: there may be many
            lanes = nsmallest(free_slots, lanes, key=lambda lane: next(iter(lane)).arrived_s)
        ready: list[tuple[W, ...]] = []
        late: list[W] = []
        wake_at_s = math.inf
        for lane in lanes:
            for batch, is_full in islice(self.batches(lane, now, late), free_slots):
                go_at_s = now if is_full else self.go_at_s(batch, latency, now)
                if go_at_s <= now:
                    ready.append(batch)
                else:
                    wake_at_s = min(wake_at_s, go_at_s)
        ready.sort(key=lambda batch: batch[0].arrived_s)
        return Plan(tuple(ready[:free_slots]), tuple(late), wake_at_s)

    def batches(self, lane: Iterable[W], now: float, late: list[W]) -> Iterator[tuple[tuple[W, ...], bool]]:
        """Cut *lane* into batches, each with whether it is full; entries past their deadline go to *late*."""
        batch: list[W] = []
        size = 0
        for entry in lane:
            if entry.deadline <= now:
                late.append(entry)
                continue
            if size + entry.size > self._max_batch:
                yield tuple(batch), True
                batch, size = [], 0
            batch.append(entry)
            size += entry.size
            if size == self._max_batch:
                yield tuple(batch), True
                batch, size = [], 0
        if batch:
            yield tuple(batch), False

    def go_at_s(self, batch: tuple[W, ...], latency: Latency, now: float) -> float:
        """When a batch that is not full has waited long enough."""
        waited_at_s = batch[0].arrived_s + self._max_delay_s
        size = sum(entry.size for entry in batch)
        return min(waited_at_s, min(entry.deadline for entry in batch) - latency.cautious_s(size, now))


PATIENCE_S = 1.0
"""What an entry without a deadline waits until it counts as one of the highest level."""

_HIGHEST = 1


class ByPriority:
    """As `SizeAndDelay`, with what is more urgent before what is less."""

    def __init__(self, max_batch: int, max_delay_s: float) -> None:
        self._alike = SizeAndDelay(max_batch, max_delay_s)

    def plan(self, lanes: Iterable[Iterable[W]], free_slots: int, latency: Latency, now: float) -> Plan[W]:
        """What to do at *now*; see the module."""
        ready: list[tuple[W, ...]] = []
        late: list[W] = []
        wake_at_s = math.inf
        for lane in lanes:
            ordered = sorted(lane, key=lambda entry: _urgency(entry, now))
            for batch, is_full in islice(self._alike.batches(ordered, now, late), free_slots):
                go_at_s = now if is_full else self._alike.go_at_s(_oldest_first(batch), latency, now)
                if go_at_s <= now:
                    ready.append(batch)
                else:
                    wake_at_s = min(wake_at_s, go_at_s)
        ready.sort(key=lambda batch: _urgency(batch[0], now))
        return Plan(tuple(ready[:free_slots]), tuple(late), wake_at_s)


def _urgency(entry: Waiting, now: float) -> tuple[int, float]:
    """Less is more urgent: the level, and who came first."""
    patience_s = (entry.deadline - entry.arrived_s) / 2 if entry.deadline < math.inf else PATIENCE_S
    return (_HIGHEST if now - entry.arrived_s >= patience_s else entry.level), entry.arrived_s


def _oldest_first(batch: tuple[W, ...]) -> tuple[W, ...]:
    return tuple(sorted(batch, key=lambda entry: entry.arrived_s))
