"""Answers between memory and rows: keeping them, reading them, and what turned out to be true of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, RowMapping, bindparam, delete, select, text

from backends.contract import Datatype, Ragged, record
from backends.errors import InvalidInput, NotFound, PointsmanError
from gateway.answer import Answer, AnswerId, ItemAnswer, Status
from gateway.store import codec, draws, gold, keys, opinions
from gateway.store.asking import new_review
from gateway.store.bulk import Existing, Row, found_among, insert_rows
from gateway.store.contract import RequestKey, ReviewTask
from gateway.store.key import StoreKey
from gateway.store.log import Event, LogEntry
from gateway.store.schema import (
    ANSWER_ITEMS,
    ANSWERS,
    DECISION_LOG,
    FEEDBACK,
    HANDED_OVER,
    OBSERVED,
    QUEUES,
    REVIEWS,
    SKILL_SETS,
    SUBJECTS,
)
from gateway.store.transaction import Transaction
from router.contract import Reason


@record
class Commit:
    """An answer to keep, the people's tasks in it, the key that it finishes, and what its inputs are digested with.

    Attributes:
        digests: of its inputs, where these are not in the answer any more.
    """

    answer: Answer
    tasks: Sequence[ReviewTask] = ()
    key: RequestKey | None = None
    fence: int = 0
    store_key: StoreKey | None = None
    digests: tuple[bytes | None, ...] = ()


@dataclass(slots=True)
class _Rows:
    """The rows of many commits."""

    answers: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    queues: set[Row] = field(default_factory=set)
    skill_sets: set[Row] = field(default_factory=set)
    reviews: list[Row] = field(default_factory=list)
    subjects: list[Row] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)


KEPT_BYTES = 64 * 1024
"""Outputs of a final item that are larger are not kept, unless a key may ask for them again, or a person for them now:
writing a tensor of 602 KB takes more than all that the gateway does for it otherwise. The log has their hash."""


def commit_answers(transaction: Transaction, commits: Sequence[Commit]) -> list[PointsmanError | None]:
    """Keep many answers with a constant number of statements; for each, None or why it was not kept.

    A commit that was kept before changes nothing, so that repeating one whose outcome is unknown is safe.
    """
    connection = transaction.connection
    known = found_among(connection, ANSWERS.c.id, [c.answer.id for c in commits])
    outcomes: list[PointsmanError | None] = [None] * len(commits)
    encoded: dict[int, list[bytes | None]] = {}
    for i, commit in enumerate(commits):
        try:
            encoded[i] = [] if commit.answer.id in known else _outputs(commit.answer)
        except InvalidInput as error:
            outcomes[i] = error
    _finish_keys(transaction, {i: commits[i] for i in encoded if commits[i].key is not None}, outcomes)
    rows = _Rows()
    kept = [i for i, outputs in encoded.items() if outcomes[i] is None and outputs]
    secret = draws.secret_for(connection, [task for i in kept for task in commits[i].tasks])
    for i in kept:
        _add(rows, commits[i], encoded[i], transaction.now_s, secret)
    insert_rows(connection, ANSWERS, rows.answers)
    insert_rows(connection, ANSWER_ITEMS, rows.items)
    insert_rows(connection, QUEUES, sorted(rows.queues), Existing.KEPT)
    insert_rows(connection, SKILL_SETS, sorted(rows.skill_sets), Existing.KEPT)
    insert_rows(connection, REVIEWS, rows.reviews)
    insert_rows(connection, SUBJECTS, rows.subjects)
    if secret:
        for i in kept:
            gold.weave(transaction, secret, commits[i].answer, commits[i].tasks)
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


def revisions_of(connection: Connection, ids: Sequence[AnswerId]) -> dict[AnswerId, tuple[int, bool]]:
    """The revisions of *ids*, as far as these exist, and whether nothing is undecided about them."""
    found = connection.execute(_REVISIONS, {"ids": ids})
    return {AnswerId(row.id): (row.revision, row.closed_s is not None) for row in found}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A label that turned out to be true of an item, and who says so."""

    tenant: str
    answer_id: AnswerId
    item: int
    label: str
    source: str


Hide = Callable[[str, str], str]
"""What is kept of words about a route, by its name."""


def add_feedback(transaction: Transaction, feedback: Feedback, route: str | None, hide: Hide | None = None) -> None:
    """Keep *feedback*; the same source's last word on an item stands.

    Args:
        transaction: the writer's.
        feedback: what to keep.
        route: the answer's, where it is known to exist and to have the item; None: look, in the log where it is gone.
        hide: what is kept of the label; None: all.

    Raises:
        NotFound: the tenant has no such answer, or it no such item.
    """
    if route is None:
        route = _logged_route(transaction.connection, feedback)
    if route is None:
        found = read_answer(transaction.connection, feedback.tenant, feedback.answer_id)
        route = answered_route(found, feedback)
    f = feedback
    label = f.label if hide is None else hide(route, f.label)
    row: Row = (f.answer_id, f.item, f.source, f.tenant, route, label, transaction.now_s)
    insert_rows(transaction.connection, FEEDBACK, [row], Existing.REPLACED)


def forget_feedback(transaction: Transaction, answer_id: AnswerId, item: int, source: str) -> None:
    """Forget what *source* has said of an item."""
    c = FEEDBACK.c
    said = delete(FEEDBACK).where(c.answer_id == answer_id, c.item == item, c.source == source)
    transaction.connection.execute(said)


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


