"""`pointsman reviews export` and `import`: what they do, apart from their options."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from backends.errors import PointsmanError
from gateway.http.reviews import check_label, check_reviewer
from gateway.labelling.formats import Decision, Format, NotShown, Pieces
from gateway.masking import Masks
from gateway.settings import Settings
from gateway.sight import as_seen_by
from gateway.store import open_store
from gateway.store.contract import Review, ReviewState, SaidBefore, Store
from gateway.webhooks.events import announcer

_PAGE = 50
_LEASE_S = 60.0


async def exported(store: Store, tenant: str, queue: str | None, state: ReviewState | None) -> AsyncIterator[Review]:
    """The reviews of *tenant* in *queue* and *state* (None: all) whose payloads are kept, by due time, with these.

    A blind one tells as little as everywhere else: not which answer it is of.
    """
    after: str | None = None
    while page := await store.reviews(tenant, queue, state, after=after, limit=_PAGE):
        for listed in page:
            review = await store.review(tenant, listed.id)
            if review is not None and not review.task.is_forgotten:  # it may have been purged meanwhile
                # What it is put into is for reviewers; who asks for decided ones gets their labels all the same.
                yield as_seen_by("", review) if review.is_blind else review
        after = page[-1].id


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of reviews.

    Attributes:
        count: of those that were written.
        left_out: the ids of those that the format cannot show, each with the reason.
    """

    count: int
    left_out: tuple[tuple[str, str], ...]


async def write_reviews(
    settings: Settings,
    tenant: str,
    queue: str | None,
    state: ReviewState | None,
    form: Format,
    out: Callable[[str], object],
) -> Exported:
    """Write reviews as a file of *form* to *out*, as `exported` finds them.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    count = 0
    left_out: list[tuple[str, str]] = []
    pieces = Pieces(form)
    async with aclosing(await open_store(settings.store, siblings=True)) as store:
        async for review in exported(store, tenant, queue, state):
            try:
                piece = pieces.of(review)
            except NotShown as error:
                left_out.append((review.id, str(error)))
            else:
                out(piece)
                count += 1
    out(pieces.end())
    return Exported(count, tuple(left_out))


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of decisions.

    Attributes:
        decided: made now.
        known: made before, by the same person and alike.
        refused: those that cannot be made, each with its reason.
    """

    decided: int
    known: int
    refused: tuple[Decision, ...]


async def import_decisions(settings: Settings, tenant: str, decisions: Iterable[Decision], reviewer: str) -> Imported:
    """Make *decisions* in the store of *settings*, beside a gateway that serves or without one.

    Args:
        settings: where the store is, and who is told.
        tenant: whose reviews.
        decisions: what was decided elsewhere.
        reviewer: who decided, before the name that the other tool has for them.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    decided = known = 0
    refused: list[Decision] = []
    masks = Masks(settings.masks)
    opened = await open_store(settings.store, siblings=True, announce=announcer(settings.webhooks), hide=masks.hiding)
    async with aclosing(opened) as store:
        for decision in decisions:
            if decision.why_not:
                refused.append(decision)
                continue
            try:
                is_new = await _decide(store, masks, tenant, decision, reviewer)
            except PointsmanError as error:
                refused.append(Decision(decision.review_id, decision.label, decision.reviewer, str(error)))
            else:
                decided, known = decided + is_new, known + (not is_new)
    return Imported(decided, known, tuple(refused))


async def _decide(store: Store, masks: Masks, tenant: str, decision: Decision, before: str) -> bool:
    """Make *decision*; whether it had not been made before.

    Args:
        before: stands before the name that the other tool has; whoever decided here has come back without it.

    Raises:
        PointsmanError: it cannot be made.
    """
    name, label = f"{before}{decision.reviewer}".strip(), check_label(decision.label)
    found = await store.review(tenant, decision.review_id)
    if found is not None and found.state is ReviewState.DECIDED and found.reviewer in (name, decision.reviewer):
        kept = label if found.task.labels else masks.words(found.route, label)
        if found.label == kept:
            return False
    check_reviewer(name)
    try:
        claimed = await store.claim(tenant, decision.review_id, name, _LEASE_S)
    except SaidBefore:
        await store.decide(tenant, decision.review_id, name, 0, label)  # it is taken where it is what they said
        return False
    try:
        await store.decide(tenant, decision.review_id, name, claimed.fence, label)
    except PointsmanError:
        await store.release(tenant, decision.review_id, name, claimed.fence)
        raise
    return True
