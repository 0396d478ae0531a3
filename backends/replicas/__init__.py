"""Several servers of one model as one backend: start reading in `backends.replicas.replicas`."""

from backends.replicas.options import ReplicaOptions
from backends.replicas.replicas import Opener, Probed, Replicas, open_replicas
from backends.replicas.report import (
    HedgeMade,
    ReplicaEjected,
    ReplicaObserver,
    ReplicaReadmitted,
    ReplicasStatistics,
    ReplicaState,
    ReplicaStatistics,
    RetryMade,
)

__all__ = [
    "HedgeMade",
    "Opener",
    "Probed",
    "ReplicaEjected",
    "ReplicaObserver",
    "ReplicaOptions",
    "ReplicaReadmitted",
    "ReplicaState",
    "ReplicaStatistics",
    "Replicas",
    "ReplicasStatistics",
    "RetryMade",
    "open_replicas",
]
