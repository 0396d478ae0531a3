"""The decision log: one row for everything that happens to an item, chained by hashes.

    h = SHA-256(h of the row before, then every other column of this row)

Each writer (see `gateway.store.ownership`) has a chain of its own, so that processes never wait for each other's hash;
a writer's chain goes on over restarts. `writers` holds where a chain ends, so that rows cut off its end are missed, and
where it begins once its oldest rows were pruned.

**What the chain shows**: that no row was altered, removed or slipped in by anyone who did not also rewrite every later
row and the head. Whoever can do that can forge it; keep copies of heads elsewhere against them.

**What the log keeps**: labels, confidences and what each stage said, with digests of inputs and outputs, never these
themselves. Columns are hashed by type, length and value; not as JSON, whose numbers have several spellings.

**What was erased.** A label, or what a stage said, may itself hold what a subject wants gone (`gateway.store.erasure`).
Then the row keeps its hash, so that the rows behind it are verified as before, and a row `erase` says which rows were
changed, and what they hash to as they are now: a row that matches neither its own hash nor such a one was altered. What
it said before is in neither; something very short could still be found by trying all that it may have been.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, select, text, update
from sqlalchemy.exc import DBAPIError

from gateway.store.bulk import Row, Value, insert_rows
from gateway.store.schema import DECISION_LOG, ERASED, WRITERS

GENESIS = bytes(32)
"""What the first row of a chain follows."""


class Event(StrEnum):
    """What happened to an item."""

    ACCEPT = "accept"
    DEFER = "defer"
    DECIDE = "decide"
    CORRECT = "correct"
    UNDO = "undo"
    CANCEL = "cancel"
    EXPIRE = "expire"
    ESCALATE = "escalate"
    OPINION = "opinion"  # a person's that did not decide; `reason` tells what it was asked for
    ERASE = "erase"


class LogEntry(NamedTuple):
    """A row to be, without its place in the chain.

    Attributes:
        actor: `model:NAME`, `person:NAME` or `caller:NAME`, `operator:NAME` of an erasure, or `queue:NAME` to which an
            item was escalated; None where it was deferred, its time was over, or there was no such queue.
        trail: what every stage said, as JSON; of an escalation, what it was; of a decision and an opinion the time that
            it took, of an erasure what it changed.
        outputs_sha256: of the encoded outputs; None where there are none.
        payload_sha256: of the item's input, keyed (`gateway.store.key`); None where it was not seen.
    """

    at_s: float
    tenant: str
    answer_id: str
    item: int
    route: str
    event: Event
    actor: str | None
    label: str | None
    confidence: float | None
    reason: str | None
    trail: str
    outputs_sha256: bytes | None = None
    payload_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends: its last row's number and hash."""

    seq: int
    hash: bytes


def chain_rows(chain: int, head: Head, entries: Iterable[LogEntry]) -> tuple[list[Row], Head]:
    """The rows that append *entries* to *chain*, and where it ends then."""
    rows: list[Row] = []
    seq, previous = head.seq, head.hash
    for entry in entries:
        seq += 1
        row: Row = (chain, seq, *entry)
        previous = row_hash(previous, row)
        rows.append((*row, previous))
    return rows, Head(seq, previous)


def row_hash(previous: bytes, row: Iterable[Value]) -> bytes:
    """SHA-256 of *previous* and *row*: each value with its type, its length where it varies, and its bytes."""
    parts = [previous]
    for value in row:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, str):
            encoded = value.encode()
            parts.append(b"s%d:%b" % (len(encoded), encoded))
        elif isinstance(value, bytes):
            parts.append(b"b%d:%b" % (len(value), value))
        elif isinstance(value, float):
            parts.append(_FLOAT(b"f", value))
        else:
            parts.append(b"i%d;" % value)
    return hashlib.sha256(b"".join(parts)).digest()


_FLOAT = struct.Struct(">cd").pack


def append(connection: Connection, chain: int, head: Head, entries: Sequence[LogEntry]) -> Head:
    """Append *entries*; where *chain* ends then."""
    rows, head = chain_rows(chain, head, entries)
    insert_rows(connection, DECISION_LOG, rows)
    return head


def load_head(connection: Connection, chain: int) -> Head:
    """Where *chain* ends in the store."""
    row = connection.execute(_HEAD, {"slot": chain}).one()
    return Head(row.head_seq, row.head_hash)


def save_head(connection: Connection, chain: int, head: Head) -> None:
    """Store where *chain* ends."""
    connection.execute(_SAVE_HEAD, {"chain": chain, "seq": head.seq, "hash": head.hash})


def verify(connection: Connection) -> list[str]:
    """Where the chains are broken: one line a fault; none when they are whole."""
    faults: list[str] = []
    known = set()
    redacted = _redacted(connection)
    for writer in connection.execute(select(WRITERS).order_by(WRITERS.c.slot)):
        known.add(writer.slot)
        base, head = Head(writer.base_seq, writer.base_hash), Head(writer.head_seq, writer.head_hash)
        faults += _chain_faults(connection, writer.slot, base, head, redacted)
    chains = connection.execute(select(DECISION_LOG.c.chain).distinct()).scalars()
    faults += [f"chain {chain}: no writer owns it" for chain in chains if chain not in known]
    return faults


def _redacted(connection: Connection) -> set[tuple[int, int, str]]:
    """Chain, number and hash of every row as an erasure left it. Erasures that were altered are faults themselves."""
    found: set[tuple[int, int, str]] = set()
    for trail in connection.execute(select(DECISION_LOG.c.trail).where(text(ERASED))).scalars():
        with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
            found |= {(row["chain"], row["seq"], row["hash"]) for row in orjson.loads(trail)}
    return found


def _chain_faults(
    connection: Connection, chain: int, base: Head, head: Head, redacted: Collection[tuple[int, int, str]]
) -> Iterator[str]:
    last = base
    try:
        for *row, stored in _rows_of(connection, chain):
            seq = row[1]
            if seq != last.seq + 1:
                yield f"chain {chain}: rows {last.seq + 1} to {seq - 1} are missing"
            elif (found := row_hash(last.hash, row)) != stored and (chain, seq, found.hex()) not in redacted:
                yield f"chain {chain}: row {seq} was altered, or the one before it"
            # Go on from what is stored: one altered row is one fault, not one for every row behind it.
            last = Head(seq, stored)
    except (DBAPIError, TypeError, ValueError):
        # A value of another type, or text that is none: the driver, or SQLAlchemy, cannot read it.
        yield f"chain {chain}: a row behind row {last.seq} cannot be read; it was altered or damaged"
        return
    if last.seq != head.seq:
        yield f"chain {chain}: it ends at row {last.seq}; {head.seq} were written"
    elif last.hash != head.hash:
        yield f"chain {chain}: its last row, {last.seq}, is not the one that was written"


def _rows_of(connection: Connection, chain: int) -> Iterable[Any]:  # Any: a row's columns, of many types
    query = select(DECISION_LOG).where(DECISION_LOG.c.chain == chain).order_by(DECISION_LOG.c.seq)
    return connection.execution_options(yield_per=1000).execute(query)


_HEAD = select(WRITERS.c.head_seq, WRITERS.c.head_hash).where(WRITERS.c.slot == bindparam("slot"))
_SAVE_HEAD = (
    update(WRITERS)
    .where(WRITERS.c.slot == bindparam("chain"))
    .values(head_seq=bindparam("seq"), head_hash=bindparam("hash"))
)
