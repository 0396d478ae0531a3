"""What every store must do where people are checked by people; run as `conformance` is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from backends.errors import Conflict, InvalidInput
from gateway.answer import Answer, Status
from gateway.sight import as_seen_by
from gateway.store.contract import (
    Erasure,
    GoldCount,
    GoldItem,
    OpinionKind,
    Proposal,
    Purpose,
    QualityCounts,
    Review,
    ReviewState,
    ReviewTask,
    SecondLabel,
    SecondOpinion,
    Step,
    Store,
)
from router.contract import ONE_PERSON, LabelQuality
from tests.unit.gateway.store.conformance import DAY_S, LEASE_S, Check, Opener
from tests.unit.gateway.store.samples import LABELS, TENANT, assert_same_answer, deferred, seen, uncertified

TWO_OF_THREE = LabelQuality(needed=2, of=3)
SECONDS = LabelQuality(second_opinion=1.0)
GOLD = LabelQuality(gold=1.0)


async def hand_over(store: Store, quality: LabelQuality, *, items: int = 1, scored: bool = False) -> Answer:
    """An answer whose items wait for people, who are asked as *quality* says."""
    answer, tasks = uncertified(items=items) if scored else deferred(items=items)
    await store.commit(answer, [replace(task, quality=quality) for task in tasks])
    return answer


async def say(store: Store, reviewer: str, label: str, queue: str = "pets") -> Review:
    """*reviewer* takes the next review of *queue* and decides it as *label*; the review as they saw it."""
    review = await store.claim_next(TENANT, queue, reviewer, LEASE_S)
    assert review is not None, f"nothing is there for {reviewer}"
    await store.decide(TENANT, review.id, reviewer, review.fence, label)
    return review


async def of_purpose(store: Store, purpose: Purpose) -> Sequence[Review]:
    """All reviews of the tenant that are there for *purpose*."""
    return [review for review in await store.reviews(TENANT, state=None) if review.panel.purpose is purpose]


async def events(store: Store, answer: Answer) -> tuple[str | None, Status, int]:
    """The first item's label and status, and the answer's revision."""
    found = await store.answer(TENANT, answer.id)
    assert found is not None
    return found.items[0].label, found.items[0].status, found.revision


# --- several opinions ---


async def an_item_is_final_once_enough_people_agree(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, TWO_OF_THREE)
        await say(store, "anna", "dog")
        assert await events(store, answer) == ("cat", Status.PROVISIONAL, 1)
        assert [review.state for review in await store.reviews(TENANT, state=None)] == [ReviewState.OPEN]
        await say(store, "ben", "dog")
        assert await events(store, answer) == ("dog", Status.FINAL, 2)
        (review,) = await store.reviews(TENANT, state=None)
        assert (review.state, review.label, review.reviewer) == (ReviewState.DECIDED, "dog", "ben")
        assert await store.verify_log() == []


async def a_third_opinion_decides_between_two(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, TWO_OF_THREE)
        await say(store, "anna", "dog")
        seen = await say(store, "ben", "owl")
        assert (seen.opinions, seen.panel.adjudicating) == ((), False)
        await say(store, "cleo", "dog")
        assert await events(store, answer) == ("dog", Status.FINAL, 2)
        said = [(one.reviewer, one.label, one.number, one.kind) for one in await store.opinions(TENANT)]
        assert said == [
            ("anna", "dog", 1, OpinionKind.PANEL),
            ("ben", "owl", 2, OpinionKind.PANEL),
            ("cleo", "dog", 3, OpinionKind.PANEL),
        ]


async def where_nobody_agrees_somebody_else_decides_and_sees_the_opinions(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, replace(TWO_OF_THREE, adjudicate="seniors"))
        for reviewer, label in zip(("anna", "ben", "cleo"), LABELS, strict=True):
            await say(store, reviewer, label)
        assert await store.claim_next(TENANT, "pets", "dora", LEASE_S) is None
        for reviewer in ("anna", "ben", "cleo"):
            assert await store.claim_next(TENANT, "seniors", reviewer, LEASE_S) is None
        seen = await say(store, "dora", "owl", "seniors")
        assert (seen.opinions, seen.panel.adjudicating) == (LABELS, True)
        assert await events(store, answer) == ("owl", Status.FINAL, 2)
        last = (await store.opinions(TENANT))[-1]
        for queue in ("pets", "seniors"):
            assert len(await store.opinions(TENANT, queue)) == 4
        assert (last.reviewer, last.kind, last.number) == ("dora", OpinionKind.ADJUDICATION, 4)


async def without_a_queue_for_it_the_same_one_has_who_adjudicates(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, LabelQuality(needed=2, of=2))
        await say(store, "anna", "dog")
        await say(store, "ben", "owl")
        seen = await say(store, "cleo", "cat")
        assert seen.opinions == ("dog", "owl")
        assert await events(store, answer) == ("cat", Status.FINAL, 2)


async def nobody_gives_two_opinions(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, TWO_OF_THREE)
        first = await say(store, "anna", "dog")
        assert await store.claim_next(TENANT, "pets", "anna", LEASE_S) is None
        with pytest.raises(Conflict, match="is for somebody else: you have said what its item is"):
            await store.claim(TENANT, first.id, "anna", LEASE_S)
        with pytest.raises(Conflict, match="has another opinion of yours, and nobody gives two"):
            await store.decide(TENANT, first.id, "anna", first.fence, "owl")
        same = await store.decide(TENANT, first.id, "anna", first.fence, "dog")
        assert_same_answer(same, answer)
        assert len(await store.opinions(TENANT)) == 1
        await say(store, "ben", "dog")
        final = await store.decide(TENANT, first.id, "anna", first.fence, "dog")
        assert final.items[0].label == "dog"


async def an_opinion_needs_the_claim_like_any_decision(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await hand_over(store, TWO_OF_THREE)
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        assert held is not None
        with pytest.raises(InvalidInput, match="is not a choice of this review"):
            await store.decide(TENANT, held.id, "anna", held.fence, "cow")
        opener.clock.now += LEASE_S + 1
        with pytest.raises(Conflict, match="is not held under this claim any more"):
            await store.decide(TENANT, held.id, "anna", held.fence, "dog")
        assert await store.opinions(TENANT) == []


async def two_processes_hear_as_many_opinions_as_are_asked_for(opener: Opener) -> None:
    async with aclosing(await opener()) as one, aclosing(await opener()) as other:
        answers = [await hand_over(one, TWO_OF_THREE) for _ in range(10)]

        async def work(store: Store, reviewer: str) -> None:
            while True:
                found = await store.claim_next(TENANT, "pets", reviewer, LEASE_S)
                if found is None:
                    return
                await store.decide(TENANT, found.id, reviewer, found.fence, "dog")

        await asyncio.gather(*(work((one, other)[number % 2], f"reviewer {number}") for number in range(6)))
        said = await other.opinions(TENANT)
        assert len({(opinion.subject, opinion.reviewer) for opinion in said}) == len(said) == 20
        for answer in answers:
            assert await events(other, answer) == ("dog", Status.FINAL, 2)
        assert await one.verify_log() == []


# --- second opinions ---


async def a_second_opinion_is_blind_and_changes_nothing(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, SECONDS)
        await say(store, "anna", "dog")
        assert await events(store, answer) == ("dog", Status.FINAL, 2)
        waited = await store.wait(TENANT, answer.id, 5.0)
        assert waited is not None and not waited.open_items  # noqa: PT018
        assert await store.claim_next(TENANT, "pets", "anna", LEASE_S) is None
        seen = await say(store, "ben", "owl")
        assert seen.panel.blind
        assert (seen.task.proposals, seen.opinions, seen.label) == ((), (), None)
        assert seen.task.payload == b"\x89PNG\0\0"
        assert await events(store, answer) == ("dog", Status.FINAL, 2)
        assert await store.claim_next(TENANT, "pets", "cleo", LEASE_S) is None
        assert await store.quality_counts() == {"pets": QualityCounts(seconds_differed=1)}
        assert await store.verify_log() == []


async def what_was_decided_is_marked_until_the_second_opinion_is_there(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await hand_over(store, SECONDS)
        (before,) = await of_purpose(store, Purpose.DECIDE)
        assert before.panel.second is SecondOpinion.DRAWN
        await say(store, "anna", "dog")
        (decided,) = await of_purpose(store, Purpose.DECIDE)
        assert decided.panel.second is SecondOpinion.ASKED
        assert await store.quality_counts() == {"pets": QualityCounts(seconds_asked=1)}
        await say(store, "ben", "dog")
        (decided,) = await of_purpose(store, Purpose.DECIDE)
        assert decided.panel.second is SecondOpinion.GIVEN
        assert await store.quality_counts() == {"pets": QualityCounts(seconds_agreed=1)}


async def second_opinions_that_differ_are_adjudicated_where_a_queue_is_named(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, replace(SECONDS, adjudicate="seniors"))
        await say(store, "anna", "dog")
        await say(store, "ben", "owl")
        for reviewer in ("anna", "ben"):
            assert await store.claim_next(TENANT, "seniors", reviewer, LEASE_S) is None
        seen = await say(store, "cleo", "owl", "seniors")
        assert (seen.opinions, seen.panel.blind, seen.task.proposals) == (("dog", "owl"), False, ())
        assert await events(store, answer) == ("dog", Status.FINAL, 2)
        assert await store.reviews(TENANT) == []


async def other_items_are_not_held_up_by_second_opinions(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, SECONDS, items=2)
        reviews = await of_purpose(store, Purpose.DECIDE)
        for review in reviews:
            claimed = await store.claim(TENANT, review.id, "anna", LEASE_S)
            final = await store.decide(TENANT, review.id, "anna", claimed.fence, "dog")
        assert final.status is Status.FINAL
        assert len(await store.reviews(TENANT)) == 2
        assert await store.quality_counts() == {"pets": QualityCounts(seconds_asked=2)}
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 1
        assert await store.answer(TENANT, answer.id) is None
        assert await store.reviews(TENANT, state=None) == []
        assert await store.quality_counts() == {}, "nobody is asked for them any more"


async def of_what_is_decided_a_share_is_asked_about_again(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, LabelQuality(second_opinion=0.3), items=200)
        drawn = [review.task.item for review in await of_purpose_of(store, 200) if review.panel.second != "none"]
        assert 30 <= len(drawn) <= 90
        _, tasks = deferred(items=200)
        await store.commit(answer, [replace(task, quality=LabelQuality(second_opinion=0.3)) for task in tasks])
        again = [review.task.item for review in await of_purpose_of(store, 200) if review.panel.second != "none"]
        assert again == drawn


async def of_purpose_of(store: Store, limit: int) -> Sequence[Review]:
    """As many reviews as *limit*."""
    return await store.reviews(TENANT, state=None, limit=limit)


async def labels_tell_what_second_opinions_came_to(opener: Opener) -> None:
    asked = replace(SECONDS, adjudicate="seniors")
    async with aclosing(await opener()) as store:
        for _ in range(5):
            await hand_over(store, asked, scored=True)
        await hand_over(store, LabelQuality(), scored=True)
        for _ in range(6):
            await say(store, "anna", "dog")
        for label in ("dog", "owl", "owl", "owl"):
            await say(store, "ben", label)
        for label in ("dog", "owl"):
            await say(store, "cleo", label, "seniors")
        found = await store.labelled(TENANT, "pets")
        assert {item.label for item in found} == {"dog"}
        assert all(item.by_person for item in found)
        assert sorted(item.second for item in found) == sorted(SecondLabel)
        (in_dispute,) = [item for item in found if item.second is SecondLabel.DIFFERED]
        opener.wall_clock.now += 8 * DAY_S
        await store.maintain()
        after = await store.labelled(TENANT, "pets")
        none, asked_before = SecondLabel.NONE, SecondLabel.ASKED
        assert after == [replace(one, second=none) if one.second is asked_before else one for one in found]
        assert not any(one.settles for one in await store.opinions(TENANT) if one.subject == in_dispute.answer_id)


async def a_label_that_was_corrected_is_what_second_opinions_are_compared_with(opener: Opener) -> None:
    asked = replace(SECONDS, adjudicate="seniors")
    agreed = [("cat", "cat", None, "cat"), ("cat", "cat", None, "dog")]
    settled = [("dog", "cat", "dog", label) for label in ("dog", "owl", "cat")]
    overruled = [("dog", "cat", "cat", label) for label in ("dog", "cat")]
    open_ = [("dog", "cat", None, label) for label in ("dog", "cat")]
    found = []
    async with aclosing(await opener()) as store:
        for first, second, adjudicated, corrected in (*agreed, *settled, *overruled, *open_):
            answer = await hand_over(store, asked, scored=True)
            decided = await say(store, "anna", first)
            await say(store, "ben", second)
            if adjudicated is not None:
                await say(store, "cleo", adjudicated, "seniors")
            await store.correct(TENANT, decided.id, "olga", corrected, of_anybody=True)
            (item,) = [item for item in await store.labelled(TENANT, "pets") if item.answer_id == answer.id]
            assert item.label == corrected
            found.append(item.second)
    assert found == [
        *(SecondLabel.AGREED, SecondLabel.DIFFERED),
        *(SecondLabel.UPHELD, SecondLabel.OVERRULED, SecondLabel.OVERRULED),
        *(SecondLabel.OVERRULED, SecondLabel.UPHELD),
        *(SecondLabel.DIFFERED, SecondLabel.DIFFERED),
    ]
    assert [one.is_in_doubt for one in found] == [False, True, False, True, True, True, False, True, True]
    assert [one.differs for one in found] == [False] + [True] * 8


# --- gold items ---


def known(label: str, *, proposals: tuple[Proposal, ...] = (), payload: bytes = b"known") -> GoldItem:
    """A gold item."""
    return GoldItem(TENANT, "pets", label, payload, "text/plain; charset=utf-8", proposals)


async def gold_items_stand_beside_real_ones_and_look_alike(opener: Opener) -> None:
    proposals = (Proposal("fast", "owl", 0.4),)
    async with aclosing(await opener()) as store:
        assert await store.add_gold([known("dog", proposals=proposals)]) == 1
        answer = await hand_over(store, GOLD)
        (real,) = await of_purpose(store, Purpose.DECIDE)
        (gold,) = await of_purpose(store, Purpose.GOLD)
        assert (gold.route, gold.task.queue, gold.task.due_s) == (real.route, real.task.queue, real.task.due_s)
        assert (gold.task.labels, gold.task.reason, gold.task.item) == (real.task.labels, real.task.reason, 0)
        assert gold.task.proposals == proposals
        assert not gold.panel.blind
        assert gold.answer_id != answer.id
        beside = await store.answer(TENANT, gold.answer_id)
        assert beside is not None
        assert (beside.items[0].label, beside.open_items, beside.max_error) == ("owl", (0,), answer.max_error)


async def gold_without_proposals_is_blind(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog")])
        await hand_over(store, GOLD)
        (gold,) = await of_purpose(store, Purpose.GOLD)
        assert gold.panel.blind


async def a_label_of_a_gold_item_is_compared_and_touches_nothing_else(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog")])
        answer = await hand_over(store, GOLD, scored=True)
        before = await store.labelled(TENANT, "pets")
        (gold,) = await of_purpose(store, Purpose.GOLD)
        for reviewer, label in (("anna", "dog"),):
            claimed = await store.claim(TENANT, gold.id, reviewer, LEASE_S)
            told = await store.decide(TENANT, gold.id, reviewer, claimed.fence, label)
        assert (told.id, told.status, told.items[0].label) == (gold.answer_id, Status.FINAL, "dog")
        assert_same_answer(await store.decide(TENANT, gold.id, "anna", claimed.fence, "dog"), told)
        assert await store.labelled(TENANT, "pets") == before
        assert await events(store, answer) == ("cat", Status.PROVISIONAL, 1)
        (opinion,) = await store.opinions(TENANT)
        assert (opinion.kind, opinion.label, opinion.truth, opinion.number) == (OpinionKind.GOLD, "dog", "dog", None)
        assert await store.quality_counts() == {"pets": QualityCounts(gold_right=1)}
        assert await store.gold(TENANT) == {"pets": GoldCount(1, 1)}
        assert await store.verify_log() == []


async def nobody_is_asked_about_a_gold_item_twice(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog")])
        await hand_over(store, GOLD)
        (gold,) = await of_purpose(store, Purpose.GOLD)
        claimed = await store.claim(TENANT, gold.id, "anna", LEASE_S)
        await store.decide(TENANT, gold.id, "anna", claimed.fence, "owl")
        await hand_over(store, GOLD)
        fresh = next(r for r in await of_purpose(store, Purpose.GOLD) if r.state is ReviewState.OPEN)
        with pytest.raises(Conflict, match="is for somebody else"):
            await store.claim(TENANT, fresh.id, "anna", LEASE_S)
        claimed = await store.claim(TENANT, fresh.id, "ben", LEASE_S)
        await store.decide(TENANT, fresh.id, "ben", claimed.fence, "dog")
        assert await store.quality_counts() == {"pets": QualityCounts(gold_right=1, gold_wrong=1)}


async def gold_is_asked_in_turn_and_one_at_a_time(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        items = [known("dog", payload=f"known {number}".encode()) for number in range(3)]
        await store.add_gold([*items, known("cow")])  # the tasks have no such label
        for _ in range(5):
            await hand_over(store, GOLD)
        asked = await of_purpose(store, Purpose.GOLD)
        assert len({review.panel.subject for review in asked}) == len(asked) == 3


async def gold_that_nobody_labels_in_time_is_taken_back(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog")])
        answer, (task,) = deferred(due_s=opener.wall_clock.now + 3600.0)
        await store.commit(answer, [replace(task, quality=GOLD)])
        opener.wall_clock.now += 3599.0
        await store.maintain()
        assert len(await store.reviews(TENANT)) == 2
        opener.wall_clock.now += 2.0
        await store.maintain()
        (left,) = await store.reviews(TENANT)
        assert left.answer_id == answer.id


async def adding_gold_again_replaces_it_and_removing_ends_it(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        assert await store.add_gold([known("dog"), known("owl", payload=b"other")]) == 2
        assert await store.add_gold([known("owl"), known("cat", payload=b"third")]) == 1
        await hand_over(store, GOLD)
        assert await store.remove_gold("somebody else", "pets") == 0
        assert await store.remove_gold(TENANT, "pets") == 3
        assert await of_purpose(store, Purpose.GOLD) == []
        assert await store.gold(TENANT) == {}
        await hand_over(store, GOLD)
        assert len(await store.reviews(TENANT)) == 2


async def gold_that_shows_what_is_erased_goes_with_all_that_was_asked_about_it(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, ONE_PERSON)
        await say(store, "anna", "dog")
        (decided,) = await of_purpose(store, Purpose.DECIDE)
        shown = await store.review(TENANT, decided.id)
        assert shown is not None
        await store.add_gold([known("dog", payload=shown.task.payload)])
        for reviewer, label in (("ben", "dog"), ("cleo", "owl")):
            await hand_over(store, GOLD)
            gold = next(r for r in await of_purpose(store, Purpose.GOLD) if r.state is ReviewState.OPEN)
            held = await store.claim(TENANT, gold.id, reviewer, LEASE_S)
            await store.decide(TENANT, gold.id, reviewer, held.fence, label)
        await hand_over(store, GOLD)
        await store.add_gold([known("dog")])
        erasure = Erasure(TENANT, "operator:olga", answer_id=answer.id)

        erased = await store.erase(erasure, lambda _: LABELS)

        assert (erased.answers, erased.reviews, erased.gold) == (1, 1, 1)
        assert await of_purpose(store, Purpose.GOLD) == []
        assert await store.gold(TENANT) == {"pets": GoldCount(1, 2)}  # what people chose tells nothing of it
        assert await store.quality_counts() == {"pets": QualityCounts(gold_right=1, gold_wrong=1)}
        assert (await store.erase(erasure, lambda _: LABELS)).gold == 0
        assert await store.verify_log() == []


async def committing_again_asks_no_more_gold(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog", payload=bytes([number])) for number in range(5)])
        answer, tasks = deferred()
        asked: list[ReviewTask] = [replace(task, quality=GOLD) for task in tasks]
        for _ in range(3):
            await store.commit(answer, asked)
        assert len(await store.reviews(TENANT)) == 2


async def opinions_are_a_tenant_s_own(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await hand_over(store, TWO_OF_THREE)
        await say(store, "anna", "dog")
        opener.wall_clock.now += 10.0
        assert len(await store.opinions(None)) == 1
        assert await store.opinions("other") == []
        assert await store.opinions(TENANT, "elsewhere") == []
        assert await store.opinions(TENANT, "pets", opener.wall_clock.now) == []


# --- what is taken back, or not wanted any more ---


async def who_decided_last_of_several_can_take_that_back_and_say_something_else(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, TWO_OF_THREE)
        await say(store, "anna", "dog")
        seen = await say(store, "ben", "dog")
        again = await store.undo(TENANT, seen.id, "ben", seen.fence)
        assert (again.state, again.reviewer) == (ReviewState.CLAIMED, "ben")
        assert await events(store, answer) == ("cat", Status.PROVISIONAL, 3)
        assert [one.reviewer for one in await store.opinions(TENANT)] == ["anna"]
        await store.decide(TENANT, again.id, "ben", again.fence, "owl")
        await say(store, "cleo", "owl")
        assert await events(store, answer) == ("owl", Status.FINAL, 4)
        assert await store.verify_log() == []


async def taking_a_decision_back_takes_back_that_somebody_else_is_asked(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, SECONDS)
        seen = await say(store, "anna", "dog")
        assert len(await of_purpose(store, Purpose.SECOND)) == 1
        again = await store.undo(TENANT, seen.id, "anna", seen.fence)
        assert await of_purpose(store, Purpose.SECOND) == []
        assert await store.opinions(TENANT) == []
        await store.decide(TENANT, again.id, "anna", again.fence, "owl")
        (second,) = await of_purpose(store, Purpose.SECOND)
        assert second.state is ReviewState.OPEN
        assert await store.claim_next(TENANT, "pets", "ben", LEASE_S) is not None
        with pytest.raises(Conflict, match="somebody else has been shown what review"):
            await store.undo(TENANT, again.id, "anna", again.fence)
        assert await events(store, answer) == ("owl", Status.FINAL, 4)


async def a_second_opinion_and_a_gold_label_can_be_taken_back_like_any(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await store.add_gold([GoldItem(TENANT, "pets", "dog", b"known", "text/plain")])
        answer = await hand_over(store, replace(SECONDS, gold=1.0))
        for _ in range(2):
            await say(store, "anna", "dog")
        for purpose, reviewer in ((Purpose.SECOND, "ben"), (Purpose.GOLD, "anna")):
            (asked,) = await of_purpose(store, purpose)
            if purpose is Purpose.SECOND:
                await say(store, reviewer, "owl")
            (asked,) = await of_purpose(store, purpose)
            again = await store.undo(TENANT, asked.id, reviewer, asked.fence)
            assert again.state is ReviewState.CLAIMED
            with pytest.raises(Conflict, match="only the decision about an answer can be corrected"):
                await store.correct(TENANT, asked.id, reviewer, "cat")
            await store.decide(TENANT, asked.id, reviewer, again.fence, "cat")
        assert {one.label for one in await store.opinions(TENANT) if one.kind is not OpinionKind.FIRST} == {"cat"}
        assert await events(store, answer) == ("dog", Status.FINAL, 2)


async def whoever_adjudicates_can_take_that_back_and_still_sees_what_the_others_said(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await hand_over(store, replace(SECONDS, adjudicate="seniors"))
        await say(store, "anna", "dog")
        await say(store, "ben", "owl")
        seen = await say(store, "cleo", "owl", "seniors")
        again = await store.undo(TENANT, seen.id, "cleo", seen.fence)
        assert (again.opinions, again.panel.adjudicating) == (("dog", "owl"), True)
        assert as_seen_by("cleo", again).opinions == ("dog", "owl")
        assert as_seen_by("dora", again).opinions == ()
        (first,) = await of_purpose(store, Purpose.DECIDE)
        assert first.panel.second is SecondOpinion.GIVEN
        assert as_seen_by("cleo", first).label == "dog"
        await store.decide(TENANT, again.id, "cleo", again.fence, "dog")
        assert await store.quality_counts() == {"pets": QualityCounts(seconds_differed=1)}


async def what_people_differ_on_is_seen_by_who_has_taken_it_to_decide(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await hand_over(store, LabelQuality(needed=2, of=2))
        for reviewer, label in (("anna", "dog"), ("ben", "owl")):
            seen = await say(store, reviewer, label)
        open_ = await store.review(TENANT, seen.id)
        assert open_ is not None
        assert as_seen_by("cleo", open_).opinions == ()
        held = await store.claim(TENANT, seen.id, "cleo", LEASE_S)
        assert as_seen_by("cleo", held).opinions == ("dog", "owl")
        assert as_seen_by("ben", held).opinions == ()


async def what_people_differ_on_comes_to_another_queue_anew(opener: Opener) -> None:
    steps = {"seniors": Step("managers", 60.0)}
    async with aclosing(await opener()) as store:
        answer, (task,) = deferred(due_s=opener.wall_clock.now + 100.0)
        await store.commit(answer, [replace(task, quality=LabelQuality(needed=2, of=2, adjudicate="seniors"))])
        held = await store.claim_next(TENANT, "pets", "anna", LEASE_S)
        opener.wall_clock.now += 150.0
        (overdue,) = await store.escalate(steps)
        assert overdue.to is None
        assert held is not None
        await store.decide(TENANT, held.id, "anna", held.fence, "dog")
        await say(store, "ben", "owl")

        (moved,) = await store.reviews(TENANT, "seniors")
        assert (moved.overdue_s, moved.task.due_s) == (None, opener.wall_clock.now + 100.0)
        await store.claim_next(TENANT, "seniors", "cleo", LEASE_S)
        (load,) = [one for one in await store.workloads() if one.queue == "seniors"]
        assert [one.arrived_s for one in load.taken] == [opener.wall_clock.now]
        assert await store.escalate(steps) == []
        opener.clock.now += LEASE_S + 1.0
        opener.wall_clock.now += 101.0
        (escalated,) = await store.escalate(steps)
        assert escalated.to == "managers"
        await say(store, "cleo", "owl", "managers")
        assert await events(store, answer) == ("owl", Status.FINAL, 2)
        assert await store.verify_log() == []


async def who_has_time_left_for_what_others_differ_on_has_no_more(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        due_s = opener.wall_clock.now + 100.0
        answer, (task,) = deferred(due_s=due_s)
        await store.commit(answer, [replace(task, quality=LabelQuality(needed=2, of=2, adjudicate="seniors"))])
        await say(store, "anna", "dog")
        opener.wall_clock.now += 50.0
        await say(store, "ben", "owl")
        (moved,) = await store.reviews(TENANT, "seniors")
        assert moved.task.due_s == due_s


async def what_is_overdue_is_decided_and_checked_like_any(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer, (task,) = deferred(due_s=opener.wall_clock.now + 100.0)
        await store.commit(answer, [replace(task, quality=replace(SECONDS, adjudicate="seniors"))])
        opener.wall_clock.now += 150.0
        await store.escalate({})
        seen = await say(store, "anna", "dog")
        assert seen.overdue_s == opener.wall_clock.now
        (second,) = await of_purpose(store, Purpose.SECOND)
        assert (second.overdue_s, second.task.due_s) == (None, opener.wall_clock.now + 100.0)
        opener.wall_clock.now += 150.0
        assert await store.escalate({"pets": Step("managers", 60.0)}) == []
        await say(store, "ben", "owl")
        assert (await say(store, "cleo", "dog", "seniors")).opinions == ("dog", "owl")
        assert await events(store, answer) == ("dog", Status.FINAL, 2)


async def a_place_is_that_of_what_an_answer_waits_for(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, SECONDS, items=2)
        await say(store, "anna", "dog")
        other = await hand_over(store, LabelQuality())
        (waits,) = [r for r in await store.reviews(TENANT) if r.answer_id == answer.id and not r.is_blind]
        (place,) = await store.places(TENANT, answer.id)
        assert place.ahead == (await store.reviews(TENANT)).index(waits)
        held = await store.claim(TENANT, waits.id, "anna", LEASE_S)
        await store.decide(TENANT, waits.id, "anna", held.fence, "dog")
        assert await store.places(TENANT, answer.id) == []
        assert len(await store.places(TENANT, other.id)) == 1


async def a_gold_label_that_is_taken_back_leaves_its_answer_open(opener: Opener) -> None:
    proposals = (Proposal("fast", "owl", 0.4),)
    async with aclosing(await opener()) as store:
        await store.add_gold([known("dog", proposals=proposals), known("dog", payload=b"blind")])
        for _ in range(2):
            await hand_over(store, GOLD)
        for gold in await of_purpose(store, Purpose.GOLD):
            before = await store.answer(TENANT, gold.answer_id)
            assert before is not None
            held = await store.claim(TENANT, gold.id, "anna", LEASE_S)
            await store.decide(TENANT, gold.id, "anna", held.fence, "cat")
            await store.undo(TENANT, gold.id, "anna", held.fence)
            assert_same_answer(await store.answer(TENANT, gold.answer_id), replace(before, revision=3))
        opener.wall_clock.now += 8 * DAY_S
        assert (await store.maintain()).answers_purged == 0


async def what_stands_alone_takes_no_place_among_what_is_alike(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer, (task,) = deferred()
        await store.commit(seen(answer, task.payload), [task])
        (own,) = await store.reviews(TENANT)
        for quality in (LabelQuality(), SECONDS, SECONDS):
            opener.wall_clock.now += 1.0
            later, (task,) = deferred()
            await store.commit(seen(later, task.payload), [replace(task, quality=quality)])
        for review in await of_purpose(store, Purpose.DECIDE):
            if review.panel.second is SecondOpinion.DRAWN:
                held = await store.claim(TENANT, review.id, "anna", LEASE_S)
                await store.decide(TENANT, review.id, "anna", held.fence, "dog")
        assert len(await store.alike(TENANT, own.id, 2)) == 2
        assert [one.id for one in await store.alike(TENANT, own.id, 1)] == [own.id]


async def an_answer_is_cancelled_and_who_is_asked_to_check_it_still_is(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        answer = await hand_over(store, SECONDS, items=2)
        await say(store, "anna", "dog")
        cancelled = await store.cancel(TENANT, answer.id, "app")
        assert sorted(item.status for item in cancelled.items) == [Status.CANCELLED, Status.FINAL]
        (second,) = await of_purpose(store, Purpose.SECOND)
        assert second.state is ReviewState.OPEN
        await say(store, "ben", "dog")
        assert [one.label for one in await store.opinions(TENANT)] == ["dog", "dog"]


QUALITY_CHECKS: tuple[Check, ...] = (
    an_item_is_final_once_enough_people_agree,
    a_third_opinion_decides_between_two,
    where_nobody_agrees_somebody_else_decides_and_sees_the_opinions,
    without_a_queue_for_it_the_same_one_has_who_adjudicates,
    nobody_gives_two_opinions,
    an_opinion_needs_the_claim_like_any_decision,
    two_processes_hear_as_many_opinions_as_are_asked_for,
    a_second_opinion_is_blind_and_changes_nothing,
    what_was_decided_is_marked_until_the_second_opinion_is_there,
    second_opinions_that_differ_are_adjudicated_where_a_queue_is_named,
    other_items_are_not_held_up_by_second_opinions,
    of_what_is_decided_a_share_is_asked_about_again,
    labels_tell_what_second_opinions_came_to,
    a_label_that_was_corrected_is_what_second_opinions_are_compared_with,
    gold_items_stand_beside_real_ones_and_look_alike,
    gold_without_proposals_is_blind,
    a_label_of_a_gold_item_is_compared_and_touches_nothing_else,
    nobody_is_asked_about_a_gold_item_twice,
    gold_is_asked_in_turn_and_one_at_a_time,
    gold_that_nobody_labels_in_time_is_taken_back,
    adding_gold_again_replaces_it_and_removing_ends_it,
    gold_that_shows_what_is_erased_goes_with_all_that_was_asked_about_it,
    committing_again_asks_no_more_gold,
    opinions_are_a_tenant_s_own,
    who_decided_last_of_several_can_take_that_back_and_say_something_else,
    taking_a_decision_back_takes_back_that_somebody_else_is_asked,
    a_second_opinion_and_a_gold_label_can_be_taken_back_like_any,
    whoever_adjudicates_can_take_that_back_and_still_sees_what_the_others_said,
    what_people_differ_on_is_seen_by_who_has_taken_it_to_decide,
    what_people_differ_on_comes_to_another_queue_anew,
    who_has_time_left_for_what_others_differ_on_has_no_more,
    what_is_overdue_is_decided_and_checked_like_any,
    a_place_is_that_of_what_an_answer_waits_for,
    a_gold_label_that_is_taken_back_leaves_its_answer_open,
    what_stands_alone_takes_no_place_among_what_is_alike,
    an_answer_is_cancelled_and_who_is_asked_to_check_it_still_is,
)
