"""Each kind of what a store keeps goes in its own time, and certificates never."""

from __future__ import annotations

import os
from contextlib import aclosing, closing
from dataclasses import replace

import pysqlite3.dbapi2 as sqlite3
import pytest

from backends.errors import Conflict
from gateway.store import Retention, SqlStore, StoreOptions, open_store
from gateway.store.contract import Done, Fresh, GoldItem, OutboxState, Purpose, ReviewState, SecondOpinion
from gateway.store.options import KEYS_S
from router.contract import ONE_PERSON
from tests.unit.gateway.store.conformance import BODY, DAY_S, KEY, decide_all, first_review
from tests.unit.gateway.store.quality_conformance import SECONDS, TWO_OF_THREE, hand_over, of_purpose, say
from tests.unit.gateway.store.samples import TENANT, Clock, accepted, certificate, deferred
from tests.unit.gateway.store.test_erasure import tell

KEPT = Retention(
    payloads_s=2 * DAY_S, decisions_s=20 * DAY_S, feedback_s=30 * DAY_S, messages_s=3 * DAY_S, keys_s=DAY_S
)


@pytest.fixture
def options(options: StoreOptions) -> StoreOptions:
    return replace(options, retention_s=10 * DAY_S, kept=KEPT, undo_s=0.0)


def counted(options: StoreOptions, table: str, where: str = "1") -> int:
    with closing(sqlite3.connect(os.fspath(options.path))) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])


async def after(store: SqlStore, wall_clock: Clock, days: float) -> None:
    wall_clock.now += days * DAY_S
    await store.maintain()
    assert await store.verify_log() == []


async def test_each_kind_goes_in_its_own_time(options: StoreOptions, wall_clock: Clock) -> None:
    async with aclosing(await open_store(options, wall_clock=wall_clock, announce=tell)) as store:
        answer, tasks = deferred()
        answer = replace(answer, created_s=wall_clock.now, subject=store.subject(TENANT, "anna"))
        await store.commit(answer, tasks)
        await store.add_certificate(certificate())
        await decide_all(store)
        (message,) = await store.take_messages({"crm": 9}, 60.0)
        await store.end_message(message.message.id, OutboxState.DELIVERED, "200")

        kept: dict[float, tuple[int, ...]] = {}
        for day in (1.0, 2.5, 3.5, 9.0, 10.5, 19.0, 20.5, 29.0, 30.5, 400.0):
            await after(store, wall_clock, day - max(kept, default=0.0))
            kept[day] = (
                counted(options, "reviews", "length(payload) > 0"),
                counted(options, "outbox"),
                counted(options, "answers"),
                counted(options, "decision_log"),
                counted(options, "subjects"),
                counted(options, "feedback"),
                counted(options, "certificates"),
            )

    assert kept == {
        1.0: (1, 1, 1, 2, 1, 1, 1),
        2.5: (0, 1, 1, 2, 1, 1, 1),
        3.5: (0, 0, 1, 2, 1, 1, 1),
        9.0: (0, 0, 1, 2, 1, 1, 1),
        10.5: (0, 0, 0, 2, 1, 1, 1),
        19.0: (0, 0, 0, 2, 1, 1, 1),
        20.5: (0, 0, 0, 0, 1, 1, 1),  # an erasure finds feedback by its subject
        29.0: (0, 0, 0, 0, 1, 1, 1),
        30.5: (0, 0, 0, 0, 0, 0, 1),
        400.0: (0, 0, 0, 0, 0, 0, 1),
    }


