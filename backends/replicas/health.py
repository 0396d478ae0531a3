"""Whether a replica is in service: what ejects it, and how it comes back. Pure: the time is passed in.

              failures in a row, failure rate, slowness
    HEALTHY ------------------------------------------> EJECTED  30 s x count, at most 300 s
       ^                                                 |   ^
       | ramp_s with a growing share                     v   | a trial or a probe fails
    RAMPING <------ 3 calls in a row succeed ------- HALF_OPEN  one call at a time

**Ejected** by any of
1. `eject_after` failures in a row. Calls and probes keep a row each, which only their own success ends, and their sum
   counts: a passing probe says nothing of calls that fail, nor a call answered of a server that says it is leaving.
2. Half of 20 or more calls within 10 s.
3. `eject_after` answers in a row that are slow beside the other replicas (a grey failure: probes are green, and all
   takes 20 times as long). Slow is more than `slow_factor` x the median of the others' last 20 answers *and* more than
   every one of them (of most of the others, where there are several) *and* 5 ms more than their median. Of a replica
   like the others one answer in 21 exceeds 20 of theirs, however much calls differ, and five in a row do so by chance
   once in four million. And where all become slow together, one slow answer each is enough for nobody to be ejected.
   Rejected: comparing peak-EWMAs, as one slow answer in ten then ejects; medians over a window, since a replica that is
   seen to be slow gets so few calls that its older, quick answers decide for long; the others' 95th percentile over a
   minute, which half of the pool is gone before it moves.

**Half of a pool** at most is out of service, or the rest would break under the load: who would come on top stays in,
however it fails, until another is back (and then goes at its next failure). Spared like this, it gets one call in
fifty until it answers one: a dead server that fails in no time looks idle, and would draw calls like nobody else. A
pool of one has nothing to protect: there ejection is a circuit breaker, which opens wholly.

**On the way there** each failure in a row halves a replica's share of calls, so that one that dies costs few retries.

**The end of an ejection.** Calls alone show that a replica is well, so nothing but three of them in a row readmits it.
A probe only decides when they may be tried: not while probes fail, however long the ejection has lasted; before its
end where a probe failed and now passes, so that a server that was started again need not wait. A replica whose probes
were green all along has a fault that they do not see, and one that is merely slow as well: those wait.

**Count.** Every `max_eject_s` in service forgets one ejection.

Source: the figures are the project's; Envoy's outlier detection is the model (consecutive failures, time x count, a
share of the pool); its slow start the ramp, with the same least share of 10 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from backends.replicas.options import ReplicaOptions
from backends.replicas.window import SlidingCount

FEWEST_CALLS: Final = 20
SUCCESSES: Final = 3
LEAST_SHARE: Final = 0.1
SPARED_SHARE: Final = 0.02
_FAILING_SHARE: Final = 0.5
_HARMLESS_S: Final = 0.005


class Reason(StrEnum):
    """Why a replica was ejected."""

    FAILURES_IN_A_ROW = "failures in a row"
    FAILURE_RATE = "failure rate"
    SLOW = "slow"
    TRIAL_FAILED = "trial failed"


class Service(StrEnum):
    """Whether a replica is in service."""

    HEALTHY = "healthy"
    RAMPING = "ramping"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Ejected:
    """What has just happened: the replica was ejected, for so many seconds."""

    reason: Reason
    for_s: float


@dataclass(frozen=True, slots=True)
class Readmitted:
    """What has just happened: the replica is in service again."""


Change: TypeAlias = Ejected | Readmitted | None
Ticket: TypeAlias = int
"""Says which trial a call is; 0: none."""


def has_room(out: int, replicas: int) -> bool:
    """Whether one more of so many replicas may be ejected, where *out* are out of service already."""
    return replicas == 1 or out + 1 <= replicas // 2


def is_slow(took_s: float, others_p50_s: float, others_most_s: float, slow_factor: float) -> bool:
    """Whether an answer that took *took_s* seconds is slow beside the latest of the other replicas."""
    return took_s > max(slow_factor * others_p50_s, others_most_s, others_p50_s + _HARMLESS_S)


class Health:
    """One replica's health; it says what changed, whoever asks tells the world.

    Attributes:
        reason: of the last ejection; None before the first.
        ejections: so far.
    """

    def __init__(self, options: ReplicaOptions) -> None:
        self._options = options
        self._calls = SlidingCount()
        self._failed_calls = SlidingCount()
        self._calls_failed_in_a_row = 0
        self._probes_failed_in_a_row = 0
        self._slow_in_a_row = 0
        self._is_spared = False
        self._ejected_until: float | None = None  # None: not ejected now
        self._is_half_open = False
        self._a_probe_saw_it = False
        self._trial: Ticket = 0  # in flight; 0: none
        self._trials = 0
        self._successes = 0
        self._count = 0  # of ejections that are not forgotten
        self._back_since = -math.inf
        self.reason: Reason | None = None
        self.ejections = 0

    def service(self, now: float) -> Service:
        """Whether it is in service at *now*."""
        self._end_ejection_in_time(now)
        if self._ejected_until is not None:
            return Service.EJECTED
        if self._is_half_open:
            return Service.HALF_OPEN
        return Service.RAMPING if now - self._back_since < self._options.ramp_s else Service.HEALTHY

    def is_out(self, now: float) -> bool:
        """Whether it counts as ejected in its pool: it is, or is on trial."""
        return self.service(now) in (Service.EJECTED, Service.HALF_OPEN)

    def takes_calls(self, now: float) -> bool:
        """Whether a call may begin at *now*: it is in service, or no trial is under way."""
        service = self.service(now)
        return service is not Service.EJECTED and not (service is Service.HALF_OPEN and self._trial)

    def share(self, now: float) -> float:
        """Its share of a full share of calls, up to 1."""
        if self._is_spared:
            return SPARED_SHARE
        doubt = 0.5**self._calls_failed_in_a_row
        if self.service(now) is not Service.RAMPING:
            return max(LEAST_SHARE, doubt)
        return max(LEAST_SHARE, doubt * (now - self._back_since) / self._options.ramp_s)

    def out_for_s(self, now: float) -> float:
        """Seconds until it may be tried again, as far as can be known."""
        if self.service(now) is not Service.EJECTED or self._ejected_until is None:
            return 0.0
        return max(self._ejected_until - now, 0.0) or self._options.probe_every_s

    def begin(self, now: float) -> Ticket:
        """A call begins; the ticket goes to `answered`, `failed` or `ended_otherwise`, whichever comes."""
        if self.service(now) is not Service.HALF_OPEN:
            return 0
        assert not self._trial, "a second trial beside one that runs. This is a bug."
        self._trials += 1
        self._trial = self._trials
        return self._trial

    def answered(self, ticket: Ticket, now: float, *, slow: bool, room: bool) -> Change:
        """A call was answered.

        Args:
            ticket: of the call.
            now: in seconds.
            slow: see `is_slow`.
            room: whether its pool allows one more ejection.
        """
        if self.is_out(now):
            return self._tried(ticket, now, is_well=not (slow and self.reason is Reason.SLOW))
        self._calls.add(now)
        self._is_spared = False
        self._calls_failed_in_a_row = 0
        self._slow_in_a_row = self._slow_in_a_row + 1 if slow else 0
        if self._slow_in_a_row >= self._options.eject_after and room:
            return self._eject(Reason.SLOW, now)
        return None

    def failed(self, ticket: Ticket, now: float, *, room: bool) -> Change:
        """A call failed, and by the replica's fault."""
        if self.is_out(now):
            return self._tried(ticket, now, is_well=False)
        self._calls.add(now)
        self._failed_calls.add(now)
        self._calls_failed_in_a_row += 1
        return self._eject_if_due(now, room=room)

    def was_wrong(self, now: float, *, room: bool) -> Change:
        """It said that its model failed on a batch that another has answered; its call has ended by then."""
        if self.service(now) is Service.HALF_OPEN:
            return self._eject(Reason.TRIAL_FAILED, now)
        return self.failed(0, now, room=room)

    def ended_otherwise(self, ticket: Ticket) -> None:
        """A call ended in a way that says nothing of the replica: cancelled, or refused for what was in it."""
        if ticket and ticket == self._trial:
            self._trial = 0

    def probe_passed(self, now: float) -> None:
        """A probe says that it is well."""
        self._probes_failed_in_a_row = 0
        if self.service(now) is Service.EJECTED and self._a_probe_saw_it and self.reason is not Reason.SLOW:
            self._open_halfway()

    def probe_failed(self, now: float, *, room: bool) -> Change:
        """A probe says that it is not well, or got no answer."""
        service = self.service(now)
        self._probes_failed_in_a_row += 1
        self._a_probe_saw_it = True
        if service is Service.EJECTED:
            return None
        if service is Service.HALF_OPEN:
            return self._eject(Reason.TRIAL_FAILED, now)
        return self._eject_if_due(now, room=room)

    def opened_anew(self, now: float) -> None:
        """Its connection or process is a new one: on trial where the old one was ejected, else with a growing share."""
        self._probes_failed_in_a_row = 0
        if self.is_out(now):
            self._open_halfway()
        else:
            self._return(now)

    def _end_ejection_in_time(self, now: float) -> None:
        if self._ejected_until is not None and now >= self._ejected_until and not self._probes_failed_in_a_row:
            self._open_halfway()

    def _open_halfway(self) -> None:
        self._ejected_until = None
        self._is_half_open = True
        self._trial = 0
        self._successes = 0

    def _tried(self, ticket: Ticket, now: float, *, is_well: bool) -> Change:
        if not ticket or ticket != self._trial:
            return None  # it began before the ejection, and says nothing new
        self._trial = 0
        if not is_well:
            return self._eject(Reason.SLOW if self.reason is Reason.SLOW else Reason.TRIAL_FAILED, now)
        self._successes += 1
        if self._successes < SUCCESSES:
            return None
        self._return(now)
        return Readmitted()

    def _eject_if_due(self, now: float, *, room: bool) -> Change:
        reason = self._due(now)
        self._is_spared = reason is not None and not room
        return self._eject(reason, now) if reason is not None and room else None

    def _due(self, now: float) -> Reason | None:
        if self._calls_failed_in_a_row + self._probes_failed_in_a_row >= self._options.eject_after:
            return Reason.FAILURES_IN_A_ROW
        calls = self._calls.count(now)
        if calls >= FEWEST_CALLS and self._failed_calls.count(now) >= _FAILING_SHARE * calls:
            return Reason.FAILURE_RATE
        return None

    def _eject(self, reason: Reason, now: float) -> Ejected:
        if self._count and not self._is_half_open:
            forgotten = int((now - self._back_since) / self._options.max_eject_s)
            self._count = max(0, self._count - forgotten)
        self._count += 1
        self._a_probe_saw_it = self._probes_failed_in_a_row > 0
        self.ejections += 1
        self.reason = reason
        for_s = min(self._options.max_eject_s, self._options.eject_s * self._count)
        self._ejected_until = now + for_s
        self._is_half_open = False
        self._trial = 0
        return Ejected(reason, for_s)

    def _return(self, now: float) -> None:
        self._is_half_open = self._is_spared = False
        self._back_since = now
        self._calls_failed_in_a_row = self._slow_in_a_row = 0
        self._calls.clear()
        self._failed_calls.clear()
