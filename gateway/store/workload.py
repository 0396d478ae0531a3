"""What waits in queues, and how their latest reviews went: what `gateway.people.wait` makes a pace of.

Read every few seconds, beside whatever else goes on: each statement finds all it needs in an index, but for the few
reviews that are held, or stand first in their line.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, RowMapping, and_, func, literal_column, select, tuple_

from gateway.answer import AnswerId
from gateway.store.contract import MOST_AHEAD, Place, Taken, Workload
from gateway.store.schema import IS_UNDECIDED, REVIEWS

LATEST = 100
"""Most decisions of a queue that are looked at."""

_C = REVIEWS.c
_CLAIMED = _C.state == literal_column("'claimed'")
_DECIDED = _C.state == literal_column("'decided'")
_ARRIVED_S = func.coalesce(_C.moved_s, _C.created_s)


def read_workloads(connection: Connection, now: float) -> list[Workload]:
    """See `Store.workloads`.

    Args:
        now: on the clock of leases.
    """
    undecided: dict[tuple[str, str], dict[int, int]] = {}
    counted = select(_C.tenant, _C.queue, _C.priority, func.count()).where(IS_UNDECIDED)
    for tenant, queue, priority, count in connection.execute(counted.group_by(_C.tenant, _C.queue, _C.priority)):
        undecided.setdefault((tenant, queue), {})[priority] = count
    held = _held(connection, now)
    lines = sorted(undecided.keys() | set(_decided_lines(connection)))
    return [_workload(connection, now, line, undecided.get(line, {}), held.get(line, ())) for line in lines]


def read_places(connection: Connection, tenant: str, answer_id: AnswerId) -> list[Place]:
    """See `Store.places`."""
    own = select(_C.queue, _C.priority, _C.due_s, _C.id)
    # What checks people is before others, but nobody waits for it.
    decides = _C.purpose == literal_column("'decide'")
    own = own.where(_C.answer_id == answer_id, _C.tenant == tenant, decides, IS_UNDECIDED)
    last = {row.queue: row for row in connection.execute(own.order_by(_C.priority, _C.due_s, _C.id))}
    places = []
    for queue, row in last.items():
        order = tuple_(_C.priority, _C.due_s, _C.id) < tuple_(row.priority, row.due_s, row.id)
        ahead = select(_C.id).where(_C.tenant == tenant, _C.queue == queue, IS_UNDECIDED, order)
        count = connection.execute(select(func.count()).select_from(ahead.limit(MOST_AHEAD).subquery())).scalar_one()
        places.append(Place(queue, row.priority, count))
    return places


def _workload(
    connection: Connection, now: float, line: tuple[str, str], undecided: dict[int, int], held: tuple[Taken, ...]
) -> Workload:
    mine = and_(_C.tenant == line[0], _C.queue == line[1])
    is_open = and_(mine, IS_UNDECIDED, ~and_(_CLAIMED, _C.lease_until_s > now))
    heads = [
        connection.execute(
            select(_ARRIVED_S).where(is_open, _C.priority == priority).order_by(_C.due_s, _C.id).limit(1)
        ).scalar()
        for priority in undecided
    ]
    latest = select(_C.priority, _C.reviewer, _ARRIVED_S.label("arrived_s"), _C.claimed_s, _C.decided_s)
    # Reviews that were decided before the store kept these times tell nothing.
    latest = latest.where(mine, _DECIDED, _C.decided_s.is_not(None)).order_by(_C.decided_s.desc()).limit(LATEST)
    decided = [_taken(row) for row in connection.execute(latest).mappings()]
    return Workload(
        tenant=line[0],
        queue=line[1],
        undecided=undecided,
        claimed=len(held),
        unclaimed_since_s=min((head for head in heads if head is not None), default=None),
        taken=(*held, *decided),
        is_cut=len(decided) == LATEST,
    )


def _held(connection: Connection, now: float) -> dict[tuple[str, str], tuple[Taken, ...]]:
    columns = (_C.priority, _C.reviewer, _ARRIVED_S.label("arrived_s"), _C.claimed_s, _C.decided_s)
    query = select(_C.tenant, _C.queue, *columns).where(_CLAIMED, _C.lease_until_s > now)
    held: dict[tuple[str, str], tuple[Taken, ...]] = {}
    for row in connection.execute(query).mappings():
        line = (row["tenant"], row["queue"])
        held[line] = (*held.get(line, ()), _taken(row))
    return held


def _taken(row: RowMapping) -> Taken:
    # A claim that was made before the store kept its time: as if it had been taken at once.
    claimed_s = row["arrived_s"] if row["claimed_s"] is None else row["claimed_s"]
    return Taken(row["priority"], row["reviewer"], row["arrived_s"], claimed_s, row["decided_s"])


def _decided_lines(connection: Connection) -> Iterator[tuple[str, str]]:
    """Every tenant and queue that has decided reviews: a step of the index each, however many these are."""
    line = tuple_(_C.tenant, _C.queue)
    query = select(_C.tenant, _C.queue).where(_DECIDED).order_by(_C.tenant, _C.queue).limit(1)
    found = connection.execute(query).first()
    while found is not None:
        yield found.tenant, found.queue
        found = connection.execute(query.where(line > tuple_(found.tenant, found.queue))).first()