async def test_a_review_whose_payload_is_gone_still_says_what_was_decided(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        await store.commit(*deferred())
        decided = await first_review(store)
        await decide_all(store)
        answer, tasks = deferred()
        await store.commit(answer, tasks)
        waiting = await first_review(store)

        await after(store, wall_clock, 5.0)

        shown = await store.review(TENANT, decided.id)
        assert shown is not None
        assert (shown.state, shown.label, shown.reviewer) == (ReviewState.DECIDED, "cat", "anna")
        assert (shown.task.payload, shown.task.proposals, shown.task.is_forgotten) == (b"", (), True)
        undecided = await store.review(TENANT, waiting.id)
        assert undecided is not None
        assert undecided.task.payload == tasks[0].payload
        assert not undecided.task.is_forgotten


async def test_what_nobody_decided_is_forgotten_too_and_a_second_opinion_goes_with_what_it_would_show(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        cancelled = await hand_over(store, ONE_PERSON)
        await store.cancel(TENANT, cancelled.id, "app")
        expired, tasks = deferred(expires_s=wall_clock.now + 60.0)
        await store.commit(expired, tasks)
        await after(store, wall_clock, 0.1)
        checked = await hand_over(store, SECONDS)
        first = await say(store, "anna", "dog")
        (second,) = await of_purpose(store, Purpose.SECOND)
        held = await store.claim(TENANT, second.id, "ben", 60.0)

        await after(store, wall_clock, 2.5)

        for answer in (cancelled, expired, checked):
            mine = [review for review in await store.reviews(TENANT, state=None) if review.answer_id == answer.id]
            assert [r.task.is_forgotten for r in mine if r.panel.purpose is Purpose.DECIDE] == [True]
        shown = await store.review(TENANT, second.id)
        assert shown is not None
        assert shown.task.payload == tasks[0].payload, "somebody is looking at it"
        with pytest.raises(Conflict, match="is not kept any more"):
            await store.correct(TENANT, first.id, "anna", "cat")

        await store.release(TENANT, second.id, "ben", held.fence)
        await after(store, wall_clock, 0.1)

        assert await store.review(TENANT, second.id) is None
        assert counted(options, "reviews", "length(payload) > 0") == 0
        decided = await store.review(TENANT, first.id)
        assert decided is not None
        assert decided.panel.second is SecondOpinion.NONE
        assert await store.quality_counts() == {}
        assert await store.opinions(TENANT) == []


async def test_what_people_said_goes_with_the_last_of_what_it_was_about(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
        checked, tasks = deferred()
        subject = store.subject(TENANT, "anna")
        checked = replace(checked, created_s=wall_clock.now, subject=subject)
        await store.commit(checked, [replace(task, quality=replace(SECONDS, gold=1.0)) for task in tasks])
        waiting, tasks = deferred()
        waiting = replace(waiting, created_s=wall_clock.now)
        await store.commit(waiting, [replace(task, quality=TWO_OF_THREE) for task in tasks])
        for reviewer in ("anna", "ben"):
            while (held := await store.claim_next(TENANT, "pets", reviewer, 60.0)) is not None:
                await store.decide(TENANT, held.id, reviewer, held.fence, reviewer_s_label(reviewer))
        assert counted(options, "opinions") == 5
        await after(store, wall_clock, 19.0)
        assert [counted(options, table) for table in ("answers", "opinions", "subjects")] == [1, 5, 1]
        await after(store, wall_clock, 2.0)
        assert {one.subject for one in await store.opinions(TENANT)} == {waiting.id}
        assert len(await store.opinions(TENANT)) == 2
        assert counted(options, "subjects") == 1, "feedback is kept still"
        await after(store, wall_clock, 10.0)
        assert counted(options, "subjects") == 0


async def test_what_stays_for_good_does_not_hide_what_is_to_go(
    options: StoreOptions, wall_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.retention.LOG_BATCH", 2)
    options = replace(options, kept=replace(KEPT, feedback_s=None))
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        for number in range(9):
            wall_clock.now += 1.0
            answer = replace(accepted(), created_s=wall_clock.now, subject=store.subject(TENANT, "anna"))
            await store.commit(answer, [])
            if number < 6:
                await store.add_feedback(TENANT, answer.id, 0, "cat", "caller")
        await after(store, wall_clock, 40.0)
        for _ in range(9):
            await store.maintain()
        assert counted(options, "subjects") == 6


def reviewer_s_label(reviewer: str) -> str:
    return {"anna": "dog", "ben": "owl"}[reviewer]


async def test_keys_are_kept_as_long_as_is_said(options: StoreOptions, wall_clock: Clock) -> None:
    options = replace(options, kept=Retention(keys_s=5 * DAY_S))
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        answer = accepted()
        await store.commit(answer, [], KEY, fresh.fence)
        await after(store, wall_clock, 4.9)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        await after(store, wall_clock, 0.2)
        assert isinstance(await store.claim_key(KEY, BODY), Fresh)


async def test_purging_goes_on_over_many_batches(
    options: StoreOptions, wall_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BATCH", "LOG_BATCH"):
        monkeypatch.setattr(f"gateway.store.retention.{name}", 4)
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        for _ in range(11):
            answer, tasks = deferred()
            answer = replace(answer, created_s=wall_clock.now, subject=store.subject(TENANT, "anna"))
            await store.commit(answer, tasks)
        await decide_all(store)
        await after(store, wall_clock, 3.0)
        assert counted(options, "reviews", "length(payload) > 0") == 0
        await after(store, wall_clock, 40.0)
        assert [counted(options, table) for table in ("answers", "decision_log", "feedback", "subjects")] == [0] * 4


def test_what_contradicts_itself_is_told() -> None:
    def faults(answers_days: float, **days: float) -> set[str]:
        return {name for name, _ in Retention(**{k: v * DAY_S for k, v in days.items()}).faults(answers_days * DAY_S)}

    assert faults(30) == set()
    assert Retention().keys_s == KEYS_S
    assert faults(0.5) == set()  # keys that nobody spoke of
    assert faults(10, payloads_s=11, messages_s=12, keys_s=13, decisions_s=9, feedback_s=8) == {
        "payloads_s",
        "messages_s",
        "keys_s",
        "decisions_s",
        "feedback_s",
    }
    assert faults(10, feedback_s=100) == {"feedback_s"}
    assert faults(10, feedback_s=100, decisions_s=100) == set()
