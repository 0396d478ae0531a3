"""Messages to be delivered: waiting → delivered, or → dead after the last attempt.

A message is committed in the transaction that makes what it tells, so neither is ever there without the other. It is
first due when the decision can no longer be taken back; one that nobody has taken yet is withdrawn when what it tells
is true no longer, and what was taken is followed by another, with the answer's next revision. Whoever
delivers takes it by moving its next attempt beyond the time that one may last: a process that dies meanwhile leaves it
to be taken again then. So it arrives once or more; its id stays, for receivers to see that they had it.

What was due for days and was taken by nobody is for a webhook, or for mailboxes, that are configured no more: it is
dead, so that it is told of, can be sent anew should they come back, and is forgotten in the end. Rejected: ending it
at once, as gateways whose configurations differ for a while share a store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, and_, delete, func, literal_column, select, update

from gateway.answer import Answer, AnswerId, new_answer_id
from gateway.store.bulk import Row, insert_rows
from gateway.store.contract import Delivery, Message, OutboxDepth, OutboxState
from gateway.store.schema import OUTBOX
from gateway.store.transaction import Transaction

_C = OUTBOX.c
_WAITING = _C.state == OutboxState.WAITING.value
_IS_WAITING = _C.state == literal_column("'waiting'")  # written out, for the index that says so

_BURIED_AT_ONCE = 1000

Announce = Callable[[Answer, float], Iterable[Message]]
"""What is to be told of an answer that was closed at a Unix time, in seconds."""


def announce_nothing(_answer: Answer, _now_s: float) -> Iterable[Message]:
    """Nobody is told."""
    return ()


@dataclass(frozen=True, slots=True)
class Telling:
    """How it is told that an answer was closed.

    Attributes:
        announce: what is told.
        after_s: seconds until it is, in which a decision can be taken back.
    """

    announce: Announce = announce_nothing
    after_s: float = 0.0


UNTOLD = Telling()
"""Nobody is told."""


def add(transaction: Transaction, answer: Answer, telling: Telling) -> None:
    """Have told that *answer* is closed."""
    messages = telling.announce(answer, transaction.now_s)
    put(transaction, answer.tenant, answer.id, messages, telling.after_s)


def add_anew(transaction: Transaction, answer: Answer, telling: Telling, states: Mapping[str, OutboxState]) -> None:
    """Have *answer* told in the place of messages that were deleted, by *states* of these: the webhooks of no others.

    Those in the place of dead ones are dead at once, and can be delivered as these could.
    """
    messages = [one for one in telling.announce(answer, transaction.now_s) if one.webhook in states]
    put(transaction, answer.tenant, answer.id, messages, telling.after_s)
    for message in messages:
        if states[message.webhook] is OutboxState.DEAD:
            end(transaction, message.id, OutboxState.DEAD, "not sent: the one that it stands for was dead")


def put(
    transaction: Transaction, tenant: str, answer_id: str, messages: Iterable[Message], after_s: float = 0.0
) -> None:
    """Have *messages* delivered, first in *after_s* seconds; *answer_id* is "" where they are about none."""
    now_s = transaction.now_s
    rows: list[Row] = [
        (
            message.id,
            message.webhook,
            tenant,
            answer_id,
            now_s,
            OutboxState.WAITING.value,
            0,
            now_s + after_s,
            "",
            None,
            message.body,
        )
        for message in messages
    ]
    insert_rows(transaction.connection, OUTBOX, rows)


def withdraw(transaction: Transaction, answer_id: AnswerId, telling: Telling) -> None:
    """Take back the messages about *answer_id* that nobody has taken yet: taking one makes it due later."""
    untaken = and_(_C.attempts == 0, _C.next_s <= _C.created_s + telling.after_s)
    transaction.connection.execute(delete(OUTBOX).where(_C.answer_id == answer_id, _IS_WAITING, untaken))


def new_message(webhook: str, now_s: float, body: Callable[[str], str]) -> Message:
    """A message for *webhook*, whose *body* is made of its id."""
    message_id = new_answer_id(now_s)
    return Message(message_id, webhook, body(message_id))


def take(transaction: Transaction, webhooks: Mapping[str, int], lasting_s: float) -> list[Delivery]:
    """Messages that are due, the oldest first: of each of *webhooks* as many as it says.

    Args:
        transaction: the writer's.
        webhooks: most messages to take, by name.
        lasting_s: seconds after which they are due again, unless they have ended.
    """
    taken: list[Delivery] = []
    for webhook, most in webhooks.items():
        due = select(OUTBOX).where(_WAITING, _C.webhook == webhook, _C.next_s <= transaction.now_s)
        oldest = due.order_by(_C.next_s, _C.id).limit(most).with_for_update(skip_locked=True)
        rows = transaction.connection.execute(oldest).mappings().all()
        taken += [_delivery(row) for row in rows]
    if taken:
        lent = update(OUTBOX).where(_C.id.in_([delivery.message.id for delivery in taken]))
        transaction.connection.execute(lent.values(next_s=transaction.now_s + lasting_s))
    return taken


def is_due(connection: Connection, webhooks: Sequence[str], now_s: float) -> bool:
    """Whether there is anything to take."""
    due = select(_C.id).where(_WAITING, _C.webhook.in_(webhooks), _C.next_s <= now_s).limit(1)
    return connection.execute(due).first() is not None


def end(transaction: Transaction, message_id: str, state: OutboxState, told: str) -> None:
    """*message_id* was delivered, or is dead; *told* is what its receiver said, or what went wrong."""
    ended = update(OUTBOX).where(_C.id == message_id, _WAITING)
    transaction.connection.execute(
        ended.values(state=state.value, attempts=_C.attempts + 1, last=told, ended_s=transaction.now_s)
    )


def postpone(transaction: Transaction, message_id: str, wait_s: float, told: str) -> None:
    """An attempt failed, and the next is to be made in *wait_s* seconds."""
    again = update(OUTBOX).where(_C.id == message_id, _WAITING)
    transaction.connection.execute(again.values(attempts=_C.attempts + 1, next_s=transaction.now_s + wait_s, last=told))


def bury(transaction: Transaction, webhooks: Collection[str], unclaimed_s: float, told: str) -> dict[str, int]:
    """See `Outbox.bury_messages`."""
    unclaimed = _C.webhook.not_in(webhooks), _C.next_s <= transaction.now_s - unclaimed_s
    found = select(_C.id, _C.webhook).where(_WAITING, *unclaimed).order_by(_C.next_s).limit(_BURIED_AT_ONCE)
    rows = transaction.connection.execute(found.with_for_update(skip_locked=True)).all()
    if rows:
        ended = update(OUTBOX).where(_C.id.in_([row.id for row in rows]))
        dead = {"state": OutboxState.DEAD.value, "last": told, "ended_s": transaction.now_s}
        transaction.connection.execute(ended.values(**dead))
    return dict(Counter(row.webhook for row in rows))


def depths(connection: Connection) -> dict[str, OutboxDepth]:
    """How many messages wait, and are dead, by webhook."""
    counted = select(
        _C.webhook,
        func.count().filter(_WAITING).label("waiting"),
        func.count().filter(_C.state == OutboxState.DEAD.value).label("dead"),
        func.min(_C.created_s).filter(_WAITING).label("oldest_s"),
    ).group_by(_C.webhook)
    undelivered = counted.where(_C.state != OutboxState.DELIVERED.value)
    return {row.webhook: OutboxDepth(row.waiting, row.dead, row.oldest_s) for row in connection.execute(undelivered)}


def listed(connection: Connection, state: OutboxState | None, limit: int) -> list[Delivery]:
    """The newest messages in *state*, all where it is None."""
    wanted = select(OUTBOX).order_by(_C.created_s.desc(), _C.id.desc()).limit(limit)
    if state is not None:
        wanted = wanted.where(_C.state == state.value)
    return [_delivery(row) for row in connection.execute(wanted).mappings()]


def about(connection: Connection, answer_id: AnswerId) -> list[Delivery]:
    """The messages about *answer_id*, oldest first."""
    wanted = select(OUTBOX).where(_C.answer_id == answer_id).order_by(_C.created_s, _C.id)
    return [_delivery(row) for row in connection.execute(wanted).mappings()]


def redeliver(connection: Connection, ids: Sequence[str] | None, now_s: float) -> int:
    """Have the messages *ids*, whatever became of them, or all that are dead, delivered anew; how many there are."""
    which = _C.state == OutboxState.DEAD.value if ids is None else _C.id.in_(ids)
    anew = {"state": OutboxState.WAITING.value, "attempts": 0, "next_s": now_s, "ended_s": None}
    return connection.execute(update(OUTBOX).where(which).values(**anew)).rowcount


def forget(transaction: Transaction, retention_s: float) -> int:
    """Remove messages that ended *retention_s* ago; how many."""
    over = _C.ended_s <= transaction.now_s - retention_s
    return transaction.connection.execute(delete(OUTBOX).where(over)).rowcount


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(
        message=Message(row["id"], row["webhook"], row["body"]),
        tenant=row["tenant"],
        answer_id=AnswerId(row["answer_id"]),
        created_s=row["created_s"],
        state=OutboxState(row["state"]),
        attempts=row["attempts"],
        next_s=row["next_s"],
        last=row["last"],
    )
