"""A pool over days of traffic, in virtual time, and the policies that it is compared with.

`Pool` asks the objects of a running pool: `backends.warm.entry.Entry`, with its histogram of idle times, and
`backends.warm.policy.plan`, at the same moments (a model that is not warm is asked for, a load or unload has ended, an
idle time comes to its end). What it has of its own is the clock, and what happens in between.

Peers:
- `keep_alive`: every model stays for a fixed time after its last call, whatever the memory (AWS Lambda, Azure
  Functions before the paper, OpenFaaS: 10 minutes is usual);
- `least_recently_used`: a fixed memory, the model that was called longest ago makes room.

A call is cold if its model is not warm when it comes, calls during the load included. Model-seconds count from the
beginning of a load to the end of an unload.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from backends.contract import Backend, Limits, Signature
from backends.warm.entry import Entry, Kind, Ladder, WarmOptions
from backends.warm.histogram import KeepAlive
from backends.warm.policy import Phase, plan
from backends.warm.report import Step
from loadtests.cold_starts.trace import Traffic

CALL_S = 0.2
"""What answering a call takes."""

UNLOAD_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy came to.

    Attributes:
        calls: in all.
        cold: of these, those whose model was not warm.
        model_s: seconds that models were resident, summed.
        byte_s: the same, by their memory.
        waited_s: seconds that cold calls waited for loads, summed.
        loads: models loaded, in time or late.
    """

    calls: int
    cold: int
    model_s: float
    byte_s: float
    waited_s: float
    loads: int


class _Event(IntEnum):
    """What happens, in the order in which it does at one instant."""

    LOADED = 0
    UNLOADED = 1
    ENDED = 2
    CALL = 3
    TURN = 4


async def _never() -> Backend:
    raise AssertionError("the simulation opens no model. This is a bug.")


