"""The calls that a backend has, for those that close only when the last of them is over."""

from __future__ import annotations

import asyncio
from types import TracebackType


class InFlight:
    """Counts calls: `with calls: ...` is one. Belongs to one event loop.

    Attributes:
        count: calls that go on.
    """

    __slots__ = ("_idle", "count")

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until there is none."""
        await self._idle.wait()
