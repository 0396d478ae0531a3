"""What is decided about all replicas of a model together: pure but for telling its observer; time is passed in."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import Final

from backends.replicas.balance import choose
from backends.replicas.health import Change, Ejected, Service, Ticket, has_room, is_slow
from backends.replicas.latency import RecentAnswers
from backends.replicas.options import ReplicaOptions
from backends.replicas.pacing import FEWEST_ANSWERS
from backends.replicas.replica import Replica
from backends.replicas.report import ReplicaEjected, ReplicaObserver, ReplicaReadmitted

_FEWEST_TO_HEDGE: Final = 100
_HEDGE_AFTER: Final = 0.95
_TRIAL_S: Final = 1.0  # until it is known how a trial ends, at a guess
_UNDER_LOAD: Final = 0.5  # of the calls that the replicas overlap


class Pool:
    """The replicas of one model.

    Args:
        model_name: names the model in records.
        replicas: all there are, open or not.
        options: as configured.
        rng: of the random choices.
        observer: is told of ejections and readmissions.
    """

    def __init__(
        self,
        model_name: str,
        replicas: Sequence[Replica],
        options: ReplicaOptions,
        rng: random.Random,
        observer: ReplicaObserver,
    ) -> None:
        self.replicas = tuple(replicas)
        self._model_name = model_name
        self._options = options
        self._rng = rng
        self._observer = observer
        self._answers = RecentAnswers()

    def choose(self, now: float, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica that gets a call at *now*, one not *tried* where there is one; None where none is in service."""
        candidates = [
            candidate
            for replica in self.replicas
            if (candidate := replica.candidate(now, was_tried=replica in tried)) is not None
        ]
        return choose(candidates, self._rng)

    def choose_for_copy(self, now: float, slow: Replica) -> Replica | None:
        """The replica that gets a copy of a call that *slow* has; None where there is none, or too much to do."""
        in_service = [r for r in self.replicas if r.is_open() and not r.health.is_out(now)]
        overlapped = sum(_most_in_flight(replica) for replica in in_service)
        if sum(replica.in_flight for replica in in_service) > _UNDER_LOAD * overlapped:
            return None
        free = [r for r in in_service if r is not slow and r.in_flight < _most_in_flight(r)]
        candidates = [replica.candidate(now, was_tried=False) for replica in free]
        return choose([candidate for candidate in candidates if candidate is not None], self._rng)

    def is_usable(self, now: float) -> bool:
        """Whether any replica takes calls."""
        return any(replica.is_usable(now) for replica in self.replicas)

    def retry_after_s(self, now: float) -> float:
        """When one may be usable again, where none is now."""
        return min(
            (replica.health.out_for_s(now) or _TRIAL_S) if replica.is_open() else self._options.probe_every_s
            for replica in self.replicas
        )

    def quantile_s(self, replica: Replica, share: float, now: float) -> float | None:
        """What *share* of the answers of *replica* take at most; of the others' while it has too few of its own."""
        own_s = replica.answers.quantile(share, now, fewest=FEWEST_ANSWERS)
        return self._others_s(replica, share, now) if own_s is None else own_s

    def hedge_after_s(self, now: float) -> float | None:
        """When a call counts as slow enough for a copy; None while too little is known."""
        return self._answers.quantile(_HEDGE_AFTER, now, fewest=_FEWEST_TO_HEDGE)

    def begin(self, replica: Replica, now: float) -> Ticket:
        """An attempt begins; `ended` always follows, `answered` or `failed` may come before."""
        replica.in_flight += 1
        return replica.health.begin(now)

    def answered(self, replica: Replica, ticket: Ticket, took_s: float, now: float) -> None:
        """An attempt was answered."""
        slow = self._is_slow(replica, took_s, now)
        replica.answered += 1
        replica.latency.answered(took_s, now)
        replica.answers.add(took_s, now)
        replica.latest.add(took_s, now)
        self._answers.add(took_s, now)
        room = slow and self._has_room(now)
        self._tell(replica, replica.health.answered(ticket, now, slow=slow, room=room))

    def failed(self, replica: Replica, ticket: Ticket, now: float) -> None:
        """An attempt failed by the replica's fault."""
        replica.failures += 1
        self._tell(replica, replica.health.failed(ticket, now, room=self._has_room(now)))

    def was_wrong(self, replica: Replica, now: float) -> None:
        """A replica said that its model failed on a batch that another has answered."""
        replica.failures += 1
        self._tell(replica, replica.health.was_wrong(now, room=self._has_room(now)))

    def ended(self, replica: Replica, ticket: Ticket, took_s: float, now: float) -> None:
        """An attempt has ended, however."""
        replica.in_flight -= 1
        replica.latency.not_answered(took_s, now)
        replica.health.ended_otherwise(ticket)

    def probe_passed(self, replica: Replica, now: float) -> None:
        """A replica says that it is well; if it has had nothing to do, what it took once is forgotten."""
        replica.health.probe_passed(now)
        if not replica.in_flight:
            replica.latency.forget_if_silent(now, self._options.probe_every_s)

    def probe_failed(self, replica: Replica, now: float) -> None:
        """A replica says that it is not well, or says nothing."""
        replica.failures += 1
        self._tell(replica, replica.health.probe_failed(now, room=self._has_room(now)))

    def _has_room(self, now: float) -> bool:
        out = sum(not replica.is_open() or replica.health.is_out(now) for replica in self.replicas)
        return has_room(out, len(self.replicas))

    def _is_slow(self, replica: Replica, took_s: float, now: float) -> bool:
        latest = [other.latest for other in self._comparable(replica, now)]
        usual = [p50_s for one in latest if (p50_s := one.quantile(0.5, now, fewest=FEWEST_ANSWERS)) is not None]
        if not usual or took_s <= (usual_s := median(usual)) * self._options.slow_factor:
            return False
        most = [most_s for one in latest if (most_s := one.quantile(1.0, now, fewest=FEWEST_ANSWERS)) is not None]
        return is_slow(took_s, usual_s, median(most), self._options.slow_factor)

    def _others_s(self, replica: Replica, share: float, now: float) -> float | None:
        answers = [
            other.answers.quantile(share, now, fewest=FEWEST_ANSWERS) for other in self._comparable(replica, now)
        ]
        known = [quantile_s for quantile_s in answers if quantile_s is not None]
        return median(known) if known else None

    def _comparable(self, replica: Replica, now: float) -> Iterator[Replica]:
        for other in self.replicas:
            if other is not replica and other.backend is not None and other.health.service(now) is not Service.EJECTED:
                yield other

    def _tell(self, replica: Replica, change: Change) -> None:
        if change is None:
            return
        if isinstance(change, Ejected):
            replica.attention.set()  # its keeper asks at once whether probes see the fault
            record = ReplicaEjected(self._model_name, replica.address, change.reason, change.for_s)
            self._observer.on_ejected(record)
        else:
            self._observer.on_readmitted(ReplicaReadmitted(self._model_name, replica.address))


def _most_in_flight(replica: Replica) -> int:
    return 0 if replica.backend is None else replica.backend.limits.max_in_flight
