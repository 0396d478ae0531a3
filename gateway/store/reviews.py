"""Reviews: open → claimed (under a lease and a fence) → decided, or open again for others (`gateway.store.opinions`);
or, undecided, → cancelled or expired; meanwhile, from queue to queue as they come due.

A lease that ran out is over at once, whether or not `maintain` has reopened the review yet: to every statement here
such a review is open, and its former holder's decision is refused. Claiming what one already holds renews the lease
under the same fence, so that a second browser tab or a reload does not spoil the first. A review outlives its lease's
giver: when that process has died, its claims are reopened (see `gateway.store.ownership`).

**Escalation.** A review that is due and undecided goes to the next queue, open; where there is none it stays, marked.
One that somebody holds at that moment stays theirs until the lease ends: they are most likely the first to decide it,
and what they have done is not thrown away. It is recalled, though: no renewal extends the lease any more, whoever it is
given to has what is left of that, and once it has ended nobody takes the review before it has moved on. So it moves on
after one lease at the latest, and whoever held it finds their decision refused as after any lease. Rejected:
moving it at once, under a new fence (a decision that came a second too late would be lost, for one that comes hours
later), and waiting for holders who renew (one open page would hold it for ever).

**Skills** stand in a review as a text, and every such text in a table of its own: whoever looks for work reads these
few, and leaves out the reviews whose text names a skill that they lack.
A decision can be taken back for a short while, by who made it, and corrected later. A review that expires does so by
upkeep: what is decided before that is taken, and who holds a claim of one that is over is told so when they decide.

What becomes of the answer is `gateway.store.changes`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)

from backends.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from gateway.answer import GIVEN_UP, PEOPLE, Answer, AnswerId, StageRecord
from gateway.moments import rfc3339
from gateway.people.scope import EVERYTHING, Scope
from gateway.store import changes, codec, opinions
from gateway.store.answers import Feedback, add_feedback, check_label, forget_feedback, read_answer
from gateway.store.bulk import Existing, insert_rows
from gateway.store.changes import Change
from gateway.store.contract import (
    UNDO_LEASE_S,
    Escalated,
    Purpose,
    QueueDepth,
    QueueWork,
    Review,
    ReviewState,
    ReviewTask,
    Step,
)
from gateway.store.database import hold
from gateway.store.log import Event, LogEntry
from gateway.store.outbox import UNTOLD, Telling
from gateway.store.schema import (
    DECISION_LOG,
    HANDED_OVER,
    IS_UNDECIDED,
    QUEUES,
    REVIEW_CLAIMS,
    REVIEWS,
    SHOWN,
    SKILL_SETS,
    TO_ESCALATE,
)
from gateway.store.transaction import Transaction
from router.contract import Decision, Reason

_C = REVIEWS.c

_EXPIRE_BATCH = 32
"""Reviews that expire in one transaction, so that others are not held up."""

# Written out, not bound: only so can a planner tell that the partial index applies.
_CLAIMED = _C.state == literal_column("'claimed'")

_ORDER = (_C.priority, _C.due_s, _C.id)
"""In which reviews are to be decided."""

_ESCALATED = 256
"""Reviews that one transaction moves on, so that others are not held up."""

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
    scope: Scope = EVERYTHING,
) -> list[Review]:
    """Reviews by priority, due time and id, without their payloads.

    Raises:
        NotFound: *after* is no review of *tenant*.
    """
    query = select(*_LISTED).where(_C.tenant == tenant, *_within(connection, scope)).order_by(*_ORDER).limit(limit)
    if queue is not None:
        query = query.where(_C.queue == queue)
    if state is not None:
        query = query.where(_in_state(state, now))
    if after is not None:
        last = connection.execute(select(*_ORDER).where(_C.id == after, _C.tenant == tenant)).first()
        if last is None:
            raise NotFound(f"review {after!r} is unknown, or no longer kept; list from the start")
        query = query.where(tuple_(*_ORDER) > tuple_(*last))
    return [_review(row, now) for row in connection.execute(query).mappings()]


def read_review(connection: Connection, now: float, tenant: str, review_id: str) -> Review | None:
    """One review; None where *tenant* has no such review."""
    row = connection.execute(_one(tenant, review_id)).mappings().first()
    return None if row is None else opinions.shown(connection, _review(row, now))


def read_listed(connection: Connection, now: float, tenant: str, review_id: str) -> Review | None:
    """One review without its payload; None where *tenant* has no such review."""
    row = connection.execute(select(*_LISTED).where(_C.id == review_id, _C.tenant == tenant)).mappings().first()
    return None if row is None else _review(row, now)


def read_alike(
    connection: Connection, now: float, tenant: str, review_id: str, limit: int, among: Sequence[str] | None
) -> list[Review]:
    """Undecided reviews with the question and the input of one; see `InboxStore.alike`."""
    found = read_listed(connection, now, tenant, review_id)
    if found is None:
        raise NotFound(f"review {review_id!r} is unknown, or no longer kept")
    digest = read_digests(connection, tenant, [review_id]).get(review_id)
    if digest is None or found.stands_alone:
        return [found] if found.state.is_undecided else []
    log = DECISION_LOG.c
    had_input = select(log.answer_id, log.item).where(log.payload_sha256 == digest, text(SHOWN))
    same = (
        select(*_LISTED)
        .where(
            tuple_(_C.answer_id, _C.item).in_(had_input),
            _C.tenant == tenant,
            _C.queue == found.task.queue,
            _C.route == found.route,
            _C.labels == codec.encode_labels(found.task.labels),
            _C.content_type == found.task.content_type,
            IS_UNDECIDED,
            not_(_C.blind),  # as `Review.stands_alone`, before the limit
            not_(_C.adjudicating),
        )
        .order_by((_C.id == review_id).desc(), _C.id.desc())
        .limit(limit)
    )
    if among is not None:
        same = same.where(_C.id.in_(among))
    reviews = [_review(row, now) for row in connection.execute(same).mappings()]
    return sorted(reviews, key=lambda one: (one.task.priority, one.task.due_s, one.id))


def read_digests(connection: Connection, tenant: str, review_ids: Sequence[str]) -> dict[str, bytes]:
    """The digests of what people are shown by *review_ids*; see `InboxStore.input_digests`."""
    shown = (
        select(_C.id, DECISION_LOG.c.payload_sha256)
        .join(DECISION_LOG, _IS_OF_REVIEW)
        .where(_C.tenant == tenant, _C.id.in_(review_ids), text(HANDED_OVER), text(SHOWN))
    )
    return {row.id: row.payload_sha256 for row in connection.execute(shown)}


def claim(
    transaction: Transaction, tenant: str, review_id: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
) -> Review:
    """Give a review to *reviewer*; see `Store.claim`."""
    review = _find(transaction, tenant, review_id)
    is_theirs = review.state is ReviewState.CLAIMED and review.reviewer == reviewer
    if not is_theirs and (why := scope.why_not(review.task.queue, review.task.skills)) is not None:
        raise PermissionDenied(why)
    opinions.refuse_another(transaction.connection, review, reviewer)
    _check_undecided(review)
    if review.state is ReviewState.CLAIMED and review.reviewer != reviewer:
        raise Conflict(f"review {review_id} is claimed by somebody else; take another")
    _check_stays(review)
    return _grant(transaction, review, reviewer, lease_s)


def claim_next(
    transaction: Transaction, tenant: str, queue: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
) -> Review | None:
    """Give *reviewer* the review they hold, else the first open one that *scope* admits; see `Store.claim_next`."""
    hold(transaction.connection, "reviewer", tenant, queue, reviewer)  # who asks twice at once gets one review
    first = select(REVIEWS).where(_C.tenant == tenant, _C.queue == queue).order_by(*_ORDER).limit(1)
    # Each by the partial index made for it.
    held = first.where(_CLAIMED, _C.reviewer == reviewer, _C.lease_until_s > transaction.now).with_for_update()
    admitted = _within(transaction.connection, scope)
    stays = not_(_C.recalled)
    free = first.where(_in_state(ReviewState.OPEN, transaction.now), stays, opinions.has_not_said(reviewer), *admitted)
    free = free.with_for_update(skip_locked=True)
    for query in (held, free):
        row = transaction.connection.execute(query).mappings().first()
        if row is not None:
            return _grant(transaction, _review(row, transaction.now), reviewer, lease_s)
    return None


def release(transaction: Transaction, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
    """Put a review back; a stale claim changes nothing."""
    put_back = transaction.connection.execute(
        _REOPEN.where(
            _C.id == review_id,
            _C.tenant == tenant,
            _CLAIMED,
            _C.reviewer == reviewer,
            _C.fence == fence,
        ),
    )
    if put_back.rowcount:
        transaction.connection.execute(_RETURN, {"of_id": review_id, "of_fence": fence, "now_s": transaction.now_s})


def renew(transaction: Transaction, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
    """Extend a claim; see `Store.renew`."""
    review = _find(transaction, tenant, review_id)
    if (review.state, review.reviewer, review.fence) != (ReviewState.CLAIMED, reviewer, fence):
        raise Conflict(f"review {review_id} is not held under this claim any more; claim it again")
    return _grant(transaction, review, reviewer, lease_s)


def assign(transaction: Transaction, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
    """Give a review to *reviewer*, whoever holds it; see `Store.assign`."""
    review = _find(transaction, tenant, review_id)
    _check_undecided(review)
    opinions.refuse_another(transaction.connection, review, reviewer)
    if review.fence != fence:
        raise Conflict(f"review {review_id} was claimed since fence {fence}; read it again")
    _check_stays(review)
    if review.recalled and review.lease_s is not None:
        lease_s = min(lease_s, review.lease_s)
    return _grant(transaction, replace(review, state=ReviewState.OPEN), reviewer, lease_s)


def escalate(transaction: Transaction, steps: Mapping[str, Step]) -> list[Escalated]:
    """Move a batch of reviews on that are due and undecided, or mark them; see `Store.escalate`.

    1. held, and there is a queue to go to: recalled, once
    2. not held, and there is one: moved, with the time that reviews get there
    3. there is none: marked as overdue, held or not
    """
    connection, now_s = transaction.connection, transaction.now_s
    due = and_(text(TO_ESCALATE), _C.due_s <= now_s, _C.purpose == Purpose.DECIDE.value)
    held, has_step = and_(_CLAIMED, _C.lease_until_s > transaction.now), _C.queue.in_(sorted(steps))
    connection.execute(update(REVIEWS).where(due, held, has_step, not_(_C.recalled)).values(recalled=True))
    columns = (_C.id, _C.answer_id, _C.item, _C.tenant, _C.route, _C.queue, _C.due_s)
    going = select(*columns).where(due, not_(and_(held, has_step))).order_by(_C.due_s, _C.id).limit(_ESCALATED)
    by_queue: dict[str, list[RowMapping]] = {}
    for row in connection.execute(going.with_for_update(skip_locked=True)).mappings():
        by_queue.setdefault(row["queue"], []).append(row)
    escalated = []
    for queue, rows in by_queue.items():
        step = steps.get(queue)
        change = update(REVIEWS).where(_C.id.in_([row["id"] for row in rows]))
        if step is None:
            connection.execute(change.values(overdue_s=now_s, recalled=False))
        else:
            insert_rows(connection, QUEUES, [(step.queue,)], Existing.KEPT)
            there = {"queue": step.queue, "due_s": now_s + step.due_s, "moved_s": now_s, "recalled": False}
            connection.execute(change.values(**_OPENED, **there, escalations=_C.escalations + 1))
        transaction.append([_moved_on(transaction, row, step) for row in rows])
        to, due_s = (None, None) if step is None else (step.queue, now_s + step.due_s)
        escalated += [
            Escalated(row["id"], row["tenant"], row["route"], queue, to, row["due_s"] if due_s is None else due_s)
            for row in rows
        ]
    return escalated


def _moved_on(transaction: Transaction, row: RowMapping, step: Step | None) -> LogEntry:
    detail = f"undecided in queue {row['queue']!r}, where it was due {rfc3339(row['due_s'])}"
    if step is None:
        detail += "; there is no further queue"
    else:
        detail += f"; queue {step.queue!r} has until {rfc3339(transaction.now_s + step.due_s)}"
    return LogEntry(
        at_s=transaction.now_s,
        tenant=row["tenant"],
        answer_id=row["answer_id"],
        item=row["item"],
        route=row["route"],
        event=Event.ESCALATE,
        actor=None if step is None else f"queue:{step.queue}",
        label=None,
        confidence=None,
        reason=None,
        trail=codec.encode_trail([StageRecord(PEOPLE, "", None, None, Decision.ESCALATE, None, detail)]),
    )


@dataclass(frozen=True, slots=True)
class Ruling:
    """What *reviewer* decides about a review claimed under *fence*."""

    tenant: str
    review_id: str
    reviewer: str
    fence: int
    label: str


def decide(transaction: Transaction, ruling: Ruling, telling: Telling = UNTOLD) -> Answer:
    """Give an item its final label. See `Store.decide`."""
    review = _find(transaction, ruling.tenant, ruling.review_id)
    _check_choice(review, ruling.label)
    if opinions.is_repeated(transaction.connection, review, ruling.reviewer, ruling.label):
        return _answer_of(transaction, review)
    if (review.state, review.reviewer, review.label) == (ReviewState.DECIDED, ruling.reviewer, ruling.label):
        return _answer_of(transaction, review)
    _check_undecided(review)
    if (review.state, review.reviewer, review.fence) != (ReviewState.CLAIMED, ruling.reviewer, ruling.fence):
        raise Conflict(f"review {review.id} is not held under this claim any more; claim it again")
    taken = opinions.take(transaction, review, ruling.reviewer, ruling.label, _answer_of(transaction, review))
    if taken is not None:
        return taken
    decided = _rule(transaction, review, Event.DECIDE, ruling.reviewer, ruling.label, None, telling)
    opinions.ask_second(transaction, review, ruling.reviewer, ruling.label)
    return decided


@dataclass(frozen=True, slots=True)
class Correction:
    """What *reviewer* says of a review that was decided; *of_anybody*: by whomever."""

    tenant: str
    review_id: str
    reviewer: str
    label: str
    reason: str | None
    of_anybody: bool


def correct(transaction: Transaction, correction: Correction, telling: Telling = UNTOLD) -> Answer:
    """Give an item that was decided another label; see `Store.correct`."""
    review = _find(transaction, correction.tenant, correction.review_id)
    _check_choice(review, correction.label)
    if review.state is not ReviewState.DECIDED or review.panel.purpose is not Purpose.DECIDE:
        raise Conflict(f"review {review.id} is {review.state}; only the decision about an answer can be corrected")
    if review.reviewer != correction.reviewer and not correction.of_anybody:
        raise PermissionDenied(
            f"review {review.id} was decided by somebody else; they can correct it, and so can an operator"
        )
    if review.label == correction.label:
        return _answer_of(transaction, review)
    _check_kept(review)
    c = correction
    return _rule(transaction, review, Event.CORRECT, c.reviewer, c.label, c.reason, telling)


def undo(
    transaction: Transaction, tenant: str, review_id: str, reviewer: str, fence: int, telling: Telling = UNTOLD
) -> Review:
    """Take one's own decision back; see `Store.undo`."""
    review = _find(transaction, tenant, review_id)
    if (review.state, review.reviewer, review.fence) == (ReviewState.CLAIMED, reviewer, fence + 1):
        return review  # it was taken back before
    if (review.state, review.reviewer, review.fence) != (ReviewState.DECIDED, reviewer, fence):
        raise Conflict(f"review {review_id} was not decided by {reviewer!r} under this claim; read it again")
    _check_kept(review)
    decision = _revocable(transaction, review, telling) if review.panel.purpose is Purpose.DECIDE else None
    opinions.take_back(transaction, review, reviewer, telling.after_s)
    expires_s = review.task.expires_s
    if expires_s is not None:  # not before it can be decided anew
        expires_s = max(expires_s, transaction.now_s + UNDO_LEASE_S)
    claim = {
        "of_id": review.id,
        "new_fence": fence + 1,
        "new_until": transaction.now + UNDO_LEASE_S,
        "new_claimed_s": transaction.now_s,
        "new_owner": transaction.identity.slot,
        "new_expires_s": expires_s,
    }
    transaction.connection.execute(_UNDO, claim)
    _note_claim(transaction, review.id, fence + 1, reviewer)
    if decision is not None:
        _give_back(transaction, review, reviewer, decision, telling)
    return _read_again(transaction, review)


