"""Gold items: items whose true label is known, put beside real ones to see how often people are right.

**How they look.** Like any other: a review of the task's queue, with its due time, route and choices, on an answer of
its own that can be read as others can. An item that came without proposals is asked blindly, as second opinions are.

**What they never do.** That answer is nobody's: no caller has its id, no log row, feedback or message tells of it, so
that no certificate, no webhook and no audit meets it. It goes with its review.

**Erased.** An item is a copy of somebody's input, most often: it goes with that (`gateway.store.erasure`).

**Which, and when.** Beside each task of a route with a `gold` share one is drawn by the store's secret; then it is the
item of the queue that was asked least, of those that nobody is being asked. Nobody is asked about an item twice, so one
that everybody knows waits until it is due, and is taken back then.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, exists, func, select, text, update

from gateway.answer import Answer, Status, new_answer_id
from gateway.store import codec, draws
from gateway.store.asking import new_review
from gateway.store.bulk import Existing, Row, Value, insert_rows
from gateway.store.contract import (
    GoldCount,
    GoldItem,
    Known,
    OpinionKind,
    Purpose,
    Review,
    ReviewState,
    ReviewTask,
    SecondOpinion,
)
from gateway.store.schema import ANSWER_ITEMS, ANSWERS, GOLD_ITEMS, GOLD_WAITING, OPINIONS, REVIEWS
from gateway.store.transaction import Transaction

_G = GOLD_ITEMS.c


def add(transaction: Transaction, items: Sequence[GoldItem]) -> int:
    """Keep *items*; see `Store.add_gold`."""
    rows = {_id_of(item): _row(item, transaction.now_s) for item in items}
    known = {
        row.id: row.asked
        for row in transaction.connection.execute(select(_G.id, _G.asked).where(_G.id.in_(list(rows))))
    }
    insert_rows(
        transaction.connection,
        GOLD_ITEMS,
        [(gold_id, *row[:3], known.get(gold_id, 0), *row[3:]) for gold_id, row in rows.items()],
        Existing.REPLACED,
    )
    return len(rows) - len(known)


def remove(connection: Connection, tenant: str, queue: str) -> int:
    """Forget the items of *queue*; see `Store.remove_gold`."""
    of_queue = _G.tenant == tenant, _G.queue == queue
    _take_back(connection, REVIEWS.c.subject.in_(select(_G.id).where(*of_queue)))
    return connection.execute(delete(GOLD_ITEMS).where(*of_queue)).rowcount


@dataclass(frozen=True, slots=True)
class Removed:
    """How many items are removed, and how many reviews that asked about them were undecided."""

    items: int
    undecided: int


def ids_of(connection: Connection, tenant: str) -> list[str]:
    """The items of *tenant*, in every queue."""
    return list(connection.execute(select(_G.id).where(_G.tenant == tenant).order_by(_G.id)).scalars())


def erase(connection: Connection, ids: Sequence[str], known: Known) -> Removed:
    """Forget the items *ids*, whoever holds one, with all reviews of them, and labels that are no choice.

    Those reviews are looked for among all there are: it is rare that there is anything to erase here.
    """
    # Nobody is asked anew meanwhile: that locks an item, too.
    connection.execute(select(_G.id).where(_G.id.in_(ids)).order_by(_G.id).with_for_update()).all()
    r = REVIEWS.c
    of_items = r.purpose == Purpose.GOLD.value, r.subject.in_(ids)
    asked = select(r.subject, r.state, r.labels).where(*of_items).order_by(r.id).with_for_update()
    undecided, choices = 0, defaultdict[str, set[str]](set)
    for row in connection.execute(asked):
        undecided += ReviewState(row.state).is_undecided
        choices[row.subject].update(codec.decode_labels(row.labels))
    connection.execute(delete(ANSWERS).where(ANSWERS.c.id.in_(select(r.answer_id).where(*of_items))))
    for said in connection.execute(select(OPINIONS).where(OPINIONS.c.subject.in_(ids))).all():
        if not {said.label, said.truth} <= {*choices[said.subject], *known(said.route)}:
            its = OPINIONS.c.subject == said.subject, OPINIONS.c.reviewer == said.reviewer
            connection.execute(delete(OPINIONS).where(*its))
    return Removed(connection.execute(delete(GOLD_ITEMS).where(_G.id.in_(ids))).rowcount, undecided)


def counted(connection: Connection, tenant: str) -> dict[str, GoldCount]:
    """See `Store.gold`."""
    given = (
        select(OPINIONS.c.queue, func.count().label("labels"))
        .where(OPINIONS.c.tenant == tenant, OPINIONS.c.kind == OpinionKind.GOLD.value)
        .group_by(OPINIONS.c.queue)
    )
    labels = {row.queue: int(row.labels) for row in connection.execute(given)}
    there = select(_G.queue, func.count().label("items")).where(_G.tenant == tenant).group_by(_G.queue)
    rows = connection.execute(there.order_by(_G.queue))
    return {row.queue: GoldCount(row.items, labels.get(row.queue, 0)) for row in rows}


def weave(transaction: Transaction, secret: bytes, answer: Answer, tasks: Sequence[ReviewTask]) -> None:
    """Put gold items beside those of *tasks*, which are of *answer*, where they are drawn."""
    for task in tasks:
        if draws.wants_gold(secret, answer, task):
            found = _next(transaction.connection, answer.tenant, task)
            if found is not None:
                _ask(transaction, found, answer, task)


def take(transaction: Transaction, review: Review, reviewer: str, label: str, answer: Answer) -> Answer:
    """Compare what *reviewer* says with the known answer; *answer*, which is the item's own, as it is then."""
    connection, now_s = transaction.connection, transaction.now_s
    decided = answer.decided(review.task.item, label, reviewer)
    item = decided.items[review.task.item]
    final = {"status": item.status.value, "label": label, "confidence": item.confidence, "decided_by": item.decided_by}
    connection.execute(update(ANSWER_ITEMS).where(ANSWER_ITEMS.c.answer_id == answer.id).values(**final))
    gone = update(ANSWERS).where(ANSWERS.c.id == answer.id).values(revision=decided.revision, closed_s=now_s)
    connection.execute(gone)
    truth = connection.execute(select(_G.label).where(_G.id == review.panel.subject)).scalar()
    if truth is not None:  # nobody has removed it meanwhile
        about = (review.panel.subject, review.task.item, reviewer, None, OpinionKind.GOLD.value)
        place = (review.tenant, review.route, review.task.queue)
        insert_rows(connection, OPINIONS, [(*about, *place, label, truth, True, now_s)])
    return decided


