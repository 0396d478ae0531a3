"""When a batch goes, and who is in it: pure decisions over what waits.

A policy sees the lanes (what may share a batch shares a lane, each with its latency curve and its arrival rate), the
free slots and the time, and answers with a `Plan`. It keeps no clock and does nothing: the batcher, and the simulator
as well, call `plan` whenever something changed (an arrival, a free slot, `wake_at_s` reached) and obey.

`ByDeadline` is the policy. For each lane, with a slot free:

1. **Everybody makes it**: batches cut in the order of deadlines, each as large as its earliest deadline allows, are all
   in time. The first of them is the batch.
2. **Not everybody does**: the batch is the largest there can be. Whoever is so late that they would keep it small is
   passed over and refused at once, since nobody after this batch could answer them either. Serving the latest first,
   as "largest batch that meets the earliest deadline" says by itself, answers one late caller a batch and loses all
   the others; the sizes then never recover (the collapse of eager dispatch, too).
3. Who cannot even be answered alone is refused.

No batch is larger than pays: beyond the size that achieves 98 % of the throughput of `max_batch` a batch only blocks
the slot for whoever comes next with little time. Where latency is nearly proportional to size, as on CPUs, that is a
few items, and with mixed deadlines it makes up to a tenth of difference; on an accelerator it is most of `max_batch`.
Where that size rests on smaller batches alone, or on batches of one size, one of twice the largest so far is tried.

**Waiting for company** pays only where several slots compete for the same arrivals: eager dispatch would hand each an
item of its own. A batch that is not full then waits while arrivals are faster than slots running such batches could
sustain, at most until the last moment that its earliest deadline leaves to one more item (Symphony's window), or
`max_delay_s`. Nor is anybody passed over there for a batch larger than what can come in the time that there is. With
one slot the next batch forms behind the one that runs, and an idle slot was never worth it in any trace that was tried
(`loadtests/results/goodput.json`). What goes as calls of its own, whoever goes with it, waits for nobody: a server that
merges such calls does so in its own queue.

**Who goes first** where not all do: the higher level, then the tenant whose turn it is (`batching.fairness`), then the
earlier deadline. Nobody starves behind higher levels: an entry that has waited half the time to its deadline (without
one, `PATIENCE_S`) counts as one of the highest. Levels may share a batch, so that priorities cost no occupancy.

Of several lanes that are ready the one with the most urgent entry goes first.

Sources: Clockwork (OSDI 2020) for refusing what cannot make it, Nexus (SOSP 2019) for passing over late heads ("early
drop"), Symphony (2023) for deferral. Rejected: planning by a rollout over expected arrivals (the same goodput within
half a percent, at a hundred times the cost); filling a batch with a later, smaller entry where the next in line does
not fit (a stream of single items would starve every large one); a lane for each level (batches that are never full).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Final, Generic, Protocol, TypeVar

from backends.contract import Deadline, record
from batching.latency import Arrivals, Latency

PATIENCE_S: Final = 1.0
"""What an entry without a deadline waits until it counts as one of the highest level."""

_HIGHEST: Final = 1
_WORTHWHILE: Final = 0.98  # of the most items a second that batches of any size achieve
_FEWEST: Final = 2  # a model that is never given more than one would never show that more pay
_HARMLESS_S: Final = 0.005  # a batch that takes no longer blocks nobody
_UTILISATION: Final = 0.7  # a batch is large enough where slots that run such ones are busy for this part of the time


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
        """Its priority, 1 the highest; the same for all where there are none."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def turn(self) -> float:
        """When it is its tenant's turn, in virtual time."""
        ...


W = TypeVar("W", bound=Waiting)
W_co = TypeVar("W_co", bound=Waiting, covariant=True)


class Lane(Protocol[W_co]):
    """Entries that may share a batch, the earliest deadline first."""

    @property
    def latency(self) -> Latency:
        """What batches of it take."""
        ...

    @property
    def arrivals(self) -> Arrivals:
        """How fast items come to it."""
        ...

    @property
    def items(self) -> int:
        """Items that wait in it."""
        ...

    @property
    def merges(self) -> bool:
        """Whether a batch of it is one call of the backend; if not, each of its entries is."""
        ...

    def __iter__(self) -> Iterator[W_co]: ...

    def __len__(self) -> int: ...


