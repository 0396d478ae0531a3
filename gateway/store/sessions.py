"""Sessions of the inbox, as far as every gateway must know of them: which are over, and what can be taken back in one.

A row is there from the first of these until neither matters any more. A session that is over stays over: an offer to
take something back that comes later, from another gateway, finds the row and leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import Connection, delete, not_, select, update

from gateway.store.bulk import Existing, insert_rows
from gateway.store.contract import Decided, UndoOffer
from gateway.store.schema import INBOX_SESSIONS
from gateway.store.transaction import Transaction

_C = INBOX_SESSIONS.c
_NOTHING = "[]"


def end(transaction: Transaction, session_id: str, known_s: float) -> None:
    """The session is over, which is known for *known_s* seconds."""
    row = (session_id, transaction.now_s + known_s, True, _NOTHING)
    insert_rows(transaction.connection, INBOX_SESSIONS, [row], Existing.REPLACED)


def is_over(connection: Connection, session_id: str) -> bool:
    """Whether it was ended, at whichever gateway."""
    return connection.execute(select(_C.is_over).where(_C.id == session_id)).scalar() is True


def offer_undo(transaction: Transaction, session_id: str, reviews: Sequence[Decided], for_s: float) -> None:
    """*reviews* alone can be taken back in the session, for *for_s* seconds."""
    made = orjson.dumps([[one.review_id, one.fence] for one in reviews]).decode()
    until_s = transaction.now_s + for_s
    known = update(INBOX_SESSIONS).where(_C.id == session_id, not_(_C.is_over)).values(made=made, until_s=until_s)
    if transaction.connection.execute(known).rowcount == 0 and reviews:
        insert_rows(transaction.connection, INBOX_SESSIONS, [(session_id, until_s, False, made)], Existing.KEPT)


def undo_offer(connection: Connection, session_id: str, now_s: float) -> UndoOffer | None:
    """What can be taken back in the session; None where nothing can, any more."""
    offered = select(_C.made, _C.until_s).where(_C.id == session_id, not_(_C.is_over), _C.until_s > now_s)
    row = connection.execute(offered).first()
    if row is None or row.made == _NOTHING:
        return None
    return UndoOffer(tuple(Decided(*one) for one in orjson.loads(row.made)), row.until_s - now_s)


def forget(transaction: Transaction) -> int:
    """Forget those of which nothing matters any more; how many."""
    over = _C.until_s <= transaction.now_s
    return transaction.connection.execute(delete(INBOX_SESSIONS).where(over)).rowcount
