"""Items that stood as models had them, by their answer, so that feedback finds them when the answer is gone.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index of them."""
    observed = sa.text("event = 'accept' AND reason IN ('no_certificate', 'observed')")
    op.create_index(
        "decision_log_observed",
        "decision_log",
        ["answer_id", "item"],
        sqlite_where=observed,
        postgresql_where=observed,
    )


def downgrade() -> None:
    """Do without it."""
    op.drop_index("decision_log_observed", "decision_log")
