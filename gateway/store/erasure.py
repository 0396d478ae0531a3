"""Erasure: all that an answer's inputs could be read from goes, and the decision log stays whole.

    answers        outputs, and labels that are no choice of their route, of every revision, and what people said of it
    reviews        payloads and proposals; open ones are cancelled: whoever holds one is told so
    opinions       those about items of which one is no choice; and where a second one is not asked for any more
    gold items     those that show one of the inputs, with the reviews that asked about them
    feedback       labels that are no choice
    decision log   labels that are no choice, and what callers said of themselves; every row keeps its digests and its
                   hash, and rows `erase` vouch for what was changed (`gateway.store.log`)
    messages       all; of what was not delivered yet, or is dead, and of what is final now, a new one is
    keys           idempotency keys of it: a retry is a new request
    subjects       whom it was about

**Choices.** A label that its route's people, or its models, choose from a list (`cat`, `dog`) tells nothing of an input
and is evidence for certificates: it stays. Any other may be made of the input's own words.

**Open reviews are cancelled**, as by callers; those that ask for a second opinion are deleted. Rejected: to refuse
while there are any. Whoever wants their data gone is not made to wait for a person to read it first.

**Gold items** are copies of what was sent: often a subject's own item, exported once it was decided. They are told by
the keyed digest of what they show: it is that of an input, which the log has, or of what a review of it shows. Labels
that people gave them stay where they are choices: they tell how good people are. An item whose input is no single run
of bytes is found while its review still shows it. Rejected: to keep such an item without its payload (nobody could be
asked about it), and to say in it whose it is (those that are made by hand come from nowhere). Files that they were
added from are not the store's: what comes in again from one goes when the answer is erased again, by its id.

**Finding.** Answers are found by index. Rows of the log are not, as an index that every decision would pay for is too
much for what is rare: they are looked for in a reader's snapshot, which takes as long as reading the log once, and only
what has come since is looked for while others wait. So is what gold items, and reviews, show.

**Pages.** Rows that are gone are gone from the database; that its file's pages do not keep them is the database's own
business (`gateway.store.sqlite.SqliteDatabase.overwrite`). PostgreSQL keeps dead rows until VACUUM has freed them and
their pages are used again; `VACUUM FULL` of these tables writes them anew. Neither reaches backups, replicas' logs, or
write-ahead logs that are archived: these have it until they expire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
from sqlalchemy import Connection, RowMapping, Table, delete, select, text, tuple_, update

from backends.errors import NotFound
from gateway.answer import CLASSIFY, ROUTE_AT, AnswerId
from gateway.store import changes, codec, gold, outbox
from gateway.store.answers import read_answer
from gateway.store.bulk import insert_rows
from gateway.store.changes import Change
from gateway.store.contract import Erasure, Known, OutboxState, Purpose, ReviewState, SecondOpinion
from gateway.store.key import StoreKey
from gateway.store.log import Event, LogEntry, row_hash
from gateway.store.outbox import UNTOLD, Telling
from gateway.store.retention import EMPTIED
from gateway.store.reviews import give_up
from gateway.store.schema import (
    ANSWER_ITEMS,
    ANSWER_REVISIONS,
    ANSWERS,
    DECISION_LOG,
    ERASED,
    FEEDBACK,
    FORGOTTEN,
    GOLD_ITEMS,
    IDEMPOTENCY_KEYS,
    OPINIONS,
    OUTBOX,
    REVIEWS,
    SUBJECTS,
    WRITERS,
)
from gateway.store.transaction import Transaction

_GONE = "[erased]"
"""Stands for a label where there must be one."""

_CHUNK = 500

_SHOWN = 16
"""Payloads that are in memory at once."""

_Item: TypeAlias = tuple[str, int]
"""An answer's id, and an index of its items."""

