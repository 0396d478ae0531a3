"""What reviewers are told of: reviews that are new, and such that are due, in one message for many.

A review that was told of is marked, by rule and kind, in the transaction that makes the message; marks go with their
review. So nothing depends on the order in which processes commit, or on clocks: what is not marked, and not decided
yet, is told of with the next message. A rule's next message waits until its round comes; whoever moves the round on
makes it.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from gateway.store import outbox
from gateway.store.bulk import insert_rows
from gateway.store.contract import Message, Notice, NoticeKind, NoticeRule
from gateway.store.schema import IS_UNDECIDED, NOTICE_ROUNDS, REVIEW_NOTICES, REVIEWS
from gateway.store.transaction import Transaction

_C = REVIEWS.c
_ROUND = NOTICE_ROUNDS.c


def is_news(connection: Connection, rule: NoticeRule, now_s: float) -> bool:
    """Whether *rule* has something to tell at a Unix time in seconds, and its round has come."""
    next_s = connection.execute(select(_ROUND.next_s).where(_ROUND.rule == rule.id)).scalar()
    if next_s is not None and next_s > now_s:
        return False
    return any(
        connection.execute(select(_C.id).where(_untold(rule, kind, now_s)).limit(1)).first() is not None
        for kind in sorted(rule.kinds)
    )


def tell(transaction: Transaction, rule: NoticeRule, make: Callable[[Notice, float], Message]) -> bool:
    """Have what *make* makes of *rule*'s news delivered; False where there are none, or its round has not come."""
    connection, now_s = transaction.connection, transaction.now_s
    if not is_news(connection, rule, now_s) or not _moves_on(connection, rule, now_s):
        return False
    told = {kind: _mark(connection, rule, kind, now_s) for kind in rule.kinds}
    waiting = select(func.count(), func.min(_C.due_s)).where(_queued(rule))
    count, first_due_s = connection.execute(waiting).one()
    notice = Notice(rule, told.get(NoticeKind.NEW, 0), told.get(NoticeKind.DUE, 0), count, first_due_s)
    outbox.put(transaction, rule.tenant, "", [make(notice, now_s)])
    return True


def _moves_on(connection: Connection, rule: NoticeRule, now_s: float) -> bool:
    """Move the round of *rule* on; False where somebody else has."""
    mine = _ROUND.rule == rule.id
    next_s = now_s + rule.every_s
    if connection.execute(update(NOTICE_ROUNDS).where(mine, _ROUND.next_s <= now_s).values(next_s=next_s)).rowcount:
        return True
    if connection.execute(select(_ROUND.rule).where(mine)).first() is not None:
        return False
    insert_rows(connection, NOTICE_ROUNDS, [(rule.id, next_s)])
    return True


def _mark(connection: Connection, rule: NoticeRule, kind: NoticeKind, now_s: float) -> int:
    """Mark what *rule* has not told of yet; how many reviews that are."""
    untold = select(_C.id, literal(rule.id), literal(kind.value)).where(_untold(rule, kind, now_s))
    marked = insert(REVIEW_NOTICES).from_select(["review_id", "rule", "kind"], untold)
    return connection.execute(marked, execution_options={"preserve_rowcount": True}).rowcount


def _untold(rule: NoticeRule, kind: NoticeKind, now_s: float) -> ColumnElement[bool]:
    marks = REVIEW_NOTICES.c
    told = exists().where(marks.review_id == _C.id, marks.rule == rule.id, marks.kind == kind.value)
    is_meant = _C.due_s <= now_s + rule.ahead_s if kind is NoticeKind.DUE else true()
    return and_(_queued(rule), is_meant, ~told)


def _queued(rule: NoticeRule) -> ColumnElement[bool]:
    return and_(IS_UNDECIDED, _C.tenant == rule.tenant, _C.queue == rule.queue)