def _give_back(transaction: Transaction, review: Review, reviewer: str, decision: RowMapping, telling: Telling) -> None:
    """Make the item of *review* what it was before *decision*, which was *reviewer*'s."""
    person, item = f"person:{reviewer}", review.task.item
    before = {name: decision[f"was_{name}"] for name in ("status", "label", "confidence", "decided_by")}
    given_back = {} if decision["was_outputs"] is None else {"outputs": decision["was_outputs"]}
    change = Change(Event.UNDO, (item,), before | given_back, person)
    changes.make(transaction, review.answer_id, change, telling)
    forget_feedback(transaction, review.answer_id, item, person)


def cancel(
    transaction: Transaction, tenant: str, answer_id: AnswerId, caller: str, telling: Telling = UNTOLD
) -> Answer:
    """Ask nobody about the answer any more; see `Store.cancel`."""
    mine = _C.answer_id == answer_id, _C.tenant == tenant, _C.purpose == Purpose.DECIDE.value
    waiting = select(_C.id, _C.item).where(*mine, IS_UNDECIDED)
    found = transaction.connection.execute(waiting.order_by(_C.id).with_for_update()).all()
    if found:
        ids, items = [row.id for row in found], tuple(row.item for row in found)
        change = Change(Event.CANCEL, items, {"status": ReviewState.CANCELLED.value}, f"caller:{caller}")
        return give_up(transaction, answer_id, ids, change, telling)
    answer = read_answer(transaction.connection, tenant, answer_id)
    if answer is None:
        raise NotFound(f"answer {answer_id!r} is unknown, or no longer kept")
    return answer


