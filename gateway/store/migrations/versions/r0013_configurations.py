"""Configurations that replicas of a cluster serve, in their versions.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of them."""
    op.create_table(
        "configurations",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("made_s", sa.Double, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("rolled_s", sa.Double, nullable=False),
        sa.Column("rolled_by", sa.Text, nullable=False),
        sa.Column("served_s", sa.Double),
        sa.Column("called_off", sa.Text),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.CheckConstraint("version >= 1 AND length(digest) = 64", name="configurations_identity"),
        sa.CheckConstraint(
            "called_off IS NULL OR (called_off <> '' AND (served_s IS NULL OR served_s < rolled_s))",
            name="configurations_end",
        ),
    )
    op.create_index("configurations_rolled", "configurations", ["rolled_s"])


def downgrade() -> None:
    """Forget which there were."""
    op.drop_table("configurations")
