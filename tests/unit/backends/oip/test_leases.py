"""Regions are made and freed in threads; `test_cuda_memory` and `test_shared_memory` tell of their leases."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

import pytest

from backends.contract import NO_DEADLINE, Deadline
from backends.oip.remote import Remote
from backends.triton import leases
from backends.triton.leases import Leases

_REMOTE = cast(Remote, None)  # the regions below ask nobody


class Region:
    """Counts for nothing; tells in which thread it was freed."""

    is_registered = True
    name = "a region"

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_withdrawn = False
        self.freed_in: threading.Thread | None = None

    async def register(self, remote: Remote, deadline: Deadline) -> None: ...

    async def unregister(self, remote: Remote) -> None: ...

    def withdraw(self) -> None:
        self.is_withdrawn = True

    def free(self) -> None:
        assert self.is_withdrawn
        self.freed_in = threading.current_thread()

    @property
    def is_freed_elsewhere(self) -> bool:
        return self.freed_in not in (None, threading.current_thread())


async def test_regions_are_freed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RETIRED_S", 0.0)
    kept = Leases(Region, 1)
    await kept.opened(_REMOTE, NO_DEADLINE)
    first, second = await kept.leased(1), await kept.leased(1)
    kept.give_back(first, is_over=False)
    await kept.let_go(_REMOTE)
    kept.give_back(second, is_over=True)
    await kept.aclose(_REMOTE)

    assert first.is_freed_elsewhere
    assert second.is_freed_elsewhere


@pytest.mark.parametrize("is_closed_first", [False, True])
async def test_a_region_that_nobody_waits_for_any_more_is_freed_at_the_close(is_closed_first: bool) -> None:
    made, may_make = [], threading.Event()

    def make(size: int) -> Region:
        may_make.wait(timeout=10)
        made.append(Region(size))
        return made[0]

    kept = Leases(make, 1)
    caller = asyncio.create_task(kept.leased(1))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    closing = asyncio.create_task(kept.aclose(_REMOTE)) if is_closed_first else None
    await asyncio.sleep(0)
    may_make.set()
    if not is_closed_first:
        await asyncio.wait(kept._given_up)
    await (closing or kept.aclose(_REMOTE))

    assert made[0].is_freed_elsewhere
