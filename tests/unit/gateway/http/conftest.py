"""A data plane over a scripted service: as a handler, and behind a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson
import pytest
import uvicorn

from gateway.http.asgi import AsgiApp
from gateway.http.handler import Handler, HttpExchange, HttpLimits
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.http.oip import oip_endpoints
from gateway.http.v1 import v1_endpoints
from gateway.request import Role
from gateway.security import ApiKey, Authenticator, SecurityOptions
from gateway.shared_memory import SharedMemory
from tests.unit.gateway.scripted import ScriptedService

LIMITS = HttpLimits(body_bytes=1 << 20, json_bytes=1 << 19, body_timeout_s=0.2, wait_s=5.0)
KEY = "pm_test"
OPERATOR_KEY = "pm_operator"


@dataclass
class Plane:
    """A handler with what stands around it."""

    service: ScriptedService = field(default_factory=ScriptedService)
    exchanges: list[HttpExchange] = field(default_factory=list)
    options: SecurityOptions = field(default_factory=SecurityOptions)
    memory: SharedMemory | None = None

    def __post_init__(self) -> None:
        self.clock = clock = asyncio.get_running_loop().time
        entries = (
            *oip_endpoints(self.service, LIMITS, clock, self.memory),
            *v1_endpoints(self.service, LIMITS, clock),
        )
        self.handler = Handler(entries, Authenticator(self.options), self, LIMITS)

    def on_http(self, exchange: HttpExchange) -> None:
        self.exchanges.append(exchange)

    async def send(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """A request; *body* that is not bytes goes as JSON, of which the Content-Type tells."""
        found = {"host": "127.0.0.1:8000", **(headers or {})}
        if not isinstance(body, bytes):
            found.setdefault("content-type", "application/json")
            body = orjson.dumps(body)
        path, _, query = path.partition("?")
        return await self.handler.handle(HttpRequest(method, path, query, found, body))


@pytest.fixture
async def plane() -> Plane:
    """Open to everybody."""
    return Plane()


@pytest.fixture
async def locked_plane() -> Plane:
    """Needs a key."""
    keys = (
        ApiKey("app", sha256(KEY.encode()).hexdigest()),
        ApiKey("ops", sha256(OPERATOR_KEY.encode()).hexdigest(), roles=frozenset({Role.OPERATOR})),
    )
    return Plane(options=SecurityOptions(keys))


@pytest.fixture
async def address(plane: Plane) -> AsyncIterator[str]:
    """`host:port` of a real uvicorn that serves *plane*."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(AsgiApp(plane.handler), http="httptools", ws="none", lifespan="off", log_config=None)
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[bound])
    serving = asyncio.create_task(server.main_loop())
    host, port = bound.getsockname()
    yield f"{host}:{port}"
    server.should_exit = True
    await serving
    await server.shutdown(sockets=[bound])
