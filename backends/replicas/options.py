"""What an operator may say about the replicas of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How calls are spread over a model's replicas, and when a replica is left out.

    Attributes:
        attempts: most attempts at one call, the first included; 1: nothing is tried again.
        attempt_timeout_s: what one attempt at a call without a deadline may take, in seconds.
        probe_every_s: seconds between two probes of a replica that can be probed, and between two looks at its state.
        probe_timeout_s: a probe that takes longer has failed.
        eject_after: failures in a row, and answers in a row far slower than the others', that eject a replica.
        eject_s: how long the first ejection lasts; the n-th lasts n times as long.
        max_eject_s: how long an ejection lasts at most; one is forgotten for every such time without another.
        ramp_s: how long a replica that comes back takes to get its full share.
        slow_factor: an answer is slow from this many times what the other replicas usually take.
        hedge: whether a call that takes longer than 95 % of them is sent to another replica as well. Worth it only
            where a replica ends cancelled work at once.
        start_grace_s: how long a start waits for further replicas once one is open.
        open_timeout_s: opening a replica that takes longer has failed, and is tried again.

    Raises:
        ValueError: lists every value that makes no sense.
    """

    attempts: int = 3
    attempt_timeout_s: float = 30.0
    probe_every_s: float = 5.0
    probe_timeout_s: float = 2.0
    eject_after: int = 5
    eject_s: float = 30.0
    max_eject_s: float = 300.0
    ramp_s: float = 30.0
    slow_factor: float = 5.0
    hedge: bool = False
    start_grace_s: float = 3.0
    open_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        for name in ("attempts", "eject_after"):
            if (count := getattr(self, name)) < 1:
                yield f"{name} is {count}; use at least 1"
        for name in _DURATIONS:
            if not _is_positive(seconds := getattr(self, name)):
                yield f"{name} is {seconds}; use a finite number of seconds above 0"
        for name in ("ramp_s", "start_grace_s"):
            if not _is_positive(seconds := getattr(self, name)) and seconds != 0.0:
                yield f"{name} is {seconds}; use a finite number of seconds, 0 for none"
        if not (_is_positive(self.slow_factor) and self.slow_factor > 1.0):
            yield f"slow_factor is {self.slow_factor}; use a number above 1, such as 5"
        if self.max_eject_s < self.eject_s:
            yield f"max_eject_s is {self.max_eject_s}; use at least eject_s, which is {self.eject_s}"


_DURATIONS = (
    "attempt_timeout_s",
    "probe_every_s",
    "probe_timeout_s",
    "eject_s",
    "max_eject_s",
    "open_timeout_s",
)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
