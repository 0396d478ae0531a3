"""What is forgotten, when, and what happens as the disk limit comes near.

**By age**, each kind by itself (`gateway.store.options`):

    answers      with items, outputs and reviews, when nothing is undecided about them for `retention_s`; they stay as
                 long as an idempotency key leads to them, and open ones are never purged
    payloads     what people were shown, and what models proposed, of answers closed for `payloads_s`: the review stays,
                 but one that asks for a second opinion still, which goes
    keys         `keys_s` after their answer is final
    messages     `messages_s` after they were delivered, or are dead
    decisions    rows of the decision log older than `decisions_s`, each chain from its start
    feedback     callers' labels older than `feedback_s`
    opinions     when neither the answer nor a row of the log is left that could be about it; those on gold items by
                 their age alone
    subjects     likewise, and when no feedback and no opinion is left either, so that an erasure finds these

Second opinions keep no answer: one that nobody has given when it goes, or its payload does, is not asked for any more.

**What stays** of a purged answer: its rows in the decision log (labels, confidences, what each stage said, digests) and
its feedback. They hold no input and no output. Unless `decisions_s` is set, log rows go when space is needed, once they
are older than `retention_s`, oldest first; younger ones never do. Certificates stay for good, a few KB each, and are
taken at any size: while the log has an answer, the proof that it was accepted by can be found.

A row of the log that tells of an erasure stays a day longer than what is as old: it vouches for rows of other chains.

**By size.** SQLite's is that of the pages in use and the write-ahead log; what PostgreSQL's is tells
`gateway.store.postgres`.

    from 80 %    the oldest closed answers are purged early, then old log rows, until below 70 %; a warning is logged
    from 90 %    deferrals are refused: nobody is asked what could not be kept
    from 100 %   nothing new is recorded: a decision that cannot be recorded is not made

What people decide about open reviews is always taken, and so is what callers cancel: it is what lets answers be closed,
and purged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)

from gateway.store import opinions
from gateway.store.database import try_hold
from gateway.store.log import Event
from gateway.store.schema import (
    ANSWERS,
    DECISION_LOG,
    FEEDBACK,
    FORGOTTEN,
    HANDED_OVER,
    IDEMPOTENCY_KEYS,
    IS_UNDECIDED,
    OPINIONS,
    OVER,
    REVIEWS,
    SUBJECTS,
    WRITERS,
)
from gateway.store.transaction import Transaction

BATCH = 256
"""Answers that one transaction purges, so that others are not held up."""

LOG_BATCH = 2048
"""Log rows that one transaction prunes."""

_VOUCHES_S = 86_400.0


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


def give_up_seconds(transaction: Transaction, payloads_s: float) -> int:
    """Ask for a batch of second opinions no more whose answers were closed *payloads_s* ago; how many.

    One that somebody holds is left until they do not: they are looking at what would go.
    """
    before_s, reviews = transaction.now_s - payloads_s, REVIEWS.c
    is_old = exists().where(ANSWERS.c.id == reviews.answer_id, ANSWERS.c.closed_s <= before_s)
    of_second = reviews.purpose == literal_column("'second'")
    is_open = reviews.state == literal_column("'open'")
    old = select(reviews.id).where(IS_UNDECIDED, of_second, is_open, is_old).limit(BATCH)
    return opinions.ask_no_more(transaction.connection, and_(is_open, reviews.id.in_(old)))


def forget_payloads(transaction: Transaction, payloads_s: float) -> int:
    """Empty a batch of reviews whose answers were closed *payloads_s* ago; how many."""
    before_s = transaction.now_s - payloads_s
    reviews = REVIEWS.c
    old = (
        select(reviews.id)
        .join(ANSWERS, ANSWERS.c.id == reviews.answer_id)
        .where(text(OVER), reviews.created_s <= before_s, ANSWERS.c.closed_s <= before_s)
        .order_by(reviews.created_s)
        .limit(BATCH)
        .with_for_update(of=REVIEWS, skip_locked=True)
    )
    ids = transaction.connection.execute(old).scalars().all()
    if not ids:
        return 0
    return transaction.connection.execute(update(REVIEWS).where(reviews.id.in_(ids)).values(**EMPTIED)).rowcount


EMPTIED = {"payload": b"", "proposals": "[]", "content_type": FORGOTTEN}
"""What a review is without what was shown."""


def forget_feedback(transaction: Transaction, feedback_s: float) -> int:
    """Remove a batch of labels that callers gave *feedback_s* ago; how many."""
    said = FEEDBACK.c
    old = select(said.at_s).where(said.at_s <= transaction.now_s - feedback_s).order_by(said.at_s)
    last = transaction.connection.execute(old.offset(LOG_BATCH - 1).limit(1)).scalar()
    before_s = transaction.now_s - feedback_s if last is None else last
    return transaction.connection.execute(delete(FEEDBACK).where(said.at_s <= before_s)).rowcount


def forget_opinions(transaction: Transaction, after: str) -> tuple[int, str]:
    """Forget what people said of a batch of items of which nothing is left, as `forget_subjects`."""
    said, log = OPINIONS.c, DECISION_LOG.c
    is_logged = exists().where(log.answer_id == said.subject, log.item == said.item, text(HANDED_OVER))
    gone = and_(said.at_s < _log_start_s(transaction), ~is_logged)
    return _sweep(transaction, said.subject, after, gone)


def forget_subjects(transaction: Transaction, after: str) -> tuple[int, str]:
    """Forget whom a batch of answers was about of which nothing is left.

    Those that stay may be many, and stay for good; so a batch is of those that are looked at.

    Args:
        transaction: the writer's.
        after: the id behind which to look; "" from the start.

    Returns:
        How many were forgotten, and behind which id to look next.
    """
    subjects = SUBJECTS.c
    is_said = exists().where(FEEDBACK.c.answer_id == subjects.answer_id)
    is_judged = exists().where(OPINIONS.c.subject == subjects.answer_id)
    gone = and_(subjects.at_s < _log_start_s(transaction), ~is_said, ~is_judged)
    return _sweep(transaction, subjects.answer_id, after, gone)


def _log_start_s(transaction: Transaction) -> float:
    """Unix time before which no row of the log is left."""
    return min([transaction.now_s, *_starts_s(transaction.connection).values()])


def _sweep(transaction: Transaction, ids: Column[str], after: str, gone: ColumnElement[bool]) -> tuple[int, str]:
    """Delete those of a batch of rows that are *gone*, and whose answer, by its *ids*, is not kept any more."""
    connection = transaction.connection
    last = connection.execute(select(ids).where(ids > after).order_by(ids).offset(LOG_BATCH - 1).limit(1)).scalar()
    batch = ids > after if last is None else and_(ids > after, ids <= last)
    is_kept = exists().where(ANSWERS.c.id == ids)
    return connection.execute(delete(ids.table).where(batch, gone, ~is_kept)).rowcount, last or ""


def prune_log(transaction: Transaction, retention_s: float) -> int:
    """Remove a batch of log rows older than *retention_s* from the start of each chain; how many."""
    connection, before_s = transaction.connection, transaction.now_s - retention_s
    if not try_hold(connection, "prune"):
        return 0  # another process does
    slots = [slot for slot, start_s in _starts_s(connection).items() if start_s <= before_s]
    # In the order of time over all chains: no erasure goes before the rows that it vouches for.
    before_s = min([before_s, *(_batch_end_s(connection, slot) for slot in slots)])
    return sum(_prune_chain(connection, slot, before_s) for slot in slots)


def _purge(transaction: Transaction, which: ColumnElement[bool]) -> int:
    oldest = select(ANSWERS.c.id).where(which).order_by(ANSWERS.c.closed_s).limit(BATCH)
    # What is locked another process purges. Not as a subquery: that might be run again, and lock others.
    ids = transaction.connection.execute(oldest.with_for_update(skip_locked=True)).scalars().all()
    if not ids:
        return 0
    opinions.ask_no_more(transaction.connection, REVIEWS.c.answer_id.in_(ids))
    return transaction.connection.execute(delete(ANSWERS).where(ANSWERS.c.id.in_(ids))).rowcount


def _starts_s(connection: Connection) -> dict[int, float]:
    """When the first row of each chain that has one happened, by slot."""
    log = DECISION_LOG.c
    starts = {
        slot: connection.execute(select(log.at_s).where(log.chain == slot).order_by(log.seq).limit(1)).scalar()
        for slot in connection.execute(select(WRITERS.c.slot)).scalars().all()
    }
    return {slot: start_s for slot, start_s in starts.items() if start_s is not None}


def _aged_s() -> ColumnElement[float]:
    """When a row of the log happened, as pruning sees it."""
    log = DECISION_LOG.c
    return case((log.event == Event.ERASE.value, log.at_s + _VOUCHES_S), else_=log.at_s)


def _batch_end_s(connection: Connection, slot: int) -> float:
    """Of a chain that is longer than a batch, the time up to which one takes it; infinity of any other."""
    log = DECISION_LOG.c
    start = select(_aged_s().label("at_s")).where(log.chain == slot).order_by(log.seq).limit(LOG_BATCH).subquery()
    count, last_s = connection.execute(select(func.count(), func.max(start.c.at_s))).one()
    return float(last_s) if count == LOG_BATCH else math.inf


def _prune_chain(connection: Connection, slot: int, before_s: float) -> int:
    log = DECISION_LOG.c
    # A chain can only be cut at its start: up to the first row that is still young.
    start = (
        select(log.seq, _aged_s().label("at_s")).where(log.chain == slot).order_by(log.seq).limit(LOG_BATCH).subquery()
    )
    young = connection.execute(select(func.min(start.c.seq)).where(start.c.at_s > before_s)).scalar()
    end = connection.execute(select(func.max(start.c.seq))).scalar() if young is None else young - 1
    last = connection.execute(select(log.seq, log.hash).where(log.chain == slot, log.seq == end)).first()
    if last is None:
        return 0
    pruned = connection.execute(delete(DECISION_LOG).where(log.chain == slot, log.seq <= last.seq)).rowcount
    connection.execute(update(WRITERS).where(WRITERS.c.slot == slot).values(base_seq=last.seq, base_hash=last.hash))
    return pruned
