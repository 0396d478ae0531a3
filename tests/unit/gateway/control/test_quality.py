"""People who check people, as reviewers and operators see it: by API and in the browser."""

from __future__ import annotations

import html
import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.store.contract import GoldItem, Proposal, Purpose, QualityCounts, ReviewTask
from gateway.store.store import SqlStore
from gateway.telemetry import Telemetry
from router.contract import LabelQuality, Reason
from tests.unit.gateway.control.conftest import Clock, Plane
from tests.unit.gateway.control.test_reviews_api import Program
from tests.unit.gateway.store.samples import seen

LABELS = ("refund", "delivery", "other")
TWO_OF_THREE = LabelQuality(needed=2, of=3)
SECONDS = LabelQuality(second_opinion=1.0)
SECRET = "zebra"  # a model's label that must not be seen


async def hand_over(store: SqlStore, quality: LabelQuality, tenant: str = "default") -> Answer:
    """An answer of *tenant* whose only item waits for people, who are asked as *quality* says."""
    item = ItemAnswer(Status.PROVISIONAL, "fast", SECRET, None, 0.61, None, Reason.LOW_CONFIDENCE)
    answer = Answer(new_answer_id(), tenant, "tickets", time.time(), (item,))
    task = ReviewTask(
        item=0,
        queue="tickets",
        due_s=time.time() + 3600.0,
        labels=LABELS,
        payload=b"The parcel never came.",
        content_type="text/plain; charset=utf-8",
        proposals=(Proposal("fast", SECRET, 0.61),),
        reason=Reason.LOW_CONFIDENCE,
        quality=quality,
    )
    await store.commit(seen(answer, task.payload), [task])
    return answer


async def say(plane: Plane, name: str, label: str, queue: str = "tickets") -> tuple[dict[str, Any], dict[str, Any]]:
    """*name* takes the next review and decides it; what they were shown, and what they were told."""
    program = Program(plane, name)
    shown = await program.post("/v1/reviews:claim-next", {"queue": queue})
    assert shown.status_code == 200, f"nothing is there for {name}"
    review = shown.json()
    decided = await program.post(f"/v1/reviews/{review['id']}:decide", {"fence": review["fence"], "label": label})
    assert decided.status_code == 200, decided.text
    return review, decided.json()


# --- several opinions ---


async def test_several_decide_by_api_and_see_nothing_of_each_other(plane: Plane, store: SqlStore) -> None:
    answer = await hand_over(store, TWO_OF_THREE)

    first, told_first = await say(plane, "anna", "refund")
    second, told_second = await say(plane, "ben", "delivery")
    third, told_third = await say(plane, "cleo", "refund")

    assert (told_first["state"], told_first["answer_status"]) == ("open", "provisional")
    assert (told_second["state"], told_second["reviewer"]) == ("open", "ben")
    assert (told_third["state"], told_third["answer_status"], told_third["answer_id"]) == (
        "decided",
        "final",
        answer.id,
    )
    for shown in (second, third):
        assert {**shown, "fence": 0, "reviewer": "", "lease_s": 0} == {
            **first, "fence": 0, "reviewer": "", "lease_s": 0
        }  # fmt: skip
        assert (shown["opinions"], shown["label"]) == ([], None)


async def test_whoever_adjudicates_sees_what_others_said(plane: Plane, store: SqlStore) -> None:
    answer = await hand_over(store, replace(TWO_OF_THREE, of=2, adjudicate="seniors"))
    await say(plane, "anna", "refund")
    await say(plane, "ben", "delivery")

    shown, told = await say(plane, "cleo", "other", "seniors")

    assert (shown["opinions"], shown["queue"]) == (["refund", "delivery"], "seniors")
    assert (told["state"], told["answer_id"]) == ("decided", answer.id)
    final = await store.answer("default", answer.id)
    assert final is not None
    assert (final.items[0].label, final.revision) == ("other", 2)


async def test_a_second_opinion_of_the_same_person_is_a_conflict(plane: Plane, store: SqlStore) -> None:
    await hand_over(store, TWO_OF_THREE)
    review, _ = await say(plane, "anna", "refund")
    anna = Program(plane, "anna")

    again = await anna.post(f"/v1/reviews/{review['id']}:claim")
    other = await anna.post(f"/v1/reviews/{review['id']}:decide", {"fence": review["fence"], "label": "other"})
    same = await anna.post(f"/v1/reviews/{review['id']}:decide", {"fence": review["fence"], "label": "refund"})

    assert (again.status_code, other.status_code) == (409, 409)
    assert "is for somebody else: you have said what its item is" in again.json()["detail"]
    assert "nobody gives two" in other.json()["detail"]
    assert (same.status_code, same.json()["state"]) == (200, "open")


