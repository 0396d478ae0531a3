"""What turned out to be true of the items that a route can be certified on.

**Which items.** Those that were shown to every stage whatever it said, since only they are a fair sample of what the
route sees: `no_certificate` (no stage may accept) and `observed` (the last one accepts whatever comes), those on which
a stage failed included. An item that a stage was allowed to accept is none of them.

**From what.** The decision log and feedback, which outlive the answers: a purge takes no label. Items whose log rows
were pruned (see `gateway.store.retention`) are gone; which ones depends on their age, not on their labels. Items of
whose rows an erasure has taken something are left out.

**Whose label.** What a person has decided last, unless they took it back. The rows of an item are ordered by their
time, which never stands still between two of them (`gateway.store.changes`), and hold in all chains.

**Second opinions** are compared with that label, whoever gave it: where two agree and somebody corrects it to what
neither said, they differ from what stands, as a certificate's bound must count.

**How.** One statement, so one snapshot: the rows of the route by a partial index that has them in order, then for each
the person's label by another, and the feedback by its key. Measured: 50,000 items, each with a decision and feedback of
two callers, in 0.9 s. Rejected: joining feedback (an item would come twice), and grouping all of it first (other
routes' too). Second opinions are few; they are read beside, and one that is newer than the snapshot is no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, RowMapping, exists, func, select, text

from gateway.answer import AnswerId
from gateway.store import codec, opinions
from gateway.store.contract import LabelledItem, OpinionKind, SecondLabel
from gateway.store.schema import DECISION_LOG, ERASED, FEEDBACK, RULED, SCORED

_PAGE_ROWS = 1000


def read_labelled(connection: Connection, tenant: str | None, route: str) -> list[LabelledItem]:
    """The items of *route*, of *tenant* where it is given; see `CertificationStore.labelled`."""
    query = SCORED_ITEMS.where(ITEM.route == route)
    if tenant is not None:
        query = query.where(ITEM.tenant == tenant)
    rows = connection.execution_options(yield_per=_PAGE_ROWS).execute(query).mappings()
    found = list(rows)
    twice = opinions.said_twice(connection, tenant, route)
    return [_labelled(row, twice.get((row["answer_id"], row["item"]))) for row in found]


def _labelled(row: RowMapping, said: Mapping[OpinionKind, str] | None) -> LabelledItem:
    # Of labels that agree, the first in any order is also the last.
    agreed = row["first_said"] if row["first_said"] == row["last_said"] else None
    label = agreed if row["decided"] is None else row["decided"]
    return LabelledItem(
        answer_id=AnswerId(row["answer_id"]),
        item=row["item"],
        at_s=row["at_s"],
        tenant=row["tenant"],
        trail=codec.decode_trail(row["trail"]),
        label=label,
        disputed=row["decided"] is None and row["first_said"] != row["last_said"],
        by_person=row["decided"] is not None,
        second=SecondLabel.NONE if said is None else opinions.second_label(said, label),
    )


ITEM = DECISION_LOG.c
_RULING = DECISION_LOG.alias("ruling").c
_SAID = FEEDBACK.c

_DECIDED = (
    select(_RULING.label)
    .where(_RULING.answer_id == ITEM.answer_id, _RULING.item == ITEM.item, text(RULED))
    .order_by(_RULING.at_s.desc(), _RULING.chain.desc(), _RULING.seq.desc())
    .limit(1)
    .scalar_subquery()
)
_REDACTED = exists().where(
    _RULING.answer_id == ITEM.answer_id, _RULING.item == ITEM.item, text(ERASED), _RULING.trail != "[]"
)
_FEEDBACK = _SAID.answer_id == ITEM.answer_id, _SAID.item == ITEM.item
SCORED_ITEMS = (
    select(
        *(ITEM[name] for name in ("answer_id", "item", "at_s", "tenant", "trail")),
        _DECIDED.label("decided"),
        select(func.min(_SAID.label)).where(*_FEEDBACK).scalar_subquery().label("first_said"),
        select(func.max(_SAID.label)).where(*_FEEDBACK).scalar_subquery().label("last_said"),
    )
    .where(text(SCORED), ~_REDACTED)
    .order_by(ITEM.at_s, ITEM.chain, ITEM.seq)
)
