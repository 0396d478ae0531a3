"""Work beside requests: it goes on until it is cancelled, and whatever ends sooner is told."""

from __future__ import annotations

import asyncio

import pytest

from gateway.serve import background


async def test_work_that_ends_by_a_fault_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def deliver() -> None:
        try:
            raise KeyError("crm")
        finally:
            ended.set()

    async with background(deliver()):
        await ended.wait()
        await asyncio.sleep(0)
        (record,) = caplog.records

    assert "deliver" in record.message
    assert record.exc_info is not None


async def test_work_that_is_cancelled_or_has_nothing_to_do_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing() -> None:
        return

    async with background(nothing(), asyncio.Event().wait()):  # type: ignore[arg-type]
        await asyncio.sleep(0)

    assert caplog.records == []
