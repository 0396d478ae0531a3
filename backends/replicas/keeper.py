"""What is done about one replica beside its calls: it is opened, probed, and opened anew when it is lost.

A backend that is CLOSED is lost; one that is FAILED may recover, and is lost when it has not within `probe_every_s`.
What fails to open, or does not fit in with the others, is tried again with a growing pause: whoever repairs a server
need not tell the gateway.

Nothing that goes wrong here ends a keeper: errors of servers are their statistics, and anything else is a bug that is
logged and survived, for a replica without a keeper would be out for good.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from backends.contract import Backend, Deadline, State
from backends.errors import Unavailable
from backends.replicas.options import ReplicaOptions
from backends.replicas.pool import Pool
from backends.replicas.replica import Opener, Probed, Replica

log = logging.getLogger("pointsman.replicas")

_REJOIN_S: Final = 0.5
_MOST_REJOIN_S: Final = 30.0


def begin_opening(replica: Replica, timeout_s: float) -> asyncio.Task[Backend]:
    """Have *replica* opened within *timeout_s* seconds, by a task that `Keeper` or `close_all` looks after."""
    opening = asyncio.create_task(_open(replica.opener, timeout_s), name=f"open {replica.address}")
    replica.opening = opening
    return opening


async def _open(opener: Opener, timeout_s: float) -> Backend:
    task = asyncio.current_task()
    assert task is not None
    try:
        async with asyncio.timeout(timeout_s):
            return await opener()
    except TimeoutError as error:
        raise Unavailable(f"it did not open within {timeout_s:g} s; see whether it runs") from error
    except asyncio.CancelledError as error:
        if task.cancelling():
            raise
        raise Unavailable("what was opening it was cancelled; it is tried again") from error


async def close_all(replicas: Sequence[Replica]) -> None:
    """End what is being opened, and close what is open."""
    openings = [replica.opening for replica in replicas if replica.opening is not None]
    for opening in openings:
        opening.cancel()
    if openings:
        await asyncio.wait(openings)
    backends = [
        backend for replica in replicas for backend in (replica.backend, replica.leaving) if backend is not None
    ]
    backends += [o.result() for o in openings if not o.cancelled() and o.exception() is None]
    for ended in await asyncio.gather(*(backend.aclose() for backend in backends), return_exceptions=True):
        if isinstance(ended, BaseException):
            log.warning("a replica did not close: %r", ended)


async def close_leaving(replica: Replica, model_name: str, timeout_s: float) -> None:
    """Close the backend that is leaving, which waits for its calls; one that hangs is given up, and told in the log."""
    assert replica.leaving is not None, "nothing is leaving. This is a bug."
    try:
        async with asyncio.timeout(timeout_s):
            await replica.leaving.aclose()
    except Exception as error:
        log.warning("replica %s of model %r did not close: %r", replica.address, model_name, error)
    replica.leaving = None


def warn_of(replica: Replica, model_name: str) -> None:
    """Tell the log that *replica* stays out."""
    log.warning("replica %s of model %r stays out: %s", replica.address, model_name, replica.refusal)


def cannot_open(error: Exception) -> str:
    """What statistics say of a replica that cannot be opened."""
    return f"it cannot be opened: {str(error) or type(error).__name__}"


class Keeper:
    """Tends one replica.

    Args:
        model_name: names the model in the log.
        replica: the one.
        pool: is told of probes.
        options: as configured.
        clock: of deadlines.
        rng: of pauses.
        misfit: says why a newly opened backend may not join; None where it may.
    """

    def __init__(
        self,
        model_name: str,
        replica: Replica,
        pool: Pool,
        options: ReplicaOptions,
        clock: Callable[[], float],
        rng: random.Random,
        misfit: Callable[[Backend], str | None],
    ) -> None:
        self._model_name = model_name
        self._replica = replica
        self._pool = pool
        self._options = options
        self._clock = clock
        self._rng = rng
        self._misfit = misfit
        self._failed_since: float | None = None
        self._openings_failed = 0
        self._warned = replica.refusal

    async def run(self) -> NoReturn:
        """Tend it until cancelled."""
        task = asyncio.current_task()
        assert task is not None
        if self._replica.opening is None:
            await self._pause()
        while True:
            try:
                await self._tend()
            except asyncio.CancelledError:
                if task.cancelling():
                    raise
                log.exception("replica %s of model %r: something in it was cancelled", *self._who)
            except Exception:
                log.exception("replica %s of model %r: its keeper failed. This is a bug.", *self._who)
            await self._pause()

    @property
    def _who(self) -> tuple[str, str]:
        return self._replica.address, self._model_name

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s()):
                await self._replica.attention.wait()

    def _pause_s(self) -> float:
        if self._replica.backend is not None:
            return self._options.probe_every_s
        longest_s = min(_MOST_REJOIN_S, _REJOIN_S * 2.0 ** min(self._openings_failed, 16))
        return self._rng.uniform(longest_s / 2.0, longest_s)

    async def _tend(self) -> None:
        self._replica.attention.clear()
        if self._is_lost():
            self._replica.leaving, self._replica.backend = self._replica.backend, None
            self._replica.refusal = "it was lost, and is being opened anew"
        if self._replica.leaving is not None:
            await self._close_leaving()
        if self._replica.backend is None:
            await self._open()
        elif isinstance(self._replica.backend, Probed):
            await self._probe(self._replica.backend)

    def _is_lost(self) -> bool:
        backend = self._replica.backend
        if backend is None or backend.state is not State.FAILED:
            self._failed_since = None
            return backend is not None and backend.state is State.CLOSED
        now = self._clock()
        if self._failed_since is None:
            self._failed_since = now
        return now - self._failed_since >= self._options.probe_every_s

    async def _open(self) -> None:
        replica = self._replica
        try:
            backend = await (replica.opening or begin_opening(replica, self._options.open_timeout_s))
        except Exception as error:
            replica.opening = None
            self._stays_out(cannot_open(error))
            return
        replica.opening = None
        if (misfit := self._misfit(backend)) is not None:
            replica.leaving = backend
            self._stays_out(misfit)
            await self._close_leaving()
            return
        replica.backend, replica.refusal, self._warned = backend, None, None
        self._openings_failed = 0
        replica.health.opened_anew(self._clock())

    async def _close_leaving(self) -> None:
        await close_leaving(self._replica, self._model_name, self._options.open_timeout_s)

    def _stays_out(self, why: str) -> None:
        self._openings_failed += 1
        self._replica.refusal = why
        if self._warned != why:
            warn_of(self._replica, self._model_name)
        self._warned = why

    async def _probe(self, backend: Probed) -> None:
        timeout_s = self._options.probe_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await backend.probe(Deadline(self._clock() + timeout_s))
        except Exception:
            self._pool.probe_failed(self._replica, self._clock())
        else:
            self._pool.probe_passed(self._replica, self._clock())
