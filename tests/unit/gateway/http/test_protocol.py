"""The data plane's own transport, over real connections; both event loops must carry it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import PointsmanError
from gateway.http.handler import Handler, HttpExchange, HttpLimits
from gateway.http.listener import ConnectionLimits, HttpListener
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters
from gateway.http.paths import PathEntry
from gateway.http.protocol import CHUNK_BYTES, Dates, Heads, RequestReader, WireLimits, encode_head
from gateway.request import Caller
from gateway.security import Authenticator, SecurityOptions
from gateway.settings import SettingsError, load_settings
from gateway.settings.options import TlsOptions
from tests.integration.process import CONFIG

BODY_LIMIT = 1 << 20
WIRE = WireLimits(head_bytes=4096, headers=20, chunks=100)
LIMITS = ConnectionLimits(WIRE, head_timeout_s=5.0, idle_timeout_s=5.0, write_timeout_s=5.0, accept_retry_s=0.01)
GET = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")  # its hook is for folders


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> Any:  # Any: uvloop's policy is none by inheritance
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@dataclass
class Site:
    """Some endpoints behind a real handler, and what happened to them."""

    seen: list[HttpRequest] = field(default_factory=list)
    exchanges: list[HttpExchange] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def handler(self, body_timeout_s: float = 5.0) -> Handler:
        entries = [
            PathEntry("GET", "/live", self.live, role=None),
            PathEntry("POST", "/echo", self.echo, role=None),
            PathEntry("GET", "/big", self.big, role=None),
            PathEntry("GET", "/wait", self.wait, role=None),
            PathEntry("GET", "/broken", self.broken, role=None),
        ]
        limits = HttpLimits(body_bytes=BODY_LIMIT, body_timeout_s=body_timeout_s)
        return Handler(entries, Authenticator(SecurityOptions()), self, limits)

    def on_http(self, exchange: HttpExchange) -> None:
        self.exchanges.append(exchange)

    async def live(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        self.seen.append(request)
        return HttpResponse(200, [("content-type", "application/json")], b'{"live":true}')

    async def echo(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        self.seen.append(request)
        if len(request.octets) % 2:
            await asyncio.sleep(0)
        return HttpResponse(200, [("x-query", request.query)], request.octets)

    async def big(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        return HttpResponse(200, (), b"x" * int(request.query))

    async def wait(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return HttpResponse(200, (), b"waited")

    async def broken(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        return HttpResponse(200, [("location", "/a\r\nset-cookie: b")])


@dataclass
class Reply:
    """A reply as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(orjson.loads(self.body)["error"])


