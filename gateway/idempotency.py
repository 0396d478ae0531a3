"""One key, one answer, one human task, however often a caller retries.

A request with an idempotency key takes the key first; whoever finds it taken waits for the first request rather than
working again, and is given the same answer in its current state. Refusals that any repetition would meet (4xx) are
stored with the key; failures that a retry may mend (5xx) give the key back.

The key is held under a lease, which is renewed while the work goes on, so that a slow answer is never begun twice, and
a process that dies loses its keys. A caller that leaves gives its key back, at whatever moment it leaves: it must be
able to come back with the same key at once.

**Sequences.** A step that is repeated under its key is not taken again: it is answered as before. Where there was no
answer its sequence is over (`batching.sequences`), so that a repetition, which works anew, finds no state to step on.

Requests in this process wait on an event; those of another process that shares the store are polled for. A waiter whose
deadline comes first is told so with a conflict: the first request goes on.

Source: the Idempotency-Key HTTP header draft (draft-ietf-httpapi-idempotency-key-header-06). We differ in letting
concurrent duplicates wait instead of refusing them at once, and in not storing 5xx.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from backends.contract import Deadline
from backends.errors import Code, Conflict, KeyReused, PointsmanError, SequenceUnknown, error_of
from gateway.answer import Answer
from gateway.request import Request
from gateway.store.contract import Done, Fresh, InProgress, KeyClaim, Mismatch, RequestKey, Store

POLL_S = 0.1
"""How often a request of another process is looked for."""

RENEW_S = 20.0
"""How often the lease on a key is renewed; well under the store's lease, so that one late renewal loses nothing."""

_STORED = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.UNSUPPORTED_MEDIA,
        Code.TOO_LARGE,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
    }
)
"""Refusals that a repetition meets again."""


@dataclass(frozen=True, slots=True)
class Held:
    """A key that this request owns under a fence, until it is finished or released."""

    key: RequestKey
    fence: int


Work = Callable[[Held | None], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A request of this process that owns its key."""

    fingerprint: bytes
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Idempotency:
    """Runs each key's work once. Single event loop; state survives in the store."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        words: Callable[[Request, PointsmanError], str] = lambda _, error: str(error),
    ) -> None:
        """Args:
        words: what is kept of why a request was refused, for its repetitions.
        """
        self._store = store
        self._clock = clock
        self._words = words
        self._running: dict[RequestKey, _Running] = {}

    async def run(self, request: Request, deadline: Deadline, work: Work) -> Answer:
        """Answer *request* by *work*, or by what an earlier request with its key was answered.

        Args:
            request: with or without a key.
            deadline: how long to wait for an earlier request with the key.
            work: keeps the answer and finishes the key in one transaction (`Store.commit`).

        Raises:
            KeyReused: the key came with another body before.
            Conflict: the first request with the key was not done by *deadline*.
            PointsmanError: what *work* raised, or what it raised the first time.
        """
        if request.idempotency_key is None:
            return await work(None)
        key = RequestKey(request.caller.tenant, request.route, request.idempotency_key)
        while True:
            if running := self._running.get(key):
                if running.fingerprint != request.fingerprint:
                    raise _reused()
                await self._wait(running, deadline)
                continue
            match await self._claim(key, request.fingerprint):
                case Fresh(fence):
                    return await self._first(Held(key, fence), request, work)
                case Done() as done:
                    return await self._replay(key, done)
                case Mismatch():
                    raise _reused()
                case InProgress():
                    await asyncio.sleep(min(self._remaining_s(deadline), POLL_S))

    async def _claim(self, key: RequestKey, fingerprint: bytes) -> KeyClaim:
        """Take *key*; where the caller leaves meanwhile, give back what the store had already granted."""
        claiming = asyncio.ensure_future(self._store.claim_key(key, fingerprint))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(PointsmanError):
                claim = await claiming
                if isinstance(claim, Fresh):
                    await self._store.release_key(key, claim.fence)
            raise

    async def _first(self, held: Held, request: Request, work: Work) -> Answer:
        running = self._running[held.key] = _Running(request.fingerprint)
        renewing = asyncio.ensure_future(self._renew(held))
        try:
            return await work(held)
        except PointsmanError as error:
            with suppress(PointsmanError):  # the store cannot write: it gives the key back once it can
                if error.code in _STORED and not isinstance(error, SequenceUnknown):
                    await self._store.finish_key(held.key, held.fence, error.code, self._words(request, error))
                else:
                    await self._store.release_key(held.key, held.fence)
            raise
        except BaseException:
            with suppress(PointsmanError):
                await asyncio.shield(self._store.release_key(held.key, held.fence))
            raise
        finally:
            renewing.cancel()
            del self._running[held.key]
            running.done.set()

    async def _renew(self, held: Held) -> None:
        """Keep the key for as long as the work goes on; a key that is lost is met by the commit's fence."""
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(PointsmanError):
                await self._store.renew_key(held.key, held.fence)

    async def _replay(self, key: RequestKey, done: Done) -> Answer:
        if done.answer_id is None:
            raise error_of(done.code or Code.INTERNAL, done.message)
        answer = await self._store.answer(key.tenant, done.answer_id)
        if answer is None:
            raise Conflict(f"the answer {done.answer_id} of this idempotency key is no longer kept; use a new key")
        return answer

    async def _wait(self, running: _Running, deadline: Deadline) -> None:
        remaining_s = self._remaining_s(deadline)
        with suppress(TimeoutError):
            async with asyncio.timeout(remaining_s if math.isfinite(remaining_s) else None):
                await running.done.wait()

    def _remaining_s(self, deadline: Deadline) -> float:
        remaining_s = deadline - self._clock()
        if remaining_s <= 0:
            raise Conflict("the first request with this idempotency key is still being answered", retry_after_s=1.0)
        return remaining_s


def _reused() -> KeyReused:
    return KeyReused("this idempotency key was used with another request; use a new key for a new request")
