"""The policies of other servers, for comparison, each by its own rule for when a batch goes and who is in it.

They are asked in the same moments as our own and see the same lanes, from which they take what their original knows.
Eager dispatch, Triton and BentoML serve first come, first served; Clipper, Nexus and Symphony by deadline.

All are for one lane; of several, they serve each by itself and the one first whose head came first.

Sources, and where we differ:

- `Eager`: whatever waits goes when a slot is free.
- `TritonRule`: Triton's dynamic batcher (triton-inference-server/core 01ea7d9, `src/dynamic_batch_scheduler.cc`,
  `GetDynamicBatch`): the largest preferred size that is there goes at once (without preferred sizes: a full batch),
  unless the oldest has waited `max_queue_delay`: then all that waits goes, up to a full batch. Its queue policy
  (`default_timeout_microseconds` with `REJECT`) is an option. Left out: payloads that are prepared while all instances
  are busy and grow until one is free, which comes to a batch that is formed when it is free.
- `Aimd`: Clipper (NSDI 2017, section 4.3.1; steps as `update_batch_size_aimd` of its Rust prototype has them): the most
  items in a batch grow by two while batches take less than 0.9 of the objective and shrink by a tenth when one takes
  all of it. The prototype counts from the size that was sent, so that a small batch forgets what was learnt; we count
  from the limit, and only of full batches, which is better for it in nearly every trace that was tried. What is past
  its objective is dropped (`task_executor.hpp`, 032d8f5).
- `Cork`: BentoML 1.4.39, `_internal/marshal/dispatcher.py`, `CorkDispatcher.controller` and `Optimizer`: a line fitted
  to the last 50 batches, refreshed every 5 s; the head is dropped while the estimate for all that wait exceeds the
  objective; a batch waits while n * (age of the newest + tick + slope) is at most 0.95 times the mean wait of recent
  batches. It polls every millisecond, as does this, but for a slot that frees, which we tell it at once. Its training,
  eleven batches of one to three whatever waits, is left out, and the first ten batches each refresh the line: better
  for it, since what training costs is paid once.
- `EarlyDrop`: Nexus (SOSP 2019, section 4.3; uwsampl/nexus 02ec95b, `backend/model_exec.cpp`, `GetBatchTask`): batches
  of a fixed target size, the largest whose latency is at most half of the objective; heads that could not be in a batch
  of that size any more are dropped.
- `Deferred`: Symphony (2023; abcdabcd987/nexuslb, `dispatcher/batch_policy.cpp`, 2c3eaa9, `batch_size_estimator.cpp`,
  6ca87de, and `rankmt/model_thread.cpp`, 04bd5fd): Nexus' window with a target that follows from the arrival rate, and
  beyond it whatever is free lunch; the batch goes at the last moment at which one more item could still join. The rate
  is that of the lane's last 16 arrivals, there the mean and two deviations over a window; latencies are our cautious
  ones, there a profile's means and 2 ms of slack, which is worse for it here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from batching.policy import Lane, Plan, W

_TICK_S = 0.001


class _Baseline:
    """What they have in common; a subclass says what one lane does."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch

    def plan(self, lanes: Iterable[Lane[W]], free_slots: int, now: float) -> Plan[W]:
        """What to do at *now*."""
        plans = [self._one(lane, self._ordered(lane), now) for lane in lanes]
        batches = sorted([batch for plan in plans for batch in plan.batches], key=lambda batch: batch[0].arrived_s)
        return Plan(
            tuple(batches[:free_slots]),
            tuple([entry for plan in plans for entry in plan.late]),
            tuple([entry for plan in plans for entry in plan.shed]),
            min([plan.wake_at_s for plan in plans], default=math.inf),
        )

    def _ordered(self, lane: Lane[W]) -> list[W]:
        """Who waits, in the order of service."""
        return sorted(lane, key=_arrived_s)

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        raise NotImplementedError

    def _head(self, waiting: Sequence[W], most: int | None = None) -> tuple[W, ...]:
        """The first of *waiting* that fit into a batch of *most* items; the very first always does."""
        batch = list(waiting[:1])
        room = (self._max_batch if most is None else most) - sum([entry.size for entry in batch])
        for entry in waiting[1:]:
            if entry.size > room:
                break
            batch.append(entry)
            room -= entry.size
        return tuple(batch)


