"""What was erased stands nowhere: in no table, in no page of the file, in no file beside it; and the log says so."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import aclosing, closing
from dataclasses import replace

import orjson
import pysqlite3.dbapi2 as sqlite3
import pytest

from backends.errors import Conflict
from gateway.answer import Answer
from gateway.store import (
    CannotOpenStore,
    SqlStore,
    StoreOptions,
    list_messages,
    open_store,
    overwrite_beside,
    read_answer_log,
    redeliver,
)
from gateway.store.contract import Erasure, GoldCount, GoldItem, Message, OutboxState, Purpose, Review, ReviewState
from gateway.store.key import StoreKey, key_place, open_key
from gateway.store.outbox import new_message
from router.contract import ONE_PERSON, LabelQuality
from tests.unit.gateway.store.conformance import (
    BODY,
    KEY,
    SECRET,
    decide_with,
    erasure_of,
    known,
    texted,
)
from tests.unit.gateway.store.quality_conformance import SECONDS, TWO_OF_THREE, of_purpose
from tests.unit.gateway.store.samples import TENANT, Clock, accepted, deferred
from tests.unit.gateway.store.test_log import edited

NAME = "canary-anna@example.org"
WORD = SECRET.split()[0].encode()
GOLD_TOO = replace(TWO_OF_THREE, gold=1.0)


def tell(answer: Answer, now_s: float) -> list[Message]:
    """What a webhook is told of a closed answer: its labels."""
    return [new_message("crm", now_s, lambda _: orjson.dumps([item.label for item in answer.items]).decode())]


async def fill(store: SqlStore) -> list[Answer]:
    """Answers about somebody in every state: open, claimed, decided, recorded; with outputs, feedback and messages."""
    subject = store.subject(TENANT, NAME)
    answers = []
    for number in range(12):
        answer, tasks = texted(items=1 + number % 2)
        answers.append(replace(answer, subject=subject))
        if number == 0:
            fresh = await store.claim_key(KEY, BODY)
            await store.commit(answers[-1], tasks, KEY, fresh.fence)  # type: ignore[union-attr]
        else:
            await store.commit(answers[-1], tasks)
        if number == 5:
            await decide_with(store, SECRET)
    await store.claim_next(TENANT, "pets", "anna", 60.0)
    for _ in range(3):
        answers.append(replace(accepted(label=SECRET, outputs=texted()[0].items[0].outputs), subject=subject))
        await store.record(answers[-1])
    await store.add_feedback(TENANT, answers[0].id, 0, SECRET, "caller")
    return answers


def everything(options: StoreOptions) -> dict[str, bytes]:
    """The files of the store, but the one of its key; and the rows of every table."""
    found = {}
    for file in options.path.parent.iterdir():
        if file != key_place(options):
            found[file.name] = file.read_bytes()
    with closing(sqlite3.connect(os.fspath(options.path))) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found[table] = repr(connection.execute(f"SELECT * FROM {table}").fetchall()).encode()
    return found


async def test_after_an_erasure_no_table_and_no_page_has_a_canary(options: StoreOptions) -> None:
    async with aclosing(await open_store(options, announce=tell)) as store:
        answers = await fill(store)
        before = everything(options)
        for table in ("answer_items", "reviews", "feedback", "decision_log", "outbox"):
            assert WORD in before[table], table
        assert not any(NAME.encode() in content for content in before.values())

        erased = await store.erase(Erasure(TENANT, "operator:olga", subject=NAME), known)

        assert erased.answers == len(answers)
        assert erased.reviews > 0
        assert erased.is_overwritten
        after = everything(options)
        assert [name for name, content in after.items() if WORD in content] == []
        assert await store.verify_log() == []
    assert [name for name, content in everything(options).items() if WORD in content] == []


@pytest.mark.parametrize("by_subject", [True, False])
async def test_after_an_erasure_nothing_that_people_did_has_a_canary(options: StoreOptions, by_subject: bool) -> None:
    async with aclosing(await open_store(options, announce=tell)) as store:
        subject = store.subject(TENANT, NAME)

        async def hand_over(quality: LabelQuality) -> Answer:
            answer, tasks = texted()
            await store.commit(replace(answer, subject=subject), [replace(task, quality=quality) for task in tasks])
            return answer

        async def write(answer: Answer, reviewer: str) -> Review:
            undecided = await store.reviews(TENANT, limit=1000)
            (review,) = [review for review in undecided if review.answer_id == answer.id]
            held = await store.claim(TENANT, review.id, reviewer, 60.0)
            await store.decide(TENANT, held.id, reviewer, held.fence, SECRET)
            return held

        await store.add_gold([GoldItem(TENANT, "pets", "cat", b"known", "text/plain")])
        answers = [await hand_over(quality) for quality in (SECONDS, SECONDS, GOLD_TOO, *[ONE_PERSON] * 3)]
        asked, checked, panel, cancelled, corrected, undone = answers
        decided = await write(asked, "anna")
        for answer, reviewer in ((checked, "anna"), (checked, "ben"), (panel, "eve")):
            await write(answer, reviewer)
        await store.cancel(TENANT, cancelled.id, "app")
        mistaken = await write(corrected, "anna")
        await store.correct(TENANT, mistaken.id, "anna", f"{SECRET}, too", f"it says {SECRET}")
        hasty = await write(undone, "anna")
        await store.undo(TENANT, hasty.id, "anna", hasty.fence)
        before = everything(options)
        for table in ("answer_items", "answer_revisions", "opinions", "reviews", "decision_log", "outbox"):
            assert WORD in before[table], table

        if by_subject:
            erased = await store.erase(Erasure(TENANT, "operator:olga", subject=NAME), known)
            assert (erased.answers, erased.reviews) == (len(answers), 3)  # asked (the second opinion), panel and undone
        else:
            for answer in answers:
                assert (await store.erase(erasure_of(answer), known)).answers == 1

        after = everything(options)
        assert [name for name, content in after.items() if WORD in content] == []
        assert await store.verify_log() == []
        left = await store.reviews(TENANT, limit=1000)
        assert {review.panel.purpose for review in left} == {Purpose.GOLD}
        assert {one.label for one in await store.opinions(TENANT)} <= {"cat"}
        for answer in answers:
            revisions = await store.revisions(TENANT, answer.id)
            assert [revision.number for revision in revisions] == list(range(1, len(revisions) + 1))
            assert revisions[-1].event == "erase"
            assert {item.label for revision in revisions for item in revision.items} == {None}
            assert (await store.erase(erasure_of(answer), known)).answers == 0
        with pytest.raises(Conflict, match="is not kept any more"):
            await store.correct(TENANT, decided.id, "anna", "cat")
        with pytest.raises(Conflict, match="is not kept any more"):
            await store.undo(TENANT, decided.id, "anna", decided.fence)
    assert [name for name, content in everything(options).items() if WORD in content] == []


async def test_a_gold_item_is_erased_as_a_whole_and_no_log_tells_of_it(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "cat", b"known", "text/plain")])
        answer, tasks = deferred()
        await store.commit(answer, [replace(task, quality=LabelQuality(gold=1.0)) for task in tasks])
        (gold,) = await of_purpose(store, Purpose.GOLD)

        erased = await store.erase(Erasure(TENANT, "operator:olga", answer_id=gold.answer_id), known)

        assert (erased.answers, erased.reviews) == (1, 1)
        assert [review.answer_id for review in await store.reviews(TENANT, state=None)] == [answer.id]
        assert await store.answer(TENANT, gold.answer_id) is None
        assert await read_answer_log(options, gold.answer_id) == []


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_gold_that_was_made_of_what_is_erased_goes_too(options: StoreOptions, is_forgotten: bool) -> None:
    clock = Clock(1_700_000_000.0)
    options = replace(options, kept=replace(options.kept, payloads_s=1000.0))
    async with aclosing(await open_store(options, announce=tell, wall_clock=clock)) as store:
        answer, (task,) = texted()
        shown = SECRET.encode()  # as it was sent
        await store.commit(replace(answer, subject=store.subject(TENANT, NAME)), [replace(task, payload=shown)])
        await decide_with(store, SECRET)
        (made_of,) = await store.reviews(TENANT, state=None)
        if is_forgotten:
            clock.now += 2000.0
            await store.maintain()
        found = await store.review(TENANT, made_of.id)
        assert found is not None
        assert found.task.is_forgotten == is_forgotten
        gold = [GoldItem(TENANT, queue, SECRET, shown, "text/plain", task.proposals) for queue in ("pets", "other")]
        other = GoldItem(TENANT, "pets", "cat", b"known", "text/plain")
        await store.add_gold([*gold, replace(gold[0], tenant="another", label="cat", proposals=())])
        for reviewer in ("ben", "cleo"):
            asked, (beside,) = deferred()
            beside = replace(beside, labels=(), quality=LabelQuality(gold=1.0))
            await store.commit(asked, [beside])
            (woven,) = (one for one in await of_purpose(store, Purpose.GOLD) if one.state is ReviewState.OPEN)
            held = await store.claim(TENANT, woven.id, reviewer, 60.0)
            if reviewer == "ben":
                await store.decide(TENANT, woven.id, reviewer, held.fence, SECRET)
        await store.add_gold([other])

        erased = await store.erase(Erasure(TENANT, "operator:olga", subject=NAME), known)

        assert erased.gold == 2
        assert await store.gold(TENANT) == {"pets": GoldCount(1, 0)}
        assert await store.gold("another") == {"pets": GoldCount(1, 0)}
        assert await of_purpose(store, Purpose.GOLD) == []
        await store.remove_gold("another", "pets")
        await store.erase(erasure_of(answer), known)  # and overwrites
        assert [name for name, content in everything(options).items() if WORD in content] == []
        assert await store.add_gold(gold[:1]) == 1
        assert (await store.erase(erasure_of(answer), known)).gold == 1
        assert await store.verify_log() == []


async def test_the_log_keeps_its_digests_and_says_that_and_when_not_whose(options: StoreOptions) -> None:
    async with aclosing(await open_store(options, announce=tell)) as store:
        answer, tasks = texted()
        await store.commit(replace(answer, subject=store.subject(TENANT, NAME)), tasks)
        await decide_with(store, SECRET)
        before = await read_answer_log(options, answer.id)

        await store.erase(Erasure(TENANT, "operator:olga", subject=NAME), known)

    *rows, erased = await read_answer_log(options, answer.id)
    assert [row.hash for row in rows] == [row.hash for row in before]
    assert [row.payload_sha256 for row in rows] == [row.payload_sha256 for row in before]
    assert [row.outputs_sha256 for row in rows] == [row.outputs_sha256 for row in before]
    assert rows[0].payload_sha256 == open_key(options).of_input(SECRET.encode())
    assert [row.label for row in rows] == [None, None]
    assert [(row.event, row.label) for row in before] == [("defer", SECRET), ("decide", SECRET)]
    assert (erased.event, erased.actor, erased.label) == ("erase", "operator:olga", None)
    assert [(row["chain"], row["seq"]) for row in erased.trail] == [(0, 1), (0, 2)]
    assert NAME not in repr(erased)


@pytest.mark.parametrize("seq", [1, 2, 3])
async def test_a_row_that_is_altered_after_an_erasure_is_found(options: StoreOptions, seq: int) -> None:
    async with aclosing(await open_store(options)) as store:
        answer, tasks = texted()
        await store.commit(answer, tasks)
        await decide_with(store, SECRET)
        await store.erase(erasure_of(answer), known)
    with edited(options) as execute:
        execute(f"UPDATE decision_log SET confidence = 0.125 WHERE seq = {seq}")
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == [f"chain 0: row {seq} was altered, or the one before it"]


async def test_an_erasure_that_is_forged_vouches_for_nothing(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        for _ in range(2):
            answer, tasks = texted()
            await store.commit(answer, tasks)
        await decide_with(store, SECRET)
    with edited(options) as execute:
        execute("UPDATE decision_log SET label = 'forged' WHERE seq = 1")
        vouching = orjson.dumps([{"chain": 0, "seq": 1, "hash": "00"}]).decode()
        execute(f"UPDATE decision_log SET event = 'erase', trail = '{vouching}' WHERE seq = 4")
    async with aclosing(await open_store(options)) as store:
        faults = await store.verify_log()
    assert faults == [f"chain 0: row {seq} was altered, or the one before it" for seq in (1, 4)]


async def test_what_was_not_delivered_yet_is_told_anew_without_what_is_gone(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, undo_s=0.0), announce=tell)) as store:
        told: list[Answer] = []
        untold: list[Answer] = []
        for kept in (told, untold):
            answer, tasks = texted()
            kept.append(answer)
            await store.commit(answer, tasks)
            await decide_with(store, SECRET)
            if kept is told:
                (message,) = await store.take_messages({"crm": 10}, 60.0)
                await store.end_message(message.message.id, OutboxState.DELIVERED, f"200: {SECRET}")
        for answer in (*told, *untold):
            await store.erase(erasure_of(answer), known)
            await store.erase(erasure_of(answer), known)

        (left,) = await store.take_messages({"crm": 10}, 60.0)

    assert (left.answer_id, left.message.body) == (untold[0].id, "[null]")


def tell_three(answer: Answer, now_s: float) -> list[Message]:
    """What three webhooks are told of a closed answer: its labels."""
    labels = orjson.dumps([item.label for item in answer.items]).decode()
    return [new_message(name, now_s, lambda _: labels) for name in ("crm", "erp", "mail")]


@pytest.mark.parametrize("place", ["sqlite", "postgres"])
async def test_what_a_webhook_never_took_is_dead_without_what_is_gone_and_can_be_sent_again(
    options: StoreOptions, place: str, request: pytest.FixtureRequest
) -> None:
    if place == "postgres":
        options = replace(options, place=request.getfixturevalue("postgres"))
    async with aclosing(await open_store(replace(options, undo_s=0.0), announce=tell_three)) as store:
        answer, tasks = texted()
        await store.commit(answer, tasks)
        await decide_with(store, SECRET)
        ends = {"crm": OutboxState.DELIVERED, "erp": OutboxState.DEAD}
        before = await store.take_messages({"crm": 1, "erp": 1}, 60.0)
        for delivery in before:
            await store.end_message(delivery.message.id, ends[delivery.message.webhook], f"500: {SECRET}")

        for _ in range(2):
            await store.erase(erasure_of(answer), known)

        left = {delivery.message.webhook: delivery for delivery in await list_messages(options, None, 10)}
        assert {name: delivery.state for name, delivery in left.items()} == {
            "erp": OutboxState.DEAD,
            "mail": OutboxState.WAITING,
        }
        assert {delivery.message.body for delivery in left.values()} == {"[null]"}
        assert left["erp"].message.id not in {delivery.message.id for delivery in before}
        assert SECRET not in repr(left)
        assert [one.message.webhook for one in await store.take_messages(dict.fromkeys(left, 10), 60.0)] == ["mail"]
        assert await redeliver(options, None) == 1
        (again,) = await store.take_messages({"erp": 10}, 60.0)
        assert (again.message.id, again.message.body) == (left["erp"].message.id, "[null]")


async def test_an_answer_that_an_erasure_closes_is_told_to_all(options: StoreOptions) -> None:
    async with aclosing(await open_store(replace(options, undo_s=0.0), announce=tell_three)) as store:
        answer, tasks = texted()
        await store.commit(answer, tasks)
        await store.erase(erasure_of(answer), known)
        taken = await store.take_messages({"crm": 10, "erp": 10, "mail": 10}, 60.0)
    assert [delivery.message.webhook for delivery in taken] == ["crm", "erp", "mail"]


async def test_a_store_that_is_too_large_is_left_for_a_quiet_time(
    options: StoreOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.store.store._OVERWRITE_BYTES", 0)
    async with aclosing(await open_store(options)) as store:
        answer, tasks = texted()
        await store.commit(answer, tasks)
        erased = await store.erase(erasure_of(answer), known)
        assert (erased.answers, erased.is_overwritten) == (1, False)
        assert "pointsman store vacuum" in caplog.text
        assert [name for name, content in everything(options).items() if WORD in content] != []

        assert overwrite_beside(options)

        assert [name for name, content in everything(options).items() if WORD in content] == []


async def test_others_write_while_a_file_is_written_anew(options: StoreOptions) -> None:
    options = replace(options, busy_timeout_s=5.0)
    async with aclosing(await open_store(options)) as store, aclosing(await open_store(options)) as other:
        answer, tasks = texted()
        await store.commit(answer, tasks)
        kept = [accepted() for _ in range(20)]

        await asyncio.gather(store.erase(erasure_of(answer), known), *(other.commit(one, []) for one in kept))

        assert all([await store.answer(TENANT, one.id) for one in kept])
        assert await store.verify_log() == []


async def test_erasures_outlive_what_they_vouch_for(options: StoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.retention.LOG_BATCH", 4)
    clock = Clock(1_700_000_000.0)
    options = replace(options, retention_s=1000.0, kept=replace(options.kept, decisions_s=1000.0))
    async with (
        aclosing(await open_store(options, wall_clock=clock)) as long,
        aclosing(await open_store(options, wall_clock=clock)) as short,
    ):
        answers = []
        for _ in range(11):
            answers.append(replace(accepted(label=SECRET), created_s=clock.now))
            await long.commit(answers[-1], [])
        clock.now += 10.0
        for answer in answers:
            await short.erase(erasure_of(answer), known)
        for _ in range(30):
            clock.now += 4000.0
            await long.maintain()
            assert await long.verify_log() == []
        with closing(sqlite3.connect(os.fspath(options.path))) as connection:
            assert connection.execute("SELECT count(*) FROM decision_log").fetchone() == (0,)


def test_the_key_is_made_once_for_its_owner_s_eyes(options: StoreOptions) -> None:
    options.path.parent.mkdir(parents=True, exist_ok=True)
    first, again = open_key(options), open_key(options)

    place = key_place(options)
    assert first == again
    assert place == options.path.with_name("store.db-key")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert StoreKey.parse(place.read_text()) == first
    assert first.text() not in repr(first)
    assert [file.name for file in place.parent.iterdir()] == ["store.db-key"]


def test_a_key_that_is_none_stops_the_start(options: StoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_KEY", "cafe")
    with pytest.raises(CannotOpenStore, match="environment's POINTSMAN_KEY cannot be used: it is not 64 hexadecimal"):
        open_key(replace(options, key_env="POINTSMAN_KEY"))
    missing = options.path.with_name("missing")
    with pytest.raises(CannotOpenStore, match=f"{missing} cannot be read or made: No such file"):
        open_key(replace(options, key_file=missing))
    assert not missing.exists()
