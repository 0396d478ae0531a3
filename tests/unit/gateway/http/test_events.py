"""Server-sent events of an answer, over real connections: our own listener on both event loops, and a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import orjson
import pytest
import uvloop

from backends.errors import Unavailable
from gateway.answer import Answer, AnswerId, Status
from gateway.http import asgi, events
from gateway.http.listener import ConnectionLimits, HttpListener
from gateway.http.v1 import v1_endpoints
from gateway.request import Caller
from gateway.security import ApiKey, Authenticator, SecurityOptions
from tests.unit.gateway.http.conftest import KEY, LIMITS, Plane

CONNECTION = ConnectionLimits(head_timeout_s=5.0, idle_timeout_s=5.0, write_timeout_s=5.0)
BIG = 2_000_000

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")  # its hook is for folders


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> Any:  # Any: uvloop's policy is none by inheritance
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@dataclass
class Stream:
    """A connection that events come on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_chunked: bool = True

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(5):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        self.is_chunked = headers.get("transfer-encoding") == "chunked"
        return int(first.split()[1]), headers

    async def part(self) -> bytes:
        """What was written at once; b"" at the end."""
        async with asyncio.timeout(5):
            if not self.is_chunked:
                return await self.reader.read(1 << 20)
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def event(self) -> tuple[int, Any]:
        """The next event: its id, and its data."""
        lines = (await self.part()).decode().split("\n")
        assert lines[-2:] == ["", ""], lines
        assert [line.partition(": ")[0] for line in lines[:-2]] == ["id", "data"]
        return int(lines[0].removeprefix("id: ")), orjson.loads(lines[1].removeprefix("data: "))

    async def ended(self) -> bytes:
        """What comes until the server has ended the connection."""
        async with asyncio.timeout(5):
            return await self.reader.read()

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.close()


@dataclass
class Served:
    """A plane behind a listener."""

    plane: Plane
    listener: HttpListener
    address: tuple[str, int]
    streams: list[Stream] = field(default_factory=list)

    async def deferred(self, items: int = 1) -> AnswerId:
        """An answer that waits for people."""
        service = self.plane.service
        values = [[f"item {i}"] for i in range(items)]
        asked = {"inputs": [{"name": "text", "shape": [items, 1], "datatype": "BYTES", "data": values}]}
        reply = await self.plane.send("POST", "/v2/models/tickets/infer", asked | {"parameters": {"script": "defer"}})
        assert reply.status == 200, reply.body
        return next(reversed(service.kept))

    async def connect(self) -> Stream:
        self.streams.append(Stream(*await asyncio.open_connection(*self.address)))
        return self.streams[-1]

    def leave(self) -> None:
        for stream in self.streams:
            stream.leave()

    async def ask(self, answer_id: str, *headers: str, method: str = "GET", version: str = "1.1") -> Stream:
        stream = await self.connect()
        lines = (
            f"{method} /v1/answers/{answer_id} HTTP/{version}",
            "Host: localhost",
            "Accept: text/event-stream",
            *headers,
        )
        stream.writer.write("\r\n".join((*lines, "", "")).encode())
        return stream

    async def listen(self, answer_id: str, *headers: str) -> Stream:
        stream = await self.ask(answer_id, *headers)
        status, found = await stream.head()
        assert (status, found["content-type"]) == (200, "text/event-stream")
        return stream


@asynccontextmanager
async def serving(plane: Plane | None = None, limits: ConnectionLimits = CONNECTION) -> AsyncIterator[Served]:
    plane = plane or Plane()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(plane.handler, bound, 5.0, limits) as listener:
            served = Served(plane, listener, bound.getsockname())
            try:
                yield served
            finally:
                served.leave()
                await plane.service.drain()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as found:
        yield found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


async def change(served: Served, answer_id: AnswerId, label: str) -> None:
    """The first item gets another provisional label: a revision that closes nothing."""
    answer = served.plane.service.kept[answer_id]
    items = (replace(answer.items[0], label=label), *answer.items[1:])
    await served.plane.service.change(replace(answer, items=items, revision=answer.revision + 1))


def limited(caller: int, tenant: int, *keys: ApiKey) -> Plane:
    """A plane of few streams."""
    plane = Plane(options=SecurityOptions(keys))
    limits = replace(LIMITS, streams_per_caller=caller, streams_per_tenant=tenant)
    entries = v1_endpoints(plane.service, limits, plane.clock)
    plane.handler = type(plane.handler)(entries, Authenticator(plane.options), plane, limits)
    return plane


# --- what is told ---


