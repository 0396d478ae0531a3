"""Leases of what one gateway of all does.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of them."""
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.BigInteger, nullable=False),
        sa.Column("until_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Let everybody do it."""
    op.drop_table("leases")
