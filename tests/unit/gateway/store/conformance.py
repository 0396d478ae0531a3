"""What every store must do, whatever database is behind it.

Each check takes an `Opener`, which opens one and the same store as often as it is called, on the clocks it holds; so a
second opening finds what the first kept. `CHECKS` lists them; run all of them over every kind of store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from backends.contract import Batch, Datatype, Tensor
from backends.errors import Code, Conflict, InvalidInput, NotFound, PermissionDenied, Unavailable
from gateway.answer import Answer, AnswerId, StageRecord, Status
from gateway.people.scope import Scope
from gateway.store.answers import KEPT_BYTES
from gateway.store.contract import (
    KEY_LEASE_S,
    CanaryHalt,
    Claim,
    Decided,
    Done,
    Erasure,
    Escalated,
    Fresh,
    InProgress,
    KeyClaim,
    LabelledItem,
    Message,
    Mismatch,
    Notice,
    NoticeKind,
    NoticeRule,
    Place,
    Proposal,
    QueueDepth,
    QueueWork,
    RequestKey,
    Review,
    ReviewState,
    ReviewTask,
    Statement,
    Step,
    Store,
    Taken,
    UndoOffer,
)
from gateway.store.store import SqlStore
from router.contract import Decision, Reason
from tests.unit.gateway.store.samples import (
    LABELS,
    TENANT,
    Clock,
    accepted,
    assert_same_answer,
    certificate,
    deferred,
    every_datatype,
    observed,
    seen,
    uncertified,
)

KEY = RequestKey(TENANT, "pets", "key-1")
BODY, OTHER_BODY = b"b" * 32, b"o" * 32
LEASE_S = 60.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens the store under test; retention is 7 days."""

    open: Callable[[Clock, Clock], Awaitable[Store]]
    clock: Clock = field(default_factory=lambda: Clock(1000.0))
    wall_clock: Clock = field(default_factory=lambda: Clock(1_700_000_000.0))

    async def __call__(self) -> Store:
        return await self.open(self.clock, self.wall_clock)


Check: TypeAlias = Callable[[Opener], Awaitable[None]]


async def answers_come_back_as_they_were(opener: Opener) -> None:
    final = accepted(items=2, outputs=every_datatype())
    open_, tasks = deferred(items=3)
    async with aclosing(await opener()) as store:
        await store.commit(final, [])
        await store.commit(open_, tasks)
        assert_same_answer(await store.answer(TENANT, final.id), final)
        assert_same_answer(await store.answer(TENANT, open_.id), open_)
    async with aclosing(await opener()) as store:
        assert_same_answer(await store.answer(TENANT, open_.id), open_)


async def large_outputs_are_kept_where_somebody_may_need_them(opener: Opener) -> None:
    large = {"y": Tensor.of(np.ones((1, KEPT_BYTES), np.uint8))}
    final, keyed = accepted(outputs=large), accepted(outputs=large)
    waiting, tasks = deferred()
    waiting = replace(waiting, items=tuple(replace(item, outputs=large) for item in waiting.items))
    async with aclosing(await opener()) as store:
        await store.commit(final, [])
        await store.commit(waiting, tasks)
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(keyed, [], KEY, fresh.fence)
    async with aclosing(await opener()) as store:
        without = replace(final, items=tuple(replace(item, outputs=None) for item in final.items))
        assert_same_answer(await store.answer(TENANT, final.id), without)
        assert_same_answer(await store.answer(TENANT, waiting.id), waiting)
        assert_same_answer(await store.answer(TENANT, keyed.id), keyed)
        assert await store.verify_log() == []


async def what_a_route_promised_comes_back_exactly(opener: Opener) -> None:
    promises = [(None, False), (0.05, True), (1 / 3, False), (5e-324, True)]
    answers = [replace(accepted(), max_error=max_error, certified=certified) for max_error, certified in promises]
    async with aclosing(await opener()) as store:
        for answer in answers:
            await store.commit(answer, [])
        found = [await store.answer(TENANT, answer.id) for answer in answers]
        assert [(a.max_error, a.certified) for a in found if a is not None] == promises
        assert all(a is not None and isinstance(a.certified, bool) for a in found)


async def a_recorded_answer_is_seen_at_once_and_after_closing(opener: Opener) -> None:
    answers = [accepted(outputs=every_datatype()) for _ in range(300)]
    async with aclosing(await opener()) as store:
        for answer in answers:
            await store.record(answer)
        assert await store.answer(TENANT, answers[-1].id) is answers[-1]
        assert await store.answer("other", answers[-1].id) is None
    async with aclosing(await opener()) as store:
        for answer in answers:
            assert_same_answer(await store.answer(TENANT, answer.id), answer)
        assert await store.verify_log() == []


