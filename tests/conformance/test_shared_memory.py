"""Tensors in system shared memory mean the same to both servers, in all four flavours of tritonclient."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import FLAVOURS, Action, client_of, got, seen
from tests.conformance.conftest import Servers
from tests.conformance.differences import faults
from tests.conformance.observed import differing
from tests.conformance.sharing import BEHIND, SENT, SIZE, USES, Memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    region = f"conformance-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(region, f"/{region}", 4 * SIZE, create_only=True)
    shm.set_shared_memory_region(handle, [SENT])
    try:
        yield Memory(f"/{region}", region, handle)
    finally:
        shm.destroy_shared_memory_region(handle)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("use", USES)
async def test_shared_memory(use: str, flavour: str, servers: Servers, memory: Memory) -> None:
    async def told(http: str, grpc: str) -> dict[str, object]:
        shm.set_shared_memory_region(memory.handle, [np.zeros_like(SENT)], BEHIND)
        async with client_of(flavour, http, grpc) as client:
            try:
                return await seen(Action(use, lambda one: USES[use](one, memory)), client)
            finally:
                with suppress(InferenceServerException):  # Triton may still have it in use
                    await got(client.client.unregister_system_shared_memory(memory.region))

    expected = await told(servers.triton.http, servers.triton.grpc)

    found = await told(servers.gateway.http, servers.gateway.grpc)

    assert faults(f"shared memory, {flavour}: {use}", differing(expected, found)) == []