def expire(transaction: Transaction, telling: Telling = UNTOLD) -> list[AnswerId]:
    """Let a batch of reviews expire whose time is over; the answers of these, once for each."""
    over = select(_C.id, _C.answer_id, _C.item).where(
        IS_UNDECIDED, _C.expires_s.is_not(None), _C.purpose == Purpose.DECIDE.value
    )
    due = over.where(_C.expires_s <= transaction.now_s).order_by(_C.expires_s, _C.id).limit(_EXPIRE_BATCH)
    by_answer: dict[AnswerId, list[tuple[str, int]]] = {}
    for row in transaction.connection.execute(due.with_for_update(skip_locked=True)):
        by_answer.setdefault(AnswerId(row.answer_id), []).append((row.id, row.item))
    for answer_id, found in sorted(by_answer.items()):  # in the order in which all lock them
        items = tuple(item for _, item in found)
        change = Change(Event.EXPIRE, items, {"status": ReviewState.EXPIRED.value})
        give_up(transaction, answer_id, [review_id for review_id, _ in found], change, telling)
    return [answer_id for answer_id, found in by_answer.items() for _ in found]


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
        .where(IS_UNDECIDED)
        .group_by(_C.queue),
    )
    depths = dict.fromkeys(
        connection.execute(select(QUEUES.c.name).order_by(QUEUES.c.name)).scalars(), QueueDepth(0, 0, None)
    )
    return depths | {row.queue: QueueDepth(row.open, row.undecided - row.open, row.oldest_s) for row in waiting}


