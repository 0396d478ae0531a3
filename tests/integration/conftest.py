"""One gateway for the whole folder; tests that stop or break one start their own with `running`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.process import GatewayProcess, running


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway on `process.CONFIG`."""
    with running(tmp_path_factory.mktemp("gateway")) as process:
        yield process
