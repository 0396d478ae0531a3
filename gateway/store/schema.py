"""The tables, as the statements of this package see them; `migrations` builds them.

    answers ──< answer_items          what callers are told
       └─────< reviews >── queues     what people are asked
    idempotency_keys                  what callers have asked before (outlive their answers)
    decision_log >── writers          what was decided, hash-chained by writer (outlives its answers)
    feedback                          what turned out to be true (outlives its answers)
    certificates                      what was proven of routes (append-only, never forgotten)
    certification_looks               how often labels were looked at to prove it (append-only, never forgotten)

Every state machine is held by a CHECK. Ids are hexadecimal text, ordered by time. Times are Unix seconds, except
`lease_until_s`, which is on the clock of the store's leases. Wide columns come last, where a scan need not read them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA = MetaData()


def _partial(name: str, columns: tuple[str, ...], condition: str) -> Index:
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


SCORED = "reason IN ('no_certificate', 'observed')"
"""Rows of the decision log about items that every stage has scored, whatever their scores: labels of these prove
something about a route. A query must hold these very words, or its planner cannot tell that the index applies."""

RULED = "event = 'decide'"
"""Rows of the decision log that hold a person's label."""


ANSWERS = Table(
    "answers",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("max_error", Double),
    Column("certified", Boolean, nullable=False),
    Column("closed_s", Double),  # since when no review of it is undecided; NULL while one is
    Index("answers_closed", "closed_s"),
    sqlite_with_rowid=False,
)

ANSWER_ITEMS = Table(
    "answer_items",
    METADATA,
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("stage", Text),
    Column("label", Text),
    Column("confidence", Double),
    Column("decided_by", Text),
    Column("reason", Text),
    Column("trail", Text, nullable=False),
    Column("outputs", LargeBinary),
    CheckConstraint("status IN ('final', 'provisional', 'pending')", name="answer_items_status"),
)

QUEUES = Table("queues", METADATA, Column("name", Text, primary_key=True))

REVIEWS = Table(
    "reviews",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), nullable=False),
    Column("item", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("queue", Text, ForeignKey("queues.name"), nullable=False),
    Column("due_s", Double, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("reviewer", Text),
    Column("owner", Integer),  # the writer whose process granted the lease
    Column("lease_until_s", Double),
    Column("label", Text),
    Column("reason", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("proposals", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("answer_id", "item", name="reviews_one_an_item"),
    CheckConstraint(
        "(state = 'open' AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL AND label IS NULL)"
        " OR (state = 'claimed' AND reviewer IS NOT NULL AND owner IS NOT NULL AND lease_until_s IS NOT NULL"
        " AND label IS NULL)"
        " OR (state = 'decided' AND reviewer IS NOT NULL AND owner IS NULL AND lease_until_s IS NULL"
        " AND label IS NOT NULL)",
        name="reviews_state",
    ),
    Index("reviews_due", "tenant", "due_s", "id"),
    _partial("reviews_undecided", ("tenant", "due_s", "id"), "state <> 'decided'"),
    _partial("reviews_queued", ("tenant", "queue", "due_s", "id"), "state <> 'decided'"),
    _partial("reviews_claimed", ("reviewer", "tenant", "queue", "lease_until_s"), "state = 'claimed'"),
)

IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("owner", Integer),
    Column("lease_until_s", Double),
    Column("answer_id", String(32)),
    Column("code", Text),
    Column("message", Text, nullable=False),
    Column("expires_s", Double),  # NULL while its answer is open
    CheckConstraint(
        "(state = 'in_progress' AND owner IS NOT NULL AND lease_until_s IS NOT NULL AND answer_id IS NULL"
        " AND code IS NULL)"
        " OR (state = 'done' AND owner IS NULL AND lease_until_s IS NULL"
        " AND (answer_id IS NULL) <> (code IS NULL))",
        name="idempotency_keys_state",
    ),
    Index("idempotency_keys_answer", "answer_id"),
    Index("idempotency_keys_expires", "expires_s"),
)

WRITERS = Table(
    "writers",
    METADATA,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("opening", Integer, nullable=False),  # counts openings of the store, by whichever writer
    Column("head_seq", BigInteger, nullable=False),
    Column("head_hash", LargeBinary, nullable=False),
    Column("base_seq", BigInteger, nullable=False),  # the last row that was pruned from its chain
    Column("base_hash", LargeBinary, nullable=False),
)

DECISION_LOG = Table(
    "decision_log",
    METADATA,
    Column("chain", Integer, ForeignKey("writers.slot"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("answer_id", String(32), nullable=False),
    Column("item", Integer, nullable=False),
    Column("route", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor", Text),
    Column("label", Text),
    Column("confidence", Double),
    Column("reason", Text),
    Column("trail", Text, nullable=False),
    Column("outputs_sha256", LargeBinary),
    Column("payload_sha256", LargeBinary),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("event IN ('accept', 'defer', 'decide')", name="decision_log_event"),
    # Partial: rows that prove nothing, most of them, cost no more than they did.
    _partial("decision_log_scored", ("route", "at_s"), SCORED),
    _partial("decision_log_ruled", ("answer_id", "item"), RULED),
    sqlite_with_rowid=False,
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("answer_id", String(32), primary_key=True),
    Column("item", Integer, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("at_s", Double, nullable=False),
)

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("route", Text, nullable=False),
    Column("max_error", Double, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("valid_until_s", Double, nullable=False),
    Column("body", Text, nullable=False),  # the certificate as JSON; `id` is its hash
    Index("certificates_route", "route", "created_s"),
)

CERTIFICATION_LOOKS = Table(
    "certification_looks",
    METADATA,
    Column("route", Text, primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("look", Integer, primary_key=True, autoincrement=False),
    Column("evidence", String(64), nullable=False),
    Column("at_s", Double, nullable=False),
)
