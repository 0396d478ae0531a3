"""How long people will take, from how they did of late: a queue with several servers, whose number nobody configures.

**The model.** A review waits until somebody takes it, and is then at work until it is decided. In an M/M/c queue with n
reviews ahead of a new one and c people at work, each of whom takes s for one, it is decided after (n + 1 − c)⁺·s/c + s
on average (Gross et al., *Fundamentals of Queueing Theory*, 2.3: what is left of exponential work has its mean again).
Of that, s and c are told by the latest decisions: the mean time from claim to decision, and how many people decided
anything within the last working hour, or hold something now.

**People are not servers.** They come and go, and look into other queues. So there is a second estimate, of what really
happens: while anything waits unclaimed, how long is it from one claim to the next? Time in which nothing waits tells
nothing of that and does not count, and neither does time outside working hours; time in which work waits and nobody
comes does, up to this moment. The prior of that pace is the model's, s/c, worth one claim; so is a minute for s.
A new review with q unclaimed ones ahead is taken after (q + 1) claims; where nothing is ahead, and not everybody busy,
after what one waits on average, those included that were taken at once. The greater of both estimates is told: the
model alone knows nothing of absence, and the pace of a quiet hour nothing of a crowd.

**Priorities.** Only what goes first is ahead: reviews of the same priority, or a better one. Those of a better one that
are still to come take the share ρ of all work, so that the wait is 1/(1 − ρ) as long (Cobham 1954).

**Honesty.** Without any decision nothing is known, and nothing is told. Skills, and what people do in other queues, are
seen only by what they do to the pace.

Rejected: backlog / decision rate alone (in a quiet hour it measures how much there was to do, not what could be done);
fitting arrivals (what is ahead is counted, and what comes behind does not matter but for its priority).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.people.hours import WorkingHours
from gateway.store.contract import Taken, Workload

ACTIVE_S = 3600.0
"""Working time since their last decision for which somebody counts as being at work."""

_PRIOR_SERVICE_S = 60.0
_MOST_OVERTAKEN = 0.9


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a queue's reviews are taken and decided. Times are working time, in seconds.

    Attributes:
        service_s: from claim to decision.
        people: how many are at work.
        claim_s: from one claim to the next while anything waits.
        pickup_s: until a review is taken before which there is none.
        better: by priority, how many reviews of better ones are taken in a second.
    """

    service_s: float
    people: int
    claim_s: float
    pickup_s: float
    better: dict[int, float]

    def expected_s(self, unclaimed: int, claimed: int, priority: int) -> float:
        """Until a review is decided that has so many others ahead of it, on average.

        Args:
            unclaimed: those that nobody has taken.
            claimed: those that somebody is at.
        """
        share_s = self.service_s / self.people
        is_quiet = not unclaimed and claimed < self.people
        paced_s = self.pickup_s if is_quiet else (unclaimed + 1) * self.claim_s
        until_claim_s = max(paced_s, (unclaimed + claimed + 1 - self.people) * share_s)
        better = max((rate for level, rate in self.better.items() if level <= priority), default=0.0)
        overtaken = min(_MOST_OVERTAKEN, better * max(share_s, self.claim_s))
        return until_claim_s / (1.0 - overtaken) + self.service_s


def pace_of(load: Workload, hours: WorkingHours, now_s: float) -> Pace | None:
    """The pace of a queue; None where nothing has been decided yet.

    Args:
        load: what is and was in it.
        hours: when its people work.
        now_s: Unix time, in seconds.
    """
    decided = [taken for taken in load.taken if taken.decided_s is not None]
    if not decided:
        return None
    served_s = sum(hours.worked_s(one.claimed_s, one.decided_s or one.claimed_s) for one in decided)
    service_s = (served_s + _PRIOR_SERVICE_S) / (len(decided) + 1)
    people = max(1, len({one.reviewer for one in load.taken if _is_at_work(one, hours, now_s)}))
    # Of those before the first that is told, nobody knows how many were claimed while others waited.
    since_s = min(one.claimed_s for one in load.taken) if load.is_cut else float("-inf")
    claims = [one for one in load.taken if one.claimed_s > since_s]
    waits = [(max(one.arrived_s, since_s), one.claimed_s) for one in claims if one.claimed_s > one.arrived_s]
    going_on = [] if load.unclaimed_since_s is None else [(max(load.unclaimed_since_s, since_s), now_s)]
    waiting_s = _union_s([*waits, *going_on], hours)
    claim_s = (waiting_s + service_s / people) / (len(waits) + 1)
    pickup_s = min(claim_s, waiting_s / max(1, len(claims)))
    began_s = since_s if load.is_cut else min(one.arrived_s for one in load.taken)
    return Pace(service_s, people, claim_s, pickup_s, _better(claims, hours.worked_s(began_s, now_s)))


def _is_at_work(taken: Taken, hours: WorkingHours, now_s: float) -> bool:
    return taken.decided_s is None or hours.worked_s(taken.decided_s, now_s) <= ACTIVE_S


def _union_s(spans: Iterable[tuple[float, float]], hours: WorkingHours) -> float:
    """The working time that lies in any of *spans*, in seconds."""
    total, reached_s = 0.0, float("-inf")
    for start_s, end_s in sorted(spans):
        total += hours.worked_s(max(start_s, reached_s), end_s)
        reached_s = max(reached_s, end_s)
    return total


def _better(claims: Sequence[Taken], worked_s: float) -> dict[int, float]:
    """By priority, how many reviews of better ones were claimed in a second, of *claims* within *worked_s*."""
    if worked_s <= 0.0:
        return {}
    levels = sorted({one.priority for one in claims})
    return {level + 1: sum(one.priority <= level for one in claims) / worked_s for level in levels}
