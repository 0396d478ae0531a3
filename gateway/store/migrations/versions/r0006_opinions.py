"""Several opinions on an item, second opinions and gold items.

Reviews as they were are decided by one person, as they would have been.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_PURPOSE = (
    "(purpose = 'decide' AND NOT blind) OR (purpose IN ('second', 'gold') AND subject IS NOT NULL AND second = 'none')"
)
_PANEL = "1 <= needed AND needed <= most AND (needed > 1 OR NOT adjudicating)"
_SECOND = "second IN ('none', 'drawn') OR (second IN ('asked', 'given') AND state = 'decided')"
_KIND = (
    "(kind IN ('panel', 'first', 'second', 'adjudication') AND number IS NOT NULL AND truth IS NULL)"
    " OR (kind = 'gold' AND number IS NULL AND truth IS NOT NULL)"
)
_GOLD_WAITING = "purpose = 'gold' AND state <> 'decided'"
_SECONDS = "kind IN ('first', 'second', 'adjudication')"
_ADDED = ("purpose", "subject", "needed", "most", "adjudicate", "adjudicating", "blind", "second")


def upgrade() -> None:
    """Let an item have several reviews, and make the tables beside them."""
    _widen_reviews()
    op.create_table(
        "opinions",
        sa.Column("subject", sa.String(32), primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True),
        sa.Column("reviewer", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("truth", sa.Text),
        sa.Column("settles", sa.Boolean, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.UniqueConstraint("subject", "item", "number", name="opinions_one_a_number"),
        sa.CheckConstraint(_KIND, name="opinions_kind"),
    )
    op.create_index("opinions_given", "opinions", ["tenant", "at_s"])
    _create_partial_index("opinions_seconds", "opinions", ["route", "subject", "item"], _SECONDS)
    op.create_table(
        "gold_items",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("added_s", sa.Double, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("proposals", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_index("gold_items_least_asked", "gold_items", ["tenant", "queue", "asked", "id"])
    table = op.create_table(
        "secrets", sa.Column("name", sa.Text, primary_key=True), sa.Column("secret", sa.LargeBinary, nullable=False)
    )
    op.execute(table.insert().values(name="draws", secret=secrets.token_bytes(32)))


def downgrade() -> None:
    """Remove what checks people, and what they said to it; the log keeps its rows."""
    op.execute("DELETE FROM answers WHERE id IN (SELECT answer_id FROM reviews WHERE purpose = 'gold')")
    op.execute("DELETE FROM reviews WHERE purpose <> 'decide'")
    for table in ("secrets", "gold_items", "opinions"):
        op.drop_table(table)
    op.drop_index("reviews_gold", "reviews")
    with op.batch_alter_table("reviews") as reviews:
        for name in ("reviews_purpose", "reviews_panel", "reviews_second"):
            reviews.drop_constraint(name, type_="check")
        reviews.drop_constraint("reviews_one_an_item", type_="unique")
        reviews.drop_constraint("reviews_adjudicate", type_="foreignkey")
        for name in _ADDED:
            reviews.drop_column(name)
        reviews.create_unique_constraint("reviews_one_an_item", ["answer_id", "item"])


def _widen_reviews() -> None:
    columns: tuple[sa.Column[Any], ...] = (  # Any: of many types
        sa.Column("purpose", sa.Text, nullable=False, server_default="decide"),
        sa.Column("subject", sa.String(32)),
        sa.Column("needed", sa.Integer, nullable=False, server_default="1"),
        sa.Column("most", sa.Integer, nullable=False, server_default="1"),
        sa.Column("adjudicate", sa.Text),
        sa.Column("adjudicating", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("blind", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("second", sa.Text, nullable=False, server_default="none"),
    )
    is_copied = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("reviews", recreate="always" if is_copied else "never") as reviews:
        for column, before in zip(columns, ("label", *_ADDED), strict=False):
            # Before the wide ones, where a table can have that.
            reviews.add_column(column, insert_after=before if is_copied else None)
        reviews.create_foreign_key("reviews_adjudicate", "queues", ["adjudicate"], ["name"])
        reviews.drop_constraint("reviews_one_an_item", type_="unique")
        reviews.create_unique_constraint("reviews_one_an_item", ["answer_id", "item", "purpose"])
        reviews.create_check_constraint("reviews_purpose", _PURPOSE)
        reviews.create_check_constraint("reviews_panel", _PANEL)
        reviews.create_check_constraint("reviews_second", _SECOND)
    _create_partial_index("reviews_gold", "reviews", ["subject", "due_s"], _GOLD_WAITING)


def _create_partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
