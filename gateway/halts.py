"""A canary's halt outlives the process: the store keeps it, for every gateway that opens that store.

A canary that was halted (`gateway.traffic`) stays so until its configuration gives it a `starts` after the halt:
somebody has mended it, and says from when on it is tried again. One without a `starts` begins anew with every start of
the gateway, and is halted through all of them. A version of another name is another canary.

A halt is kept within a round of upkeep, and when the gateway stops. What a `kill -9` before that forgets is found
again, as it was the first time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from backends.errors import PointsmanError
from gateway.store.contract import CanaryHalt, Store
from gateway.traffic import VersionTraffic
from router.versions import Canary, Traffic

log = logging.getLogger("pointsman.traffic")


class Halts:
    """Keeps what is known here of halted canaries, and what the store knows of them, in step."""

    def __init__(
        self,
        traffic: Mapping[str, Traffic],
        books: VersionTraffic,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        traffic: by route.
        clock: Unix time, in seconds; that of *books*.
        """
        self._canaries = {name: one.rule for name, one in traffic.items() if isinstance(one.rule, Canary)}
        self._books = books
        self._store = store
        self._clock = clock

    async def look(self) -> None:
        """Halt what the store says is halted, and have it keep what it lacks; nothing where there is no canary.

        Raises:
            Unavailable: the store cannot be read or written; calling again is safe.
        """
        if not self._canaries:
            return
        kept = {halt.route: halt.why for halt in await self._store.canary_halts() if self._holds(halt)}
        self._books.halt(kept)
        for name, why in self._books.halted.items():
            if name in self._canaries and name not in kept:
                version = self._canaries[name].version
                await self._store.add_canary_halt(CanaryHalt(name, version, self._clock(), why))

    async def look_last(self) -> None:
        """As `look`, when the gateway stops: what fails is logged, and holds up nothing."""
        try:
            await self.look()
        except PointsmanError:
            log.exception("what was halted could not be kept; a canary may have to be found bad anew")

    def _holds(self, halt: CanaryHalt) -> bool:
        """Whether *halt* is of a canary that is served, and that was not given a later start."""
        canary = self._canaries.get(halt.route)
        if canary is None or canary.version != halt.version:
            return False
        return not canary.is_dated or canary.starts_s <= halt.at_s