_LOG = DECISION_LOG.c
_HASHED = [column.name for column in DECISION_LOG.columns if column.name != "hash"]


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be erased, as a reader's snapshot had it.

    Attributes:
        places: of rows of the log, by chain and number.
        heads: where each chain ended: what is behind them came later.
        shown: keyed digests of what reviews of the answers show, by their ids; none where there are no gold items.
        gold: keyed digests of what the tenant's gold items show, by their ids.
        key: of these digests.
    """

    places: Sequence[tuple[int, int]]
    heads: Mapping[int, int]
    shown: Mapping[str, bytes]
    gold: Mapping[str, bytes]
    key: StoreKey


@dataclass(frozen=True, slots=True)
class Done:
    """What an erasure did.

    Attributes:
        answers: how many held something.
        reviews: how many were open, and are cancelled.
        gold: how many gold items are removed.
        changed: answers that are not what they were.
    """

    answers: int
    reviews: int
    gold: int
    changed: Sequence[AnswerId]


@dataclass(slots=True)
class _Work:
    """One erasure under way.

    Attributes:
        choices: of each item that has a list of its own.
        routes: of each item that something is known of.
        vouched: of each item, the rows of the log that were changed.
        touched: answers of which something has changed.
        changed: answers that have another revision now.
        closed: answers of which nothing is open now, and something was.
        unasked: items that nobody is asked a second opinion on any more.
    """

    transaction: Transaction
    erasure: Erasure
    known: Known
    choices: dict[_Item, Collection[str]] = field(default_factory=dict)
    routes: dict[_Item, str] = field(default_factory=dict)
    vouched: defaultdict[_Item, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))  # Any: JSON
    touched: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    unasked: set[_Item] = field(default_factory=set)
    cancelled: int = 0
    gold: int = 0

    def is_choice(self, item: _Item, label: str) -> bool:
        """Whether *label* is one that could be chosen, whatever the input was."""
        return label in self.choices.get(item, ()) or label in self.known(self.routes.get(item, ""))


def find(connection: Connection, erasure: Erasure, subject: bytes | None, key: StoreKey) -> Found:
    """Look for what *erasure* is about; *subject* is by what the store knows whom, under its *key*."""
    heads = {row.slot: row.head_seq for row in connection.execute(select(WRITERS.c.slot, WRITERS.c.head_seq))}
    places: list[tuple[int, int]] = []
    ids = _ids(connection, erasure, subject)
    for chunk in _chunks(ids):
        rows = connection.execute(select(_LOG.chain, _LOG.seq).where(_LOG.answer_id.in_(chunk)))
        places += [(row.chain, row.seq) for row in rows]
    items = gold.ids_of(connection, erasure.tenant) if ids else []
    shown = _digests(connection, REVIEWS, _showing(connection, ids) if items else [], key)
    return Found(places, heads, shown, _digests(connection, GOLD_ITEMS, items, key), key)


def erase(
    transaction: Transaction, erasure: Erasure, subject: bytes | None, found: Found, known: Known, telling: Telling
) -> Done:
    """Erase.

    Raises:
        NotFound: the tenant has, and had, no such answer.
    """
    connection = transaction.connection
    ids = _ids(connection, erasure, subject)
    _lock(connection, ids)
    rows = [row for row in _log_rows(connection, ids, found) if row["tenant"] == erasure.tenant]
    ids = sorted({*_kept(connection, erasure.tenant, ids), *(row["answer_id"] for row in rows)})
    if erasure.answer_id is not None and not ids:
        raise NotFound(f"there is no answer {erasure.answer_id!r}")
    work = _Work(transaction, erasure, known)
    for row in rows:
        work.routes[row["answer_id"], row["item"]] = row["route"]
    erased_before = set(_select(connection, ids, select(_LOG.answer_id).distinct().where(text(ERASED)), _LOG.answer_id))
    work.touched |= {row["answer_id"] for row in rows} - erased_before
    of_gold = _gold_of(work, ids, {row["payload_sha256"] for row in rows}, found)
    _erase_reviews(work, ids)
    _erase_gold(work, of_gold)
    _erase_answers(work, ids)
    _erase_opinions(work, ids)
    _erase_feedback(work, ids)
    _redact_log(work, rows)
    _delete(connection, IDEMPOTENCY_KEYS, ids)
    _delete(connection, SUBJECTS, ids)
    _tell(work, telling)
    transaction.append(list(_entries(work)))
    changed = [AnswerId(answer_id) for answer_id in sorted(work.changed | work.closed)]
    return Done(len(work.touched), work.cancelled, work.gold, changed)


def _lock(connection: Connection, ids: Sequence[str]) -> None:
    """Have who decides about *ids* at the same time wait, and find it erased; reviews before answers, as everybody."""
    reviews = select(REVIEWS.c.id).order_by(REVIEWS.c.id).with_for_update()
    for chunk in _chunks(ids):
        connection.execute(reviews.where(REVIEWS.c.answer_id.in_(chunk))).all()


def _ids(connection: Connection, erasure: Erasure, subject: bytes | None) -> list[str]:
    """The answers that it is about: those that are kept, and those that were; one of another tenant's may be named."""
    if erasure.answer_id is not None:
        return [erasure.answer_id]
    whose = (SUBJECTS.c.tenant == erasure.tenant, SUBJECTS.c.subject == subject)
    return list(connection.execute(select(SUBJECTS.c.answer_id).where(*whose)).scalars())


