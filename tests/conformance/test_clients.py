"""tritonclient sees the same of both servers, in all four flavours."""

from __future__ import annotations

import pytest

from tests.conformance.clients import ACTIONS, FLAVOURS, Action, client_of, seen
from tests.conformance.conftest import Servers
from tests.conformance.differences import faults
from tests.conformance.observed import differing


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_clients(action: Action, flavour: str, servers: Servers) -> None:
    async with client_of(flavour, servers.triton.http, servers.triton.grpc) as triton:
        expected = await seen(action, triton)

    async with client_of(flavour, servers.gateway.http, servers.gateway.grpc) as gateway:
        found = await seen(action, gateway)

    assert faults(f"tritonclient.{flavour}: {action.name}", differing(expected, found)) == []
