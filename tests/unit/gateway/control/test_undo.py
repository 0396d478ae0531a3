"""How long a decision can be taken back, and what that is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.control.session import Session
from gateway.control.undo import LastDecision, LastDecisions
from gateway.security import ANYBODY
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import Decided
from tests.unit.gateway.control.conftest import Clock
from tests.unit.gateway.store.samples import deferred

ANNA, BEN = (Session(name * 8, name, ANYBODY) for name in ("anna", "ben"))


@pytest.fixture
async def dated(tmp_path: Path, clock: Clock) -> AsyncIterator[SqlStore]:
    """A store on the test's clock alone."""
    opened = await open_store(StoreOptions(tmp_path / "store.db"), clock=clock, wall_clock=clock)
    yield opened
    await opened.aclose()


async def decided(store: SqlStore, session: Session, label: str, items: int = 1) -> list[Decided]:
    """What *session*'s reviewer has decided as *label* just now."""
    answer, tasks = deferred(tenant=session.caller.tenant, items=items)
    await store.commit(answer, tasks)
    found = []
    for _ in tasks:
        held = await store.claim_next(session.caller.tenant, "pets", session.reviewer, 60.0)
        assert held is not None
        await store.decide(held.tenant, held.id, session.reviewer, held.fence, label)
        found.append(Decided(held.id, held.fence))
    return found


async def test_a_decision_is_offered_for_a_second_less_than_the_store_takes_it_back(
    dated: SqlStore, clock: Clock
) -> None:
    made = LastDecisions(dated)
    reviews = await decided(dated, ANNA, "dog", items=2)
    await made.remember(ANNA, reviews, 10.0)

    assert await made.of(ANNA) == LastDecision(tuple(reviews), "dog", 9.0)
    assert await made.of(BEN) is None
    clock.now += 8.5
    assert await made.of(ANNA) == LastDecision(tuple(reviews), "dog", 0.5)
    clock.now += 0.5
    assert await made.of(ANNA) is None


async def test_only_the_last_one_is_and_each_session_has_its_own(dated: SqlStore) -> None:
    made = LastDecisions(dated)
    first, others, last = [
        await decided(dated, who, label) for who, label in ((ANNA, "dog"), (BEN, "owl"), (ANNA, "cat"))
    ]
    for session, reviews in ((ANNA, first), (BEN, others), (ANNA, last)):
        await made.remember(session, reviews, 10.0)

    found, other = await made.of(ANNA), await made.of(BEN)
    await made.forget(ANNA)

    assert found == LastDecision(tuple(last), "cat", 9.0)
    assert other == LastDecision(tuple(others), "owl", 9.0)
    assert await made.of(ANNA) is None
    assert await made.of(BEN) is not None


async def test_where_the_store_never_takes_one_back_nothing_is_offered(dated: SqlStore) -> None:
    made = LastDecisions(dated)
    await made.remember(ANNA, await decided(dated, ANNA, "dog"), 10.0)
    await made.remember(ANNA, await decided(dated, ANNA, "dog"), 0.0)

    assert await made.of(ANNA) is None


async def test_what_was_taken_back_elsewhere_is_not_offered(dated: SqlStore) -> None:
    made = LastDecisions(dated)
    (one,) = await decided(dated, ANNA, "dog")
    await made.remember(ANNA, [one], 10.0)
    await dated.undo(ANNA.caller.tenant, one.review_id, "anna", one.fence)

    assert await made.of(ANNA) is None
