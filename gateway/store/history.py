"""The way that an item took, put together from what the tables have of it.

The decision log and feedback have it for good; who claimed the review and when goes with the review, and what webhooks
were told goes when messages are forgotten.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from gateway.store import audit, outbox
from gateway.store.answers import read_answer
from gateway.store.contract import Claim, ReviewHistory, Statement
from gateway.store.reviews import read_listed
from gateway.store.schema import FEEDBACK, REVIEW_CLAIMS, REVIEWS


def read_history(connection: Connection, now: float, tenant: str, review_id: str) -> ReviewHistory | None:
    """The way of the item of *review_id*; see `InboxStore.history`."""
    review = read_listed(connection, now, tenant, review_id)
    if review is None:
        return None
    answer = read_answer(connection, tenant, review.answer_id)  # None of what was made for people alone
    return ReviewHistory(
        review=review,
        requested_s=review.created_s if answer is None else answer.created_s,
        trail=() if answer is None else answer.items[review.task.item].trail,
        log=tuple(audit.rows_of_item(connection, review.answer_id, review.task.item)),
        decided_s=connection.execute(select(REVIEWS.c.decided_s).where(REVIEWS.c.id == review_id)).scalar(),
        claims=_claims(connection, review.id),
        statements=_statements(connection, review.answer_id, review.task.item),
        deliveries=tuple(outbox.about(connection, review.answer_id)),
    )


def _claims(connection: Connection, review_id: str) -> tuple[Claim, ...]:
    c = REVIEW_CLAIMS.c
    rows = connection.execute(select(REVIEW_CLAIMS).where(c.review_id == review_id).order_by(c.fence))
    return tuple(Claim(row.fence, row.reviewer, row.at_s, row.returned_s) for row in rows)


def _statements(connection: Connection, answer_id: str, item: int) -> tuple[Statement, ...]:
    c = FEEDBACK.c
    rows = connection.execute(select(FEEDBACK).where(c.answer_id == answer_id, c.item == item).order_by(c.at_s))
    return tuple(Statement(row.source, row.label, row.at_s) for row in rows)
