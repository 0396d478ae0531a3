"""Sends mail by SMTP, in a thread: one message, one connection.

Python's own `smtplib` is enough: mail is rare (a message a rule in minutes), and a thread that waits costs nothing
else. Rejected: aiosmtplib, which would be one more dependency for that.

A message keeps its Message-ID over all attempts, by which whoever gets it twice knows it. What the server refuses for
good (5xx, RFC 5321) is not tried again; a refused password is, since an operator can mend that. Of several mailboxes
those that the server takes get it; the others are told in the message's state.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate

import orjson

from gateway.notices.options import MailSecurity, NoPassword, SmtpOptions
from gateway.store.contract import Delivery
from gateway.webhooks.deliver import TOLD_CHARS, Reply, Verdict

_ALL_S = 45.0
"""What an attempt may take altogether; the thread goes on, at most until the server's next answer is late."""


@dataclass(frozen=True, slots=True)
class MailTarget:
    """Mailboxes; implements `gateway.webhooks.deliver.Target`."""

    smtp: SmtpOptions
    addressees: tuple[str, ...]

    async def send(self, delivery: Delivery) -> Reply:
        """See `Target.send`."""
        try:
            async with asyncio.timeout(_ALL_S):
                return await asyncio.to_thread(self._send, delivery)
        except TimeoutError:
            return Reply(Verdict.NOT_NOW, f"{self.smtp.host} took longer than {_ALL_S:g} s")

    def _send(self, delivery: Delivery) -> Reply:
        try:
            server = _connected(self.smtp)
            try:
                refused = server.send_message(self._mail(delivery), self.smtp.sender, self.addressees)
            finally:
                with suppress(smtplib.SMTPException, OSError):  # what was taken is taken, however we part
                    server.quit()
        except NoPassword as error:
            return Reply(Verdict.NOT_NOW, str(error))
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            return Reply(_verdict(min(codes)), _told("no mailbox was taken", next(iter(error.recipients.values()))))
        except smtplib.SMTPAuthenticationError as error:
            return Reply(Verdict.NOT_NOW, _told("the login was refused", (error.smtp_code, error.smtp_error)))
        except smtplib.SMTPResponseException as error:
            return Reply(_verdict(error.smtp_code), _told("refused", (error.smtp_code, error.smtp_error)))
        except (smtplib.SMTPException, OSError, ValueError) as error:
            return Reply(Verdict.NOT_NOW, f"{type(error).__name__}: {error}"[:TOLD_CHARS])
        if refused:
            first = next(iter(refused.values()))
            what = f"{len(refused)} of {len(self.addressees)} mailboxes were refused"
            return Reply(Verdict.TAKEN, _told(what, first))
        return Reply(Verdict.TAKEN, f"taken by {self.smtp.host}")

    def _mail(self, delivery: Delivery) -> EmailMessage:
        told = orjson.loads(delivery.message.body)
        mail = EmailMessage()
        mail["From"] = self.smtp.sender
        mail["To"] = ", ".join(self.addressees)
        mail["Subject"] = told["subject"]
        mail["Date"] = formatdate(time.time())
        mail["Message-ID"] = f"<{delivery.message.id}@{self.smtp.sender.partition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no reply is wanted from a machine
        mail.set_content(told["text"])
        return mail


def _connected(options: SmtpOptions) -> smtplib.SMTP:
    """A server that has proven itself, and where *options* say so has let us in.

    Raises:
        NoPassword, OSError, smtplib.SMTPException: neither.
    """
    if options.security is MailSecurity.TLS:
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            options.host, options.port, timeout=options.timeout_s, context=_context(options)
        )
    else:
        server = smtplib.SMTP(options.host, options.port, timeout=options.timeout_s)
    try:
        if options.security is MailSecurity.STARTTLS:
            server.starttls(context=_context(options))
        if options.user is not None:
            server.login(options.user, options.password())
    except BaseException:
        server.close()
        raise
    return server


def _context(options: SmtpOptions) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=options.ca)


def _verdict(code: int) -> Verdict:
    return Verdict.NEVER if code >= 500 else Verdict.NOT_NOW


def _told(what: str, said: tuple[int, bytes | str]) -> str:
    code, words = said
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return " ".join(f"{what}: {code} {text}".split())[:TOLD_CHARS]