def _logged_route(connection: Connection, feedback: Feedback) -> str | None:
    """The route of the item that *feedback* is about, as the log has it.

    None where it went to nobody, and a stage was allowed to accept it: no index has these, as labels of them prove
    nothing.
    """
    about = {"tenant": feedback.tenant, "answer": feedback.answer_id, "item": feedback.item}
    found = (connection.execute(logged, about).scalar() for logged in LOGGED)
    return next((route for route in found if route is not None), None)


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
        keys.Finish(c.key, c.fence, c.answer.id, None if c.tasks else transaction.key_ends_s)
        for c in commits.values()
        if c.key is not None
    ]
    for i, outcome in zip(commits, keys.finish_with_answers(transaction, finishes), strict=True):
        outcomes[i] = outcome


def _outputs(answer: Answer) -> list[bytes | None]:
    """Every item's outputs, encoded; None where it has none.

    Raises:
        InvalidInput: they, or its label, cannot be kept.
    """
    for item in answer.items:
        if item.label is not None and not item.label.isprintable():
            check_label(item.label)
    return [None if item.outputs is None else codec.encode_tensors(item.outputs) for item in answer.items]


def _tasks_by_item(commit: Commit) -> dict[int, ReviewTask]:
    tasks = {task.item: task for task in commit.tasks}
    open_items = commit.answer.open_items
    if len(tasks) != len(commit.tasks) or not set(tasks) <= set(open_items):
        raise ValueError(
            f"tasks are for items {[task.item for task in commit.tasks]}, open are {open_items}. This is a bug.",
        )
    return tasks


def _add(rows: _Rows, commit: Commit, encoded: Sequence[bytes | None], now_s: float, secret: bytes) -> None:
    """Add the rows of *commit*, whose items' outputs are *encoded*; *secret* draws, see `gateway.store.draws`."""
    answer = commit.answer
    tasks = _tasks_by_item(commit) if commit.tasks else {}
    created_s = float(answer.created_s)
    closed_s = None if tasks else now_s
    promise = (_finite(answer.max_error), answer.certified)
    rows.answers.append((answer.id, answer.tenant, answer.route, created_s, answer.revision, *promise, closed_s))
    if answer.subject is not None:
        rows.subjects.append((answer.id, answer.tenant, answer.subject, created_s))
    for i, (item, outputs) in enumerate(zip(answer.items, encoded, strict=True)):
        trail = codec.encode_trail(item.trail)
        confidence = _finite(item.confidence)
        reason = None if item.reason is None else str(item.reason)
        said = (str(item.status), item.stage, item.label, confidence, item.decided_by, reason)
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
                payload_sha256=commit.digests[i] if commit.digests else _digest(commit, i),
            ),
        )
        if task is not None:
            rows.queues |= {(queue,) for queue in (task.queue, task.quality.adjudicate) if queue is not None}
            if task.skills:
                rows.skill_sets.add((codec.encode_labels(task.skills),))
            wants_second = draws.wants_second(secret, answer, task)
            panel = opinions.columns_of(task.quality, wants_second=wants_second)
            rows.reviews.append(new_review(answer, task, panel, now_s))


def with_digests(commit: Commit) -> Commit:
    """*commit* with the digests of its inputs instead of these."""
    digests = tuple(_digest(commit, index) for index in range(len(commit.answer.items)))
    return replace(commit, answer=replace(commit.answer, inputs=None), digests=digests)


def _digest(commit: Commit, index: int) -> bytes | None:
    """Of the item's input as it was sent; None where it was not seen."""
    inputs, key = commit.answer.inputs, commit.store_key
    if inputs is None or key is None:
        return None
    if len(inputs.inputs) == 1:  # one run of bytes, the usual case: as `sha256sum` would have it
        (tensor,) = inputs.inputs.values()
        if tensor.datatype is Datatype.BYTES and not isinstance(tensor.data, Ragged):
            elements = tensor.numpy()
            if elements.size == inputs.size:
                return key.of_input(bytes(elements.reshape(-1)[index]))
    own = {name: tensor.rows(index, index + 1) for name, tensor in inputs.inputs.items()}
    return key.of_input(*codec.encoded_parts(own))


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


_LOG = DECISION_LOG.c
LOGGED = [
    select(_LOG.route)
    .where(
        _LOG.answer_id == bindparam("answer"),
        _LOG.item == bindparam("item"),
        _LOG.tenant == bindparam("tenant"),
        text(which),
    )
    .limit(1)
    for which in (OBSERVED, HANDED_OVER)
]
_REVISIONS = select(ANSWERS.c.id, ANSWERS.c.revision, ANSWERS.c.closed_s).where(
    ANSWERS.c.id.in_(bindparam("ids", expanding=True))
)
_ANSWER = (
    select(*(ANSWERS.c[name] for name in ("route", "created_s", "revision", "max_error", "certified")), ANSWER_ITEMS)
    .join(ANSWER_ITEMS, ANSWER_ITEMS.c.answer_id == ANSWERS.c.id)
    .where(ANSWERS.c.id == bindparam("id"), ANSWERS.c.tenant == bindparam("tenant"))
    .order_by(ANSWER_ITEMS.c.item)
)