def take_back(transaction: Transaction, review: Review) -> None:
    """Make the answer of *review*, whose label is taken back, what it was before: open, so that it is not purged."""
    connection = transaction.connection
    item = update(ANSWER_ITEMS).where(ANSWER_ITEMS.c.answer_id == review.answer_id)
    connection.execute(item.values(**_said_before(review.task)))
    opened = update(ANSWERS).where(ANSWERS.c.id == review.answer_id)
    connection.execute(opened.values(revision=ANSWERS.c.revision + 1, closed_s=None))


def take_back_overdue(transaction: Transaction) -> int:
    """Take back gold items that nobody has labelled in time; how many."""
    return _take_back(transaction.connection, REVIEWS.c.due_s <= transaction.now_s)


def _take_back(connection: Connection, which: ColumnElement[bool]) -> int:
    is_open = REVIEWS.c.state == ReviewState.OPEN.value
    waiting = select(REVIEWS.c.answer_id).where(text(GOLD_WAITING), is_open, which)
    # Locked, and looked at again by that: whoever has just taken one keeps it.
    ids = connection.execute(waiting.with_for_update(skip_locked=True)).scalars().all()
    return connection.execute(delete(ANSWERS).where(ANSWERS.c.id.in_(ids))).rowcount if ids else 0


def _next(connection: Connection, tenant: str, task: ReviewTask) -> RowMapping | None:
    """The item to be put beside *task*; None where there is none."""
    waits = exists().where(text(GOLD_WAITING), REVIEWS.c.subject == _G.id)
    fitting = select(GOLD_ITEMS).where(_G.tenant == tenant, _G.queue == task.queue, ~waits)
    if task.labels:
        fitting = fitting.where(_G.label.in_(task.labels))
    first = fitting.order_by(_G.asked, _G.id).limit(1).with_for_update(skip_locked=True)
    return connection.execute(first).mappings().first()


def _ask(transaction: Transaction, found: RowMapping, beside: Answer, task: ReviewTask) -> None:
    """Open a review of the gold item *found*, as one of *beside* and *task*."""
    now_s, connection = transaction.now_s, transaction.connection
    proposals = codec.decode_proposals(found["proposals"])
    shown = {"payload": found["payload"], "content_type": found["content_type"], "proposals": proposals}
    own, asked = replace(beside, id=new_answer_id(now_s)), replace(task, item=0, **shown)
    promise = (own.max_error, own.certified)
    answer: Row = (own.id, own.tenant, own.route, float(own.created_s), 1, *promise, None)
    said = _said_before(asked)
    before: Row = (said["status"], said["stage"], said["label"], said["confidence"], said["decided_by"])
    insert_rows(connection, ANSWERS, [answer])
    insert_rows(connection, ANSWER_ITEMS, [(own.id, 0, *before, task.reason.value, "[]", None)])
    panel: Row = (Purpose.GOLD.value, found["id"], 1, 1, None, False, not proposals, SecondOpinion.NONE.value)
    insert_rows(connection, REVIEWS, [new_review(own, asked, panel, now_s)])
    connection.execute(update(GOLD_ITEMS).where(_G.id == found["id"]).values(asked=_G.asked + 1))


def _said_before(task: ReviewTask) -> dict[str, Value]:
    """What the item of *task* is while nobody has labelled it: what the last model proposed."""
    last = next((proposal for proposal in reversed(task.proposals) if proposal.label is not None), None)
    if last is None:
        return {"status": Status.PENDING.value} | dict.fromkeys(("stage", "label", "confidence", "decided_by"))
    said = {"stage": last.stage, "label": last.label, "confidence": last.confidence}
    return {"status": Status.PROVISIONAL.value, **said, "decided_by": None}


def _row(item: GoldItem, now_s: float) -> Row:
    what = (item.content_type, codec.encode_proposals(item.proposals), item.payload)
    return (item.tenant, item.queue, item.label, now_s, *what)


def _id_of(item: GoldItem) -> str:
    parts = (item.tenant.encode(), item.queue.encode(), item.payload)
    told = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hashlib.sha256(told).hexdigest()[:32]
