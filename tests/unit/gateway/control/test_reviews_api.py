"""`/v1/reviews`, through the real handler, on the control port."""

from __future__ import annotations

import base64
import html
from datetime import datetime

import httpx2 as httpx
import pytest

from gateway.store.contract import Proposal, Review, ReviewState
from gateway.store.store import SqlStore
from tests.unit.gateway.control.conftest import Clock, Defer, Plane


class Program:
    """A program that reviews: it sends no browser headers."""

    def __init__(self, plane: Plane, name: str) -> None:
        self.http = plane.browser().http
        self.headers = {"x-api-key": plane.keys[name]} if plane.keys else {"x-pointsman-reviewer": name}

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path, headers=self.headers)

    async def post(self, path: str, json: object = None) -> httpx.Response:
        if json is None:
            return await self.http.post(path, headers=self.headers)
        return await self.http.post(path, json=json, headers=self.headers)

    async def claim(self, review: Review) -> int:
        claimed = await self.post(f"/v1/reviews/{review.id}:claim")
        assert claimed.status_code == 200
        fence = claimed.json()["fence"]
        assert isinstance(fence, int)
        return fence


async def test_claim_next_and_decide_until_nothing_is_left(plane: Plane, store: SqlStore, defer: Defer) -> None:
    reviews = [await defer(due_in_s=due) for due in (10, 20)]
    anna = Program(plane, "anna")

    for review in reviews:
        claimed = (await anna.post("/v1/reviews:claim-next", {"queue": "tickets"})).json()
        assert claimed["id"] == review.id
        decided = await anna.post(f"/v1/reviews/{review.id}:decide", {"fence": claimed["fence"], "label": "refund"})
        assert decided.status_code == 200
        assert decided.json() == {
            "id": review.id,
            "state": "decided",
            "label": "refund",
            "reviewer": "anna",
            "answer_id": review.answer_id,
            "answer_status": "final",
            "answer_revision": 2,
            "undo_s": 10.0,
        }
    nothing = await anna.post("/v1/reviews:claim-next", {"queue": "tickets"})

    assert (nothing.status_code, nothing.content) == (204, b"")


async def test_a_review_reads_as_documented(plane: Plane, defer: Defer) -> None:
    review = await defer(proposals=(Proposal("fast", "delivery", 0.5), Proposal("strong", None, None)))
    anna = Program(plane, "anna")

    read = (await anna.post(f"/v1/reviews/{review.id}:claim", {"lease_s": 60})).json()

    due, created = (datetime.fromisoformat(read.pop(name)).timestamp() for name in ("due", "created"))
    assert due == pytest.approx(review.task.due_s, abs=0.001)
    assert created == pytest.approx(review.created_s, abs=0.001)
    assert read == {
        "id": review.id,
        "queue": "tickets",
        "route": "tickets",
        "answer_id": review.answer_id,
        "item": 0,
        "state": "claimed",
        "fence": read["fence"],
        "reviewer": "anna",
        "lease_s": 60.0,
        "label": None,
        "labels": ["refund", "delivery", "other"],
        "proposals": [
            {"stage": "fast", "label": "delivery", "confidence": 0.5},
            {"stage": "strong", "label": None, "confidence": None},
        ],
        "blind": False,
        "opinions": [],
        "reason": "low_confidence",
        "expires": None,
        "priority": 5,
        "skills": [],
        "escalations": 0,
        "recalled": False,
        "overdue": None,
        "content_type": "text/plain; charset=utf-8",
        "payload": "The parcel never came.",
    }


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"\x89PNG", "image/png"), (b"caf\xe9", "text/plain"), (b"x" * 100_000, "application/octet-stream")],
)
async def test_what_is_no_text_comes_as_base64(plane: Plane, defer: Defer, content: bytes, content_type: str) -> None:
    review = await defer(content, content_type)

    read = (await Program(plane, "anna").get(f"/v1/reviews/{review.id}")).json()

    assert "payload" not in read
    assert base64.b64decode(read["payload_b64"]) == content