async def test_the_inbox_leads_several_through_an_item(plane: Plane, store: SqlStore) -> None:
    await hand_over(store, LabelQuality(needed=2, of=2))
    anna, ben, cleo = [await plane.reviewer(name) for name in ("anna", "ben", "cleo")]

    shown = await anna.get("/inbox/tickets/next")
    decided = await anna.press(shown, "decide", {"label": "refund"})
    nothing = await anna.get(decided.headers["location"])
    shown_ben = await ben.get("/inbox/tickets/next")
    await ben.press(shown_ben, "decide", {"label": "delivery"})
    shown_cleo = await cleo.get("/inbox/tickets/next")

    assert "The parcel never came." not in nothing.text
    assert "Decided <strong>" not in nothing.text  # an opinion that others are asked for, too, stands
    assert "What people say" not in shown_ben.text
    assert re.search(r"They differ, and yours decides: <b>refund</b>, <b>delivery</b>", shown_cleo.text)


async def test_the_inbox_tells_who_has_given_an_opinion_that_somebody_else_is_asked(
    plane: Plane, store: SqlStore
) -> None:
    await hand_over(store, TWO_OF_THREE)
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    await anna.press(shown, "decide", {"label": "refund"})
    (review,) = await store.reviews("default")

    page = await anna.get(f"/inbox/reviews/{review.id}")
    refused = await anna.press(page, "claim", {})

    assert refused.status_code == 409
    assert "You have said what this item is, and nobody is asked about one twice." in refused.text


# --- second opinions ---


async def test_a_blind_review_leads_to_nobody_s_label_on_any_edge(plane: Plane, store: SqlStore) -> None:
    """Every response about reviews that ben can get while he holds the second opinion."""
    answer = await hand_over(store, SECONDS)
    first, _ = await say(plane, "anna", "refund")
    ben, browser = Program(plane, "ben"), await plane.reviewer("ben")

    held = (await ben.post("/v1/reviews:claim-next", {"queue": "tickets"})).json()
    responses = [
        await ben.get(f"/v1/reviews/{held['id']}"),
        await ben.get(f"/v1/reviews/{first['id']}"),
        *[await ben.get(f"/v1/reviews?state={state}") for state in ("open", "claimed", "decided", "all")],
        await ben.post(f"/v1/reviews/{first['id']}:claim"),
        await ben.post(f"/v1/reviews/{first['id']}:decide", {"fence": 1, "label": "other"}),
        await browser.get("/inbox"),
        await browser.get("/inbox/tickets/next"),
        await browser.get(f"/inbox/reviews/{held['id']}"),
        await browser.get(f"/inbox/reviews/{first['id']}"),
        *[
            await browser.get(f"/inbox/{path}")
            for one in (held, first)
            for path in ("live", *(f"reviews/{one['id']}/{part}" for part in ("history", "live", "alike")))
        ],
    ]

    assert (held["blind"], held["answer_id"], held["proposals"], held["opinions"]) == (True, None, [], [])
    assert [response.status_code for response in responses] == [200] * 6 + [409] * 2 + [200] * 12
    for response in responses:
        assert SECRET not in response.text, response.text
        assert "anna" not in response.text
        if "json" in response.headers["content-type"]:
            for review in response.json().get("reviews", [response.json()]):
                assert review.get("label") is None
    assert "Not shown: this one is for your own opinion." in responses[9].text
    assert not any(answer.id in response.text for response in responses)


async def test_the_conflict_page_tells_no_label_that_is_hidden(plane: Plane, store: SqlStore) -> None:
    await hand_over(store, SECONDS)
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    shown = await anna.get("/inbox/tickets/next")
    (review,) = await store.reviews("default", state=None)
    await anna.press(shown, "decide", {"label": "delivery"})

    page = await ben.get(f"/inbox/reviews/{review.id}")
    token = re.search(r'name="token" value="([^"]*)"', (await ben.get("/inbox")).text)
    assert token is not None
    late = await ben.post(
        f"/inbox/reviews/{review.id}/decide", {"token": html.unescape(token[1]), "fence": "1", "label": "refund"}
    )

    assert late.status_code == 409
    assert "Somebody else decided this item." in late.text
    assert "delivery" not in late.text + page.text


