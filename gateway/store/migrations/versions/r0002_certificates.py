"""Certificates, looks at labels for them, and the labelled items in the decision log, found by index.

Rows of the decision log stay as they are, and so do their hashes.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of certificates, and the indexes of the decision log."""
    op.create_table(
        "certificates",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("max_error", sa.Double, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("valid_until_s", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("certificates_route", "certificates", ["route", "created_s"])
    op.create_table(
        "certification_looks",
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("look", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("evidence", sa.String(64), nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )
    scored = sa.text("reason IN ('no_certificate', 'observed')")
    op.create_index(
        "decision_log_scored", "decision_log", ["route", "at_s"], sqlite_where=scored, postgresql_where=scored
    )
    ruled = sa.text("event = 'decide'")
    op.create_index(
        "decision_log_ruled", "decision_log", ["answer_id", "item"], sqlite_where=ruled, postgresql_where=ruled
    )


def downgrade() -> None:
    """Remove the indexes, and every certificate."""
    op.drop_index("decision_log_ruled", "decision_log")
    op.drop_index("decision_log_scored", "decision_log")
    op.drop_table("certification_looks")
    op.drop_table("certificates")