@dataclass
class Client:
    """A connection to the listener."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def reply(self, *, without_body: bool = False) -> Reply:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if line)
            length = 0 if without_body else int(headers.get("content-length", 0))
            return Reply(int(first.split()[1]), headers, await self.reader.readexactly(length))

    async def ask(self, *parts: bytes) -> Reply:
        for part in parts:
            self.writer.write(part)
        return await self.reply()

    async def ended(self) -> bytes:
        """What comes until the server has ended the connection."""
        async with asyncio.timeout(5):
            return await self.reader.read()


@dataclass
class Served:
    """A listener that listens, and a way to it."""

    site: Site
    listener: HttpListener
    address: tuple[str, int]
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection(*self.address))
        self.clients.append(client)
        return client

    async def ask(self, *parts: bytes) -> Reply:
        return await (await self.connect()).ask(*parts)


@asynccontextmanager
async def serving(limits: ConnectionLimits = LIMITS, body_timeout_s: float = 5.0) -> AsyncIterator[Served]:
    site = Site()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(site.handler(body_timeout_s), bound, 5.0, limits) as listener:
            served = Served(site, listener, bound.getsockname())
            yield served
            for client in served.clients:
                client.writer.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as found:
        yield found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until *condition* holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


def post(body: bytes, *headers: str, target: str = "/echo") -> bytes:
    lines = (f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"


# --- one connection, many requests ---


async def test_a_connection_is_kept_and_dated(served: Served) -> None:
    client = await served.connect()

    first = await client.ask(GET)
    second = await client.ask(post(b"hello", target="/echo?a=b"))

    assert (first.status, first.body, "connection" in first.headers) == (200, b'{"live":true}', False)
    assert first.headers["date"].endswith(" GMT")
    assert (second.status, second.body, second.headers["x-query"]) == (200, b"hello", "a=b")
    assert len(served.listener.connections) == 1


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    client = await served.connect()
    bodies = [b"%d" % number * (1 + number % 7) for number in range(200)]

    client.writer.write(b"".join(chunked(body) if len(body) % 3 else post(body) for body in bodies))

    assert [(await client.reply()).body for _ in bodies] == bodies


async def test_a_pipelined_request_waits_for_the_reply_before_it(served: Served) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"/live", b"/wait") + GET)
    await served.site.started.wait()

    assert served.site.seen == []
    served.site.go.set()

    assert [(await client.reply()).body for _ in range(2)] == [b"waited", b'{"live":true}']


async def test_nothing_more_is_read_while_too_much_waits_for_a_reply() -> None:
    async with serving(replace(LIMITS, held_bytes=1000)) as served:
        client = await served.connect()
        client.writer.write(GET.replace(b"/live", b"/wait"))
        await served.site.started.wait()
        many = 200_000

        client.writer.write(GET * many)
        with suppress(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.2)
        (connection,) = served.listener.connections
        assert connection._reader.held_bytes < 1_000_000 < len(GET) * many

        served.site.go.set()
        for _ in range(1000):
            await client.reply()
        client.writer.transport.abort()


async def test_head_is_answered_as_get_without_its_body(served: Served) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"GET", b"HEAD") + GET)

    head, get = await client.reply(without_body=True), await client.reply()

    assert head.headers["content-length"] == get.headers["content-length"] == "13"


async def test_a_body_in_chunks_is_read_with_its_extensions_and_trailers(served: Served) -> None:
    sent = chunked(b"hello", b" ", b"world", trailer=b"Checksum: 1\r\nX: 2\r\n").replace(b"5\r\nh", b'5;a="b"\r\nh')
    client = await served.connect()

    assert (await client.ask(sent)).body == b"hello world"
    assert "checksum" not in served.site.seen[0].headers
    assert (await client.ask(GET)).status == 200


async def test_an_expected_100_is_sent_only_where_the_body_is_awaited(served: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
    client = await served.connect()

    assert (await client.ask(head)).status == 100
    assert (await client.ask(b"hello")).body == b"hello"
    assert (await client.ask(head + b"hello")).status == 200
    too_long = await client.ask(head.replace(b": 5", b": 9999999"))
    assert (too_long.status, await client.ended()) == (413, b"")


async def test_another_expectation_is_417(served: Served) -> None:
    reply = await served.ask(post(b"hello", "Expect: the-spanish-inquisition"))

    assert (reply.status, reply.headers["connection"]) == (417, "close")
    assert "leave it out" in reply.error

    told = await served.ask(post(b"hello", "Expect: the-spanish-inquisition").replace(b"/echo", b"/v1/echo"))
    problem = orjson.loads(told.body)
    assert told.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["title"]) == (417, "Expectation failed")
    assert problem["type"].endswith(":unmet_expectation")
    assert [exchange.status for exchange in served.site.exchanges] == [417, 417]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /live HTTP/1.0\r\n\r\n",
        b"GET /live HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        GET.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, Close\r\n\r\n"),
    ],
)
async def test_the_last_reply_says_so_and_the_connection_ends(served: Served, sent: bytes) -> None:
    client = await served.connect()

    reply = await client.ask(sent + GET)

    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await client.ended() == b""
    assert len(served.site.seen) == 1


async def test_an_upgrade_is_passed_over(served: Served) -> None:
    sent = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")

    assert (await served.ask(sent + GET)).status == 200


async def test_a_method_that_nobody_knows_is_405_or_404(served: Served) -> None:
    client = await served.connect()

    assert (await client.ask(GET.replace(b"GET", b"INVENT"))).status == 405
    assert (await client.ask(GET.replace(b"GET /live", b"invent /nothing"))).status == 404
    assert (await client.ask(GET)).status == 200


async def test_a_long_body_goes_there_and_back(served: Served) -> None:
    body = os.urandom(BODY_LIMIT)
    client = await served.connect()

    assert (await client.ask(post(body))).body == body
    assert (await client.ask(chunked(*(body[at : at + 50_000] for at in range(0, BODY_LIMIT, 50_000))))).body == body


async def test_a_reply_that_would_break_its_lines_is_never_written(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"/live", b"/broken"))

    with suppress(ConnectionResetError):
        assert await client.ended() == b""
    assert "a reply could not be written" in caplog.text
    assert (await served.ask(GET)).status == 200


# --- what is refused ---


def headers(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET /live HTTP/1.1", *lines, b"", b""))


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        pytest.param(headers(), 400, "has 0 Host headers", id="no host"),
        pytest.param(headers(b"Host: a", b"host: a"), 400, "has 2 Host headers", id="two hosts"),
        pytest.param(headers(b"Host: a", b"X: b\n c"), 400, "Invalid HTTP", id="bare LF and fold"),
        pytest.param(headers(b"Host: a", b"X: b", b"\tc"), 400, "folded", id="folded"),
        pytest.param(headers(b"Host: a", b"X: b\rY: c"), 400, "Invalid HTTP", id="CR"),
        pytest.param(headers(b"Host: a", b"X: b\0"), 400, "Invalid HTTP", id="NUL"),
        pytest.param(headers(b"Host: a", b"X: \x7f"), 400, "Invalid HTTP", id="DEL"),
        pytest.param(headers(b"Host: a", b"X : b"), 400, "Invalid HTTP", id="space before the colon"),
        pytest.param(headers(b"Host: a", b": b"), 400, "Invalid HTTP", id="no name"),
        pytest.param(headers(b"Host: a", b"X"), 400, "Invalid HTTP", id="no colon"),
        pytest.param(b"GET /live HTTP/1.1\nHost: a\n\n", 400, "Invalid HTTP", id="LF for CRLF"),
        pytest.param(b"\x16\x03\x01\x02\0", 400, "Invalid HTTP", id="TLS"),
        pytest.param(GET.replace(b"/live", b"http://a/live"), 400, "target", id="absolute form"),
        pytest.param(GET.replace(b"/live", b"/a b"), 400, "Invalid HTTP", id="space in the target"),
        pytest.param(GET.replace(b"/live", b"/\xc3\xa9"), 400, "Invalid HTTP", id="target not ASCII"),
        pytest.param(GET.replace(b"/live", b"/live#a"), 400, "target", id="fragment"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target", id="asterisk"),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target", id="CONNECT"),
        pytest.param(GET.replace(b"GET", b"G\xffT"), 400, "no token", id="method not ASCII"),
        pytest.param(GET.replace(b"GET", b"G(T"), 400, "no token", id="method no token"),
        pytest.param(GET.replace(b"1.1", b"2.0"), 400, "Invalid HTTP", id="HTTP/2.0"),
        pytest.param(GET.replace(b"1.1", b"1.2"), 400, "Invalid HTTP", id="HTTP/1.2"),
        pytest.param(GET.replace(b" HTTP/1.1", b""), 400, "Invalid HTTP", id="HTTP/0.9"),
        pytest.param(post(b"", "Content-Length: 0"), 400, "Invalid HTTP", id="two lengths"),
        pytest.param(post(b"").replace(b": 0", b": +1"), 400, "Invalid HTTP", id="signed length"),
        pytest.param(post(b"").replace(b": 0", b": 1, 1"), 400, "Invalid HTTP", id="list of lengths"),
        pytest.param(post(b"").replace(b": 0", b": "), 400, "Invalid HTTP", id="empty length"),
        pytest.param(post(b"").replace(b": 0", b": " + b"9" * 30), 400, "Invalid HTTP", id="length of 30 digits"),
        pytest.param(chunked(b"a").replace(b"chunked", b"gzip, chunked"), 400, "Invalid HTTP", id="gzip, chunked"),
        pytest.param(chunked(b"a").replace(b"chunked", b"chunked, chunked"), 400, "Invalid HTTP", id="chunked twice"),
        pytest.param(chunked(b"a").replace(b"1.1", b"1.0"), 400, "Invalid HTTP", id="chunked in HTTP/1.0"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b" 1\r\na"), 400, "chunk's size", id="space before a size"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b"1 \r\na"), 400, "chunk's size", id="space behind a size"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b"1;\n\r\na"), 400, "chunk's size", id="LF in an extension"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b"1;" + b"e" * 300), 400, "chunk's size", id="long extension"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b"\r\na"), 400, "chunk's size", id="no size"),
        pytest.param(chunked(b"a").replace(b"a\r\n", b"abc"), 400, "does not end", id="chunk too long"),
        pytest.param(chunked(b"a", trailer=b"x y: z\r\n"), 400, "no trailer", id="no trailer"),
        pytest.param(chunked(b"a", trailer=b"X: " + b"y" * 9000 + b"\r\n"), 400, "no trailer", id="long trailer"),
        pytest.param(chunked(b"a").replace(b"1\r\na", b"f" * 16 + b"\r\na"), 413, "longer than", id="chunk of 2^64-1"),
        pytest.param(chunked(*[b"a"] * 101), 413, "too many chunks", id="101 chunks"),
        pytest.param(post(b"").replace(b": 0", b": 1048577"), 413, "1048577 bytes; at most", id="declared too long"),
        pytest.param(chunked(b"a" * (BODY_LIMIT + 1)), 413, "longer than", id="undeclared too long"),
        pytest.param(headers(b"Host: a", *[b"a:"] * 20), 431, "21 headers; at most 20", id="21 headers"),
        pytest.param(headers(b"Host: a", b"X: " + b"y" * 5000), 431, "longer than 4096", id="long header"),
        pytest.param(b"GET /" + b"a" * 5000, 431, "longer than 4096", id="long target without an end"),
    ],
)
async def test_what_is_refused_ends_its_connection(served: Served, sent: bytes, status: int, message: str) -> None:
    client = await served.connect()

    reply = await client.ask(sent, post(b"smuggled"))

    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert message in reply.error
    assert await client.ended() == b""
    assert served.site.seen == []
    assert [exchange.status for exchange in served.site.exchanges] == [status]
    assert (await served.ask(GET)).status == 200


async def test_a_chunked_body_at_its_limits_is_read(served: Served) -> None:
    assert (await served.ask(chunked(*[b"a"] * 100))).body == b"a" * 100
    assert len((await served.ask(chunked(b"a" * BODY_LIMIT))).body) == BODY_LIMIT
    assert len((await served.ask(chunked(*[b"a" * CHUNK_BYTES] * 200))).body) == CHUNK_BYTES * 200


# --- time ---


async def test_a_head_that_does_not_arrive_is_408() -> None:
    async with serving(replace(LIMITS, head_timeout_s=0.05)) as served:
        client = await served.connect()

        reply = await client.ask(GET[:-3])

        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert "headers did not arrive within 0.05 s" in reply.error


async def test_a_head_that_drips_is_408_however_steadily() -> None:
    async with serving(replace(LIMITS, head_timeout_s=0.05)) as served:
        client = await served.connect()

        async def drip() -> None:
            while True:
                client.writer.write(b"a")
                await asyncio.sleep(0.005)

        dripping = asyncio.create_task(drip())
        assert (await client.reply()).status == 408
        dripping.cancel()


@pytest.mark.parametrize("sent", [post(b"hello")[:-1], chunked(b"hello")[:-1], chunked(b"hello")[:-8]])
async def test_a_body_that_does_not_arrive_is_408(sent: bytes) -> None:
    async with serving(body_timeout_s=0.05) as served:
        reply = await served.ask(sent)

        assert (reply.status, "body did not arrive within 0.05 s" in reply.error) == (408, True)


async def test_an_idle_connection_is_closed_silently() -> None:
    async with serving(replace(LIMITS, idle_timeout_s=0.05)) as served:
        new, used = await served.connect(), await served.connect()
        await used.ask(GET)

        assert (await new.ended(), await used.ended()) == (b"", b"")


async def test_a_reply_in_time_is_not_cut_short_by_the_idle_timer() -> None:
    async with serving(replace(LIMITS, idle_timeout_s=0.05)) as served:
        client = await served.connect()
        client.writer.write(GET.replace(b"/live", b"/wait"))
        await served.site.started.wait()

        await asyncio.sleep(0.1)
        served.site.go.set()

        assert (await client.reply()).status == 200


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with serving(replace(LIMITS, write_timeout_s=0.05)) as served:
        client = await served.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a reading transport is one, too
        client.writer.write(GET.replace(b"/live", b"/big?50000000") + GET)

        await until(lambda: len(served.site.exchanges) == 1)
        await until(lambda: not served.listener.connections)

        assert served.site.seen == []


async def test_a_client_that_reads_slowly_but_steadily_gets_everything() -> None:
    async with serving(replace(LIMITS, write_timeout_s=0.3, write_bytes=1)) as served:
        client = await served.connect()
        client.writer.write(GET.replace(b"/live", b"/big?20000000"))
        size = 0

        await client.reader.readuntil(b"\r\n\r\n")
        while size < 20_000_000:
            part = await client.reader.read(1 << 20)
            assert part, "it was cut off"
            size += len(part)
            await asyncio.sleep(0.005)

        assert (await client.ask(GET)).status == 200


# --- clients that leave ---


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_takes_its_request_with_it(served: Served, reset: bool) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"/live", b"/wait"))
    await served.site.started.wait()

    if reset:
        linger = struct.pack("ii", 1, 0)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.close()

    # 100 ms is what is promised; the rest allows for a busy machine.
    await asyncio.wait_for(served.site.cancelled.wait(), 0.5)
    await until(lambda: not served.listener.connections)
    assert [exchange.status for exchange in served.site.exchanges] == [499]


async def test_a_client_that_leaves_in_mid_body_is_forgotten(served: Served) -> None:
    for sent in (post(b"hello")[:-1], chunked(b"hello")[:-1], GET[:-1]):
        client = await served.connect()
        client.writer.write(sent)
        client.writer.close()

    await until(lambda: not served.listener.connections)
    assert served.site.exchanges == []


async def test_a_client_that_has_only_ended_its_side_gets_its_replies(served: Served) -> None:
    client = await served.connect()
    client.writer.write(GET + post(b"hello") + GET[:-1])
    client.writer.write_eof()

    assert [(await client.reply()).body for _ in range(2)] == [b'{"live":true}', b"hello"]
    assert await client.ended() == b""


async def test_a_client_that_waits_on_half_a_connection_is_asked_whether_it_is_there(served: Served) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"/live", b"/wait"))
    client.writer.write_eof()

    assert (await client.reply()).status == 100
    await asyncio.sleep(3 * LIMITS.probe_s)
    served.site.go.set()

    assert (await client.reply()).body == b"waited"
    assert await client.ended() == b""


async def test_an_old_client_on_half_a_connection_is_not_told_what_it_does_not_know(served: Served) -> None:
    client = await served.connect()
    client.writer.write(b"GET /wait HTTP/1.0\r\n\r\n")
    client.writer.write_eof()
    await served.site.started.wait()

    await asyncio.sleep(3 * LIMITS.probe_s)
    served.site.go.set()

    assert (await client.reply()).body == b"waited"


async def test_a_client_that_leaves_behind_pipelined_requests_takes_all_with_it(served: Served) -> None:
    client = await served.connect()
    client.writer.write(post(b"hello") * 3 + GET.replace(b"/live", b"/wait"))
    client.writer.close()

    await until(lambda: bool(served.site.exchanges) and not served.listener.connections)
    assert served.site.cancelled.is_set() == served.site.started.is_set()


async def test_a_client_that_leaves_takes_a_pipelined_request_with_it_that_is_at_work(served: Served) -> None:
    client = await served.connect()
    assert (await client.ask(GET + GET.replace(b"/live", b"/wait"))).status == 200
    await served.site.started.wait()

    client.writer.close()

    await asyncio.wait_for(served.site.cancelled.wait(), 0.5)


# --- the end ---


async def test_closing_ends_idle_connections_at_once_and_others_with_their_replies(served: Served) -> None:
    idle, busy, sending = [await served.connect() for _ in range(3)]
    await idle.ask(GET)
    busy.writer.write(GET.replace(b"/live", b"/wait"))
    sending.writer.write(post(b"hello")[:-1])
    await served.site.started.wait()
    await until(lambda: sum("BODY" in repr(connection) for connection in served.listener.connections) == 1)

    served.listener.close()
    served.listener.close()

    assert await idle.ended() == b""
    with pytest.raises(ConnectionRefusedError):
        await served.connect()
    served.site.go.set()
    for client, last in ((busy, b""), (sending, b"o")):
        reply = await client.ask(last)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.ended() == b""
    await until(lambda: not served.listener.connections)


async def test_a_listener_that_retires_answers_who_is_connected_once_more(served: Served) -> None:
    idle, busy = await served.connect(), await served.connect()
    await idle.ask(GET)
    busy.writer.write(GET.replace(b"/live", b"/wait"))
    await served.site.started.wait()

    served.listener.retire()
    served.listener.retire()

    with pytest.raises(ConnectionRefusedError):
        await served.connect()
    served.site.go.set()
    for reply, client in ((await idle.ask(GET), idle), (await busy.reply(), busy)):
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.ended() == b""


async def test_who_has_connected_when_a_listener_retires_is_answered(served: Served) -> None:
    """They are in the kernel's queue still: nothing was awaited since."""
    with socket.create_connection(served.address, timeout=5) as waiting:
        served.listener.retire()
        waiting.setblocking(False)
        client = Client(*await asyncio.open_connection(sock=waiting))
        served.clients.append(client)

        reply = await client.ask(GET)

        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.ended() == b""