class Pool:
    """One run of the pool's policy over *models*, under *budget_bytes*."""

    def __init__(self, models: Sequence[Traffic], budget_bytes: float, rule: KeepAlive | None = None) -> None:
        self._models = models
        self._budget_bytes = budget_bytes
        self._events: list[tuple[float, _Event, int]] = []
        self._turn_at_s = math.inf
        self._is_short = False
        self._since_s = [0.0] * len(models)
        self._waiting: list[list[float]] = [[] for _ in models]
        self._calls = self._cold = self._loads = 0
        self._model_s = self._byte_s = self._waited_s = 0.0
        options = (WarmOptions(0, one.nbytes, rule or KeepAlive()) for one in models)
        self._entries = [Entry(str(i), Ladder(_never), option, 0, 0.0) for i, option in enumerate(options)]
        self._places = {id(entry): i for i, entry in enumerate(self._entries)}
        for entry, one in zip(self._entries, models, strict=True):
            entry.kind = Kind(Signature((), ()), "1", Limits(1))
            entry.learn(Step.OPEN, one.load_s)  # as its first opening told
            entry.usage.wanted(-math.inf)

    def run(self) -> Outcome:
        """All calls, one after the other."""
        for now, i in _calls(self._models):
            self._until(now)
            self._call(now, i)
        end_s = max((one.arrivals_s[-1] for one in self._models if one.arrivals_s), default=0.0)
        for i, entry in enumerate(self._entries):
            if entry.phase is not Phase.COLD:
                self._count(i, end_s)
        return Outcome(self._calls, self._cold, self._model_s, self._byte_s, self._waited_s, self._loads)

    def _until(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            at_s, event, i = heapq.heappop(self._events)
            match event:
                case _Event.LOADED:
                    self._loaded(at_s, i)
                case _Event.UNLOADED:
                    self._count(i, at_s)
                    self._entries[i].phase = Phase.COLD
                    self._turn(at_s)
                case _Event.ENDED:
                    self._ended(at_s, i)
                case _ if at_s >= self._turn_at_s:
                    self._turn(at_s)

    def _call(self, now: float, i: int) -> None:
        entry = self._entries[i]
        self._calls += 1
        entry.began(now)
        if entry.phase is Phase.WARM:
            heapq.heappush(self._events, (now + CALL_S, _Event.ENDED, i))
            return
        self._cold += 1
        self._waiting[i].append(now)
        if entry.asked_s is None:
            entry.asked_s = now
            self._turn(now)

    def _loaded(self, now: float, i: int) -> None:
        entry = self._entries[i]
        entry.phase, entry.asked_s = Phase.WARM, None
        for since_s in self._waiting[i]:
            self._waited_s += now - since_s
            heapq.heappush(self._events, (now + CALL_S, _Event.ENDED, i))
        self._waiting[i].clear()
        self._turn(now)

    def _ended(self, now: float, i: int) -> None:
        entry = self._entries[i]
        entry.usage.ended(now)
        if not entry.usage.calls and (
            self._is_short or not entry.is_due(now) or entry.next_change_s(now) < self._turn_at_s
        ):
            self._turn(now)

    def _turn(self, now: float) -> None:
        decided = plan([entry.seen(now, self._budget_bytes) for entry in self._entries], self._budget_bytes)
        for entry in decided.unload:
            entry.phase = Phase.UNLOADING
            heapq.heappush(self._events, (now + UNLOAD_S, _Event.UNLOADED, self._places[id(entry)]))
        for entry in decided.load:
            i = self._places[id(entry)]
            entry.begin_load(now)
            self._since_s[i] = now
            self._loads += 1
            heapq.heappush(self._events, (now + self._models[i].load_s, _Event.LOADED, i))
        self._is_short = any(entry.phase is Phase.COLD and entry.asked_s is not None for entry in self._entries)
        self._turn_at_s = max(min(entry.next_change_s(now) for entry in self._entries), now + 0.001)
        if self._turn_at_s < math.inf:
            heapq.heappush(self._events, (self._turn_at_s, _Event.TURN, 0))

    def _count(self, i: int, until_s: float) -> None:
        self._model_s += until_s - self._since_s[i]
        self._byte_s += (until_s - self._since_s[i]) * self._models[i].nbytes


def _calls(models: Sequence[Traffic]) -> Sequence[tuple[float, int]]:
    """When which model is called."""
    return sorted((at_s, i) for i, one in enumerate(models) for at_s in one.arrivals_s)


def keep_alive(models: Sequence[Traffic], keep_s: float) -> Outcome:
    """Every model stays for *keep_s* seconds after its last call."""
    end_s = max((one.arrivals_s[-1] for one in models if one.arrivals_s), default=0.0)
    stays = [(one, list(_stays(one, keep_s))) for one in models]
    return Outcome(
        calls=sum(len(one.arrivals_s) for one in models),
        cold=sum(cold for _, found in stays for *_, cold, _ in found),
        model_s=sum(min(until_s, end_s) - since_s for _, found in stays for since_s, until_s, *_ in found),
        byte_s=sum((min(until, end_s) - since) * one.nbytes for one, found in stays for since, until, *_ in found),
        waited_s=sum(waited_s for _, found in stays for *_, waited_s in found),
        loads=sum(len(found) for _, found in stays),
    )


def _stays(one: Traffic, keep_s: float) -> Iterator[tuple[float, float, int, float]]:
    """Its times in memory: since, until, cold calls, and seconds that these waited."""
    since_s, until_s, cold, waited_s = 0.0, -math.inf, 0, 0.0
    for at_s in one.arrivals_s:
        if at_s >= until_s:
            if until_s > -math.inf:
                yield since_s, until_s, cold, waited_s
            since_s, cold, waited_s = at_s, 0, 0.0
        left_s = since_s + one.load_s - at_s
        if left_s > 0.0:
            cold, waited_s = cold + 1, waited_s + left_s
        until_s = max(at_s, since_s + one.load_s) + CALL_S + keep_s
    if until_s > -math.inf:
        yield since_s, until_s, cold, waited_s


def least_recently_used(models: Sequence[Traffic], budget_bytes: float) -> Outcome:
    """The models that were called last, as many as *budget_bytes* hold."""
    resident: dict[int, float] = {}  # when each was loaded, the least recently called first
    taken, cold, loads, model_s, byte_s, waited_s = 0, 0, 0, 0.0, 0.0, 0.0
    calls = _calls(models)
    for now, i in calls:
        since_s = resident.pop(i, None)
        if since_s is None:
            since_s, loads = now, loads + 1
            taken += models[i].nbytes
            while taken > budget_bytes and resident:
                victim = next(iter(resident))
                stayed_s = now - resident.pop(victim)
                taken -= models[victim].nbytes
                model_s += stayed_s
                byte_s += stayed_s * models[victim].nbytes
        resident[i] = since_s
        left_s = since_s + models[i].load_s - now
        if left_s > 0.0:
            cold, waited_s = cold + 1, waited_s + left_s
    end_s = calls[-1][0] if calls else 0.0
    model_s += sum(end_s - since_s for since_s in resident.values())
    byte_s += sum((end_s - since_s) * models[i].nbytes for i, since_s in resident.items())
    return Outcome(len(calls), cold, model_s, byte_s, waited_s, loads)
