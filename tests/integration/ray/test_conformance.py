"""The conformance suite, asked of two gateways that share a store on PostgreSQL: tritonclient sees what Triton does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from gateway.store import Postgres
from tests.conformance import test_clients, test_gateway
from tests.conformance.conftest import Server, Servers, beside_triton
from tests.conformance.repository import configuration
from tests.integration.ray.clusters import Cluster, shared_config

globals().update(
    (name, test)
    for module in (test_gateway, test_clients)
    for name, test in vars(module).items()
    if name.startswith("test_") and {"gateway", "servers"} & inspect.signature(test).parameters.keys()
)


@pytest.fixture(scope="module")
def gateway(shared: Cluster, postgres_database: tuple[Postgres, str]) -> Server:
    """Two replicas, with the models of `repository.MODELS`."""
    shared.serve(shared_config(postgres_database[0], configuration()))
    return Server(shared.http.removeprefix("http://"), shared.grpc)


@pytest.fixture(scope="module")
def servers(gateway: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """They, and a Triton with the same models."""
    with beside_triton(gateway, tmp_path_factory.mktemp("triton")) as both:
        yield both
