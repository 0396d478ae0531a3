"""What several people say of one item: opinions that decide together, and second opinions that check who decided.

    panel      claimed -> opinion -> open for others -> ... -> as many alike as are needed: decided
                                                          └> all given, too few alike: open for one more, who decides
    second     item decided by one person, and drawn -> a review of its own, blind -> opinion -> over
                                                                    └> it differs, and somebody adjudicates: open again

**Nobody gives two opinions** on an item: they are kept by subject, item and reviewer, which is their primary key, and a
review is not given to who has given one. **Nobody gives one too many**: each has a number, and there is one of each; it
is told under the lock of the review's row, by whoever holds the claim.

**What is not shown.** Opinions leave the store for the one who adjudicates alone. A blind review has no proposals in
its row, so that nothing can show them. While a second opinion is asked for, the review that was decided is marked
(`SecondOpinion.ASKED`), for those who show it to hide what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from itertools import groupby

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    update,
)

from backends.errors import Conflict
from gateway.answer import Answer, new_answer_id
from gateway.store import codec, gold
from gateway.store.bulk import Value, insert_rows
from gateway.store.contract import (
    Opinion,
    OpinionKind,
    Panel,
    Purpose,
    QualityCounts,
    Review,
    ReviewState,
    SaidBefore,
    SecondLabel,
    SecondOpinion,
)
from gateway.store.log import Event, LogEntry
from gateway.store.schema import IS_UNDECIDED, OPINIONS, REVIEWS, SECONDS
from gateway.store.transaction import Transaction
from router.contract import LabelQuality

_O, _R = OPINIONS.c, REVIEWS.c
_SUBJECT = func.coalesce(_R.subject, _R.answer_id)


class Standing(Enum):
    """What opinions come to."""

    OPEN = auto()
    FINAL = auto()
    DISPUTED = auto()


def standing(panel: Panel, labels: Sequence[str]) -> Standing:
    """What *labels* come to, which are all that people of *panel* have given, the last one last."""
    if panel.adjudicating or labels.count(labels[-1]) >= panel.needed:
        return Standing.FINAL
    return Standing.OPEN if len(labels) < panel.of else Standing.DISPUTED


# --- rows of reviews ---


def columns_of(quality: LabelQuality, *, wants_second: bool) -> tuple[Value, ...]:
    """What a new review of such a *quality* holds in its columns from `purpose` to `second`."""
    second = SecondOpinion.DRAWN if wants_second else SecondOpinion.NONE
    asked = (quality.needed, quality.of, quality.adjudicate, False)
    return (Purpose.DECIDE.value, None, *asked, False, second.value)


def panel_of(row: RowMapping) -> Panel:
    """The panel of a review's *row*."""
    return Panel(
        purpose=Purpose(row["purpose"]),
        subject=row["subject"] or row["answer_id"],
        needed=row["needed"],
        of=row["most"],
        adjudicate=row["adjudicate"],
        adjudicating=row["adjudicating"],
        blind=row["blind"],
        second=SecondOpinion(row["second"]),
    )


def has_not_said(reviewer: str) -> ColumnElement[bool]:
    """A condition on reviews: *reviewer* has given no opinion on what it is about."""
    about = and_(_O.subject == _SUBJECT, _O.item == _R.item, _O.reviewer == reviewer)
    return ~exists().where(about)


def shown(connection: Connection, review: Review) -> Review:
    """*review*, with the opinions that differ where they are to be seen."""
    if not review.panel.adjudicating or review.state is ReviewState.DECIDED:
        return review
    return replace(review, opinions=tuple(label for _, label in _said(connection, review)))


# --- opinions ---


def refuse_another(connection: Connection, review: Review, reviewer: str) -> None:
    """Keep *review* from somebody who has given an opinion on its item.

    Raises:
        SaidBefore: *reviewer* has.
    """
    if review.panel.is_asked_of_others and _label_of(connection, review, reviewer) is not None:
        raise SaidBefore(f"review {review.id} is for somebody else: you have said what its item is; take another")


def is_repeated(connection: Connection, review: Review, reviewer: str, label: str) -> bool:
    """Whether *reviewer* has said *label* of a review that several are asked.

    Raises:
        SaidBefore: they have said something else.
    """
    before = _label_of(connection, review, reviewer) if review.panel.needed > 1 else None
    if before is not None and before != label:
        raise SaidBefore(f"review {review.id} has another opinion of yours, and nobody gives two")
    return before is not None


