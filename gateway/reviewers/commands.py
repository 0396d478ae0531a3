"""`pointsman reviewers`: what it does, apart from its options."""

from __future__ import annotations

from contextlib import aclosing

from gateway.reviewers.figures import Figures, read_figures
from gateway.settings import Settings
from gateway.store import open_store


async def figures(settings: Settings, tenant: str, queue: str | None, since_s: float) -> Figures:
    """The figures of reviewers of *tenant*; see `gateway.reviewers.figures`.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    async with aclosing(await open_store(settings.store, siblings=True)) as store:
        return await read_figures(store, tenant, queue, since_s)
