"""`pointsman erase`: what it does, apart from its options."""

from __future__ import annotations

from contextlib import aclosing

from gateway.settings import Settings
from gateway.store import open_store
from gateway.store.contract import Erased, Erasure
from gateway.webhooks.events import announcer


async def erase(settings: Settings, erasure: Erasure) -> Erased:
    """Erase from the store of *settings*, beside a gateway that serves or without one.

    Raises:
        PointsmanError: the store cannot be opened, or has, and had, no such answer.
    """
    opened = await open_store(settings.store, siblings=True, announce=announcer(settings.webhooks))
    async with aclosing(opened) as store:
        return await store.erase(erasure, settings.labels_of)
