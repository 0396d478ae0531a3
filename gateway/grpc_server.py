"""The gRPC listener of the data plane, on grpcio's asyncio server.

One per process: grpcio's poller is global, so a process has one event loop with gRPC on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from grpc import aio

from gateway.grpc_edge import gateway_v1, health, oip
from gateway.grpc_edge.calls import CallServer, GrpcObserver
from gateway.security import Authenticator
from gateway.service import DataPlane

_HINT = "this server is older than its caller"


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What one call may take.

    Attributes:
        message_bytes: of a request; a longer one is RESOURCE_EXHAUSTED.
    """

    message_bytes: int = 64 * 1024 * 1024


class GrpcServer:
    """Both gRPC services and their health; an asynchronous context manager that listens while it is entered."""

    def __init__(
        self,
        service: DataPlane,
        authenticator: Authenticator,
        observer: GrpcObserver,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: GrpcLimits | None = None,
    ) -> None:
        """Prepare to listen on *host* and *port* (0: any)."""
        self._service = service
        self._calls = CallServer(authenticator, observer)
        self._host = host
        self._port = port
        self._limits = limits or GrpcLimits()
        self._health = health.Health((oip.SERVICE.full_name, gateway_v1.SERVICE.full_name))
        self._server: aio.Server | None = None

    def __repr__(self) -> str:
        return f"GrpcServer({self.address}, {'stopped' if self._server is None else 'serving'})"

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`; the port is known once it does."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        server = aio.server(
            options=(
                ("grpc.max_receive_message_length", self._limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            )
        )
        server.add_generic_rpc_handlers(
            (
                self._calls.handlers(oip.SERVICE, oip.oip_methods(self._service), oip.HINT),
                self._calls.handlers(gateway_v1.SERVICE, gateway_v1.gateway_methods(self._service), _HINT),
                self._calls.handlers(health.SERVICE, self._health.methods, _HINT),
            )
        )
        try:
            self._port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.address} for gRPC; choose another port") from error
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(0.0)

    async def drain(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no new calls, and give those in flight *grace_s* seconds. Harmless when repeated."""
        self._health.drain()
        self._calls.drain()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)