async def test_reviews_are_listed_by_due_time_in_pages_without_payloads(plane: Plane, defer: Defer) -> None:
    late, soon, other = await defer(due_in_s=99), await defer(due_in_s=9), await defer(queue="pages", due_in_s=50)
    anna = Program(plane, "anna")

    whole = (await anna.get("/v1/reviews")).json()
    first = (await anna.get("/v1/reviews?limit=2")).json()
    second = (await anna.get(f"/v1/reviews?limit=2&after={first['next']}")).json()
    queue = (await anna.get("/v1/reviews?queue=pages")).json()

    assert [row["id"] for row in whole["reviews"]] == [soon.id, other.id, late.id]
    assert whole["next"] is None
    assert [row["id"] for row in first["reviews"] + second["reviews"]] == [soon.id, other.id, late.id]
    assert second["next"] is None
    assert [row["id"] for row in queue["reviews"]] == [other.id]
    assert "parcel" not in str(whole)


async def test_reviews_are_listed_by_state(plane: Plane, defer: Defer) -> None:
    open_, claimed, decided = [await defer() for _ in range(3)]
    anna = Program(plane, "anna")
    await anna.claim(claimed)
    fence = await anna.claim(decided)
    await anna.post(f"/v1/reviews/{decided.id}:decide", {"fence": fence, "label": "other"})

    async def listed(state: str) -> set[str]:
        return {row["id"] for row in (await anna.get(f"/v1/reviews?state={state}")).json()["reviews"]}

    assert await listed("open") == {open_.id}
    assert await listed("claimed") == {claimed.id}
    assert await listed("decided") == {decided.id}
    assert await listed("all") == {open_.id, claimed.id, decided.id}


async def test_a_released_review_is_open_again(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna, ben = Program(plane, "anna"), Program(plane, "ben")
    fence = await anna.claim(review)

    foreign = await ben.post(f"/v1/reviews/{review.id}:release", {"fence": fence})
    stale = await anna.post(f"/v1/reviews/{review.id}:release", {"fence": fence + 1})
    released = await anna.post(f"/v1/reviews/{review.id}:release", {"fence": fence})

    assert (foreign.status_code, stale.status_code, released.status_code) == (409, 409, 204)
    again = await store.review("default", review.id)
    assert again is not None
    assert again.state is ReviewState.OPEN


async def test_only_the_holder_of_the_current_claim_decides(plane: Plane, defer: Defer, clock: Clock) -> None:
    review = await defer()
    anna, ben = Program(plane, "anna"), Program(plane, "ben")
    path = f"/v1/reviews/{review.id}:decide"

    hers = await anna.claim(review)
    held = await ben.post(f"/v1/reviews/{review.id}:claim")
    foreign = await ben.post(path, {"fence": hers, "label": "other"})
    clock.now += 301
    expired = await anna.post(path, {"fence": hers, "label": "refund"})
    his = await ben.claim(review)
    stale = await anna.post(path, {"fence": hers, "label": "refund"})
    decided = await ben.post(path, {"fence": his, "label": "other"})
    repeated = await ben.post(path, {"fence": his, "label": "other"})
    otherwise = await ben.post(path, {"fence": his, "label": "refund"})

    statuses = [r.status_code for r in (held, foreign, expired, stale, decided, repeated, otherwise)]
    assert statuses == [409, 409, 409, 409, 200, 200, 409]


BAD_DECISIONS: list[tuple[object, int]] = [
    ({"label": "refund"}, 400),
    ({"fence": "1", "label": "refund"}, 400),
    ({"fence": True, "label": "refund"}, 400),
    ({"fence": 1.0, "label": "refund"}, 400),
    ({"fence": -1, "label": "refund"}, 400),
    ({"fence": 2**70, "label": "refund"}, 400),
    ({"fence": 0}, 400),
    ({"fence": 0, "label": None}, 400),
    ({"fence": 0, "label": ""}, 400),
    ({"fence": 0, "label": "x" * 10_001}, 400),
    ({"fence": 0, "label": "a\0b"}, 400),
    ({"fence": 0, "label": "nonsense"}, 400),
    ({"fence": 0, "label": "refund", "more": 1}, 400),
    ([], 400),
    ({"fence": 0, "label": "x" * 70_000}, 413),
]


@pytest.mark.parametrize(("body", "status"), BAD_DECISIONS)
async def test_a_bad_decision_is_refused(plane: Plane, defer: Defer, body: object, status: int) -> None:
    review = await defer()
    anna = Program(plane, "anna")

    refused = await anna.post(f"/v1/reviews/{review.id}:decide", body)

    assert refused.status_code == status
    assert refused.headers["content-type"] == "application/problem+json"
    good = await anna.post(f"/v1/reviews/{review.id}:decide", {"fence": await anna.claim(review), "label": "refund"})
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"queue": "a", "queue": "b"}', "application/json", 400),
        (b'{"queue": "\\ud800"}', "application/json", 400),
        (b'{"queue": "tickets", "lease_s": NaN}', "application/json", 400),
        (b'{"queue": "tickets", "lease_s": 1e400}', "application/json", 400),
        (b'{"queue": "tickets", "lease_s": 0}', "application/json", 400),
        (b'{"queue": "a\\u0000b"}', "application/json", 400),
        (b'{"queue": 1}', "application/json", 400),
        (b"{}", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"queue": "tickets"}', "text/plain", 415),
        (b"queue=tickets", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_malformed_body_is_refused(plane: Plane, content: bytes, content_type: str, status: int) -> None:
    http = plane.browser().http

    refused = await http.post("/v1/reviews:claim-next", content=content, headers={"content-type": content_type})

    assert refused.status_code == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/reviews?limit=0", 400),
        ("/v1/reviews?limit=201", 400),
        ("/v1/reviews?limit=%D9%A3", 400),
        ("/v1/reviews?state=lost", 400),
        ("/v1/reviews?queue=", 400),
        ("/v1/reviews?queue=%00", 400),
        ("/v1/reviews?queue=%ff", 400),
        ("/v1/reviews?queue=a&queue=b", 400),
        ("/v1/reviews?nonsense=1", 400),
        ("/v1/reviews?after=unknown", 404),
        ("/v1/reviews?after=%00", 404),
        ("/v1/reviews/unknown", 404),
        ("/v1/reviews/%00", 404),
        ("/v1/reviews?queue=unknown", 200),
    ],
)
async def test_queries_and_paths_have_their_exact_status(plane: Plane, path: str, status: int) -> None:
    assert (await Program(plane, "anna").get(path)).status_code == status