async def test_the_state_comes_at_once_and_then_every_change_until_nothing_is_open(served: Served) -> None:
    answer_id = await served.deferred(items=2)
    stream = await served.listen(answer_id)

    assert await told(stream) == (1, "provisional", [None, None])
    await served.plane.service.decide_open(answer_id, "spam", item=1)
    assert await told(stream) == (2, "provisional", [None, "person:ann"])
    await served.plane.service.decide_open(answer_id, "ham", item=0)
    assert await told(stream) == (3, "final", ["person:ann"] * 2)
    assert await stream.part() == b""

    # The connection goes on.
    stream.writer.write(f"GET /v1/answers/{answer_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    status, headers = await stream.head()
    whole = orjson.loads(await stream.reader.readexactly(int(headers["content-length"])))
    assert (status, whole["revision"], whole["status"]) == (200, 3, "final")
    assert [(e.template, e.status) for e in served.plane.exchanges[-2:]] == [("/v1/answers/{id}", 200)] * 2


async def told(stream: Stream) -> tuple[int, str, list[str | None]]:
    number, data = await stream.event()
    assert data["revision"] == number
    return number, data["status"], [item["decided_by"] for item in data.get("items", [data])]


async def test_a_cancellation_is_the_last_change(served: Served) -> None:
    answer_id = await served.deferred()
    stream = await served.listen(answer_id)
    await stream.event()

    assert (await served.plane.send("DELETE", f"/v1/answers/{answer_id}")).status == 200

    assert await told(stream) == (2, "cancelled", [None])
    assert await stream.part() == b""


@pytest.mark.parametrize(("seen", "first"), [("1", 2), ("2", 3), ("0", 2), ("7", 2), ("x", 2), ("", 2), ("1" * 40, 2)])
async def test_a_client_that_comes_back_is_told_what_it_has_not_seen(served: Served, seen: str, first: int) -> None:
    answer_id = await served.deferred()
    await change(served, answer_id, "second")
    stream = await served.listen(answer_id, f"Last-Event-ID: {seen}")

    if first == 3:
        await change(served, answer_id, "third")

    assert (await stream.event())[0] == first


async def test_a_closed_answer_is_told_once_and_never_to_one_who_has_seen_it(served: Served) -> None:
    answer_id = await served.deferred()
    await served.plane.service.decide_open(answer_id, "spam")

    stream = await served.listen(answer_id, "Last-Event-ID: 1")
    assert await told(stream) == (2, "final", ["person:ann"])
    assert await stream.part() == b""
    again = await served.ask(answer_id, "Last-Event-ID: 2")
    assert (await again.head())[0] == 204


async def test_an_unknown_answer_is_404_and_no_stream(served: Served) -> None:
    for answer_id in ("0" * 32, "x"):
        status, headers = await (await served.ask(answer_id)).head()
        assert (status, headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("text/event-stream", True),
        ("TEXT/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream; q=0.000", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_events_are_for_those_who_ask_for_them(accept: str, streams: bool) -> None:
    assert events.are_wanted({"accept": accept}) is streams


async def test_a_comment_keeps_a_quiet_stream_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)
    answer_id = await served.deferred()
    stream = await served.listen(answer_id)

    assert (await stream.event())[0] == 1
    assert [await stream.part() for _ in range(3)] == [b":\n\n"] * 3
    await served.plane.service.decide_open(answer_id, "spam")
    while (part := await stream.part()) == b":\n\n":
        pass
    assert part.startswith(b"id: 2\n")


async def test_a_stream_does_not_last_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(events, "MAX_STREAM_S", 0.05)
    stream = await served.listen(await served.deferred())
    await stream.event()

    parts = [part async for part in rest(stream)]

    assert set(parts[:-1]) == {b":\n\n"}
    assert parts[-1].startswith(b"retry: ")


async def rest(stream: Stream) -> AsyncIterator[bytes]:
    while part := await stream.part():
        yield part


async def test_a_gateway_that_drains_says_when_to_come_back(served: Served) -> None:
    stream = await served.listen(await served.deferred())
    await stream.event()

    served.listener.close()
    await served.plane.service.drain()

    name, _, wait_ms = (await stream.part()).decode().partition(": ")
    assert (name, 1000 <= int(wait_ms) < 3000) == ("retry", True)
    assert await stream.part() == b""
    assert await stream.ended() == b""
    await until(lambda: not served.listener.connections)


async def test_a_store_that_cannot_be_read_ends_the_stream_and_not_the_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_id = await served.deferred()
    answer, is_failing = served.plane.service.answer, False

    async def failing(caller: Caller, answer_id: AnswerId, wait_s: float = 0.0, after: int | None = None) -> Answer:
        if is_failing:
            raise Unavailable("the store cannot read now; try again")
        return await answer(caller, answer_id, wait_s, after)

    monkeypatch.setattr(served.plane.service, "answer", failing)
    stream = await served.listen(answer_id)
    await stream.event()
    is_failing = True
    await change(served, answer_id, "second")
    assert (await stream.event())[0] == 2

    assert (await stream.part()).startswith(b"retry: ")
    assert await stream.part() == b""


async def test_a_client_of_http_1_0_gets_events_until_the_connection_ends(served: Served) -> None:
    answer_id = await served.deferred()
    stream = await served.ask(answer_id, version="1.0")
    status, headers = await stream.head()
    assert (status, headers.get("transfer-encoding"), headers["connection"]) == (200, None, "close")

    assert (await stream.event())[0] == 1
    await served.plane.service.decide_open(answer_id, "spam")

    assert (await stream.ended()).startswith(b"id: 2\n")


async def test_head_is_answered_without_events(served: Served) -> None:
    answer_id = await served.deferred()
    stream = await served.ask(answer_id, method="HEAD")
    status, headers = await stream.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream")

    stream.writer.write(f"GET /v1/answers/{answer_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert (await stream.head())[0] == 202


async def test_what_is_pipelined_behind_a_stream_is_answered_after_it(served: Served) -> None:
    answer_id = await served.deferred()
    stream = await served.listen(answer_id)
    await stream.event()
    stream.writer.write(f"GET /v1/answers/{answer_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await asyncio.sleep(0.01)

    await served.plane.service.decide_open(answer_id, "spam")

    assert (await stream.event())[0] == 2
    assert await stream.part() == b""
    assert (await stream.head())[0] == 200


# --- clients that leave, and those that do not read ---


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_frees_all_that_it_had(how: str) -> None:
    plane = limited(1, 1)
    async with serving(plane) as served:
        answer = await deferred_on(plane)
        tasks = len(asyncio.all_tasks())
        for _ in range(3):  # there is room for one
            stream = await served.listen(answer)
            await stream.event()
            if how == "half":
                stream.writer.write_eof()
                assert await stream.ended() == b""
            else:
                stream.leave(reset=how == "reset")
            await until(lambda: not served.listener.connections)
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        assert [exchange.status for exchange in plane.exchanges if exchange.template == "/v1/answers/{id}"] == [200] * 3


async def deferred_on(plane: Plane) -> AnswerId:
    """An answer of a plane without `/v2` that waits for a person."""
    asked = {"inputs": {"text": "hi"}, "parameters": {"script": "defer"}}
    headers = {"authorization": f"Bearer {KEY}"} if plane.options.api_keys else {}
    reply = await plane.send("POST", "/v1/routes/tickets:decide", asked, headers)
    assert reply.status == 202, reply.body
    return AnswerId(orjson.loads(reply.body)["answer_id"])


async def test_a_client_that_does_not_read_is_cut_off_and_holds_one_event_at_most() -> None:
    plane = limited(1, 1)
    async with serving(plane, replace(CONNECTION, write_timeout_s=0.1)) as served:
        answer_id = await deferred_on(plane)
        stream = await served.listen(answer_id)
        await stream.event()
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a reading transport is one, too
        (connection,) = served.listener.connections
        held = 0

        async with asyncio.timeout(20):
            for number in range(1000):
                await change(served, answer_id, str(number) * (BIG // len(str(number))))
                await asyncio.sleep(0.01)
                if not served.listener.connections:
                    break
                held = max(held, connection._transport.get_write_buffer_size())
        assert not served.listener.connections
        assert held <= 1.1 * BIG
        await served.listen(answer_id)  # and its place is free


async def test_a_client_that_reads_slowly_is_told_the_newest(served: Served) -> None:
    answer_id = await served.deferred()
    stream = await served.listen(answer_id)
    await stream.event()
    stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
    (connection,) = served.listener.connections
    number = 0
    while not connection._transport.get_write_buffer_size():
        number += 1
        await change(served, answer_id, str(number) * BIG)
        await asyncio.sleep(0.01)
    for _ in range(5):
        await change(served, answer_id, "short")

    stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
    seen = [(await stream.event())[0]]
    while seen[-1] < number + 6:
        seen.append((await stream.event())[0])

    assert seen == sorted(set(seen))
    assert len(seen) <= number + 2  # the five that came meanwhile were one, or the first of them had been taken


async def test_an_abort_ends_streams_at_once(served: Served) -> None:
    stream = await served.listen(await served.deferred())
    await stream.event()

    served.listener.abort()

    with suppress(ConnectionResetError):
        assert await stream.ended() == b""
    await until(lambda: not served.listener.connections)


async def test_a_stream_that_has_not_ended_in_time_is_cut_off() -> None:
    plane = Plane()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpListener(plane.handler, bound, 0.05, CONNECTION) as listener:
            served = Served(plane, listener, bound.getsockname())
            stream = await served.listen(await served.deferred())
            await stream.event()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    stream.leave()


# --- limits ---


async def test_a_caller_and_a_tenant_have_so_many_streams_and_no_more() -> None:
    keys = [
        ApiKey("app", sha256(KEY.encode()).hexdigest()),
        ApiKey("other", sha256(b"pm_other").hexdigest()),
        ApiKey("third", sha256(b"pm_third").hexdigest()),
        ApiKey("foreign", sha256(b"pm_foreign").hexdigest(), tenant="elsewhere"),
    ]
    plane = limited(2, 3, *keys)
    async with serving(plane) as served:
        answer_id = await deferred_on(plane)
        foreign = replace(plane.service.kept[answer_id], id=AnswerId("f" * 32), tenant="elsewhere")
        plane.service.kept[foreign.id] = foreign

        def key(value: str) -> str:
            return f"Authorization: Bearer {value}"

        mine = [await served.listen(answer_id, key(KEY)) for _ in range(2)]
        refused = await served.ask(answer_id, key(KEY))
        status, headers = await refused.head()
        problem = orjson.loads(await refused.reader.readexactly(int(headers["content-length"])))
        assert (status, headers["retry-after"], problem["title"]) == (429, "5", "Quota exceeded")
        assert "this caller has 2 event streams open" in problem["detail"]
        await served.listen(answer_id, key("pm_other"))
        third = await served.ask(answer_id, key("pm_third"))
        assert (await third.head())[0] == 429
        await served.listen(foreign.id, key("pm_foreign"))

        mine[0].leave()
        await until(lambda: len(served.listener.connections) == 5)
        await served.listen(answer_id, key("pm_third"))


# --- behind ASGI ---


async def test_a_real_server_streams_events_and_frees_them(plane: Plane, address: str) -> None:
    host, port = address.split(":")
    served = Served(plane, None, (host, int(port)))  # type: ignore[arg-type]  # nothing here asks for it
    answer_id = await served.deferred()
    stream = await served.listen(answer_id)
    assert await told(stream) == (1, "provisional", [None])
    await plane.service.decide_open(answer_id, "spam")
    assert await told(stream) == (2, "final", ["person:ann"])
    assert await stream.part() == b""

    leaving = await served.listen(await served.deferred())
    await leaving.event()
    before = len(plane.exchanges)
    leaving.leave()
    await until(lambda: len(plane.exchanges) > before)
    served.leave()


async def test_asgi_ends_a_stream_when_its_client_leaves_or_does_not_take_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "_WRITE_TIMEOUT_S", 0.05)
    asked = {"inputs": {"text": "hi"}, "parameters": {"script": "defer"}}
    reply = await plane.send("POST", "/v1/routes/tickets:decide", asked)
    answer_id = orjson.loads(reply.body)["answer_id"]
    for how in ("leaves", "does not read"):
        before = len(plane.exchanges)
        leaving = asyncio.Event()
        sent: list[Any] = []
        requests = [{"type": "http.request", "body": b""}]

        async def receive(
            requests: list[dict[str, Any]] = requests, leaving: asyncio.Event = leaving
        ) -> dict[str, Any]:
            if requests:
                return requests.pop()
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any, how: str = how, sent: list[Any] = sent, leaving: asyncio.Event = leaving) -> None:
            sent.append(message)
            if message["type"] != "http.response.body":
                return
            if how == "leaves":
                leaving.set()
            else:
                await asyncio.sleep(3600)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "raw_path": f"/v1/answers/{answer_id}".encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"accept", b"text/event-stream")],
        }
        async with asyncio.timeout(5):
            await asgi.AsgiApp(plane.handler)(scope, receive, send)

        assert sent[0]["status"] == 200
        assert b"content-length" not in dict(sent[0]["headers"])
        assert all(message.get("more_body", True) for message in sent)  # it was never finished
        assert [exchange.status for exchange in plane.exchanges[before:]] == [200]
    assert Status.CANCELLED not in {item.status for item in plane.service.kept[AnswerId(answer_id)].items}
