"""The ASGI adapter: limits while reading, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pytest

from gateway.http.asgi import AsgiApp
from gateway.http.handler import Handler
from gateway.http.messages import HttpRequest, HttpResponse
from tests.unit.gateway.http.conftest import LIMITS, Plane

INFER = b"/v2/models/echo/infer"
GOOD = orjson.dumps({"inputs": [{"name": "FP32", "shape": [1, 1], "datatype": "FP32", "data": [1]}]})
HANG = orjson.dumps(
    {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1]}], "parameters": {"script": "hang"}}
)

HOST = ((b"host", b"127.0.0.1"),)


class Exchange:
    """One request as a server would drive it: events go in when they are given, messages come out."""

    def __init__(
        self,
        plane: Plane,
        events: Sequence[dict[str, Any]],
        headers: Sequence[tuple[bytes, bytes]] = HOST,
        **scope: Any,
    ):
        self.app = AsgiApp(plane.handler)
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for event in events:
            self.events.put_nowait(event)
        self.received = 0
        self.sent: list[dict[str, Any]] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "raw_path": INFER,
            "query_string": b"",
            "headers": headers,
            **scope,
        }

    async def receive(self) -> dict[str, Any]:
        event = await self.events.get()
        self.received += 1
        return event

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self) -> int:
        await self.app(self.scope, self.receive, self.send)
        return int(self.sent[0]["status"])


def part(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_a_body_in_parts_is_read_whole(plane: Plane) -> None:
    exchange = Exchange(plane, [part(bytes([byte]), more=True) for byte in GOOD] + [part(b"")])

    assert await exchange.run() == 200
    assert dict(exchange.sent[0]["headers"])[b"content-length"] == str(len(exchange.sent[1]["body"])).encode()


@pytest.mark.parametrize("declared", [LIMITS.body_bytes + 1, 10**30])
async def test_a_body_declared_too_long_is_413_before_any_of_it_is_read(plane: Plane, declared: int) -> None:
    exchange = Exchange(plane, [part(b"x", more=True)], [(b"content-length", str(declared).encode())])

    assert await exchange.run() == 413
    assert exchange.received == 0
    assert (b"connection", b"close") in exchange.sent[0]["headers"]


async def test_an_undeclared_body_is_413_at_the_limit(plane: Plane) -> None:
    chunk = b"x" * (LIMITS.body_bytes // 4)
    exchange = Exchange(plane, [part(chunk, more=True)] * 100)

    assert await exchange.run() == 413
    assert exchange.received == 5


@pytest.mark.parametrize("value", [b"-1", b"abc", b"5, 5", b"\xb2"])
async def test_a_content_length_that_is_no_number_is_400(plane: Plane, value: bytes) -> None:
    assert await Exchange(plane, [], [(b"content-length", value)]).run() == 400


@pytest.mark.parametrize("hosts", [0, 2])
async def test_a_request_has_one_host(plane: Plane, hosts: int) -> None:
    exchange = Exchange(plane, [part(GOOD)], http_version="1.1", headers=[(b"Host", b"localhost")] * hosts)

    assert await exchange.run() == 400
    assert f"has {hosts} Host headers" in orjson.loads(exchange.sent[1]["body"])["error"]


async def test_a_body_that_does_not_arrive_is_408(plane: Plane) -> None:
    assert await Exchange(plane, [part(b"x", more=True)]).run() == 408


async def test_a_client_that_leaves_in_mid_body_is_forgotten(plane: Plane) -> None:
    exchange = Exchange(plane, [part(b"x", more=True), {"type": "http.disconnect"}])

    await exchange.app(exchange.scope, exchange.receive, exchange.send)

    assert exchange.sent == []
    assert plane.service.requests == []


async def test_a_client_that_leaves_takes_its_request_with_it(plane: Plane) -> None:
    exchange = Exchange(plane, [part(HANG)])
    running = asyncio.create_task(exchange.app(exchange.scope, exchange.receive, exchange.send))
    await asyncio.wait_for(plane.service.hanging.wait(), 2)

    exchange.events.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(running, 1)

    assert plane.service.cancelled.is_set()
    assert exchange.sent == []
    assert [seen.status for seen in plane.exchanges] == [499]


async def test_a_server_that_stops_takes_its_requests_with_it(plane: Plane) -> None:
    exchange = Exchange(plane, [part(HANG)])
    running = asyncio.create_task(exchange.app(exchange.scope, exchange.receive, exchange.send))
    await asyncio.wait_for(plane.service.hanging.wait(), 2)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert plane.service.cancelled.is_set()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_head_keeps_the_length_and_drops_the_body(plane: Plane) -> None:
    get = Exchange(plane, [part(b"")], method="GET", raw_path=b"/v2")
    head = Exchange(plane, [part(b"")], method="HEAD", raw_path=b"/v2")

    assert (await get.run(), await head.run()) == (200, 200)
    assert get.sent[0] == head.sent[0]
    assert (get.sent[1]["body"] != b"", head.sent[1]["body"]) == (True, b"")


async def test_the_raw_path_counts_and_repeated_headers_are_joined(plane: Plane) -> None:
    decoded = Exchange(plane, [part(b"")], method="GET", raw_path=b"/v2/%68ealth/live", path="/v2/health/live")
    joined = Exchange(plane, [part(GOOD)], [*HOST, (b"Content-Type", b"a"), (b"content-type", b"b")])

    assert await decoded.run() == 404
    assert await joined.run() == 415


async def test_the_lifespan_protocol_is_answered(plane: Plane) -> None:
    exchange = Exchange(plane, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], type="lifespan")

    await exchange.app(exchange.scope, exchange.receive, exchange.send)

    assert [message["type"] for message in exchange.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed(plane: Plane) -> None:
    exchange = Exchange(plane, [], type="websocket")

    await exchange.app(exchange.scope, exchange.receive, exchange.send)

    assert exchange.sent == [{"type": "websocket.close", "code": 1003}]


@pytest.fixture
async def connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    yield reader, writer
    writer.close()


def head(body: bytes, path: bytes = INFER) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        path,
        len(body),
    )


async def test_over_a_real_connection_a_disconnect_cancels_at_once(
    plane: Plane, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    _, writer = connection
    writer.write(head(HANG) + HANG)
    await asyncio.wait_for(plane.service.hanging.wait(), 2)

    writer.close()

    # 100 ms is what is promised; the rest allows for a busy machine.
    await asyncio.wait_for(plane.service.cancelled.wait(), 0.5)


@pytest.mark.parametrize("path", [b"//v2", b"/v2/%2e%2e/v2", b"/v2/%00", b"/v2/", b"/v2/models/a%2Fb/infer"])
async def test_over_a_real_connection_paths_are_not_normalised(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: bytes
) -> None:
    reader, writer = connection
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)

    assert (await asyncio.wait_for(reader.readline(), 2)).split()[1] in (b"404", b"400")


async def test_over_a_real_connection_a_long_body_is_413_and_the_server_lives(
    plane: Plane, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], address: str
) -> None:
    reader, writer = connection
    writer.write(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" % INFER)

    assert (await asyncio.wait_for(reader.readline(), 2)).split()[1] == b"413"
    host, port = address.split(":")
    again, sender = await asyncio.open_connection(host, int(port))
    sender.write(head(GOOD) + GOOD)
    assert (await asyncio.wait_for(again.readline(), 2)).split()[1] == b"200"
    sender.close()


class AtTheLastMoment(Handler):
    """Has made its stream just when nobody wants it any more."""

    def __init__(self, stop: Callable[[], object] = lambda: None) -> None:
        """Args:
        stop: is called where no client leaves.
        """
        self.limits = LIMITS
        self.stop = stop
        self.is_asked = asyncio.Event()
        self.closed = 0

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """A stream, whatever happens to whoever asks."""
        self.is_asked.set()
        self.stop()
        if request.method == "GET":
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return HttpResponse(200, parts=self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("nobody listens")

    async def aclose(self) -> None:
        """Free what the stream holds."""
        self.closed += 1


async def test_a_stream_that_is_made_while_its_client_leaves_is_closed(plane: Plane) -> None:
    handler = AtTheLastMoment()
    exchange = Exchange(plane, [part(b"")], method="GET")
    running = asyncio.create_task(AsgiApp(handler)(exchange.scope, exchange.receive, exchange.send))
    await asyncio.wait_for(handler.is_asked.wait(), 2)

    exchange.events.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(running, 2)

    assert (exchange.sent, handler.closed) == ([], 1)


async def test_a_stream_that_is_made_while_the_server_gives_up_is_closed(plane: Plane) -> None:
    handler = AtTheLastMoment(stop=lambda: running.cancel())
    exchange = Exchange(plane, [part(b"")])
    running = asyncio.create_task(AsgiApp(handler)(exchange.scope, exchange.receive, exchange.send))

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 2)

    assert (exchange.sent, handler.closed) == ([], 1)
