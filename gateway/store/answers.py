"""Answers between memory and rows: keeping them, reading them, and what turned out to be true of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, bindparam, select

from backends.contract import record
from backends.errors import InvalidInput, NotFound, PointsmanError
from gateway.answer import Answer, AnswerId, ItemAnswer, Status, new_answer_id
from gateway.store import codec, keys
from gateway.store.bulk import Row, insert_rows
from gateway.store.contract import RequestKey, ReviewState, ReviewTask
from gateway.store.log import Event, LogEntry
from gateway.store.schema import ANSWER_ITEMS, ANSWERS, FEEDBACK, QUEUES, REVIEWS
from gateway.store.transaction import Transaction
from router.contract import Reason


@record
class Commit:
    """An answer to keep, the people's tasks in it, and the key that it finishes."""

    answer: Answer
    tasks: Sequence[ReviewTask] = ()
    key: RequestKey | None = None
    fence: int = 0


@dataclass(slots=True)
class _Rows:
    """The rows of one commit, or of many."""

    answers: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    queues: set[Row] = field(default_factory=set)
    reviews: list[Row] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)

    def add(self, other: _Rows) -> None:
        self.answers += other.answers
        self.items += other.items
        self.queues |= other.queues
        self.reviews += other.reviews
        self.log += other.log


KEPT_BYTES = 64 * 1024
"""Outputs of a final item that are larger are not kept, unless a key may ask for them again, or a person for them now:
writing a tensor of 602 KB takes more than all that the gateway does for it otherwise. The log has their hash."""


def commit_answers(transaction: Transaction, commits: Sequence[Commit]) -> list[PointsmanError | None]:
    """Keep many answers with a constant number of statements; for each, None or why it was not kept.

    A commit that was kept before changes nothing, so that repeating one whose outcome is unknown is safe.
    """
    connection = transaction.connection
    known = set(connection.execute(_KNOWN, {"ids": [c.answer.id for c in commits]}).scalars())
    outcomes: list[PointsmanError | None] = [None] * len(commits)
    built: dict[int, _Rows] = {}
    for i, commit in enumerate(commits):
        try:
            built[i] = _Rows() if commit.answer.id in known else _rows(commit, transaction.now_s)
        except InvalidInput as error:
            outcomes[i] = error
    _finish_keys(transaction, {i: commits[i] for i in built if commits[i].key is not None}, outcomes)
    rows = _Rows()
    for i, one in built.items():
        if outcomes[i] is None:
            rows.add(one)
    insert_rows(connection, ANSWERS, rows.answers)
    insert_rows(connection, ANSWER_ITEMS, rows.items)
    insert_rows(connection, QUEUES, sorted(rows.queues), replace=True)
    insert_rows(connection, REVIEWS, rows.reviews)
    transaction.append(rows.log)
    return outcomes


def read_answer(connection: Connection, tenant: str, answer_id: AnswerId) -> Answer | None:
    """The answer as it is; None where *tenant* has no such answer."""
    found = connection.execute(_ANSWER, {"id": answer_id, "tenant": tenant}).mappings().all()
    if not found:
        return None
    first = found[0]
    items = tuple(_item(row) for row in found)
    promise = (first["max_error"], first["certified"])
    return Answer(answer_id, tenant, first["route"], first["created_s"], items, first["revision"], *promise)


def closed(connection: Connection, ids: Sequence[AnswerId]) -> list[AnswerId]:
    """Which of *ids* nothing is undecided about."""
    return [AnswerId(found) for found in connection.execute(_CLOSED, {"ids": ids}).scalars()]


@dataclass(frozen=True, slots=True)
class Feedback:
    """A label that turned out to be true of an item, and who says so."""

    tenant: str
    answer_id: AnswerId
    item: int
    label: str
    source: str


def add_feedback(transaction: Transaction, feedback: Feedback, route: str | None) -> None:
    """Keep *feedback*; the same source's last word on an item stands.

    Args:
        transaction: the writer's.
        feedback: what to keep.
        route: the answer's, where it is known to exist and to have the item; None: look.

    Raises:
        NotFound: the tenant has no such answer, or it no such item.
    """
    if route is None:
        found = read_answer(transaction.connection, feedback.tenant, feedback.answer_id)
        route = answered_route(found, feedback)
    f = feedback
    row: Row = (f.answer_id, f.item, f.source, f.tenant, route, f.label, transaction.now_s)
    insert_rows(transaction.connection, FEEDBACK, [row], replace=True)


def answered_route(answer: Answer | None, feedback: Feedback) -> str:
    """The route of *answer*, which *feedback* is about.

    Raises:
        NotFound: there is no answer, or it has no such item.
    """
    if answer is None or answer.tenant != feedback.tenant:
        raise NotFound(f"answer {feedback.answer_id!r} is unknown, or no longer kept")
    if not 0 <= feedback.item < len(answer.items):
        raise NotFound(f"answer {feedback.answer_id} has no item {feedback.item}; it has {len(answer.items)}, from 0")
    return answer.route


