"""What each reviewer decided last, for as long as it can be taken back.

It is kept by session and in memory: after a restart nobody is offered to undo, and no address can ask for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WAY_S = 1.0
"""What a click takes to reach the store; undoing is offered for so much less than the store takes it."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A review that was decided, and the fence that it was decided under."""

    review_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class LastDecision:
    """A decision that can still be taken back.

    Attributes:
        reviews: what it was about; several that were decided at once.
        left_s: how much longer that is offered, in seconds.
    """

    reviews: tuple[Decided, ...]
    label: str
    left_s: float


class LastDecisions:
    """The last decision of every session."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: dict[str, _Made] = {}

    def remember(self, session_id: str, reviews: Sequence[Decided], label: str, undo_s: float) -> None:
        """*reviews* were decided just now, and the store takes the first back for *undo_s* seconds still."""
        now = self._clock()
        self._made = {session: made for session, made in self._made.items() if made.until > now}
        self._made[session_id] = _Made(tuple(reviews), label, now + undo_s - _WAY_S)

    def forget(self, session_id: str) -> None:
        """Nothing of *session_id* is to be taken back any more."""
        self._made.pop(session_id, None)

    def of(self, session_id: str) -> LastDecision | None:
        """What *session_id* can take back; None where it is too late, or there was nothing."""
        made = self._made.get(session_id)
        left_s = 0.0 if made is None else made.until - self._clock()
        return LastDecision(made.reviews, made.label, left_s) if made and left_s > 0 else None


@dataclass(frozen=True, slots=True)
class _Made:
    reviews: tuple[Decided, ...]
    label: str
    until: float
