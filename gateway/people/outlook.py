"""How long people will take for what comes now: a snapshot of their queues, read without I/O.

    store.workloads ──every few seconds──► paces, and what waits ──► predicted_s, overload: for every deferral

Between two looks, what this process hands over is added to what waits; what others do is seen at the next look.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.moments import in_words
from gateway.people.options import QueueOptions
from gateway.people.wait import Pace, pace_of
from gateway.store.contract import Place, Store, Workload
from router.contract import USUAL_PRIORITY, HumanPolicy, WhenOverloaded

_RETRY_S = (1.0, 3600.0)
"""Soonest and latest that a caller is told to try again."""

_UNLISTED = QueueOptions()
"""A queue that the configuration names without an entry of its own."""


@dataclass(frozen=True, slots=True)
class Overload:
    """People would take longer than a route's policy lets them.

    Attributes:
        policy: what to do about it.
        detail: how long, and how long they may, in words.
        retry_after_s: when fewer should wait.
    """

    policy: WhenOverloaded
    queue: str
    detail: str
    retry_after_s: float


@dataclass(slots=True)
class _Line:
    """What waits in a queue for one tenant's people, and their pace.

    Attributes:
        added: handed over here since, by priority.
    """

    load: Workload
    pace: Pace | None
    added: Counter[int] = field(default_factory=Counter)

    def ahead(self, priority: int) -> int:
        """How many reviews go before a new one of *priority*."""
        both = (*self.load.undecided.items(), *self.added.items())
        return sum(count for level, count in both if level <= priority)


class Outlook:
    """The queues of people, as they were a moment ago. Single event loop."""

    def __init__(self, queues: Mapping[str, QueueOptions], wall_clock: Callable[[], float] = time.time) -> None:
        """Args:
        queues: by name.
        wall_clock: Unix time, in seconds.
        """
        self._queues = queues
        self._wall_clock = wall_clock
        self._lines: Mapping[tuple[str, str], _Line] = {}

    async def refresh(self, store: Store) -> None:
        """See the queues as they are now.

        Raises:
            Unavailable: *store* cannot be read; they stay as they were.
        """
        before = {name: Counter(line.added) for name, line in self._lines.items()}
        loads = await store.workloads()
        paces = await asyncio.to_thread(self._paces, loads)
        lines = {(load.tenant, load.queue): _Line(load, pace) for load, pace in zip(loads, paces, strict=True)}
        for name, line in lines.items():
            if name in self._lines:  # what was handed over meanwhile may not have been seen
                line.added = self._lines[name].added - before.get(name, Counter())
        self._lines = lines

    def _paces(self, loads: Sequence[Workload]) -> list[Pace | None]:
        now_s = self._wall_clock()
        return [pace_of(load, self._options(load.queue).hours, now_s) for load in loads]

    def handed_over(self, tenant: str, human: HumanPolicy, items: int) -> None:
        """Count *items* that were handed over just now."""
        line = self._lines.get((tenant, human.queue))
        if line is not None:
            line.added[human.priority] += items

    def predicted_s(self, tenant: str, human: HumanPolicy, items: int = 1) -> float | None:
        """Seconds until people have decided *items* that are handed over now, on average; None where nobody knows."""
        line = self._lines.get((tenant, human.queue))
        if line is None:
            return None
        return self._until_s(line, line.ahead(human.priority) + items - 1, human.priority)

    def predicted_at_s(self, tenant: str, place: Place) -> float | None:
        """Seconds until people have decided what stands at *place*, on average; None where nobody knows."""
        line = self._lines.get((tenant, place.queue))
        return None if line is None else self._until_s(line, place.ahead, place.priority)

    def _until_s(self, line: _Line, ahead: int, priority: int) -> float | None:
        if line.pace is None:
            return None
        claimed = min(line.load.claimed, ahead)
        worked_s = line.pace.expected_s(ahead - claimed, claimed, priority)
        now_s = self._wall_clock()
        return float(math.ceil(self._options(line.load.queue).hours.moment_after(now_s, worked_s) - now_s))

    def overload(self, tenant: str, human: HumanPolicy, items: int = 1) -> Overload | None:
        """Why *items* that are handed over now would wait for too long, by *human*; None where they would not.

        Where nothing was ever decided there is no pace to go by; then it counts how long the oldest has waited.
        """
        if human.when_overloaded is WhenOverloaded.WAIT:
            return None
        wait_s, longest_s = self.predicted_s(tenant, human, items), human.longest_s
        if wait_s is not None:
            if wait_s <= longest_s:
                return None
            detail = f"people of queue {human.queue!r} need about {in_words(wait_s)}"
        else:
            line = self._lines.get((tenant, human.queue))
            since_s = None if line is None else line.load.unclaimed_since_s
            waited_s = 0.0 if since_s is None else self._wall_clock() - since_s
            if waited_s <= longest_s:
                return None
            wait_s, detail = waited_s, f"nobody has decided anything in queue {human.queue!r} for {in_words(waited_s)}"
        retry_after_s = min(max(wait_s - longest_s, _RETRY_S[0]), _RETRY_S[1])
        detail += f", and this route allows {in_words(longest_s)}"
        return Overload(human.when_overloaded, human.queue, detail, retry_after_s)

    def waits(self, tenant: str) -> dict[str, float]:
        """What a new review of *tenant*, of the usual priority, would wait, by queue, in seconds."""
        found = {
            queue: self._until_s(line, line.ahead(USUAL_PRIORITY), USUAL_PRIORITY)
            for (of_tenant, queue), line in self._lines.items()
            if of_tenant == tenant
        }
        return {queue: wait_s for queue, wait_s in found.items() if wait_s is not None}

    def by_queue(self) -> dict[str, float]:
        """What a new review of the usual priority would wait, of the tenant where that is longest, in seconds."""
        found: dict[str, float] = {}
        for (_, queue), line in self._lines.items():
            wait_s = self._until_s(line, line.ahead(USUAL_PRIORITY), USUAL_PRIORITY)
            if wait_s is not None:
                found[queue] = max(wait_s, found.get(queue, 0.0))
        return found

    def _options(self, queue: str) -> QueueOptions:
        return self._queues.get(queue, _UNLISTED)
