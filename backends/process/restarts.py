"""When a worker that has ended is started again.

Two things that differ in what they tell:

- **It did not start.** Its next start will hardly end otherwise, until somebody repairs something: the delays double
  from the first failure on.
- **It died of a call.** Others will not, and to find the one that does, the batcher runs halves of the batch, each of
  which may take another worker with it: at most twice log2 of the batch in a row. So the first dozen are replaced at
  once. Only a worker that dies over and over is one that waits: deaths are counted with a half-life, and the delays
  double with each beyond what is free.

No clock and no randomness here: both are passed in.
"""

from __future__ import annotations

import math

_FIRST_S = 0.25
_LONGEST_S = 30.0
_FREE_DEATHS = 12.0
_HALF_LIFE_S = 20.0
_HOPELESS = 3


class Restarts:
    """The delays of one model's workers."""

    def __init__(self) -> None:
        self._failures = 0
        self._deaths = 0.0
        self._counted_s = 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether several starts in a row have failed."""
        return self._failures >= _HOPELESS

    def started(self) -> None:
        """A worker is ready."""
        self._failures = 0

    def failed(self) -> None:
        """A worker did not get ready."""
        self._failures += 1

    def died(self, now_s: float) -> None:
        """A worker ended that nobody had ended."""
        self._deaths = self._deaths_left(now_s) + 1
        self._counted_s = now_s

    def delay_s(self, now_s: float, jitter: float) -> float:
        """How long to wait before the next start.

        Args:
            now_s: of the clock that `died` was told.
            jitter: from 0 to 1; takes off up to half, so that not all models of a machine come back together.
        """
        excess = self._deaths_left(now_s) - _FREE_DEATHS
        steps = max(self._failures, excess)
        if steps <= 0:
            return 0.0
        return min(_LONGEST_S, _FIRST_S * math.exp2(min(steps - 1, 20.0))) * (1 - jitter / 2)

    def _deaths_left(self, now_s: float) -> float:
        return self._deaths * math.exp2(-max(0.0, now_s - self._counted_s) / _HALF_LIFE_S)
