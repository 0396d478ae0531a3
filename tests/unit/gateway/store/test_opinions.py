"""Whatever people do in whatever order: one decision an item, one opinion a person, and nothing blind leaks."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from backends.errors import Conflict
from gateway.answer import Answer, Status
from gateway.sight import as_seen_by
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import GoldItem, Panel, Purpose, Review, ReviewState, SecondOpinion
from gateway.store.log import Event
from gateway.store.opinions import Standing, standing
from gateway.store.schema import DECISION_LOG
from gateway.store.transaction import Transaction
from router.contract import LabelQuality
from tests.unit.gateway.store.quality_conformance import SECONDS, TWO_OF_THREE, hand_over, say
from tests.unit.gateway.store.samples import LABELS, TENANT, Clock, deferred

T = TypeVar("T")
REVIEWERS = ("anna", "ben", "cleo", "dora", "emil")


# --- what opinions come to ---


@pytest.mark.parametrize(
    ("needed", "of", "labels", "expected"),
    [
        (2, 3, "a", Standing.OPEN),
        (2, 3, "aa", Standing.FINAL),
        (2, 3, "ab", Standing.OPEN),
        (2, 3, "aba", Standing.FINAL),
        (2, 3, "abc", Standing.DISPUTED),
        (2, 2, "ab", Standing.DISPUTED),
        (3, 5, "ababc", Standing.DISPUTED),
        (3, 5, "ababb", Standing.FINAL),
        (3, 3, "ab", Standing.OPEN),
    ],
)
def test_opinions_come_to_what_the_panel_asks_for(needed: int, of: int, labels: str, expected: Standing) -> None:
    assert standing(Panel(needed=needed, of=of), list(labels)) is expected


@given(
    of=st.integers(2, 9),
    needed=st.integers(2, 9),
    labels=st.lists(st.sampled_from("abc"), min_size=9, max_size=9),
)
def test_a_panel_ends_after_as_many_opinions_as_are_asked_for_at_most(of: int, needed: int, labels: list[str]) -> None:
    panel = Panel(needed=min(needed, of), of=of)
    ends = [count for count in range(1, 10) if standing(panel, labels[:count]) is not Standing.OPEN]
    assert ends[0] <= of
    found = standing(panel, labels[: ends[0]])
    most = max(labels[: ends[0]].count(label) for label in "abc")
    assert (found is Standing.FINAL) == (most >= panel.needed)
    assert standing(replace(panel, adjudicating=True), labels[: ends[0]]) is Standing.FINAL


# --- the tables hold what the code promises ---


async def test_the_tables_refuse_a_second_opinion_of_one_person_and_one_too_many(options: StoreOptions) -> None:
    columns = "subject, item, reviewer, number, kind, tenant, route, queue, label, truth, settles, at_s"
    values = "'s', 0, :reviewer, :number, 'panel', 't', 'r', 'q', 'dog', NULL, 1, 1.0"
    statement = f"INSERT INTO opinions ({columns}) VALUES ({values})"

    def insert(transaction: Transaction, reviewer: str, number: int) -> None:
        transaction.connection.exec_driver_sql(statement, {"reviewer": reviewer, "number": number})

    async with aclosing(await open_store(options)) as store:
        await store._writer.run(partial(insert, reviewer="anna", number=1))
        for reviewer, number in (("anna", 2), ("ben", 1)):
            with pytest.raises(IntegrityError):
                await store._writer.run(partial(insert, reviewer=reviewer, number=number))


@pytest.mark.parametrize(
    "change",
    [
        "blind = 1",
        "needed = 3",
        "adjudicating = 1, needed = 1",
        "second = 'asked'",
        "purpose = 'second', subject = NULL",
        "purpose = 'gold', subject = 'g', second = 'drawn'",
        "purpose = 'third'",
    ],
)
async def test_the_tables_refuse_states_that_there_are_none_of(options: StoreOptions, change: str) -> None:
    async with aclosing(await open_store(options)) as store:
        await hand_over(store, LabelQuality(needed=2, of=2))
        with pytest.raises(IntegrityError):
            await store._writer.run(
                lambda transaction: transaction.connection.exec_driver_sql(f"UPDATE reviews SET {change}")
            )


async def test_opinions_that_did_not_decide_are_in_the_log_and_gold_is_not(options: StoreOptions) -> None:
    def events(connection: Connection) -> list[tuple[str, str | None, str | None]]:
        rows = connection.execute(DECISION_LOG.select().order_by(DECISION_LOG.c.chain, DECISION_LOG.c.seq))
        return [(row.event, row.actor, row.reason) for row in rows]

    async with aclosing(await open_store(options)) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
        await hand_over(store, replace(TWO_OF_THREE, gold=1.0))
        await hand_over(store, SECONDS)
        for reviewer in REVIEWERS:
            while (held := await store.claim_next(TENANT, "pets", reviewer, 60.0)) is not None:
                await store.decide(TENANT, held.id, reviewer, held.fence, "dog")
        found = await store._read(events)
        assert sorted(event for event, _, _ in found) == sorted(
            [Event.DEFER, Event.DEFER, Event.OPINION, Event.DECIDE, Event.DECIDE, Event.OPINION]
        )
        assert {reason for event, _, reason in found if event == Event.OPINION} == {"panel", "second"}
        assert await store.verify_log() == []


async def test_a_decision_of_several_is_announced_once_and_checks_never(options: StoreOptions) -> None:
    told: list[str] = []

    def announce(answer: Answer, _now_s: float) -> tuple[()]:
        told.append(answer.id)
        return ()

    async with aclosing(await open_store(options, announce=announce)) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
        several = await hand_over(store, replace(TWO_OF_THREE, gold=1.0))
        twice = await hand_over(store, SECONDS)
        for reviewer in REVIEWERS:
            while (held := await store.claim_next(TENANT, "pets", reviewer, 60.0)) is not None:
                await store.decide(TENANT, held.id, reviewer, held.fence, "dog")
        assert sorted(told) == sorted([several.id, twice.id])


async def test_who_may_give_an_opinion_is_found_by_key(options: StoreOptions) -> None:
    from gateway.store.opinions import has_not_said
    from gateway.store.schema import REVIEWS

    def plan(connection: Connection) -> list[str]:
        query = REVIEWS.select().where(has_not_said("anna"))
        text = str(query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
        return [step.detail for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]

    async with aclosing(await open_store(options)) as store:
        steps = await store._read(plan)
    assert any("opinions USING" in step and "subject=? AND item=? AND reviewer=?" in step for step in steps), steps


async def test_a_seen_review_tells_who_holds_it_nothing_of_the_other(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await hand_over(store, SECONDS)
        await say(store, "anna", "dog")
        held = await store.claim_next(TENANT, "pets", "ben", 60.0)
        assert held is not None
        every = await store.reviews(TENANT, state=None)
        for review in [as_seen_by("ben", review) for review in (*every, held)]:
            assert (review.label, review.task.proposals, review.opinions) == (None, (), ())
            assert review.reviewer in (None, "ben")
        (own,) = [as_seen_by("anna", review) for review in every if review.state is ReviewState.DECIDED]
        assert own.label == "dog"


# --- anything in any order ---


@dataclass(slots=True)
class Said:
    """What was said of an item, in order, and how its people are asked."""

    answer: Answer
    quality: LabelQuality
    labels: list[tuple[str, str]] = field(default_factory=list)
    decided: str | None = None


qualities = st.sampled_from(
    [
        LabelQuality(),
        LabelQuality(needed=2, of=2),
        LabelQuality(needed=2, of=3, adjudicate="seniors"),
        LabelQuality(needed=3, of=4),
        LabelQuality(second_opinion=1.0),
        LabelQuality(second_opinion=1.0, adjudicate="seniors"),
        LabelQuality(second_opinion=0.5, gold=0.5),
    ]
)


class OpinionsMachine(RuleBasedStateMachine):
    """Two stores on one file, five reviewers, and what must hold of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = Clock(1000.0)
        self.stores = [self.run(self.open()) for _ in range(2)]
        self.due = itertools.count(10**10)
        self.items: dict[str, Said] = {}
        self.held: dict[tuple[str, str], Review] = {}
        self.taken: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        gold = [GoldItem(TENANT, "pets", "dog", bytes([n]), "text/plain") for n in range(2)]
        self.run(self.stores[0].add_gold(gold))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def open(self) -> SqlStore:
        return await open_store(StoreOptions(Path(self.folder.name) / "store.db"), clock=self.clock)

    def teardown(self) -> None:
        assert self.run(self.stores[0].verify_log()) == []
        for store in self.stores:
            self.run(store.aclose())
        self.runner.close()
        self.folder.cleanup()

    @rule(quality=qualities, which=st.integers(0, 1))
    def defer(self, quality: LabelQuality, which: int) -> None:
        answer, tasks = deferred(due_s=float(next(self.due)))
        self.run(self.stores[which].commit(answer, [replace(task, quality=quality) for task in tasks]))
        self.items[answer.id] = Said(answer, quality)

    @rule(
        reviewer=st.sampled_from(REVIEWERS),
        queue=st.sampled_from(["pets", "pets", "seniors"]),
        which=st.integers(0, 1),
    )
    def take(self, reviewer: str, queue: str, which: int) -> None:
        review = self.run(self.stores[which].claim_next(TENANT, queue, reviewer, 60.0))
        if review is not None:
            self.check_seen(review, reviewer)
            assert reviewer not in [name for name, _ in self.taken[self.about(review)]]
            self.held[reviewer, review.id] = review

    @rule(reviewer=st.sampled_from(REVIEWERS), pick=st.integers(0, 99), which=st.integers(0, 1))
    def take_one(self, reviewer: str, pick: int, which: int) -> None:
        found = self.run(self.stores[which].reviews(TENANT, state=None, limit=200))
        if not found:
            return
        review = found[pick % len(found)]
        said_before = reviewer in [name for name, _ in self.taken[self.about(review)]]
        try:
            claimed = self.run(self.stores[which].claim(TENANT, review.id, reviewer, 60.0))
        except Conflict:
            return
        assert not said_before
        self.check_seen(claimed, reviewer)
        self.held[reviewer, review.id] = claimed

    @rule(pick=st.integers(0, 99), label=st.sampled_from(LABELS), which=st.integers(0, 1))
    def decide(self, pick: int, label: str, which: int) -> None:
        """Somebody decides under a claim that they once had."""
        if not self.held:
            return
        (reviewer, review_id), claim = list(self.held.items())[pick % len(self.held)]
        about = self.about(claim)
        mine = [said for name, said in self.taken[about] if name == reviewer]
        before = self.run(self.stores[which].review(TENANT, review_id))
        try:
            self.run(self.stores[which].decide(TENANT, review_id, reviewer, claim.fence, label))
        except Conflict:
            return
        if mine:
            assert mine == [label], "a repeated opinion is taken where it is the same"
            return
        assert before is not None
        assert (before.state, before.reviewer, before.fence) == (ReviewState.CLAIMED, reviewer, claim.fence)
        self.taken[about].append((reviewer, label))
        if claim.panel.purpose is Purpose.DECIDE:
            item = self.items[claim.answer_id]
            item.labels.append((reviewer, label))
            said = [given_ for _, given_ in item.labels]
            if claim.panel.adjudicating or said.count(label) >= item.quality.needed:
                assert item.decided is None, "an item is decided once"
                item.decided = label

    @rule(pick=st.integers(0, 99), which=st.integers(0, 1))
    def put_back(self, pick: int, which: int) -> None:
        if self.held:
            (reviewer, review_id), claim = list(self.held.items())[pick % len(self.held)]
            self.run(self.stores[which].release(TENANT, review_id, reviewer, claim.fence))

    @rule(seconds=st.sampled_from([5.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.run(self.stores[0].maintain())

    @staticmethod
    def about(review: Review) -> str:
        return review.panel.subject

    def check_seen(self, review: Review, reviewer: str) -> None:
        """What *reviewer*, who holds *review*, must not see."""
        if review.panel.blind:
            assert (review.task.proposals, review.label) == ((), None)
        if not review.panel.adjudicating:
            assert review.opinions == ()
        else:
            assert list(review.opinions) == [label for _, label in self.taken[self.about(review)]]
        if review.panel.purpose is not Purpose.GOLD and not review.panel.adjudicating:
            shown = as_seen_by(reviewer, review)
            others = {label for name, label in self.taken[self.about(review)] if name != reviewer}
            assert not others or shown.label is None

    @invariant()
    def every_item_is_decided_as_its_people_said(self) -> None:
        for item in self.items.values():
            found = self.run(self.stores[0].answer(TENANT, item.answer.id))
            assert found is not None
            if item.decided is None:
                assert (found.status, found.revision) == (Status.PROVISIONAL, 1)
            else:
                assert (found.status, found.items[0].label, found.revision) == (Status.FINAL, item.decided, 2)

    @invariant()
    def nobody_has_given_two_opinions_and_none_is_lost(self) -> None:
        kept: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for opinion in self.run(self.stores[1].opinions(TENANT)):
            kept[opinion.subject].append((opinion.reviewer, opinion.label))
        for subject, said in kept.items():
            assert len({reviewer for reviewer, _ in said}) == len(said)
            assert sorted(said) == sorted(self.taken[subject])

    @invariant()
    def what_may_be_looked_up_is_hidden(self) -> None:
        for review in self.run(self.stores[0].reviews(TENANT, state=None, limit=200)):
            assert review.opinions == ()
            if review.panel.second is SecondOpinion.ASKED:
                assert review.reviewer is not None
                for reviewer in REVIEWERS:
                    assert (as_seen_by(reviewer, review).label is None) == (reviewer != review.reviewer)


TestOpinions = pytest.mark.no_cover(OpinionsMachine.TestCase)
TestOpinions.settings = settings(max_examples=12, stateful_step_count=40, deadline=None)
