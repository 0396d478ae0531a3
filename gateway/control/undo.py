"""What each reviewer decided last, for as long as it can be taken back.

It is kept by session, in the store: whichever gateway shows the next page offers it, and it holds no label, which may
be made of an input's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.control.session import Session
from gateway.store.contract import Decided, Store

_WAY_S = 1.0
"""What a click takes to reach the store; undoing is offered for so much less than the store takes it."""


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

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, session: Session, reviews: Sequence[Decided], undo_s: float) -> None:
        """*reviews* were decided just now, and the store takes the first back for *undo_s* seconds still."""
        left_s = undo_s - _WAY_S
        await self._store.offer_undo(session.id, reviews if left_s > 0 else (), left_s)

    async def forget(self, session: Session) -> None:
        """Nothing of *session* is to be taken back any more."""
        await self._store.offer_undo(session.id, (), 0.0)

    async def of(self, session: Session) -> LastDecision | None:
        """What can be taken back in *session*; None where it is too late, or there was nothing, or it was."""
        offer = await self._store.undo_offer(session.id)
        if offer is None:
            return None
        first = offer.reviews[0]
        now = await self._store.glance(session.caller.tenant, first.review_id)
        if now is None or not first.stands(now):
            return None
        return LastDecision(offer.reviews, now.label or "", offer.left_s)