async def test_closing_ends_who_is_idle_since_the_listener_has_retired(served: Served) -> None:
    idle = await served.connect()
    await idle.ask(GET)
    served.listener.retire()

    served.listener.close()

    assert await idle.ended() == b""


async def test_an_abort_cancels_what_is_at_work(served: Served) -> None:
    client = await served.connect()
    client.writer.write(GET.replace(b"/live", b"/wait"))
    await served.site.started.wait()

    served.listener.abort()

    await asyncio.wait_for(served.site.cancelled.wait(), 1)


async def test_what_has_not_ended_in_time_is_cut_off() -> None:
    site = Site()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(site.handler(), bound, 0.05, LIMITS):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.write(GET.replace(b"/live", b"/wait"))
            await site.started.wait()

    assert site.cancelled.is_set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    writer.close()


# --- TLS ---


@pytest.fixture
def tls(tmp_path: Path) -> TlsOptions:
    """A certificate for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not installed")
    options = TlsOptions(tmp_path / "cert.pem", tmp_path / "key.pem")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([openssl, *made, *named, "-keyout", options.key, "-out", options.cert], check=True, timeout=30)
    return options


async def test_over_tls_requests_are_answered_and_others_do_not_hold_it_up(tls: TlsOptions) -> None:
    site = Site()
    context = ssl.create_default_context(cafile=tls.cert)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(site.handler(), bound, 5.0, replace(LIMITS, head_timeout_s=0.3), tls.context()):
            address = bound.getsockname()
            plain = Client(*await asyncio.open_connection(*address))
            silent = Client(*await asyncio.open_connection(*address))
            plain.writer.write(GET)

            client = Client(*await asyncio.open_connection(*address, ssl=context, server_hostname="localhost"))
            body = os.urandom(300_000)
            assert (await client.ask(GET)).status == 200
            assert (await client.ask(post(body))).body == body
            refused = await client.ask(GET.replace(b"Host", b"Most"))
            assert (refused.status, await client.ended()) == (400, b"")

            for ignored in (plain, silent):
                with suppress(ConnectionResetError):
                    assert b"HTTP" not in await ignored.ended()
            for each in (plain, silent, client):
                each.writer.close()


async def test_over_tls_a_client_that_leaves_takes_its_request_with_it(tls: TlsOptions) -> None:
    site = Site()
    context = ssl.create_default_context(cafile=tls.cert)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(site.handler(), bound, 5.0, LIMITS, tls.context()):
            _, writer = await asyncio.open_connection(*bound.getsockname(), ssl=context, server_hostname="localhost")
            writer.write(GET.replace(b"/live", b"/wait"))
            await site.started.wait()

            writer.close()

            await asyncio.wait_for(site.cancelled.wait(), 1)


def test_a_certificate_that_cannot_be_used_stops_the_start(tls: TlsOptions, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(f"{CONFIG}\nserver: {{tls: {{cert: cert.pem, key: key.pem}}}}")
    assert load_settings(config).server.tls == tls

    tls.key.write_text(tls.cert.read_text())
    with pytest.raises(SettingsError, match=r"server\.tls: cannot be used: .*; name PEM files"):
        load_settings(config)

    tls.key.unlink()
    with pytest.raises(SettingsError, match=r"server\.tls: cannot be used: .*No such file"):
        load_settings(config)


# --- file descriptors ---


@pytest.fixture
def descriptors() -> Iterator[Callable[[], None]]:
    """Lets file descriptors run out, until the end of the test or the second call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def toggle() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] != soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))

    yield toggle
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_accepting_pauses_while_descriptors_have_run_out(
    served: Served, descriptors: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    old = await served.connect()
    await old.ask(GET)
    new = socket.socket()
    new.setblocking(False)

    descriptors()
    assert new.connect_ex(served.address) == errno.EINPROGRESS
    await until(lambda: "cannot accept connections" in caplog.text)
    await asyncio.sleep(5 * LIMITS.accept_retry_s)
    assert (await old.ask(GET)).status == 200
    descriptors()

    client = Client(*await asyncio.open_connection(sock=new))
    served.clients.append(client)
    assert (await client.ask(GET)).status == 200
    assert caplog.text.count("cannot accept connections") == 1


# --- bytes, without a connection ---


def read_all(parts: Sequence[bytes], heads: Heads | None = None) -> list[tuple[str, str, str, dict[str, str], bytes]]:
    reader = RequestReader(WIRE, BODY_LIMIT, heads)
    found = []
    for part in parts:
        request = reader.read(part)
        while request is not None:
            found.append((request.method, request.path, request.query, dict(request.headers), request.octets))
            request = reader.read(b"")
    return found


requests = st.one_of(
    st.binary(max_size=40).map(post),
    st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(lambda chunks: chunked(*chunks)),
    st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(lambda c: chunked(*c, trailer=b"A: b\r\nC: d\r\n")),
    st.sampled_from([GET, b"\r\n" + GET, GET.replace(b"GET", b"INVENT"), post(b"", "X-A: \xc2\xa0 b ", target="/?a")]),
)


@given(st.lists(requests, min_size=1, max_size=4).map(b"".join), st.data())
def test_requests_are_read_alike_wherever_they_are_split(sent: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=30)))
    parts = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    assert read_all([part for part in parts if part]) == read_all([sent]) == read_all([bytes([b]) for b in sent])


