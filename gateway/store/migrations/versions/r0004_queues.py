"""Priorities, skills, escalations, and when reviews were claimed and decided; and all that the decision log can tell.

Rows of reviews and of the decision log stay where they are.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.migrations.checks import change_check

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UNDECIDED = "state IN ('open', 'claimed')"
_EVENTS = (
    "event IN ('accept', 'defer', 'decide')",
    "event IN ('accept', 'defer', 'decide', 'correct', 'undo', 'cancel', 'expire', 'escalate', 'opinion', 'erase')",
)
_COLUMNS = ("priority", "skills", "moved_s", "escalations", "recalled", "overdue_s", "claimed_s", "decided_s")


def upgrade() -> None:
    """Add the columns of reviews, and order their indexes by priority."""
    op.create_table("skill_sets", sa.Column("skills", sa.Text, primary_key=True))
    for column in (
        sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("5")),
        sa.Column("skills", sa.Text, nullable=False, server_default="[]"),
        sa.Column("moved_s", sa.Double),
        sa.Column("escalations", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("recalled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("overdue_s", sa.Double),
        sa.Column("claimed_s", sa.Double),
        sa.Column("decided_s", sa.Double),
    ):
        op.add_column("reviews", column)
    _drop_indexes("reviews_due", "reviews_undecided", "reviews_queued")
    op.create_index("reviews_due", "reviews", ["tenant", "priority", "due_s", "id"])
    _create_partial_index("reviews_undecided", ["tenant", "priority", "due_s", "id"], _UNDECIDED)
    queued = ["tenant", "queue", "priority", "due_s", "id", "skills", "state"]
    _create_partial_index("reviews_queued", queued, _UNDECIDED)
    _create_partial_index("reviews_to_escalate", ["due_s", "id"], f"{_UNDECIDED} AND overdue_s IS NULL")
    times = ["tenant", "queue", "decided_s", "priority", "reviewer", "created_s", "moved_s", "claimed_s"]
    _create_partial_index("reviews_decided", times, "state = 'decided'")
    change_check("decision_log", "decision_log_event", *_EVENTS, rows_hold=True)


def downgrade() -> None:
    """Remove the columns; escalations that were logged stay in the log."""
    change_check("decision_log", "decision_log_event", *reversed(_EVENTS), rows_hold=False)
    _drop_indexes("reviews_due", "reviews_undecided", "reviews_queued", "reviews_to_escalate", "reviews_decided")
    for column in _COLUMNS:
        op.drop_column("reviews", column)
    op.create_index("reviews_due", "reviews", ["tenant", "due_s", "id"])
    _create_partial_index("reviews_undecided", ["tenant", "due_s", "id"], "state <> 'decided'")
    _create_partial_index("reviews_queued", ["tenant", "queue", "due_s", "id"], "state <> 'decided'")
    op.drop_table("skill_sets")


def _drop_indexes(*names: str) -> None:
    for name in names:
        op.drop_index(name, "reviews")


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "reviews", columns, sqlite_where=where, postgresql_where=where)
