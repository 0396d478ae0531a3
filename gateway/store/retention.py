"""What is forgotten, when, and what happens as the disk limit comes near.

**By age.** An answer that nothing is undecided about for `retention_s` is purged: its items, outputs, reviews and
payloads with it. It stays as long as an idempotency key leads to it (24 hours from final). Open answers are never
purged.

**What stays** of a purged answer: its rows in the decision log (labels, confidences, what each stage said, digests) and
its feedback. They hold no input and no output. Log rows older than `retention_s` go when space is needed, oldest first,
each chain from its start; younger ones never do. Feedback is small and stays. Certificates stay too, a few KB each, and
are taken at any size: while the log has an answer, the proof that it was accepted by can be found.

**By size.** The size is that of the pages in use and the write-ahead log.

    from 80 %    the oldest closed answers are purged early, then old log rows, until below 70 %; a warning is logged
    from 90 %    deferrals are refused: nobody is asked what could not be kept
    from 100 %   nothing new is recorded: a decision that cannot be recorded is not made

What people decide about open reviews is always taken: it is what lets answers be closed, and purged.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, update

from gateway.store.schema import ANSWERS, DECISION_LOG, IDEMPOTENCY_KEYS, WRITERS
from gateway.store.transaction import Transaction

BATCH = 256
"""Answers that one transaction purges, so that others are not held up."""

LOG_BATCH = 2048
"""Log rows that one transaction prunes."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Sizes in bytes at which something changes."""

    purge_to: int
    purge_from: int
    refuse_deferrals: int
    refuse_all: int

    @classmethod
    def of(cls, limit_bytes: int) -> Watermarks:
        """The shares of *limit_bytes* that this module's docstring tells."""
        return cls(*(int(limit_bytes * share) for share in (0.70, 0.80, 0.90, 1.0)))


def purge_aged(transaction: Transaction, retention_s: float) -> int:
    """Purge a batch of answers that are older than *retention_s* and that no key leads to; how many."""
    k = IDEMPOTENCY_KEYS.c
    kept_by_key = exists().where(
        k.answer_id == ANSWERS.c.id, or_(k.expires_s.is_(None), k.expires_s > transaction.now_s)
    )
    return _purge(transaction, and_(ANSWERS.c.closed_s <= transaction.now_s - retention_s, ~kept_by_key))


def purge_oldest(transaction: Transaction) -> int:
    """Purge a batch of the answers that were closed first; how many."""
    return _purge(transaction, ANSWERS.c.closed_s.is_not(None))


def forget_keys(transaction: Transaction) -> int:
    """Forget keys whose time is over; how many."""
    over = IDEMPOTENCY_KEYS.c.expires_s <= transaction.now_s
    in_use = and_(IDEMPOTENCY_KEYS.c.state == "in_progress", IDEMPOTENCY_KEYS.c.lease_until_s > transaction.now)
    return transaction.connection.execute(delete(IDEMPOTENCY_KEYS).where(over, ~in_use)).rowcount


def prune_log(transaction: Transaction, retention_s: float) -> int:
    """Remove a batch of log rows older than *retention_s* from the start of each chain; how many."""
    return sum(
        _prune_chain(transaction.connection, slot, transaction.now_s - retention_s)
        for slot in transaction.connection.execute(select(WRITERS.c.slot)).scalars().all()
    )


def _purge(transaction: Transaction, which: ColumnElement[bool]) -> int:
    oldest = select(ANSWERS.c.id).where(which).order_by(ANSWERS.c.closed_s).limit(BATCH)
    return transaction.connection.execute(delete(ANSWERS).where(ANSWERS.c.id.in_(oldest))).rowcount


def _prune_chain(connection: Connection, slot: int, before_s: float) -> int:
    log = DECISION_LOG.c
    # A chain can only be cut at its start: up to the first row that is still young.
    start = select(log.seq, log.at_s).where(log.chain == slot).order_by(log.seq).limit(LOG_BATCH).subquery()
    young = connection.execute(select(func.min(start.c.seq)).where(start.c.at_s > before_s)).scalar()
    end = connection.execute(select(func.max(start.c.seq))).scalar() if young is None else young - 1
    last = connection.execute(select(log.seq, log.hash).where(log.chain == slot, log.seq == end)).first()
    if last is None:
        return 0
    pruned = connection.execute(delete(DECISION_LOG).where(log.chain == slot, log.seq <= last.seq)).rowcount
    connection.execute(update(WRITERS).where(WRITERS.c.slot == slot).values(base_seq=last.seq, base_hash=last.hash))
    return pruned