def queue_work(
    connection: Connection, now: float, now_s: float, tenant: str, scope: Scope = EVERYTHING
) -> dict[str, QueueWork]:
    """What *tenant* has undecided, by queue; see `InboxStore.queue_work`."""
    undecided = (
        select(
            _C.queue,
            func.count().filter(_in_state(ReviewState.CLAIMED, now)).label("claimed"),
            func.count().label("all"),
            func.count().filter(_C.due_s < now_s).label("overdue"),
            func.min(_C.created_s).label("oldest_s"),
            func.min(_C.due_s).label("due_s"),
        )
        .where(_C.tenant == tenant, IS_UNDECIDED, *_within(connection, scope))
        .group_by(_C.queue)
    )
    return {
        row.queue: QueueWork(row.all - row.claimed, row.claimed, row.overdue, row.oldest_s, row.due_s)
        for row in connection.execute(undecided)
    }


def reopen_expired(transaction: Transaction) -> int:
    """Reopen reviews whose lease has run out; how many there were."""
    return transaction.connection.execute(_REOPEN.where(_CLAIMED, _C.lease_until_s <= transaction.now)).rowcount


def reopen_of(connection: Connection, owner: int) -> int:
    """Reopen the reviews whose lease the dead process *owner* gave; how many there were."""
    return connection.execute(_REOPEN.where(_CLAIMED, _C.owner == owner)).rowcount