def take(transaction: Transaction, review: Review, reviewer: str, label: str, answer: Answer) -> Answer | None:
    """Keep what *reviewer*, who holds *review*, says of it.

    Returns:
        *answer* as it is then; None where *label* is to become the item's final one, which is for the caller to do.
    """
    panel = review.panel
    if panel.purpose is Purpose.GOLD:
        close(transaction, review, reviewer, label)
        return gold.take(transaction, review, reviewer, label, answer)
    if panel.needed == 1:
        return None
    given = [label for _, label in _said(transaction.connection, review)]
    kind = OpinionKind.SECOND if panel.purpose is Purpose.SECOND else OpinionKind.PANEL
    if panel.adjudicating:
        kind = OpinionKind.ADJUDICATION
    _keep(transaction, review, reviewer, label, kind, len(given) + 1)
    found = standing(panel, [*given, label])
    if found is Standing.FINAL and panel.purpose is Purpose.DECIDE:
        return None
    _log(transaction, review, reviewer, label, kind)
    if panel.purpose is Purpose.SECOND:  # the review that it is beside may be shown again
        _mark_second(transaction.connection, review, SecondOpinion.GIVEN)
    if found is Standing.OPEN:
        _reopen(transaction, review)
    elif found is Standing.DISPUTED and (queue := _adjudicators(review)) is not None:
        _reopen(transaction, review, queue)
    else:
        close(transaction, review, reviewer, label)
    return answer


def take_back(transaction: Transaction, review: Review, reviewer: str, within_s: float) -> None:
    """Forget what *reviewer*, who has decided *review*, said of it, so that they can say it anew.

    Raises:
        Conflict: somebody else has said something of it since, or more than *within_s* have passed.
    """
    connection, panel = transaction.connection, review.panel
    if panel.purpose is not Purpose.DECIDE and transaction.now_s - _decided_s(connection, review) >= within_s:
        raise Conflict(f"a decision can be taken back for {within_s:g} s, which are over")
    if panel.second in (SecondOpinion.ASKED, SecondOpinion.GIVEN):
        _forget_second(connection, review)
    about = _O.subject == panel.subject, _O.item == review.task.item, _O.reviewer == reviewer
    connection.execute(delete(OPINIONS).where(*about))
    if panel.purpose is Purpose.GOLD:
        gold.take_back(transaction, review)
    if panel.purpose is Purpose.SECOND and not panel.adjudicating:  # else the second opinion stays given
        _mark_second(connection, review, SecondOpinion.ASKED)


def _decided_s(connection: Connection, review: Review) -> float:
    return float(connection.execute(select(_R.decided_s).where(_R.id == review.id)).scalar_one())


def _forget_second(connection: Connection, review: Review) -> None:
    """Ask nobody about *review*, which is about to be decided anew."""
    beside = _R.answer_id == review.answer_id, _R.item == review.task.item, _R.purpose == Purpose.SECOND.value
    untouched = _R.state == ReviewState.OPEN.value, _R.fence == 0
    if connection.execute(delete(REVIEWS).where(*beside, *untouched)).rowcount == 0:
        raise Conflict(f"somebody else has been shown what review {review.id} was about; correct the decision instead")
    drawn = update(REVIEWS).where(_R.id == review.id).values(second=SecondOpinion.DRAWN.value)
    connection.execute(drawn)


def ask_second(transaction: Transaction, review: Review, reviewer: str, label: str) -> None:
    """Ask somebody else about *review*, which *reviewer* has decided as *label*, where it was drawn for that."""
    if review.panel.second is not SecondOpinion.DRAWN:
        return
    _keep(transaction, review, reviewer, label, OpinionKind.FIRST, 1)
    fresh = {
        "id": new_answer_id(transaction.now_s),
        "due_s": transaction.now_s + review.task.due_s - review.created_s,
        "created_s": transaction.now_s,
        "state": ReviewState.OPEN.value,
        "fence": 0,
        "purpose": Purpose.SECOND.value,
        "subject": review.panel.subject,
        "needed": 2,
        "most": 2,
        "proposals": "[]",
    }
    values = [literal(fresh[name], _R[name].type) if name in fresh else _R[name] for name in _COPIED]
    copied = select(*values, null(), null(), null(), null(), false(), true(), literal(SecondOpinion.NONE.value))
    names = [*_COPIED, "reviewer", "owner", "lease_until_s", "label", "adjudicating", "blind", "second"]
    transaction.connection.execute(insert(REVIEWS).from_select(names, copied.where(_R.id == review.id)))
    asked = update(REVIEWS).where(_R.id == review.id).values(second=SecondOpinion.ASKED.value)
    transaction.connection.execute(asked)