def check_label(label: str) -> None:
    """Refuse a label that not every database can keep.

    Raises:
        InvalidInput: it holds a NUL or a lone surrogate.
    """
    if "\0" in label or any("\ud800" <= character <= "\udfff" for character in label):
        raise InvalidInput("the label holds a NUL or half a surrogate pair; send text")


def _finish_keys(
    transaction: Transaction, commits: Mapping[int, Commit], outcomes: list[PointsmanError | None]
) -> None:
    finishes = [
        keys.Finish(c.key, c.fence, c.answer.id, None if c.tasks else transaction.now_s + keys.KEEP_S)
        for c in commits.values()
        if c.key is not None
    ]
    for i, outcome in zip(commits, keys.finish_with_answers(transaction, finishes), strict=True):
        outcomes[i] = outcome


def _rows(commit: Commit, now_s: float) -> _Rows:
    answer, tasks = commit.answer, {task.item: task for task in commit.tasks}
    if len(tasks) != len(commit.tasks) or not set(tasks) <= set(answer.open_items):
        raise ValueError(
            f"tasks are for items {[task.item for task in commit.tasks]}, open are {answer.open_items}. This is a bug.",
        )
    rows = _Rows()
    created_s = float(answer.created_s)
    closed_s = None if tasks else now_s
    promise = (_finite(answer.max_error), answer.certified)
    rows.answers.append((answer.id, answer.tenant, answer.route, created_s, answer.revision, *promise, closed_s))
    for i, item in enumerate(answer.items):
        trail = codec.encode_trail(item.trail)
        outputs = None if item.outputs is None else codec.encode_tensors(item.outputs)
        confidence = _finite(item.confidence)
        reason = None if item.reason is None else item.reason.value
        said = (item.status.value, item.stage, item.label, confidence, item.decided_by, reason)
        task = tasks.get(i)
        is_kept = outputs is None or len(outputs) <= KEPT_BYTES or task is not None or commit.key is not None
        rows.items.append((answer.id, i, *said, trail, outputs if is_kept else None))
        rows.log.append(
            LogEntry(
                at_s=created_s,
                tenant=answer.tenant,
                answer_id=answer.id,
                item=i,
                route=answer.route,
                event=Event.ACCEPT if task is None else Event.DEFER,
                actor=item.decided_by,
                label=item.label,
                confidence=confidence,
                reason=reason,
                trail=trail,
                outputs_sha256=None if outputs is None else hashlib.sha256(outputs).digest(),
                payload_sha256=None if task is None else hashlib.sha256(task.payload).digest(),
            ),
        )
        if task is not None:
            rows.queues.add((task.queue,))
            rows.reviews.append(_review(answer, task, now_s))
    return rows


def _review(answer: Answer, task: ReviewTask, now_s: float) -> Row:
    place = (answer.id, task.item, answer.tenant, answer.route, task.queue, float(task.due_s), now_s)
    state = (ReviewState.OPEN.value, 0, None, None, None, None)
    shown = (codec.encode_labels(task.labels), codec.encode_proposals(task.proposals), task.payload)
    return (new_answer_id(now_s), *place, *state, task.reason.value, task.content_type, *shown)


def _item(row: RowMapping) -> ItemAnswer:
    return ItemAnswer(
        status=Status(row["status"]),
        stage=row["stage"],
        label=row["label"],
        outputs=None if row["outputs"] is None else codec.decode_tensors(row["outputs"]),
        confidence=row["confidence"],
        decided_by=row["decided_by"],
        reason=None if row["reason"] is None else Reason(row["reason"]),
        trail=codec.decode_trail(row["trail"]),
    )


def _finite(number: float | None) -> float | None:
    """A float that every database gives back as it was: no NaN, no negative zero."""
    return None if number is None or not math.isfinite(number) else float(number) + 0.0


_KNOWN = select(ANSWERS.c.id).where(ANSWERS.c.id.in_(bindparam("ids", expanding=True)))
_CLOSED = _KNOWN.where(ANSWERS.c.closed_s.is_not(None))
_ANSWER = (
    select(*(ANSWERS.c[name] for name in ("route", "created_s", "revision", "max_error", "certified")), ANSWER_ITEMS)
    .join(ANSWER_ITEMS, ANSWER_ITEMS.c.answer_id == ANSWERS.c.id)
    .where(ANSWERS.c.id == bindparam("id"), ANSWERS.c.tenant == bindparam("tenant"))
    .order_by(ANSWER_ITEMS.c.item)
)