def _rule(
    transaction: Transaction,
    review: Review,
    event: Event,
    reviewer: str,
    label: str,
    reason: str | None,
    telling: Telling,
) -> Answer:
    """The answer after *reviewer* gave the item of *review* its *label*."""
    answer, index = _answer_of(transaction, review), review.task.item
    item = answer.decided(index, label, reviewer).items[index]
    if event is Event.DECIDE:
        opinions.close(transaction, review, reviewer, label)
    else:  # it was decided when it was: that it is corrected now is a revision's to tell
        corrected = {"of_id": review.id, "new_reviewer": reviewer, "new_label": label}
        transaction.connection.execute(_CORRECT, corrected)
    values: dict[str, object] = {
        "status": item.status.value,
        "label": label,
        "confidence": item.confidence,
        "decided_by": item.decided_by,
    }
    # A decision keeps the model's outputs or takes them away; it never makes new ones.
    gone = {"outputs": None} if item.outputs is None else {}
    person = f"person:{reviewer}"
    held_s = review.held_s(transaction.now_s) if event is Event.DECIDE else None
    change = Change(event, (index,), values | gone, person, label, reason, held_s)
    changed = changes.make(transaction, answer.id, change, telling)
    add_feedback(transaction, Feedback(answer.tenant, answer.id, index, label, person), answer.route)
    return changed


