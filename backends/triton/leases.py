"""Regions of memory that this process and a server both see, leased one a call.

A region is never used again while a server may still touch it. A call that ended by the server's own word (an answer,
or a refusal of it) gives its region back. One that ended in any other way (late, cancelled, hung up) leaves behind a
server that may read its inputs and write its outputs at any time: that region is retired. Nobody else can open it from
then on, the server is told to let go of it only `RETIRED_S` later, as letting go under a running call takes the memory
away from under it, and no call is ever given it again. So a late write can reach nobody's answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from backends.contract import Deadline
from backends.oip.remote import Remote

RETIRED_S = 60.0


class Leasable(Protocol):
    """A region. Belongs to one event loop."""

    @property
    def name(self) -> str:
        """What the server calls it; nobody else's."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def is_registered(self) -> bool:
        """Whether the server has been told of it."""
        ...

    async def register(self, remote: Remote, deadline: Deadline) -> None:
        """Tell the server of it, whether or not it has been before."""
        ...

    async def unregister(self, remote: Remote) -> None:
        """Have the server let go of it, if it can be told."""
        ...

    def withdraw(self) -> None:
        """Let nobody open it any more who has not yet; doing so twice is harmless."""
        ...

    def free(self) -> None:
        """Give its memory back, which the server has let go of; may take time."""
        ...


R = TypeVar("R", bound=Leasable)


class Leases(Generic[R]):
    """The regions of one kind for one server. Belongs to one event loop."""

    def __init__(self, make: Callable[[int], R], least_bytes: int) -> None:
        """Args:
        make: a region of so many bytes; called in a thread.
        least_bytes: that a region has.
        """
        self._make = make
        self._least_bytes = least_bytes
        self._free: list[R] = []
        self._retired: list[tuple[float, R]] = []
        self._given_up: set[asyncio.Task[None]] = set()  # threads that make what nobody waits for any more
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Leases: {len(self._free)} regions free, {len(self._retired)} retired>"

    @property
    def retired_bytes(self) -> int:
        """Bytes of regions that wait until no server can touch them any more."""
        return sum(region.size for _, region in self._retired)

    async def opened(self, remote: Remote, deadline: Deadline) -> None:
        """Make the first region, and have the server open it.

        Raises:
            Exception: what making a region and `Leasable.register` raise.
        """
        region = await asyncio.to_thread(self._make, self._least_bytes)
        try:
            await region.register(remote, deadline)
        except BaseException:
            region.withdraw()
            await asyncio.shield(asyncio.to_thread(region.free))
            raise
        self._free.append(region)

    async def leased(self, size: int) -> R:
        """A region of *size* bytes at least, that nobody else has.

        Raises:
            Exception: what making a region raises.
        """
        fitting = [region for region in self._free if region.size >= size]
        if fitting:
            region = min(fitting, key=lambda region: region.size)
            self._free.remove(region)
            return region
        if self._free:  # too small: what it was needed for comes larger now
            self._retire(self._free.pop())
        making = asyncio.create_task(
            asyncio.to_thread(self._make, max(self._least_bytes, 1 << (size - 1).bit_length()))
        )
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:  # the thread makes it all the same
            keeping = asyncio.create_task(self._keep(making))
            self._given_up.add(keeping)
            keeping.add_done_callback(self._given_up.discard)
            raise

    def give_back(self, region: R, *, is_over: bool) -> None:
        """End the lease of *region*; *is_over*: the server does nothing more to it."""
        if is_over:
            self._free.append(region)
        else:
            self._retire(region)

    async def let_go(self, remote: Remote) -> None:
        """Have the server let go of regions that were retired long ago."""
        while self._retired and self._retired[0][0] <= time.monotonic():
            _, region = self._retired.pop(0)
            if region.is_registered:
                await region.unregister(remote)
            await asyncio.to_thread(region.free)

    async def aclose(self, remote: Remote) -> None:
        """Take every region back from the server, as far as it answers."""
        self._is_closed = True
        regions = [*self._free, *(region for _, region in self._retired)]
        self._free, self._retired = [], []
        for region in regions:
            region.withdraw()
        for region in regions:
            await region.unregister(remote)  # whether or not it is known to have been told of it
            await asyncio.to_thread(region.free)
        if self._given_up:
            await asyncio.wait(self._given_up)

    async def _keep(self, making: asyncio.Task[R]) -> None:
        await asyncio.wait((making,))
        if making.cancelled() or making.exception() is not None:
            return
        region = making.result()
        if self._is_closed:
            region.withdraw()
            await asyncio.to_thread(region.free)
        else:
            self._free.append(region)

    def _retire(self, region: R) -> None:
        region.withdraw()
        self._retired.append((time.monotonic() + RETIRED_S, region))
