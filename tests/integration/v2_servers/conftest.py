"""Both servers, once for the whole folder; where one cannot be had, every test that needs it is skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.v2_servers.servers import Address, kserve, mlserver, why_not


@pytest.fixture(scope="session")
def mlserver_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """An MLServer with the models of `servers`."""
    if reason := why_not("mlserver"):
        pytest.skip(reason)
    with mlserver(tmp_path_factory.mktemp("mlserver")) as address:
        yield address


@pytest.fixture(scope="session")
def kserve_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server of KServe's SDK with the models of `servers`."""
    if reason := why_not("kserve"):
        pytest.skip(reason)
    with kserve(tmp_path_factory.mktemp("kserve")) as address:
        yield address