def _kept(connection: Connection, tenant: str, ids: Sequence[str]) -> list[str]:
    """Those of *ids* that are *tenant*'s answers, and are kept."""
    return _select(connection, ids, select(ANSWERS.c.id).where(ANSWERS.c.tenant == tenant), ANSWERS.c.id)


def _log_rows(connection: Connection, ids: Sequence[str], found: Found) -> list[RowMapping]:
    """The rows of the log about *ids*, but those of erasures."""
    rows: list[RowMapping] = []
    for places in _chunks(found.places):
        at = tuple_(_LOG.chain, _LOG.seq).in_(places)
        rows += connection.execute(select(DECISION_LOG).where(at)).mappings()
    for slot in connection.execute(select(WRITERS.c.slot)).scalars().all():
        later = select(DECISION_LOG).where(_LOG.chain == slot, _LOG.seq > found.heads.get(slot, 0))
        rows += (row for row in connection.execute(later).mappings() if row["answer_id"] in ids)
    return [row for row in rows if row["event"] != Event.ERASE]


def _gold_of(work: _Work, ids: Sequence[str], sent: Collection[bytes | None], found: Found) -> list[str]:
    """The gold items that show what reviews of *ids* do, or whose digest is one of what was *sent*."""
    connection, key = work.transaction.connection, found.key
    items = gold.ids_of(connection, work.erasure.tenant)
    if not items:
        return []
    reviews = [one for one in _showing(connection, ids) if one not in found.shown]
    shown = {*sent, *found.shown.values(), *_digests(connection, REVIEWS, reviews, key).values()}
    digests = {**found.gold, **_digests(connection, GOLD_ITEMS, [one for one in items if one not in found.gold], key)}
    return [one for one in items if digests[one] in shown]


def _showing(connection: Connection, ids: Sequence[str]) -> list[str]:
    """The reviews of *ids* that show something still."""
    return _select(
        connection, ids, select(REVIEWS.c.id).where(REVIEWS.c.content_type != FORGOTTEN), REVIEWS.c.answer_id
    )


def _digests(connection: Connection, table: Table, ids: Sequence[str], key: StoreKey) -> dict[str, bytes]:
    """The keyed digests of what the rows *ids* of *table* show, by their ids."""
    shown = select(table.c.id, table.c.payload).execution_options(yield_per=_SHOWN)
    return {
        row.id: key.of_input(row.payload)
        for chunk in _chunks(ids)
        for row in connection.execute(shown.where(table.c.id.in_(chunk)))
    }


def _erase_gold(work: _Work, items: Sequence[str]) -> None:
    for chunk in _chunks(items):
        removed = gold.erase(work.transaction.connection, chunk, work.known)
        work.gold += removed.items
        work.cancelled += removed.undecided


def _erase_reviews(work: _Work, ids: Sequence[str]) -> None:
    connection, c = work.transaction.connection, REVIEWS.c
    columns = select(c.id, c.answer_id, c.item, c.route, c.state, c.labels, c.label, c.content_type, c.purpose)
    cancelled: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for row in _rows(connection, ids, columns, c.answer_id):
        item = (row["answer_id"], row["item"])
        if row["purpose"] == Purpose.GOLD:  # of nobody's request: it goes as a whole, and no log tells of it
            connection.execute(delete(ANSWERS).where(ANSWERS.c.id == row["answer_id"]))
            work.cancelled += ReviewState(row["state"]).is_undecided
            work.touched.add(row["answer_id"])
            continue
        work.routes[item] = row["route"]
        work.choices[item] = codec.decode_labels(row["labels"])
        one = c.id == row["id"]
        is_undecided = ReviewState(row["state"]).is_undecided
        work.cancelled += is_undecided
        if is_undecided and row["purpose"] != Purpose.DECIDE:
            connection.execute(delete(REVIEWS).where(one))
            work.unasked.add(item)
        else:
            label = None if row["label"] is None else _label(work, item, row["label"]) or _GONE
            if not is_undecided and not row["content_type"] and label == row["label"]:
                continue
            connection.execute(update(REVIEWS).where(one).values(**EMPTIED, label=label))
            if is_undecided:
                cancelled[row["answer_id"]].append(row)
        work.touched.add(row["answer_id"])
    for answer_id, rows in cancelled.items():
        _cancel(work, AnswerId(answer_id), rows)
    for answer_id, index in work.unasked:
        beside = (c.answer_id == answer_id, c.item == index, c.second == SecondOpinion.ASKED.value)
        connection.execute(update(REVIEWS).where(*beside).values(second=SecondOpinion.NONE.value))


