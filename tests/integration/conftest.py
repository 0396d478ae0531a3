"""One gateway for the whole folder; tests that stop or break one start their own with `running`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.grpc_edge.transport import Transport, why_not_native
from tests.integration.process import GatewayProcess, running


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway on `process.CONFIG`."""
    with running(tmp_path_factory.mktemp("gateway")) as process:
        yield process


@pytest.fixture(scope="session", params=[Transport.GRPCIO, Transport.NATIVE])
def grpc_transport(request: pytest.FixtureRequest) -> Transport:
    """Tests that use it run on both."""
    wanted: Transport = request.param
    if wanted is Transport.NATIVE and (why := why_not_native()) is not None:
        pytest.skip(f"native {why}")
    return wanted