async def a_tenant_sees_nothing_of_another(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review = await first_review(store)
        assert await store.answer("other", answer.id) is None
        assert await store.wait("other", answer.id, 10.0) is None
        assert await store.review("other", review.id) is None
        assert await store.reviews("other") == []
        assert await store.claim_next("other", "pets", "eve", LEASE_S) is None
        with pytest.raises(NotFound, match=f"review '{review.id}' is unknown, or no longer kept"):
            await store.claim("other", review.id, "eve", LEASE_S)
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.decide("other", review.id, "eve", 1, "cat")
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.add_feedback("other", answer.id, 0, "cat", "caller")
        assert await store.review(TENANT, review.id) is not None


async def committing_again_changes_nothing(opener: Opener) -> None:
    answer, tasks = deferred(items=2)
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        for _ in range(2):
            await store.commit(answer, tasks, KEY, claim.fence)
        await asyncio.gather(*(store.commit(answer, tasks) for _ in range(5)))
        assert len(await store.reviews(TENANT)) == 2
        assert await store.verify_log() == []


async def a_key_goes_from_absent_over_in_progress_to_done(opener: Opener) -> None:
    answer = accepted()
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        assert await store.claim_key(KEY, BODY) == InProgress()
        assert await store.claim_key(KEY, OTHER_BODY) == Mismatch()
        await store.commit(answer, [], KEY, claim.fence)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        assert await store.claim_key(KEY, OTHER_BODY) == Mismatch()
        for other in (RequestKey("other", "pets", "key-1"), RequestKey(TENANT, "digits", "key-1")):
            assert isinstance(await store.claim_key(other, OTHER_BODY), Fresh)


async def a_refusal_is_replayed(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        await store.finish_key(KEY, claim.fence, Code.INVALID_ARGUMENT, "no input named 'x'")
        await store.finish_key(KEY, claim.fence, Code.NOT_FOUND, "too late")
    async with aclosing(await opener()) as store:
        assert await store.claim_key(KEY, BODY) == Done(None, Code.INVALID_ARGUMENT, "no input named 'x'")


async def a_released_key_is_forgotten_and_its_fence_stays_stale(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        first = await store.claim_key(KEY, BODY)
        assert isinstance(first, Fresh)
        await store.release_key(KEY, first.fence)
        second = await store.claim_key(KEY, OTHER_BODY)
        assert isinstance(second, Fresh)
        await store.release_key(KEY, first.fence)
        await store.finish_key(KEY, first.fence, Code.NOT_FOUND, "stale")
        assert await store.claim_key(KEY, OTHER_BODY) == InProgress()


async def one_of_a_hundred_concurrent_requests_gets_the_key(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        claims = await asyncio.gather(*(store.claim_key(KEY, BODY) for _ in range(100)))
        assert sum(isinstance(claim, Fresh) for claim in claims) == 1
        assert sum(claim == InProgress() for claim in claims) == 99


async def a_key_whose_lease_ran_out_is_claimed_anew(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        first = await store.claim_key(KEY, BODY)
        opener.clock.now += 59.9
        assert await store.claim_key(KEY, BODY) == InProgress()
        opener.clock.now += 0.2
        assert await store.claim_key(KEY, OTHER_BODY) == Mismatch()
        second = await store.claim_key(KEY, BODY)
        assert isinstance(first, Fresh)
        assert isinstance(second, Fresh)
        assert first.fence != second.fence
        with pytest.raises(Conflict, match="idempotency key 'key-1' is no longer held by this request"):
            await store.commit(answer, tasks, KEY, first.fence)
        assert await store.answer(TENANT, answer.id) is None
        assert await store.reviews(TENANT) == []
        await store.commit(answer, tasks, KEY, second.fence)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)


async def a_renewed_key_is_held_past_its_first_lease(opener: Opener) -> None:
    answer = accepted()
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        for _ in range(3):
            opener.clock.now += KEY_LEASE_S - 0.1
            assert await store.renew_key(KEY, claim.fence)
        opener.clock.now += KEY_LEASE_S - 0.1
        assert await store.claim_key(KEY, BODY) == InProgress()
        assert await store.claim_key(KEY, OTHER_BODY) == Mismatch()
        await store.commit(answer, [], KEY, claim.fence)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        assert not await store.renew_key(KEY, claim.fence)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)


async def a_key_that_is_no_longer_held_is_not_renewed(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        assert not await store.renew_key(KEY, 1)
        first = await store.claim_key(KEY, BODY)
        assert isinstance(first, Fresh)
        opener.clock.now += KEY_LEASE_S
        second = await store.claim_key(KEY, BODY)
        assert isinstance(second, Fresh)
        opener.clock.now += KEY_LEASE_S - 1.0
        assert not await store.renew_key(KEY, first.fence)
        opener.clock.now += 1.0
        # The stale holder's try did not extend the lease of the one that holds it.
        third = await store.claim_key(KEY, BODY)
        assert isinstance(third, Fresh)
        await store.release_key(KEY, third.fence)
        assert not await store.renew_key(KEY, third.fence)
        assert isinstance(await store.claim_key(KEY, OTHER_BODY), Fresh)


async def a_lease_that_ran_out_can_be_renewed_until_somebody_takes_the_key(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        opener.clock.now += 2 * KEY_LEASE_S
        assert await store.renew_key(KEY, claim.fence)
        assert await store.claim_key(KEY, BODY) == InProgress()


async def keys_renewed_together_share_transactions_and_fail_alone(opener: Opener) -> None:
    keys = [RequestKey(TENANT, "pets", f"key-{i}") for i in range(100)]
    async with aclosing(await opener()) as store:
        claims = await asyncio.gather(*(store.claim_key(key, BODY) for key in keys))
        fences = [claim.fence for claim in claims if isinstance(claim, Fresh)]
        before = store.statistics().commits
        held = await asyncio.gather(
            *(store.renew_key(key, fence + i % 2) for i, (key, fence) in enumerate(zip(keys, fences, strict=True)))
        )
        assert held == [True, False] * 50
        assert store.statistics().commits - before <= 10


async def a_stale_commit_fails_alone(opener: Opener) -> None:
    good = [deferred() for _ in range(20)]
    async with aclosing(await opener()) as store:
        commits = [store.commit(answer, tasks) for answer, tasks in good]
        commits.insert(7, store.commit(*deferred(), RequestKey(TENANT, "pets", "never claimed"), 1))
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert [i for i, outcome in enumerate(outcomes) if outcome is not None] == [7]
        assert isinstance(outcomes[7], Conflict)
        assert {review.answer_id for review in await store.reviews(TENANT)} == {answer.id for answer, _ in good}
        assert await store.verify_log() == []


async def a_done_key_is_kept_until_its_answer_is_final_and_a_day_more(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        await store.commit(answer, tasks, KEY, claim.fence)
        opener.wall_clock.now += 30 * DAY_S
        await store.maintain()
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        await decide_all(store)
        opener.wall_clock.now += DAY_S - 1
        await store.maintain()
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        opener.wall_clock.now += 2
        assert isinstance(await store.claim_key(KEY, OTHER_BODY), Fresh)


async def committing_again_keeps_a_key_no_longer(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(answer, tasks, KEY, fresh.fence)
        await store.commit(answer, tasks, KEY, fresh.fence)
        opener.wall_clock.now += 100 * DAY_S
        await store.maintain()
        assert await store.claim_key(KEY, BODY) == Done(answer.id)  # while its answer is open
        await decide_all(store)
        opener.wall_clock.now += DAY_S - 1.0
        await store.commit(answer, tasks, KEY, fresh.fence)
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        opener.wall_clock.now += 2.0
        await store.maintain()
        with pytest.raises(Conflict, match="is no longer held by this request"):
            await store.commit(answer, tasks, KEY, fresh.fence)
        assert isinstance(await store.claim_key(KEY, BODY), Fresh)
        opener.wall_clock.now += 7 * DAY_S
        assert (await store.maintain()).answers_purged == 1


async def reviews_are_listed_by_due_time_in_pages(opener: Opener) -> None:
    due = [5.0, 1.0, 3.0, 3.0, 2.0, 4.0]
    async with aclosing(await opener()) as store:
        for due_s in due:
            await store.commit(*deferred(due_s=due_s, queue="pets" if due_s != 2.0 else "other"))
        everything = await store.reviews(TENANT, limit=100)
        assert [review.task.due_s for review in everything] == sorted(due)
        paged: list[Review] = []
        while page := await store.reviews(TENANT, after=paged[-1].id if paged else None, limit=2):
            paged += page
        assert paged == list(everything)
        assert [r.task.due_s for r in await store.reviews(TENANT, "pets")] == [1.0, 3.0, 3.0, 4.0, 5.0]
        with pytest.raises(NotFound, match="review 'nonsense' is unknown, or no longer kept; list from the start"):
            await store.reviews(TENANT, after="nonsense")


async def a_review_shows_what_was_asked(opener: Opener) -> None:
    answer, tasks = deferred(items=2)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        reviews = sorted(await store.reviews(TENANT), key=lambda review: review.task.item)
        assert [review.task for review in reviews] == [replace(task, payload=b"") for task in tasks]
        for listed, task in zip(reviews, tasks, strict=True):
            review = await store.review(TENANT, listed.id)
            assert review == replace(listed, task=task)
            assert (review.tenant, review.answer_id, review.route) == (TENANT, answer.id, "pets")
            assert (review.state, review.fence, review.reviewer, review.lease_s) == (ReviewState.OPEN, 0, None, None)
            assert (review.label, review.created_s) == (None, opener.wall_clock.now)


async def states_filter_the_list(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for due_s in (1.0, 2.0, 3.0):
            await store.commit(*deferred(due_s=due_s))
        first, second, third = await store.reviews(TENANT)
        claimed = await store.claim(TENANT, first.id, "anna", LEASE_S)
        await store.decide(TENANT, first.id, "anna", claimed.fence, "dog")
        await store.claim(TENANT, second.id, "anna", LEASE_S)
        for state, expected in (
            (ReviewState.OPEN, [third]),
            (ReviewState.CLAIMED, [second]),
            (ReviewState.DECIDED, [first]),
            (None, [first, second, third]),
        ):
            assert [r.id for r in await store.reviews(TENANT, state=state)] == [r.id for r in expected], state


async def a_decision_makes_the_item_final(opener: Opener) -> None:
    answer, tasks = deferred(items=2)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        # One that overrules the model, whose outputs go; one that confirms it, whose outputs stay.
        for item, label, status in ((1, "owl", Status.PROVISIONAL), (0, "cat", Status.FINAL)):
            review = next(r for r in await store.reviews(TENANT) if r.task.item == item)
            claimed = await store.claim(TENANT, review.id, "anna", LEASE_S)
            answer = answer.decided(item, label, "anna")
            assert_same_answer(await store.decide(TENANT, review.id, "anna", claimed.fence, label), answer)
            assert_same_answer(await store.answer(TENANT, answer.id), answer)
            assert answer.status is status
            decided = await store.review(TENANT, review.id)
            assert decided is not None
            assert (decided.state, decided.reviewer, decided.label) == (ReviewState.DECIDED, "anna", label)
        assert [(item.outputs is None, item.confidence) for item in answer.items] == [(False, 0.4), (True, None)]
        assert await store.verify_log() == []


async def a_wrong_label_is_refused_and_the_claim_stays(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert review is not None
        with pytest.raises(
            InvalidInput, match=r"label 'cow' is not a choice of this review; one of \['cat', 'dog', 'owl'\] is"
        ):
            await store.decide(TENANT, review.id, "anna", review.fence, "cow")
        for unstorable in ("a\0b", "\ud800"):
            with pytest.raises(InvalidInput, match="the label holds a NUL or half a surrogate pair; send text"):
                await store.decide(TENANT, review.id, "anna", review.fence, unstorable)
        assert (await store.decide(TENANT, review.id, "anna", review.fence, "cat")).status is Status.FINAL


async def two_reviewers_make_one_decision(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review = await first_review(store)
        claims = await asyncio.gather(
            *(store.claim(TENANT, review.id, name, LEASE_S) for name in ("anna", "ben")), return_exceptions=True
        )
        assert sum(isinstance(claim, Conflict) for claim in claims) == 1
        holder = "anna" if isinstance(claims[0], Review) else "ben"
        loser = "ben" if holder == "anna" else "anna"
        rulings = await asyncio.gather(
            *(store.decide(TENANT, review.id, name, 1, "cat") for name in (holder, loser)), return_exceptions=True
        )
        assert isinstance(rulings[0], Answer)
        assert rulings[0].items[0].decided_by == f"person:{holder}"
        assert isinstance(rulings[1], Conflict)


async def repeating_a_decision_is_harmless_and_changing_it_is_not_possible(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert review is not None
        first = await store.decide(TENANT, review.id, "anna", review.fence, "cat")
        again = await store.decide(TENANT, review.id, "anna", review.fence, "cat")
        assert_same_answer(again, first)
        for reviewer, label in (("anna", "dog"), ("ben", "cat")):
            with pytest.raises(Conflict, match=f"review {review.id} is decided"):
                await store.decide(TENANT, review.id, reviewer, review.fence, label)
        with pytest.raises(Conflict, match=f"review {review.id} is decided"):
            await store.claim(TENANT, review.id, "anna", LEASE_S)


async def a_lease_that_ran_out_is_over_before_and_after_upkeep(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for upkeep in (False, True):
            await store.commit(*deferred())
            held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
            assert held is not None
            assert held.lease_s == LEASE_S
            opener.clock.now += LEASE_S
            if upkeep:
                assert (await store.maintain()).leases_reopened == 1
            reopened = await first_review(store)
            assert (reopened.id, reopened.state, reopened.reviewer, reopened.lease_s) == (
                held.id,
                ReviewState.OPEN,
                None,
                None,
            )
            with pytest.raises(Conflict, match=f"review {held.id} is not held under this claim any more"):
                await store.decide(TENANT, held.id, "anna", held.fence, "cat")
            taken = await store.claim(TENANT, held.id, "ben", LEASE_S)
            assert taken.fence > held.fence
            assert (await store.decide(TENANT, held.id, "ben", taken.fence, "cat")).status is Status.FINAL


async def renewing_a_claim_extends_it_under_its_fence(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        opener.clock.now += 30.0
        renewed = await store.claim(TENANT, held.id, "anna", LEASE_S)
        opener.clock.now += 45.0
        assert (renewed.fence, renewed.lease_s) == (held.fence, LEASE_S)
        assert (await store.decide(TENANT, held.id, "anna", held.fence, "cat")).status is Status.FINAL


async def a_released_review_is_open_and_a_stale_release_changes_nothing(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        for reviewer, fence in (("ben", held.fence), ("anna", held.fence - 1)):
            await store.release(TENANT, held.id, reviewer, fence)
            still = await store.review(TENANT, held.id)
            assert still is not None
            assert still.state is ReviewState.CLAIMED
        await store.release(TENANT, held.id, "anna", held.fence)
        taken = await store.claim(TENANT, held.id, "ben", LEASE_S)
        assert taken.fence > held.fence
        with pytest.raises(Conflict, match="is not held under this claim any more; claim it again"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")


async def claim_next_gives_the_held_review_else_the_open_one_due_first(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for due_s in (3.0, 1.0, 2.0):
            await store.commit(*deferred(due_s=due_s))
        first = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        second = await store.claim_next(TENANT, "pets", "ben", LEASE_S)
        again = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert first is not None
        assert second is not None
        assert again is not None
        assert (first.task.due_s, second.task.due_s) == (1.0, 2.0)
        assert again == first
        assert await store.claim_next(TENANT, "empty", "anna", LEASE_S) is None


async def priorities_come_before_due_times(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for due_s, priority in ((1.0, 5), (2.0, 1), (3.0, 9), (4.0, 1), (0.5, 9)):
            await store.commit(*deferred(due_s=due_s, priority=priority))
        order = [(1, 2.0), (1, 4.0), (5, 1.0), (9, 0.5), (9, 3.0)]
        for state in (ReviewState.OPEN, None):
            listed = await store.reviews(TENANT, state=state)
            assert [(r.task.priority, r.task.due_s) for r in listed] == order
        paged: list[Review] = []
        while page := await store.reviews(TENANT, "pets", after=paged[-1].id if paged else None, limit=2):
            paged += page
        assert paged == list(await store.reviews(TENANT))
        claims = [await store.claim_next(TENANT, "pets", name, LEASE_S) for name in "abcdef"]
        assert [(c.task.priority, c.task.due_s) for c in claims if c is not None] == order


async def a_scope_hides_what_its_owner_may_not_take(opener: Opener) -> None:
    german, both = ("german",), ("german", "legal")
    async with aclosing(await opener()) as store:
        for due_s, queue, skills in ((1.0, "pets", both), (2.0, "pets", german), (3.0, "pets", ()), (4.0, "law", ())):
            await store.commit(*deferred(due_s=due_s, queue=queue, skills=skills))
        legal, medium, plain, law = await store.reviews(TENANT)
        assert [legal.task.skills, medium.task.skills, plain.task.skills] == [both, german, ()]

        async def seen(scope: Scope) -> list[str]:
            return [review.id for review in await store.reviews(TENANT, scope=scope)]

        assert await seen(Scope()) == [plain.id, law.id]
        assert await seen(Scope(skills=frozenset(german))) == [medium.id, plain.id, law.id]
        assert await seen(Scope(queues=frozenset({"law"}), skills=None)) == [law.id]
        assert await seen(Scope(queues=frozenset(), skills=None)) == []
        assert await seen(Scope(barred=frozenset({"pets"}), skills=None)) == [law.id]
        one_page = await store.reviews(TENANT, limit=1, scope=Scope())
        assert [r.id for r in await store.reviews(TENANT, after=one_page[0].id, scope=Scope())] == [law.id]
        for scope, review, why in (
            (Scope(skills=frozenset(german)), legal, "needs the skill 'legal', which you do not have"),
            (Scope(queues=frozenset({"law"})), plain, "reviews in queue 'pets' are for others"),
            (Scope(barred=frozenset({"law"})), law, "reviews in queue 'law' are for others"),
        ):
            with pytest.raises(PermissionDenied, match=why):
                await store.claim(TENANT, review.id, "anna", LEASE_S, scope)
        anna = await store.claim_next(TENANT, "pets", "anna", LEASE_S, Scope(skills=frozenset(german)))
        ben = await store.claim_next(TENANT, "pets", "ben", LEASE_S, Scope())
        cleo = await store.claim_next(TENANT, "pets", "cleo", LEASE_S, Scope())
        assert anna is not None
        assert ben is not None
        assert (anna.id, ben.id, cleo) == (medium.id, plain.id, None)
        dora = await store.claim_next(TENANT, "pets", "dora", LEASE_S, Scope(skills=frozenset(both)))
        assert dora is not None
        assert dora.id == legal.id


async def a_renewed_lease_lasts_longer_and_only_its_holder_renews_it(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        for _ in range(3):
            opener.clock.now += LEASE_S - 1.0
            renewed = await store.renew(TENANT, held.id, "anna", held.fence, LEASE_S)
            assert (renewed.fence, renewed.lease_s, renewed.reviewer) == (held.fence, LEASE_S, "anna")
        for reviewer, fence in (("ben", held.fence), ("anna", held.fence - 1), ("anna", held.fence + 1)):
            with pytest.raises(Conflict, match="is not held under this claim any more; claim it again"):
                await store.renew(TENANT, held.id, reviewer, fence, LEASE_S)
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.renew("other", held.id, "anna", held.fence, LEASE_S)
        opener.clock.now += LEASE_S
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.renew(TENANT, held.id, "anna", held.fence, LEASE_S)
        taken = await store.claim(TENANT, held.id, "ben", LEASE_S)
        await store.decide(TENANT, held.id, "ben", taken.fence, "cat")
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.renew(TENANT, held.id, "ben", taken.fence, LEASE_S)


async def a_review_is_given_to_another_under_a_new_fence(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        open_ = await first_review(store)
        anna = await store.assign(TENANT, open_.id, "anna", open_.fence, LEASE_S)
        ben = await store.assign(TENANT, open_.id, "ben", anna.fence, LEASE_S)
        assert (anna.reviewer, anna.fence, ben.reviewer, ben.fence) == ("anna", 1, "ben", 2)
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, open_.id, "anna", anna.fence, "cat")
        for fence in (open_.fence, anna.fence, ben.fence + 1):
            with pytest.raises(Conflict, match=f"was claimed since fence {fence}; read it again"):
                await store.assign(TENANT, open_.id, "cleo", fence, LEASE_S)
        await store.decide(TENANT, open_.id, "ben", ben.fence, "cat")
        with pytest.raises(Conflict, match="is decided"):
            await store.assign(TENANT, open_.id, "cleo", ben.fence, LEASE_S)


STEPS = {"pets": Step("leads", 600.0), "leads": Step("boss", 60.0)}


async def what_is_due_and_undecided_moves_up_its_chain_and_is_never_decided_by_that(opener: Opener) -> None:
    answer, tasks = deferred(due_s=opener.wall_clock.now + 10.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review = await first_review(store)
        assert await store.escalate(STEPS) == []
        for queue, to, due_in_s, gets_s in (("pets", "leads", 10.0, 600.0), ("leads", "boss", 600.0, 60.0)):
            opener.wall_clock.now += due_in_s
            due_s = opener.wall_clock.now + gets_s
            assert await store.escalate(STEPS) == [Escalated(review.id, TENANT, "pets", queue, to, due_s)]
            assert await store.escalate(STEPS) == []
            moved = await first_review(store)
            assert (moved.id, moved.task.queue, moved.task.due_s, moved.overdue_s) == (review.id, to, due_s, None)
            assert await store.claim_next(TENANT, queue, "anna", LEASE_S) is None
        assert (moved.state, moved.escalations, moved.fence) == (ReviewState.OPEN, 2, 0)
        opener.wall_clock.now += 60.0
        assert [(e.queue, e.to) for e in await store.escalate(STEPS)] == [("boss", None)]
        assert await store.escalate(STEPS) == []
        stays = await first_review(store)
        assert (stays.task.queue, stays.task.due_s, stays.overdue_s) == ("boss", due_s, opener.wall_clock.now)
        assert_same_answer(await store.answer(TENANT, answer.id), answer)
        claimed = await store.claim_next(TENANT, "boss", "anna", LEASE_S)
        assert claimed is not None
        assert (await store.decide(TENANT, review.id, "anna", claimed.fence, "cat")).status is Status.FINAL
        assert await store.escalate(STEPS) == []
        assert await store.verify_log() == []
    async with aclosing(await opener()) as store:
        assert await store.escalate(STEPS) == []


async def who_holds_a_review_that_is_due_keeps_it_for_one_lease(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for _ in range(2):
            await store.commit(*deferred(due_s=opener.wall_clock.now + 10.0))
        kept = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        lost = await store.claim_next(TENANT, "pets", "ben", LEASE_S)
        assert kept is not None
        assert lost is not None
        opener.wall_clock.now += 20.0
        opener.clock.now += 20.0
        assert await store.escalate(STEPS) == []
        for hold in (
            store.renew(TENANT, lost.id, "ben", lost.fence, LEASE_S),
            store.claim(TENANT, lost.id, "ben", LEASE_S),
            store.claim_next(TENANT, "pets", "ben", LEASE_S),
        ):
            held = await hold
            assert held is not None
            assert (held.lease_s, held.fence, held.recalled) == (LEASE_S - 20.0, lost.fence, True)
        decided = await store.decide(TENANT, kept.id, "anna", kept.fence, "cat")
        assert decided.status is Status.FINAL
        opener.clock.now += LEASE_S - 20.0
        (moved,) = await store.escalate(STEPS)
        assert (moved.review_id, moved.to) == (lost.id, "leads")
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, lost.id, "ben", lost.fence, "cat")
        again = await store.claim_next(TENANT, "leads", "ben", LEASE_S)
        assert again is not None
        assert (again.id, again.fence, again.recalled) == (lost.id, lost.fence + 1, False)
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, lost.id, "ben", lost.fence, "cat")
        opener.clock.now += LEASE_S - 1.0
        assert (await store.renew(TENANT, lost.id, "ben", again.fence, LEASE_S)).lease_s == LEASE_S


async def a_recalled_review_is_taken_by_nobody_before_it_has_moved_on(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred(due_s=opener.wall_clock.now))
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        assert await store.escalate(STEPS) == []
        opener.clock.now += LEASE_S
        for _ in range(2):  # before upkeep has reopened it, and after that
            assert await store.claim_next(TENANT, "pets", "ben", LEASE_S) is None
            for take in (
                store.claim(TENANT, held.id, "ben", LEASE_S),
                store.claim(TENANT, held.id, "anna", LEASE_S),
                store.assign(TENANT, held.id, "ben", held.fence, LEASE_S),
            ):
                with pytest.raises(Conflict, match="is due, and moves on to another queue"):
                    await take
            await store.maintain()
        assert [(e.queue, e.to) for e in await store.escalate(STEPS)] == [("pets", "leads")]
        taken = await store.claim_next(TENANT, "leads", "ben", LEASE_S)
        assert taken is not None
        assert (taken.lease_s, taken.recalled) == (LEASE_S, False)


async def whoever_is_given_a_recalled_review_has_what_is_left_of_its_lease(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred(due_s=opener.wall_clock.now))
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        assert await store.escalate(STEPS) == []
        for given, reviewer in enumerate(("ben", "cleo"), start=1):
            opener.clock.now += 20.0
            held = await store.assign(TENANT, held.id, reviewer, held.fence, LEASE_S)
            assert (held.reviewer, held.lease_s, held.recalled) == (reviewer, LEASE_S - 20.0 * given, True)
            assert await store.escalate(STEPS) == []
        opener.clock.now += 20.0
        assert [(e.queue, e.to) for e in await store.escalate(STEPS)] == [("pets", "leads")]


async def what_is_put_back_when_due_moves_on_at_once(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred(due_s=opener.wall_clock.now))
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        assert await store.escalate(STEPS) == []
        await store.release(TENANT, held.id, "anna", held.fence)
        assert [(e.queue, e.to) for e in await store.escalate(STEPS)] == [("pets", "leads")]


async def a_review_at_the_end_of_its_chain_is_marked_though_held_and_stays_with_its_holder(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred(due_s=opener.wall_clock.now, queue="boss"))
        held = await store.claim_next(TENANT, "boss", "anna", LEASE_S)
        assert held is not None
        assert [(e.queue, e.to) for e in await store.escalate(STEPS)] == [("boss", None)]
        opener.clock.now += LEASE_S - 1.0
        renewed = await store.renew(TENANT, held.id, "anna", held.fence, LEASE_S)
        assert (renewed.lease_s, renewed.recalled, renewed.overdue_s) == (LEASE_S, False, opener.wall_clock.now)
        assert (await store.decide(TENANT, held.id, "anna", held.fence, "cat")).status is Status.FINAL


async def a_recalled_review_whose_queue_leads_nowhere_any_more_can_be_renewed(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred(due_s=opener.wall_clock.now))
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        assert await store.escalate(STEPS) == []
        assert [e.to for e in await store.escalate({})] == [None]
        opener.clock.now += 30.0
        assert (await store.renew(TENANT, held.id, "anna", held.fence, LEASE_S)).lease_s == LEASE_S


async def many_reviews_that_are_due_all_move_and_nobody_else_s(opener: Opener) -> None:
    now_s = opener.wall_clock.now
    async with aclosing(await opener()) as store, aclosing(await opener()) as other:
        due = [deferred(tenant=tenant, items=100, due_s=now_s) for tenant in (TENANT, "other") for _ in range(3)]
        await asyncio.gather(*(store.commit(*one) for one in due), store.commit(*deferred(due_s=now_s + 1.0)))
        moved = await asyncio.gather(store.escalate(STEPS), other.escalate(STEPS))
        ids = [one.review_id for batch in moved for one in batch]
        assert len(ids) == len(set(ids)) == 600
        assert len(await store.reviews(TENANT, "leads", limit=1000)) == 300
        assert len(await store.reviews("other", "leads", limit=1000)) == 300
        assert len(await store.reviews(TENANT, "pets", limit=1000)) == 1
        assert await store.verify_log() == []


async def workloads_tell_what_waits_and_how_the_latest_went(opener: Opener) -> None:
    began_s = opener.wall_clock.now
    async with aclosing(await opener()) as store:
        assert await store.workloads() == []
        for priority in (5, 5, 5, 1, 9):
            await store.commit(*deferred(priority=priority, due_s=began_s + 50.0))
            opener.wall_clock.now += 1.0
        await store.commit(*deferred(tenant="other"))
        urgent = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert urgent is not None
        opener.wall_clock.now += 10.0
        await store.decide(TENANT, urgent.id, "anna", urgent.fence, "cat")
        held = await store.claim_next(TENANT, "pets", "ben", LEASE_S)
        assert held is not None
        mine, others = await store.workloads()
        assert (mine.tenant, mine.queue, others.tenant) == (TENANT, "pets", "other")
        assert (dict(mine.undecided), mine.claimed, mine.unclaimed_since_s) == ({5: 3, 9: 1}, 1, began_s + 1.0)
        assert set(mine.taken) == {
            Taken(5, "ben", began_s, began_s + 15.0, None),
            Taken(1, "anna", began_s + 3.0, began_s + 5.0, began_s + 15.0),
        }
        assert (dict(others.undecided), others.taken, others.is_cut) == ({5: 1}, (), False)
        opener.wall_clock.now = began_s + 50.0
        opener.clock.now += LEASE_S
        await store.escalate(STEPS)
        at_last = {(load.tenant, load.queue): load for load in await store.workloads()}
        leads, pets = at_last[TENANT, "leads"], at_last[TENANT, "pets"]
        assert (dict(leads.undecided), leads.unclaimed_since_s) == ({5: 3, 9: 1}, began_s + 50.0)
        assert (dict(pets.undecided), pets.unclaimed_since_s, len(pets.taken)) == ({}, None, 1)


async def a_renewed_claim_counts_from_its_beginning(opener: Opener) -> None:
    began_s = opener.wall_clock.now
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        opener.wall_clock.now += 30.0
        await store.renew(TENANT, held.id, "anna", held.fence, LEASE_S)
        await store.decide(TENANT, held.id, "anna", held.fence, "cat")
        (load,) = await store.workloads()
        assert load.taken == (Taken(5, "anna", began_s, began_s, began_s + 30.0),)


async def places_count_what_goes_before(opener: Opener) -> None:
    answer, tasks = deferred(items=3, due_s=5.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        for due_s, priority, tenant in ((4.0, 5, TENANT), (6.0, 5, TENANT), (9.0, 1, TENANT), (1.0, 1, "other")):
            await store.commit(*deferred(due_s=due_s, priority=priority, tenant=tenant))
        assert await store.places(TENANT, answer.id) == [Place("pets", 5, 4)]
        assert await store.places("other", answer.id) == []
        await decide_all(store)
        assert await store.places(TENANT, answer.id) == []


async def a_hundred_reviewers_never_share_a_review(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await asyncio.gather(*(store.commit(*deferred(due_s=float(i))) for i in range(100)))
        claims = await asyncio.gather(*(store.claim_next(TENANT, "pets", f"r{i}", LEASE_S) for i in range(101)))
        ids = [claim.id for claim in claims if claim is not None]
        assert len(ids) == len(set(ids)) == 100


async def waiting_ends_with_the_decision(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        waiting = asyncio.ensure_future(store.wait(TENANT, answer.id, 60.0))
        await decide_all(store)
        decided = await asyncio.wait_for(waiting, 5.0)
        assert decided is not None
        assert decided.status is Status.FINAL
        assert_same_answer(await store.wait(TENANT, answer.id, 60.0), decided)


async def waiting_ends_when_time_is_over_or_nothing_is_there(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        assert_same_answer(await store.wait(TENANT, answer.id, 0.02), answer)
        assert await store.wait(TENANT, AnswerId("0" * 32), 60.0) is None
        recorded = accepted()
        await store.record(recorded)
        assert_same_answer(await store.wait(TENANT, recorded.id, 60.0), recorded)


async def another_process_s_decision_ends_waiting(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await one.commit(answer, tasks)
        waiting = asyncio.ensure_future(one.wait(TENANT, answer.id, 60.0))
        await decide_all(other)
        decided = await asyncio.wait_for(waiting, 10.0)
        assert decided is not None
        assert decided.status is Status.FINAL


async def two_processes_share_reviews_keys_and_a_whole_log(opener: Opener) -> None:
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await asyncio.gather(*(store.commit(*deferred()) for store in (one, other) for _ in range(20)))
        await asyncio.gather(*(store.record(accepted()) for store in (one, other) for _ in range(20)))
        claims = await asyncio.gather(*(store.claim_key(KEY, BODY) for store in (one, other) for _ in range(10)))
        assert sum(isinstance(claim, Fresh) for claim in claims) == 1
        reviewers = [(store, f"{i}-{n}") for i, store in enumerate((one, other)) for n in range(20)]
        held = await asyncio.gather(*(store.claim_next(TENANT, "pets", name, LEASE_S) for store, name in reviewers))
        assert len({review.id for review in held if review is not None}) == 40
        assert await one.verify_log() == []
        # A living process's claims are its own: upkeep by another leaves them.
        assert (await other.maintain()).leases_reopened == 0


async def queues_are_counted_over_all_tenants_and_never_vanish(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        assert await store.queue_depths() == {}
        for tenant, queue in ((TENANT, "pets"), ("other", "pets"), (TENANT, "digits")):
            await store.commit(*deferred(tenant=tenant, queue=queue))
        opener.wall_clock.now += 5.0
        await store.commit(*deferred())
        assert await store.claim_next(TENANT, "digits", "anna", LEASE_S) is not None
        oldest_s = opener.wall_clock.now - 5.0
        assert await store.queue_depths() == {"digits": QueueDepth(0, 1, None), "pets": QueueDepth(3, 0, oldest_s)}
        opener.clock.now += LEASE_S
        assert (await store.queue_depths())["digits"] == QueueDepth(1, 0, oldest_s)
        await decide_all(store)
        opener.wall_clock.now += 30 * DAY_S
        await store.maintain()
        assert (await store.queue_depths())["digits"] == QueueDepth(0, 0, None)


async def feedback_is_for_items_there_are(opener: Opener) -> None:
    kept, queued = accepted(items=2), accepted(items=2)
    async with aclosing(await opener()) as store:
        await store.commit(kept, [])
        await store.record(queued)
        for answer in (kept, queued):
            for label in ("dog", "dog", "owl"):
                await store.add_feedback(TENANT, answer.id, 1, label, "caller")
            for item in (2, -1):
                with pytest.raises(NotFound, match=f"answer {answer.id} has no item {item}; it has 2, from 0"):
                    await store.add_feedback(TENANT, answer.id, item, "dog", "caller")
        with pytest.raises(NotFound, match="answer 'nonsense' is unknown, or no longer kept"):
            await store.add_feedback(TENANT, AnswerId("nonsense"), 0, "dog", "caller")
        with pytest.raises(InvalidInput, match="the label holds a NUL"):
            await store.add_feedback(TENANT, kept.id, 0, "\0", "caller")


async def certificates_come_back_newest_first_for_good(opener: Opener) -> None:
    old, new = certificate(created_s=1.0), certificate(created_s=2.0)
    other = certificate(route="digits", created_s=1.5)
    async with aclosing(await opener()) as store:
        assert await store.certificates() == []
        for one in (new, old, other):
            await store.add_certificate(one)
        assert await store.certificates() == [new, other, old]
        assert await store.certificates("pets") == [new, old]
        assert await store.certificates("no such route") == []
        opener.wall_clock.now += 3650 * DAY_S
        await store.maintain()
    async with aclosing(await opener()) as store:
        assert await store.certificates("pets") == [new, old]


async def adding_a_certificate_again_is_harmless(opener: Opener) -> None:
    one = certificate()
    async with aclosing(await opener()) as store, aclosing(await opener()) as other:
        await asyncio.gather(*(s.add_certificate(one) for s in (store, other) for _ in range(10)))
        assert await store.certificates() == [one]
        assert await store.certificates_version() == await other.certificates_version()


async def another_process_s_certificate_is_noticed_by_the_version(opener: Opener) -> None:
    async with aclosing(await opener()) as store, aclosing(await opener()) as other:
        versions = [await store.certificates_version()]
        for created_s in (2.0, 1.0):
            await other.add_certificate(certificate(created_s=created_s))
            versions.append(await store.certificates_version())
        assert len(set(versions)) == 3
        await store.commit(*uncertified())
        await decide_all(store)
        assert await store.certificates_version() == versions[-1]


async def a_halt_is_kept_for_all_until_another_of_its_version_takes_its_place(opener: Opener) -> None:
    old, other = CanaryHalt("pets", "2", 1.0, "it failed"), CanaryHalt("digits", "2", 1.5, "it was late")
    new, third = CanaryHalt("pets", "2", 2.0, "it failed again"), CanaryHalt("pets", "3", 0.5, "it failed, too")
    async with aclosing(await opener()) as store, aclosing(await opener()) as beside:
        assert await store.canary_halts() == []
        for halt in (old, other):
            await store.add_canary_halt(halt)
        assert await beside.canary_halts() == [other, old]
        await asyncio.gather(*(one.add_canary_halt(halt) for one in (store, beside) for halt in (new, third)))
    async with aclosing(await opener()) as store:
        opener.wall_clock.now += 3650 * DAY_S
        await store.maintain()
        assert await store.canary_halts() == [other, new, third]


async def looks_at_labels_are_counted_where_they_see_something_new(opener: Opener) -> None:
    async with aclosing(await opener()) as store, aclosing(await opener()) as other:
        looks = [
            await store.add_look("pets", "subject", "labels 1"),
            await other.add_look("pets", "subject", "labels 1"),
            await other.add_look("pets", "subject", "labels 2"),
            await store.add_look("pets", "subject", "labels 1"),
            await store.add_look("pets", "another subject", "labels 1"),
            await store.add_look("plants", "subject", "labels 1"),
        ]
        assert looks == [1, 1, 2, 3, 1, 1]


async def items_that_every_stage_scored_are_listed_and_no_others(opener: Opener) -> None:
    sent, tasks = uncertified(items=2, at_s=2.0)
    stands = observed(at_s=1.0)
    # Its route has no person: the strongest answer stands, uncertain, and a caller may still tell the truth.
    alone, _ = uncertified(at_s=3.0)
    alone = replace(alone, items=(replace(alone.items[0], decided_by="model:strong"),))
    elsewhere, elsewhere_tasks = uncertified()
    async with aclosing(await opener()) as store:
        await store.commit(sent, tasks)
        for answer in (stands, alone, accepted()):
            await store.record(answer)
        await store.commit(*deferred())
        await store.commit(replace(elsewhere, route="digits"), elsewhere_tasks)
    async with aclosing(await opener()) as store:
        assert await store.labelled(None, "pets") == [
            LabelledItem(answer.id, item, answer.created_s, TENANT, answer.items[item].trail, None)
            for answer, item in ((stands, 0), (sent, 0), (sent, 1), (alone, 0))
        ]
        assert [item.answer_id for item in await store.labelled(None, "digits")] == [elsewhere.id]
        assert await store.labelled(None, "no such route") == []


async def labelled_items_come_in_the_order_of_their_requests(opener: Opener) -> None:
    times = [5.0, 3.0, 4.0, 1.0, 2.0, 6.0]
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        for at_s, store in zip(times, (one, other) * 3, strict=True):
            await store.commit(*uncertified(items=2, at_s=at_s))
        found = await one.labelled(None, "pets")
        assert [(item.at_s, item.item) for item in found] == [(at_s, i) for at_s in sorted(times) for i in (0, 1)]
        assert await other.labelled(None, "pets") == found


async def labels_are_the_person_s_else_what_callers_agree_on(opener: Opener) -> None:
    answer, tasks = uncertified(items=2)
    stands = observed(items=4, at_s=answer.created_s + 1.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        await store.commit(stands, [])
        for item, label, source in (
            (0, "dog", "one"),
            (0, "dog", "other"),
            (1, "owl", "one"),
            (1, "dog", "other"),
            (2, "owl", "one"),
            (2, "dog", "one"),
            (2, "dog", "other"),
        ):
            await store.add_feedback(TENANT, stands.id, item, label, source)
        for label, source in (("dog", "one"), ("owl", "other")):
            await store.add_feedback(TENANT, answer.id, 0, label, source)
        found = await store.labelled(None, "pets")
        assert [(item.label, item.disputed) for item in found] == [
            *[(None, True), (None, False)],
            *[("dog", False), (None, True), ("dog", False), (None, False)],
        ]
        await decide_all(store)
        await store.add_feedback(TENANT, answer.id, 1, "owl", "one")
        decided = await store.labelled(None, "pets")
        assert [(item.label, item.disputed) for item in decided[:2]] == [(LABELS[0], False)] * 2
        assert decided[2:] == found[2:]


async def a_tenant_s_labelled_items_are_its_own(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        mine, other = observed(at_s=1.0), observed(tenant="other", at_s=2.0)
        for answer in (mine, other):
            await store.commit(answer, [])
            await store.add_feedback(answer.tenant, answer.id, 0, "dog", "caller")
        everybody = await store.labelled(None, "pets")
        assert [(item.tenant, item.answer_id, item.label) for item in everybody] == [
            (TENANT, mine.id, "dog"),
            ("other", other.id, "dog"),
        ]
        assert await store.labelled(TENANT, "pets") == everybody[:1]
        assert await store.labelled("other", "pets") == everybody[1:]
        assert await store.labelled("nobody", "pets") == []


async def labels_outlive_their_answers(opener: Opener) -> None:
    answer, tasks = uncertified()
    stands = observed(at_s=answer.created_s + 1.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        await store.commit(stands, [])
        await store.add_feedback(TENANT, stands.id, 0, "dog", "caller")
        await decide_all(store)
        before = await store.labelled(None, "pets")
        assert [item.label for item in before] == [LABELS[0], "dog"]
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 2
        assert await store.answer(TENANT, answer.id) is None
        assert await store.labelled(None, "pets") == before


async def feedback_is_taken_as_long_as_the_log_has_its_item(opener: Opener) -> None:
    asked, tasks = uncertified(items=2, at_s=opener.wall_clock.now)
    stands = observed(items=2, at_s=asked.created_s + 1.0)
    async with aclosing(await opener()) as store:
        await store.commit(asked, tasks)
        await store.record(stands)
        await store.cancel(TENANT, asked.id, "app")
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 2

        for answer in (asked, stands):
            await store.add_feedback(TENANT, answer.id, 1, "dog", "caller")
            await store.add_feedback(TENANT, answer.id, 1, "owl", "caller")
            for tenant, item in (("other", 1), (TENANT, 2), (TENANT, -1)):
                with pytest.raises(NotFound, match="is unknown, or no longer kept"):
                    await store.add_feedback(tenant, answer.id, item, "dog", "caller")

        assert [item.label for item in await store.labelled(TENANT, "pets")] == [None, "owl", None, "owl"]


async def reopening_frees_what_a_closed_process_held(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        claim = await store.claim_key(KEY, BODY)
        assert held is not None
        assert isinstance(claim, Fresh)
    async with aclosing(await opener()) as store:
        review = await first_review(store)
        assert (review.id, review.state, review.fence) == (held.id, ReviewState.OPEN, held.fence)
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")
        taken = await store.claim(TENANT, held.id, "anna", LEASE_S)
        assert taken.fence > held.fence
        again = await store.claim_key(KEY, BODY)
        assert isinstance(again, Fresh)
        assert again.fence != claim.fence


async def final_answers_are_purged_by_age_and_open_ones_never(opener: Opener) -> None:
    old, young, keyed = accepted(), accepted(), accepted()
    open_, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(old, [])
        await store.commit(open_, tasks)
        opener.wall_clock.now += 6.5 * DAY_S
        claim = await store.claim_key(KEY, BODY)
        assert isinstance(claim, Fresh)
        await store.commit(keyed, [], KEY, claim.fence)
        await store.commit(young, [])
        opener.wall_clock.now += DAY_S - 1
        upkeep = await store.maintain()
        assert (upkeep.answers_purged, upkeep.full) == (1, False)
        assert await store.answer(TENANT, old.id) is None
        for answer in (young, keyed, open_):
            assert await store.answer(TENANT, answer.id) is not None
        await decide_all(store)
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 3
        assert await store.reviews(TENANT, state=None) == []
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.add_feedback(TENANT, old.id, 0, "cat", "caller")
        assert await store.verify_log() == []


async def what_is_erased_by_an_answer_is_gone_and_the_log_is_whole(opener: Opener) -> None:
    answer, tasks = texted()
    other, other_tasks = texted()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        await store.commit(other, other_tasks)
        await decide_with(store, SECRET)
        await store.add_feedback(TENANT, answer.id, 0, SECRET, "caller")
        await store.add_feedback(TENANT, answer.id, 0, "cat", "another")

        erased = await store.erase(erasure_of(answer), known)

        assert (erased.answers, erased.reviews) == (1, 0)
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert (found.items[0].status, found.items[0].label, found.items[0].outputs) == (Status.FINAL, None, None)
        (review,) = [r for r in await store.reviews(TENANT, state=None) if r.answer_id == answer.id]
        shown = await store.review(TENANT, review.id)
        assert shown is not None
        assert (shown.task.payload, shown.task.proposals, shown.label) == (b"", (), "[erased]")
        assert shown.task.is_forgotten
        kept = await store.answer(TENANT, other.id)
        assert kept is not None
        assert kept.items[0].label == SECRET
        assert await store.verify_log() == []
        assert (await store.erase(erasure_of(answer), known)).answers == 0
        assert await store.verify_log() == []
    async with aclosing(await opener()) as store:
        assert await store.verify_log() == []


async def what_is_erased_of_a_subject_is_every_answer_about_them(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        mine, theirs = store.subject(TENANT, "anna"), store.subject(TENANT, "bert")
        assert mine != theirs
        assert mine != store.subject("other", "anna")
        answers = [replace(texted()[0], subject=subject) for subject in (mine, mine, theirs, None)]
        for answer in answers:
            await store.commit(answer, texted()[1])
        recorded = replace(accepted(label=SECRET), subject=mine)
        await store.record(recorded)
        await decide_with(store, SECRET)

        erased = await store.erase(Erasure(TENANT, "operator:olga", subject="anna"), known)

        assert erased.answers == 3
        found = [await store.answer(TENANT, answer.id) for answer in (*answers, recorded)]
        assert [a.items[0].label for a in found if a is not None] == [None, None, SECRET, SECRET, None]
        assert await store.verify_log() == []
        assert (await store.erase(Erasure("other", "operator:olga", subject="bert"), known)).answers == 0
        assert (await store.erase(Erasure(TENANT, "operator:olga", subject="anna"), known)).answers == 0


async def an_open_review_is_cancelled_by_an_erasure(opener: Opener) -> None:
    answer, tasks = texted(items=2)
    async with aclosing(await opener()) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(answer, tasks, KEY, fresh.fence)
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        waiting = asyncio.create_task(store.wait(TENANT, answer.id, 10.0))
        await asyncio.sleep(0)

        erased = await store.erase(erasure_of(answer), known)

        assert (erased.answers, erased.reviews) == (1, 2)
        final = await waiting
        assert final is not None
        assert [(i.status, i.label, i.decided_by) for i in final.items] == [(Status.CANCELLED, None, None)] * 2
        told = await store.revisions(TENANT, answer.id)
        assert [(revision.number, revision.event) for revision in told] == [(1, "answer"), (2, "cancel"), (3, "erase")]
        assert {item.label for revision in told for item in revision.items} == {None}
        assert final.revision == 3
        assert {review.state for review in await store.reviews(TENANT, state=None)} == {ReviewState.CANCELLED}
        with pytest.raises(Conflict, match="is cancelled"):
            await store.decide(TENANT, held.id, "anna", held.fence, SECRET)
        assert isinstance(await store.claim_key(KEY, OTHER_BODY), Fresh)
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 1
        assert await store.verify_log() == []


async def an_answer_that_is_purged_can_still_be_erased_from_the_log(opener: Opener) -> None:
    answer = replace(accepted(label=SECRET), created_s=opener.wall_clock.now)
    async with aclosing(await opener()) as store:
        await store.commit(replace(answer, subject=store.subject(TENANT, "anna")), [])
        await store.add_feedback(TENANT, answer.id, 0, SECRET, "caller")
        opener.wall_clock.now += 8 * DAY_S
        await store.maintain()
        assert await store.answer(TENANT, answer.id) is None

        assert (await store.erase(Erasure(TENANT, "operator:olga", subject="anna"), known)).answers == 1

        assert await store.verify_log() == []
        assert (await store.erase(Erasure(TENANT, "operator:olga", subject="anna"), known)).answers == 0


async def nothing_of_another_tenant_is_erased(opener: Opener) -> None:
    answer, tasks = texted()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        for erasure in (replace(erasure_of(answer), tenant="other"), replace(erasure_of(answer), answer_id=NOBODY)):
            with pytest.raises(NotFound, match="there is no answer"):
                await store.erase(erasure, known)
        assert len(await store.reviews(TENANT)) == 1
        assert await store.verify_log() == []


async def a_label_that_could_be_chosen_stays_and_certifies(opener: Opener) -> None:
    (chosen, chosen_tasks), (written, written_tasks) = uncertified(), uncertified()
    written_tasks = [replace(task, labels=()) for task in written_tasks]
    async with aclosing(await opener()) as store:
        await store.commit(chosen, chosen_tasks)
        await decide_with(store, "dog")
        await store.commit(written, written_tasks)
        await decide_with(store, SECRET)
        assert [item.label for item in await store.labelled(TENANT, "pets")] == ["dog", SECRET]

        for answer in (chosen, written):
            await store.erase(erasure_of(answer), lambda route: {"cat"})

        assert [item.label for item in await store.labelled(TENANT, "pets")] == ["dog"]
        assert await store.verify_log() == []


async def reviewers_are_told_of_what_is_new_and_due_once(opener: Opener) -> None:
    now_s = opener.wall_clock.now
    rule = NoticeRule("rule-1", TENANT, "pets", frozenset(NoticeKind), ahead_s=60.0, every_s=300.0)
    told: list[tuple[int, int, int]] = []

    def tell(notice: Notice, at_s: float) -> Message:
        told.append((notice.new, notice.due, notice.waiting))
        return Message(f"message-{len(told)}", "crm", "{}")

    async with aclosing(await opener()) as store, aclosing(await opener()) as other:
        assert not await store.tell_reviewers(rule, tell)
        for due_in_s in (30.0, 1000.0, 2000.0):
            await store.commit(*deferred(due_s=now_s + due_in_s))
        await store.commit(*deferred(queue="elsewhere"))
        both = await asyncio.gather(store.tell_reviewers(rule, tell), other.tell_reviewers(rule, tell))
        assert sorted(both) == [False, True]
        assert told == [(3, 1, 3)]

        await store.commit(*deferred(due_s=now_s + 3000.0))
        opener.wall_clock.now += 299.0
        assert not await store.tell_reviewers(rule, tell)
        opener.wall_clock.now += 1.0
        assert await other.tell_reviewers(rule, tell)
        opener.wall_clock.now += 700.0
        assert await store.tell_reviewers(rule, tell)
        assert told[1:] == [(1, 0, 4), (0, 1, 4)]
        assert (await store.outbox_depths())["crm"].waiting == 3
        await decide_all(store)
        opener.wall_clock.now += 9000.0
        assert not await store.tell_reviewers(rule, tell)


async def reviewers_are_told_of_what_is_escalated_to_them_and_not_of_what_is_over(opener: Opener) -> None:
    rules = [
        NoticeRule(queue, TENANT, queue, frozenset([NoticeKind.NEW]), ahead_s=0.0, every_s=0.0)
        for queue in ("pets", "seniors")
    ]
    told: list[tuple[str, int, int]] = []

    def tell(notice: Notice, at_s: float) -> Message:
        told.append((notice.rule.queue, notice.new, notice.waiting))
        return Message(f"message-{len(told)}", "crm", "{}")

    async with aclosing(await opener()) as store:
        cancelled, tasks = deferred()
        await store.commit(cancelled, tasks)
        await store.cancel(TENANT, cancelled.id, "app")
        await store.commit(*deferred(due_s=opener.wall_clock.now + 30.0))
        assert [await store.tell_reviewers(rule, tell) for rule in rules] == [True, False]
        opener.wall_clock.now += 30.0
        await store.escalate({"pets": Step("seniors", 60.0)})
        assert [await store.tell_reviewers(rule, tell) for rule in rules] == [False, True]
        assert told == [("pets", 1, 1), ("seniors", 1, 1)]


async def a_decision_tells_how_long_its_review_was_held(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review = await first_review(store)
        claimed = await store.claim(TENANT, review.id, "anna", LEASE_S)
        started_s = opener.wall_clock.now
        opener.clock.now += 40.0
        opener.wall_clock.now += 40.0
        renewed = await store.claim(TENANT, review.id, "anna", LEASE_S)
        assert (claimed.held_s(started_s), renewed.held_s(started_s + 40.0)) == (0.0, 40.0)
        opener.clock.now += 70.0
        opener.wall_clock.now += 70.0
        taken = await store.claim(TENANT, review.id, "bert", LEASE_S)
        assert taken.held_s(opener.wall_clock.now) == 0.0
        await store.decide(TENANT, review.id, "bert", taken.fence, "cat")
        assert await store.verify_log() == []


SECRET = "canary-5ecre7 words"
"""Free text, which may be made of an input."""

NOBODY = AnswerId("0" * 32)


def known(_route: str) -> frozenset[str]:
    """The choices of every route."""
    return frozenset(LABELS)


def texted(items: int = 1) -> tuple[Answer, list[ReviewTask]]:
    """An answer of a route where people write, and models do: whatever can hold an input holds `SECRET`."""
    answer, tasks = deferred(items=items)
    trail = (StageRecord("fast", "3", SECRET, 0.4, Decision.ESCALATE, Reason.LOW_CONFIDENCE),)
    elements = np.empty((1, 1), object)
    elements[:] = SECRET.encode()
    outputs = {"text": Tensor(Datatype.BYTES, (1, 1), elements)}
    item = replace(answer.items[0], label=SECRET, outputs=outputs, trail=trail)
    proposals = (Proposal("fast", SECRET, 0.4),)

    def written(task: ReviewTask) -> ReviewTask:
        shown = SECRET.encode() * 500
        return replace(task, labels=(), payload=shown, content_type="text/plain", proposals=proposals)

    inputs = Batch({"text": Tensor(Datatype.BYTES, (items, 1), np.repeat(elements, items, axis=0))}, items)
    return replace(answer, items=(item,) * items, inputs=inputs), [written(task) for task in tasks]


def erasure_of(answer: Answer) -> Erasure:
    return Erasure(TENANT, "operator:olga", answer_id=answer.id)


async def decide_with(store: Store, label: str) -> None:
    """Decide every open review of the tenant so."""
    for review in await store.reviews(TENANT, limit=1000):
        claimed = await store.claim(TENANT, review.id, "anna", LEASE_S)
        await store.decide(TENANT, review.id, "anna", claimed.fence, label)


async def a_wall_clock_that_jumps_leaves_leases_as_they_are(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for jump_s in (3600.0, -7200.0, 1800.0):
            key = RequestKey(TENANT, "pets", str(jump_s))
            await store.commit(*deferred())
            held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
            assert held is not None
            claim = await store.claim_key(key, BODY)
            opener.wall_clock.now += jump_s
            upkeep = await store.maintain()
            assert (upkeep.leases_reopened, upkeep.answers_purged) == (0, 0)
            assert isinstance(claim, Fresh)
            assert await store.claim_key(key, BODY) == InProgress()
            await store.finish_key(key, claim.fence, Code.NOT_FOUND, "")
            assert (await store.decide(TENANT, held.id, "anna", held.fence, "cat")).status is Status.FINAL


async def a_cancelled_caller_leaves_the_store_usable(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        commits = [asyncio.ensure_future(store.commit(*deferred())) for _ in range(30)]
        await asyncio.sleep(0)
        for commit in commits[::2]:
            commit.cancel()
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert outcomes[1::2] == [None] * 15
        assert len(await store.reviews(TENANT)) >= 15
        assert await store.verify_log() == []


async def closing_twice_is_harmless_and_then_everything_is_refused(opener: Opener) -> None:
    store = await opener()
    await asyncio.gather(store.aclose(), store.aclose())
    await store.aclose()
    for refused in (
        store.commit(*deferred()),
        store.record(accepted()),
        store.answer(TENANT, AnswerId("0" * 32)),
        store.claim_key(KEY, BODY),
        store.certificates(),
        store.add_certificate(certificate()),
        store.maintain(),
    ):
        with pytest.raises(Unavailable, match="the store is closed; this process is going away"):
            await refused


async def a_session_that_ends_at_one_is_over_at_all(opener: Opener) -> None:
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        assert one.session_secret == other.session_secret
        assert len(one.session_secret) == 32
        await other.offer_undo("s1", [Decided("r1", 1)], 60.0)
        for _ in range(2):
            await one.end_session("s1", DAY_S)
        await other.offer_undo("s1", [Decided("r2", 1)], 9 * DAY_S)  # by a request that was under way
        for store in (one, other):
            assert await store.is_session_over("s1")
            assert not await store.is_session_over("s2")
            assert await store.undo_offer("s1") is None
        opener.wall_clock.now += DAY_S - 1.0
        await one.maintain()
        assert await other.is_session_over("s1")
        opener.wall_clock.now += 1.0
        await one.maintain()
        assert not await other.is_session_over("s1")  # its cookie is too old by now


async def what_can_be_taken_back_in_a_session_is_known_to_all(opener: Opener) -> None:
    several = [Decided(f"r{number}", number) for number in range(200)]
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await one.offer_undo("s1", (), 0.0)
        await one.offer_undo("s1", [Decided("r0", 7)], 9.0)
        await other.offer_undo("s2", several, 9.0)
        assert await other.undo_offer("s1") == UndoOffer((Decided("r0", 7),), 9.0)
        opener.wall_clock.now += 5.0
        assert await one.undo_offer("s2") == UndoOffer(tuple(several), 4.0)
        await other.offer_undo("s1", several[:1], 9.0)
        assert await one.undo_offer("s1") == UndoOffer(tuple(several[:1]), 9.0)
        await one.offer_undo("s1", (), 0.0)
        opener.wall_clock.now += 4.0
        await one.maintain()
        assert [await other.undo_offer(session) for session in ("s1", "s2", "s3")] == [None] * 3


async def statistics_tell_what_was_written(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        before = store.statistics()
        await asyncio.gather(*(store.commit(*deferred()) for _ in range(10)))
        after = store.statistics()
        assert (after.pending_writes, after.full) == (0, False)
        assert after.rows - before.rows == 10
        assert 1 <= after.commits - before.commits <= 10


async def work_is_told_by_queue_and_for_one_tenant(opener: Opener) -> None:
    began_s = opener.wall_clock.now
    async with aclosing(await opener()) as store:
        assert await store.queue_work(TENANT) == {}
        for tenant, queue, due_s in (
            (TENANT, "pets", began_s + 10),
            (TENANT, "pets", began_s + 900),
            (TENANT, "digits", began_s + 20),
            ("other", "pets", began_s),
        ):
            await store.commit(*deferred(tenant=tenant, queue=queue, due_s=due_s))
        await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        opener.wall_clock.now += 15
        assert await store.queue_work(TENANT) == {
            "pets": QueueWork(1, 1, 1, began_s, began_s + 10),
            "digits": QueueWork(1, 0, 0, began_s, began_s + 20),
        }
        opener.clock.now += LEASE_S
        assert (await store.queue_work(TENANT))["pets"] == QueueWork(2, 0, 1, began_s, began_s + 10)
        await decide_all(store)
        assert await store.queue_work(TENANT) == {}


async def reviews_are_alike_that_ask_the_same_about_the_same_input(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        first, (task,) = deferred(due_s=5.0)
        others: dict[str, tuple[str, dict[str, Any]]] = {
            "same": (TENANT, {}),
            "claimed": (TENANT, {"due_s": 9.0}),
            "decided": (TENANT, {"due_s": 6.0}),
            "input": (TENANT, {"payload": b"another"}),
            "labels": (TENANT, {"labels": ("yes", "no")}),
            "queue": (TENANT, {"queue": "others"}),
            "media": (TENANT, {"content_type": "image/jpeg"}),
            "tenant": ("other", {}),
        }
        await store.commit(seen(first, task.payload), [task])
        answers: dict[str, AnswerId] = {}
        for name, (tenant, changes) in others.items():
            answer, _ = deferred(tenant=tenant)
            answers[name] = answer.id
            opener.wall_clock.now += 1
            asked = replace(task, **changes)
            await store.commit(seen(answer, asked.payload), [asked])
        route, _ = deferred()
        await store.commit(seen(replace(route, route="birds"), task.payload), [task])
        found = {review.answer_id: review for review in await store.reviews(TENANT, limit=100)}
        claimed = await store.claim(TENANT, found[answers["claimed"]].id, "ben", LEASE_S)
        decided = await store.claim(TENANT, found[answers["decided"]].id, "ben", LEASE_S)
        await store.decide(TENANT, decided.id, "ben", decided.fence, "dog")

        alike = await store.alike(TENANT, found[first.id].id, 10)
        assert [review.answer_id for review in alike] == [first.id, answers["same"], answers["claimed"]]
        assert alike[2] == replace(claimed, task=replace(claimed.task, payload=b""))
        assert await store.alike(TENANT, claimed.id, 10) == alike
        assert [review.answer_id for review in await store.alike(TENANT, found[first.id].id, 2)] == [
            first.id,
            answers["claimed"],
        ]
        assert [r.answer_id for r in await store.alike(TENANT, found[answers["input"]].id, 10)] == [answers["input"]]
        assert await store.alike(TENANT, found[first.id].id, 10, among=[claimed.id, decided.id]) == alike[2:]
        with pytest.raises(NotFound, match="is unknown, or no longer kept"):
            await store.alike("other", found[first.id].id, 10)

        digests = await store.input_digests(TENANT, [review.id for review in found.values()])
        assert digests[found[first.id].id] == digests[claimed.id] != digests[found[answers["input"]].id]
        assert await store.input_digests("other", [claimed.id]) == {}


async def the_way_of_an_item_is_told_in_full(opener: Opener) -> None:
    began_s = opener.wall_clock.now
    async with aclosing(await opener()) as store:
        answer, tasks = deferred(items=2)
        await store.commit(seen(answer, *(task.payload for task in tasks)), tasks)
        review = next(one for one in await store.reviews(TENANT) if one.task.item == 1)
        opener.wall_clock.now = began_s + 1
        claim = await store.claim(TENANT, review.id, "anna", LEASE_S)
        await store.claim(TENANT, review.id, "anna", LEASE_S)  # renewed: no claim of its own
        opener.wall_clock.now = began_s + 2
        await store.release(TENANT, review.id, "anna", claim.fence)
        await store.claim(TENANT, review.id, "ben", LEASE_S)
        opener.clock.now += LEASE_S
        opener.wall_clock.now = began_s + 3
        await store.maintain()
        last = await store.claim(TENANT, review.id, "anna", LEASE_S)
        await store.release(TENANT, review.id, "ben", claim.fence + 1)  # stale
        opener.wall_clock.now = began_s + 4
        await store.decide(TENANT, review.id, "anna", last.fence, "owl")
        await store.add_feedback(TENANT, answer.id, 1, "dog", "shop")
        await store.add_feedback(TENANT, answer.id, 0, "dog", "shop")

        history = await store.history(TENANT, review.id)
        assert history is not None
        assert history.review == await store.glance(TENANT, review.id)
        assert (history.review.label, history.review.task.payload) == ("owl", b"")
        assert (history.requested_s, history.trail) == (answer.created_s, answer.items[1].trail)
        assert [(row.event, row.actor, row.label) for row in history.log] == [
            ("defer", None, "cat"),
            ("decide", "person:anna", "owl"),
        ]
        assert history.log[0].payload_sha256 is not None
        assert history.claims == (
            Claim(1, "anna", began_s + 1, began_s + 2),
            Claim(2, "ben", began_s + 2, None),
            Claim(3, "anna", began_s + 3, None),
        )
        assert set(history.statements) == {
            Statement("person:anna", "owl", began_s + 4),
            Statement("shop", "dog", began_s + 4),
        }
        assert history.deliveries == ()
        assert await store.history("other", review.id) is None
        assert await store.glance("other", review.id) is None
        assert await store.history(TENANT, "nonsense") is None


async def first_review(store: Store) -> Review:
    """The open review due first."""
    return (await store.reviews(TENANT, limit=1))[0]


async def end_as_a_kill_does(store: SqlStore) -> None:
    """Its leases are left behind, and its place among the writers is free."""
    await store._writer.aclose()
    await store.aclose()


async def assert_claimed_anew(store: Store, claim: KeyClaim) -> None:
    """`KEY`, which *claim* was of, is free again, and nothing can be committed by *claim* any more."""
    again = await store.claim_key(KEY, BODY)
    assert isinstance(claim, Fresh)
    assert isinstance(again, Fresh)
    assert again.fence != claim.fence
    with pytest.raises(Conflict, match="no longer held by this request"):
        await store.commit(accepted(), [], KEY, claim.fence)


async def decide_all(store: Store) -> None:
    """Decide every open review of the tenant."""

    async def decide(review: Review) -> None:
        claimed = await store.claim(TENANT, review.id, "anna", LEASE_S)
        await store.decide(TENANT, review.id, "anna", claimed.fence, LABELS[0])

    await asyncio.gather(*(decide(review) for review in await store.reviews(TENANT, limit=1000)))


CHECKS: tuple[Check, ...] = (
    answers_come_back_as_they_were,
    large_outputs_are_kept_where_somebody_may_need_them,
    what_a_route_promised_comes_back_exactly,
    a_recorded_answer_is_seen_at_once_and_after_closing,
    a_tenant_sees_nothing_of_another,
    committing_again_changes_nothing,
    a_key_goes_from_absent_over_in_progress_to_done,
    a_refusal_is_replayed,
    a_released_key_is_forgotten_and_its_fence_stays_stale,
    one_of_a_hundred_concurrent_requests_gets_the_key,
    a_key_whose_lease_ran_out_is_claimed_anew,
    a_renewed_key_is_held_past_its_first_lease,
    a_key_that_is_no_longer_held_is_not_renewed,
    a_lease_that_ran_out_can_be_renewed_until_somebody_takes_the_key,
    keys_renewed_together_share_transactions_and_fail_alone,
    a_stale_commit_fails_alone,
    a_done_key_is_kept_until_its_answer_is_final_and_a_day_more,
    committing_again_keeps_a_key_no_longer,
    reviews_are_listed_by_due_time_in_pages,
    a_review_shows_what_was_asked,
    states_filter_the_list,
    a_decision_makes_the_item_final,
    a_wrong_label_is_refused_and_the_claim_stays,
    two_reviewers_make_one_decision,
    repeating_a_decision_is_harmless_and_changing_it_is_not_possible,
    a_lease_that_ran_out_is_over_before_and_after_upkeep,
    renewing_a_claim_extends_it_under_its_fence,
    a_released_review_is_open_and_a_stale_release_changes_nothing,
    claim_next_gives_the_held_review_else_the_open_one_due_first,
    priorities_come_before_due_times,
    a_scope_hides_what_its_owner_may_not_take,
    a_renewed_lease_lasts_longer_and_only_its_holder_renews_it,
    a_review_is_given_to_another_under_a_new_fence,
    what_is_due_and_undecided_moves_up_its_chain_and_is_never_decided_by_that,
    who_holds_a_review_that_is_due_keeps_it_for_one_lease,
    a_recalled_review_is_taken_by_nobody_before_it_has_moved_on,
    whoever_is_given_a_recalled_review_has_what_is_left_of_its_lease,
    what_is_put_back_when_due_moves_on_at_once,
    a_review_at_the_end_of_its_chain_is_marked_though_held_and_stays_with_its_holder,
    a_recalled_review_whose_queue_leads_nowhere_any_more_can_be_renewed,
    many_reviews_that_are_due_all_move_and_nobody_else_s,
    workloads_tell_what_waits_and_how_the_latest_went,
    a_renewed_claim_counts_from_its_beginning,
    places_count_what_goes_before,
    a_hundred_reviewers_never_share_a_review,
    waiting_ends_with_the_decision,
    waiting_ends_when_time_is_over_or_nothing_is_there,
    another_process_s_decision_ends_waiting,
    two_processes_share_reviews_keys_and_a_whole_log,
    queues_are_counted_over_all_tenants_and_never_vanish,
    feedback_is_for_items_there_are,
    certificates_come_back_newest_first_for_good,
    adding_a_certificate_again_is_harmless,
    another_process_s_certificate_is_noticed_by_the_version,
    a_halt_is_kept_for_all_until_another_of_its_version_takes_its_place,
    looks_at_labels_are_counted_where_they_see_something_new,
    items_that_every_stage_scored_are_listed_and_no_others,
    labelled_items_come_in_the_order_of_their_requests,
    labels_are_the_person_s_else_what_callers_agree_on,
    a_tenant_s_labelled_items_are_its_own,
    labels_outlive_their_answers,
    feedback_is_taken_as_long_as_the_log_has_its_item,
    reopening_frees_what_a_closed_process_held,
    final_answers_are_purged_by_age_and_open_ones_never,
    what_is_erased_by_an_answer_is_gone_and_the_log_is_whole,
    what_is_erased_of_a_subject_is_every_answer_about_them,
    an_open_review_is_cancelled_by_an_erasure,
    an_answer_that_is_purged_can_still_be_erased_from_the_log,
    nothing_of_another_tenant_is_erased,
    a_label_that_could_be_chosen_stays_and_certifies,
    reviewers_are_told_of_what_is_new_and_due_once,
    reviewers_are_told_of_what_is_escalated_to_them_and_not_of_what_is_over,
    a_decision_tells_how_long_its_review_was_held,
    a_wall_clock_that_jumps_leaves_leases_as_they_are,
    a_cancelled_caller_leaves_the_store_usable,
    closing_twice_is_harmless_and_then_everything_is_refused,
    a_session_that_ends_at_one_is_over_at_all,
    what_can_be_taken_back_in_a_session_is_known_to_all,
    statistics_tell_what_was_written,
    work_is_told_by_queue_and_for_one_tenant,
    reviews_are_alike_that_ask_the_same_about_the_same_input,
    the_way_of_an_item_is_told_in_full,
)
