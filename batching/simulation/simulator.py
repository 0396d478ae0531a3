"""Discrete events: requests come, the policy plans, batches run, and replies are in time or not.

**What is real here** are the policy, the lanes with their deadlines, and the latency estimate: the production objects,
asked in the same moments as the batcher asks them (an arrival while a slot is free, a slot that frees, the moment that
a plan names). **What is not** are the backend (a `Service` says what a batch takes) and the cost of the gateway itself,
which is none. A reply is in time if its batch ends by the deadline.

Source: an event heap as in any simulator of queues; no library is needed for three kinds of events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

from backends.contract import Deadline, record
from batching.admission import outlook
from batching.lanes import Lanes
from batching.latency import Kinds
from batching.policy import Policy


@record
class Request:
    """One that will come.

    Attributes:
        at_s: when.
        within_s: seconds from there to its deadline.
        size: items.
        tenant: whose it is.
        level: its priority, where the policy goes by it.
        kind: requests of one kind may share a batch.
    """

    at_s: float
    within_s: float
    size: int = 1
    tenant: str = ""
    level: int = 0
    kind: Hashable = ""


class Service(Protocol):
    """Says what batches take; may draw noise, from a generator of its own."""

    def takes_s(self, kind: Hashable, size: int, now: float) -> float:
        """Seconds that a batch of *size* items takes that starts at *now*."""
        ...


@record
class Result:
    """What became of the requests.

    Attributes:
        offered: how many there were.
        in_time: answered by their deadline.
        late: answered after it, or never, since it passed in the queue.
        refused: told at once, or as soon as it showed, that their deadline cannot be met.
        batches: sizes, in the order in which they were started.
        busy_s: seconds that slots were busy, over all of them.
        span_s: seconds from the first arrival to the last.
        in_time_of: as `in_time`, by tenant.
    """

    offered: int
    in_time: int
    late: int
    refused: int
    batches: tuple[int, ...]
    busy_s: float
    span_s: float
    in_time_of: dict[str, int]

    @property
    def share_in_time(self) -> float:
        """The part of the offered requests that was answered in time."""
        return self.in_time / self.offered if self.offered else 0.0


class _Entry:
    """A request that waits or runs; what a policy sees."""

    __slots__ = ("arrived_s", "deadline", "key", "level", "nbytes", "size", "tenant", "turn")

    def __init__(self, request: Request) -> None:
        self.size = request.size
        self.deadline = Deadline(request.at_s + request.within_s)
        self.arrived_s = request.at_s
        self.level = request.level
        self.tenant = request.tenant
        self.key = request.kind
        self.nbytes = 0
        self.turn = 0.0


class _Simulation:
    """One run; see the module."""

    def __init__(self, policy: Policy, service: Service, slots: int, max_batch: int, kinds: Kinds) -> None:
        self._policy = policy
        self._service = service
        self._slots = slots
        self._max_batch = max_batch
        self._kinds = kinds
        self._lanes: Lanes[_Entry] = Lanes(kinds)
        self._running: dict[int, tuple[float, float, tuple[_Entry, ...]]] = {}  # started, should end, who
        self._started = 0
        self._ends: list[tuple[float, int]] = []
        self.busy_s = 0.0
        self.batches: list[int] = []
        self.late = 0
        self.refused = 0
        self.in_time: dict[str, int] = {}

    def run(self, requests: Sequence[Request], told: Callable[[int, float, float], None] | None, admits: bool) -> None:
        """Every request to its end."""
        upcoming = iter(requests)
        request = next(upcoming, None)
        wake_at_s = math.inf
        while request is not None or self._ends or self._lanes:
            at_s = request.at_s if request is not None else math.inf
            ends_s = self._ends[0][0] if self._ends else math.inf
            now = min(at_s, ends_s, wake_at_s)
            if ends_s == now:
                self._land(now, told)
            elif at_s == now and request is not None:
                self._arrive(_Entry(request), now, admits)
                request = next(upcoming, None)
                if request is not None and request.at_s == now:
                    continue  # those of one moment are planned together
            wake_at_s = self._turn(now)

    def _arrive(self, entry: _Entry, now: float, admits: bool) -> None:
        if admits and not self._can_make_it(entry, now):
            self.refused += 1
            return
        self._lanes.add(entry)

    def _can_make_it(self, entry: _Entry, now: float) -> bool:
        found = outlook(
            self._lanes,
            self._kinds.of(entry.key).latency,
            self._free_at_s(),
            self._max_batch,
            entry.deadline,
            entry.tenant,
            now,
        )
        return now + found.wait_s + found.latency_s <= entry.deadline

    def _free_at_s(self) -> list[float]:
        ends_s = [should_end_s for _, should_end_s, _ in self._running.values()]
        return ends_s + [0.0] * (self._slots - len(ends_s))

    def _turn(self, now: float) -> float:
        """Do what the policy plans; when to ask again."""
        while self._lanes and (free := self._slots - len(self._running)):
            plan = self._policy.plan(self._lanes, free, now)
            for gone in (*plan.late, *plan.shed):
                self._lanes.remove(gone)
            self.late += len(plan.late)
            self.refused += len(plan.shed)
            for batch in plan.batches:
                self._launch(batch, now)
            if not (plan.batches or plan.late or plan.shed):
                if not now < plan.wake_at_s < math.inf:
                    raise RuntimeError(f"the policy waits at {now} until {plan.wake_at_s}. This is a bug.")
                return plan.wake_at_s
        return math.inf

    def _launch(self, batch: tuple[_Entry, ...], now: float) -> None:
        for entry in batch:
            self._lanes.take(entry)
        kind = batch[0].key
        size = sum(entry.size for entry in batch)
        takes_s = self._service.takes_s(kind, size, now)
        self._started += 1
        self._running[self._started] = (now, now + self._kinds.of(kind).latency.typical_s(size, now), batch)
        heappush(self._ends, (now + takes_s, self._started))
        self.busy_s += takes_s
        self.batches.append(size)

    def _land(self, now: float, told: Callable[[int, float, float], None] | None) -> None:
        _, number = heappop(self._ends)
        started_s, _, batch = self._running.pop(number)
        size = sum(entry.size for entry in batch)
        self._kinds.of(batch[0].key).latency.observe(size, now - started_s, now)
        if told is not None:
            told(size, now - started_s, now)
        for entry in batch:
            if now <= entry.deadline:
                self.in_time[entry.tenant] = self.in_time.get(entry.tenant, 0) + 1
            else:
                self.late += 1


def simulate(
    requests: Sequence[Request],
    policy: Policy,
    service: Service,
    *,
    slots: int = 1,
    max_batch: int = 64,
    kinds: Kinds | None = None,
    admits: bool = False,
    told: Callable[[int, float, float], None] | None = None,
) -> Result:
    """Let *requests* come, in order of `at_s`, and see what becomes of them.

    Args:
        slots: batches that run at once.
        max_batch: most items in a batch; for the forecast, the policy has its own.
        kinds: what is known of latencies before the first batch; nothing by default.
        admits: whether requests whose deadline cannot be met behind those that wait are refused when they come, as
            the batcher does.
        told: told (size, seconds, now) of every batch that ends, for policies that learn by themselves.

    Raises:
        ValueError: *requests* are not in order.
    """
    if any(later.at_s < earlier.at_s for earlier, later in pairwise(requests)):
        raise ValueError("requests are not in order of at_s; sort them first")
    run = _Simulation(
        policy, service, slots, max_batch, kinds or Kinds(has_buckets=len({r.kind for r in requests}) > 1)
    )
    run.run(requests, told, admits)
    return Result(
        offered=len(requests),
        in_time=sum(run.in_time.values()),
        late=run.late,
        refused=run.refused,
        batches=tuple(run.batches),
        busy_s=run.busy_s,
        span_s=requests[-1].at_s - requests[0].at_s if requests else 0.0,
        in_time_of=run.in_time,
    )
