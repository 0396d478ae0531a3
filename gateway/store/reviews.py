"""Reviews: open → claimed (under a lease and a fence) → decided.

A lease that ran out is over at once, whether or not `maintain` has reopened the review yet: to every statement here
such a review is open, and its former holder's decision is refused. Claiming what one already holds renews the lease
under the same fence, so that a second browser tab or a reload does not spoil the first. A review outlives its lease's
giver: when that process has died, its claims are reopened (see `gateway.store.sqlite`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from backends.errors import Conflict, InvalidInput, NotFound
from gateway.answer import Answer, AnswerId
from gateway.store import codec, keys
from gateway.store.answers import Feedback, add_feedback, check_label, read_answer
from gateway.store.contract import QueueDepth, Review, ReviewState, ReviewTask
from gateway.store.log import Event, LogEntry
from gateway.store.schema import ANSWER_ITEMS, ANSWERS, QUEUES, REVIEWS
from gateway.store.transaction import Transaction
from router.contract import Reason

_C = REVIEWS.c

# Written out, not bound: only so can a planner tell that the partial indexes apply.
_UNDECIDED = _C.state != literal_column("'decided'")
_CLAIMED = _C.state == literal_column("'claimed'")

# A page of scanned documents would be hundreds of megabytes; whoever shows one reads that one.
_LISTED = [*(column for column in _C if column is not _C.payload), literal(b"").label("payload")]


def list_reviews(
    connection: Connection,
    now: float,
    tenant: str,
    queue: str | None,
    state: ReviewState | None,
    after: str | None,
    limit: int,
) -> list[Review]:
    """Reviews by due time, then id, without their payloads.

    Raises:
        NotFound: *after* is no review of *tenant*.
    """
    query = select(*_LISTED).where(_C.tenant == tenant).order_by(_C.due_s, _C.id).limit(limit)
    if queue is not None:
        query = query.where(_C.queue == queue)
    if state is not None:
        query = query.where(_in_state(state, now))
    if after is not None:
        last = connection.execute(select(_C.due_s).where(_C.id == after, _C.tenant == tenant)).scalar()
        if last is None:
            raise NotFound(f"review {after!r} is unknown, or no longer kept; list from the start")
        query = query.where(tuple_(_C.due_s, _C.id) > tuple_(last, after))
    return [_review(row, now) for row in connection.execute(query).mappings()]


def read_review(connection: Connection, now: float, tenant: str, review_id: str) -> Review | None:
    """One review; None where *tenant* has no such review."""
    row = connection.execute(_one(tenant, review_id)).mappings().first()
    return None if row is None else _review(row, now)


def claim(transaction: Transaction, tenant: str, review_id: str, reviewer: str, lease_s: float) -> Review:
    """Give a review to *reviewer*; see `Store.claim`."""
    review = _find(transaction, tenant, review_id)
    if review.state is ReviewState.DECIDED:
        raise Conflict(f"review {review_id} is decided")
    if review.state is ReviewState.CLAIMED and review.reviewer != reviewer:
        raise Conflict(f"review {review_id} is claimed by somebody else; take another")
    return _grant(transaction, review, reviewer, lease_s)


def claim_next(transaction: Transaction, tenant: str, queue: str, reviewer: str, lease_s: float) -> Review | None:
    """Give *reviewer* the review they hold, else the open one due first; see `Store.claim_next`."""
    first = (
        select(REVIEWS)
        .where(_C.tenant == tenant, _C.queue == queue)
        .order_by(_C.due_s, _C.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    # Each by the partial index made for it.
    held = first.where(_CLAIMED, _C.reviewer == reviewer, _C.lease_until_s > transaction.now)
    free = first.where(_in_state(ReviewState.OPEN, transaction.now))
    for query in (held, free):
        row = transaction.connection.execute(query).mappings().first()
        if row is not None:
            return _grant(transaction, _review(row, transaction.now), reviewer, lease_s)
    return None


def release(transaction: Transaction, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
    """Put a review back; a stale claim changes nothing."""
    transaction.connection.execute(
        _REOPEN.where(
            _C.id == review_id,
            _C.tenant == tenant,
            _CLAIMED,
            _C.reviewer == reviewer,
            _C.fence == fence,
        ),
    )


@dataclass(frozen=True, slots=True)
class Ruling:
    """What *reviewer* decides about a review claimed under *fence*."""

    tenant: str
    review_id: str
    reviewer: str
    fence: int
    label: str


def decide(transaction: Transaction, ruling: Ruling) -> Answer:
    """Give an item its final label; see `Store.decide`."""
    review = _find(transaction, ruling.tenant, ruling.review_id)
    check_label(ruling.label)
    if review.task.labels and ruling.label not in review.task.labels:
        raise InvalidInput(
            f"label {ruling.label!r} is not a choice of this review; one of {list(review.task.labels)} is"
        )
    answer = read_answer(transaction.connection, ruling.tenant, review.answer_id)
    assert answer is not None, f"review {review.id} has no answer. This is a bug."
    if review.state is ReviewState.DECIDED:
        if (review.reviewer, review.label) == (ruling.reviewer, ruling.label):
            return answer
        raise Conflict(f"review {review.id} is decided")
    if (review.state, review.reviewer, review.fence) != (ReviewState.CLAIMED, ruling.reviewer, ruling.fence):
        raise Conflict(f"review {review.id} is not held under this claim any more; claim it again")
    return _settle(transaction, review, ruling, answer)


def queue_depths(connection: Connection, now: float) -> dict[str, QueueDepth]:
    """How many reviews wait, by queue, over all tenants."""
    is_open = _in_state(ReviewState.OPEN, now)
    waiting = connection.execute(
        select(
            _C.queue,
            func.count().filter(is_open).label("open"),
            func.count().label("undecided"),
            func.min(_C.created_s).filter(is_open).label("oldest_s"),
        )
        .where(_UNDECIDED)
        .group_by(_C.queue),
    )
    depths = dict.fromkeys(
        connection.execute(select(QUEUES.c.name).order_by(QUEUES.c.name)).scalars(), QueueDepth(0, 0, None)
    )
    return depths | {row.queue: QueueDepth(row.open, row.undecided - row.open, row.oldest_s) for row in waiting}


def reopen_expired(transaction: Transaction) -> int:
    """Reopen reviews whose lease has run out; how many there were."""
    return transaction.connection.execute(_REOPEN.where(_CLAIMED, _C.lease_until_s <= transaction.now)).rowcount


def reopen_of(connection: Connection, owner: int) -> int:
    """Reopen the reviews whose lease the dead process *owner* gave; how many there were."""
    return connection.execute(_REOPEN.where(_CLAIMED, _C.owner == owner)).rowcount


def _settle(transaction: Transaction, review: Review, ruling: Ruling, answer: Answer) -> Answer:
    connection, index = transaction.connection, review.task.item
    decided = answer.decided(index, ruling.label, ruling.reviewer)
    item = decided.items[index]
    connection.execute(_DECIDE, {"of_id": review.id, "new_label": ruling.label})
    # A decision keeps the model's outputs or takes them away; it never makes new ones.
    gone = {"outputs": None} if item.outputs is None else {}
    connection.execute(
        update(ANSWER_ITEMS)
        .where(ANSWER_ITEMS.c.answer_id == answer.id, ANSWER_ITEMS.c.item == index)
        .values(
            status=item.status.value, label=item.label, confidence=item.confidence, decided_by=item.decided_by, **gone
        ),
    )
    undecided = select(_C.id).where(_C.answer_id == answer.id, _UNDECIDED).limit(1)
    is_closed = connection.execute(undecided).first() is None
    connection.execute(
        update(ANSWERS)
        .where(ANSWERS.c.id == answer.id)
        .values(revision=decided.revision, closed_s=transaction.now_s if is_closed else None),
    )
    if is_closed:
        keys.close_answer(transaction, answer.id)
    person = f"person:{ruling.reviewer}"
    transaction.append([_ruled(transaction, answer, index, ruling.label, person)])
    add_feedback(transaction, Feedback(ruling.tenant, answer.id, index, ruling.label, person), answer.route)
    return decided


def _ruled(transaction: Transaction, answer: Answer, index: int, label: str, person: str) -> LogEntry:
    return LogEntry(
        at_s=transaction.now_s,
        tenant=answer.tenant,
        answer_id=answer.id,
        item=index,
        route=answer.route,
        event=Event.DECIDE,
        actor=person,
        label=label,
        confidence=None,
        reason=None,
        trail="[]",
    )


def _grant(transaction: Transaction, review: Review, reviewer: str, lease_s: float) -> Review:
    fence = review.fence if review.state is ReviewState.CLAIMED else review.fence + 1
    connection, until = transaction.connection, transaction.now + lease_s
    values = {"new_reviewer": reviewer, "new_fence": fence, "new_until": until, "new_owner": transaction.identity.slot}
    connection.execute(_GRANT, values | {"of_id": review.id})
    granted = read_review(connection, transaction.now, review.tenant, review.id)
    assert granted is not None
    return granted


def _find(transaction: Transaction, tenant: str, review_id: str) -> Review:
    row = transaction.connection.execute(_one(tenant, review_id).with_for_update()).mappings().first()
    if row is None:
        raise NotFound(f"review {review_id!r} is unknown, or no longer kept")
    return _review(row, transaction.now)


def _one(tenant: str, review_id: str) -> Select[tuple[object, ...]]:
    return select(REVIEWS).where(_C.id == review_id, _C.tenant == tenant)


def _in_state(state: ReviewState, now: float) -> ColumnElement[bool]:
    if state is ReviewState.OPEN:
        return and_(_UNDECIDED, or_(_C.state == ReviewState.OPEN.value, _C.lease_until_s <= now))
    if state is ReviewState.CLAIMED:
        return and_(_CLAIMED, _C.lease_until_s > now)
    return _C.state == state.value


def _review(row: RowMapping, now: float) -> Review:
    state = ReviewState(row["state"])
    lease_s = None if row["lease_until_s"] is None else row["lease_until_s"] - now
    if lease_s is not None and lease_s <= 0:
        state, lease_s = ReviewState.OPEN, None
    return Review(
        id=row["id"],
        tenant=row["tenant"],
        answer_id=AnswerId(row["answer_id"]),
        route=row["route"],
        state=state,
        fence=row["fence"],
        reviewer=None if state is ReviewState.OPEN else row["reviewer"],
        lease_s=lease_s,
        label=row["label"],
        created_s=row["created_s"],
        task=ReviewTask(
            item=row["item"],
            queue=row["queue"],
            due_s=row["due_s"],
            labels=codec.decode_labels(row["labels"]),
            payload=row["payload"],
            content_type=row["content_type"],
            proposals=codec.decode_proposals(row["proposals"]),
            reason=Reason(row["reason"]),
        ),
    )


_OPENED = {"state": ReviewState.OPEN.value, "reviewer": None, "owner": None, "lease_until_s": None}
_REOPEN = update(REVIEWS).values(**_OPENED)
_GRANT = (
    update(REVIEWS)
    .where(_C.id == bindparam("of_id"))
    .values(
        state=ReviewState.CLAIMED.value,
        reviewer=bindparam("new_reviewer"),
        fence=bindparam("new_fence"),
        owner=bindparam("new_owner"),
        lease_until_s=bindparam("new_until"),
    )
)
_DECIDE = (
    update(REVIEWS)
    .where(_C.id == bindparam("of_id"))
    .values(state=ReviewState.DECIDED.value, owner=None, lease_until_s=None, label=bindparam("new_label"))
)