async def test_who_decided_sees_their_own_label_and_everybody_does_once_the_second_is_there(
    plane: Plane, store: SqlStore
) -> None:
    await hand_over(store, SECONDS)
    first, _ = await say(plane, "anna", "refund")

    own = (await Program(plane, "anna").get(f"/v1/reviews/{first['id']}")).json()
    _, told = await say(plane, "ben", "refund")
    later = (await Program(plane, "cleo").get(f"/v1/reviews/{first['id']}")).json()

    assert (own["label"], own["reviewer"]) == ("refund", "anna")
    assert (told["state"], told["answer_id"], told["answer_status"]) == ("decided", None, None)
    assert (later["label"], later["reviewer"], len(later["proposals"])) == ("refund", "anna", 1)


async def test_a_second_opinion_is_taken_back_like_a_decision(plane: Plane, store: SqlStore) -> None:
    await hand_over(store, SECONDS)
    await say(plane, "anna", "refund")
    ben = await plane.reviewer("ben")
    decided = await ben.press(await ben.get("/inbox/tickets/next"), "decide", {"label": "other"})

    following = await ben.get(decided.headers["location"])
    undone = await ben.press(following, "undo", {})
    again = await ben.get(undone.headers["location"])
    await ben.press(again, "decide", {"label": "refund"})

    assert "Decided <strong>other</strong>" in following.text
    assert "The parcel never came." in again.text
    (given,) = [one for one in await store.opinions("default") if one.reviewer == "ben"]
    assert given.label == "refund"


async def test_several_opinions_are_given_at_once_and_none_twice(plane: Plane, store: SqlStore) -> None:
    for _ in range(3):
        await hand_over(store, TWO_OF_THREE)
    anna = await plane.reviewer("anna")
    (first, *_) = await store.reviews("default")
    asked = await anna.get(f"/inbox/reviews/{first.id}/alike")

    done = await anna.press(asked, "alike", {"label": "refund"})
    again = await anna.press(asked, "alike", {"label": "refund"})

    assert "3 items decided as refund" in done.text
    assert "0 items decided" in again.text
    assert again.text.count("you have said what it is, and somebody else is asked now") == 3
    assert len(await store.opinions("default")) == 3


# --- gold items ---


async def test_a_gold_item_reads_as_any_other(plane: Plane, store: SqlStore) -> None:
    proposals = (Proposal("fast", SECRET, 0.61),)
    gold = GoldItem("default", "tickets", "refund", b"Money back!", "text/plain; charset=utf-8", proposals)
    await store.add_gold([gold])
    await hand_over(store, LabelQuality(gold=1.0))
    anna = Program(plane, "anna")

    listed = (await anna.get("/v1/reviews")).json()["reviews"]
    read = [(await anna.get(f"/v1/reviews/{review['id']}")).json() for review in listed]
    pages = [(await (await plane.reviewer("anna")).get(f"/inbox/reviews/{review['id']}")).text for review in listed]

    varying = ("id", "answer_id", "payload", "created")
    one, other = [{key: value for key, value in review.items() if key not in varying} for review in read]
    assert one == other
    assert [set(review) for review in read] == [set(read[0])] * 2
    assert "gold" not in json.dumps(read) + "".join(pages)
    for review in read:
        claimed = (await anna.post(f"/v1/reviews/{review['id']}:claim")).json()
        decided = await anna.post(f"/v1/reviews/{review['id']}:decide", {"fence": claimed["fence"], "label": "refund"})
        assert decided.json() == {
            "id": review["id"],
            "state": "decided",
            "label": "refund",
            "reviewer": "anna",
            "answer_id": review["answer_id"],
            "answer_status": "final",
            "answer_revision": 2,
            "undo_s": 10.0,
        }


async def test_blind_gold_and_second_opinions_read_alike(plane: Plane, store: SqlStore, clock: Clock) -> None:
    await store.add_gold([GoldItem("default", "tickets", "refund", b"Money back!", "text/plain; charset=utf-8")])
    await hand_over(store, replace(SECONDS, gold=1.0))
    decides = next(r for r in await store.reviews("default") if r.panel.purpose is Purpose.DECIDE)
    claimed = await store.claim("default", decides.id, "anna", 60.0)
    await store.decide("default", decides.id, "anna", claimed.fence, "refund")

    listed = (await Program(plane, "ben").get("/v1/reviews")).json()["reviews"]

    varying = ("id", "created", "due")
    one, other = [{key: value for key, value in review.items() if key not in varying} for review in listed]
    assert one == other
    assert one["blind"] is True