def ask_no_more(connection: Connection, which: ColumnElement[bool]) -> int:
    """Ask for none of the second opinions any more that those reviews *which* ask for; how many reviews that were.

    What was to be compared with one that nobody gave is forgotten; what two have said stays, and nobody settles it. One
    that is being decided at this moment is left alone.
    """
    columns = (_R.id, _R.answer_id, _R.item, _R.adjudicating)
    asks = select(*columns).where(IS_UNDECIDED, _R.purpose == literal_column("'second'"), which)
    rows = connection.execute(asks.with_for_update(skip_locked=True)).all()
    if not rows:
        return 0
    connection.execute(delete(REVIEWS).where(_R.id.in_([row.id for row in rows])))
    waiting = [(row.answer_id, row.item) for row in rows if not row.adjudicating]
    differing = [(row.answer_id, row.item) for row in rows if row.adjudicating]
    about = tuple_(_O.subject, _O.item)
    connection.execute(delete(OPINIONS).where(about.in_(waiting), _O.kind == OpinionKind.FIRST.value))
    connection.execute(update(OPINIONS).where(about.in_(differing)).values(settles=False))
    asked = update(REVIEWS).where(tuple_(_R.answer_id, _R.item).in_(waiting), _R.purpose == Purpose.DECIDE.value)
    connection.execute(asked.values(second=SecondOpinion.NONE.value))
    return len(rows)


_COPIED = (
    *("id", "answer_id", "item", "tenant", "route", "queue", "due_s", "created_s", "state", "fence"),
    *("purpose", "subject", "needed", "most", "adjudicate"),
    *("reason", "priority", "skills", "content_type", "labels", "proposals", "payload"),
)


def _adjudicators(review: Review) -> str | None:
    """The queue where somebody decides what *review*'s opinions differ about; None: nobody does."""
    own = review.task.queue if review.panel.purpose is Purpose.DECIDE else None
    return review.panel.adjudicate or own


def _label_of(connection: Connection, review: Review, reviewer: str) -> str | None:
    about = _O.subject == review.panel.subject, _O.item == review.task.item, _O.reviewer == reviewer
    return connection.execute(select(_O.label).where(*about)).scalar()


def _said(connection: Connection, review: Review) -> list[tuple[str, str]]:
    """Who has given an opinion on *review*'s item, and which, in order."""
    about = _O.subject == review.panel.subject, _O.item == review.task.item
    found = connection.execute(select(_O.reviewer, _O.label).where(*about).order_by(_O.number))
    return [(row.reviewer, row.label) for row in found]


def _keep(transaction: Transaction, review: Review, reviewer: str, label: str, kind: OpinionKind, number: int) -> None:
    adjudicators = review.panel.adjudicate if kind is OpinionKind.FIRST else _adjudicators(review)
    about = (review.panel.subject, review.task.item, reviewer, number, kind.value)
    place = (review.tenant, review.route, review.task.queue)
    row = (*about, *place, label, None, adjudicators is not None, transaction.now_s)
    insert_rows(transaction.connection, OPINIONS, [row])


def _log(transaction: Transaction, review: Review, reviewer: str, label: str, kind: OpinionKind) -> None:
    entry = LogEntry(
        at_s=transaction.now_s,
        tenant=review.tenant,
        answer_id=review.answer_id,
        item=review.task.item,
        route=review.route,
        event=Event.OPINION,
        actor=f"person:{reviewer}",
        label=label,
        confidence=None,
        reason=kind.value,
        trail=codec.encode_work(review.held_s(transaction.now_s)),
    )
    transaction.append([entry])


def _reopen(transaction: Transaction, review: Review, adjudicators: str | None = None) -> None:
    """Open *review* for others; for one of the queue *adjudicators* to decide, where it is given.

    Another queue has it anew: it is not overdue there yet, and where it was due already, it has as long there as in
    the one that it comes from. Else it would move on from there at once, or never.
    """
    opened: dict[str, object] = {"state": ReviewState.OPEN.value, "recalled": False}
    opened |= dict.fromkeys(("reviewer", "owner", "lease_until_s"))
    if adjudicators is not None:
        opened |= {"queue": adjudicators, "adjudicating": True, "blind": False}
    if adjudicators not in (None, review.task.queue):
        now_s = transaction.now_s
        again_s = now_s + _R.due_s - func.coalesce(_R.moved_s, _R.created_s)
        due_s = case((_R.due_s > now_s, _R.due_s), else_=again_s)
        opened |= {"moved_s": now_s, "overdue_s": None, "due_s": due_s}
    transaction.connection.execute(update(REVIEWS).where(_R.id == review.id).values(**opened))


