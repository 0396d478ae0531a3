"""Reviewers are told of new and due work, once and in one message, by a real mail server and a real web server."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from gateway.notices import tell
from gateway.notices.mail import MailTarget
from gateway.notices.options import MailSecurity, NotifyOptions, SmtpOptions
from gateway.notices.tell import tell_reviewers
from gateway.store import SqlStore, StoreOptions, list_messages, open_store
from gateway.store.contract import NoticeKind, NoticeRule, OutboxState
from gateway.webhooks import deliver
from gateway.webhooks.deliver import WAITS_S, Deliverer, Target
from gateway.webhooks.options import WebhookOptions
from gateway.webhooks.post import webhook_targets
from gateway.webhooks.report import Outcome
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import TENANT, Clock, deferred
from tests.unit.gateway.webhooks.test_deliver import SECRET, Watch, receiving

NOW_S = 1_700_000_000.0
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it is TLS from the start

RULE = NotifyOptions("pets", email=("anna@example.org", "bert@example.org"), tenant=TENANT, digest_s=300.0)


@dataclass(slots=True)
class Mailroom:
    """What a mail server took, and what it says to the next commands for a mailbox or a message."""

    port: int = 0
    mails: list[Message] = field(default_factory=list)
    addressees: list[list[str]] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    to_mailbox: dict[str, str] = field(default_factory=dict)
    to_message: list[str] = field(default_factory=list)
    hangs: bool = False

    @property
    def new(self) -> dict[str, int]:
        """How many new reviews each mail told of, by its Message-ID, which tells who got it twice."""
        return {mail["Message-ID"]: int(mail["Subject"].split()[1]) for mail in self.mails}

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address in self.to_mailbox:
            return self.to_mailbox[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.hangs:
            await asyncio.sleep(3600)
        if self.to_message:
            return self.to_message.pop(0)
        self.mails.append(message_from_bytes(envelope.content))
        self.addressees.append(list(envelope.rcpt_tos))
        self.senders.append(envelope.mail_from)
        self.encrypted.append(session.ssl is not None)
        return "250 taken"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password == b"right", handled=False)


@asynccontextmanager
async def mailroom(
    tls: ssl.SSLContext | None = None, *, implicit: bool = False, login: bool = False
) -> AsyncIterator[Mailroom]:
    """A mail server: plain, or with STARTTLS, or TLS from the start (*implicit*)."""
    room = Mailroom()
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return SMTP(
            room,
            hostname="localhost",
            loop=loop,
            tls_context=None if implicit else tls,
            require_starttls=tls is not None and not implicit,
            authenticator=room.authenticate if login else None,
            auth_required=login,
            auth_require_tls=not implicit,
        )

    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls if implicit else None)
    room.port = server.sockets[0].getsockname()[1]
    try:
        yield room
    finally:
        server.close()


def smtp(room: Mailroom, **more: Any) -> SmtpOptions:
    plain = SmtpOptions("localhost", "pointsman@example.org", room.port, MailSecurity.NONE)
    return replace(plain, **more)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "_POLL_S", 0.01)
    monkeypatch.setattr(tell, "_POLL_S", 0.01)


@asynccontextmanager
async def telling(
    options: StoreOptions,
    wall_clock: Clock,
    rules: Sequence[NotifyOptions],
    mail: SmtpOptions | None = None,
    webhooks: Sequence[WebhookOptions] = (),
) -> AsyncIterator[tuple[SqlStore, Watch]]:
    """A gateway's part of it, over a store of its own opening."""
    watch = Watch()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(aclosing(await open_store(options, wall_clock=wall_clock)))
        targets: dict[str, Target] = dict(await stack.enter_async_context(webhook_targets(webhooks)))
        if mail is not None:
            targets |= {rule.target: MailTarget(mail, rule.email) for rule in rules if rule.email}
        delivering = Deliverer(targets, store, watch, jitter=lambda: 0.0).run()
        running = asyncio.gather(delivering, tell_reviewers(rules, store))
        try:
            yield store, watch
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def commit(store: SqlStore, count: int, due_in_s: float = 3600.0) -> None:
    for _ in range(count):
        await store.commit(*deferred(due_s=NOW_S + due_in_s))


