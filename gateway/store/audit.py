"""The decision log, read: the rows of one answer, or of a stretch of time, as an auditor gets them.

A row is what `gateway.store.log` has hashed, with nothing left out, so that whoever has all rows of a chain can compute
its hashes anew: `row_hash` over the columns, in the order of `LogRow`, `trail` as orjson writes it. A row that an
erasure has changed hashes to what the trail of a row `erase` says, and the row behind it follows the hash that it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Select, select, text

from gateway.store.schema import DECISION_LOG, HANDED_OVER

_C = DECISION_LOG.c
_ROWS_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows; None: all of them.

    Attributes:
        since_s, until_s: Unix times; the first is included, the second is not.
    """

    since_s: float | None = None
    until_s: float | None = None
    tenant: str | None = None
    route: str | None = None


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of the log.

    Attributes:
        chain, seq: the writer's chain, and the row's place in it, from 1.
        at_s: Unix time, in seconds.
        event: accept, defer, escalate, opinion, decide, correct, undo, cancel, expire or erase.
        actor: `model:NAME`, `person:NAME`, `caller:NAME` or `operator:NAME`, or `queue:NAME` to which the item was
            escalated; None where it was handed over, its time was over, or there was no such queue.
        trail: what every stage said and took; of a decision or an opinion `human_s`, the seconds that its review was
            held; of an erasure the rows that it changed (Any: JSON).
        outputs_sha256, payload_sha256, hash: 32 bytes; the first two None where there is nothing to digest. That of the
            payload, which is the item's input, is keyed (`gateway.store.key`).
    """

    chain: int
    seq: int
    at_s: float
    tenant: str
    answer_id: str
    item: int
    route: str
    event: str
    actor: str | None
    label: str | None
    confidence: float | None
    reason: str | None
    trail: tuple[dict[str, Any], ...]
    outputs_sha256: bytes | None
    payload_sha256: bytes | None
    hash: bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it (Any), digests in hexadecimal."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("outputs_sha256", "payload_sha256", "hash"):
            found[name] = None if found[name] is None else found[name].hex()
        return found


def rows_of(connection: Connection, answer_id: str) -> list[LogRow]:
    """What happened to *answer_id*, item by item, in the order in which it happened."""
    wanted = select(DECISION_LOG).where(_C.answer_id == answer_id)
    return list(_read(connection, wanted.order_by(_C.item, _C.at_s, _C.chain, _C.seq)))


def rows_of_item(connection: Connection, answer_id: str, item: int) -> list[LogRow]:
    """What happened to an item that went to people, in the order in which it happened."""
    wanted = select(DECISION_LOG).where(_C.answer_id == answer_id, _C.item == item, text(HANDED_OVER))
    return list(_read(connection, wanted.order_by(_C.at_s, _C.chain, _C.seq)))


def selected(connection: Connection, selection: Selection) -> Iterator[LogRow]:
    """The rows of *selection*, chain by chain in their order; few are in memory at a time."""
    wanted = select(DECISION_LOG).order_by(_C.chain, _C.seq)
    if selection.since_s is not None:
        wanted = wanted.where(_C.at_s >= selection.since_s)
    if selection.until_s is not None:
        wanted = wanted.where(_C.at_s < selection.until_s)
    if selection.tenant is not None:
        wanted = wanted.where(_C.tenant == selection.tenant)
    if selection.route is not None:
        wanted = wanted.where(_C.route == selection.route)
    return _read(connection, wanted)


def _read(connection: Connection, query: Select[Any]) -> Iterator[LogRow]:
    for row in connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(query):
        values = row._asdict()
        yield LogRow(**{**values, "trail": tuple(orjson.loads(values["trail"]))})