def _revocable(transaction: Transaction, review: Review, telling: Telling) -> RowMapping:
    """The decision about *review*, as a change that can be taken back.

    Raises:
        Conflict: it cannot, and why.
    """
    last = changes.last_of(transaction.connection, review.answer_id, review.task.item)
    if last is not None and last["event"] != Event.DECIDE:
        raise Conflict(f"review {review.id} was corrected since it was decided; correct it instead")
    if last is None or transaction.now_s - last["at_s"] >= telling.after_s:
        raise Conflict(f"a decision can be taken back for {telling.after_s:g} s, which are over; correct it instead")
    if any(item.status in GIVEN_UP for item in _answer_of(transaction, review).items):
        raise Conflict(f"the rest of answer {review.answer_id} was given up since; correct the decision instead")
    return last


def give_up(
    transaction: Transaction, answer_id: AnswerId, ids: Sequence[str], change: Change, telling: Telling
) -> Answer:
    """The answer after the reviews *ids* of it ended without a decision."""
    over = update(REVIEWS).where(_C.id.in_(ids)).values(**_OPENED | {"state": change.values["status"]})
    transaction.connection.execute(over)
    return changes.make(transaction, answer_id, change, telling)


def _check_choice(review: Review, label: str) -> None:
    check_label(label)
    if review.task.labels and label not in review.task.labels:
        raise InvalidInput(f"label {label!r} is not a choice of this review; one of {list(review.task.labels)} is")


def _check_kept(review: Review) -> None:
    if review.task.is_forgotten:
        raise Conflict(f"what review {review.id} was about is not kept any more, so its decision stays as it is")


def _check_undecided(review: Review) -> None:
    if not review.state.is_undecided:
        raise Conflict(f"review {review.id} is {review.state}")


def _check_stays(review: Review) -> None:
    if review.recalled and review.state is ReviewState.OPEN:
        raise Conflict(f"review {review.id} is due, and moves on to another queue in a moment; look for it there")


def _answer_of(transaction: Transaction, review: Review) -> Answer:
    answer = read_answer(transaction.connection, review.tenant, review.answer_id)
    assert answer is not None, f"review {review.id} has no answer. This is a bug."
    return answer


