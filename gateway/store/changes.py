"""Changes of answers after their first reply: each makes a revision, with all that goes with one, in one transaction.

    reviews: decide, correct, undo, cancel, expire
       └─> make: what the items were ─ what they are ─ the answer's number ─ its key ─ the log ─ messages

What an item was before is kept as long as its answer: a decision that is taken back gives it again, outputs included.

**Time.** A change is later than the one before it, even where the wall clock was set back meanwhile, or stands still:
the decision log, whose rows are in chains by writer, has no other order that holds over all of them.

Rejected: reading revisions from the decision log (it keeps no outputs to give back, and nobody can erase from it what
people write).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import (
    Connection,
    Double,
    Integer,
    LargeBinary,
    RowMapping,
    Text,
    cast,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    update,
)

from gateway.answer import Answer, AnswerId, ItemState, Revision, Status
from gateway.store import codec, keys, outbox
from gateway.store.answers import read_answer
from gateway.store.log import Event, LogEntry
from gateway.store.outbox import Telling
from gateway.store.schema import ANSWER_ITEMS, ANSWER_REVISIONS, ANSWERS, IS_UNDECIDED, REVIEWS
from gateway.store.transaction import Transaction

FIRST = "answer"
"""The event of an answer's first revision, as which it was told first."""

_A, _I, _R = ANSWERS.c, ANSWER_ITEMS.c, ANSWER_REVISIONS.c


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to items of one answer at once.

    Attributes:
        items: which; their reviews are as they will be.
        values: the columns of `answer_items` that become different; `outputs` only where they are taken away or given
            back.
        actor: `person:NAME` or `caller:NAME`; None where nobody did it.
        label: that a person gives them; None where none is given.
        reason: what a person says of it.
        held_s: seconds that they held the review; None where nobody did, or that does not matter.
    """

    event: Event
    items: tuple[int, ...]
    values: Mapping[str, object]
    actor: str | None = None
    label: str | None = None
    reason: str | None = None
    held_s: float | None = None


def make(transaction: Transaction, answer_id: AnswerId, change: Change, telling: Telling) -> Answer:
    """Make *change*; the answer as it is then. What *telling* says of an answer that is closed is told."""
    connection = transaction.connection
    before = connection.execute(_HEAD.where(_A.id == answer_id).with_for_update()).one()
    revision, at_s = before.revision + 1, later(transaction, answer_id)
    _remember(connection, answer_id, change, revision, at_s)
    changed = update(ANSWER_ITEMS).where(_I.answer_id == answer_id, _I.item.in_(change.items))
    connection.execute(changed.values(**change.values))
    decides = REVIEWS.c.purpose == literal_column("'decide'")
    undecided = select(REVIEWS.c.id).where(REVIEWS.c.answer_id == answer_id, decides, IS_UNDECIDED).limit(1)
    is_closed, was_closed = connection.execute(undecided).first() is None, before.closed_s is not None
    closed_s = (before.closed_s if was_closed else transaction.now_s) if is_closed else None
    connection.execute(update(ANSWERS).where(_A.id == answer_id).values(revision=revision, closed_s=closed_s))
    if is_closed and not was_closed:
        keys.close_answer(transaction, answer_id)
    elif was_closed and not is_closed:
        keys.reopen_answer(transaction, answer_id)
    transaction.append(
        [_logged(before.tenant, before.route, answer_id, item, change, at_s) for item in change.items],
    )
    answer = read_answer(connection, before.tenant, answer_id)
    assert answer is not None, f"answer {answer_id} has no items. This is a bug."
    if was_closed:
        outbox.withdraw(transaction, answer_id, telling)
    if is_closed:
        outbox.add(transaction, answer, telling)
    return answer


def last_of(connection: Connection, answer_id: AnswerId, item: int) -> RowMapping | None:
    """The last change of *item*, as a row of `answer_revisions`; None where there was none."""
    last = select(ANSWER_REVISIONS).where(_R.answer_id == answer_id, _R.item == item).order_by(_R.revision.desc())
    return connection.execute(last.limit(1)).mappings().first()


def read_revisions(connection: Connection, tenant: str, answer_id: AnswerId) -> list[Revision]:
    """Every revision of the answer, in order; nothing where *tenant* has no such answer."""
    head = connection.execute(_HEAD.where(_A.id == answer_id, _A.tenant == tenant)).first()
    if head is None:
        return []
    current = connection.execute(_STATES.where(_I.answer_id == answer_id)).mappings()
    states = {row["item"]: _state(row["item"], row) for row in current}
    changes = connection.execute(_CHANGES.where(_R.answer_id == answer_id)).mappings().all()
    found: list[Revision] = []
    # From the last back: what an item became by a change is what the next one found.
    for number, group in groupby(changes, key=lambda row: row["revision"]):
        rows = sorted(group, key=lambda row: row["item"])
        first = rows[0]
        became = tuple(states[row["item"]] for row in rows)
        found.append(Revision(number, first["at_s"], first["event"], first["actor"], first["reason"], became))
        states |= {row["item"]: _state(row["item"], row, "was_") for row in rows}
    found.append(Revision(1, head.created_s, FIRST, None, None, tuple(states[item] for item in sorted(states))))
    return found[::-1]


def first_revision(answer: Answer) -> Revision:
    """What *answer*, which nothing has changed, was told as."""
    items = enumerate(answer.items)
    states = [ItemState(i, item.status, item.label, item.confidence, item.decided_by) for i, item in items]
    return Revision(1, answer.created_s, FIRST, None, None, tuple(states))


def later(transaction: Transaction, answer_id: AnswerId) -> float:
    """Now, or the next moment after the answer's last change."""
    last = select(func.max(_R.at_s)).where(_R.answer_id == answer_id)
    last_s: float | None = transaction.connection.execute(last).scalar()
    if last_s is None or transaction.now_s > last_s:
        return transaction.now_s
    return math.nextafter(last_s, math.inf)


