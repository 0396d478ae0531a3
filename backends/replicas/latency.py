"""What a replica's answers take: a mean that jumps to every peak, to choose by, and quantiles, to judge by.

**Peak EWMA.** A sample above the estimate becomes the estimate; one below it pulls it down by as much as time has
passed since the last. So one slow answer turns callers away at once, and trust comes back slowly.

Source: Finagle, `loadbalancer/PeakEwma.scala` (1e8497e). Where we differ: there an estimate that nobody refreshes
decays to nothing, so that after minutes of silence the replica counts as infinitely fast and takes a whole burst;
here it is unknown again from `_FORGOTTEN` decay times on, or sooner where a probe finds it well and idle, and an
unknown replica gets one call, not all of them.

**Quantiles** are over the last answers, failures and timeouts left out: what a replica needs for an answer is asked
for, and attempts cut short must not teach that it needs no more.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

DECAY_S: Final = 10.0
"""Mean life of an estimate, as in Finagle's default."""

_FORGOTTEN: Final = 5.0  # decay times, after which 0.7 % of an estimate is left
_KEPT_S: Final = 60.0


class PeakEwma:
    """The latency of one replica, as `balance` weighs it."""

    __slots__ = ("_cost_s", "_sampled_s", "_stamp_s")

    def __init__(self) -> None:
        self._cost_s = 0.0
        self._stamp_s = 0.0
        self._sampled_s = -math.inf

    def answered(self, took_s: float, now: float) -> None:
        """An answer took *took_s* seconds."""
        decayed_s = self._decayed(now)
        weight = math.exp(-max(0.0, now - self._stamp_s) / DECAY_S)
        self._cost_s = took_s if took_s > decayed_s else decayed_s + took_s * (1.0 - weight)
        self._stamp_s = self._sampled_s = now

    def not_answered(self, took_s: float, now: float) -> None:
        """No answer came in *took_s* seconds: it takes as long at least. A quick failure is no quick answer."""
        if took_s > self._decayed(now):
            self.answered(took_s, now)

    def forget_if_silent(self, now: float, for_s: float) -> None:
        """Know nothing any more, if nothing was learnt for *for_s* seconds.

        One answer of a second would otherwise keep a replica of quick ones without calls for a minute: it is never the
        better of two, and so never gets the call that would show that it is well again.
        """
        if now - self._sampled_s >= for_s:
            self._sampled_s, self._cost_s = -math.inf, 0.0

    def at(self, now: float) -> float | None:
        """The estimate in seconds; None where there is none, or none recent enough."""
        if now - self._sampled_s > _FORGOTTEN * DECAY_S:
            return None
        return self._decayed(now)

    def _decayed(self, now: float) -> float:
        return self._cost_s * math.exp(-max(0.0, now - self._stamp_s) / DECAY_S)


class RecentAnswers:
    """What the last answers took: the last *kept*, none older than a minute."""

    __slots__ = ("_in_order", "_kept", "_sorted")

    def __init__(self, kept: int = 256) -> None:
        self._kept = kept
        self._in_order: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, took_s: float, now: float) -> None:
        """An answer took *took_s* seconds."""
        self._in_order.append((now, took_s))
        insort(self._sorted, took_s)
        if len(self._sorted) > self._kept:
            self._forget_oldest()

    def quantile(self, share: float, now: float, *, fewest: int) -> float | None:
        """What *share* of the answers took at most, in seconds; None while there are not *fewest* of them."""
        while self._in_order and self._in_order[0][0] < now - _KEPT_S:
            self._forget_oldest()
        count = len(self._sorted)
        if count < fewest:
            return None
        return self._sorted[max(0, math.ceil(share * count) - 1)]

    def _forget_oldest(self) -> None:
        _, took_s = self._in_order.popleft()
        del self._sorted[bisect_left(self._sorted, took_s)]
