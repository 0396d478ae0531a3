"""What an operator can say about telling reviewers, and about the server that takes mail."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gateway.store.contract import NoticeKind, NoticeRule

_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")


class NoPassword(ValueError):
    """A password cannot be had; the message says why, and what to do."""


class MailSecurity(StrEnum):
    """How the connection to a mail server is encrypted."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """The server that takes mail, and as whom it is sent.

    Attributes:
        host, port: of the server.
        sender: the mailbox that mail comes from.
        security: nothing is sent, and nobody logs in, where the server does not prove itself; `none` is for a server
            on this machine, or in one's own network.
        user: to log in with; None: nobody does.
        password_env, password_file: where the password is, one of the two; read anew for every attempt.
        ca: certificates (PEM) that prove the server; None: the system's.
        timeout_s: for the server to connect, and for each of its answers.
    """

    host: str
    sender: str
    port: int = 587
    security: MailSecurity = MailSecurity.STARTTLS
    user: str | None = None
    password_env: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = 10.0

    def password(self) -> str:
        """The password, at this moment.

        Raises:
            NoPassword: there is none.
        """
        if self.password_file is not None:
            where = str(self.password_file)
            try:
                found = self.password_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise NoPassword(f"the password's file cannot be read: {error}") from error
        else:
            where = f"the environment's {self.password_env}"
            found = os.environ.get(self.password_env or "", "")
        if not found:
            raise NoPassword(f"{where} is empty; put the password of {self.user} there")
        return found


@dataclass(frozen=True, slots=True)
class NotifyOptions:
    """Who is told of the reviews of a queue.

    Attributes:
        webhook: its name; or
        email: mailboxes.
        on: what they are told of.
        digest_s: least seconds between two messages.
        ahead_s: seconds before a review is due from which on it counts as due.
        link: where the inbox is, for people; "": nothing is said of it.
    """

    queue: str
    webhook: str | None = None
    email: tuple[str, ...] = ()
    on: frozenset[NoticeKind] = frozenset(NoticeKind)
    tenant: str = "default"
    digest_s: float = 300.0
    ahead_s: float = 0.0
    link: str = ""

    @property
    def rule(self) -> NoticeRule:
        """It, as the store knows it: others who are told, or of another queue, are another rule."""
        known_by = json.dumps([self.tenant, self.queue, self.webhook, sorted(self.email)])
        rule_id = hashlib.sha256(known_by.encode()).hexdigest()[:32]
        return NoticeRule(rule_id, self.tenant, self.queue, self.on, self.ahead_s, self.digest_s)

    @property
    def target(self) -> str:
        """What messages call whom they are for."""
        return self.webhook or f"email:{self.queue}:{self.rule.id[:8]}"


def is_mailbox(text: str) -> bool:
    """Whether *text* is an address that mail can be sent to, as `anna@example.org`."""
    return _MAILBOX.fullmatch(text) is not None
