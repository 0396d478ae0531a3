"""Replicas of a model that shares them with no other."""

from __future__ import annotations

import asyncio

from backends.ray_serve.deployment import ModelReplica
from gateway.cluster.made_of import check_made_of
from gateway.settings import ModelSettings


class LoneReplica(ModelReplica):
    """A model by itself, which is the version that was deployed."""

    async def __init__(self, model: ModelSettings, digest: str, app: str) -> None:  # type: ignore[misc]  # Serve awaits
        """Open *model*.

        Args:
            digest: of what it is made of.
            app: of Serve's, which this is a replica of.

        Raises:
            PointsmanError: it is made of something else by now, cannot be opened, or keeps state.
        """
        await asyncio.to_thread(check_made_of, model, digest)
        await super().__init__(model.name, model.backend, model.options, digest, app)
