"""Messages reach receivers that fail in every way, over real HTTP, from a real store, and go where they may alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from gateway.store import SqlStore, StoreOptions, list_messages, open_store, redeliver
from gateway.store.contract import Delivery, OutboxState
from gateway.webhooks import deliver, post
from gateway.webhooks.deliver import LASTS_S, WAITS_S, Deliverer, bury_unclaimed
from gateway.webhooks.events import announcer
from gateway.webhooks.options import WebhookOptions
from gateway.webhooks.post import webhook_targets
from gateway.webhooks.report import AttemptReport, Outcome
from gateway.webhooks.signing import Secret
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import TENANT, Clock, accepted, deferred

SECRET = Secret.new()


@dataclass(slots=True)
class Receiver:
    """A web server that notes what it is sent, and answers as it is told."""

    url: str
    answers: list[Callable[[], Awaitable[web.Response]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    media: list[str] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        Webhook(SECRET.text()).verify(body, dict(request.headers))
        self.bodies.append(body)
        self.ids.append(request.headers["webhook-id"])
        self.times.append(request.headers["webhook-timestamp"])
        self.media.append(request.headers["content-type"])
        return await (self.answers.pop(0) if self.answers else _says(200))()


def _says(status: int, text: str = "", **headers: str) -> Callable[[], Awaitable[web.Response]]:
    async def answer() -> web.Response:
        return web.Response(status=status, text=text, headers={n.replace("_", "-"): v for n, v in headers.items()})

    return answer


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver("")
    app = web.Application()
    app.router.add_post("/hooks", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http{'s' if tls else ''}://{host}:{port}/hooks"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class Watch:
    """Notes attempts, and lets tests wait for them."""

    reports: list[AttemptReport] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_attempt(self, report: AttemptReport) -> None:
        self.reports.append(report)
        self.changed.set()

    async def attempts(self, count: int) -> list[Outcome]:
        async with asyncio.timeout(20.0):
            while len(self.reports) < count:
                self.changed.clear()
                await self.changed.wait()
        return [report.outcome for report in self.reports]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET.text())
    return file


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "_POLL_S", 0.01)


@asynccontextmanager
async def delivering(
    options: StoreOptions, webhooks: Sequence[WebhookOptions], wall_clock: Clock
) -> AsyncIterator[tuple[SqlStore, Watch]]:
    watch = Watch()
    opened = await open_store(options, wall_clock=wall_clock, announce=announcer(webhooks))
    async with aclosing(opened) as store, webhook_targets(webhooks) as targets:
        running = asyncio.create_task(Deliverer(targets, store, watch, jitter=lambda: 0.0).run())
        try:
            yield store, watch
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def _decided(store: SqlStore, count: int = 1) -> None:
    for _ in range(count):
        await store.commit(*deferred())
        await decide_all(store)


async def _only(options: StoreOptions) -> Delivery:
    (found,) = await list_messages(options, None, 10)
    return found


async def test_a_final_answer_is_told_as_a_signed_event(
    options: StoreOptions, wall_clock: Clock, secret_file: Path
) -> None:
    async with receiving() as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            answer, tasks = deferred()
            await store.commit(answer, tasks)
            await decide_all(store)
            assert await watch.attempts(1) == [Outcome.DELIVERED]

    event = json.loads(receiver.bodies[0])
    assert receiver.media == ["application/cloudevents+json"]
    assert event["id"] == receiver.ids[0]
    assert (event["specversion"], event["type"]) == ("1.0", "pointsman.answer.final")
    assert (event["source"], event["subject"]) == ("/v1/routes/pets", answer.id)
    assert event["time"] == "2023-11-14T22:13:20.000Z"
    assert event["data"]["status"] == "final"
    assert event["data"]["label"] == "cat"
    assert event["data"]["decided_by"].startswith("person:")
    assert event["data"]["href"] == f"/v1/answers/{answer.id}"
    assert "outputs" not in event["data"]
    assert (await _only(options)).state is OutboxState.DELIVERED


def test_an_answer_of_very_many_items_is_told_in_short() -> None:
    webhook = WebhookOptions("crm", "https://example.org/", secret_env="CRM", tenant=TENANT)
    few, many = (accepted(items=items) for items in (2, 200))

    told = [json.loads(message.body) for answer in (few, many) for message in announcer([webhook])(answer, 1.7e9)]

    assert len(told[0]["data"]["items"]) == 2
    assert "items" not in told[1]["data"]
    assert len(json.dumps(told[1])) < 20_000


async def test_each_webhook_is_told_what_it_wants(options: StoreOptions, wall_clock: Clock, secret_file: Path) -> None:
    async with receiving() as wanting, receiving() as other:
        common = WebhookOptions("all", wanting.url, secret_file=secret_file, tenant=TENANT, private=True)
        webhooks = [
            common,
            replace(common, name="pets", routes=frozenset({"pets"})),
            replace(common, name="cars", url=other.url, routes=frozenset({"cars"})),
            replace(common, name="stranger", url=other.url, tenant="somebody else"),
        ]
        async with delivering(options, webhooks, wall_clock) as (store, watch):
            await _decided(store)
            await watch.attempts(2)
            await asyncio.sleep(0.1)

    assert {report.webhook for report in watch.reports} == {"all", "pets"}
    assert other.bodies == []


async def test_a_failing_receiver_is_tried_again_with_the_same_message_until_it_is_dead(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving() as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        receiver.answers = [_says(500, "not now") for _ in range(len(WAITS_S) + 1)]
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            for attempt, wait_s in enumerate(WAITS_S, start=1):
                await watch.attempts(attempt)
                wall_clock.now += wait_s - 0.5
                await asyncio.sleep(0.05)
                assert len(watch.reports) == attempt, "it came before its time"
                wall_clock.now += 0.5
            outcomes = await watch.attempts(len(WAITS_S) + 1)
            assert outcomes == [*[Outcome.FAILED] * len(WAITS_S), Outcome.DEAD]
            found = await _only(options)

    assert (found.state, found.attempts) == (OutboxState.DEAD, len(WAITS_S) + 1)
    assert found.last == "500 Internal Server Error: not now"
    assert len(set(receiver.ids)) == 1
    assert len(set(receiver.bodies)) == 1
    (told,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert found.message.id in told.message
    assert "pointsman webhooks redeliver" in told.message


async def test_410_is_the_end_and_a_receiver_may_ask_to_wait_longer(
    options: StoreOptions, wall_clock: Clock, secret_file: Path
) -> None:
    async with receiving() as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        receiver.answers = [_says(429, retry_after="100"), _says(410)]
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            await watch.attempts(1)
            assert (await _only(options)).next_s == wall_clock.now + 100.0
            wall_clock.now += 100.0
            assert await watch.attempts(2) == [Outcome.FAILED, Outcome.DEAD]


async def test_redirects_are_not_followed(options: StoreOptions, wall_clock: Clock, secret_file: Path) -> None:
    async with receiving() as receiver, receiving() as inside:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        receiver.answers = [_says(307, location=inside.url)]
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]

    assert inside.bodies == []


async def test_a_name_that_means_an_inner_address_is_refused_when_it_is_connected_to(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as receiver:
        port = receiver.url.partition("127.0.0.1:")[2]
        webhook = WebhookOptions("crm", f"https://rebound.example:{port}", secret_file=secret_file, tenant=TENANT)
        assert webhook.why_not_url() is None
        looked_up = socket.getaddrinfo

        def rebound(host: str, *arguments: object, **more: object) -> object:
            return looked_up("127.0.0.1" if host == "rebound.example" else host, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert "127.0.0.1 is not public" in (await _only(options)).last

    assert receiver.bodies == []


@pytest.mark.parametrize(
    ("host", "why"),
    [(host, "is neither a name nor an address") for host in ("2130706433", "0x7f000001", "017700000001", "127.1", "0")]
    + [("localhost", "is not public")],
)
async def test_other_spellings_of_an_inner_address_are_refused_too(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, host: str, why: str
) -> None:
    async with receiving() as receiver:
        port = receiver.url.partition("127.0.0.1:")[2]
        webhook = WebhookOptions("crm", f"https://{host}:{port}", secret_file=secret_file, tenant=TENANT)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert why in (await _only(options)).last

    assert receiver.bodies == []


async def test_delivering_goes_on_after_whatever_fails_in_it(
    options: StoreOptions,
    wall_clock: Clock,
    secret_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(deliver, "_AFTER_A_BUG_S", 0.0)
    taking = SqlStore.take_messages
    faults: list[Exception] = [KeyError("crm"), OSError("no file descriptors are left")]

    async def take(store: SqlStore, webhooks: Mapping[str, int], lasting_s: float) -> Sequence[Delivery]:
        if faults:
            raise faults.pop()
        return await taking(store, webhooks, lasting_s)

    monkeypatch.setattr(SqlStore, "take_messages", take)
    async with receiving() as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.DELIVERED]

    assert len(receiver.bodies) == 1
    assert [record.exc_info is not None for record in caplog.records if "could not be taken" in record.message] == [
        True,
        True,
    ]


async def test_messages_of_a_webhook_that_was_renamed_are_dead_in_time_and_can_be_sent_anew(
    options: StoreOptions,
    wall_clock: Clock,
    secret_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(deliver, "_BURY_S", 0.01)
    burying_, buried = SqlStore.bury_messages, asyncio.Event()

    async def bury(store: SqlStore, webhooks: Collection[str], unclaimed_s: float, told: str) -> Mapping[str, int]:
        found = await burying_(store, webhooks, unclaimed_s, told)
        if found:
            asyncio.get_running_loop().call_soon(buried.set)  # after it was told
        return found

    monkeypatch.setattr(SqlStore, "bury_messages", bury)
    async with receiving() as receiver:
        old = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        opened = await open_store(options, wall_clock=wall_clock, announce=announcer([old]))
        async with aclosing(opened) as store:
            await _decided(store)

        async with delivering(options, [replace(old, name="sales")], wall_clock) as (store, watch):
            burying = asyncio.create_task(bury_unclaimed(["sales"], store))
            wall_clock.now += LASTS_S - 60.0
            await _decided(store)
            await watch.attempts(1)
            assert (await store.outbox_depths())["crm"].waiting == 1  # a gateway that has it may be on its way
            wall_clock.now += 120.0
            async with asyncio.timeout(20.0):
                await buried.wait()
            burying.cancel()

        (dead,) = await list_messages(options, OutboxState.DEAD, 10)
        assert dead.last.startswith("no webhook or mailbox of the configuration has had this name")
        assert "1 messages for 'crm' are dead" in caplog.text
        assert await redeliver(options, None) == 1
        wall_clock.now = 4e9  # beyond the moment that redeliver took from the real clock
        async with delivering(options, [old], wall_clock) as (_, watch):
            assert await watch.attempts(1) == [Outcome.DELIVERED]


@asynccontextmanager
async def talking(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of a server that says to every connection what *talk* does."""
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"", "ServerDisconnectedError"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "ServerDisconnectedError"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "400"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf", "500 Oh: half"),
    ],
)
async def test_what_is_no_whole_answer_is_a_failure(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, reply: bytes, told: str
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with talking(hang_up) as url:
        webhook = WebhookOptions("crm", url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert told in (await _only(options)).last


async def test_nobody_there_is_a_failure(options: StoreOptions, wall_clock: Clock, secret_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        webhook = WebhookOptions("crm", url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert (await _only(options)).last.startswith("ClientConnectorError")


async def test_a_web_server_that_cannot_prove_who_it_is_is_told_nothing(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, tls: ssl.SSLContext
) -> None:
    async with receiving(tls) as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert "ClientConnectorCertificateError" in (await _only(options)).last

    assert receiver.bodies == []


async def test_an_answer_without_an_end_is_read_no_further_than_it_is_kept(
    options: StoreOptions, wall_clock: Clock, secret_file: Path
) -> None:
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000000\r\n\r\n")
        with suppress(OSError):
            while True:
                writer.write(b"and so on ")
                await writer.drain()
        gone.set()

    async with talking(talk) as url:
        webhook = WebhookOptions("crm", url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.FAILED]
            assert len((await _only(options)).last) <= deliver.TOLD_CHARS
            async with asyncio.timeout(10.0):
                await gone.wait()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_receiver_that_hangs_holds_up_nobody_else(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "_ANSWER_S", 0.3)
    async with receiving() as receiver, talking(_silent) as url:
        good = WebhookOptions("good", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        hanging = replace(good, name="hanging", url=url)
        async with delivering(options, [hanging, good], wall_clock) as (store, watch):
            await _decided(store, 10)
            await watch.attempts(14)

        assert len(receiver.bodies) == 10
        assert {r.outcome for r in watch.reports if r.webhook == "hanging"} == {Outcome.FAILED}
        assert {d.last for d in await list_messages(options, OutboxState.WAITING, 20) if d.attempts} == {
            "no answer within 0.3 s"
        }


async def test_without_a_secret_nothing_is_sent_and_it_is_told_why(
    options: StoreOptions, wall_clock: Clock, tmp_path: Path
) -> None:
    async with receiving() as receiver:
        file = tmp_path / "missing"
        webhook = WebhookOptions("crm", receiver.url, secret_file=file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            await watch.attempts(1)
            assert "the secret's file cannot be read" in (await _only(options)).last
            file.write_text(SECRET.text())
            wall_clock.now += WAITS_S[0]
            assert await watch.attempts(2) == [Outcome.FAILED, Outcome.DELIVERED]


async def test_what_was_under_way_when_its_sender_died_is_sent_again(
    options: StoreOptions, wall_clock: Clock, secret_file: Path
) -> None:
    async with receiving() as receiver:
        stuck, over = asyncio.Event(), asyncio.Event()

        async def never() -> web.Response:
            stuck.set()
            await over.wait()
            return web.Response()

        receiver.answers = [never]
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, _):
            await _decided(store)
            await stuck.wait()
        over.set()
        wall_clock.now += deliver._LASTING_S
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            assert await watch.attempts(1) == [Outcome.DELIVERED]

    assert len(receiver.ids) == 2
    assert len(set(receiver.ids)) == 1


async def test_no_proxy_of_the_environment_is_used(
    options: StoreOptions, wall_clock: Clock, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "http_proxy", "http://127.0.0.1:1/")
    async with receiving() as receiver:
        webhook = WebhookOptions("crm", receiver.url, secret_file=secret_file, tenant=TENANT, private=True)
        async with delivering(options, [webhook], wall_clock) as (store, watch):
            await _decided(store)
            assert await watch.attempts(1) == [Outcome.DELIVERED]
