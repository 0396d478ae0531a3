"""Who may see, take and end what: queues, skills and leads of API keys, by the API and in the inbox."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator

import pytest

from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.people.options import QueueOptions, scope_of
from gateway.people.scope import QueueRole
from gateway.request import Role
from gateway.security import ApiKey, Authenticator, SecurityOptions, new_api_key
from gateway.store.contract import Review, ReviewState, ReviewTask
from gateway.store.store import SqlStore
from router.contract import Reason
from tests.unit.gateway.control.conftest import Clock, Plane, _plane
from tests.unit.gateway.control.test_reviews_api import Program
from tests.unit.gateway.store.samples import seen

QUEUES = {"tickets": QueueOptions(), "pages": QueueOptions(), "law": QueueOptions(skills=frozenset({"legal"}))}
REVIEWER, LEAD = QueueRole.REVIEWER, QueueRole.LEAD


@pytest.fixture
async def staffed(store: SqlStore) -> AsyncIterator[Plane]:
    """anna reviews tickets; so does gina, who knows German, and lena, who leads; paul reviews pages, rita anything.

    vera leads everywhere and knows all, as olga does in another tenant; cleo only calls.
    """
    people = {
        "anna": ("default", {"tickets": REVIEWER}, ()),
        "gina": ("default", {"tickets": REVIEWER}, ("german",)),
        "lena": ("default", {"tickets": LEAD}, ("german",)),
        "paul": ("default", {"pages": REVIEWER}, ()),
        "rita": ("default", None, ()),
        "vera": ("default", {"*": LEAD}, ("german", "legal")),
        "olga": ("other", {"*": LEAD}, ("german", "legal")),
    }
    pairs = {name: new_api_key() for name in (*people, "cleo")}
    keys = [
        ApiKey(name, pairs[name][1], tenant, frozenset({Role.REVIEWER}), scope_of(roles, skills, QUEUES))
        for name, (tenant, roles, skills) in people.items()
    ]
    keys.append(ApiKey("cleo", pairs["cleo"][1]))
    authenticator = Authenticator(SecurityOptions(tuple(keys)))
    opened = _plane(store, authenticator, {name: key for name, (key, _) in pairs.items()})
    yield opened
    await opened.aclose()


async def review_in(store: SqlStore, queue: str = "tickets", skills: tuple[str, ...] = ()) -> Review:
    """A review that waits there."""
    item = ItemAnswer(Status.PENDING, None, None, None, None, None, Reason.LOW_CONFIDENCE)
    answer = Answer(new_answer_id(), "default", "mail", 1.0, (item,))
    task = ReviewTask(0, queue, 4e9, ("a", "b"), b"hello", "text/plain", (), Reason.LOW_CONFIDENCE, skills=skills)
    await store.commit(seen(answer, task.payload), [task])
    return next(one for one in await store.reviews("default", limit=200) if one.answer_id == answer.id)


async def test_reviewers_are_listed_what_they_may_take_and_nothing_else(staffed: Plane, store: SqlStore) -> None:
    plain, german, page, law = [
        (await review_in(store, queue, skills)).id
        for queue, skills in (("tickets", ()), ("tickets", ("german",)), ("pages", ()), ("law", ()))
    ]

    async def listed(name: str) -> set[str]:
        return {row["id"] for row in (await Program(staffed, name).get("/v1/reviews")).json()["reviews"]}

    assert await listed("anna") == {plain}
    assert await listed("gina") == {plain, german}
    assert await listed("paul") == {page}
    assert await listed("rita") == {plain, page}
    assert await listed("vera") == {plain, german, page, law}
    assert await listed("olga") == set()


@pytest.mark.parametrize(
    ("name", "queue", "skills", "status"),
    [
        ("anna", "tickets", (), 200),
        ("anna", "tickets", ("german",), 403),
        ("anna", "pages", (), 403),
        ("anna", "law", (), 403),
        ("gina", "tickets", ("german",), 200),
        ("gina", "tickets", ("german", "legal"), 403),
        ("rita", "pages", (), 200),
        ("rita", "law", (), 403),
        ("vera", "law", ("german",), 200),
        ("olga", "tickets", (), 404),
        ("olga", "law", ("german",), 404),
    ],
)
async def test_a_review_is_read_and_claimed_by_those_it_is_for(
    staffed: Plane, store: SqlStore, name: str, queue: str, skills: tuple[str, ...], status: int
) -> None:
    review = await review_in(store, queue, skills)
    program = Program(staffed, name)

    read, claimed = [
        await program.get(f"/v1/reviews/{review.id}"),
        await program.post(f"/v1/reviews/{review.id}:claim"),
    ]
    page = await (await staffed.reviewer(name)).get(f"/inbox/reviews/{review.id}")

    assert (read.status_code, claimed.status_code, page.status_code) == (status, status, status)
    again = await store.review("default", review.id)
    assert again is not None
    assert again.reviewer == (name if status == 200 else None)


async def test_a_queue_of_others_gives_nothing_and_says_why(staffed: Plane, store: SqlStore) -> None:
    await review_in(store, "pages")
    await review_in(store, "tickets", ("german",))
    anna = Program(staffed, "anna")

    foreign = await anna.post("/v1/reviews:claim-next", {"queue": "pages"})
    listed = await anna.get("/v1/reviews?queue=pages")
    unskilled = await anna.post("/v1/reviews:claim-next", {"queue": "tickets"})
    skilled = await Program(staffed, "gina").post("/v1/reviews:claim-next", {"queue": "tickets"})
    inbox = await (await staffed.reviewer("anna")).get("/inbox/tickets/next")

    assert (foreign.status_code, listed.status_code, unskilled.status_code) == (403, 403, 204)
    assert "reviews in queue 'pages' are for others" in foreign.json()["detail"]
    assert (skilled.status_code, skilled.json()["skills"]) == (200, ["german"])
    assert inbox.status_code == 200
    assert "Bitte" not in inbox.text


async def test_a_lead_puts_back_what_another_holds_and_nobody_else_does(staffed: Plane, store: SqlStore) -> None:
    review = await review_in(store)
    fence = await Program(staffed, "anna").claim(review)
    path, body = f"/v1/reviews/{review.id}:release", {"fence": fence, "reviewer": "anna"}

    refused = {name: await Program(staffed, name).post(path, body) for name in ("gina", "paul", "rita", "olga", "cleo")}
    lena = Program(staffed, "lena")
    wrong = [await lena.post(path, one) for one in ({"fence": fence, "reviewer": "gina"}, {**body, "fence": fence + 1})]
    own = await lena.post(path, {"fence": fence})
    released = await lena.post(path, body)

    assert {name: one.status_code for name, one in refused.items()} == {
        "gina": 403, "paul": 403, "rita": 403, "olga": 404, "cleo": 403,
    }  # fmt: skip
    assert [one.status_code for one in (*wrong, own, released)] == [409, 409, 409, 204]
    open_ = await store.review("default", review.id)
    assert open_ is not None
    assert open_.state is ReviewState.OPEN


async def test_a_lead_gives_a_review_to_somebody_who_could_take_it(staffed: Plane, store: SqlStore) -> None:
    review = await review_in(store, "tickets", ("german",))
    lena, path = Program(staffed, "lena"), f"/v1/reviews/{review.id}:assign"

    async def assign(program: Program, reviewer: object, fence: int = 0) -> int:
        return (await program.post(path, {"reviewer": reviewer, "fence": fence})).status_code

    assert [await assign(lena, name) for name in ("nobody", "cleo", "olga", "anna", "paul", "", 7, None)] == [400] * 8
    assert [await assign(Program(staffed, name), "gina") for name in ("gina", "olga")] == [403, 404]
    assert await assign(lena, "gina", fence=1) == 409
    given = await lena.post(path, {"reviewer": "gina", "fence": 0, "lease_s": 60})
    assert (given.status_code, given.json()["reviewer"], given.json()["lease_s"]) == (200, "gina", 60)
    moved = await lena.post(path, {"reviewer": "vera", "fence": given.json()["fence"]})
    gina, vera = Program(staffed, "gina"), Program(staffed, "vera")
    decide = f"/v1/reviews/{review.id}:decide"
    lost = await gina.post(decide, {"fence": given.json()["fence"], "label": "a"})
    decided = await vera.post(decide, {"fence": moved.json()["fence"], "label": "a"})
    assert (moved.status_code, lost.status_code, decided.status_code) == (200, 409, 200)


async def test_without_keys_everybody_leads(plane: Plane, store: SqlStore) -> None:
    review = await review_in(store, "law", ("german",))
    anna, ben = Program(plane, "anna"), Program(plane, "ben")
    fence = await anna.claim(review)

    released = await ben.post(f"/v1/reviews/{review.id}:release", {"fence": fence, "reviewer": "anna"})
    assigned = await ben.post(f"/v1/reviews/{review.id}:assign", {"fence": fence, "reviewer": "anyone"})

    assert (released.status_code, assigned.status_code) == (204, 200)


async def test_a_lease_is_renewed_by_its_holder_under_its_fence(plane: Plane, store: SqlStore, clock: Clock) -> None:
    review = await review_in(store)
    anna, ben = Program(plane, "anna"), Program(plane, "ben")
    fence = await anna.claim(review)
    path = f"/v1/reviews/{review.id}:renew"

    clock.now += 299.0
    renewed = await anna.post(path, {"fence": fence})
    shorter = await anna.post(path, {"fence": fence, "lease_s": 30})
    refused = [
        (await program.post(where, body)).status_code
        for program, where, body in (
            (ben, path, {"fence": fence}),
            (anna, path, {"fence": fence + 1}),
            (anna, path, {}),
            (anna, path, {"fence": fence, "lease_s": 3601}),
            (anna, path, {"fence": fence, "label": "a"}),
            (anna, "/v1/reviews/unknown:renew", {"fence": fence}),
        )
    ]
    clock.now += 31.0
    late = await anna.post(path, {"fence": fence})

    assert (renewed.status_code, renewed.json()["lease_s"], renewed.json()["fence"]) == (200, 300.0, fence)
    assert "payload" not in renewed.json()
    assert shorter.json()["lease_s"] == 30.0
    assert refused == [409, 409, 400, 400, 400, 404]
    assert late.status_code == 409


async def test_the_inbox_tells_of_nothing_beyond_one_s_scope(staffed: Plane, store: SqlStore) -> None:
    own, german = await review_in(store), await review_in(store, skills=("german",))
    law = await review_in(store, "law")
    anna, gina = await staffed.reviewer("anna"), await staffed.reviewer("gina")

    listed = [(await one.get("/inbox/live")).text for one in (anna, gina)]
    asked = [(await one.get(f"/inbox/reviews/{own.id}/alike")).text for one in (anna, gina)]
    refused = [
        await anna.get(f"/inbox/reviews/{one.id}/{part}")
        for one in (german, law)
        for part in ("history", "live", "alike", "payload")
    ]

    assert "1 waiting" in listed[0]
    assert "2 waiting" in listed[1]
    assert "law" not in "".join(listed)
    assert german.id not in asked[0]
    assert german.id in asked[1]
    assert [response.status_code for response in refused] == [403] * 8


async def test_a_lead_puts_back_from_the_inbox_what_another_holds(staffed: Plane, store: SqlStore) -> None:
    review = await review_in(store)
    held = await store.claim("default", review.id, "anna", 300.0)
    lena, gina = await staffed.reviewer("lena"), await staffed.reviewer("gina")
    path = f"/inbox/reviews/{review.id}"

    shown, of_gina = await lena.get(path), await gina.get(path)
    token = re.search(r'name="token" value="([^"]*)"', of_gina.text)
    assert token is not None
    fields = {"token": html.unescape(token[1]), "fence": str(held.fence), "reviewer": "anna"}
    refused = await gina.post(f"{path}/release", fields)
    still = await store.review("default", review.id)
    await lena.press(shown, "release", {})

    assert "Put it back for anna" in shown.text
    assert "Put it back" not in of_gina.text
    assert refused.status_code == 403
    assert still is not None
    assert still.state is ReviewState.CLAIMED
    after = await store.review("default", review.id)
    assert after is not None
    assert after.state is ReviewState.OPEN
