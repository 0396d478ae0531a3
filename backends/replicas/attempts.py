"""Attempts at one call that run beside each other: whose outcome counts, and how the others end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from backends.contract import Tensors
from backends.errors import ReplicaFailed


async def first_to_decide(attempts: Collection[asyncio.Task[Tensors]]) -> asyncio.Task[Tensors]:
    """The first that is answered, or whose error is the caller's; one that failed only where all have."""
    pending = set(attempts)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for attempt in sorted(done, key=_has_failed):
            if not (pending and _has_failed(attempt)):
                return attempt


def _has_failed(attempt: asyncio.Task[Tensors]) -> bool:
    return not attempt.cancelled() and isinstance(attempt.exception(), ReplicaFailed)


async def call_off(attempts: Collection[asyncio.Task[Tensors]]) -> None:
    """Cancel what still runs and wait for its end, through cancellations, which are raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    for attempt in attempts:
        attempt.cancel()
    while pending := [attempt for attempt in attempts if not attempt.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    for attempt in attempts:
        if not attempt.cancelled():
            attempt.exception()  # seen, so that nobody complains that it never was
    if cancelled is not None:
        raise cancelled
