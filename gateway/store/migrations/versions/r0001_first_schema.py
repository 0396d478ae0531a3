"""Answers, reviews, idempotency keys, the decision log and feedback.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "answers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("max_error", sa.Double),
        sa.Column("certified", sa.Boolean, nullable=False),
        sa.Column("closed_s", sa.Double),
        sqlite_with_rowid=False,
    )
    op.create_index("answers_closed", "answers", ["closed_s"])
    op.create_table(
        "answer_items",
        sa.Column("answer_id", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("stage", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("confidence", sa.Double),
        sa.Column("decided_by", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("trail", sa.Text, nullable=False),
        sa.Column("outputs", sa.LargeBinary),
        sa.CheckConstraint("status IN ('final', 'provisional', 'pending')", name="answer_items_status"),
    )
    op.create_table("queues", sa.Column("name", sa.Text, primary_key=True))
    _create_reviews()
    _create_idempotency_keys()
    op.create_table(
        "writers",
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("opening", sa.Integer, nullable=False),
        sa.Column("head_seq", sa.BigInteger, nullable=False),
        sa.Column("head_hash", sa.LargeBinary, nullable=False),
        sa.Column("base_seq", sa.BigInteger, nullable=False),
        sa.Column("base_hash", sa.LargeBinary, nullable=False),
    )
    _create_decision_log()
    op.create_table(
        "feedback",
        sa.Column("answer_id", sa.String(32), primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Remove every table, and all that is in them."""
    for table in (
        "feedback",
        "decision_log",
        "writers",
        "idempotency_keys",
        "reviews",
        "queues",
        "answer_items",
        "answers",
    ):
        op.drop_table(table)


def _create_reviews() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("answer_id", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), nullable=False),
        sa.Column("item", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, sa.ForeignKey("queues.name"), nullable=False),
        sa.Column("due_s", sa.Double, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("reviewer", sa.Text),
        sa.Column("owner", sa.Integer),
        sa.Column("lease_until_s", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("proposals", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("answer_id", "item", name="reviews_one_an_item"),
        sa.CheckConstraint(
            "(state = 'open' AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL AND label IS NULL)"
            " OR (state = 'claimed' AND reviewer IS NOT NULL AND owner IS NOT NULL AND lease_until_s IS NOT NULL"
            " AND label IS NULL)"
            " OR (state = 'decided' AND reviewer IS NOT NULL AND owner IS NULL AND lease_until_s IS NULL"
            " AND label IS NOT NULL)",
            name="reviews_state",
        ),
    )
    op.create_index("reviews_due", "reviews", ["tenant", "due_s", "id"])
    _create_partial_index("reviews_undecided", ["tenant", "due_s", "id"], "state <> 'decided'")
    _create_partial_index("reviews_queued", ["tenant", "queue", "due_s", "id"], "state <> 'decided'")
    _create_partial_index("reviews_claimed", ["reviewer", "tenant", "queue", "lease_until_s"], "state = 'claimed'")


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "reviews", columns, sqlite_where=where, postgresql_where=where)


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Integer),
        sa.Column("lease_until_s", sa.Double),
        sa.Column("answer_id", sa.String(32)),
        sa.Column("code", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("expires_s", sa.Double),
        sa.CheckConstraint(
            "(state = 'in_progress' AND owner IS NOT NULL AND lease_until_s IS NOT NULL AND answer_id IS NULL"
            " AND code IS NULL)"
            " OR (state = 'done' AND owner IS NULL AND lease_until_s IS NULL"
            " AND (answer_id IS NULL) <> (code IS NULL))",
            name="idempotency_keys_state",
        ),
    )
    op.create_index("idempotency_keys_answer", "idempotency_keys", ["answer_id"])
    op.create_index("idempotency_keys_expires", "idempotency_keys", ["expires_s"])


def _create_decision_log() -> None:
    op.create_table(
        "decision_log",
        sa.Column("chain", sa.Integer, sa.ForeignKey("writers.slot"), primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("answer_id", sa.String(32), nullable=False),
        sa.Column("item", sa.Integer, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("actor", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("confidence", sa.Double),
        sa.Column("reason", sa.Text),
        sa.Column("trail", sa.Text, nullable=False),
        sa.Column("outputs_sha256", sa.LargeBinary),
        sa.Column("payload_sha256", sa.LargeBinary),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("event IN ('accept', 'defer', 'decide')", name="decision_log_event"),
        sqlite_with_rowid=False,
    )