def close(transaction: Transaction, review: Review, reviewer: str, label: str) -> None:
    """*review* is over: *reviewer* has said *label*; its item's answer stays as it is."""
    said = {"of_id": review.id, "new_reviewer": reviewer, "new_label": label, "new_decided_s": transaction.now_s}
    transaction.connection.execute(_CLOSE, said)


_CLOSE = (
    update(REVIEWS)
    .where(_R.id == bindparam("of_id"))
    .values(
        state=ReviewState.DECIDED.value,
        reviewer=bindparam("new_reviewer"),
        owner=None,
        lease_until_s=None,
        label=bindparam("new_label"),
        decided_s=bindparam("new_decided_s"),
        recalled=False,
    )
)


def _mark_second(connection: Connection, second: Review, state: SecondOpinion) -> None:
    """Have the review that *second* is beside say how far that is."""
    beside = _R.answer_id == second.answer_id, _R.item == second.task.item, _R.purpose == Purpose.DECIDE.value
    connection.execute(update(REVIEWS).where(*beside).values(second=state.value))


# --- what they come to ---


def read(connection: Connection, tenant: str | None, queue: str | None, since_s: float) -> list[Opinion]:
    """See `Store.opinions`."""
    wanted = select(OPINIONS).where(_O.at_s >= since_s).order_by(_O.at_s, _O.subject, _O.item, _O.number, _O.reviewer)
    if tenant is not None:
        wanted = wanted.where(_O.tenant == tenant)
    if queue is not None:
        other = OPINIONS.alias("other").c
        wanted = wanted.where(exists().where(other.subject == _O.subject, other.item == _O.item, other.queue == queue))
    return [_opinion(row) for row in connection.execute(wanted).mappings()]


def said_twice(connection: Connection, tenant: str | None, route: str) -> dict[tuple[str, int], dict[OpinionKind, str]]:
    """The labels by kind, by answer and item, of those of *route* that a second opinion was asked for on."""
    wanted = select(_O.subject, _O.item, _O.kind, _O.label).where(text(SECONDS), _O.route == route)
    if tenant is not None:
        wanted = wanted.where(_O.tenant == tenant)
    rows = connection.execute(wanted.order_by(_O.subject, _O.item)).all()
    found = {}
    for about, said in groupby(rows, key=lambda row: (str(row.subject), int(row.item))):
        by_kind = {OpinionKind(row.kind): str(row.label) for row in said}
        if OpinionKind.FIRST in by_kind:  # a panel, too, has somebody who adjudicates
            found[about] = by_kind
    return found


def second_label(said: Mapping[OpinionKind, str], label: str | None) -> SecondLabel:
    """What the opinions *said* on an item came to, whose label is *label* now; None: nothing stands but the first."""
    first, second = said[OpinionKind.FIRST], said.get(OpinionKind.SECOND)
    stands = first if label is None else label
    if second is None:
        return SecondLabel.ASKED
    if stands == first == second:
        return SecondLabel.AGREED
    if OpinionKind.ADJUDICATION not in said:
        return SecondLabel.DIFFERED
    return SecondLabel.UPHELD if said[OpinionKind.ADJUDICATION] == stands else SecondLabel.OVERRULED


def counts(connection: Connection) -> dict[str, QualityCounts]:
    """See `Store.quality_counts`."""
    found: dict[str, QualityCounts] = {}
    right = func.count().filter(_O.label == _O.truth)
    known = select(_O.queue, right.label("right"), func.count().label("all"))
    for row in connection.execute(known.where(_O.kind == OpinionKind.GOLD.value).group_by(_O.queue)):
        found[row.queue] = QualityCounts(gold_right=row.right, gold_wrong=row.all - row.right)
    second = OPINIONS.alias("second")
    is_second = second.c.kind == OpinionKind.SECOND.value
    beside = and_(second.c.subject == _O.subject, second.c.item == _O.item, is_second)
    asked = (
        select(
            _O.queue,
            func.count().filter(second.c.label == _O.label).label("agreed"),
            func.count(second.c.label).label("given"),
            func.count().label("all"),
        )
        .select_from(OPINIONS.outerjoin(second, beside))
        .where(_O.kind == OpinionKind.FIRST.value)
        .group_by(_O.queue)
    )
    for row in connection.execute(asked):
        seconds = (row.agreed, row.given - row.agreed, row.all - row.given)
        names = ("seconds_agreed", "seconds_differed", "seconds_asked")
        found[row.queue] = replace(found.get(row.queue, QualityCounts()), **dict(zip(names, seconds, strict=True)))
    return found


def _opinion(row: RowMapping) -> Opinion:
    return Opinion(**{**row, "kind": OpinionKind(row["kind"])})
