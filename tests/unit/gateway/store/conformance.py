"""What every store must do, whatever database is behind it.

Each check takes an `Opener`, which opens one and the same store as often as it is called, on the clocks it holds; so a
second opening finds what the first kept. `CHECKS` lists them; run all of them over every kind of store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import pytest

from backends.contract import Tensor
from backends.errors import Code, Conflict, InvalidInput, NotFound, Unavailable
from gateway.answer import Answer, AnswerId, Status
from gateway.store.answers import KEPT_BYTES
from gateway.store.contract import (
    KEY_LEASE_S,
    Done,
    Fresh,
    InProgress,
    LabelledItem,
    Mismatch,
    QueueDepth,
    RequestKey,
    Review,
    ReviewState,
    Store,
)
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


async def statistics_tell_what_was_written(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        before = store.statistics()
        await asyncio.gather(*(store.commit(*deferred()) for _ in range(10)))
        after = store.statistics()
        assert (after.pending_writes, after.full) == (0, False)
        assert after.rows - before.rows == 10
        assert 1 <= after.commits - before.commits <= 10


async def first_review(store: Store) -> Review:
    """The open review due first."""
    return (await store.reviews(TENANT, limit=1))[0]


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
    looks_at_labels_are_counted_where_they_see_something_new,
    items_that_every_stage_scored_are_listed_and_no_others,
    labelled_items_come_in_the_order_of_their_requests,
    labels_are_the_person_s_else_what_callers_agree_on,
    a_tenant_s_labelled_items_are_its_own,
    labels_outlive_their_answers,
    reopening_frees_what_a_closed_process_held,
    final_answers_are_purged_by_age_and_open_ones_never,
    a_wall_clock_that_jumps_leaves_leases_as_they_are,
    a_cancelled_caller_leaves_the_store_usable,
    closing_twice_is_harmless_and_then_everything_is_refused,
    statistics_tell_what_was_written,
)
