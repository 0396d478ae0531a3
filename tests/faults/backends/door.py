"""What can go wrong on the wire: a TCP proxy that refuses, swallows, resets and drips, whatever it is that passes.

It listens on a port of its own and passes bytes on to one address. Its faults are those of the network and the kernel:
**refuse** is a port that is bound and not listening, with every connection reset; **blackhole** is silence on the
connections that are there, and a backlog that is full, so that no new one is ever established (Linux drops their SYN);
**reset** is an RST in the middle of a reply's body; **drip** is a reply of one byte a second.

All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import TypeAlias

Middle: TypeAlias = Callable[[bytes], int | None]
"""Fed a connection's reply as it comes, piece by piece: where in this piece the middle of a body is, if it is there."""

_BACKLOG = 128
_DRIP_S = 1.0
_PIECE = 1 << 16


class Wire(StrEnum):
    """What the door does to bytes."""

    PASS = "pass"
    REFUSE = "refuse"
    BLACKHOLE = "blackhole"
    RESET = "reset"
    DRIP = "drip"


class Door:
    """A listening port in front of one address.

    Attributes:
        port: on 127.0.0.1, the same for the door's whole life.
        upstream: where it leads; may be changed, for connections to come.
    """

    def __init__(self, upstream: tuple[str, int], middle: Callable[[], Middle]) -> None:
        """Args:
        middle: makes what finds the middle of bodies in one connection's replies.
        """
        self.upstream = upstream
        self._middle = middle
        self._loop = asyncio.get_running_loop()
        self._wire = Wire.PASS
        self._changed = asyncio.Event()  # replaced at every change
        self._passing: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stopper: socket.socket | None = None  # fills the backlog
        self._socket = _bound(0)
        self.port = int(self._socket.getsockname()[1])
        self._listen()

    def turn(self, wire: Wire) -> None:
        """Do *wire* from now on."""
        if wire is self._wire:
            return
        before, self._wire = self._wire, wire
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if before is Wire.REFUSE:
            self._listen()
        elif before is Wire.BLACKHOLE:
            self._unstop()
        if wire is Wire.REFUSE:
            self._refuse()
        elif wire is Wire.BLACKHOLE:
            self._stop()

    async def aclose(self) -> None:
        """Reset every connection, and listen no more."""
        self.turn(Wire.REFUSE)
        await asyncio.gather(*self._passing, return_exceptions=True)
        self._socket.close()

    def _listen(self) -> None:
        self._socket.listen(_BACKLOG)
        self._loop.add_reader(self._socket, self._take)

    def _take(self) -> None:
        with suppress(OSError):  # whoever came has left
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            task = self._loop.create_task(self._pass(connection))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    def _refuse(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = _bound(self.port)  # bound, so that nobody else takes it, and not listening
        for writer in tuple(self._writers):
            reset(writer)

    def _stop(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.listen(0)  # which leaves room for one
        self._stopper = socket.socket()
        self._stopper.setblocking(False)
        self._stopper.connect_ex(("127.0.0.1", self.port))

    def _unstop(self) -> None:
        assert self._stopper is not None
        self._stopper.close()
        self._stopper = None
        self._listen()

    async def _pass(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self._writers.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            self._end(writer)
            return
        self._writers.add(upstream_writer)
        ways = (self._requests(reader, upstream_writer), self._replies(upstream_reader, writer))
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end(writer)
        self._end(upstream_writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        reset(writer)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                await self._until_not(Wire.BLACKHOLE)
                writer.write(data)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        middle = self._middle()
        with suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                at = middle(data)
                await self._until_not(Wire.BLACKHOLE)
                if self._wire is Wire.RESET and at is not None:
                    writer.write(data[:at])
                    return
                writer.write(await self._dripped(data, writer))
                await writer.drain()

    async def _until_not(self, wire: Wire) -> None:
        while self._wire is wire:
            await self._changed.wait()

    async def _dripped(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        """What is left of *data* to send at once."""
        for i in range(len(data)):
            if self._wire is not Wire.DRIP:
                return data[i:]
            writer.write(data[i : i + 1])
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRIP_S):
                    await self._changed.wait()
        return b""


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with an RST."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _bound(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setblocking(False)
    found.bind(("127.0.0.1", port))
    return found


def middle_of_http_body() -> Middle:
    """For HTTP/1.1, where a reply comes in one piece, or its head does."""

    def found(data: bytes) -> int | None:
        end = data.find(b"\r\n\r\n")
        return None if end < 0 else (end + 4 + len(data)) // 2

    return found


def middle_of_grpc_message() -> Middle:
    """For HTTP/2: the middle of the payload of the first DATA frame that begins in a piece."""
    held = b""  # of a frame's head that came in part
    skip = 0  # bytes of a frame that goes on

    def found(piece: bytes) -> int | None:
        nonlocal held, skip
        data, before = held + piece, len(held)
        at, middle = skip, None
        while at + _FRAME_HEAD <= len(data):
            size, kind = int.from_bytes(data[at : at + 3]), data[at + 3]
            if middle is None and kind == 0 and size:
                middle = at + _FRAME_HEAD + size // 2
            at += _FRAME_HEAD + size
        held, skip = data[at:], max(0, at - len(data))
        return None if middle is None else max(0, min(middle, len(data)) - before)

    return found


_FRAME_HEAD = 9
