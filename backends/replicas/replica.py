"""One server of a model as its pool sees it: the backend while it is open, its health, and what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias, runtime_checkable

from backends.contract import Backend, Deadline, State
from backends.replicas.balance import Candidate, load
from backends.replicas.health import Health, Service
from backends.replicas.latency import PeakEwma, RecentAnswers
from backends.replicas.options import ReplicaOptions
from backends.replicas.report import ReplicaState, ReplicaStatistics

COMPARED: Final = 20
"""How many of its latest answers a replica is compared by."""

Opener: TypeAlias = Callable[[], Awaitable[Backend]]
"""Opens one replica, ready to serve; called again whenever it has to be opened anew."""


@runtime_checkable
class Probed(Protocol):
    """A backend that can be asked how it is."""

    async def probe(self, deadline: Deadline) -> None:
        """Return when it is well.

        Raises:
            Exception: it is not, or did not say so by *deadline*.
        """
        ...


class Replica:
    """One server; `Pool` decides about it, `Keeper` opens, probes and closes it.

    Attributes:
        address: the key of its opener.
        opener: opens it.
        backend: while it is open.
        opening: the latest opening, under way or over.
        leaving: a backend that is to be closed, until it is.
        refusal: why it is not open, for operators; None while it is.
        health: whether it is in service.
        latency: for choosing.
        answers: for judging what an answer takes.
        latest: the last few of them, for judging whether it is slow beside others, or they beside it.
        in_flight: attempts that have not ended.
        answered: attempts that it answered.
        failures: attempts and probes that failed.
        attention: set to have its keeper look at once.
    """

    def __init__(self, address: str, opener: Opener, options: ReplicaOptions) -> None:
        self.address = address
        self.opener = opener
        self.backend: Backend | None = None
        self.opening: asyncio.Task[Backend] | None = None
        self.leaving: Backend | None = None
        self.refusal: str | None = "it is being opened"
        self.health = Health(options)
        self.latency = PeakEwma()
        self.answers = RecentAnswers()
        self.latest = RecentAnswers(COMPARED)
        self.in_flight = 0
        self.answered = 0
        self.failures = 0
        self.attention = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Replica {self.address!r}: {self.backend!r}, {self.in_flight} in flight>"

    def is_open(self) -> bool:
        """Whether its backend can take calls, healthy or not."""
        return self.backend is not None and self.backend.state is State.READY

    def is_usable(self, now: float) -> bool:
        """Whether calls may go there at *now*, or after the trial that is under way."""
        return self.is_open() and self.health.service(now) is not Service.EJECTED

    def candidate(self, now: float, *, was_tried: bool) -> Candidate[Replica] | None:
        """What `balance` needs to know of it; None where it can take no call now."""
        if not self.is_open():
            return None
        cost_s = load(self.latency.at(now), self.in_flight)
        match self.health.service(now):
            case Service.HEALTHY | Service.RAMPING:
                return Candidate(self, cost_s, self.health.share(now), was_tried=was_tried)
            case Service.HALF_OPEN if self.health.takes_calls(now):
                return Candidate(self, cost_s, is_on_trial=True, was_tried=was_tried)
        return None

    def statistics(self, now: float) -> ReplicaStatistics:
        """How it is at *now*."""
        state, reason = self._state(now)
        return ReplicaStatistics(
            self.address,
            state,
            reason,
            self.in_flight,
            self.latency.at(now),
            self.answered,
            self.failures,
            self.health.ejections,
        )

    def _state(self, now: float) -> tuple[ReplicaState, str | None]:
        if self.backend is None:
            return ReplicaState.JOINING, self.refusal
        if not self.is_open():
            return ReplicaState.JOINING, f"it is {self.backend.state}"
        service = self.health.service(now)
        reason = self.health.reason if service in (Service.EJECTED, Service.HALF_OPEN) else None
        return ReplicaState(service.value), None if reason is None else reason.value