def _grant(transaction: Transaction, review: Review, reviewer: str, lease_s: float) -> Review:
    is_held = review.state is ReviewState.CLAIMED
    fence = review.fence if is_held else review.fence + 1
    connection, until = transaction.connection, transaction.now + lease_s
    values = {"new_reviewer": reviewer, "new_fence": fence, "new_until": until, "new_owner": transaction.identity.slot}
    if not (is_held and review.recalled):
        connection.execute(_GRANT, values | {"of_id": review.id, "new_claimed_s": transaction.now_s})
    if fence != review.fence:
        _note_claim(transaction, review.id, fence, reviewer)
    return _read_again(transaction, review)


def _note_claim(transaction: Transaction, review_id: str, fence: int, reviewer: str) -> None:
    insert_rows(transaction.connection, REVIEW_CLAIMS, [(review_id, fence, reviewer, transaction.now_s, None)])


def _read_again(transaction: Transaction, review: Review) -> Review:
    found = read_review(transaction.connection, transaction.now, review.tenant, review.id)
    assert found is not None
    return found


def _find(transaction: Transaction, tenant: str, review_id: str) -> Review:
    """The review, locked; locks of answers come after those of their reviews."""
    row = transaction.connection.execute(_one(tenant, review_id).with_for_update()).mappings().first()
    if row is None:
        raise NotFound(f"review {review_id!r} is unknown, or no longer kept")
    return _review(row, transaction.now)


def _one(tenant: str, review_id: str) -> Select[tuple[object, ...]]:
    return select(REVIEWS).where(_C.id == review_id, _C.tenant == tenant)


def _within(connection: Connection, scope: Scope) -> list[ColumnElement[bool]]:
    """What reviews must be that *scope* admits."""
    conditions: list[ColumnElement[bool]] = []
    if scope.queues is not None:
        conditions.append(_C.queue.in_(sorted(scope.queues)))
    if scope.barred:
        conditions.append(_C.queue.not_in(sorted(scope.barred)))
    if scope.skills is not None:
        known = connection.execute(select(SKILL_SETS.c.skills)).scalars().all()
        lacking = [skills for skills in known if scope.lacking(codec.decode_labels(skills))]
        if lacking:
            conditions.append(_C.skills.not_in(lacking))
    return conditions


def _in_state(state: ReviewState, now: float) -> ColumnElement[bool]:
    if state is ReviewState.OPEN:
        return and_(IS_UNDECIDED, or_(_C.state == ReviewState.OPEN.value, _C.lease_until_s <= now))
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
            expires_s=row["expires_s"],
            priority=row["priority"],
            skills=codec.decode_labels(row["skills"]),
        ),
        escalations=row["escalations"],
        recalled=row["recalled"],
        overdue_s=row["overdue_s"],
        panel=opinions.panel_of(row),
        claimed_s=row["claimed_s"] if state is ReviewState.CLAIMED else None,
    )


_IS_OF_REVIEW = and_(DECISION_LOG.c.answer_id == _C.answer_id, DECISION_LOG.c.item == _C.item)
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
        claimed_s=case(
            (_C.fence == bindparam("new_fence"), _C.claimed_s), else_=bindparam("new_claimed_s", type_=Double)
        ),
    )
)
_RETURN = (
    update(REVIEW_CLAIMS)
    .where(REVIEW_CLAIMS.c.review_id == bindparam("of_id"), REVIEW_CLAIMS.c.fence == bindparam("of_fence"))
    .values(returned_s=bindparam("now_s"))
)
_CORRECT = (
    update(REVIEWS)
    .where(_C.id == bindparam("of_id"))
    .values(reviewer=bindparam("new_reviewer"), label=bindparam("new_label"))
)
_UNDO = (
    update(REVIEWS)
    .where(_C.id == bindparam("of_id"))
    .values(
        state=ReviewState.CLAIMED.value,
        fence=bindparam("new_fence"),
        owner=bindparam("new_owner"),
        lease_until_s=bindparam("new_until"),
        label=None,
        claimed_s=bindparam("new_claimed_s"),
        decided_s=None,
        expires_s=bindparam("new_expires_s"),
    )
)
