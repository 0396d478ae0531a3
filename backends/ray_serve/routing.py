"""The request router that Serve has gateways use for pools: replicas in the order of `Residence.ranked`.

Serve pickles this module by value, so nothing here may keep anything: `residence` does.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import (
    LocalityMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from backends.ray_serve.residence import Residence, residence_of


class WarmFirst(LocalityMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Sends a call to where its model is; which that is, `multiplexed_model_id` tells. Every request for itself: in
    Serve's usual order a replica would get another model's call than the one that it was chosen for.
    """

    @property
    def _residence(self) -> Residence:
        return residence_of(self._deployment_id.name, self._deployment_id.app_name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when there are others, or they have told something new."""
        self._residence.tell({replica.replica_id.unique_id: replica.routing_stats for replica in replicas})
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one list after the other; see `Residence.ranked`."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where all of them are full
        found = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        near = {name for name, replica in found.items() if replica.node_id == self._self_node_id}
        digest = pending_request.metadata.multiplexed_model_id
        ranked = self._residence.ranked(digest, found, near, time.monotonic())
        return [[found[name] for name in rank] for rank in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Called by Serve when a replica has taken a call."""
        now = time.monotonic()
        self._residence.asks(pending_request.metadata.multiplexed_model_id, replica_id.unique_id, now)

    def initialize_state(self, **_: Any) -> None:  # Any: `request_router_kwargs`, of which there are none
        """Called by Serve."""
