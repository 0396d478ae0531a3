"""How many calls may be made beyond those that came: retries and hedges must not become the load that breaks a model.

1. Retries granted within 10 s are at most 10 % of the calls that came within 10 s, but `FEWEST_RETRIES` at any rate:
   read literally, a model with fewer than one call a second could never retry, and five failures in a row, which it
   takes to eject a replica, would reach callers. What is beyond that is refused.
2. Retries that run are at most max(3, 20 %) of the calls in flight. What is beyond that *waits*: when a server dies,
   all it had in hand fails in the same moment, and half of the calls in flight would be lost though case 1 allows for
   them. As case 1 comes first, few ever wait.
3. Copies of slow calls (hedges) are at most 5 % of the calls within 10 s.

Sources: Envoy's retry budget (20 %, at least 3 at once; refuses both); Finagle's `RetryBudget` (a share of requests,
and a floor).
"""

from __future__ import annotations

from typing import Final

from backends.replicas.window import SlidingCount

FEWEST_ACTIVE: Final = 3
ACTIVE_SHARE: Final = 0.2
FEWEST_RETRIES: Final = 10
RETRY_SHARE: Final = 0.1
HEDGE_SHARE: Final = 0.05


class Budget:
    """What the calls of one model may cost extra.

    Attributes:
        retries_refused: retries that were not granted, ever.
        hedges: copies that were granted, ever.
    """

    def __init__(self) -> None:
        self._calls = SlidingCount()
        self._recent_retries = SlidingCount()
        self._recent_hedges = SlidingCount()
        self._active_retries = 0
        self.retries_refused = 0
        self.hedges = 0

    def call_came(self, now: float) -> None:
        """A call came; its first attempt costs nothing extra."""
        self._calls.add(now)

    def grant_retry(self, now: float) -> bool:
        """Whether a call that failed may be tried again, as soon as it may begin."""
        most = max(FEWEST_RETRIES, int(RETRY_SHARE * self._calls.count(now)))
        if self._recent_retries.count(now) >= most:
            self.retries_refused += 1
            return False
        self._recent_retries.add(now)
        return True

    def begin_retry(self, calls_in_flight: int) -> bool:
        """Whether a retry that was granted may begin, or has to wait for the end of another.

        Args:
            calls_in_flight: the one at hand included.
        """
        if self._active_retries >= max(FEWEST_ACTIVE, int(ACTIVE_SHARE * calls_in_flight)):
            return False
        self._active_retries += 1
        return True

    def end_retry(self) -> None:
        """A retry that began has ended."""
        assert self._active_retries > 0, "a retry ended that never began. This is a bug."
        self._active_retries -= 1

    def begin_hedge(self, now: float) -> bool:
        """Whether a copy of a slow call may be sent."""
        if self._recent_hedges.count(now) >= int(HEDGE_SHARE * self._calls.count(now)):
            return False
        self._recent_hedges.add(now)
        self.hedges += 1
        return True