@record
class Plan(Generic[W]):
    """What to do now.

    Attributes:
        batches: to be sent at once, the most urgent first; each from one lane, at most one for every free slot.
        late: entries whose deadline has passed; to be refused, never sent.
        shed: entries that are refused before their deadline, since it cannot be met.
        wake_at_s: when to ask again if nothing happens before; matters only where nothing else is in the plan.
    """

    batches: tuple[tuple[W, ...], ...] = ()
    late: tuple[W, ...] = ()
    shed: tuple[W, ...] = ()
    wake_at_s: float = math.inf


class Policy(Protocol):
    """Decides when batches go."""

    def plan(self, lanes: Iterable[Lane[W]], free_slots: int, now: float) -> Plan[W]:
        """What to do at *now*.

        Where something waits, a slot is free and neither `batches` nor `late` nor `shed` is filled, `wake_at_s` must
        be a finite time after *now*: a plan that waits for nothing would never end. No lane is empty.
        """
        ...


@record
class _Pick(Generic[W]):
    """What one lane would send, from when on, and whom it would refuse."""

    batch: tuple[W, ...]
    late: tuple[W, ...]
    shed: tuple[W, ...]
    go_at_s: float

    def urgency(self, now: float) -> tuple[int, float]:
        """Less is more urgent."""
        return min([(_level(entry, now), entry.deadline) for entry in self.batch])