def _remember(connection: Connection, answer_id: AnswerId, change: Change, revision: int, at_s: float) -> None:
    """Keep what the items of *change* are before it, with one statement however many they are."""
    takes_outputs = change.values.get("outputs", b"") is None
    said = (
        literal(revision, Integer),
        literal(at_s, Double),
        *(literal(text, Text) for text in (change.event.value, change.actor, change.reason)),
    )
    were = (_I.status, _I.label, _I.confidence, _I.decided_by)
    outputs = _I.outputs if takes_outputs else cast(null(), LargeBinary)
    found = select(_I.answer_id, _I.item, *said, *were, outputs)
    connection.execute(
        insert(ANSWER_REVISIONS).from_select(
            [column.name for column in _R], found.where(_I.answer_id == answer_id, _I.item.in_(change.items))
        )
    )


def _logged(tenant: str, route: str, answer_id: AnswerId, item: int, change: Change, at_s: float) -> LogEntry:
    return LogEntry(
        at_s=at_s,
        tenant=tenant,
        answer_id=answer_id,
        item=item,
        route=route,
        event=change.event,
        actor=change.actor,
        label=change.label,
        confidence=None,
        reason=None,
        trail=codec.encode_work(change.held_s),
    )


def _state(item: int, row: RowMapping, prefix: str = "") -> ItemState:
    said = (row[f"{prefix}{name}"] for name in ("label", "confidence", "decided_by"))
    return ItemState(item, Status(row[f"{prefix}status"]), *said)


_HEAD = select(_A.tenant, _A.route, _A.created_s, _A.revision, _A.closed_s)
_STATES = select(_I.item, _I.status, _I.label, _I.confidence, _I.decided_by)
_CHANGES = select(*(column for column in _R if column is not _R.was_outputs)).order_by(_R.revision.desc())