# --- figures ---


async def filled(store: SqlStore, tenant: str = "default") -> None:
    """Twenty items of *tenant* that anna and ben labelled, differing on four."""
    for number in range(20):
        answer = await hand_over(store, TWO_OF_THREE, tenant)
        anna = "other" if number % 2 else "refund"
        for reviewer, label in (("anna", anna), ("ben", "delivery" if number < 4 else anna)):
            review = next(one for one in await store.reviews(tenant, limit=100) if one.answer_id == answer.id)
            claimed = await store.claim(tenant, review.id, reviewer, 60.0)
            await store.decide(tenant, review.id, reviewer, claimed.fence, label)


async def test_operators_read_how_far_reviewers_can_be_relied_on(keyed: Plane, store: SqlStore) -> None:
    await filled(store)

    response = await Program(keyed, "otto").get("/v1/reviewers?queue=tickets&since=2026-01-01T00:00:00Z")

    assert response.status_code == 200
    told = response.json()
    assert (told["queue"], told["since"], told["level"]) == ("tickets", "2026-01-01T00:00:00.000Z", 0.95)
    assert [row["reviewer"] for row in told["reviewers"]] == ["anna", "ben"]
    (pair,) = told["pairs"]
    assert pair["reviewers"] == ["anna", "ben"]
    assert pair["agreement"]["value"] == 0.8
    assert pair["agreement"]["items"] == pair["cohen_kappa"]["items"] == told["krippendorff_alpha"]["items"] == 20
    assert pair["cohen_kappa"]["low"] < pair["cohen_kappa"]["value"] < pair["cohen_kappa"]["high"] < 1
    assert told["pending"] == 4


@pytest.mark.parametrize("name", ["anna", "cleo"])
async def test_only_operators_read_figures_about_reviewers(keyed: Plane, name: str) -> None:
    response = await Program(keyed, name).get("/v1/reviewers")
    assert response.status_code == 403


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("since=yesterday", "`since` is 'yesterday', which is no moment"),
        ("who=anna", "query parameter 'who' is unknown; known are ['queue', 'since']"),
    ],
)
async def test_a_query_about_reviewers_that_cannot_be_read_says_why(plane: Plane, query: str, told: str) -> None:
    response = await Program(plane, "anna").get(f"/v1/reviewers?{query}")
    assert response.status_code == 400
    assert told in response.json()["detail"]


async def test_the_status_page_has_a_table_of_reviewers_once_there_is_something_to_tell(
    keyed: Plane, store: SqlStore
) -> None:
    otto = await keyed.reviewer("otto")
    before = (await otto.get("/")).text
    await filled(store)

    page = re.sub(r"\s+", " ", (await otto.get("/")).text)

    assert "<h2>Reviewers</h2>" not in before
    assert "<h2>Reviewers</h2>" in page
    assert re.search(r'<th scope="row">ben</th><td class="number">20</td>', page)
    assert "Krippendorff's alpha: 0.6" in html.unescape(page)
    assert "4 items on which opinions differ wait for somebody to decide." in page


async def test_the_status_page_tells_nothing_of_reviewers_of_other_tenants(keyed: Plane, store: SqlStore) -> None:
    await filled(store, "other")

    page = (await (await keyed.reviewer("otto")).get("/")).text

    assert "<h2>Reviewers</h2>" not in page
    assert "anna" not in page


def test_metrics_tell_of_checks_by_queue_and_of_no_reviewer() -> None:
    telemetry = Telemetry()
    telemetry.on_quality({"tickets": QualityCounts(5, 1, 40, 3, 2)})

    registry: CollectorRegistry = telemetry.registry
    for name, outcome, value in (
        ("pointsman_review_gold_labels", "right", 5),
        ("pointsman_review_gold_labels", "wrong", 1),
        ("pointsman_review_second_opinions", "agreed", 40),
        ("pointsman_review_second_opinions", "differed", 3),
        ("pointsman_review_second_opinions", "asked", 2),
    ):
        assert registry.get_sample_value(name, {"queue": "tickets", "outcome": outcome}) == value
