"""When one model was used, and what it is worth to have it in memory: the part of a pool that knows no memory.

Pure: the clock is passed in, so that the simulator in `loadtests.cold_starts` replays days through the same objects
that a running pool asks.
"""

from __future__ import annotations

import math

from backends.warm.histogram import IdleTimes, KeepAlive, Window


class Usage:
    """The calls of one model, and the idle times between them."""

    __slots__ = ("_calls", "_idle_since_s", "_idle_times", "_is_sought", "_rule", "_was_used")

    def __init__(self, rule: KeepAlive, now: float) -> None:
        """Args:
        rule: how long to keep it.
        now: seconds on the clock that all its methods are told.
        """
        self._rule = rule
        self._idle_times = IdleTimes()
        self._calls = 0
        self._idle_since_s = now
        self._was_used = False
        self._is_sought = False

    def __repr__(self) -> str:
        return f"<Usage: {self._calls} calls, {self._idle_times!r}>"

    def began(self, now: float) -> None:
        """A call has come."""
        if self._calls == 0:
            self._count(now)
        self._is_sought = False
        self._calls += 1

    def ended(self, now: float) -> None:
        """A call is over."""
        self._calls -= 1
        if self._calls == 0:
            self._idle_since_s = now

    def wanted(self, now: float) -> None:
        """Somebody would have called, and could not: the same who will soon try again, which is no use of its own."""
        if self._calls == 0:
            self._count(now)
            self._is_sought = True
            self._idle_since_s = now

    def _count(self, now: float) -> None:
        if self._was_used and not self._is_sought:
            self._idle_times.observe(now - self._idle_since_s)
        self._was_used = True

    @property
    def calls(self) -> int:
        """Calls that have come and are not over."""
        return self._calls

    @property
    def window(self) -> Window:
        """When to have it in memory, from the end of a use."""
        return self._idle_times.window(self._rule)

    def idle_s(self, now: float) -> float:
        """Seconds since it was last used; 0.0 while it is."""
        return 0.0 if self._calls else max(now - self._idle_since_s, 0.0)

    def is_due(self, now: float, load_s: float, *, is_there: bool = True) -> bool:
        """Whether it should be in memory, if loading it takes *load_s* seconds.

        Args:
            is_there: whether it is: of a model that is not, more must be known.
        """
        if self._calls:
            return True
        window, idle_s = self.window, self.idle_s(now)
        if not is_there and not window.is_known:
            return False
        return idle_s < window.linger_s or window.start_s - load_s <= idle_s < window.end_s

    def next_change_s(self, now: float, load_s: float) -> float:
        """When `is_due` may change by itself; infinity: never."""
        if self._calls:
            return math.inf
        window = self.window
        edges_s = (window.linger_s, window.start_s - load_s, window.end_s)
        return min((at_s for edge_s in edges_s if (at_s := self._idle_since_s + edge_s) > now), default=math.inf)

    def uses_per_s(self, now: float) -> float:
        """Uses that a second of holding it buys; see `IdleTimes.uses_per_s`."""
        return self._idle_times.uses_per_s(self.idle_s(now))
