"""What every store must do about answers that do not end by one decision: cancelled, expired, corrected, taken back.

As `conformance`, whose `Opener` these take; `ENDINGS` lists them. A decision can be taken back for 10 s.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from backends.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from gateway.answer import Answer, AnswerId, Revision, Status
from gateway.store.contract import UNDO_LEASE_S, Done, Fresh, Review, ReviewState, Store
from tests.unit.gateway.store.conformance import (
    BODY,
    DAY_S,
    KEY,
    LEASE_S,
    OTHER_BODY,
    Check,
    Opener,
    decide_all,
)
from tests.unit.gateway.store.samples import LABELS, TENANT, accepted, assert_same_answer, deferred, uncertified

UNDO_S = 10.0


async def claimed(store: Store, item: int = 0, reviewer: str = "anna") -> Review:
    """The review of an item, held by *reviewer*."""
    review = next(review for review in await store.reviews(TENANT, state=None) if review.task.item == item)
    return await store.claim(TENANT, review.id, reviewer, LEASE_S)


async def decided(store: Store, label: str, item: int = 0, reviewer: str = "anna") -> tuple[Review, Answer]:
    """The review of an item as it was claimed, and the answer after its decision."""
    review = await claimed(store, item, reviewer)
    return review, await store.decide(TENANT, review.id, reviewer, review.fence, label)


async def state_of(store: Store, review: Review) -> Review:
    found = await store.review(TENANT, review.id)
    assert found is not None
    return found


def told(revisions: list[Revision]) -> list[tuple[int, str, str | None, list[tuple[int, str, str | None]]]]:
    return [(r.number, r.event, r.actor, [(i.item, str(i.status), i.label) for i in r.items]) for r in revisions]


# --- cancelled ---


async def cancelling_ends_what_is_open_and_leaves_what_was_decided(opener: Opener) -> None:
    answer, tasks = deferred(items=3)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        first, _ = await decided(store, "owl", item=1)
        held = await claimed(store, item=2)

        found = await store.cancel(TENANT, answer.id, "app")

        assert [item.status for item in found.items] == [Status.CANCELLED, Status.FINAL, Status.CANCELLED]
        assert [item.label for item in found.items] == ["cat", "owl", "cat"]
        assert (found.status, found.revision, found.open_items) == (Status.CANCELLED, 3, ())
        assert_same_answer(await store.answer(TENANT, answer.id), found)
        states = {review.task.item: review for review in await store.reviews(TENANT, state=None)}
        assert [states[i].state for i in range(3)] == [
            ReviewState.CANCELLED,
            ReviewState.DECIDED,
            ReviewState.CANCELLED,
        ]
        assert (states[2].reviewer, states[2].lease_s) == (None, None)
        with pytest.raises(Conflict, match=f"review {held.id} is cancelled"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")
        with pytest.raises(Conflict, match=f"review {held.id} is cancelled"):
            await store.claim(TENANT, held.id, "anna", LEASE_S)
        await store.release(TENANT, held.id, "anna", held.fence)
        assert (await state_of(store, held)).state is ReviewState.CANCELLED
        assert (await state_of(store, first)).label == "owl"
        assert await store.claim_next(TENANT, "pets", "ben", LEASE_S) is None
        assert (await store.queue_depths())["pets"].open == 0
        assert await store.verify_log() == []


async def cancelling_again_or_too_late_changes_nothing(opener: Opener) -> None:
    open_, tasks = deferred()
    final, queued = accepted(), accepted()
    async with aclosing(await opener()) as store:
        await store.commit(open_, tasks)
        await store.commit(final, [])
        await store.record(queued)
        first = await store.cancel(TENANT, open_.id, "app")
        for answer in (first, final, queued):
            for _ in range(2):
                assert_same_answer(await store.cancel(TENANT, answer.id, "app"), answer)
        for tenant, answer_id in (("other", open_.id), (TENANT, AnswerId("0" * 32))):
            with pytest.raises(NotFound, match="is unknown, or no longer kept"):
                await store.cancel(tenant, answer_id, "app")


async def two_who_cancel_make_one_revision(opener: Opener) -> None:
    answer, tasks = deferred(items=3)
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await one.commit(answer, tasks)
        found = await asyncio.gather(*(s.cancel(TENANT, answer.id, "app") for s in (one, other) for _ in range(5)))
        assert {(each.revision, each.status) for each in found} == {(2, Status.CANCELLED)}


async def a_decision_and_a_cancellation_at_once_are_one_of_both(opener: Opener) -> None:
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        for _ in range(10):
            answer, tasks = deferred()
            await one.commit(answer, tasks)
            review = next(r for r in await one.reviews(TENANT) if r.answer_id == answer.id)
            held = await one.claim(TENANT, review.id, "anna", LEASE_S)
            ruled, cancelled = await asyncio.gather(
                other.decide(TENANT, held.id, "anna", held.fence, "dog"),
                one.cancel(TENANT, answer.id, "app"),
                return_exceptions=True,
            )
            assert isinstance(cancelled, Answer)
            found = await one.answer(TENANT, answer.id)
            assert found is not None
            assert found.revision == 2
            if isinstance(ruled, Answer):
                assert (found.status, found.items[0].label) == (Status.FINAL, "dog")
            else:
                assert isinstance(ruled, Conflict)
                assert found.status is Status.CANCELLED


async def the_key_of_a_cancelled_answer_gives_it_for_a_day(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(answer, tasks, KEY, fresh.fence)
        opener.wall_clock.now += 30 * DAY_S
        await store.cancel(TENANT, answer.id, "app")
        opener.wall_clock.now += DAY_S - 1
        await store.maintain()
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        opener.wall_clock.now += 2
        assert isinstance(await store.claim_key(KEY, OTHER_BODY), Fresh)


# --- expired ---


async def what_nobody_decides_in_time_expires_by_upkeep_and_is_never_approved(opener: Opener) -> None:
    until_s = opener.wall_clock.now + 60.0
    answer, tasks = deferred(items=2, expires_s=until_s)
    tasks[1] = replace(tasks[1], expires_s=until_s + 60.0)
    forever, more = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        await store.commit(forever, more)
        opener.wall_clock.now = until_s - 0.1
        assert (await store.maintain()).reviews_expired == 0
        opener.wall_clock.now = until_s
        held = next(r for r in await store.reviews(TENANT) if r.answer_id == answer.id and r.task.item == 0)
        held = await store.claim(TENANT, held.id, "anna", LEASE_S)
        assert held.task.expires_s == until_s
        assert (await store.maintain()).reviews_expired == 1

        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert [item.status for item in found.items] == [Status.EXPIRED, Status.PROVISIONAL]
        assert (found.status, found.open_items, found.revision) == (Status.PROVISIONAL, (1,), 2)
        assert (found.items[0].decided_by, found.items[0].label) == (None, "cat")
        with pytest.raises(Conflict, match=f"review {held.id} is expired"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")

        opener.wall_clock.now = until_s + 60.0
        assert (await store.maintain()).reviews_expired == 1
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert (found.status, found.open_items, found.revision) == (Status.EXPIRED, (), 3)
        assert (await store.maintain()).reviews_expired == 0
        assert [r.answer_id for r in await store.reviews(TENANT)] == [forever.id]
        assert await store.verify_log() == []


async def a_decision_before_upkeep_counts(opener: Opener) -> None:
    answer, tasks = deferred(expires_s=opener.wall_clock.now + 60.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        opener.wall_clock.now += 61.0
        await decided(store, "dog")
        assert (await store.maintain()).reviews_expired == 0
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert (found.status, found.items[0].label) == (Status.FINAL, "dog")


async def many_expire_in_one_round(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        kept = [deferred(items=2, expires_s=opener.wall_clock.now + 1.0) for _ in range(50)]
        await asyncio.gather(*(store.commit(answer, tasks) for answer, tasks in kept))
        opener.wall_clock.now += 2.0
        assert (await store.maintain()).reviews_expired == 100
        found = [await store.answer(TENANT, answer.id) for answer, _ in kept]
        assert {answer.status for answer in found if answer is not None} == {Status.EXPIRED}


async def the_key_and_the_age_of_an_expired_answer_are_those_of_a_closed_one(opener: Opener) -> None:
    answer, tasks = deferred(expires_s=opener.wall_clock.now + 1.0)
    async with aclosing(await opener()) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(answer, tasks, KEY, fresh.fence)
        opener.wall_clock.now += 2.0
        await store.maintain()
        assert await store.claim_key(KEY, BODY) == Done(answer.id)
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 1
        assert await store.revisions(TENANT, answer.id) == []
        assert await store.reviews(TENANT, state=None) == []


# --- taken back ---


async def a_decision_taken_back_leaves_everything_as_it_was(opener: Opener) -> None:
    answer, tasks = uncertified(items=2)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        for item, label in ((0, "cat"), (1, "owl")):  # one keeps the model's outputs, one takes them away
            review, after = await decided(store, label, item)
            assert (await store.labelled(None, "pets"))[item].label == label
            opener.wall_clock.now += UNDO_S - 0.1

            back = await store.undo(TENANT, review.id, "anna", review.fence)

            assert (back.state, back.reviewer, back.lease_s) == (ReviewState.CLAIMED, "anna", UNDO_LEASE_S)
            assert back.fence > review.fence
            assert back.label is None
            assert back.task == tasks[item]
            assert_same_answer(await store.answer(TENANT, answer.id), replace(answer, revision=after.revision + 1))
            # Nothing that was said of it is left: not even that it was said.
            assert [(i.label, i.disputed, i.by_person) for i in await store.labelled(None, "pets")] == [
                (None, False, False)
            ] * 2
        assert await store.verify_log() == []


async def each_change_of_a_review_has_its_own_time(opener: Opener) -> None:
    answer, tasks = uncertified()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review, _ = await decided(store, "owl")
        opener.wall_clock.now += 5.0
        back = await store.undo(TENANT, review.id, "anna", review.fence)
        assert back.claimed_s == opener.wall_clock.now
        opener.wall_clock.now += 3.0
        decided_s = opener.wall_clock.now
        await store.decide(TENANT, review.id, "anna", back.fence, "dog")
        opener.wall_clock.now += 60.0
        await store.correct(TENANT, review.id, "anna", "cat")
        history = await store.history(TENANT, review.id)
        assert history is not None
        assert (history.decided_s, history.review.label) == (decided_s, "cat")
        assert [one.at_s for one in await store.revisions(TENANT, answer.id)][-1] == opener.wall_clock.now
        (load,) = await store.workloads()
        assert [(one.claimed_s, one.decided_s) for one in load.taken] == [(decided_s - 3.0, decided_s)]


async def what_was_taken_back_can_be_decided_anew(opener: Opener) -> None:
    answer, tasks = uncertified()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review, _ = await decided(store, "owl")
        back = await store.undo(TENANT, review.id, "anna", review.fence)
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, review.id, "anna", review.fence, "owl")
        after = await store.decide(TENANT, review.id, "anna", back.fence, "dog")
        assert (after.status, after.items[0].label, after.revision) == (Status.FINAL, "dog", 4)
        (item,) = await store.labelled(None, "pets")
        assert (item.label, item.by_person) == ("dog", True)
        revisions = await store.revisions(TENANT, answer.id)
        assert told(list(revisions)) == [
            (1, "answer", None, [(0, "provisional", "cat")]),
            (2, "decide", "person:anna", [(0, "final", "owl")]),
            (3, "undo", "person:anna", [(0, "provisional", "cat")]),
            (4, "decide", "person:anna", [(0, "final", "dog")]),
        ]
        # In this order whatever the clock says: it stood still.
        times = [revision.at_s for revision in revisions[1:]]
        assert times == sorted(set(times))


async def taking_back_again_is_harmless(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "owl")
        back = await store.undo(TENANT, review.id, "anna", review.fence)
        opener.wall_clock.now += 60.0
        assert replace(await store.undo(TENANT, review.id, "anna", review.fence), lease_s=None) == replace(
            back, lease_s=None
        )
        found = await store.answer(TENANT, review.answer_id)
        assert found is not None
        assert found.revision == 3


async def what_was_taken_back_late_does_not_expire_before_it_can_be_decided_anew(opener: Opener) -> None:
    answer, tasks = deferred(expires_s=opener.wall_clock.now + 60.0)
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        opener.wall_clock.now += 59.0
        review, _ = await decided(store, "owl")
        opener.wall_clock.now += 2.0
        back = await store.undo(TENANT, review.id, "anna", review.fence)
        opener.wall_clock.now += UNDO_LEASE_S - 1.0
        assert (await store.maintain()).reviews_expired == 0
        assert (await store.decide(TENANT, review.id, "anna", back.fence, "dog")).status is Status.FINAL


async def only_one_s_own_last_decision_can_be_taken_back_and_only_soon(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        assert store.undo_s == UNDO_S
        await store.commit(*deferred(items=2))
        held = await claimed(store, item=1, reviewer="ben")
        review, after = await decided(store, "owl")
        for tenant, review_id, reviewer, fence, error in (
            ("other", review.id, "anna", review.fence, NotFound),
            (TENANT, "nonsense", "anna", review.fence, NotFound),
            (TENANT, review.id, "ben", review.fence, Conflict),
            (TENANT, review.id, "anna", review.fence + 1, Conflict),
            (TENANT, review.id, "anna", review.fence - 1, Conflict),
            (TENANT, held.id, "ben", held.fence, Conflict),
        ):
            with pytest.raises(error):
                await store.undo(tenant, review_id, reviewer, fence)
        opener.wall_clock.now += UNDO_S
        with pytest.raises(Conflict, match="can be taken back for 10 s, which are over; correct it instead"):
            await store.undo(TENANT, review.id, "anna", review.fence)
        assert_same_answer(await store.answer(TENANT, after.id), after)


async def what_was_corrected_or_given_up_since_is_not_taken_back(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "owl")
        await store.correct(TENANT, review.id, "anna", "dog")
        with pytest.raises(Conflict, match="was corrected since it was decided"):
            await store.undo(TENANT, review.id, "anna", review.fence)
    async with aclosing(await opener()) as store:
        answer, tasks = deferred(items=2, queue="more")
        await store.commit(answer, tasks)
        held = await store.claim_next(TENANT, "more", "anna", LEASE_S)
        assert held is not None
        await store.decide(TENANT, held.id, "anna", held.fence, "owl")
        await store.cancel(TENANT, answer.id, "app")
        with pytest.raises(Conflict, match=f"the rest of answer {answer.id} was given up since"):
            await store.undo(TENANT, held.id, "anna", held.fence)


async def the_key_of_an_answer_that_is_open_again_is_kept(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        fresh = await store.claim_key(KEY, BODY)
        assert isinstance(fresh, Fresh)
        await store.commit(answer, tasks, KEY, fresh.fence)
        review, _ = await decided(store, "owl")
        await store.undo(TENANT, review.id, "anna", review.fence)
        opener.wall_clock.now += 30 * DAY_S
        assert (await store.maintain()).answers_purged == 0
        assert await store.claim_key(KEY, BODY) == Done(answer.id)


# --- corrected ---


async def a_correction_is_a_revision_and_the_label_that_counts(opener: Opener) -> None:
    answer, tasks = uncertified()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review, first = await decided(store, "cat")
        assert first.items[0].outputs is not None
        await store.add_feedback(TENANT, answer.id, 0, "cat", "app")
        opener.wall_clock.now += DAY_S

        after = await store.correct(TENANT, review.id, "anna", "owl", "I looked again")

        assert (after.status, after.revision) == (Status.FINAL, 3)
        (item,) = after.items
        assert (item.label, item.decided_by, item.outputs, item.confidence) == ("owl", "person:anna", None, None)
        assert_same_answer(await store.answer(TENANT, answer.id), after)
        (labelled,) = await store.labelled(None, "pets")
        assert (labelled.label, labelled.disputed, labelled.by_person) == ("owl", False, True)
        assert (await state_of(store, review)).label == "owl"
        *_, last = await store.revisions(TENANT, answer.id)
        assert (last.event, last.actor, last.reason) == ("correct", "person:anna", "I looked again")
        assert_same_answer(await store.correct(TENANT, review.id, "anna", "owl"), after)
        assert await store.verify_log() == []


async def who_has_not_decided_corrects_only_by_leave(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review, _ = await decided(store, "cat")
        with pytest.raises(PermissionDenied, match=f"review {review.id} was decided by somebody else"):
            await store.correct(TENANT, review.id, "ben", "owl")
        after = await store.correct(TENANT, review.id, "lea", "owl", of_anybody=True)
        assert after.items[0].decided_by == "person:lea"
        with pytest.raises(PermissionDenied):
            await store.correct(TENANT, review.id, "anna", "cat")
        with pytest.raises(Conflict):
            await store.decide(TENANT, review.id, "anna", review.fence, "cat")


async def only_a_decision_can_be_corrected_and_by_a_label_of_its_form(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.commit(*deferred())
        review = await claimed(store)
        with pytest.raises(
            Conflict, match=f"review {review.id} is claimed; only the decision about an answer can be corrected"
        ):
            await store.correct(TENANT, review.id, "anna", "owl")
        await store.decide(TENANT, review.id, "anna", review.fence, "cat")
        for label in ("cow", "a\0b"):
            with pytest.raises(InvalidInput):
                await store.correct(TENANT, review.id, "anna", label)
        for tenant, review_id in (("other", review.id), (TENANT, "nonsense")):
            with pytest.raises(NotFound):
                await store.correct(tenant, review_id, "anna", "owl")


# --- revisions, and who waits ---


async def revisions_tell_who_changed_what(opener: Opener) -> None:
    answer, tasks = deferred(items=3, expires_s=opener.wall_clock.now + 60.0)
    tasks = [replace(tasks[0], expires_s=None), *tasks[1:]]
    recorded = accepted()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        review, _ = await decided(store, "owl", item=1)
        opener.wall_clock.now += 60.0
        await store.maintain()
        await store.correct(TENANT, review.id, "anna", "dog")
        await store.cancel(TENANT, answer.id, "app")
        revisions = await store.revisions(TENANT, answer.id)
        assert told(list(revisions)) == [
            (1, "answer", None, [(i, "provisional", "cat") for i in range(3)]),
            (2, "decide", "person:anna", [(1, "final", "owl")]),
            (3, "expire", None, [(2, "expired", "cat")]),
            (4, "correct", "person:anna", [(1, "final", "dog")]),
            (5, "cancel", "caller:app", [(0, "cancelled", "cat")]),
        ]
        assert revisions[0].at_s == answer.created_s
        assert (revisions[1].items[0].decided_by, revisions[2].items[0].decided_by) == ("person:anna", None)
        await store.record(recorded)
        assert told(list(await store.revisions(TENANT, recorded.id))) == [(1, "answer", None, [(0, "final", "cat")])]
        for tenant, answer_id in (("other", answer.id), ("other", recorded.id), (TENANT, AnswerId("0" * 32))):
            assert await store.revisions(tenant, answer_id) == []


async def waiting_ends_with_a_cancellation_and_with_the_end_of_time(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        for end in ("cancel", "expire"):
            answer, tasks = deferred(expires_s=opener.wall_clock.now + 60.0)
            await store.commit(answer, tasks)
            waiting = asyncio.ensure_future(store.wait(TENANT, answer.id, 60.0))
            await asyncio.sleep(0)
            if end == "cancel":
                await store.cancel(TENANT, answer.id, "app")
            else:
                opener.wall_clock.now += 61.0
                await store.maintain()
            found = await asyncio.wait_for(waiting, 5.0)
            assert found is not None
            assert found.open_items == ()


async def a_later_revision_ends_waiting_for_one(opener: Opener) -> None:
    answer, tasks = deferred(items=2)
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await one.commit(answer, tasks)
        for store, item, revision in ((one, 0, 2), (other, 1, 3)):
            waiting = asyncio.ensure_future(one.wait(TENANT, answer.id, 60.0, after=revision - 1))
            to_the_end = asyncio.ensure_future(one.wait(TENANT, answer.id, 0.01))
            still = await to_the_end
            assert still is not None
            assert still.revision == revision - 1
            assert not waiting.done()
            await decided(store, "dog", item)
            found = await asyncio.wait_for(waiting, 10.0)
            assert found is not None
            assert found.revision == revision
            assert_same_answer(await one.wait(TENANT, answer.id, 60.0, after=1), found)


async def decisions_about_one_answer_by_two_processes_are_all_counted(opener: Opener) -> None:
    items = 8
    answer, tasks = deferred(items=items)
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        await one.commit(answer, tasks)
        held = [await claimed(one, item) for item in range(items)]
        after = await asyncio.gather(
            *(
                (one, other)[i % 2].decide(TENANT, review.id, "anna", review.fence, LABELS[i % 3])
                for i, review in enumerate(held)
            )
        )
        assert sorted(each.revision for each in after) == list(range(2, items + 2))
        found = await other.answer(TENANT, answer.id)
        assert found is not None
        assert (found.status, found.revision) == (Status.FINAL, items + 1)
        assert [r.number for r in await one.revisions(TENANT, answer.id)] == list(range(1, items + 2))
        opener.wall_clock.now += 8 * DAY_S
        assert (await one.maintain()).answers_purged == 1


async def a_final_answer_s_age_is_that_of_its_first_end(opener: Opener) -> None:
    answer, tasks = deferred()
    async with aclosing(await opener()) as store:
        await store.commit(answer, tasks)
        await decide_all(store)
        (review,) = await store.reviews(TENANT, state=None)
        opener.wall_clock.now += 6 * DAY_S
        await store.correct(TENANT, review.id, "anna", "owl")
        opener.wall_clock.now += DAY_S + 1
        assert (await store.maintain()).answers_purged == 1


ENDINGS: tuple[Check, ...] = (
    each_change_of_a_review_has_its_own_time,
    cancelling_ends_what_is_open_and_leaves_what_was_decided,
    cancelling_again_or_too_late_changes_nothing,
    two_who_cancel_make_one_revision,
    a_decision_and_a_cancellation_at_once_are_one_of_both,
    the_key_of_a_cancelled_answer_gives_it_for_a_day,
    what_nobody_decides_in_time_expires_by_upkeep_and_is_never_approved,
    a_decision_before_upkeep_counts,
    many_expire_in_one_round,
    the_key_and_the_age_of_an_expired_answer_are_those_of_a_closed_one,
    a_decision_taken_back_leaves_everything_as_it_was,
    what_was_taken_back_can_be_decided_anew,
    taking_back_again_is_harmless,
    what_was_taken_back_late_does_not_expire_before_it_can_be_decided_anew,
    only_one_s_own_last_decision_can_be_taken_back_and_only_soon,
    what_was_corrected_or_given_up_since_is_not_taken_back,
    the_key_of_an_answer_that_is_open_again_is_kept,
    a_correction_is_a_revision_and_the_label_that_counts,
    who_has_not_decided_corrects_only_by_leave,
    only_a_decision_can_be_corrected_and_by_a_label_of_its_form,
    revisions_tell_who_changed_what,
    waiting_ends_with_a_cancellation_and_with_the_end_of_time,
    a_later_revision_ends_waiting_for_one,
    decisions_about_one_answer_by_two_processes_are_all_counted,
    a_final_answer_s_age_is_that_of_its_first_end,
)
