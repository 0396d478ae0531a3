"""Clusters for the whole folder, skipped where there is no Ray: one of two gateways and two replicas of a model, and
one of two gateways whose store is on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.store import Postgres
from tests.integration.ray.clusters import Cluster, running, shared_config, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Tests leave it as they found it, with two of each, though not the same."""
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="session")
def shared(postgres_database: tuple[Postgres, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Serves what a module has it serve (`Cluster.serve`), with a store on PostgreSQL."""
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("shared"), shared_config(postgres_database[0])) as found:
        yield found