def _cancel(work: _Work, answer_id: AnswerId, rows: Sequence[RowMapping]) -> None:
    """Ask nobody about the items of *rows*, which are reviews, any more; `_tell` tells it."""
    cancelled = {"status": ReviewState.CANCELLED.value}
    change = Change(Event.CANCEL, tuple(row["item"] for row in rows), cancelled, work.erasure.by)
    give_up(work.transaction, answer_id, [row["id"] for row in rows], change, UNTOLD)
    work.closed.add(answer_id)


def _erase_answers(work: _Work, ids: Sequence[str]) -> None:
    connection, c = work.transaction.connection, ANSWER_ITEMS.c
    columns = select(ANSWERS.c.route, c.answer_id, c.item, c.status, c.label, c.decided_by, c.trail, c.confidence)
    columns = columns.add_columns(c.outputs.is_not(None).label("has_outputs"))
    joined = columns.join(ANSWERS, ANSWERS.c.id == c.answer_id)
    changed: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for row in _rows(connection, ids, joined, c.answer_id):
        item = (row["answer_id"], row["item"])
        work.routes[item] = row["route"]
        before = {name: row[name] for name in ("label", "trail")}
        after = {"label": _label(work, item, row["label"]), "trail": _trail(work, item, row["trail"])}
        if after != before or row["has_outputs"]:
            one = (c.answer_id == row["answer_id"], c.item == row["item"])
            connection.execute(update(ANSWER_ITEMS).where(*one).values(**after, outputs=None))
            changed[row["answer_id"]].append(row)
    for answer_id, rows in changed.items():
        _revise(work, AnswerId(answer_id), rows)
    work.changed |= changed.keys()
    work.touched |= changed.keys()
    _erase_revisions(work, ids)


def _revise(work: _Work, answer_id: AnswerId, rows: Sequence[RowMapping]) -> None:
    """Have the answer another revision, which says of the items of *rows* that they were erased."""
    connection = work.transaction.connection
    bumped = update(ANSWERS).where(ANSWERS.c.id == answer_id).values(revision=ANSWERS.c.revision + 1)
    revision = connection.execute(bumped.returning(ANSWERS.c.revision)).scalar_one()
    said = (revision, changes.later(work.transaction, answer_id), Event.ERASE.value, work.erasure.by, None)
    items = [(answer_id, row["item"], *said, *(row[name] for name in _WAS), None) for row in rows]
    insert_rows(connection, ANSWER_REVISIONS, items)


_WAS = ("status", "label", "confidence", "decided_by")


def _erase_revisions(work: _Work, ids: Sequence[str]) -> None:
    """Erase what the items were before: labels, outputs, and the words of who corrected them."""
    connection, c = work.transaction.connection, ANSWER_REVISIONS.c
    columns = select(c.answer_id, c.item, c.revision, c.reason, c.was_label)
    columns = columns.add_columns(c.was_outputs.is_not(None).label("has_outputs"))
    for row in _rows(connection, ids, columns, c.answer_id):
        label = _label(work, (row["answer_id"], row["item"]), row["was_label"])
        if label != row["was_label"] or row["reason"] is not None or row["has_outputs"]:
            one = (c.answer_id == row["answer_id"], c.item == row["item"], c.revision == row["revision"])
            erased = {"was_label": label, "was_outputs": None, "reason": None}
            connection.execute(update(ANSWER_REVISIONS).where(*one).values(**erased))
            work.touched.add(row["answer_id"])


def _erase_opinions(work: _Work, ids: Sequence[str]) -> None:
    """Erase all opinions on an item of which one is no choice: what is left of them would say who agreed with whom."""
    connection, c = work.transaction.connection, OPINIONS.c
    gone = set(work.unasked)
    for row in _rows(connection, ids, select(c.subject, c.item, c.label), c.subject):
        item = (row["subject"], row["item"])
        if not work.is_choice(item, row["label"]):
            gone.add(item)
    for subject, index in gone:
        if connection.execute(delete(OPINIONS).where(c.subject == subject, c.item == index)).rowcount:
            work.touched.add(subject)


def _erase_feedback(work: _Work, ids: Sequence[str]) -> None:
    connection, c = work.transaction.connection, FEEDBACK.c
    for row in _rows(connection, ids, select(FEEDBACK), c.answer_id):
        item = (row["answer_id"], row["item"])
        if not work.is_choice(item, row["label"]):
            one = (c.answer_id == row["answer_id"], c.item == row["item"], c.source == row["source"])
            connection.execute(delete(FEEDBACK).where(*one))
            work.touched.add(row["answer_id"])


