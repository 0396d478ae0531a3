"""The items that a route is certified on are exactly those, in order, with the right labels, whatever has happened."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Coroutine
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pysqlite3.dbapi2 as sqlite3
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Connection

from backends.errors import NotFound
from gateway.answer import Answer, Status
from gateway.store import SqlStore, StoreOptions, labels, open_store
from gateway.store.answers import LOGGED
from gateway.store.contract import LabelledItem, ReviewTask
from gateway.store.options import Retention
from gateway.store.retention import Watermarks
from gateway.store.schema import SCORED
from router.contract import Reason
from tests.unit.gateway.store.conformance import DAY_S, decide_all
from tests.unit.gateway.store.samples import LABELS, TENANT, Clock, accepted, deferred, observed, uncertified

T = TypeVar("T")
RETENTION_S = 7 * DAY_S


def test_the_index_and_the_router_mean_the_same_reasons() -> None:
    assert f"reason IN ('{Reason.NO_CERTIFICATE}', '{Reason.OBSERVED}')" == SCORED


async def test_no_item_is_searched_for(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:

        def plan(connection: Connection) -> list[str]:
            statement = labels.SCORED_ITEMS.where(labels.ITEM.route == "pets")
            text = str(statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
            return [step.detail for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]

        steps = await store._read(plan)
    assert [step for step in steps if not step.startswith("CORRELATED")] == [
        "SEARCH decision_log USING INDEX decision_log_scored (route=?)",
        *[f"SEARCH ruling USING INDEX decision_log_{kind} (answer_id=? AND item=?)" for kind in ("erased", "ruled")],
        "USE TEMP B-TREE FOR ORDER BY",
        *["SEARCH feedback USING INDEX sqlite_autoindex_feedback_1 (answer_id=? AND item=?)"] * 2,
    ]


async def test_items_whose_log_rows_were_pruned_are_gone_and_the_others_keep_their_labels(
    options: StoreOptions, wall_clock: Clock
) -> None:
    async with aclosing(await open_store(replace(options, retention_s=DAY_S), wall_clock=wall_clock)) as store:
        for age_days in (3.0, 0.0):
            await store.commit(*uncertified(items=2, at_s=wall_clock.now - age_days * DAY_S))
            await decide_all(store)
        before = await store.labelled(None, "pets")
        # The oldest decisions are younger than their items, so that an item goes before its label.
        store._watermarks = Watermarks.of(limit_bytes=1)
        await store.maintain()
        assert await store.labelled(None, "pets") == before[2:]
        assert [item.label for item in before] == [LABELS[0]] * 4
        assert await store.verify_log() == []


async def test_a_person_s_label_whose_log_row_was_pruned_is_found_in_feedback(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as one, aclosing(await open_store(options)) as other:
        await one.commit(*uncertified())
        await decide_all(other)
        before = await one.labelled(None, "pets")
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as connection:
            assert connection.execute("DELETE FROM decision_log WHERE chain = 1").rowcount == 1
        # Who said so went with the row.
        assert await one.labelled(None, "pets") == [replace(item, by_person=False) for item in before]
        assert before[0].label == LABELS[0]


async def test_feedback_on_an_item_that_the_log_has_forgotten_is_refused(
    options: StoreOptions, wall_clock: Clock
) -> None:
    options = replace(options, retention_s=DAY_S, kept=Retention(decisions_s=30 * DAY_S))
    async with aclosing(await open_store(options, wall_clock=wall_clock)) as store:
        stands = observed(at_s=wall_clock.now)
        await store.record(stands)
        for days in (29.0, 2.0):
            wall_clock.now += days * DAY_S
            await store.maintain()
            if days == 29.0:
                await store.add_feedback(TENANT, stands.id, 0, "dog", "caller")
                assert [item.label for item in await store.labelled(TENANT, "pets")] == ["dog"]
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.add_feedback(TENANT, stands.id, 0, "owl", "caller")


async def test_late_feedback_searches_for_its_item_by_an_index(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:

        def plan(connection: Connection) -> list[str]:
            about = {"answer": "a", "item": 0, "tenant": "t"}
            texts = [
                str(one.params(about).compile(connection, compile_kwargs={"literal_binds": True})) for one in LOGGED
            ]
            return [step.detail for one in texts for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {one}")]

        assert await store._read(plan) == [
            f"SEARCH decision_log USING INDEX decision_log_{kind} (answer_id=? AND item=?)"
            for kind in ("observed", "handed_over")
        ]


@dataclass(slots=True)
class ModelItem:
    """An item that a route can be certified on, and what was said of it."""

    answer: Answer
    item: int
    place: tuple[float, int, int]
    decision: str | None = None
    feedback: dict[str, str] = field(default_factory=dict)

    def labelled(self) -> LabelledItem:
        said = set(self.feedback.values())
        label = self.decision or (said.pop() if len(said) == 1 else None)
        disputed = self.decision is None and len(set(self.feedback.values())) > 1
        answer, trail = self.answer, self.answer.items[self.item].trail
        return LabelledItem(
            answer.id, self.item, answer.created_s, answer.tenant, trail, label, disputed, self.decision is not None
        )


class LabelsMachine(RuleBasedStateMachine):
    """Two stores on one file, and what `labelled` should find in it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.wall_clock = Clock(1_700_000_000.0)
        self.stores = [self.run(self.open()) for _ in range(2)]
        self.answers: list[Answer] = []
        self.models: list[ModelItem] = []
        self.rows = itertools.count()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def open(self) -> SqlStore:
        options = StoreOptions(Path(self.folder.name) / "store.db", retention_s=RETENTION_S)
        return await open_store(options, wall_clock=self.wall_clock)

    def teardown(self) -> None:
        assert self.run(self.stores[0].verify_log()) == []
        for store in self.stores:
            self.run(store.aclose())
        self.runner.close()
        self.folder.cleanup()

    def keep(self, chain: int, answer: Answer, tasks: list[ReviewTask]) -> None:
        self.run(self.stores[chain].commit(answer, tasks))
        self.answers.append(answer)
        for i, item in enumerate(answer.items):
            if item.reason in (Reason.NO_CERTIFICATE, Reason.OBSERVED):
                self.models.append(ModelItem(answer, i, (answer.created_s, chain, next(self.rows))))

    def model(self, answer: Answer, item: int) -> ModelItem | None:
        return next((m for m in self.models if (m.answer.id, m.item) == (answer.id, item)), None)

    chains = st.sampled_from([0, 1])
    routes = st.sampled_from(["pets", "pets", "digits"])
    tenants = st.sampled_from([TENANT, TENANT, "other"])
    ages_s = st.sampled_from([0.0, 0.0, 1.0, 2.0])
    sizes = st.integers(1, 3)
    picks = st.integers(0, 99)

    @rule(chain=chains, route=routes, tenant=tenants, age_s=ages_s, items=sizes, other=st.booleans())
    def defer(self, chain: int, route: str, tenant: str, age_s: float, items: int, other: bool) -> None:
        answer, tasks = uncertified(tenant=tenant, items=items, at_s=self.wall_clock.now - age_s)
        if other:  # one item went past a stage
            unfit = deferred()[0].items[0]
            answer = replace(answer, items=(unfit, *answer.items[1:]))
        self.keep(chain, replace(answer, route=route), tasks)

    @rule(chain=chains, route=routes, tenant=tenants, age_s=ages_s, items=sizes)
    def observe(self, chain: int, route: str, tenant: str, age_s: float, items: int) -> None:
        answer = observed(tenant=tenant, items=items, at_s=self.wall_clock.now - age_s)
        self.keep(chain, replace(answer, route=route), [])

    @rule(chain=chains, tenant=tenants, items=sizes)
    def accept(self, chain: int, tenant: str, items: int) -> None:
        self.keep(chain, accepted(tenant=tenant, items=items), [])

    @rule(chain=chains, tenant=tenants, pick=picks, label=st.sampled_from(LABELS))
    def decide(self, chain: int, tenant: str, pick: int, label: str) -> None:
        store = self.stores[chain]
        reviews = self.run(store.reviews(tenant))
        if not reviews:
            return
        review = reviews[pick % len(reviews)]
        claimed = self.run(store.claim(tenant, review.id, "anna", 60.0))
        answer = self.run(store.decide(tenant, review.id, "anna", claimed.fence, label))
        model = self.model(answer, review.task.item)
        if model is not None:
            model.decision = label

    @rule(
        chain=chains, pick=picks, item=picks, label=st.sampled_from(LABELS[:2]), source=st.sampled_from(["one", "two"])
    )
    def say(self, chain: int, pick: int, item: int, label: str, source: str) -> None:
        if not self.answers:
            return
        # Mostly about few items, so that several have something to say about the same.
        answer = self.answers[-1 - pick % min(len(self.answers), 99 if pick > 80 else 2)]
        item %= len(answer.items)
        work = self.stores[chain].add_feedback(answer.tenant, answer.id, item, label, source)
        model = self.model(answer, item)
        is_kept = self.run(self.stores[chain].answer(answer.tenant, answer.id)) is not None
        if not is_kept and model is None and answer.items[item].status is Status.FINAL:
            with pytest.raises(NotFound):
                self.run(work)
            return
        self.run(work)
        if model is not None:
            model.feedback[source] = label

    @rule(chain=chains, days=st.sampled_from([1.0, 8.0]))
    def purge(self, chain: int, days: float) -> None:
        self.wall_clock.now += days * DAY_S
        self.run(self.stores[chain].maintain())

    @invariant()
    def exactly_the_items_that_every_stage_scored_are_listed(self) -> None:
        ordered = sorted(self.models, key=lambda model: model.place)
        for route, tenant in itertools.product(("pets", "digits"), (None, TENANT, "other")):
            assert self.run(self.stores[0].labelled(tenant, route)) == [
                model.labelled()
                for model in ordered
                if model.answer.route == route and tenant in (None, model.answer.tenant)
            ]


TestLabels = pytest.mark.no_cover(LabelsMachine.TestCase)
TestLabels.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
