"""Posts messages to webhooks: signed, to an address that is allowed, and nowhere else.

A receiver has 20 s to answer with 2xx. Redirects are not followed. 410 says that nobody is there any more.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from backends.credentials import retry_after_s
from gateway.store.contract import Delivery
from gateway.webhooks.addresses import check, check_host
from gateway.webhooks.deliver import TOLD_CHARS, Reply, Verdict
from gateway.webhooks.events import CONTENT_TYPE
from gateway.webhooks.options import NoSecret, WebhookOptions
from gateway.webhooks.signing import headers

_ANSWER_S, _CONNECT_S = 20.0, 5.0
_TOLD_BYTES = 1024


@asynccontextmanager
async def webhook_targets(
    webhooks: Sequence[WebhookOptions], clock: Callable[[], float] = time.time
) -> AsyncIterator[dict[str, WebhookTarget]]:
    """Where messages for *webhooks* go, by name; *clock* is Unix time, in seconds, that they are signed with."""
    async with _session(private=False) as public, _session(private=True) as private:
        yield {
            webhook.name: WebhookTarget(webhook, private if webhook.private else public, clock) for webhook in webhooks
        }


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """One webhook; implements `gateway.webhooks.deliver.Target`."""

    webhook: WebhookOptions
    session: aiohttp.ClientSession
    clock: Callable[[], float]

    async def send(self, delivery: Delivery) -> Reply:
        """See `Target.send`."""
        url = URL(self.webhook.url)
        body = delivery.message.body.encode()
        try:
            check_host(url.raw_host or "", private=self.webhook.private)
            keys = await asyncio.to_thread(self.webhook.secrets)
            signed = headers(delivery.message.id, int(self.clock()), body, keys)
            async with self.session.post(
                url, data=body, headers={"content-type": CONTENT_TYPE, **signed}, allow_redirects=False
            ) as response:
                said = (await response.content.read(_TOLD_BYTES)).decode(errors="replace")
                told = " ".join(f"{response.status} {response.reason or ''}: {said}".split())[:TOLD_CHARS]
                wait_s = retry_after_s(response.headers.get("retry-after", "")) or 0.0
                return Reply(_verdict(response.status), told, wait_s)
        except NoSecret as error:
            return Reply(Verdict.NOT_NOW, str(error))
        except TimeoutError:
            return Reply(Verdict.NOT_NOW, f"no answer within {_ANSWER_S:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
            return Reply(Verdict.NOT_NOW, f"{type(error).__name__}: {error}{cause}"[:TOLD_CHARS])


def _verdict(status: int) -> Verdict:
    if 200 <= status < 300:
        return Verdict.TAKEN
    return Verdict.NEVER if status == 410 else Verdict.NOT_NOW


def _session(*, private: bool) -> aiohttp.ClientSession:
    # A connection for every attempt: they are rare, and each looks its address up anew.
    connector = aiohttp.TCPConnector(resolver=_CheckedResolver(private=private), use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=_CONNECT_S)
    own = {"user-agent": "pointsman"}
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=own, trust_env=False)


class _CheckedResolver(AbstractResolver):
    """Looks names up, and gives no address that `check` refuses."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of *host*.

        Raises:
            Forbidden: one of them is refused; a name that has such a one is meant to mislead.
            OSError: it cannot be looked up.
        """
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            check(result["host"], private=self._private)
        return found

    async def close(self) -> None:
        """Free what it holds."""
        await self._resolver.close()