class _EarliestDeadlineFirst(_Baseline):
    """Those that serve in the order of deadlines, which is that of lanes."""

    def _ordered(self, lane: Lane[W]) -> list[W]:
        return list(lane)


class Eager(_Baseline):
    """Whatever waits goes."""

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        late, in_time = _late(waiting, now)
        return Plan((self._head(in_time),) if in_time else (), late)


class TritonRule(_Baseline):
    """Full or preferred sizes at once, the rest after a delay.

    Args:
        preferred: sizes that go at once.
        timeout_s: what waits longer is rejected.
    """

    def __init__(
        self, max_batch: int, delay_s: float, preferred: Sequence[int] = (), timeout_s: float = math.inf
    ) -> None:
        super().__init__(max_batch)
        self._delay_s = delay_s
        self._preferred = sorted(preferred) or [max_batch]
        self._timeout_s = timeout_s

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        rejected = tuple([entry for entry in waiting if now - entry.arrived_s > self._timeout_s])
        staying = waiting[len(rejected) :]
        if not staying:
            return Plan(shed=rejected)
        size = sum([entry.size for entry in staying])
        fitting = [preferred for preferred in self._preferred if preferred <= size]
        go_at_s = staying[0].arrived_s + self._delay_s
        is_overdue = self._delay_s > 0.0 and go_at_s <= now
        if fitting and not is_overdue:
            return Plan((self._head(staying, fitting[-1]),), shed=rejected)
        if is_overdue or self._delay_s == 0.0:
            return Plan((self._head(staying),), shed=rejected)
        return Plan(shed=rejected, wake_at_s=go_at_s)


class Aimd(_EarliestDeadlineFirst):
    """Batches up to a size that grows by two and shrinks by a tenth; `told` of every batch."""

    def __init__(self, max_batch: int, objective_s: float) -> None:
        super().__init__(max_batch)
        self._objective_s = objective_s
        self.limit = 1

    def told(self, size: int, took_s: float, now: float) -> None:
        """A batch ended."""
        if took_s >= self._objective_s:
            self.limit = max(1, math.floor(0.9 * self.limit))
        elif took_s < 0.9 * self._objective_s and size >= self.limit:
            self.limit = min(self._max_batch, self.limit + 2)

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        late, in_time = _late(waiting, now)
        return Plan((self._head(in_time, self.limit),) if in_time else (), late)


class Cork(_Baseline):
    """A fitted line, and a wait that follows the waits of late; `told` of every batch."""

    def __init__(self, max_batch: int, objective_s: float) -> None:
        super().__init__(max_batch)
        self._objective_s = objective_s
        self._outbound: deque[tuple[int, float, float]] = deque(maxlen=50)  # size, took, head's wait
        self._slope_s = min(2.0, objective_s * 2.0 / 30.0)
        self._intercept_s = min(1.0, objective_s / 30.0)
        self._wait_s = 0.0
        self._refreshed_s = -math.inf
        self._dispatched: deque[float] = deque()

    def told(self, size: int, took_s: float, now: float) -> None:
        """A batch ended."""
        self._outbound.append((size, took_s, self._dispatched.popleft()))
        if now - self._refreshed_s >= 5.0 or len(self._outbound) < 10:
            self._refreshed_s = now
            self._refresh()

    def _refresh(self) -> None:
        """Least squares, as `numpy.linalg.lstsq`, of the least norm where the sizes are all the same."""
        count = len(self._outbound)
        mean_n = sum(n for n, _, _ in self._outbound) / count
        mean_s = sum(s for _, s, _ in self._outbound) / count
        spread = sum((n - mean_n) ** 2 for n, _, _ in self._outbound)
        if spread > 0.0:
            slope_s = sum((n - mean_n) * (s - mean_s) for n, s, _ in self._outbound) / spread
            intercept_s = mean_s - slope_s * mean_n
        else:
            intercept_s = mean_s / (mean_n * mean_n + 1.0)
            slope_s = intercept_s * mean_n
        self._slope_s, self._intercept_s = max(1e-6, slope_s), max(0.0, intercept_s)
        self._wait_s = sum(wait for _, _, wait in self._outbound) / count

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        dropped: list[W] = []
        staying = list(waiting)
        while len(staying) > 1 and self._estimate_s(staying, now) >= self._objective_s:
            dropped.append(staying.pop(0))
        if now - staying[-1].arrived_s >= self._objective_s:  # nor is a last one sent that is past it
            return Plan(shed=tuple(waiting))
        count = sum([entry.size for entry in staying])
        newest_s = now - staying[-1].arrived_s
        waits = count * (newest_s + _TICK_S + self._slope_s) <= 0.95 * self._wait_s
        if count < self._max_batch and waits:
            return Plan(shed=tuple(dropped), wake_at_s=now + _TICK_S)
        batch = self._head(staying)
        self._dispatched.append(now - batch[0].arrived_s)
        return Plan((batch,), shed=tuple(dropped))

    def _estimate_s(self, waiting: Sequence[W], now: float) -> float:
        return now - waiting[0].arrived_s + self._slope_s * len(waiting) + self._intercept_s