def _redact_log(work: _Work, rows: Iterable[RowMapping]) -> None:
    """Take out of *rows* what may be made of inputs, and keep what they hash to then."""
    connection = work.transaction.connection
    for row in rows:
        item = (row["answer_id"], row["item"])
        redacted = {"label": _label(work, item, row["label"]), "trail": _trail(work, item, row["trail"])}
        if all(row[name] == value for name, value in redacted.items()):
            continue
        one = (_LOG.chain == row["chain"], _LOG.seq == row["seq"])
        connection.execute(update(DECISION_LOG).where(*one).values(**redacted))
        now = row_hash(_hash_before(connection, row), [({**row, **redacted})[name] for name in _HASHED])
        work.vouched[item].append({"chain": row["chain"], "seq": row["seq"], "hash": now.hex()})
        work.touched.add(row["answer_id"])


def _hash_before(connection: Connection, row: RowMapping) -> bytes:
    """The hash that *row*'s follows."""
    before = select(_LOG.hash).where(_LOG.chain == row["chain"], _LOG.seq == row["seq"] - 1)
    found: bytes | None = connection.execute(before).scalar()
    if found is None:  # pruned, or never there
        found = connection.execute(select(WRITERS.c.base_hash).where(WRITERS.c.slot == row["chain"])).scalar_one()
    return found


def _label(work: _Work, item: _Item, label: str | None) -> str | None:
    return label if label is None or work.is_choice(item, label) else None


def _trail(work: _Work, item: _Item, trail: str) -> str:
    """*trail* without labels that are no choice, and without what routing quotes of its caller."""
    said = orjson.loads(trail)
    before = orjson.dumps(said)
    for record in said:
        stage = record.get("stage")
        if stage not in (None, ROUTE_AT):
            record["label"] = _label(work, item, record["label"])
        if stage == CLASSIFY:
            record.pop("detail", None)
            record.pop("traits", None)
    after = orjson.dumps(said)
    return trail if after == before else after.decode()


def _tell(work: _Work, telling: Telling) -> None:
    """Tell of what is final now, and put messages about what is left in the place of those that were not delivered.

    Whom a message did not reach has another one, dead as that was: so it can still be sent to them.
    """
    connection, c = work.transaction.connection, OUTBOX.c
    untold: defaultdict[str, dict[str, OutboxState]] = defaultdict(dict)  # by answer, and webhook
    undelivered = select(c.answer_id, c.webhook, c.state).where(c.state != OutboxState.DELIVERED.value)
    touched = sorted(work.touched)
    for row in _rows(connection, touched, undelivered, c.answer_id):
        state = OutboxState(row["state"])
        if untold[row["answer_id"]].get(row["webhook"]) is not OutboxState.WAITING:
            untold[row["answer_id"]][row["webhook"]] = state
    _delete(connection, OUTBOX, touched)
    for answer_id in sorted(untold.keys() | work.closed):
        answer = read_answer(connection, work.erasure.tenant, AnswerId(answer_id))
        if answer is None:
            continue
        if answer_id in work.closed:
            outbox.add(work.transaction, answer, telling)
        else:
            outbox.add_anew(work.transaction, answer, telling, untold[answer_id])


def _entries(work: _Work) -> Iterator[LogEntry]:
    """That it was erased, and when, item by item; not whose it was."""
    for answer_id, item in sorted(work.routes):
        if answer_id in work.touched:
            vouched = work.vouched[answer_id, item]
            yield LogEntry(
                at_s=work.transaction.now_s,
                tenant=work.erasure.tenant,
                answer_id=answer_id,
                item=item,
                route=work.routes[answer_id, item],
                event=Event.ERASE,
                actor=work.erasure.by,
                label=None,
                confidence=None,
                reason=None,
                trail=orjson.dumps(vouched).decode(),
            )


def _rows(connection: Connection, ids: Sequence[str], query: Any, column: Any) -> list[RowMapping]:
    """The rows of *query* whose *column* is one of *ids* (Any: SQLAlchemy's, of many types)."""
    found: list[RowMapping] = []
    for chunk in _chunks(ids):
        found += connection.execute(query.where(column.in_(chunk))).mappings()
    return found


def _select(connection: Connection, ids: Sequence[str], query: Any, column: Any) -> list[str]:
    """The first column of `_rows`."""
    return [next(iter(row.values())) for row in _rows(connection, ids, query, column)]


def _delete(connection: Connection, table: Table, ids: Sequence[str]) -> None:
    for chunk in _chunks(ids):
        connection.execute(delete(table).where(table.c.answer_id.in_(chunk)))


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:  # Any: ids, or places
    return (values[at : at + _CHUNK] for at in range(0, len(values), _CHUNK))
