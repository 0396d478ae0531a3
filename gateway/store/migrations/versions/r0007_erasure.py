"""Erasure, its rows in the decision log, whom answers are about, retention of payloads, and notices to reviewers.

Rows of reviews and of the decision log stay where they are.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and indexes."""
    shown = "state IN ('decided', 'cancelled', 'expired') AND content_type <> ''"
    _create_partial_index("reviews_shown", "reviews", ["created_s"], shown)
    op.create_index("feedback_at", "feedback", ["at_s"])
    _create_partial_index("decision_log_erased", "decision_log", ["answer_id", "item"], "event = 'erase'")
    op.create_table(
        "subjects",
        sa.Column("answer_id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("subject", sa.LargeBinary, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )
    op.create_index("subjects_whose", "subjects", ["tenant", "subject"])
    op.create_index("subjects_at", "subjects", ["at_s"])
    op.create_table(
        "review_notices",
        sa.Column("review_id", sa.String(32), sa.ForeignKey("reviews.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rule", sa.String(64), primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.CheckConstraint("kind IN ('new', 'due')", name="review_notices_kind"),
    )
    op.create_table(
        "notice_rounds",
        sa.Column("rule", sa.String(64), primary_key=True),
        sa.Column("next_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Take them back; refused where something was erased, since an earlier version cannot verify that log."""
    erased = op.get_bind().execute(sa.text("SELECT count(*) FROM decision_log WHERE event = 'erase'")).scalar_one()
    if erased:
        raise ValueError(f"the decision log has {erased} rows about erasures, which an earlier version cannot verify")
    op.drop_table("notice_rounds")
    op.drop_table("review_notices")
    op.drop_table("subjects")
    op.drop_index("decision_log_erased", "decision_log")
    op.drop_index("feedback_at", "feedback")
    op.drop_index("reviews_shown", "reviews")


def _create_partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
