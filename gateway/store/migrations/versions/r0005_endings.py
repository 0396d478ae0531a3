"""What can become of an answer beside a decision: cancelled, expired, corrected, taken back; and its revisions.

SQLite cannot change a CHECK, so the two tables of which one changes are written anew there.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_HELD = (
    "(state = 'open' AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL AND label IS NULL)"
    " OR (state = 'claimed' AND reviewer IS NOT NULL AND owner IS NOT NULL AND lease_until_s IS NOT NULL"
    " AND label IS NULL)"
    " OR (state = 'decided' AND reviewer IS NOT NULL AND owner IS NULL AND lease_until_s IS NULL"
    " AND label IS NOT NULL)"
)
_OVER = (
    " OR (state IN ('cancelled', 'expired') AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL"
    " AND label IS NULL)"
)
_STATUSES = "status IN ('final', 'provisional', 'pending'{})"


def upgrade() -> None:
    """Let reviews and items end without a decision, and make the table of revisions."""
    with op.batch_alter_table("reviews") as reviews:
        reviews.drop_constraint("reviews_state", type_="check")
        # Before the payload, behind which SQLite would look for it through all of that.
        is_rewritten = op.get_context().dialect.name == "sqlite"
        reviews.add_column(sa.Column("expires_s", sa.Double), insert_before="content_type" if is_rewritten else None)
        reviews.create_check_constraint("reviews_state", sa.text(_HELD + _OVER))
    undecided = "state IN ('open', 'claimed')"
    _create_partial_index("reviews_expiring", "reviews", ["expires_s", "id"], f"{undecided} AND expires_s IS NOT NULL")
    with op.batch_alter_table("answer_items") as items:
        items.drop_constraint("answer_items_status", type_="check")
        items.create_check_constraint("answer_items_status", sa.text(_STATUSES.format(", 'cancelled', 'expired'")))
    _drop_indexes("decision_log", "decision_log_ruled")
    _create_partial_index(
        "decision_log_ruled", "decision_log", ["answer_id", "item"], "event IN ('decide', 'correct', 'undo')"
    )
    op.create_table(
        "answer_revisions",
        sa.Column("answer_id", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("actor", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("was_status", sa.Text, nullable=False),
        sa.Column("was_label", sa.Text),
        sa.Column("was_confidence", sa.Double),
        sa.Column("was_decided_by", sa.Text),
        sa.Column("was_outputs", sa.LargeBinary),
    )
    _create_partial_index("outbox_waiting", "outbox", ["answer_id"], "state = 'waiting'")


def downgrade() -> None:
    """Forget revisions; what ended without a decision is uncertain for good, as where a route has nobody to ask.

    The decision log keeps its rows: without them its chains would be broken.
    """
    op.drop_index("outbox_waiting", "outbox")
    op.drop_table("answer_revisions")
    _drop_indexes("decision_log", "decision_log_ruled")
    _create_partial_index("decision_log_ruled", "decision_log", ["answer_id", "item"], "event = 'decide'")
    op.execute(
        "UPDATE answer_items SET decided_by = 'nobody',"
        " status = CASE WHEN stage IS NULL THEN 'pending' ELSE 'provisional' END"
        " WHERE status IN ('cancelled', 'expired')"
    )
    with op.batch_alter_table("answer_items") as items:
        items.drop_constraint("answer_items_status", type_="check")
        items.create_check_constraint("answer_items_status", sa.text(_STATUSES.format("")))
    op.execute("DELETE FROM reviews WHERE state IN ('cancelled', 'expired')")
    _drop_indexes("reviews", "reviews_expiring")
    with op.batch_alter_table("reviews") as reviews:
        reviews.drop_constraint("reviews_state", type_="check")
        reviews.create_check_constraint("reviews_state", sa.text(_HELD))
        reviews.drop_column("expires_s")


def _drop_indexes(table: str, *names: str) -> None:
    for name in names:
        op.drop_index(name, table)


def _create_partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
