"""Sessions of the inbox, as far as all gateways must know of them.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of them."""
    op.create_table(
        "inbox_sessions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("until_s", sa.Double, nullable=False),
        sa.Column("is_over", sa.Boolean, nullable=False),
        sa.Column("made", sa.Text, nullable=False),
    )
    op.create_index("inbox_sessions_until", "inbox_sessions", ["until_s"])


def downgrade() -> None:
    """Forget who has logged out."""
    op.drop_table("inbox_sessions")
