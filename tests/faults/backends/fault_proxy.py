"""A server that fails as it is told to: a real one behind a proxy, whose faults are switched while it is used.

    client -> Door (bytes: refuse, blackhole, reset, drip) -> HttpRelay | GrpcRelay (replies: all else) -> real server

What passes is parsed by libraries of its own (httptools, grpcio's threads), on a thread of its own. Rejected: a fake
server, which would say what its author believes a server says; pausing the real one for everything (a process has no
way to answer health and not inferences, nor half a reply), which `test_kills.py` does for what it can do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from tests.faults.backends.door import Door, Wire, middle_of_grpc_message, middle_of_http_body
from tests.faults.backends.fault import Fault
from tests.faults.backends.grpc_relay import GrpcRelay
from tests.faults.backends.http_relay import HttpRelay

_WIRES = {
    Fault.REFUSE: Wire.REFUSE,
    Fault.BLACKHOLE: Wire.BLACKHOLE,
    Fault.RESET: Wire.RESET,
    Fault.DRIP: Wire.DRIP,
}


class Protocol(StrEnum):
    """What is spoken."""

    HTTP = "http"
    GRPC = "grpc"


class FaultProxy:
    """A proxy in front of one server; made by `fault_proxy`, used from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Protocol, relay: HttpRelay | GrpcRelay) -> None:
        self.protocol = protocol
        self._loop = loop
        self._relay = relay
        self._door: Door | None = None
        self._fault = Fault.NONE

    @property
    def address(self) -> str:
        """host:port."""
        assert self._door is not None
        return f"127.0.0.1:{self._door.port}"

    @property
    def fault(self) -> Fault:
        """What it does; setting it takes effect before it returns, on connections that there are as on new ones."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        asyncio.run_coroutine_threadsafe(self._turn(fault), self._loop).result(10)
        self._fault = fault

    @property
    def seen(self) -> int:
        """Inferences that came through the door."""
        return self._relay.seen

    def slow_down(self, by_s: float) -> None:
        """What `Fault.SLOW` adds to every inference, in seconds."""
        self._relay.slow_s = by_s

    async def _turn(self, fault: Fault) -> None:
        assert self._door is not None
        self._relay.fault = Fault.NONE if fault in _WIRES else fault
        self._door.turn(_WIRES.get(fault, Wire.PASS))

    async def open(self) -> None:
        """Listen; on its loop."""
        if isinstance(self._relay, HttpRelay):
            await self._relay.start()
        else:
            self._relay.start()
        middle = middle_of_http_body if self.protocol is Protocol.HTTP else middle_of_grpc_message
        self._door = Door(("127.0.0.1", self._relay.port), middle)

    async def aclose(self) -> None:
        """End every connection; on its loop."""
        assert self._door is not None
        await self._door.aclose()
        if isinstance(self._relay, HttpRelay):
            await self._relay.aclose()
        else:
            await asyncio.to_thread(self._relay.close)
        await asyncio.sleep(0.01)  # transports that were aborted close in the turns to come


@contextmanager
def fault_proxy(protocol: Protocol, upstream: str) -> Iterator[FaultProxy]:
    """A proxy of *protocol* in front of *upstream* (host:port)."""
    host, _, port = upstream.rpartition(":")
    address = (host, int(port))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    relay = HttpRelay(address) if protocol is Protocol.HTTP else GrpcRelay(address)
    proxy = FaultProxy(loop, protocol, relay)
    try:
        asyncio.run_coroutine_threadsafe(proxy.open(), loop).result(10)
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.aclose(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
