"""Who sits before the browser: a signed cookie, and the token that proves a form came from our own page.

The cookie says who, not what they may do: roles and tenant are looked up at every request, and the cookie carries a
mark of the key it was opened with, so that a key that is withdrawn or replaced ends its sessions. It holds no key and
no digest of one.

Whichever gateway of a store a browser meets, before and after restarts, its session is the same one: what signs it
comes from the store's key, which all of them have, and which is not in the store. So that it ends at all of them too,
who has logged out is in the store, for as long as their cookie could be shown; it is looked up at every request.
Rejected: a secret for each process (behind a balancer every second click would ask for the key again), one in the store
(no copy of a store, nor a backup, is to be worth a session), and one out of reviewers' keys (there may be none).

A form's token is an HMAC over the session's id, so it is worth nothing in another session. The login form has no
session to be bound to; `refuse_foreign_pages` alone guards it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeTimedSerializer

from backends.errors import PermissionDenied
from gateway.request import Caller
from gateway.security import ANYBODY, ApiKey, Authenticator
from gateway.store.contract import SessionStore

COOKIE = "pointsman_session"
SESSION_S = 12 * 3600
"""A working day: then the key, or the name, is asked for again."""


@dataclass(frozen=True, slots=True)
class Session:
    """A reviewer at a browser.

    Attributes:
        id: unguessable; forms are bound to it.
        reviewer: the name under which they decide.
        caller: whose data they see, and what they may do.
    """

    id: str
    reviewer: str
    caller: Caller


class Sessions:
    """Opens, reads and ends sessions."""

    def __init__(self, authenticator: Authenticator, store: SessionStore) -> None:
        self._authenticator = authenticator
        self._store = store
        self._secret = store.session_secret
        self._cookies = URLSafeTimedSerializer(self._secret, salt="session")

    def open(self, reviewer: str, key: ApiKey | None) -> str:
        """The cookie of a new session of *reviewer*, who showed *key* (None where none is needed)."""
        mark = "" if key is None else self._mark(key)
        return self._cookies.dumps([secrets.token_hex(16), reviewer, mark])

    async def read(self, cookies: Mapping[str, str]) -> Session | None:
        """The session that a browser's *cookies* belong to; None where it has none, or none that is still good."""
        session = self._shown(cookies)
        return None if session is None or await self._store.is_session_over(session.id) else session

    def _shown(self, cookies: Mapping[str, str]) -> Session | None:
        """The session that *cookies* tell of, ended or not."""
        try:
            session_id, reviewer, mark = self._cookies.loads(cookies.get(COOKIE, ""), max_age=SESSION_S)
        except BadData:
            return None
        if not self._authenticator.needs_key:
            return Session(session_id, reviewer, ANYBODY) if mark == "" else None
        key = self._authenticator.named(reviewer)
        if key is None or not hmac.compare_digest(mark, self._mark(key)):
            return None
        return Session(session_id, reviewer, key.caller)

    async def end(self, session: Session) -> None:
        """Make *session*'s cookie worthless, wherever a copy of it may be, and at whichever gateway it is shown."""
        await self._store.end_session(session.id, SESSION_S)

    def form_token(self, session: Session) -> str:
        """What every form shown in *session* carries."""
        return self._hmac("form:" + session.id)

    def check_form(self, session: Session, token: str) -> None:
        """Accept a form that was shown in *session*.

        Raises:
            PermissionDenied: *token* is not the session's.
        """
        if not hmac.compare_digest(token.encode(), self.form_token(session).encode()):
            raise PermissionDenied("this form belongs to another session; go back to the inbox and try again")

    def _mark(self, key: ApiKey) -> str:
        return self._hmac("key:" + key.sha256)

    def _hmac(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