@pytest.mark.parametrize("written", ["x" * 65, "a.b"])
async def test_what_is_no_id_of_a_review_is_refused_alike_by_api_and_inbox(plane: Plane, written: str) -> None:
    told = await Program(plane, "anna").get(f"/v1/reviews/{written}")
    page = await (await plane.reviewer("anna")).get(f"/inbox/reviews/{written}")

    assert (told.status_code, page.status_code) == (404, 404)
    assert told.json()["detail"].startswith("there is no review ")
    assert told.json()["detail"] in html.unescape(page.text)


async def test_another_tenants_review_is_unknown(keyed: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    olga = Program(keyed, "olga")

    answers = [
        await olga.get(f"/v1/reviews/{review.id}"),
        await olga.get(f"/v1/reviews?after={review.id}"),
        await olga.post(f"/v1/reviews/{review.id}:claim"),
        await olga.post(f"/v1/reviews/{review.id}:decide", {"fence": 0, "label": "refund"}),
        await olga.post(f"/v1/reviews/{review.id}:release", {"fence": 0}),
    ]
    next_ = await olga.post("/v1/reviews:claim-next", {"queue": "tickets"})

    assert [answer.status_code for answer in answers] == [404] * 5
    assert next_.status_code == 204
    assert (await olga.get("/v1/reviews?state=all")).json() == {"reviews": [], "next": None}


async def test_a_key_with_the_role_is_needed_and_names_the_reviewer(keyed: Plane, defer: Defer) -> None:
    review = await defer()
    anna, cleo, nobody = Program(keyed, "anna"), Program(keyed, "cleo"), keyed.browser().http
    anna.headers["x-pointsman-reviewer"] = "somebody else"

    missing = await nobody.get("/v1/reviews")

    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert (await cleo.get("/v1/reviews")).status_code == 403
    assert (await anna.post(f"/v1/reviews/{review.id}:claim")).json()["reviewer"] == "anna"


@pytest.mark.parametrize("name", ["x" * 65, "a\tb", " "])
async def test_a_name_that_cannot_be_recorded_is_refused(plane: Plane, name: str) -> None:
    assert (await Program(plane, name).get("/v1/reviews")).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
async def test_without_keys_a_foreign_page_may_not_review(
    plane: Plane, store: SqlStore, defer: Defer, headers: dict[str, str]
) -> None:
    review = await defer()

    refused = await plane.browser().http.post(f"/v1/reviews/{review.id}:claim", headers=headers)

    assert refused.status_code == 403
    untouched = await store.review("default", review.id)
    assert untouched is not None
    assert untouched.state is ReviewState.OPEN
