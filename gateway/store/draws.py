"""The store's secret, which draws of samples follow from, and what is drawn by it for reviews.

Drawn is when an item is handed over, from its answer's id: committing an answer again draws nothing anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from gateway.answer import Answer
from gateway.store.contract import ReviewTask
from gateway.store.schema import SECRETS
from router.draws import is_drawn

_SECRET = select(SECRETS.c.secret).where(SECRETS.c.name == "draws")


def secret_for(connection: Connection, tasks: Sequence[ReviewTask]) -> bytes:
    """What draws for *tasks* follow from; none where nothing is drawn for them."""
    if not any(task.quality.gold or task.quality.second_opinion for task in tasks):
        return b""
    found: bytes = connection.execute(_SECRET).scalar_one()
    return found


def wants_second(secret: bytes, answer: Answer, task: ReviewTask) -> bool:
    """Whether another person is to be asked about *task*, which is of *answer*, once one has decided it."""
    share = task.quality.second_opinion if task.quality.needed == 1 else 0.0
    return _is_drawn(secret, share, "second", answer, task)


def wants_gold(secret: bytes, answer: Answer, task: ReviewTask) -> bool:
    """Whether a gold item is to be put beside *task*, which is of *answer*."""
    return _is_drawn(secret, task.quality.gold, "gold", answer, task)


def _is_drawn(secret: bytes, share: float, what: str, answer: Answer, task: ReviewTask) -> bool:
    return share > 0.0 and is_drawn(secret, share, what, answer.tenant, answer.id, str(task.item))
