"""A real gRPC server over a scripted service, on each transport in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest
from grpc import aio

from gateway.grpc_edge.calls import GrpcExchange
from gateway.grpc_edge.transport import Transport, why_not_native
from gateway.grpc_server import GrpcLimits, GrpcServer
from gateway.security import ApiKey, Authenticator, SecurityOptions
from tests.unit.gateway.scripted import ScriptedService

KEY = "pm_test"
LIMITS = GrpcLimits(message_bytes=1 << 20)


@dataclass
class Exchanges:
    """Keeps what the server reports."""

    seen: list[GrpcExchange] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def on_grpc(self, exchange: GrpcExchange) -> None:
        self.seen.append(exchange)
        self.told.set()


@pytest.fixture(params=[Transport.GRPCIO, Transport.NATIVE])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Every test that uses a server runs on both."""
    wanted: Transport = request.param
    if wanted is Transport.NATIVE and (why := why_not_native()) is not None:
        pytest.skip(f"native {why}")
    return wanted


@pytest.fixture
async def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def exchanges() -> Exchanges:
    return Exchanges()


@pytest.fixture
async def server(service: ScriptedService, exchanges: Exchanges, transport: Transport) -> AsyncIterator[GrpcServer]:
    """Open to everybody."""
    everybody = Authenticator(SecurityOptions())
    async with GrpcServer(service, everybody, exchanges, limits=LIMITS, transport=transport) as server:
        yield server


@pytest.fixture
async def locked(service: ScriptedService, exchanges: Exchanges, transport: Transport) -> AsyncIterator[GrpcServer]:
    """Needs `KEY`."""
    keys = SecurityOptions((ApiKey("app", sha256(KEY.encode()).hexdigest()),))
    async with GrpcServer(service, Authenticator(keys), exchanges, limits=LIMITS, transport=transport) as server:
        yield server


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[Any]:
    async with aio.insecure_channel(server.address) as channel:
        yield channel
