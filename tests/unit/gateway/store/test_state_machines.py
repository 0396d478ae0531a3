"""Reviews and idempotency keys follow a simple model, whatever is called in whatever order."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from backends.errors import Code, Conflict
from gateway.answer import Answer
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import Done, Fresh, InProgress, KeyClaim, Mismatch, RequestKey, ReviewState, Step
from tests.unit.gateway.store.samples import LABELS, TENANT, Clock, deferred

T = TypeVar("T")
reviewers = st.sampled_from(["anna", "ben"])
keys = st.sampled_from([RequestKey(TENANT, "pets", name) for name in ("one", "two")])
STEPS = {"pets": Step("leads", 40.0)}
WALL_S = 1_700_000_000.0
bodies = st.sampled_from([b"a" * 32, b"b" * 32])


@dataclass(slots=True)
class ModelReview:
    """A review as it should be."""

    id: str
    answer: Answer
    item: int
    due_s: float
    fence: int = 0
    reviewer: str | None = None
    until: float = 0.0
    label: str | None = None
    queue: str = "pets"
    priority: int = 5
    recalled: bool = False
    overdue: bool = False
    escalations: int = 0

    def state(self, now: float) -> ReviewState:
        if self.label is not None:
            return ReviewState.DECIDED
        return ReviewState.CLAIMED if self.reviewer is not None and now < self.until else ReviewState.OPEN


@dataclass(slots=True)
class ModelKey:
    """A key that is not absent."""

    body: bytes
    fence: int
    until: float
    done: Done | None = None


class StoreMachine(RuleBasedStateMachine):
    """A store on one clock, and the model of it."""

    claimed_fences = Bundle("claimed_fences")
    key_fences = Bundle("key_fences")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = Clock(1000.0)
        self.wall_clock = Clock(WALL_S)
        self.reviews: list[ModelReview] = []
        self.keys: dict[RequestKey, ModelKey] = {}
        self.due = itertools.count()
        self.store = self.run(self.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def open(self) -> SqlStore:
        options = StoreOptions(Path(self.folder.name) / "store.db")
        return await open_store(options, clock=self.clock, wall_clock=self.wall_clock)

    def teardown(self) -> None:
        assert self.run(self.store.verify_log()) == []
        self.run(self.store.aclose())
        self.runner.close()
        self.folder.cleanup()

    def ordered(self) -> list[ModelReview]:
        return sorted(self.reviews, key=lambda review: (review.priority, review.due_s, review.id))

    async def keep(self, answer: Answer, known: list[str]) -> None:
        for review in await self.store.reviews(TENANT, state=None, limit=1000):
            if review.id not in known:
                task = review.task
                self.reviews.append(ModelReview(review.id, answer, task.item, task.due_s, priority=task.priority))

    # --- reviews ---

    @rule(items=st.integers(1, 2), due_in_s=st.sampled_from([0.0, 30.0, 1000.0]), priority=st.sampled_from([1, 5]))
    def defer(self, items: int, due_in_s: float, priority: int) -> None:
        due_s = self.wall_clock.now + due_in_s + next(self.due) / 1024
        answer, tasks = deferred(items=items, due_s=due_s, priority=priority)
        self.run(self.store.commit(answer, tasks))
        self.run(self.keep(answer, [review.id for review in self.reviews]))

    @rule(target=claimed_fences, pick=st.integers(0, 99), reviewer=reviewers, lease_s=st.sampled_from([10.0, 60.0]))
    def claim(self, pick: int, reviewer: str, lease_s: float) -> tuple[str, str, int]:
        if not self.reviews:
            return ("none", reviewer, 0)
        model = self.reviews[pick % len(self.reviews)]
        state = model.state(self.clock.now)
        work = self.store.claim(TENANT, model.id, reviewer, lease_s)
        moves_on = state is ReviewState.OPEN and model.recalled
        if state is ReviewState.DECIDED or moves_on or (state is ReviewState.CLAIMED and model.reviewer != reviewer):
            with pytest.raises(Conflict):
                self.run(work)
            return (model.id, reviewer, model.fence)
        review = self.run(work)
        self.granted(model, reviewer, lease_s)
        assert (review.fence, review.lease_s) == (model.fence, model.until - self.clock.now)
        return (model.id, reviewer, model.fence)

    @rule(target=claimed_fences, reviewer=reviewers, queue=st.sampled_from(["pets", "leads"]))
    def claim_next(self, reviewer: str, queue: str) -> tuple[str, str, int]:
        now = self.clock.now
        there = [r for r in self.ordered() if r.queue == queue]
        held = [r for r in there if r.state(now) is ReviewState.CLAIMED and r.reviewer == reviewer]
        free = [r for r in there if r.state(now) is ReviewState.OPEN and not r.recalled]
        review = self.run(self.store.claim_next(TENANT, queue, reviewer, 60.0))
        expected = next(iter(held + free), None)
        assert (None if review is None else review.id) == (None if expected is None else expected.id)
        if expected is None:
            return ("none", reviewer, 0)
        self.granted(expected, reviewer, 60.0)
        return (expected.id, reviewer, expected.fence)

    def granted(self, model: ModelReview, reviewer: str, lease_s: float) -> None:
        if model.state(self.clock.now) is ReviewState.OPEN:
            model.fence += 1
        elif model.recalled:
            return
        model.reviewer, model.until = reviewer, self.clock.now + lease_s

    @rule(claim=claimed_fences, lease_s=st.sampled_from([10.0, 60.0]))
    def renew(self, claim: tuple[str, str, int], lease_s: float) -> None:
        review_id, reviewer, fence = claim
        model = self.held(*claim)
        if review_id == "none":
            return
        work = self.store.renew(TENANT, review_id, reviewer, fence, lease_s)
        if model is None:
            with pytest.raises(Conflict):
                self.run(work)
            return
        self.run(work)
        self.granted(model, reviewer, lease_s)

    @rule(target=claimed_fences, pick=st.integers(0, 99), reviewer=reviewers)
    def assign(self, pick: int, reviewer: str) -> tuple[str, str, int]:
        if not self.reviews:
            return ("none", reviewer, 0)
        model = self.reviews[pick % len(self.reviews)]
        work = self.store.assign(TENANT, model.id, reviewer, model.fence, 60.0)
        now = self.clock.now
        if model.label is not None or (model.state(now) is ReviewState.OPEN and model.recalled):
            with pytest.raises(Conflict):
                self.run(work)
            return (model.id, reviewer, model.fence)
        self.run(work)
        until = min(now + 60.0, model.until) if model.recalled else now + 60.0
        model.fence, model.reviewer, model.until = model.fence + 1, reviewer, until
        return (model.id, reviewer, model.fence)

    @rule()
    def escalate(self) -> None:
        now, now_s = self.clock.now, self.wall_clock.now
        moved = self.run(self.store.escalate(STEPS))
        expected: set[tuple[str, str, str | None]] = set()
        for model in self.reviews:
            if model.label is not None or model.overdue or model.due_s > now_s:
                continue
            step = STEPS.get(model.queue)
            if step is None:
                model.overdue, model.recalled = True, False
                expected.add((model.id, model.queue, None))
            elif model.state(now) is ReviewState.CLAIMED:
                model.recalled = True
            else:
                expected.add((model.id, model.queue, step.queue))
                model.queue, model.due_s, model.recalled = step.queue, now_s + step.due_s, False
                model.reviewer, model.escalations = None, model.escalations + 1
        assert {(one.review_id, one.queue, one.to) for one in moved} == expected
        assert len(moved) == len(expected)

    def held(self, review_id: str, reviewer: str, fence: int) -> ModelReview | None:
        for model in self.reviews:
            if (model.id, model.reviewer, model.fence) == (review_id, reviewer, fence):
                return model if model.state(self.clock.now) is ReviewState.CLAIMED else None
        return None

    @rule(claim=claimed_fences)
    def release(self, claim: tuple[str, str, int]) -> None:
        self.run(self.store.release(TENANT, *claim))
        model = self.held(*claim)
        if model is not None:
            model.reviewer = None

    @rule(claim=claimed_fences, label=st.sampled_from(LABELS))
    def decide(self, claim: tuple[str, str, int], label: str) -> None:
        review_id, reviewer, fence = claim
        if review_id == "none":
            return
        model = next(review for review in self.reviews if review.id == review_id)
        work = self.store.decide(TENANT, review_id, reviewer, fence, label)
        if self.held(*claim) is None and (model.label, model.reviewer) != (label, reviewer):
            with pytest.raises(Conflict):
                self.run(work)
            return
        answer = self.run(work)
        model.label = label
        assert answer.items[model.item].label == label
        siblings = [review for review in self.reviews if review.answer.id == answer.id]
        assert answer.revision == 1 + sum(review.label is not None for review in siblings)

    # --- keys ---

    def expected_claim(self, key: RequestKey, body: bytes) -> KeyClaim | None:
        """What a claim is answered with; None for a fresh one."""
        model = self.keys.get(key)
        if model is None:
            return None
        if model.body != body:
            return Mismatch()
        return model.done or (InProgress() if self.clock.now < model.until else None)

    @rule(target=key_fences, key=keys, body=bodies)
    def claim_key(self, key: RequestKey, body: bytes) -> tuple[RequestKey, int]:
        expected = self.expected_claim(key, body)
        claim = self.run(self.store.claim_key(key, body))
        if expected is not None:
            assert claim == expected
            return (key, -1)
        assert isinstance(claim, Fresh)
        assert key not in self.keys or self.keys[key].fence != claim.fence
        self.keys[key] = ModelKey(body, claim.fence, self.clock.now + 60.0)
        return (key, claim.fence)

    def in_progress(self, key: RequestKey, fence: int) -> ModelKey | None:
        model = self.keys.get(key)
        return model if model is not None and model.fence == fence and model.done is None else None

    @rule(held=consumes(key_fences))
    def commit_with_key(self, held: tuple[RequestKey, int]) -> None:
        answer, tasks = deferred(due_s=self.wall_clock.now + next(self.due) / 1024)
        model = self.in_progress(*held)
        if model is None:
            with pytest.raises(Conflict):
                self.run(self.store.commit(answer, tasks, *held))
            assert self.run(self.store.answer(TENANT, answer.id)) is None
            return
        self.run(self.store.commit(answer, tasks, *held))
        self.run(self.keep(answer, [review.id for review in self.reviews]))
        model.done = Done(answer.id)

    @rule(held=key_fences)
    def refuse_key(self, held: tuple[RequestKey, int]) -> None:
        self.run(self.store.finish_key(*held, Code.NOT_FOUND, "no such thing"))
        model = self.in_progress(*held)
        if model is not None:
            model.done = Done(None, Code.NOT_FOUND, "no such thing")

    @rule(held=key_fences)
    def renew_key(self, held: tuple[RequestKey, int]) -> None:
        model = self.in_progress(*held)
        assert self.run(self.store.renew_key(*held)) is (model is not None)
        if model is not None:
            model.until = self.clock.now + 60.0

    @rule(held=key_fences)
    def release_key(self, held: tuple[RequestKey, int]) -> None:
        self.run(self.store.release_key(*held))
        if self.in_progress(*held) is not None:
            del self.keys[held[0]]

    # --- time and processes ---

    @rule(seconds=st.sampled_from([1.0, 15.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wall_clock.now += seconds

    @rule()
    def maintain(self) -> None:
        self.run(self.store.maintain())

    @rule()
    def restart(self) -> None:
        self.run(self.store.aclose())
        self.store = self.run(self.open())
        for review in self.reviews:
            if review.label is None:
                review.reviewer = None
        for key in self.keys.values():
            key.until = 0.0

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        found = self.run(self.store.reviews(TENANT, state=None, limit=1000))
        now = self.clock.now
        assert [
            (r.id, r.state, r.label, r.fence, r.task.queue, r.task.due_s, r.escalations, r.overdue_s is not None)
            for r in found
        ] == [
            (m.id, m.state(now), m.label, m.fence, m.queue, m.due_s, m.escalations, m.overdue) for m in self.ordered()
        ]


TestStateMachines = StoreMachine.TestCase
TestStateMachines.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