@given(st.lists(requests, min_size=1, max_size=8))
def test_a_head_that_has_come_before_is_read_as_if_it_had_not(sent: list[bytes]) -> None:
    heads = Heads(WIRE)

    assert [read_all([one], heads) for one in sent * 2] == [read_all([one]) for one in sent * 2]


def test_only_the_last_few_heads_are_known_and_none_that_was_refused() -> None:
    heads = Heads(WIRE)
    for number in range(1000):
        read_all([b"GET /live?%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number], heads)
        for bad in (
            b"GET /live?%d HTTP/1.1\r\n\r\n" % number,
            b"GET /%d HTTP/1.1\r\nHost: a\r\nX: \1\r\n\r\n" % number,
        ):
            with pytest.raises(PointsmanError):
                read_all([bad], heads)
    read_all([b"GET /live?1 HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"x" * 3000)], heads)

    assert [int(head.split()[1][6:]) for head in heads._known] == list(range(744, 1000))


@given(st.lists(requests | st.binary(max_size=60), min_size=1, max_size=4).map(b"".join), st.data())
def test_bytes_whatever_are_read_or_refused(sent: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(sent)))
    mangled = sent[:at] + data.draw(st.binary(max_size=3)) + sent[at + data.draw(st.integers(0, 3)) :]

    with suppress(PointsmanError):
        read_all([mangled])


def test_a_body_that_comes_in_one_piece_is_not_copied() -> None:
    reader = RequestReader(WIRE, BODY_LIMIT)
    sent = post(b"hello" * 1000)
    head, body = sent[:-5000], sent[-5000:]

    assert reader.read(head) is None
    request = reader.read(body)

    assert request is not None
    assert request.body is body


def test_a_body_that_drips_does_not_become_as_many_objects() -> None:
    reader = RequestReader(WIRE, BODY_LIMIT)
    body = os.urandom(10_000)
    assert reader.read(post(body)[:-10_000]) is None

    for at in range(0, 9_998, 2):
        assert reader.read(body[at : at + 2]) is None
    assert len(reader._parts) < 1024
    request = reader.read(body[9_998:])

    assert request is not None
    assert request.body == body


def test_the_date_is_made_once_a_second() -> None:
    now = 0.0
    dates = Dates(lambda: now)

    first = dates.line()
    now = 0.9
    assert dates.line() is first
    now = 1.0
    assert dates.line() == b"date: Thu, 01 Jan 1970 00:00:01 GMT\r\n"


def test_a_status_without_a_body_has_no_length() -> None:
    assert encode_head(HttpResponse(204), b"", close=False) == b"HTTP/1.1 204 No Content\r\n\r\n"


# --- anything at all, over a connection ---


@settings(max_examples=25, deadline=None)
@given(st.lists(requests | st.binary(min_size=1, max_size=200), min_size=1, max_size=3))
def test_whatever_is_sent_the_next_client_is_served(parts: list[bytes]) -> None:
    async def send() -> None:
        async with serving() as served:
            client = await served.connect()
            for part in parts:
                client.writer.write(part)
            client.writer.write_eof()
            told = await client.ended()
            assert not told or told.startswith(b"HTTP/1.1 ")
            assert b" 500 " not in told
            assert (await served.ask(GET)).status == 200

    uvloop.run(send())
