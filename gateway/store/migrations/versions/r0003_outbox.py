"""Messages for webhooks.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of messages."""
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("webhook", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("answer_id", sa.String(32), nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_s", sa.Double, nullable=False),
        sa.Column("last", sa.Text, nullable=False),
        sa.Column("ended_s", sa.Double),
        sa.Column("body", sa.Text, nullable=False),
        sa.CheckConstraint(
            "(state = 'waiting' AND ended_s IS NULL) OR (state IN ('delivered', 'dead') AND ended_s IS NOT NULL)",
            name="outbox_state",
        ),
    )
    waiting, undelivered = sa.text("state = 'waiting'"), sa.text("state <> 'delivered'")
    op.create_index("outbox_due", "outbox", ["webhook", "next_s", "id"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index(
        "outbox_undelivered", "outbox", ["webhook", "state"], sqlite_where=undelivered, postgresql_where=undelivered
    )
    op.create_index("outbox_ended", "outbox", ["ended_s"])


def downgrade() -> None:
    """Remove every message."""
    op.drop_table("outbox")
