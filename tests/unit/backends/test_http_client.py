"""The HTTP client of backends, against servers that are written out byte by byte."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from backends.contract import Deadline
from backends.http_client import HttpClient, HttpReply, HungUp, Late, Nonsense, Unreachable

NEVER = Deadline(math.inf)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

_ARRIVES_S = 0.02
"""Within which the end of a connection arrives; nothing tells when."""

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """A connection, as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head, await self.reader.readexactly(int(length[0].split(b":")[1])) if length else b""

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self, reply: bytes = OK) -> None:
        await self.request()
        await self.send(reply)

    async def is_left(self) -> bool:
        """Wait until the client closes the connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionResetError:
            pass
        return True


class Server:
    """How many connections came, and how their scripts ended."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.ended: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(Peer(reader, writer))
            self.ended.put_nowait(None)
        except Exception as error:  # told to the test
            self.ended.put_nowait(error)
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script, **options: float) -> AsyncIterator[tuple[HttpClient, Server]]:
    server = Server(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
    server.port = listening.sockets[0].getsockname()[1]
    client = HttpClient("127.0.0.1", server.port, authority="model:8000", **options)  # type: ignore[arg-type]
    try:
        yield client, server
    finally:
        await client.aclose()
        listening.close()


async def get(client: HttpClient, deadline: Deadline = NEVER) -> HttpReply:
    return await client.exchange("GET", "/v2", "", (), deadline)


async def test_a_request_is_written_out_and_its_answer_read() -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(b"HTTP/1.1 201 Made\r\nX-Name: a\r\nContent-", b"Length: 3\r\n\r\na", b"bc")

    async with serving(script) as (client, _):
        reply = await client.exchange("POST", "/v2/x", "X-Mine: 1\r\n", (b"he", memoryview(b"llo")), NEVER)

    assert seen == [(b"POST /v2/x HTTP/1.1\r\nHost: model:8000\r\nX-Mine: 1\r\nContent-Length: 5\r\n\r\n", b"hello")]
    assert (reply.status, reply.headers["x-name"], bytes(reply.body)) == (201, "a", b"abc")


async def test_one_connection_serves_requests_one_after_the_other() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(3):
            await peer.answer()

    async with serving(script) as (client, server):
        for _ in range(3):
            await get(client)

        assert server.connections == 1


async def test_requests_side_by_side_have_a_connection_each_and_their_own_answers() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(4):
            _, body = await peer.request()
            await asyncio.sleep(0.001 * (body[0] % 3))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + body)

    async with serving(script) as (client, server):
        for _ in range(4):
            replies = await asyncio.gather(*(client.exchange("POST", "/", "", (bytes([i]),), NEVER) for i in range(8)))
            assert [bytes(reply.body) for reply in replies] == [bytes([i]) for i in range(8)]

        assert server.connections == 8


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nok",  # as long as the connection
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    ],
)
async def test_every_framing_of_an_answer_is_read_and_the_next_request_is_answered(reply: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(reply)

    async with serving(script) as (client, server):
        for _ in range(2):
            assert bytes((await get(client)).body) == b"ok"
            await server.ended.get()
            await asyncio.sleep(_ARRIVES_S)


@pytest.mark.parametrize(
    "reply",
    [
        b"hello\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_answer_or_too_long_is_nonsense_and_ends_the_connection(reply: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(reply)
        assert await peer.is_left()

    async with serving(script, limit_bytes=1000) as (client, server):
        with pytest.raises(Nonsense):
            await get(client)
        assert await server.ended.get() is None


async def test_bytes_after_an_answer_are_never_taken_for_the_next_one() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
        await peer.is_left()

    async with serving(script) as (client, server):
        for _ in range(3):
            with suppress(Nonsense):  # both came at once: which was meant, nobody knows
                assert bytes((await get(client)).body) == b"ok"

        assert server.connections == 3


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"]
)
async def test_a_server_that_hangs_up_before_its_answer_is_whole_is_told_as_that(reply: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(reply)

    async with serving(script) as (client, _):
        with pytest.raises(HungUp):
            await get(client)


async def test_a_kept_connection_that_the_server_closed_is_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()

    async with serving(script) as (client, server):
        await get(client)
        await server.ended.get()
        await asyncio.sleep(_ARRIVES_S)

        await get(client)

        assert server.connections == 2


async def test_a_deadline_ends_the_exchange_and_the_server_sees_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        assert await peer.is_left()

    async with serving(script) as (client, server):
        with pytest.raises(Late):
            await get(client, Deadline(time.monotonic() + 0.05))
        assert await server.ended.get() is None


async def test_a_cancelled_exchange_ends_its_connection_and_no_other() -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/slow" in head:
            arrived.set()
            assert await peer.is_left()
        else:
            await peer.send(OK)

    async with serving(script) as (client, server):
        slow = asyncio.ensure_future(client.exchange("GET", "/slow", "", (), NEVER))
        await arrived.wait()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow

        assert bytes((await get(client)).body) == b"ok"
        assert [await server.ended.get() for _ in range(2)] == [None, None]


async def test_an_answer_that_comes_before_the_request_is_out_ends_the_connection() -> None:
    """Or what is left of the request would be taken for the next one; and its arrays are the caller's again."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert await peer.is_left()

    async with serving(script) as (client, server):
        reply = await client.exchange("POST", "/", "", (bytes(64 << 20),), NEVER)

        assert reply.status == 413
        assert await server.ended.get() is None


async def test_a_port_that_refuses_is_unreachable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = HttpClient("127.0.0.1", bound.getsockname()[1], authority="x")
        with pytest.raises(Unreachable):
            await get(client)


async def test_a_server_that_accepts_nothing_is_unreachable_after_the_time_for_that() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        client = HttpClient("127.0.0.1", full.getsockname()[1], authority="x", connect_timeout_s=0.1)
        try:
            with pytest.raises(Unreachable):
                await get(client)
            with pytest.raises(Late):
                await get(client, Deadline(time.monotonic() + 0.05))
        finally:
            for one in crowd:
                one.close()


async def test_closing_ends_exchanges_that_go_on_and_takes_no_more() -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.is_left()

    async with serving(script) as (client, _):
        going = asyncio.ensure_future(get(client))
        await arrived.wait()

        await client.aclose()

        with pytest.raises(HungUp):
            await going
        with pytest.raises(Unreachable):
            await get(client)


async def test_a_kept_connection_that_ends_as_it_is_used_again_costs_one_more_connection_and_no_error() -> None:
    """As uvicorn's do after an exception: it answers, and closes without having said so."""

    async def script(peer: Peer) -> None:
        await peer.answer()
        if server.connections == 1:
            await peer.request()

    async with serving(script) as (client, server):
        await get(client)
        assert bytes((await get(client)).body) == b"ok"
        assert server.connections == 2


async def test_what_must_not_be_done_twice_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.request()

    async with serving(script) as (client, server):
        await get(client)
        with pytest.raises(HungUp):
            await client.exchange("POST", "/step", "", (b"x",), NEVER, once=True)
        assert server.connections == 1


async def test_a_kept_connection_that_ends_amid_an_answer_is_told_as_that() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-")

    async with serving(script) as (client, server):
        await get(client)
        with pytest.raises(HungUp):
            await get(client)
        assert server.connections == 1


async def test_a_new_connection_that_ends_is_not_tried_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with serving(script) as (client, server):
        with pytest.raises(HungUp):
            await get(client)
        assert server.connections == 1
