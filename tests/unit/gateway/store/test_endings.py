"""Answers end as they should, whoever decides, takes back, corrects, cancels or is too late, in whatever order.

Of two stores on one file, and a receiver of messages: every item ends once, revisions grow by one at a time, what was
said of an item is what its last author said, and whoever is told last of an answer that is closed knows how it is.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, event

from backends.errors import Conflict, PermissionDenied
from gateway.answer import Answer, AnswerId, Status
from gateway.store import SqlStore, StoreOptions, list_messages, open_store
from gateway.store.contract import UNDO_LEASE_S, Delivery, Message, OutboxState, Review, ReviewState
from gateway.store.outbox import new_message
from tests.unit.gateway.store.conformance import LEASE_S
from tests.unit.gateway.store.endings import UNDO_S, decided
from tests.unit.gateway.store.samples import LABELS, TENANT, Clock, deferred, uncertified

T = TypeVar("T")
LASTING_S = 60.0


@dataclass(slots=True)
class ModelItem:
    """An item, and its review."""

    review_id: str
    expires_s: float
    state: ReviewState = ReviewState.OPEN
    fence: int = 0
    reviewer: str | None = None
    label: str | None = None
    decided_s: float | None = None
    is_corrected: bool = False
    said: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        if self.state in (ReviewState.CANCELLED, ReviewState.EXPIRED):
            return Status(self.state.value)
        return Status.FINAL if self.state is ReviewState.DECIDED else Status.PROVISIONAL


@dataclass(slots=True)
class ModelAnswer:
    """An answer as it should be."""

    id: AnswerId
    items: list[ModelItem]
    revision: int = 1
    told: int = 0

    @property
    def is_closed(self) -> bool:
        return all(item.status is not Status.PROVISIONAL for item in self.items)


def tell_revision(answer: Answer, now_s: float) -> Iterable[Message]:
    yield new_message("crm", now_s, lambda message_id: f"{answer.revision} {answer.status}")


class EndingsMachine(RuleBasedStateMachine):
    """Two stores on one file, and the model of both."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock, self.wall_clock = Clock(1000.0), Clock(1_700_000_000.0)
        self.answers: list[ModelAnswer] = []
        self.turns = itertools.count()
        self.stores = [self.run(self.open()) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def open(self) -> SqlStore:
        options = StoreOptions(Path(self.folder.name) / "store.db", undo_s=UNDO_S)
        return await open_store(
            options, clock=self.clock, wall_clock=self.wall_clock, siblings=False, announce=tell_revision
        )

    @property
    def store(self) -> SqlStore:
        """One of the two, in turn."""
        return self.stores[next(self.turns) % 2]

    def teardown(self) -> None:
        self.wall_clock.now += 1e6  # later than any message is due, however often it was set back
        self.deliver()
        for answer in self.answers:
            assert not answer.is_closed or answer.told == answer.revision
        assert self.run(self.store.verify_log()) == []
        for store in self.stores:
            self.run(store.aclose())
        self.runner.close()
        self.folder.cleanup()

    def picked(self, pick: int) -> tuple[ModelAnswer, int, ModelItem]:
        places = [(answer, i, item) for answer in self.answers for i, item in enumerate(answer.items)]
        return places[pick % len(places)]

    @rule(items=st.integers(1, 3), expires_s=st.sampled_from([30.0, 1e6]))
    def defer(self, items: int, expires_s: float) -> None:
        until_s = self.wall_clock.now + expires_s
        answer, tasks = uncertified(items=items, expires_s=until_s)
        self.run(self.store.commit(answer, tasks))
        found = self.run(self.store.reviews(TENANT, state=None, limit=1000))
        ids = {review.task.item: review.id for review in found if review.answer_id == answer.id}
        self.answers.append(ModelAnswer(answer.id, [ModelItem(ids[i], until_s) for i in range(items)]))

    has_answers = precondition(lambda self: self.answers)

    @has_answers
    @rule(pick=st.integers(0, 99), reviewer=st.sampled_from(["anna", "ben"]))
    def claim(self, pick: int, reviewer: str) -> None:
        _, _, item = self.picked(pick)
        work = self.store.claim(TENANT, item.review_id, reviewer, 1e9)
        if item.state is ReviewState.OPEN or (item.state is ReviewState.CLAIMED and item.reviewer == reviewer):
            item.fence = self.run(work).fence
            item.state, item.reviewer = ReviewState.CLAIMED, reviewer
            return
        with pytest.raises(Conflict):
            self.run(work)

    @has_answers
    @rule(pick=st.integers(0, 99), label=st.sampled_from(LABELS), stale=st.booleans())
    def decide(self, pick: int, label: str, stale: bool) -> None:
        answer, index, item = self.picked(pick)
        reviewer, was = item.reviewer or "anna", item.state
        work = self.store.decide(TENANT, item.review_id, reviewer, item.fence - stale, label)
        if was is ReviewState.DECIDED and item.label == label:
            assert self.run(work).revision == answer.revision
        elif was is ReviewState.CLAIMED and not stale:
            answer.revision += 1
            item.state, item.label, item.decided_s = ReviewState.DECIDED, label, self.wall_clock.now
            item.is_corrected, item.said[reviewer] = False, label
            after = self.run(work)
            assert (after.revision, after.items[index].label) == (answer.revision, label)
        else:
            with pytest.raises(Conflict):
                self.run(work)

    @has_answers
    @rule(pick=st.integers(0, 99), stale=st.booleans())
    def undo(self, pick: int, stale: bool) -> None:
        answer, _, item = self.picked(pick)
        reviewer = item.reviewer or "anna"
        work = self.store.undo(TENANT, item.review_id, reviewer, item.fence - stale)
        if item.state is ReviewState.CLAIMED and stale:
            assert self.run(work).fence == item.fence  # as after a decision that was taken back
        elif (
            item.state is ReviewState.DECIDED
            and not stale
            and not item.is_corrected
            and item.decided_s is not None
            and self.wall_clock.now - item.decided_s < UNDO_S
            and all(other.status in (Status.FINAL, Status.PROVISIONAL) for other in answer.items)
        ):
            review = self.run(work)
            answer.revision += 1
            item.state, item.label, item.fence = ReviewState.CLAIMED, None, item.fence + 1
            item.expires_s = max(item.expires_s, self.wall_clock.now + UNDO_LEASE_S)
            del item.said[reviewer]
            assert (review.state, review.reviewer, review.fence) == (item.state, reviewer, item.fence)
        else:
            with pytest.raises(Conflict):
                self.run(work)

    @has_answers
    @rule(pick=st.integers(0, 99), label=st.sampled_from(LABELS), who=st.sampled_from(["same", "other", "lead"]))
    def correct(self, pick: int, label: str, who: str) -> None:
        answer, _, item = self.picked(pick)
        reviewer = item.reviewer if who == "same" and item.reviewer is not None else who
        of_anybody = who == "lead"
        work = self.store.correct(TENANT, item.review_id, reviewer, label, of_anybody=of_anybody)
        if item.state is not ReviewState.DECIDED:
            with pytest.raises(Conflict):
                self.run(work)
        elif reviewer != item.reviewer and not of_anybody:
            with pytest.raises(PermissionDenied):
                self.run(work)
        else:
            if label != item.label:
                answer.revision += 1
                item.label, item.reviewer, item.is_corrected = label, reviewer, True
                item.said[reviewer] = label
            assert self.run(work).revision == answer.revision

    @has_answers
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        answer, _, _ = self.picked(pick)
        if not answer.is_closed:
            answer.revision += 1
            self.end(answer.items, ReviewState.CANCELLED)
        assert self.run(self.store.cancel(TENANT, answer.id, "app")).revision == answer.revision

    def end(self, items: Iterable[ModelItem], state: ReviewState) -> None:
        for item in items:
            if item.status is Status.PROVISIONAL:
                item.state, item.reviewer = state, None

    @rule()
    def maintain(self) -> None:
        expired = 0
        for answer in self.answers:
            over = [i for i in answer.items if i.status is Status.PROVISIONAL and i.expires_s <= self.wall_clock.now]
            answer.revision += bool(over)
            expired += len(over)
            self.end(over, ReviewState.EXPIRED)
        assert self.run(self.store.maintain()).reviews_expired == expired

    @rule(seconds=st.sampled_from([0.0, 4.0, UNDO_S, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.wall_clock.now += seconds

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def set_the_wall_clock_back(self, seconds: float) -> None:
        self.wall_clock.now -= seconds

    @rule()
    def deliver(self) -> None:
        for message in self.run(self.store.take_messages({"crm": 1000}, LASTING_S)):
            self.run(self.store.end_message(message.message.id, OutboxState.DELIVERED, "200"))
            self.hear(message)

    def hear(self, delivery: Delivery) -> None:
        answer = next(answer for answer in self.answers if answer.id == delivery.answer_id)
        revision, status = delivery.message.body.split()
        assert status in ("final", "cancelled", "expired")
        assert int(revision) <= answer.revision
        answer.told = max(answer.told, int(revision))

    @invariant()
    def the_stores_are_as_the_model(self) -> None:
        found = {review.id: review for review in self.run(self.store.reviews(TENANT, state=None, limit=1000))}
        labelled = {(item.answer_id, item.item): item for item in self.run(self.store.labelled(None, "pets"))}
        for answer in self.answers:
            kept = self.run(self.store.answer(TENANT, answer.id))
            assert kept is not None
            assert (kept.revision, kept.open_items == ()) == (answer.revision, answer.is_closed)
            revisions = self.run(self.store.revisions(TENANT, answer.id))
            assert [revision.number for revision in revisions] == list(range(1, answer.revision + 1))
            became = {state.item: state for revision in revisions for state in revision.items}
            for i, item in enumerate(answer.items):
                self.check_item(answer, i, item, kept, found[item.review_id])
                assert (became[i].status, became[i].label) == (kept.items[i].status, kept.items[i].label)
                label = labelled[answer.id, i]
                assert (label.label, label.by_person) == self.label_of(item)

    def check_item(self, answer: ModelAnswer, index: int, item: ModelItem, kept: Answer, review: Review) -> None:
        assert (review.state, review.label, review.fence) == (item.state, item.label, item.fence)
        assert (kept.items[index].status, kept.items[index].label) == (item.status, item.label or "cat")
        # A model's outputs are there again whenever nobody has said otherwise.
        if item.status is not Status.FINAL:
            assert kept.items[index].outputs is not None
            assert kept.items[index].decided_by is None

    def label_of(self, item: ModelItem) -> tuple[str | None, bool]:
        if item.state is ReviewState.DECIDED:
            return item.label, True
        said = set(item.said.values())
        return (said.pop() if len(said) == 1 else None), False


TestEndings = pytest.mark.no_cover(EndingsMachine.TestCase)
TestEndings.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


# --- messages ---


@pytest.fixture
def told_later(options: StoreOptions) -> StoreOptions:
    return replace(options, undo_s=UNDO_S)


async def open_told(options: StoreOptions, wall_clock: Clock) -> SqlStore:
    return await open_store(options, wall_clock=wall_clock, announce=tell_revision)


async def taken(store: SqlStore) -> list[str]:
    return [delivery.message.body for delivery in await store.take_messages({"crm": 10}, LASTING_S)]


async def test_nobody_is_told_while_a_decision_can_be_taken_back(told_later: StoreOptions, wall_clock: Clock) -> None:
    async with aclosing(await open_told(told_later, wall_clock)) as store:
        await store.commit(*deferred())
        await decided(store, "dog")
        wall_clock.now += UNDO_S - 0.1
        assert await taken(store) == []
        wall_clock.now += 0.1
        assert await taken(store) == ["2 final"]


async def test_what_is_taken_back_is_not_told_and_what_follows_is(told_later: StoreOptions, wall_clock: Clock) -> None:
    async with aclosing(await open_told(told_later, wall_clock)) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "dog")
        back = await store.undo(TENANT, review.id, "anna", review.fence)
        assert await list_messages(told_later, None, 10) == []
        await store.decide(TENANT, review.id, "anna", back.fence, "owl")
        wall_clock.now += UNDO_S
        assert await taken(store) == ["4 final"]


async def test_a_correction_is_told_instead_of_what_it_corrects_or_after_it(
    told_later: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_told(told_later, wall_clock)) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "dog")
        await store.correct(TENANT, review.id, "anna", "owl")
        wall_clock.now += UNDO_S
        assert await taken(store) == ["3 final"]  # and it is under way now
        await store.correct(TENANT, review.id, "anna", "cat")
        wall_clock.now += UNDO_S
        assert await taken(store) == ["4 final"]
        assert len(await list_messages(told_later, OutboxState.WAITING, 10)) == 2


async def test_what_failed_once_is_not_withdrawn(told_later: StoreOptions, wall_clock: Clock) -> None:
    async with aclosing(await open_told(told_later, wall_clock)) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "dog")
        wall_clock.now += UNDO_S
        (delivery,) = await store.take_messages({"crm": 10}, LASTING_S)
        await store.postpone_message(delivery.message.id, 0.0, "503")
        await store.correct(TENANT, review.id, "anna", "owl")
        wall_clock.now += UNDO_S
        assert await taken(store) == ["2 final", "3 final"]


async def test_a_cancelled_answer_is_told_as_such_and_so_is_an_expired_one(
    told_later: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_told(told_later, wall_clock)) as store:
        (one, tasks), (two, more) = deferred(items=2), deferred(expires_s=wall_clock.now + 60.0)
        await store.commit(one, tasks)
        await store.commit(two, more)
        await store.cancel(TENANT, one.id, "app")
        wall_clock.now += 60.0
        await store.maintain()
        wall_clock.now += UNDO_S
        assert await taken(store) == ["2 cancelled", "2 expired"]


async def test_where_nothing_can_be_taken_back_everybody_is_told_at_once(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_told(replace(options, undo_s=0.0), wall_clock)) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "dog")
        with pytest.raises(Conflict, match="for 0 s, which are over"):
            await store.undo(TENANT, review.id, "anna", review.fence)
        assert await taken(store) == ["2 final"]


# --- plans ---


async def test_reviews_are_found_by_the_indexes_made_for_them(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred(expires_s=1e12))
        asked: list[tuple[str, Any]] = []  # Any: a driver's parameters

        def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            if statement.startswith("SELECT reviews."):
                asked.append((statement, parameters))

        engines = (store._database.reading, store._database._writing)  # type: ignore[attr-defined]  # of both
        for engine in engines:
            event.listen(engine, "before_cursor_execute", note)
        await store.maintain()
        await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        await store.reviews(TENANT)
        await store.reviews(TENANT, "pets")
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)

        def plans(connection: Connection) -> list[str]:
            steps = (connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).first() for text, values in asked)
            return [step.detail.partition(" USING INDEX ")[2].split()[0] for step in steps if step is not None]

        assert await store._read(plans) == [
            "reviews_expiring",
            "reviews_gold",
            "reviews_claimed",
            "reviews_queued",
            *["sqlite_autoindex_reviews_1"] * 1,
            "reviews_undecided",
            "reviews_queued",
        ]
