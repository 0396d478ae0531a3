"""Deciding several reviews at once that ask the same about the same input, and taking that back.

Each is claimed and decided for itself, under its own fence, as if one had gone from one to the next: what somebody
else holds or has decided meanwhile stays theirs. What is decided is what was confirmed, and still is alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from backends.errors import Conflict, NotFound, PointsmanError
from gateway.people.scope import Scope
from gateway.sight import as_seen_by
from gateway.store.contract import Decided, Review, ReviewState, SaidBefore, Store

MOST = 200
"""Most reviews that are decided by one confirmation."""

_T = TypeVar("_T")

_AT_ONCE = 8  # a claim brings its input along, which may be large


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who decides, and what they may take."""

    tenant: str
    name: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of them.

    Attributes:
        why_not: in words, where it was not decided, or taken back; "" where it was.
        decided: with it the decision can be taken back; None where it cannot.
    """

    review_id: str
    why_not: str = ""
    decided: Decided | None = None


def is_free(review: Review, reviewer: str) -> bool:
    """Whether *reviewer* can decide *review*: nobody else has it."""
    return review.state is ReviewState.OPEN or (review.state is ReviewState.CLAIMED and review.reviewer == reviewer)


async def decide_each(
    store: Store, who: Reviewer, review_ids: Sequence[str], label: str, lease_s: float
) -> list[Outcome]:
    """Decide *review_ids* as *label*, in the name of *who*; what became of each.

    Args:
        lease_s: seconds that each is claimed for; one whose decision fails is open again after them.
    """
    return await _each(review_ids, lambda review_id: _decide(store, who, review_id, label, lease_s))


async def undo_each(store: Store, who: Reviewer, reviews: Sequence[Decided]) -> list[Outcome]:
    """Take back what *who* has decided about *reviews*, and have them hold these again; what became of each."""
    return await _each(reviews, lambda decided: _undo(store, who, decided))


async def _each(many: Sequence[_T], act: Callable[[_T], Awaitable[Outcome]]) -> list[Outcome]:
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one(each: _T) -> Outcome:
        async with at_once:
            return await act(each)

    return await asyncio.gather(*map(one, many))


async def _decide(store: Store, who: Reviewer, review_id: str, label: str, lease_s: float) -> Outcome:
    try:
        claimed = await store.claim(who.tenant, review_id, who.name, lease_s, who.scope)
        await store.decide(who.tenant, review_id, who.name, claimed.fence, label)
    except SaidBefore:
        return Outcome(review_id, "you have said what it is, and somebody else is asked now")
    except Conflict:
        return Outcome(review_id, await _whose(store, who, review_id))
    except NotFound:
        return Outcome(review_id, "it is no longer kept")
    except PointsmanError as error:
        return Outcome(review_id, str(error))
    # An opinion on what others are asked about, too, stays.
    decided = Decided(review_id, claimed.fence)
    return Outcome(review_id, decided=decided if decided.stands(await store.glance(who.tenant, review_id)) else None)


async def _undo(store: Store, who: Reviewer, decided: Decided) -> Outcome:
    try:
        await store.undo(who.tenant, decided.review_id, who.name, decided.fence)
    except NotFound:
        return Outcome(decided.review_id, "it is no longer kept")
    except PointsmanError as error:
        return Outcome(decided.review_id, str(error))
    return Outcome(decided.review_id)


async def _whose(store: Store, who: Reviewer, review_id: str) -> str:
    found = await store.glance(who.tenant, review_id)
    found = None if found is None else as_seen_by(who.name, found)
    if found is not None and found.recalled and found.reviewer is None:
        return "it is due, and moves on to another queue"
    if found is None or found.reviewer is None:
        return "somebody else had it meanwhile"
    if found.state is ReviewState.DECIDED:
        return f"{found.reviewer} decided it: {found.label}"
    return f"{found.reviewer} has it"