class ByDeadline:
    """The largest batch that is in time; see the module.

    Args:
        max_batch: most items in a batch.
        slots: batches that may run at once.
        max_delay_s: longest that an entry is kept waiting for company while a slot is free; None: as long as it pays.
    """

    def __init__(self, max_batch: int, slots: int = 1, max_delay_s: float | None = None) -> None:
        self._max_batch = max_batch
        self._slots = slots
        self._max_delay_s = math.inf if max_delay_s is None else max_delay_s
        self._waits = slots > 1 and self._max_delay_s > 0.0

    def plan(self, lanes: Iterable[Lane[W]], free_slots: int, now: float) -> Plan[W]:
        """What to do at *now*; see the module."""
        picks = [self._pick(lane, now) for lane in lanes]
        ready = [pick for pick in picks if pick.batch and pick.go_at_s <= now]
        if len(ready) > 1:
            ready.sort(key=lambda pick: pick.urgency(now))
        return Plan(
            tuple([pick.batch for pick in ready[:free_slots]]),
            tuple([entry for pick in picks for entry in pick.late]),
            tuple([entry for pick in picks for entry in pick.shed]),
            min([pick.go_at_s for pick in picks if pick.batch], default=math.inf),
        )

    def _pick(self, lane: Lane[W], now: float) -> _Pick[W]:
        """The best batch of *lane*."""
        entries = list(lane)
        left_s = entries[0].deadline - now
        most = self._most(lane, now)
        rounds = -(-lane.items // most)
        if left_s > 0.0 and left_s >= rounds * lane.latency.cautious_s(min(lane.items, most), now):
            batch = tuple(entries) if rounds == 1 else _first(entries, most, now)  # in any order all make it
            go_at_s = self._go_at_s(lane, batch, now) if self._waits and rounds == 1 else now
            return _Pick(batch, (), (), go_at_s)
        late = bisect_right(entries, now, key=_deadline)
        shed, waiting = self._hopeless(lane, entries[late:], now)
        if not waiting:
            return _Pick((), tuple(entries[:late]), tuple(shed), now)
        batch = self._in_order(lane, waiting, most, now)
        if not batch:
            passed_over, batch = self._largest(lane, waiting, most, now)
            shed += passed_over
        is_whole = len(batch) == len(entries)
        go_at_s = self._go_at_s(lane, batch, now) if self._waits and is_whole else now
        return _Pick(batch, tuple(entries[:late]), tuple(shed), go_at_s)

    def _hopeless(self, lane: Lane[W], entries: list[W], now: float) -> tuple[list[W], list[W]]:
        """Who cannot be answered even alone, and who can."""
        certain_s = now + lane.latency.typical_s(self._max_batch, now)
        doubtful = bisect_left(entries, certain_s, key=_deadline)  # whoever has more time can at any size
        shed: list[W] = []
        good: list[W] = []
        for entry in entries[:doubtful]:
            is_hopeless = now + lane.latency.typical_s(entry.size, now) > entry.deadline
            (shed if is_hopeless else good).append(entry)
        return shed, good + entries[doubtful:]

    def _most(self, lane: Lane[W], now: float) -> int:
        """Items beyond which a batch of *lane* gains too little to block the slot for; one entry may have more."""
        line = lane.latency.line(now)
        if line is None:
            return self._max_batch
        pays_per_s = _WORTHWHILE * self._max_batch / line.at(self._max_batch)
        knee = pays_per_s * line.intercept_s / (1.0 - pays_per_s * line.slope_s)
        is_guess = not lane.latency.has_shape
        if is_guess or lane.latency.largest < min(self._max_batch, 2 * max(1.0, knee)):
            knee = max(knee, 2 * lane.latency.largest)
        harmless = (_HARMLESS_S - line.intercept_s) / line.slope_s if line.slope_s > 0.0 else math.inf
        return min(self._max_batch, math.ceil(max(_FEWEST, knee, harmless)) if harmless < math.inf else self._max_batch)

    def _room(self, lane: Lane[W], leader: W, left_s: float, most: int, now: float) -> int:
        """How many items may be in a batch with *leader*, which has *left_s* seconds; 0 where its own are too many."""
        room = lane.latency.largest_within(left_s, self._max_batch, now)
        return max(min(room, most), leader.size) if room >= leader.size else 0

    def _in_order(self, lane: Lane[W], waiting: Sequence[W], most: int, now: float) -> tuple[W, ...]:
        """The first of batches that all are in time, on all slots, by turn or else by deadline; else nobody.

        Nor where levels have a say.
        """
        if len({entry.level for entry in waiting}) > 1:
            return ()
        if len({entry.tenant for entry in waiting}) > 1 and (batch := self._by_turn(lane, waiting, most, now)):
            return batch
        return self._chain(lane, waiting, now, most, now)

    def _by_turn(self, lane: Lane[W], waiting: Sequence[W], most: int, now: float) -> tuple[W, ...]:
        """The first batch by turn, if all that follow it in the order of deadlines are in time too; else nobody."""
        batch = _fill(sorted(waiting, key=_turn), most)
        takes_s = lane.latency.cautious_s(sum([entry.size for entry in batch]), now)
        if now + takes_s > min([entry.deadline for entry in batch]):
            return ()
        served = {id(entry) for entry in batch}
        others = [entry for entry in waiting if id(entry) not in served]
        return batch if not others or self._chain(lane, others, now + takes_s / self._slots, most, now) else ()

    def _chain(self, lane: Lane[W], waiting: Sequence[W], starts_s: float, most: int, now: float) -> tuple[W, ...]:
        """The first of the batches in the order of deadlines, from *starts_s* on, if all are in time; else nobody."""
        first: tuple[W, ...] = ()
        index = 0
        while index < len(waiting):
            leader = waiting[index]
            room = self._room(lane, leader, leader.deadline - starts_s, most, now)
            if not room:
                return ()
            batch = _fill(waiting, room, index)
            first = first or batch
            index += len(batch)
            starts_s += lane.latency.cautious_s(sum([entry.size for entry in batch]), now) / self._slots
        return first

    def _largest(self, lane: Lane[W], waiting: Sequence[W], most: int, now: float) -> tuple[list[W], tuple[W, ...]]:
        """Who is passed over, and the largest batch of the others, among the highest level that waits.

        Where none is safe, the earliest goes alone, and nobody is passed over: they all have a fair chance.
        """
        highest = min([_level(entry, now) for entry in waiting])
        first = [entry for entry in waiting if _level(entry, now) == highest]
        start, room = self._leader(lane, first, most, now)
        if not room:
            return [], (first[0],)
        passed_over = {id(entry) for entry in first[:start]}
        earliest = bisect_left(waiting, first[start].deadline, key=_deadline)
        company = [entry for entry in waiting[earliest:] if id(entry) not in passed_over]
        return first[:start], _first(company, room, now)

    def _leader(self, lane: Lane[W], waiting: Sequence[W], most: int, now: float) -> tuple[int, int]:
        """Whose deadline allows the largest batch, and how many items that holds (0: none); the earliest of equals.

        The later a deadline, the more room, and the fewer to fill it: the best is where the two meet.
        """
        before = [0, *accumulate([entry.size for entry in waiting])]

        def room(index: int) -> int:
            entry = waiting[index]
            return max(1, self._room(lane, entry, entry.deadline - now, most, now))

        def size(index: int) -> int:
            return min(room(index), before[-1] - before[index])

        meeting = bisect_left(range(len(waiting)), True, key=lambda index: room(index) >= before[-1] - before[index])
        best = max([index for index in (meeting - 1, meeting) if 0 <= index < len(waiting)], key=size)
        enough = size(best) if self._slots == 1 else min(size(best), self._target(lane, waiting[best], now))
        best = bisect_left(range(best), enough, key=room) if best else best
        while best < len(waiting) and room(best) < waiting[best].size:  # it would not fit into its own batch
            best += 1
        return (best, room(best)) if best < len(waiting) else (0, 0)

    def _target(self, lane: Lane[W], entry: W, now: float) -> int:
        """The size of which a batch, and the time until so many have come, fit between the arrival and the deadline."""
        line, rate_per_s = lane.latency.line(now), lane.arrivals.per_s(now)
        within_s = entry.deadline - entry.arrived_s
        if line is None or rate_per_s <= 0.0 or within_s == math.inf:
            return self._max_batch
        return max(1, math.floor((within_s - line.intercept_s) / (line.slope_s + 1.0 / rate_per_s)))

    def _go_at_s(self, lane: Lane[W], batch: Sequence[W], now: float) -> float:
        """Until when *batch*, which is all of *lane*, should wait for more."""
        line = lane.latency.line(now)
        if lane.items >= self._max_batch or line is None or not lane.merges:
            return now
        sustained_per_s = _UTILISATION * self._slots * lane.items / line.at(lane.items)
        go_at_s = min(
            lane.arrivals.below_at_s(sustained_per_s),
            min([entry.deadline for entry in batch]) - lane.latency.cautious_s(lane.items + 1, now),
            min([entry.arrived_s for entry in batch]) + self._max_delay_s,
        )
        return go_at_s if now < go_at_s < math.inf else now


def _level(entry: Waiting, now: float) -> int:
    """Its level, or the highest once it has waited long enough."""
    if entry.level <= _HIGHEST:
        return entry.level
    patience_s = (entry.deadline - entry.arrived_s) / 2 if entry.deadline < math.inf else PATIENCE_S
    return _HIGHEST if now - entry.arrived_s >= patience_s else entry.level


def _turn(entry: Waiting) -> float:
    return entry.turn


def _deadline(entry: Waiting) -> Deadline:
    return entry.deadline


def _first(entries: Sequence[W], room: int, now: float) -> tuple[W, ...]:
    """Those of *entries*, in the order of deadlines, that go first: by level, then by turn where tenants contend."""
    has_levels = len({entry.level for entry in entries}) > 1
    if len({entry.tenant for entry in entries}) > 1:
        entries = sorted(entries, key=lambda entry: (_level(entry, now) if has_levels else 0, entry.turn))
    elif has_levels:
        entries = sorted(entries, key=lambda entry: _level(entry, now))
    return _fill(entries, room)


def _fill(entries: Sequence[W], room: int, start: int = 0) -> tuple[W, ...]:
    """The one of *entries* at *start*, and as many of the next as *room* items hold with it."""
    batch = [entries[start]]
    room -= entries[start].size
    for entry in islice(entries, start + 1, None):
        if entry.size > room:
            break
        batch.append(entry)
        room -= entry.size
    return tuple(batch)
