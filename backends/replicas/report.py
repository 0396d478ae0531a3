"""What a pool of replicas tells of itself: a record for each event, pushed; a snapshot, pulled.

No metrics library is known here; whoever watches implements `ReplicaObserver`. Addresses are for operators: no record
goes to a caller as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from backends.replicas.health import Reason

log = logging.getLogger("pointsman.replicas")


class ReplicaState(StrEnum):
    """Where a replica is, as statistics tell it."""

    JOINING = "joining"  # not open: not yet, or not any more, or not allowed in (`ReplicaStatistics.reason`)
    HEALTHY = "healthy"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"  # one call at a time shows whether it is well
    RAMPING = "ramping"  # in service again, with less than its full share
    UNLOADED = "unloaded"  # the model is in nobody's memory: nothing is asked of any replica


@dataclass(frozen=True, slots=True)
class RetryMade:
    """A call that failed on one replica is tried again.

    Attributes:
        model: the model's name.
        failed: address of the replica that it failed on.
        address: where it is sent now; the same where there is no other.
        attempt: which attempt this is, from 2.
        backoff_s: seconds that were waited before it.
    """

    model: str
    failed: str
    address: str
    attempt: int
    backoff_s: float


@dataclass(frozen=True, slots=True)
class HedgeMade:
    """A call that takes long is sent to a second replica as well.

    Attributes:
        model: the model's name.
        slow: address of the replica that has not answered yet.
        address: where the copy goes.
        after_s: seconds that the first had.
    """

    model: str
    slow: str
    address: str
    after_s: float


@dataclass(frozen=True, slots=True)
class ReplicaEjected:
    """A replica gets no more calls for a while.

    Attributes:
        model: the model's name.
        address: of the replica.
        reason: why.
        for_s: how long, unless a probe that has failed passes again before.
    """

    model: str
    address: str
    reason: Reason
    for_s: float


@dataclass(frozen=True, slots=True)
class ReplicaReadmitted:
    """A replica that was ejected is in service again."""

    model: str
    address: str


class ReplicaObserver(Protocol):
    """Is told of what happens; called on the event loop, so it must be quick, and must not raise."""

    def on_retry(self, record: RetryMade) -> None:
        """A call is tried again."""
        ...

    def on_hedge(self, record: HedgeMade) -> None:
        """A copy of a call was sent."""
        ...

    def on_ejected(self, record: ReplicaEjected) -> None:
        """A replica was ejected."""
        ...

    def on_readmitted(self, record: ReplicaReadmitted) -> None:
        """A replica is in service again."""
        ...


class Logged:
    """The observer where nobody else watches: what an operator wants to read of it goes to the log."""

    def on_retry(self, record: RetryMade) -> None:
        """Statistics count it."""

    def on_hedge(self, record: HedgeMade) -> None:
        """Statistics count it."""

    def on_ejected(self, record: ReplicaEjected) -> None:
        """A server is left out."""
        log.warning(
            "server %s of model %r is left out for %g s: %s", record.address, record.model, record.for_s, record.reason
        )

    def on_readmitted(self, record: ReplicaReadmitted) -> None:
        """A server is back."""
        log.info("server %s of model %r is in service again", record.address, record.model)


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """One replica at one moment; the numbers only grow, but for *in_flight* and *latency_s*.

    Attributes:
        address: the key of its opener.
        state: where it is.
        reason: why it is not in service; None where it is.
        in_flight: attempts that wait for its answer.
        latency_s: peak-sensitive mean of what an answer takes; None where nothing recent is known.
        answered: attempts that it answered.
        failures: attempts and probes that failed.
        ejections: how often it was ejected.
    """

    address: str
    state: ReplicaState
    reason: str | None
    in_flight: int
    latency_s: float | None
    answered: int
    failures: int
    ejections: int


@dataclass(frozen=True, slots=True)
class ReplicasStatistics:
    """All replicas of a model at one moment.

    Attributes:
        model: the model's name.
        replicas: in the order of their openers.
        in_flight: calls (not attempts) that wait for an answer.
        retries: attempts after a call's first.
        retries_refused: attempts that the retry budget did not allow.
        hedges: copies of calls that were sent.
    """

    model: str
    replicas: tuple[ReplicaStatistics, ...]
    in_flight: int
    retries: int
    retries_refused: int
    hedges: int

    def after(self, past: ReplicasStatistics) -> ReplicasStatistics:
        """As it is now, with what was counted before the model was last opened; see `backends.told.Statistics`."""
        before = {replica.address: replica for replica in past.replicas}
        return replace(
            self,
            replicas=tuple(
                _added(replica, before[replica.address]) if replica.address in before else replica
                for replica in self.replicas
            ),
            retries=self.retries + past.retries,
            retries_refused=self.retries_refused + past.retries_refused,
            hedges=self.hedges + past.hedges,
        )

    def at_rest(self) -> ReplicasStatistics:
        """What stays of it when the model is unloaded."""
        rest = (
            replace(replica, state=ReplicaState.UNLOADED, reason=None, in_flight=0, latency_s=None)
            for replica in self.replicas
        )
        return replace(self, replicas=tuple(rest), in_flight=0)


def _added(now: ReplicaStatistics, past: ReplicaStatistics) -> ReplicaStatistics:
    return replace(
        now,
        answered=now.answered + past.answered,
        failures=now.failures + past.failures,
        ejections=now.ejections + past.ejections,
    )
