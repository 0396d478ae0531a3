"""Who sits before the browser: a signed cookie, and the token that proves a form came from our own page.

The cookie says who, not what they may do: roles and tenant are looked up at every request, and the cookie carries a
mark of the key it was opened with, so that a key that is withdrawn or replaced ends its sessions. It holds no key and
no digest of one. The signing secret lives as long as the process: a restart logs everybody out, which costs a reviewer
one paste and saves the operator a secret to keep.

A form's token is an HMAC over the session's id, so it is worth nothing in another session. The login form has no
session to be bound to; `refuse_foreign_pages` alone guards it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeTimedSerializer

from backends.errors import PermissionDenied
from gateway.request import Caller
from gateway.security import ANYBODY, ApiKey, Authenticator

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

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float] = time.time) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._cookies = URLSafeTimedSerializer(self._secret, salt="session")
        self._ended: dict[str, float] = {}

    def open(self, reviewer: str, key: ApiKey | None) -> str:
        """The cookie of a new session of *reviewer*, who showed *key* (None where none is needed)."""
        mark = "" if key is None else self._mark(key)
        return self._cookies.dumps([secrets.token_hex(16), reviewer, mark])

    def read(self, cookies: Mapping[str, str]) -> Session | None:
        """The session that a browser's *cookies* belong to; None where it has none, or none that is still good."""
        try:
            session_id, reviewer, mark = self._cookies.loads(cookies.get(COOKIE, ""), max_age=SESSION_S)
        except BadData:
            return None
        if session_id in self._ended:
            return None
        if not self._authenticator.needs_key:
            return Session(session_id, reviewer, ANYBODY) if mark == "" else None
        key = self._authenticator.named(reviewer)
        if key is None or not hmac.compare_digest(mark, self._mark(key)):
            return None
        return Session(session_id, reviewer, key.caller)

    def end(self, session: Session) -> None:
        """Make *session*'s cookie worthless, wherever a copy of it may be."""
        now = self._clock()
        self._ended = {ended: at for ended, at in self._ended.items() if now - at <= SESSION_S}
        self._ended[session.id] = now

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
