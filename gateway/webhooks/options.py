"""What an operator can say about a webhook."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gateway.webhooks.addresses import Forbidden, check_host
from gateway.webhooks.signing import Secret


class NoSecret(ValueError):
    """A webhook's secret cannot be had; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """Who is told of final answers, or of reviews.

    Attributes:
        url: http or https, without user and fragment.
        secret_env, secret_file: where its secrets are, one of the two: a variable, or a file that is read anew for
            every attempt; one secret a line, `whsec_` and base64, two while they are changed over.
        tenant: whose answers.
        routes: of which routes; empty: of all.
        private: it may be on this machine, or in a private network.
        answers: it is told of final answers; else only of what `notify` says.
    """

    name: str
    url: str
    secret_env: str | None = None
    secret_file: Path | None = None
    tenant: str = "default"
    routes: frozenset[str] = frozenset()
    private: bool = False
    answers: bool = True

    def why_not_url(self) -> str | None:
        """What is wrong with `url`, and the remedy; None: nothing that can be seen without asking for it."""
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            return f"is no URL: {error}; write https://HOST/PATH"
        if parts.scheme not in ("https", "http") or not host:
            return "is no address of a web server; write https://HOST/PATH"
        if parts.username is not None or parts.fragment:
            return "holds a user or a fragment, which a webhook has not; its messages are signed instead"
        if parts.scheme == "http" and not self.private:
            return "is not encrypted; use https, or set `private: true` where it is in your own network"
        try:
            check_host(host, private=self.private)
        except Forbidden as error:
            return f"leads where no message may go: {error}"
        return None

    def secrets(self) -> tuple[Secret, ...]:
        """What messages are signed with, at this moment.

        Raises:
            NoSecret: there is none, or what is there is none.
        """
        if self.secret_file is not None:
            where = str(self.secret_file)
            try:
                text = self.secret_file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise NoSecret(f"the secret's file cannot be read: {error}") from error
        else:
            where = f"the environment's {self.secret_env}"
            text = os.environ.get(self.secret_env or "", "")
        try:
            found = tuple(Secret.parse(line) for line in text.split())
        except ValueError as error:
            raise NoSecret(f"{where} holds no secret: {error}") from error
        if not found:
            raise NoSecret(f"{where} is empty; put a secret there, which `pointsman webhooks secret` makes")
        return found

    def wants(self, tenant: str, route: str) -> bool:
        """Whether it is told of answers of *tenant* by *route*."""
        return self.answers and tenant == self.tenant and (not self.routes or route in self.routes)