class EarlyDrop(_EarliestDeadlineFirst):
    """Batches of a target size, heads dropped that would keep them from it."""

    def __init__(self, max_batch: int, objective_s: float) -> None:
        super().__init__(max_batch)
        self._objective_s = objective_s

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        target = max(1, lane.latency.largest_within(self._objective_s / 2.0, self._max_batch, now))
        start = 0
        while start < len(waiting):
            size = min(target, len(waiting) - start)
            if now + lane.latency.typical_s(size, now) <= waiting[start].deadline:
                break
            start += 1
        batch = self._head(waiting[start:], target)
        return Plan((batch,) if batch else (), shed=tuple(waiting[:start]))


class Deferred(_EarliestDeadlineFirst):
    """A window slides until its target size is in time; it goes at the last moment that leaves room for one more."""

    def __init__(self, max_batch: int, objective_s: float) -> None:
        super().__init__(max_batch)
        self._objective_s = objective_s

    def _one(self, lane: Lane[W], waiting: Sequence[W], now: float) -> Plan[W]:
        start, stop = self._window(lane, waiting, now)
        batch, dropped = tuple(waiting[start:stop]), tuple(waiting[:start])
        if not batch:
            return Plan(shed=dropped)
        size = sum([entry.size for entry in batch])
        go_at_s = batch[0].deadline - lane.latency.cautious_s(size + 1, now)
        if go_at_s <= now or stop < len(waiting) or size >= self._max_batch:
            return Plan((batch,), shed=dropped)
        return Plan(shed=dropped, wake_at_s=go_at_s)

    def _window(self, lane: Lane[W], waiting: Sequence[W], now: float) -> tuple[int, int]:
        """From whom to whom the batch is; those before it are dropped."""
        target = self._target(lane, now)
        left = sum([entry.size for entry in waiting])
        start = stop = size = 0
        while stop < len(waiting) and size + waiting[stop].size <= self._max_batch:
            wanted = max(size + waiting[stop].size, min(target, left))
            is_in_time = now + lane.latency.cautious_s(wanted, now) <= waiting[start].deadline
            if size >= target and not is_in_time:
                break
            size += waiting[stop].size
            stop += 1
            if not is_in_time:
                size -= waiting[start].size
                left -= waiting[start].size
                start += 1
        return start, stop

    def _target(self, lane: Lane[W], now: float) -> int:
        """The largest size whose latency, and the time between two batches on enough slots, fit into the objective."""
        rate_per_s = lane.arrivals.per_s(now)
        if rate_per_s <= 0.0:
            return max(1, lane.latency.largest_within(self._objective_s / 2.0, self._max_batch, now))
        for size in range(2, self._max_batch + 1):
            takes_s = lane.latency.cautious_s(size, now)
            if takes_s + size / rate_per_s > self._objective_s:
                return size - 1
        return self._max_batch


def _arrived_s(entry: W) -> float:
    return entry.arrived_s


def _late(waiting: Sequence[W], now: float) -> tuple[tuple[W, ...], list[W]]:
    """Those past their deadline, and the others."""
    late = tuple([entry for entry in waiting if entry.deadline <= now])
    return late, [entry for entry in waiting if entry.deadline > now]
