"""The gRPC listener of the data plane, on either transport (`grpc_edge.transport` says which, and why).

One per process: grpcio's poller is global, so a process has one event loop with gRPC on it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gateway.grpc_edge import gateway_v1, health, oip
from gateway.grpc_edge.calls import OLDER, CallServer, GrpcObserver, Offer
from gateway.grpc_edge.on_grpcio import GrpcioListener
from gateway.grpc_edge.reflection import Reflection
from gateway.grpc_edge.transport import Listener, Transport, chosen
from gateway.security import Authenticator, is_loopback
from gateway.service import DataPlane, ModelControl
from gateway.shared_memory import SharedMemory

log = logging.getLogger("pointsman.grpc")


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What one call may take.

    Attributes:
        message_bytes: of a request; a longer one is RESOURCE_EXHAUSTED.
    """

    message_bytes: int = 64 * 1024 * 1024


class GrpcServer:
    """Both gRPC services, their health and reflection; an asynchronous context manager that listens while entered.

    Attributes:
        calls: answers them, for whoever has a transport of its own.
        oip_methods: of the Open Inference Protocol's service, by name.
    """

    def __init__(
        self,
        service: DataPlane,
        authenticator: Authenticator,
        observer: GrpcObserver,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: GrpcLimits | None = None,
        memory: SharedMemory | None = None,
        *,
        control: ModelControl | None = None,
        transport: Transport = Transport.AUTO,
        reuse_port: bool = False,
    ) -> None:
        """Prepare to listen on *host* and *port* (0: any).

        Args:
            service: answers.
            authenticator: says who asks.
            observer: is told of every call that ends.
            host: an address, or a name.
            port: 0 for any.
            limits: of one call.
            memory: without it, none is shared.
            control: without it, no models are loaded or unloaded.
            transport: carries the calls.
            reuse_port: let other processes listen on the port too, for a part of the connections each.

        Raises:
            ValueError: *transport* cannot serve here; says why, and what to do.
        """
        self.transport = chosen(transport, host)
        self.calls = CallServer(authenticator, observer)
        self.oip_methods = oip.oip_methods(service, memory=memory, control=control)
        reflection = Reflection((oip.SERVICE, gateway_v1.SERVICE, health.SERVICE))
        self._health = health.Health(reflection.services)
        self._offers = (
            Offer(oip.SERVICE, self.oip_methods, oip.HINT),
            Offer(gateway_v1.SERVICE, gateway_v1.gateway_methods(service), OLDER),
            Offer(health.SERVICE, self._health.methods, OLDER),
            *reflection.offers(),
        )
        self._host = host
        self._port = port
        self._limits = limits or GrpcLimits()
        self._reuse_port = reuse_port
        self._listener: Listener | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._listener is None else "serving"
        return f"GrpcServer({self.address}, {self.transport}, {state})"

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`; the port is known once it does."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        if self.transport is Transport.NATIVE and not is_loopback(self._host):
            log.warning(
                "native gRPC on %s takes messages into memory before their size is known; let none but friends, or a "
                "proxy that bounds messages, connect",
                self._host,
            )
        listener = self._make_listener()
        try:
            self._port = await listener.start()
        except OSError as error:
            raise OSError(f"cannot listen on {self.address} for gRPC: {error}") from error
        self._listener = listener
        log.info("gRPC on %s by %s", self.address, self.transport)
        return self

    def _make_listener(self) -> Listener:
        calls, offers, limit = self.calls, self._offers, self._limits.message_bytes
        if self.transport is Transport.GRPCIO:
            return GrpcioListener(calls, offers, self.address, limit, reuse_port=self._reuse_port)
        from gateway.grpc_edge.on_native import NativeListener  # its package is not installed everywhere

        return NativeListener(calls, offers, self.address, limit, reuse_port=self._reuse_port)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(0.0)

    async def drain(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no new calls, and give those in flight *grace_s* seconds. Harmless when repeated."""
        if (listener := self._leave()) is not None:
            await listener.stop(grace_s)

    async def hand_over(self, grace_s: float) -> None:
        """As `drain`, where others listen on the port too, and callers are to go on with them."""
        if (listener := self._leave()) is not None:
            await listener.hand_over(grace_s)

    def _leave(self) -> Listener | None:
        self._health.drain()
        self.calls.drain()
        listener, self._listener = self._listener, None
        return listener
