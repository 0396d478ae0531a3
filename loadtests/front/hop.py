"""Forwards bytes between two sockets, as fast as Python does that: what any process in between costs.

    python -m loadtests.front.hop HOST:PORT

It prints the port that it listens on, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class _End(asyncio.Protocol):
    """One end of a connection; what comes goes to the other, as soon as that is there."""

    def __init__(self, other: _End | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        for data in self.early:
            self.transport.write(data)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        if self.other.transport is None:
            self.other.early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def forward(host: str, port: int) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    connecting: set[asyncio.Task[object]] = set()

    def accepted() -> _End:
        near, far = _End(), _End()
        near.other, far.other = far, near
        task: asyncio.Task[object] = loop.create_task(loop.create_connection(lambda: far, host, port))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return near

    server = await loop.create_server(accepted, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_reader(sys.stdin, lambda: None if sys.stdin.readline() else ended.set())
    await ended.wait()
    server.close()


if __name__ == "__main__":
    to, _, at = sys.argv[1].rpartition(":")
    uvloop.run(forward(to, int(at)))