async def test_a_flood_of_reviews_is_one_mail_without_anything_of_what_is_in_them(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with mailroom() as room, telling(options, wall_clock, [RULE], smtp(room)) as (store, watch):
        await commit(store, 1)
        assert await watch.attempts(1) == [Outcome.DELIVERED]
        await commit(store, 200, due_in_s=100.0)
        await asyncio.sleep(0.1)
        assert len(room.mails) == 1
        wall_clock.now += 300.0
        assert await watch.attempts(2) == [Outcome.DELIVERED] * 2
        await asyncio.sleep(0.1)

    first, second = room.mails
    assert first["Subject"] == "pets: 1 new"
    assert second["Subject"] == "pets: 200 new, 200 due"
    assert (second["From"], second["To"]) == ("pointsman@example.org", "anna@example.org, bert@example.org")
    assert second["Auto-Submitted"] == "auto-generated"
    assert room.addressees[1] == ["anna@example.org", "bert@example.org"]
    text = second.get_payload()
    assert isinstance(text, str)
    assert "waiting:   201" in text
    assert "first due: 2023-11-14T22:15:00.000Z" in text
    assert "cat" not in text


async def test_of_several_gateways_one_tells(options: StoreOptions, wall_clock: Clock) -> None:
    rule = replace(RULE, on=frozenset({NoticeKind.NEW}))
    async with (
        mailroom() as room,
        telling(options, wall_clock, [rule], smtp(room)) as (store, _),
        telling(options, wall_clock, [rule], smtp(room)),
    ):
        for _ in range(3):
            await asyncio.gather(*(commit(store, 1) for _ in range(20)))
            await asyncio.sleep(0.05)
            wall_clock.now += 300.0
        while sum(room.new.values()) < 60:
            await asyncio.sleep(0.01)
            wall_clock.now += 300.0
        await asyncio.sleep(0.2)

    assert sum(room.new.values()) == 60
    assert len(room.new) < 10


async def test_telling_goes_on_after_whatever_fails_in_it_and_other_rules_do_not_wait(
    options: StoreOptions, wall_clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tell, "_AFTER_A_BUG_S", 0.01)
    broken = NotifyOptions("others", email=("cleo@example.org",), tenant=TENANT)
    asked = asyncio.Event()
    rounds: list[str] = []
    telling_ = SqlStore.tell_reviewers

    async def tell_or_fail(store: SqlStore, rule: NoticeRule, make: Any) -> bool:
        if rule.queue == "others":
            rounds.append(rule.queue)
            if len(rounds) > 1:
                asked.set()
            raise KeyError(rule.queue)
        return await telling_(store, rule, make)

    monkeypatch.setattr(SqlStore, "tell_reviewers", tell_or_fail)
    async with mailroom() as room, telling(options, wall_clock, [broken, RULE], smtp(room)) as (store, watch):
        await commit(store, 1)
        assert await watch.attempts(1) == [Outcome.DELIVERED]
        async with asyncio.timeout(20.0):
            await asked.wait()

    failed = [record for record in caplog.records if "queue 'others'" in record.message]
    assert len(failed) > 1
    assert failed[0].exc_info is not None


async def test_a_webhook_is_told_by_events_of_their_own(
    options: StoreOptions, wall_clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(SECRET.text())
    async with receiving() as receiver:
        hook = WebhookOptions("crm", receiver.url, secret_file=tmp_path / "secret", tenant=TENANT, private=True)
        rule = NotifyOptions("pets", webhook="crm", tenant=TENANT, ahead_s=60.0, link="https://inbox.example.org/")
        async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
            await commit(store, 3)
        async with telling(options, wall_clock, [rule], webhooks=[replace(hook, answers=False)]) as (store, watch):
            await watch.attempts(1)
            wall_clock.now += 3600.0 - 60.0
            await watch.attempts(2)
            await decide_all(store)
            wall_clock.now += 3600.0
            await asyncio.sleep(0.1)

    new, due = (json.loads(body) for body in receiver.bodies)
    assert (new["type"], due["type"]) == ("pointsman.reviews.new", "pointsman.reviews.due")
    assert (new["source"], new["subject"], new["id"]) == ("/v1/reviews", "pets", receiver.ids[0])
    assert new["data"] == {
        "queue": "pets",
        "new": 3,
        "due": 0,
        "waiting": 3,
        "first_due": "2023-11-14T23:13:20.000Z",
        "href": "/v1/reviews?queue=pets",
        "link": "https://inbox.example.org/",
    }
    assert (due["data"]["new"], due["data"]["due"], due["data"]["waiting"]) == (0, 3, 3)


async def test_who_wants_to_hear_of_due_work_alone_does(options: StoreOptions, wall_clock: Clock) -> None:
    rule = replace(RULE, on=frozenset({NoticeKind.DUE}))
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        await commit(store, 2)
    async with mailroom() as room, telling(options, wall_clock, [rule], smtp(room)) as (_, watch):
        await asyncio.sleep(0.1)
        assert room.mails == []
        wall_clock.now += 3600.0
        await watch.attempts(1)

    assert [mail["Subject"] for mail in room.mails] == ["pets: 2 due"]


async def test_what_is_decided_before_its_round_comes_is_not_told(options: StoreOptions, wall_clock: Clock) -> None:
    async with mailroom() as room, telling(options, wall_clock, [RULE], smtp(room)) as (store, watch):
        await commit(store, 1)
        await watch.attempts(1)
        await commit(store, 5)
        await decide_all(store)
        wall_clock.now += 300.0
        await asyncio.sleep(0.1)
        assert len(room.mails) == 1


async def test_a_mail_that_is_not_taken_is_sent_again_as_the_same(options: StoreOptions, wall_clock: Clock) -> None:
    async with mailroom() as room, telling(options, wall_clock, [RULE], smtp(room)) as (store, watch):
        room.to_message = ["451 try later"]
        await commit(store, 1)
        assert await watch.attempts(1) == [Outcome.FAILED]
        (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
        wall_clock.now += WAITS_S[0]
        assert await watch.attempts(2) == [Outcome.FAILED, Outcome.DELIVERED]
        (delivered,) = await list_messages(options, OutboxState.DELIVERED, 10)

    assert waiting.last == "refused: 451 try later"
    assert delivered.last == "taken by localhost"
    assert room.mails[0]["Message-ID"] == f"<{waiting.message.id}@example.org>"


async def test_a_mail_that_is_refused_for_good_is_dead(
    options: StoreOptions, wall_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with mailroom() as room, telling(options, wall_clock, [RULE], smtp(room)) as (store, watch):
        room.to_message = ["554 no such thing here"]
        await commit(store, 1)
        assert await watch.attempts(1) == [Outcome.DEAD]
    (dead,) = await list_messages(options, OutboxState.DEAD, 10)
    assert dead.last == "refused: 554 no such thing here"
    assert "pointsman webhooks redeliver" in caplog.text


async def test_one_mailbox_that_is_refused_costs_the_others_nothing(options: StoreOptions, wall_clock: Clock) -> None:
    async with mailroom() as room, telling(options, wall_clock, [RULE], smtp(room)) as (store, watch):
        room.to_mailbox = {"bert@example.org": "550 unknown"}
        await commit(store, 1)
        assert await watch.attempts(1) == [Outcome.DELIVERED]
        room.to_mailbox = dict.fromkeys(RULE.email, "450 greylisted")
        wall_clock.now += 300.0
        await commit(store, 1)
        assert await watch.attempts(2) == [Outcome.DELIVERED, Outcome.FAILED]
    assert room.addressees == [["anna@example.org"]]
    (delivered,) = await list_messages(options, OutboxState.DELIVERED, 10)
    assert delivered.last == "1 of 2 mailboxes were refused: 550 unknown"


@pytest.mark.parametrize("security", [MailSecurity.STARTTLS, MailSecurity.TLS])
async def test_mail_goes_encrypted_to_a_server_that_proves_itself_and_lets_us_in(
    options: StoreOptions,
    wall_clock: Clock,
    tls: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    security: MailSecurity,
) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    implicit = security is MailSecurity.TLS
    async with mailroom(tls, implicit=implicit, login=True) as room:
        mail = smtp(room, security=security, ca=certificate / "cert.pem", user="desk", password_file=password)
        async with telling(options, wall_clock, [RULE], mail) as (store, watch):
            await commit(store, 1)
            assert await watch.attempts(1) == [Outcome.FAILED]
            (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
            password.write_text("right\n")
            wall_clock.now += WAITS_S[0]
            assert await watch.attempts(2) == [Outcome.FAILED, Outcome.DELIVERED]

    assert waiting.last.startswith("the login was refused: 535")
    assert room.logins[-1] == ("desk", "right")
    assert implicit or room.encrypted == [True]
    assert len(room.mails) == 1


@pytest.mark.parametrize("security", [MailSecurity.STARTTLS, MailSecurity.TLS])
async def test_a_server_that_does_not_prove_itself_gets_neither_password_nor_mail(
    options: StoreOptions,
    wall_clock: Clock,
    tls: ssl.SSLContext,
    security: MailSecurity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", "right")
    async with mailroom(tls, implicit=security is MailSecurity.TLS, login=True) as room:
        mail = smtp(room, security=security, user="desk", password_env="MAIL_PASSWORD")
        async with telling(options, wall_clock, [RULE], mail) as (store, watch):
            await commit(store, 1)
            assert await watch.attempts(1) == [Outcome.FAILED]
            (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
    assert "certificate verify failed" in waiting.last
    assert (room.logins, room.mails) == ([], [])


async def test_a_server_without_starttls_is_not_spoken_to_plainly(options: StoreOptions, wall_clock: Clock) -> None:
    async with mailroom() as room:
        mail = smtp(room, security=MailSecurity.STARTTLS)
        async with telling(options, wall_clock, [RULE], mail) as (store, watch):
            await commit(store, 1)
            assert await watch.attempts(1) == [Outcome.FAILED]
            (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
    assert "STARTTLS extension not supported" in waiting.last
    assert room.mails == []


async def test_a_server_that_hangs_or_is_away_holds_up_nobody_else(
    options: StoreOptions, wall_clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(SECRET.text())
    async with receiving() as receiver, mailroom() as room:
        room.hangs = True
        hook = WebhookOptions("crm", receiver.url, secret_file=tmp_path / "secret", tenant=TENANT, private=True)
        rules = [RULE, NotifyOptions("pets", webhook="crm", tenant=TENANT)]
        mail = smtp(room, timeout_s=0.3)
        async with telling(options, wall_clock, rules, mail, [hook]) as (store, watch):
            await commit(store, 1)
            outcomes = await watch.attempts(2)
            assert sorted(outcomes) == [Outcome.DELIVERED, Outcome.FAILED]
            (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
    assert waiting.last.endswith("timed out")


async def test_without_a_password_nothing_is_sent_and_it_is_told_why(options: StoreOptions, wall_clock: Clock) -> None:
    async with mailroom() as room:
        mail = smtp(room, user="desk", password_env="NOT_SET_ANYWHERE")
        async with telling(options, wall_clock, [RULE], mail) as (store, watch):
            await commit(store, 1)
            assert await watch.attempts(1) == [Outcome.FAILED]
            (waiting,) = await list_messages(options, OutboxState.WAITING, 10)
    assert waiting.last == "the environment's NOT_SET_ANYWHERE is empty; put the password of desk there"


def test_rules_are_known_by_whom_they_tell_of_what() -> None:
    assert replace(RULE, digest_s=1.0, ahead_s=5.0, link="x").rule.id == RULE.rule.id
    assert replace(RULE, email=RULE.email[::-1]).rule.id == RULE.rule.id
    others = [replace(RULE, queue="dogs"), replace(RULE, tenant="other"), replace(RULE, email=RULE.email[:1])]
    assert len({RULE.rule.id, *(other.rule.id for other in others)}) == 4
    assert RULE.target.startswith("email:pets:")
