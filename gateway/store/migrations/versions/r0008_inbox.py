"""Who took a review and when; the decision log by what people were shown, and messages by their answer.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of claims, and what finds an item that people had, equal inputs, and messages about an answer."""
    op.create_table(
        "review_claims",
        sa.Column("review_id", sa.String(32), sa.ForeignKey("reviews.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("returned_s", sa.Double),
    )
    handed_over, shown = sa.text("event <> 'accept'"), sa.text("payload_sha256 IS NOT NULL")
    op.create_index(
        "decision_log_handed_over",
        "decision_log",
        ["answer_id", "item"],
        sqlite_where=handed_over,
        postgresql_where=handed_over,
    )
    op.create_index(
        "decision_log_shown", "decision_log", ["payload_sha256"], sqlite_where=shown, postgresql_where=shown
    )
    op.create_index("outbox_answer", "outbox", ["answer_id"])


def downgrade() -> None:
    """Forget who took what."""
    op.drop_index("outbox_answer", "outbox")
    op.drop_index("decision_log_shown", "decision_log")
    op.drop_index("decision_log_handed_over", "decision_log")
    op.drop_table("review_claims")
